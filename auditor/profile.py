"""`Profile`: the honest noise of (model, provider recipe, reference recipe), and what cheating looks like.

A profile is data, versioned and named by the digest of its own content: the reduced honest requests
(`noise_model.RequestCounts`), the same for every simulated deviation and sampling mode, and figures for
people. Statistics are recomputed from the counts when it is used, so a better test needs no new calibration.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from auditor.errors import ProfileInvalidError
from auditor.evidence import Calibration
from auditor.merkle.notes import MAX_NOTE_BYTES
from auditor.noise_model import BINS, RequestCounts

SCHEMA = "auditor.profile/v1"
_MOST_BYTES = 256 << 20

_Bin = Annotated[int, Field(ge=0, lt=BINS)]
_Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True)
class ProfileKey:
    """What a profile is for; a log is judged only against a profile with its own key."""

    model_digest: str
    provider_recipe: str
    reference_recipe: str
    family: str


@dataclass(frozen=True, slots=True)
class Deviated:
    """What one deviation left behind, by sampling mode.

    Attributes:
        requests: mode -> reduced requests.
        outside, filtered: mode -> tokens outside the filters, of how many.
    """

    requests: Mapping[str, tuple[RequestCounts, ...]]
    outside: Mapping[str, int]
    filtered: Mapping[str, int]


@dataclass(frozen=True)
class Profile:
    """One calibration. Quantiles are of all honest margins, zeros included, in logit units.

    Attributes:
        honest: one entry for each honest request.
        outside, filtered: honest tokens outside their filters, of how many drawn under a filter.
        margin_quantiles: level -> margin.
        noise_scale: (estimate, low, high) of the noise scale s; the bounds at 95 %.
        smallest_alpha: factor on the noise scale -> smallest false-alarm rate that can convict it.
        deviations: cause -> simulated evidence; empty when it was not measured.
        contradicted: honest requests whose end contradicts them (`stop_decisions.py`): a habit of the log.
        fingerprints: kind of activation fingerprint -> distance of each honest request that carried one.
        expires: UTC time from which on it is not used, None for never.
        note: signed note of those who vouch for it (`profile_trust.py`), None for nobody.
        signed_by: trusted keys whose signatures were checked, NAME+ID; not part of the file.
    """

    key: ProfileKey
    created: str
    honest: tuple[RequestCounts, ...]
    outside: int
    filtered: int
    margin_quantiles: Mapping[str, float]
    noise_scale: tuple[float, float, float]
    smallest_alpha: Mapping[str, float]
    deviations: Mapping[str, Deviated]
    contradicted: int = 0
    fingerprints: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    expires: str | None = None
    note: str | None = None
    signed_by: tuple[str, ...] = ()

    def has_expired(self, now: datetime) -> bool:
        """Whether the profile is no longer to be used; drivers, kernels and clouds do not stand still."""
        return self.expires is not None and datetime.fromisoformat(self.expires) <= now

    @cached_property
    def calibration(self) -> Calibration:
        """The honest requests as the tests use them."""
        return Calibration.of(self.honest)

    @property
    def honest_tokens(self) -> int:
        """Tokens the null rests on."""
        return sum(r.tokens for r in self.honest)

    @property
    def clip(self) -> float:
        """Where margins are winsorised for the mean: the honest 99.9th percentile, at least 0.001 logits."""
        return max(self.margin_quantiles["0.999"], 1e-3)

    @property
    def id(self) -> str:
        """`sha256:` of the content, without the time of creation and signatures."""
        content = {k: v for k, v in profile_to_json(self).items() if k not in ("created", "note")}
        return "sha256:" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _counts_to_json(requests: tuple[RequestCounts, ...]) -> list[dict[str, Any]]:
    return [
        {
            "tokens": r.tokens,
            "matched": [[d, n] for d, n in sorted(r.matched.items())],
            "missed": [[d, m, n] for (d, m), n in sorted(r.missed.items())],
        }
        for r in requests
    ]


def profile_to_json(profile: Profile) -> dict[str, Any]:
    """The profile as JSON data, without its id."""
    estimate, low, high = profile.noise_scale
    # Absent when empty: profiles from before fingerprints keep their id.
    fingerprints = {kind: list(distances) for kind, distances in profile.fingerprints.items()}
    return {
        "schema": SCHEMA,
        "created": profile.created,
        **({"expires": profile.expires} if profile.expires else {}),
        "model_digest": profile.key.model_digest,
        "provider_recipe": profile.key.provider_recipe,
        "reference_recipe": profile.key.reference_recipe,
        "family": profile.key.family,
        "honest": {
            "requests": len(profile.honest),
            "tokens": profile.honest_tokens,
            "mismatches": sum(r.mismatches for r in profile.honest),
            "outside": profile.outside,
            "filtered": profile.filtered,
            **({"contradicted": profile.contradicted} if profile.contradicted else {}),
            "margin_quantiles": dict(profile.margin_quantiles),
            "noise_scale": {"estimate": estimate, "low": low, "high": high},
            "counts": _counts_to_json(profile.honest),
        },
        "smallest_alpha": dict(profile.smallest_alpha),
        "deviations": {
            name: {
                mode: {
                    "outside": deviated.outside[mode],
                    "filtered": deviated.filtered[mode],
                    "counts": _counts_to_json(requests),
                }
                for mode, requests in deviated.requests.items()
            }
            for name, deviated in profile.deviations.items()
        },
        **({"fingerprints": fingerprints} if fingerprints else {}),
        **({"note": profile.note} if profile.note is not None else {}),
    }


class _Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _CountsWire(_Wire):
    tokens: _Count
    matched: list[tuple[_Bin, _Count]]
    missed: list[tuple[_Bin, _Bin, _Count]]

    def value(self) -> RequestCounts:
        counts = RequestCounts(self.tokens, dict(self.matched), {(d, m): n for d, m, n in self.missed})
        if sum(counts.matched.values()) + counts.mismatches != self.tokens:
            raise ValueError("counts do not add up to the request's tokens")
        return counts


class _ScaleWire(_Wire):
    estimate: float
    low: float
    high: float


class _HonestWire(_Wire):
    requests: int
    tokens: int
    mismatches: int
    outside: int
    filtered: int
    contradicted: Annotated[int, Field(ge=0)] = 0
    margin_quantiles: dict[str, float]
    noise_scale: _ScaleWire
    counts: list[_CountsWire]


def _utc_time(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("must be a time with a zone")
    return text


class _DeviatedWire(_Wire):
    outside: int
    filtered: int
    counts: list[_CountsWire]


class _ProfileWire(_Wire):
    schema_: Literal["auditor.profile/v1"] = Field(alias="schema")
    id: str
    created: str
    expires: Annotated[str, AfterValidator(_utc_time)] | None = None
    model_digest: str
    provider_recipe: str
    reference_recipe: str
    family: Literal["race", "icdf"]
    honest: _HonestWire
    smallest_alpha: dict[str, float]
    deviations: dict[str, dict[str, _DeviatedWire]]
    fingerprints: dict[str, list[Annotated[float, Field(ge=0)]]] = Field(default_factory=dict)
    note: Annotated[str, Field(max_length=MAX_NOTE_BYTES)] | None = None


def parse_profile(raw: bytes, *, where: str) -> Profile:
    """Read a profile and check that it is what its id says.

    Raises:
        ProfileInvalidError: not JSON, not this schema, or altered after it was made.
    """
    if len(raw) > _MOST_BYTES:
        raise ProfileInvalidError(f"{len(raw)} bytes; at most {_MOST_BYTES} are read", where=where)
    try:
        # JSON arrays are the wire's tuples: only the JSON mode of strict validation takes them.
        wire = _ProfileWire.model_validate_json(raw)
        profile = _from_wire(wire)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ProfileInvalidError(f"field {field or 'JSON'}: {first['msg']}", where=where) from error
    except (ValueError, KeyError) as error:
        raise ProfileInvalidError(str(error), where=where) from error
    told = (wire.honest.requests, wire.honest.tokens, wire.honest.mismatches)
    if told != (len(profile.honest), profile.honest_tokens, sum(r.mismatches for r in profile.honest)):
        raise ProfileInvalidError(
            "its counts of honest requests, tokens and mismatches are not those of its rows",
            where=where,
            fix="it was altered: calibrate again",
        )
    if profile.id != wire.id:
        raise ProfileInvalidError(
            "the content does not match the id", where=where, fix="it was altered: calibrate again"
        )
    return profile


def _from_wire(wire: _ProfileWire) -> Profile:
    return Profile(
        key=ProfileKey(wire.model_digest, wire.provider_recipe, wire.reference_recipe, wire.family),
        created=wire.created,
        honest=tuple(c.value() for c in wire.honest.counts),
        outside=wire.honest.outside,
        filtered=wire.honest.filtered,
        margin_quantiles=wire.honest.margin_quantiles,
        noise_scale=(
            wire.honest.noise_scale.estimate,
            wire.honest.noise_scale.low,
            wire.honest.noise_scale.high,
        ),
        smallest_alpha=wire.smallest_alpha,
        deviations={
            name: Deviated(
                {mode: tuple(c.value() for c in d.counts) for mode, d in modes.items()},
                {mode: d.outside for mode, d in modes.items()},
                {mode: d.filtered for mode, d in modes.items()},
            )
            for name, modes in wire.deviations.items()
        },
        contradicted=wire.honest.contradicted,
        fingerprints={kind: tuple(distances) for kind, distances in wire.fingerprints.items()},
        expires=wire.expires,
        note=wire.note,
    )


def profile_bytes(profile: Profile) -> bytes:
    """The file's content."""
    return json.dumps({"id": profile.id, **profile_to_json(profile)}, separators=(",", ":")).encode() + b"\n"


def read_profile(path: Path | str) -> Profile:
    """Read a profile file.

    Raises:
        ProfileInvalidError: missing, unreadable or invalid.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise ProfileInvalidError(f"cannot be read: {error.strerror}", where=str(path)) from error
    return parse_profile(raw, where=str(path))
