"""Whom a tenant buys from: names, the keys they sign with, and how they have fared.

A provider is its name, for good: logs, audits, schedules, policies, standings and signed reports say by it
whom they are about (`docs/decisions/0029`). The id stands for that name where rows refer to each other.

A commitment key of a tenant belongs to one provider: a signature says whose it is, nobody has to claim it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import case, delete, func, select, tuple_, update

from auditor.errors import KeySyntaxError
from auditor.merkle.keys import Algorithm, PublicKey, parse_vkey
from auditor.service.clock import now as time_now
from auditor.service.errors import ConflictError, NotFoundError, VersionStaleError
from auditor.service.identifiers import new_id
from auditor.store_commitments import challenge as challenge_table
from auditor.store_commitments import commitment as commitment_table
from auditor.store_commitments import provider_key as key_table
from auditor.store_engine import insert_if_absent
from auditor.store_schedules import dispute as dispute_table
from auditor.store_schema import audit as audit_table
from auditor.store_schema import provider as provider_table
from auditor.store_schema import verdict as verdict_table

if TYPE_CHECKING:
    from sqlalchemy import Connection

OUTCOMES = ("consistent", "inconsistent", "inconclusive")
OVERTURNED = "overturned"
"""In place of the outcome of an audit whose dispute was upheld: it counts against nobody."""
CHALLENGE_STATES = ("open", "held", "failed", "withheld")


@dataclass(frozen=True, slots=True)
class Provider:
    """Somebody who sells tokens to a tenant; `version` counts its changes."""

    id: str
    tenant_id: str
    name: str
    created: int
    version: int
    vkeys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProviderStanding:
    """What is on record about a provider.

    Attributes:
        audits: outcome -> audits that name it; those whose dispute was upheld are `OVERTURNED` instead.
        without_verdict: audits that name it and have no verdict (yet).
        commitments: responses that it signed heads of; `unfinished`, those without a final head.
        challenges: state -> challenges: `open`, or how they ended.
    """

    audits: dict[str, int]
    without_verdict: int
    commitments: int
    unfinished: int
    challenges: dict[str, int]


@dataclass(frozen=True, slots=True)
class ProviderAnswers:
    """What a provider committed to, and what it opened; see `ProviderStanding`."""

    name: str
    commitments: int
    unfinished: int
    challenges: dict[str, int]


def note_keys(vkeys: Sequence[str]) -> dict[str, PublicKey]:
    """Keys that may sign notes, by their canonical text, in order.

    Raises:
        KeySyntaxError: one is none, or signs tree heads only. What was sent is not repeated.
    """
    found: dict[str, PublicKey] = {}
    for number, text in enumerate(vkeys):
        where = f"vkeys.{number}"
        try:
            key = parse_vkey(text)
        except KeySyntaxError:
            raise KeySyntaxError("not a public key", where=where, fix="as `audit keys show` prints") from None
        if key.algorithm is not Algorithm.ED25519:
            raise KeySyntaxError("signs checkpoints only", where=where, fix="use a key of kind log")
        found[key.vkey] = key
    return found


def create(connection: Connection, tenant_id: str, name: str, vkeys: Sequence[str]) -> str:
    """A new provider, with the audits that named it before; returns its id.

    Raises:
        KeySyntaxError: see `note_keys`.
        ConflictError: the name is taken, or a key is another provider's.
    """
    keys, provider_id = note_keys(vkeys), new_id("prv")
    made = {"id": provider_id, "tenant_id": tenant_id, "name": name, "created": time_now(connection)}
    if not insert_if_absent(connection, provider_table, made | {"version": 1}):
        raise ConflictError("there is a provider of that name", where="name")
    _add_keys(connection, tenant_id, provider_id, keys)
    column = audit_table.c
    earlier = update(audit_table).where(column.tenant_id == tenant_id, column.provider == name)
    connection.execute(earlier.values(provider_id=provider_id))
    return provider_id


def _add_keys(connection: Connection, tenant_id: str, provider_id: str, vkeys: Iterable[str]) -> None:
    for vkey in vkeys:
        row = {"tenant_id": tenant_id, "vkey": vkey, "provider_id": provider_id}
        if not insert_if_absent(connection, key_table, row):
            raise ConflictError("a key is another provider's already", where="vkeys")


def change(
    connection: Connection,
    tenant_id: str,
    provider_id: str,
    version: int,
    *,
    vkeys: Sequence[str] | None = None,
) -> None:
    """Replace its commitment keys. What was signed with a key that is gone is no longer accepted.

    Raises:
        NotFoundError: the tenant has no such provider.
        VersionStaleError: it was changed meanwhile.
        KeySyntaxError, ConflictError: see `create`.
    """
    column = provider_table.c
    find(connection, tenant_id, provider_id)
    same = (column.tenant_id == tenant_id, column.id == provider_id, column.version == version)
    changed = update(provider_table).where(*same).values(version=version + 1)
    if connection.execute(changed).rowcount != 1:
        raise VersionStaleError("the provider was changed meanwhile", where="If-Match", fix="read it again")
    if vkeys is not None:
        fresh = note_keys(vkeys)
        owned = (key_table.c.tenant_id == tenant_id, key_table.c.provider_id == provider_id)
        connection.execute(delete(key_table).where(*owned))
        _add_keys(connection, tenant_id, provider_id, fresh)


def find(connection: Connection, tenant_id: str, provider_id: str) -> Provider:
    """One provider.

    Raises:
        NotFoundError: the tenant has no such provider.
    """
    column = provider_table.c
    wanted = select(provider_table).where(column.tenant_id == tenant_id, column.id == provider_id)
    row = connection.execute(wanted).one_or_none()
    if row is None:
        raise NotFoundError("no such provider")
    return _with_keys(connection, tenant_id, [Provider(*row)])[0]


def listed(
    connection: Connection, tenant_id: str, *, after: tuple[int, str] | None, limit: int
) -> list[Provider]:
    """A tenant's providers in order of making, after the (created, id) of another."""
    column = provider_table.c
    wanted = select(provider_table).where(column.tenant_id == tenant_id)
    if after is not None:
        wanted = wanted.where(tuple_(column.created, column.id) > after)
    rows = connection.execute(wanted.order_by(column.created, column.id).limit(limit))
    return _with_keys(connection, tenant_id, [Provider(*row) for row in rows])


def _with_keys(connection: Connection, tenant_id: str, found: list[Provider]) -> list[Provider]:
    column = key_table.c
    ids = [provider.id for provider in found]
    wanted = select(column.provider_id, column.vkey).where(
        column.tenant_id == tenant_id, column.provider_id.in_(ids)
    )
    keys: dict[str, list[str]] = {}
    for provider_id, vkey in connection.execute(wanted.order_by(column.vkey)):
        keys.setdefault(provider_id, []).append(vkey)
    return [
        Provider(p.id, p.tenant_id, p.name, p.created, p.version, tuple(keys.get(p.id, ()))) for p in found
    ]


def named(connection: Connection, tenant_id: str, name: str) -> str | None:
    """The id of the provider of that name; None where there is none."""
    return named_all(connection, {(tenant_id, name)}).get((tenant_id, name))


def named_all(connection: Connection, names: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """The ids of providers, by (tenant, name); those that are none are left out."""
    if not names:
        return {}
    column = provider_table.c
    owners, called = (sorted(set(some)) for some in zip(*names, strict=True))
    # Pairs in one `IN` have SQLite read the whole table: this finds a few too many, by an index.
    wanted = select(column.tenant_id, column.name, column.id)
    wanted = wanted.where(column.tenant_id.in_(owners), column.name.in_(called))
    found = {(row.tenant_id, row.name): row.id for row in connection.execute(wanted)}
    return {pair: found[pair] for pair in names if pair in found}


def names(connection: Connection, tenant_id: str) -> dict[str, str]:
    """Ids and names of all the tenant's providers, by name."""
    column = provider_table.c
    wanted = select(column.id, column.name).where(column.tenant_id == tenant_id).order_by(column.name)
    return {row.id: row.name for row in connection.execute(wanted)}


def signing_keys(
    connection: Connection, tenant_id: str, provider_id: str | None = None
) -> dict[PublicKey, str]:
    """Keys -> provider ids: of one provider, or of all the tenant's."""
    column = key_table.c
    wanted = select(column.vkey, column.provider_id).where(column.tenant_id == tenant_id)
    if provider_id is not None:
        wanted = wanted.where(column.provider_id == provider_id)
    rows = connection.execute(wanted.order_by(column.vkey))
    return {parse_vkey(vkey): owner for vkey, owner in rows}


def standing(connection: Connection, tenant_id: str, provider_id: str) -> ProviderStanding:
    """Count what is on record.

    Raises:
        NotFoundError: the tenant has no such provider.
    """
    find(connection, tenant_id, provider_id)
    column = audit_table.c
    upheld = select(dispute_table.c.audit_id).where(
        dispute_table.c.tenant_id == tenant_id, dispute_table.c.outcome == "upheld"
    )
    outcome = case((column.id.in_(upheld), OVERTURNED), else_=verdict_table.c.outcome).label("found")
    audits = select(outcome, func.count()).select_from(audit_table)
    audits = audits.outerjoin(verdict_table, verdict_table.c.audit_id == column.id)
    audits = audits.where(column.tenant_id == tenant_id, column.provider_id == provider_id)
    outcomes = {row[0]: row[1] for row in connection.execute(audits.group_by(outcome))}
    answers = answered(connection, tenant_id, provider_id)[0]
    return ProviderStanding(
        {outcome: outcomes.get(outcome, 0) for outcome in (*OUTCOMES, OVERTURNED)},
        outcomes.get(None, 0),
        answers.commitments,
        answers.unfinished,
        answers.challenges,
    )


def answered(connection: Connection, tenant_id: str, provider_id: str | None = None) -> list[ProviderAnswers]:
    """What providers committed to, and how their challenges ended: of one, or of all the tenant's by name."""
    column = commitment_table.c
    made = select(column.provider_id, func.count(), func.count(column.finished))
    made = made.where(column.tenant_id == tenant_id).group_by(column.provider_id)
    asked = select(column.provider_id, challenge_table.c.state, func.count()).select_from(challenge_table)
    asked = asked.join(commitment_table, column.id == challenge_table.c.commitment_id)
    asked = asked.where(column.tenant_id == tenant_id).group_by(column.provider_id, challenge_table.c.state)
    if provider_id is not None:
        made, asked = (wanted.where(column.provider_id == provider_id) for wanted in (made, asked))
    counts = {row[0]: (row[1], row[2]) for row in connection.execute(made)}
    states = {(row[0], row[1]): row[2] for row in connection.execute(asked)}
    found = []
    for known, name in names(connection, tenant_id).items():
        if provider_id in (None, known):
            whole, finished = counts.get(known, (0, 0))
            ended = {state: states.get((known, state), 0) for state in CHALLENGE_STATES}
            found.append(ProviderAnswers(name, whole, whole - finished, ended))
    return found
