"""Where profiles come from: named files, the store, and those shipped for the demo model."""

from __future__ import annotations

import gzip
import secrets
from collections.abc import Callable
from functools import cache
from pathlib import Path

from auditor.errors import OutputExistsError, ProfileInvalidError
from auditor.profile import Profile, ProfileKey, parse_profile, profile_bytes, read_profile
from auditor.reference.checkpoint.digests import weights_digest
from auditor.reference.demo.prompts import DRAFT, TARGET

SHIPPED = Path(__file__).parent / "demo_profiles"


def profile_finder(files: tuple[Path, ...]) -> Callable[[ProfileKey], Profile | None]:
    """How `verify` finds a profile: among the named files only, or in the store and then among the shipped.

    Raises:
        ProfileInvalidError: a named file cannot be read.
    """
    if files:
        named = {profile.key: profile for profile in map(read_profile, files)}
        return named.get

    def find(key: ProfileKey) -> Profile | None:
        from auditor.store import Store  # noqa: PLC0415  # a named profile needs no database
        from auditor.store_engine import find_place  # noqa: PLC0415

        place = find_place(None)
        # Looking must not create: the embedded store appears with the first profile that is saved.
        if place.embedded and not Path(str(place)).exists():
            return shipped_profiles().get(key)
        with Store.open() as store:
            return store.find_profile(key) or shipped_profiles().get(key)

    return find


@cache
def shipped_profiles() -> dict[ProfileKey, Profile]:
    """The profiles of the demo model."""
    profiles = (
        parse_profile(gzip.decompress(path.read_bytes()), where=str(path))
        for path in SHIPPED.glob("*.json.gz")
    )
    return {profile.key: profile for profile in profiles}


def companion_model(digest: str) -> Path | None:
    """The model a provider might serve instead of this one, where we ship one."""
    return DRAFT if digest == weights_digest(TARGET) else None


def write_profile(path: Path, profile: Profile, *, overwrite: bool = False) -> None:
    """Write a profile file whole or not at all.

    Raises:
        OutputExistsError: it exists and `overwrite` is off.
        ProfileInvalidError: the folder cannot be written.
    """
    if path.exists() and not overwrite:
        raise OutputExistsError("exists already", where=str(path), fix="name another file or pass --force")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(profile_bytes(profile))
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ProfileInvalidError(f"cannot be written: {error.strerror}", where=str(path)) from error


__all__ = ["companion_model", "profile_finder", "shipped_profiles", "write_profile"]
