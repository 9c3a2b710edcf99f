r"""Whom a reader of evidence packs trusts: report keys, when they were in force, and the log's policy.

[[report_key]]
vkey = "example.com/reports+1234abcd+AQ..."
since = 2026-01-01T00:00:00Z      # optional
until = 2027-01-01T00:00:00Z      # optional: an old key stays good for what it signed then

[log]
policy = "log example.com/log+...\\nquorum none\\n"      # C2SP tlog-policy
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from auditor.errors import OptionError
from auditor.merkle.keys import parse_vkey
from auditor.merkle.policy import Policy as LogPolicy
from auditor.merkle.policy import parse_policy
from auditor.reports.pack_verification import TrustedKey

MAX_TRUST_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Trust:
    """Report keys, and which logs with which witnesses."""

    reports: tuple[TrustedKey, ...]
    log: LogPolicy


def parse_trust(raw: bytes, where: str = "trust") -> Trust:
    """Read a trust file.

    Raises:
        OptionError: not TOML, or a field that is missing or mistyped.
        KeySyntaxError, PolicySyntaxError: a key or the log's policy.
    """
    try:
        value = tomllib.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionError(f"is no TOML: {error}", where=where) from None
    keys, log = value.get("report_key"), value.get("log")
    if (
        not isinstance(keys, list)
        or not keys
        or not isinstance(log, dict)
        or set(value) != {"report_key", "log"}
    ):
        raise OptionError("needs [[report_key]] and [log], and nothing else", where=where)
    policy = log.get("policy")
    if not isinstance(policy, str) or set(log) != {"policy"}:
        raise OptionError("[log] holds a `policy` text, and nothing else", where=where)
    return Trust(tuple(_key(key, where) for key in keys), parse_policy(policy.encode(), where))


def _key(value: Any, where: str) -> TrustedKey:
    if (
        not isinstance(value, dict)
        or not isinstance(value.get("vkey"), str)
        or value.keys() - {"vkey", *_TIMES}
    ):
        raise OptionError("a report key has a vkey, and may have since and until", where=where)
    return TrustedKey(parse_vkey(value["vkey"]), *(_time(value.get(name), where) for name in _TIMES))


_TIMES = ("since", "until")


def _time(value: Any, where: str) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise OptionError(f"{value!r} is no time with a zone", where=where, fix="write 2026-11-02T00:00:00Z")
    return value
