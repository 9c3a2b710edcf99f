"""`make_pack`: a stored report with everything that proves it, in one file. The rim.

Texts and reproductions come from the logs that were handed in; a pack without them is made where the logs are
not at hand, and is what `redact` makes of a pack with them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import select

from auditor.merkle.keys import Signer
from auditor.profile import profile_bytes
from auditor.reports.commitments import commit, salt_of
from auditor.reports.disclosures import disclosable, text_digests
from auditor.reports.disputes import dispute_members
from auditor.reports.envelopes import seal
from auditor.reports.html import render_report
from auditor.reports.making import find_report, report_entry
from auditor.reports.pack_verification import SIGNED, disclosure
from auditor.reports.packs import TIME_STAMP, read_pack, removable, write_pack
from auditor.reports.statements import pack_statement, statements
from auditor.reports.texts import verify_instructions
from auditor.reports.time_stamps import STAMPED, Ask, request_stamp
from auditor.service.clock import to_text
from auditor.service.errors import NotFinishedError
from auditor.store_schema import audit as audit_table
from auditor.store_schema import tenant_salt as salt_table
from auditor.store_schema import trace_log as log_table
from auditor.store_schema import verdict as verdict_table
from auditor.trace import Trace
from auditor.trace_files import read_traces
from auditor.transparency_log import TransparencyLog

if TYPE_CHECKING:
    from auditor.profile import Profile
    from auditor.service.blobs import Blobs
    from auditor.store import Store


ReportSigner: TypeAlias = Signer
"""Whatever can sign a report: a plain Ed25519 key."""


@dataclass(frozen=True, slots=True)
class Logs:
    """Where the texts are: the tenant's logs and the profiles of its verdicts."""

    blobs: Blobs
    find_profile: Callable[[str], Profile | None]


def make_pack(
    store: Store,
    tenant_id: str,
    name: str,
    log: TransparencyLog,
    signer: ReportSigner,
    logs: Logs | None = None,
    ask: Ask | None = None,
) -> bytes:
    """The evidence pack of a stored report.

    Args:
        name: of the report. log: holds its entry. signer: the report key.
        logs: put texts and reproductions in; without them when None.
        ask: has an authority stamp the time of the report's statement; no stamp when None.

    Raises:
        NotFoundError: the tenant has no such report.
        NotFinishedError: the log does not hold its entry yet.
        StoreError: a log is missing.
        TimeStampRefusedError, TimeStampSyntaxError, TimeStampMismatchError: the authority did not stamp it.
    """
    with store.transaction() as connection:
        stored, body, policy = find_report(connection, tenant_id, name)
        position, entry = report_entry(connection, tenant_id, name)
    if position is None or position >= log.checkpoint()[1].size:
        raise NotFinishedError("the report's entry is not in a signed tree yet", retry_after=3)
    document = json.loads(body)
    made = to_text(stored.created)
    members = {
        "report.json": body,
        "report.html": render_report(document, stored.digest).encode(),
        "policy.toml": policy,
        "entry.json": entry,
        "report.tlog-proof": log.prove(position).serialize(),
        "keys.txt": f"{signer.public.vkey}\n".encode(),
        "VERIFY.md": verify_instructions(signer.public.vkey).encode(),
        **{f"{kind}.dsse.json": seal(said, [signer]) for kind, said in statements(body, made).items()},
    }
    if logs is not None:
        members |= _texts(store, tenant_id, document, logs)
    if ask is not None:
        members[TIME_STAMP] = request_stamp(members[STAMPED], ask)
    members[SIGNED] = seal(pack_statement(members, name, made), [signer])
    return write_pack(members)


def redact(raw: bytes, keep: Iterable[str] = (), where: str = "pack") -> bytes:
    """The pack without texts and reproductions, but for members that match a pattern of `keep`.

    Raises:
        PackSyntaxError, PackAlteredError: it is no pack.
    """
    patterns = tuple(keep)
    members = read_pack(raw, where)
    kept = {
        name: content
        for name, content in members.items()
        if not removable(name) or any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    return write_pack(kept)


def _texts(store: Store, tenant_id: str, document: Mapping[str, Any], logs: Logs) -> dict[str, bytes]:
    with store.transaction() as connection:
        salt = bytes(
            connection.execute(
                select(salt_table.c.salt).where(salt_table.c.tenant_id == tenant_id)
            ).scalar_one()
        )
    wanted: dict[str, list[Mapping[str, Any]]] = {}
    for one in document["exceptions"]:
        wanted.setdefault(one["audit"], []).append(one)
    convicted = {
        audit["id"]
        for provider in document["providers"]
        for audit in provider["audits"]
        if audit["verdict"] == "inconsistent"
    }
    members: dict[str, bytes] = {}
    for audit_id in sorted(convicted | wanted.keys()):
        digest, label, options, verdict = _audit(store, tenant_id, audit_id)
        traces = list(_traces(logs, digest, label, options))
        opened = _opened(wanted.get(audit_id, ()), traces, salt)
        for text in opened:
            members[f"disclosures/{len(members)}-{json.loads(text)['field']}.json"] = text
        if audit_id in convicted:
            members |= _dispute(audit_id, verdict, traces, options, logs)
    return members


def _audit(store: Store, tenant_id: str, audit_id: str) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    wanted = (
        select(log_table.c.digest, log_table.c.name, audit_table.c.options, verdict_table.c.body)
        .join(audit_table, audit_table.c.trace_log_id == log_table.c.id)
        .join(verdict_table, verdict_table.c.audit_id == audit_table.c.id)
        .where(audit_table.c.tenant_id == tenant_id, audit_table.c.id == audit_id)
    )
    with store.transaction() as connection:
        row = connection.execute(wanted).one()
    return row.digest, row.name, json.loads(row.options), json.loads(bytes(row.body))


def _traces(logs: Logs, digest: str, label: str, options: Mapping[str, Any]) -> Iterator[Trace]:
    try:
        found = read_traces(logs.blobs.path(digest), input_format=options["input_format"], label=label)
        yield from (trace for trace in found if isinstance(trace, Trace))
    finally:
        logs.blobs.release(digest)


def _opened(exceptions: Iterable[Mapping[str, Any]], traces: Iterable[Trace], salt: bytes) -> Iterator[bytes]:
    """What opens the commitments of some requests, found by their ids and by the commitments themselves."""
    wanted: dict[str, list[Mapping[str, Any]]] = {}
    for one in exceptions:
        wanted.setdefault(one["request"], []).append(one)
    for trace in traces:
        for one in wanted.get(trace.id, ()):
            digests, evidence_id = text_digests(trace), one["evidence"]
            salts = {name: salt_of(salt, evidence_id, name) for name in one["commitments"]}
            if all(commit(salts[name], digests[name]) == said for name, said in one["commitments"].items()):
                texts = disclosable(trace)
                for name in one["commitments"]:
                    yield disclosure(evidence_id, name, salts[name], texts[name])


def _dispute(
    audit_id: str,
    verdict: Mapping[str, Any],
    traces: Iterable[Trace],
    options: Mapping[str, Any],
    logs: Logs,
) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    found = [item for item in verdict.get("reproductions", ()) if item is not None]
    if found:
        profile = logs.find_profile(found[0]["profile"]) if found[0]["profile"] else None
        content = None if profile is None else profile_bytes(profile)
        for name, member in dispute_members(audit_id, found[0], traces, options, content).items():
            members[f"disputes/{audit_id}/{name}"] = member
    return members
