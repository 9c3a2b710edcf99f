"""`audit keys`: make, show and rotate signing keys."""

from __future__ import annotations

import os
from pathlib import Path

import click

ALGORITHMS = {"log": "ED25519", "witness": "ED25519_COSIGNATURE", "ml-dsa-44": "ML_DSA_44"}
_KIND = click.option(
    "--kind",
    type=click.Choice(list(ALGORITHMS)),
    default="log",
    show_default=True,
    help="log: Ed25519 over checkpoints and reports. witness: Ed25519 cosignatures. ml-dsa-44: either.",
)


def passphrase() -> str | None:
    """The passphrase of key files, from the environment: an argument would be seen by other users."""
    from auditor.key_files import PASSPHRASE_VARIABLE  # noqa: PLC0415

    return os.environ.get(PASSPHRASE_VARIABLE) or None


@click.group()
def keys() -> None:
    """Make, show and rotate signing keys. AUDITOR_KEY_PASSPHRASE encrypts them on disk."""


@keys.command()
@click.argument("name")
@_KIND
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE")
def generate(name: str, kind: str, out: Path) -> None:
    """Make a key called NAME (for a log: its origin); prints the public half.

    \b
    audit keys generate example.com/log --out log.key
    """
    from auditor.key_files import generate as make  # noqa: PLC0415
    from auditor.key_files import write_key  # noqa: PLC0415
    from auditor.merkle.keys import Algorithm  # noqa: PLC0415

    signer = make(name, Algorithm[ALGORITHMS[kind]])
    write_key(out, signer, passphrase())
    click.echo(signer.public.vkey)


@keys.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE")
def session(out: Path) -> None:
    """Make a session key: the salts of `audit commit` come from it. Never shown, never sent."""
    from auditor.hidden_tokens.session_keys import new_session_key  # noqa: PLC0415

    new_session_key(out)


@keys.command()
@click.argument("file", type=click.Path(path_type=Path))
def show(file: Path) -> None:
    """Print the public half of a key file; needs no passphrase."""
    from auditor.key_files import read_public_key  # noqa: PLC0415

    click.echo(read_public_key(file).vkey)


@keys.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE")
def rotate(file: Path, out: Path) -> None:
    """Make the successor of a key: same name and kind; prints its public half.

    Sign with both until every policy names the new one: `audit log checkpoint --key OLD --key NEW`.
    """
    from auditor.key_files import generate as make  # noqa: PLC0415
    from auditor.key_files import read_key, write_key  # noqa: PLC0415

    old = read_key(file, passphrase())
    signer = make(old.name, old.algorithm)
    write_key(out, signer, passphrase())
    click.echo(signer.public.vkey)
