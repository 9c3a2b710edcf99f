"""`auditor.report-policy/v1`: the rules that decided a report, as its pack holds them (`policy.toml`).

People write one kind of policy, `auditor.policy/v1` (`audit schedule policy` prints it), for schedules and
reports alike. It says more than a report can rest on: whom to alert, when to look harder, how logs are read,
what holds for other providers. A report is signed, goes to outsiders and is made again in years; so what it
names by digest is this: what of the policy decided it, for its provider, defaults written out.

    schema = "auditor.report-policy/v1"
    name = "strict"
    version = "1"
    approved_by = "Jo Doe, 2026-11-01"
    alpha = 0.001                  # chance that an honest provider is accused in one period
    minimum_power = 0.9            # against each cause of `must_detect`
    must_detect = ["model/substituted", "weights/int4"]
    evidence = ["token-difr"]      # what each verdict must rest on, besides whatever else there is
    signed_profiles = true
    largest_fraction = 0.1         # of requests on which a cheat may go unseen before the grade is capped
    budget_tokens = 200000         # output tokens to audit in a period; left out: all

`audit report make` takes either, so that a pack's policy can be applied again. The digest of the file's bytes
names the policy in every report.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field
from typing import Any

from auditor.errors import OptionError
from auditor.must_detect import MUST_DETECT, REQUIRED_POWER
from auditor.reports.canonical import digest

SCHEMA = "auditor.report-policy/v1"
MAX_POLICY_BYTES = 100_000
_TYPES: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "version": (str,),
    "approved_by": (str,),
    "alpha": (float,),
    "minimum_power": (float,),
    "must_detect": (list,),
    "evidence": (list,),
    "signed_profiles": (bool,),
    "largest_fraction": (float,),
    "budget_tokens": (int,),
}


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules for a period; `source` is the bytes it was read from, whose digest names it.

    Raises:
        OptionError: a level out of range, or a name that is empty.
    """

    name: str = "default"
    version: str = "1"
    approved_by: str = ""
    alpha: float = 0.001
    minimum_power: float = REQUIRED_POWER
    must_detect: tuple[str, ...] = MUST_DETECT
    evidence: tuple[str, ...] = ()
    signed_profiles: bool = False
    largest_fraction: float = 0.1
    budget_tokens: int | None = None
    source: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        for name in ("alpha", "minimum_power", "largest_fraction"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise OptionError(f"{name} is {getattr(self, name)}, not between 0 and 1", where="policy")
        if not self.name or not self.version:
            raise OptionError("has no name or no version", where="policy")
        if self.budget_tokens is not None and self.budget_tokens < 1:
            raise OptionError(f"a budget of {self.budget_tokens} tokens", where="policy")

    @property
    def toml(self) -> bytes:
        """The file: as read, or written out for a policy made in code."""
        return self.source or _written(self)

    @property
    def digest(self) -> str:
        """Names the policy."""
        return digest(self.toml)


def parse_policy(raw: bytes, where: str = "policy") -> Policy:
    """Read a policy file.

    Raises:
        OptionError: not TOML, another schema, or a field that is unknown, mistyped or out of range.
    """
    if len(raw) > MAX_POLICY_BYTES:
        raise OptionError(f"longer than {MAX_POLICY_BYTES} bytes", where=where)
    try:
        value = tomllib.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionError(f"is no TOML: {error}", where=where) from None
    if value.pop("schema", None) != SCHEMA:
        raise OptionError("is no policy", where=where, fix=f'its first line reads schema = "{SCHEMA}"')
    return Policy(**{name: _field(name, given, where) for name, given in value.items()}, source=raw)


def _field(name: str, value: Any, where: str) -> Any:
    wanted = _TYPES.get(name)
    if wanted is None:
        fix = f"one of {', '.join(_TYPES)}"
        raise OptionError(f"the field {name[:40]!r} is unknown", where=where, fix=fix)
    if type(value) not in wanted:
        raise OptionError(f"{name} is no {wanted[0].__name__}", where=where)
    if isinstance(value, list):
        if not all(isinstance(part, str) for part in value):
            raise OptionError(f"{name} is no list of texts", where=where)
        return tuple(value)
    return value


def _written(policy: Policy) -> bytes:
    def text(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, tuple):
            return "[" + ", ".join(text(part) for part in value) + "]"
        if isinstance(value, str):
            return json.dumps(value)  # a JSON text is a TOML basic string
        return repr(value)

    lines = [f'schema = "{SCHEMA}"']
    for name in _TYPES:
        value = getattr(policy, name)
        if value is not None:
            lines.append(f"{name} = {text(value)}")
    return "\n".join(lines).encode() + b"\n"
