"""`verify_pack`: an evidence pack, checked offline against keys that the reader trusts. Pure.

Numbered steps, the same in `VERIFY.md` and in every report:

0. the archive is a pack, and has no byte that its members do not account for;
1. pack.dsse.json is signed by a trusted key that was in force, and names every member by its digest; nothing
   is there that it does not name, and nothing is missing but texts and reproductions that were taken out;
2. report.dsse.json and svr.dsse.json are signed alike, and both statements are those of this report.json;
3. entry.json names the digests of the report and of both statements;
4. report.tlog-proof leads from that entry to a checkpoint that the log's key and the quorum signed;
5. policy.toml is the policy whose digest the report names;
6. each disclosed text opens, with its salt, its commitment in the report;
7. where the reader names roots of time-stamping authorities, one of them vouches for report.tsr: that
   report.dsse.json was there at that time, and not before it says it was made.

What is left out is told: a pack without its texts is a redacted one, and still a whole proof of the report.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from auditor.errors import KeyUnknownError, TraceSyntaxError
from auditor.merkle.keys import PublicKey
from auditor.merkle.policy import Approval
from auditor.merkle.policy import Policy as LogPolicy
from auditor.merkle.receipts import parse_receipt, verify_receipt
from auditor.reports.canonical import canonical, digest
from auditor.reports.commitments import commit
from auditor.reports.envelopes import open_envelope
from auditor.reports.errors import (
    DisclosureMismatchError,
    EntryMismatchError,
    KeyStaleError,
    PackMemberError,
    PackSyntaxError,
    PolicyMismatchError,
    ReportInvalidError,
    StatementMismatchError,
)
from auditor.reports.packs import REQUIRED, TIME_STAMP, read_pack, removable
from auditor.reports.statements import PACK, statements
from auditor.reports.time_stamps import STAMPED, verify_stamp
from auditor.strict_json import load_object

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

SIGNED = "pack.dsse.json"
_MAX_JSON = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A report key, and when it was in force: ISO 8601 with zone, or open-ended."""

    key: PublicKey
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class VerifiedPack:
    """What a pack was found to be.

    Attributes:
        document: `report.json`. disclosed: texts by evidence id and field. withheld: how many were taken out.
        disputes: audits with a reproduction in the pack.
        has_stamp: whether a time stamp is there. stamped: its time, None where no roots were named.
    """

    document: Mapping[str, Any]
    digest: str
    keys: tuple[PublicKey, ...]
    approval: Approval
    log_index: int
    disclosed: Mapping[tuple[str, str], str]
    withheld: int
    disputes: tuple[str, ...]
    has_stamp: bool = False
    stamped: datetime | None = None


def verify_pack(
    raw: bytes,
    keys: Sequence[TrustedKey],
    log_policy: LogPolicy,
    where: str = "pack",
    *,
    roots: Sequence[Certificate] = (),
) -> VerifiedPack:
    """Check a pack by the steps of this module.

    Raises:
        PackSyntaxError, PackAlteredError: step 0.
        EnvelopeSyntaxError, KeyUnknownError, SignatureInvalidError, KeyStaleError: steps 1 and 2.
        PackMemberError: step 1. ReportInvalidError, StatementMismatchError: step 2.
        EntryMismatchError: step 3. VerificationFailedError: step 4, as `verify_receipt` says.
        PolicyMismatchError: step 5. DisclosureMismatchError: step 6.
        TimeStampMissingError, TimeStampSyntaxError, TimeStampRefusedError, TimeStampMismatchError,
            TimeStampUntrustedError: step 7.
    """
    members = read_pack(raw, where)
    if SIGNED not in members:
        raise PackMemberError(f"has no {SIGNED}", where=where)
    listed, signers = _listed(members, keys, where)
    _check_members(members, listed, where)
    body = members["report.json"]
    document = _document(body, where)
    said = {name: _opened(members, f"{name}.dsse.json", keys, where)[0] for name in ("report", "svr")}
    with _well_formed(where):
        _check_statements(body, said, where)
    _check_entry(members["entry.json"], body, said, where)
    receipt = parse_receipt(members["report.tlog-proof"], f"{where}: report.tlog-proof")
    approval = verify_receipt(receipt, members["entry.json"], log_policy, f"{where}: report.tlog-proof")
    with _well_formed(where):
        if digest(members["policy.toml"]) != document["policy"]["digest"]:
            raise PolicyMismatchError("policy.toml is not the policy of the report", where=where)
        texts = _disclosed(members, document, where)
    stamped = _stamped(members, said["report"], roots, where) if roots else None
    gone = [name for name in listed if name not in members]
    return VerifiedPack(
        document,
        digest(body),
        signers,
        approval,
        receipt.index,
        texts,
        sum(name.startswith("disclosures/") for name in gone),
        tuple(sorted({name.split("/")[1] for name in members if name.startswith("disputes/")})),
        TIME_STAMP in members,
        stamped,
    )


def _stamped(
    members: Mapping[str, bytes], statement: bytes, roots: Sequence[Certificate], where: str
) -> datetime:
    made = _time(_object(statement, where)["predicate"]["timeCreated"], where)
    token = members.get(TIME_STAMP)
    return verify_stamp(token, members[STAMPED], made, roots, f"{where}: {TIME_STAMP}")


@contextmanager
def _well_formed(where: str) -> Iterator[None]:
    """A signer's own mistake: canonical JSON with a signature that still is no report."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ReportInvalidError(f"report.json lacks what a report has: {error!r}", where=where) from None


def _opened(
    members: Mapping[str, bytes], name: str, keys: Sequence[TrustedKey], where: str
) -> tuple[bytes, tuple[PublicKey, ...]]:
    place = f"{where}: {name}"
    payload, signers = open_envelope(members[name], [trusted.key for trusted in keys], place)
    predicate = _object(payload, place).get("predicate")
    made = _time(predicate.get("timeCreated") if isinstance(predicate, dict) else None, place)
    fresh = [trusted.key for trusted in keys if trusted.key in signers and _in_force(trusted, made)]
    if not fresh:
        raise KeyStaleError(
            f"signed {made.isoformat()} by {signers[0].name}, whose key was not in force then", where=place
        )
    return payload, tuple(fresh)


def _in_force(trusted: TrustedKey, made: datetime) -> bool:
    return (trusted.since is None or trusted.since <= made) and (
        trusted.until is None or made < trusted.until
    )


def _time(value: Any, where: str) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is None:
        raise StatementMismatchError("the statement says no time of making", where=where)
    return moment


def _object(raw: bytes, where: str) -> dict[str, Any]:
    try:
        return load_object(raw, where=where, max_bytes=_MAX_JSON)
    except TraceSyntaxError as error:
        raise PackSyntaxError(error.message, where=where) from None


def _listed(
    members: Mapping[str, bytes], keys: Sequence[TrustedKey], where: str
) -> tuple[dict[str, str], tuple[PublicKey, ...]]:
    payload, signers = _opened(members, SIGNED, keys, where)
    statement = _object(payload, where)
    subjects = statement.get("subject")
    if statement.get("predicateType") != PACK or not isinstance(subjects, list):
        raise StatementMismatchError("says nothing about a pack", where=f"{where}: {SIGNED}")
    try:
        return {str(s["name"]): f"sha256:{s['digest']['sha256']}" for s in subjects}, signers
    except (KeyError, TypeError):
        raise StatementMismatchError("a subject has no digest", where=f"{where}: {SIGNED}") from None


def _check_members(members: Mapping[str, bytes], listed: Mapping[str, str], where: str) -> None:
    for name, content in members.items():
        if name == SIGNED:
            continue
        if name not in listed:
            raise PackMemberError(f"{name} is not among the members that were signed", where=where)
        if digest(content) != listed[name]:
            raise PackMemberError(f"{name} is not the one that was signed", where=where)
    for name in (*REQUIRED, *(name for name in listed if not removable(name))):
        if name not in members:
            raise PackMemberError(f"{name} is missing", where=where)


def _document(body: bytes, where: str) -> dict[str, Any]:
    document = _object(body, f"{where}: report.json")
    if document.get("schema") != "auditor.report/v1":
        raise ReportInvalidError("report.json is of another schema", where=where)
    try:
        same = canonical(document) == body
    except TypeError:
        same = False
    if not same:
        raise ReportInvalidError("report.json is not in canonical form", where=where)
    return document


def _check_statements(body: bytes, said: Mapping[str, bytes], where: str) -> None:
    for name, payload in said.items():
        place = f"{where}: {name}.dsse.json"
        made = _object(payload, place)["predicate"]["timeCreated"]
        if payload != statements(body, made)[name]:
            raise StatementMismatchError("the statement is not this report's", where=place)


def _check_entry(raw: bytes, body: bytes, said: Mapping[str, bytes], where: str) -> None:
    entry = _object(raw, f"{where}: entry.json")
    wanted = {"digest": digest(body), **{f"{name}_statement": digest(p) for name, p in said.items()}}
    for name, value in wanted.items():
        if entry.get(name) != value:
            raise EntryMismatchError(f"the log entry names another {name}", where=f"{where}: entry.json")


def _disclosed(
    members: Mapping[str, bytes], document: Mapping[str, Any], where: str
) -> dict[tuple[str, str], str]:
    committed = {
        (one["evidence"], name): commitment
        for one in document["exceptions"]
        for name, commitment in one["commitments"].items()
    }
    texts = {}
    for member, content in members.items():
        if not member.startswith("disclosures/"):
            continue
        place = f"{where}: {member}"
        shown = _object(content, place)
        try:
            key = (shown["evidence"], shown["field"])
            opened = commit(bytes.fromhex(shown["salt"]), digest(shown["text"].encode()))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise PackSyntaxError("no disclosure", where=place) from None
        if committed.get(key) != opened:
            raise DisclosureMismatchError("the text does not open its commitment", where=place)
        texts[key] = shown["text"]
    return texts


def disclosure(evidence_id: str, name: str, salt: bytes, text: bytes) -> bytes:
    """A member that opens one commitment."""
    value = {"evidence": evidence_id, "field": name, "salt": salt.hex(), "text": text.decode()}
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def trust(keys: Sequence[PublicKey]) -> list[TrustedKey]:
    """Keys that are trusted at any time.

    Raises:
        KeyUnknownError: there are none.
    """
    if not keys:
        raise KeyUnknownError("no key is trusted", fix="name the auditor's with --vkey")
    return [TrustedKey(key) for key in keys]
