"""A tenant's own calibration profiles, and whose signatures it takes (`docs/decisions/0018`).

A profile is accepted signed by a key that the tenant trusts, and checked again whenever it is used: a key
that was taken out, an expiry or a revocation since then leaves the group inconclusive. Nothing falls back to
an older profile, or to one of the operator's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select, tuple_, update

from auditor.errors import KeyUnknownError, ProfileExpiredError, ProfileInvalidError, ProfileRevokedError
from auditor.merkle.keys import parse_vkey
from auditor.profile import Profile, ProfileKey, parse_profile
from auditor.profile_trust import REFUSALS, Trust
from auditor.service.clock import SECOND
from auditor.service.clock import now as time_now
from auditor.service.errors import NotFoundError, VersionStaleError
from auditor.service.providers import note_keys
from auditor.store import created_column
from auditor.store_commitments import tenant_profile as profile_table
from auditor.store_commitments import trusted_key as trusted_table
from auditor.store_engine import insert_if_absent

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row

    from auditor.store import Store


@dataclass(frozen=True, slots=True)
class TenantProfile:
    """A profile as it is listed. `made` is its own time, `created` when it was handed in (microseconds)."""

    id: str
    key: ProfileKey
    made: str
    honest_tokens: int
    created: int
    revoked: int | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class ProfileStanding:
    """A profile and whether audits that are ordered now would be judged by it.

    Attributes:
        signed_by: keys that the tenant trusts now and that signed it, NAME+ID.
        expires: UTC time; None for never.
        newest: of its model and recipes; an older one is not used, whatever became of the newest.
        refusal: why it would not be used, as a code and in words; None where nothing speaks against it.
    """

    profile: TenantProfile
    signed_by: tuple[str, ...]
    expires: str | None
    newest: bool
    refusal: tuple[str, str] | None


def trusted(connection: Connection, tenant_id: str) -> list[str]:
    """Public keys whose signature on a profile the tenant takes, in order."""
    column = trusted_table.c
    wanted = select(column.vkey).where(column.tenant_id == tenant_id).order_by(column.vkey)
    return list(connection.execute(wanted).scalars())


def set_trusted(
    connection: Connection, tenant_id: str, vkeys: Sequence[str], *, instead_of: Callable[[list[str]], bool]
) -> list[str]:
    """Replace the keys that may vouch.

    Args:
        instead_of: whether the keys that are there are those the caller saw.

    Raises:
        KeySyntaxError: see `note_keys`.
        VersionStaleError: they are others.
    """
    fresh = sorted(note_keys(vkeys))
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("LOCK TABLE trusted_key IN SHARE ROW EXCLUSIVE MODE")
    if not instead_of(trusted(connection, tenant_id)):
        raise VersionStaleError("the keys were changed meanwhile", where="If-Match", fix="read them again")
    connection.execute(delete(trusted_table).where(trusted_table.c.tenant_id == tenant_id))
    if fresh:
        rows = [{"tenant_id": tenant_id, "vkey": vkey} for vkey in fresh]
        connection.execute(insert(trusted_table), rows)
    return fresh


def _trust(connection: Connection, tenant_id: str, now: int) -> Trust:
    keys = tuple(parse_vkey(vkey) for vkey in trusted(connection, tenant_id))
    if not keys:
        raise KeyUnknownError("no key may vouch for profiles yet", fix="PUT /v1/profile-keys")
    return Trust(keys, None, datetime.fromtimestamp(now / SECOND, UTC))


def keep(connection: Connection, tenant_id: str, raw: bytes) -> str:
    """Keep a signed profile; returns its id. Handed in again, its newer signatures replace the old ones.

    Raises:
        ProfileInvalidError: no profile.
        ProfileUnsignedError, SignatureInvalidError, KeyUnknownError, NoteSyntaxError, ProfileExpiredError:
            see `Trust.check`.
        ProfileRevokedError: it was taken back.
    """
    profile = parse_profile(raw, where="body")
    key = profile.key
    if not all(text.isprintable() for text in (key.model_digest, key.provider_recipe, key.reference_recipe)):
        raise ProfileInvalidError("a digest or recipe with control characters", where="body")
    now = time_now(connection)
    _trust(connection, tenant_id, now).check(profile, "body")
    row: dict[str, Any] = {
        "tenant_id": tenant_id,
        "id": profile.id,
        "model_digest": key.model_digest,
        "provider_recipe": key.provider_recipe,
        "reference_recipe": key.reference_recipe,
        "family": key.family,
        "made": created_column(profile.created),
        "honest_tokens": profile.honest_tokens,
        "body": raw,
    }
    if not insert_if_absent(connection, profile_table, row | {"created": now}):
        found = find(connection, tenant_id, profile.id)
        if found.revoked is not None:
            raise ProfileRevokedError("was revoked by this tenant", where="body", fix="calibrate anew")
        connection.execute(_update(tenant_id, profile.id).values(made=row["made"], body=raw))
    return profile.id


def _update(tenant_id: str, profile_id: str) -> Any:
    column = profile_table.c
    return update(profile_table).where(column.tenant_id == tenant_id, column.id == profile_id)


def find(connection: Connection, tenant_id: str, profile_id: str) -> TenantProfile:
    """One profile.

    Raises:
        NotFoundError: the tenant has no such profile.
    """
    return _listed(_row(connection, tenant_id, profile_id))


def content(connection: Connection, tenant_id: str, profile_id: str) -> bytes:
    """The file as it was handed in.

    Raises:
        NotFoundError: the tenant has no such profile.
    """
    return bytes(_row(connection, tenant_id, profile_id).body)


def _row(connection: Connection, tenant_id: str, profile_id: str) -> Row[Any]:
    column = profile_table.c
    wanted = select(profile_table).where(column.tenant_id == tenant_id, column.id == profile_id)
    row = connection.execute(wanted).one_or_none()
    if row is None:
        raise NotFoundError("no such profile")
    return row


def listed(
    connection: Connection, tenant_id: str, *, after: tuple[int, str] | None, limit: int
) -> list[TenantProfile]:
    """A tenant's profiles, the revoked too, in order of handing in, after the (created, id) of another."""
    column = profile_table.c
    wanted = select(*(c for c in column if c.name != "body")).where(column.tenant_id == tenant_id)
    if after is not None:
        wanted = wanted.where(tuple_(column.created, column.id) > after)
    rows = connection.execute(wanted.order_by(column.created, column.id).limit(limit))
    return [_listed(row) for row in rows]


def standings(
    connection: Connection, tenant_id: str, found: Sequence[TenantProfile]
) -> list[ProfileStanding]:
    """How these profiles stand. Each file is read and its signatures are checked anew."""
    now = time_now(connection)
    newest = _newest(connection, tenant_id)
    return [_standing(connection, tenant_id, kept, kept.id in newest, now) for kept in found]


def _newest(connection: Connection, tenant_id: str) -> set[str]:
    """Of each model and recipes, the one that `finder` would find."""
    column = profile_table.c
    key = (column.model_digest, column.provider_recipe, column.reference_recipe, column.family)
    wanted = select(column.id, *key).where(column.tenant_id == tenant_id)
    wanted = wanted.order_by(column.made.desc(), column.created.desc(), column.id)
    first: dict[tuple[Any, ...], str] = {}
    for profile_id, *of in connection.execute(wanted):
        first.setdefault(tuple(of), profile_id)
    return set(first.values())


def _standing(
    connection: Connection, tenant_id: str, kept: TenantProfile, newest: bool, now: int
) -> ProfileStanding:
    profile = parse_profile(content(connection, tenant_id, kept.id), where=kept.id)
    signed_by: tuple[str, ...] = ()
    refusal: tuple[str, str] | None = None
    try:
        # As of the day it was handed in: whether it has expired since is another question.
        signed_by = _trust(connection, tenant_id, kept.created).check(profile).signed_by
    except REFUSALS as error:
        refusal = error.code, error.message
    if profile.has_expired(datetime.fromtimestamp(now / SECOND, UTC)):
        refusal = ProfileExpiredError.code, f"expired on {profile.expires}"
    if kept.revoked is not None:
        refusal = ProfileRevokedError.code, f"revoked: {kept.reason}"
    return ProfileStanding(kept, signed_by, profile.expires, newest, refusal)


def revoke(connection: Connection, tenant_id: str, profile_id: str, reason: str) -> TenantProfile:
    """Take a profile back, for good; again changes nothing.

    Raises:
        NotFoundError: the tenant has no such profile.
    """
    stamp = _update(tenant_id, profile_id).where(profile_table.c.revoked.is_(None))
    connection.execute(stamp.values(revoked=time_now(connection), reason=reason))
    return find(connection, tenant_id, profile_id)


def finder(
    store: Store, tenant_id: str, moment: int, otherwise: Callable[[ProfileKey], Profile | None]
) -> Callable[[ProfileKey], Profile | None]:
    """How an audit of a tenant finds profiles: the newest that it handed in by then, else the operator's.

    Args:
        moment: of the audit's submission. What is handed in later cannot change a verdict; what is revoked
            later can still spare a provider.
        otherwise: the operator's profiles.

    The function that is returned raises what `Trust.check` does, and `ProfileRevokedError`.
    """

    def find_one(key: ProfileKey) -> Profile | None:
        column = profile_table.c
        wanted = (
            select(profile_table)
            .where(column.tenant_id == tenant_id, column.created <= moment)
            .where(column.model_digest == key.model_digest, column.family == key.family)
            .where(column.provider_recipe == key.provider_recipe)
            .where(column.reference_recipe == key.reference_recipe)
            .order_by(column.made.desc(), column.created.desc(), column.id)
        )
        with store.transaction() as connection:
            row = connection.execute(wanted.limit(1)).one_or_none()
            if row is None:
                return otherwise(key)
            trust = _trust(connection, tenant_id, moment)
        if row.revoked is not None:
            raise ProfileRevokedError(f"was revoked: {row.reason}", where=row.id, fix="calibrate anew")
        return trust.check(parse_profile(bytes(row.body), where=row.id))

    return find_one


def _listed(row: Row[Any]) -> TenantProfile:
    key = ProfileKey(row.model_digest, row.provider_recipe, row.reference_recipe, row.family)
    return TenantProfile(row.id, key, row.made, row.honest_tokens, row.created, row.revoked, row.reason)
