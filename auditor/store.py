"""The store: what outlives a command, in SQLite or PostgreSQL. Every method commits before it returns.

Profiles are kept as the bytes of their file; the columns beside them only find them. What is read back is
checked against its id and its columns, and an altered row is an error: never a profile, never "not found".
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite

from auditor import store_migrations
from auditor.errors import ProfileInvalidError
from auditor.profile import Profile, ProfileKey, parse_profile, profile_bytes
from auditor.store_engine import connect_to, find_place, for_writing, one_line_errors, reach
from auditor.store_schema import profile as profile_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine, Row

    from auditor.store_engine import StorePlace


@dataclass(frozen=True, slots=True)
class StoredProfile:
    """One line of the list of profiles; `created` is UTC with microseconds."""

    id: str
    key: ProfileKey
    created: str
    honest_tokens: int


class Store:
    """An open database at our schema revision; safe to share between threads, not across a fork."""

    def __init__(self, place: StorePlace, engine: Engine) -> None:
        self._place = place
        self._engine = engine

    @classmethod
    def open(cls, url: str | None = None) -> Self:
        """Open the database of `url`, else AUDITOR_DATABASE_URL, else a SQLite file in the user's folder.

        Raises:
            StoreError: it cannot be reached or written, or its schema revision is not ours.
        """
        place = find_place(url)
        reach(place)
        engine = connect_to(place)
        try:
            store_migrations.prepare(place, engine, move_older=place.embedded)
        except BaseException:
            engine.dispose()
            raise
        return cls(place, engine)

    @staticmethod
    def upgrade(url: str | None = None) -> None:
        """Move the schema to our revision; the database is found as by `open`.

        Raises:
            StoreError: as for `open`, except that an older revision is moved.
        """
        place = find_place(url)
        reach(place)
        engine = connect_to(place)
        try:
            store_migrations.prepare(place, engine, move_older=True)
        finally:
            engine.dispose()

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save_profile(self, profile: Profile) -> None:
        """Keep a profile. One that is there already stays as it is, unless it was altered: it is replaced.

        Raises:
            ProfileInvalidError: `created` is not a time with a zone.
            StoreError: the database refused.
        """
        row = _row_of(profile)
        insert = sqlite.insert if self._place.is_sqlite else postgresql.insert
        new = insert(profile_table).values(row).on_conflict_do_nothing(index_elements=["id"])
        same = profile_table.c.id == row["id"]
        with self.transaction(writes=True) as connection:
            if connection.execute(new.returning(profile_table.c.id)).first() is not None:
                return
            try:
                self._profile_of(
                    connection.execute(select(profile_table).where(same).with_for_update()).one()
                )
            except ProfileInvalidError:
                connection.execute(update(profile_table).where(same).values(row))

    def find_profile(self, key: ProfileKey) -> Profile | None:
        """Find the newest profile with this very key.

        Raises:
            ProfileInvalidError: that profile was altered in the database.
            StoreError: the database refused.
        """
        column = profile_table.c
        wanted = (
            select(profile_table)
            .where(column.model_digest == key.model_digest)
            .where(column.provider_recipe == key.provider_recipe)
            .where(column.reference_recipe == key.reference_recipe)
            .where(column.family == key.family)
            .order_by(column.created.desc(), column.number.desc())
            .limit(1)
        )
        with self.transaction() as connection:
            row = connection.execute(wanted).one_or_none()
        return None if row is None else self._profile_of(row)

    def get_profile(self, profile_id: str) -> Profile | None:
        """Read the profile with this id, None when there is none.

        Raises:
            ProfileInvalidError: it was altered in the database.
            StoreError: the database refused.
        """
        wanted = select(profile_table).where(profile_table.c.id == profile_id)
        with self.transaction() as connection:
            row = connection.execute(wanted).one_or_none()
        return None if row is None else self._profile_of(row)

    def profiles(self) -> list[StoredProfile]:
        """List all profiles, newest first; their contents are not read.

        Raises:
            StoreError: the database refused.
        """
        column = profile_table.c
        key = (column.model_digest, column.provider_recipe, column.reference_recipe, column.family)
        wanted = select(column.id, column.created, column.honest_tokens, *key)
        with self.transaction() as connection:
            rows = connection.execute(wanted.order_by(column.created.desc(), column.number.desc())).all()
        return [StoredProfile(row[0], ProfileKey(*row[3:]), row[1], row[2]) for row in rows]

    @contextmanager
    def transaction(self, *, writes: bool = False) -> Iterator[Connection]:
        """One transaction: committed when the block ends, undone when it raises.

        Raises:
            StoreError: the database refused.
        """
        with one_line_errors(self._place), self._engine.connect() as connection:
            if writes:
                connection = for_writing(connection)  # noqa: PLW2901 - the same connection, marked
            with connection.begin():
                yield connection

    def _profile_of(self, row: Row[Any]) -> Profile:
        where = f"{self._place}: profile {row.id}"
        profile = parse_profile(bytes(row.body), where=where)
        for name, value in _row_of(profile).items():
            if name != "body" and getattr(row, name) != value:
                raise ProfileInvalidError(
                    f"column {name} is {getattr(row, name)!r} but the profile says {value!r}",
                    where=where,
                    fix="it was altered: calibrate again",
                )
        return profile


def _row_of(profile: Profile) -> dict[str, Any]:
    return {
        "id": profile.id,
        "model_digest": profile.key.model_digest,
        "provider_recipe": profile.key.provider_recipe,
        "reference_recipe": profile.key.reference_recipe,
        "family": profile.key.family,
        "created": created_column(profile.created),
        "honest_tokens": profile.honest_tokens,
        "body": profile_bytes(profile),
    }


def created_column(created: str) -> str:
    """A profile's time as it is stored: UTC with microseconds, so that text order is time order.

    Raises:
        ProfileInvalidError: not a time with a zone.
    """
    problem = f"created is {created!r}, not a time with a zone"
    fix = "for instance 2026-11-23T12:00:00Z"
    try:
        moment = datetime.fromisoformat(created)
        utc = moment.astimezone(UTC).isoformat(timespec="microseconds")
    except (ValueError, OverflowError) as error:
        raise ProfileInvalidError(problem, fix=fix) from error
    if moment.tzinfo is None:
        raise ProfileInvalidError(problem, fix=fix)
    return utc.removesuffix("+00:00") + "Z"
