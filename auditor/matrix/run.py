"""Run rows of the matrix, remembering each in a file, so that an interrupted run goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from auditor.errors import OptionError
from auditor.matrix.memory import Memory, Settings, code_version, naming_version
from auditor.matrix.naming import Naming, looked_at
from auditor.matrix.naming_served import named_served
from auditor.matrix.power import AUDITS, HONEST_AUDITS, Curve, Honest, detection_curve
from auditor.matrix.provider import HonestProvider, traffic_of
from auditor.matrix.rows import Row, honest_row, measure_row
from auditor.matrix.spans import localised
from auditor.reference.deviations import CATALOGUE, HONEST, Deviation, deviation
from auditor.reference.sampling import SamplingSpec

WANTED = (0.9, 0.99)
JUDGED = ("tokens_alone", "fingerprints", "fused", "one_look", "same_promise", "published")


@dataclass(eq=False)
class Run:
    """One run: what rows of the same traffic share is worked out once.

    Attributes:
        alpha: the false-alarm rate of every figure.
        memory: finished rows are read from there.
    """

    provider: HonestProvider
    alpha: float
    memory: Memory
    _honest: dict[str, Honest] = field(default_factory=dict)

    @classmethod
    def of(cls, provider: HonestProvider, alpha: float, memory: Path | None = None) -> Run:
        """A run that goes on where one of the same settings and code left off in that file."""
        settings = Settings(
            provider.provider.model.digest,
            provider.provider.recipe,
            provider.reference.recipe,
            provider.requests,
            alpha,
            code_version(),
        )
        return cls(provider, alpha, Memory(memory, settings))

    def rows(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Measure deviations in order, the honest provider first; one JSON object a row.

        Raises:
            OptionError: an unknown name.
            TraceFileError: the memory cannot be written.
        """
        for cause in [HONEST, *(deviation(name) for name in names)]:
            figures = self.memory.find(cause.name)
            if figures is None:
                figures = self._figures(cause)
                self.memory.add(cause.name, figures)
            yield figures

    def _figures(self, cause: Deviation) -> dict[str, Any]:
        traffic = traffic_of(cause)
        if traffic not in self._honest:
            calibration = self.provider.calibration(traffic)
            report = self.provider.pool(traffic).log
            self._honest[traffic] = Honest.of(self.provider.profile(traffic), calibration, report)
        honest = self._honest[traffic]
        row = honest_row(self.provider) if cause is HONEST else measure_row(self.provider, cause)
        audits = HONEST_AUDITS if cause is HONEST else AUDITS
        states = row.has_states or cause is HONEST
        curve = detection_curve(honest, row.requests, self.alpha, has_states=states, audits=audits)
        found = _described(cause, row) | _needed(curve, self.alpha)
        if cause is HONEST:
            return found
        if cause.serves is None and cause.timing != "from-start":
            found["localisation"] = localised(row.requests, honest.profile.noise_scale[2])
        if found["needed"]["fused"][str(max(WANTED))] is not None:
            claims = {n: row.requests[n].claimed.tolist() for n in self._looked_at}
            self.memory.add(_claims_of(cause.name), {"traffic": traffic, "claims": claims})
        return found

    def name_causes(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same rows with the `diagnosis` of those that are caught, all of them together."""
        part = f"diagnoses {naming_version()}"
        found = self.memory.find(part) or {}
        kept = {row["name"]: self.memory.find(_claims_of(row["name"])) for row in rows}
        asked = {name: one for name, one in kept.items() if one is not None and name not in found}
        for traffic in sorted({one["traffic"] for one in asked.values()}):
            claims = {
                name: {int(n): ids for n, ids in one["claims"].items()}
                for name, one in asked.items()
                if one["traffic"] == traffic
            }
            served = {name for name in claims if CATALOGUE[name].serves is not None}
            shared = {name: ids for name, ids in claims.items() if name not in served}
            if shared:
                found = found | Naming(self.provider, traffic).named(shared)
                self.memory.add(part, found)
            for more in (False, True):
                own = {name: claims[name] for name in served if _declares_more(name) == more}
                if own:
                    found = found | named_served(self.provider, traffic, own)
                    self.memory.add(part, found)
        return [{**row, "diagnosis": found[row["name"]]} if row["name"] in found else row for row in rows]

    @property
    def _looked_at(self) -> list[int]:
        return [number for log in looked_at(self.provider.requests) for number in log]


def _declares_more(name: str) -> bool:
    """Whether a row's requests declare a mask, say, under which some hypotheses cannot be replayed."""
    return CATALOGUE[name].declares(SamplingSpec()) != SamplingSpec()


def _claims_of(name: str) -> str:
    return f"claims of {name}"


def _described(cause: Deviation, row: Row) -> dict[str, Any]:
    return {
        "name": cause.name,
        "family": cause.family,
        "gain": cause.gain,
        "source": cause.source,
        "timing": cause.timing,
        "unseen": cause.unseen,
        "traffic": row.traffic,
        "requests": len(row.requests),
        "tokens": row.tokens,
        "mismatches": row.mismatches,
        "differing": row.differing,
        "by_position": row.by_position(),
        "has_states": row.has_states,
    }


def _needed(curve: Curve, alpha: float) -> dict[str, Any]:
    """Tokens by each way of judging, and the least that tokens could do with."""
    most = max(WANTED)
    needed = {way: {str(w): curve.needed(w, way) for w in WANTED} for way in JUDGED}
    alone, states = (needed[way][str(most)] for way in ("tokens_alone", "fingerprints"))
    best = min((n for n in (alone, states) if n is not None), default=None)
    return {
        "needed": needed,
        "interval": curve.interval(most),
        "floor": curve.needed(most - alpha, "differs"),
        "winning": None if best is None else ("tokens" if alone == best else "fingerprints"),
        "curve": asdict(curve),
    }


def chosen(patterns: Sequence[str]) -> list[str]:
    """Names that begin with one of `patterns` (a family or a name); all of them without any.

    Raises:
        OptionError: a pattern that fits none.
    """
    for pattern in patterns:
        if not any(name.startswith(pattern) for name in CATALOGUE):
            raise OptionError(
                f"no deviation begins with {pattern!r}", fix="`audit matrix --list` names them all"
            )
    return [n for n in CATALOGUE if not patterns or any(n.startswith(p) for p in patterns)]
