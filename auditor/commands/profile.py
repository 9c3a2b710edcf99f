"""`audit profile`: sign calibration profiles, look at them, take them back."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from auditor.commands import options
from auditor.commands.keys import passphrase

_KEY = click.option("--key", "key_file", type=click.Path(path_type=Path), required=True, metavar="FILE")


@click.group()
def profile() -> None:
    """Vouch for calibration profiles, and take them back."""


@profile.command()
@click.argument("file", type=click.Path(path_type=Path))
@_KEY
def sign(file: Path, key_file: Path) -> None:
    """Add a signature to the profile FILE.

    Whoever signs answers for the traffic having been honest: a profile decides who is accused.

    \b
    audit profile sign honest.profile.json --key auditor.key
    """
    from auditor.key_files import read_key  # noqa: PLC0415
    from auditor.profile import read_profile  # noqa: PLC0415
    from auditor.profile_trust import sign_profile  # noqa: PLC0415
    from auditor.profiles import write_profile  # noqa: PLC0415

    signer = read_key(key_file, passphrase())
    signed = sign_profile(read_profile(file), signer)
    write_profile(file, signed, overwrite=True)
    click.echo(f"{file}: {signed.id} signed by {signer.public.vkey}", err=True)


@profile.command()
@click.argument("file", type=click.Path(path_type=Path))
@options.trust_option
@options.revocations_option
def show(file: Path, trust: tuple[str, ...], revocations: Path | None) -> None:
    """Print what FILE is for, when it was made, and, with --trust, which trusted keys signed it."""
    from auditor.profile import read_profile  # noqa: PLC0415
    from auditor.profiles import read_trust  # noqa: PLC0415

    found, trusted = read_profile(file), read_trust(trust, revocations)
    if trusted is not None:
        found = trusted.check(found, str(file))
    shown = {
        "id": found.id,
        "model_digest": found.key.model_digest,
        "provider_recipe": found.key.provider_recipe,
        "reference_recipe": found.key.reference_recipe,
        "family": found.key.family,
        "created": found.created,
        "expires": found.expires,
        "honest_requests": len(found.honest),
        "honest_tokens": found.honest_tokens,
        "signed": found.note is not None,
        "signed_by": list(found.signed_by),
    }
    click.echo(json.dumps(shown))


@profile.command()
@click.argument("listing", type=click.Path(path_type=Path), metavar="LIST")
@_KEY
@click.option("--id", "profile_id", default=None, metavar="sha256:...", help="The profile to take back.")
@click.option("--reason", default=None, metavar="TEXT", help="With --id: why.")
@click.option("--recipe", default=None, help="Accept no profile of this recipe from before --before.")
@click.option("--before", default=None, metavar="TIME", help="With --recipe, e.g. 2026-11-01T00:00:00Z.")
@click.option("--valid-days", type=click.IntRange(min=1), default=90, show_default=True, help="Of the list.")
def revoke(
    listing: Path,
    key_file: Path,
    profile_id: str | None,
    reason: str | None,
    recipe: str | None,
    before: str | None,
    valid_days: int,
) -> None:
    """Add to the signed LIST of revocations, or make it, or (without either) renew it.

    \b
    audit profile revoke taken-back.txt --key auditor.key --id sha256:... --reason 'traffic was quantized'
    audit profile revoke taken-back.txt --key auditor.key --recipe RECIPE --before 2026-11-01T00:00:00Z
    """
    from auditor.durable_files import locked, write_durably  # noqa: PLC0415
    from auditor.errors import OptionError  # noqa: PLC0415
    from auditor.key_files import read_key  # noqa: PLC0415
    from auditor.merkle.notes import MAX_NOTE_BYTES  # noqa: PLC0415
    from auditor.profile_revocations import Revocations, read_revocations, revocations_note  # noqa: PLC0415
    from auditor.profiles import read_bounded  # noqa: PLC0415

    if (profile_id is None) != (reason is None) or (recipe is None) != (before is None):
        raise OptionError("--id goes with --reason, --recipe with --before")
    signer = read_key(key_file, passphrase())
    now = datetime.now(UTC).replace(microsecond=0)
    with locked(listing.with_name(f".{listing.name}.lock")):
        # An expired list may be renewed: it is read as of when it was in force.
        always = datetime.min.replace(tzinfo=UTC)
        old = Revocations(now, now)
        if listing.exists():
            raw = read_bounded(listing, MAX_NOTE_BYTES)
            old = read_revocations(raw, (signer.public,), always, where=str(listing))
        revoked = dict(old.revoked) | ({profile_id: reason} if profile_id and reason else {})
        oldest = dict(old.oldest)
        if recipe and before:
            try:
                floor = datetime.fromisoformat(before)
            except ValueError:
                floor = None
            if floor is None or floor.tzinfo is None:
                raise OptionError(f"{before!r} is no time with a zone", where="--before")
            oldest[recipe] = max(floor.astimezone(UTC).replace(microsecond=0), oldest.get(recipe, always))
        fresh = Revocations(now, now + timedelta(days=valid_days), revoked, oldest)
        write_durably(listing, revocations_note(fresh, signer))
    click.echo(f"{listing}: {len(revoked)} revoked, {len(oldest)} recipes with an oldest profile", err=True)
