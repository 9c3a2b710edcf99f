"""`audit log`: an append-only log that anyone can check, and its witnesses."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from auditor.commands.keys import passphrase
from auditor.errors import OptionError, VerificationFailedError

if TYPE_CHECKING:
    from auditor.merkle.keys import PublicKey
    from auditor.merkle.policy import Policy

MAX_INPUT_BYTES = 2_000_000
REFUSED = 1
FOLDER = click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
KEYS = click.option(
    "--key", "key_files", type=click.Path(path_type=Path), multiple=True, required=True, metavar="FILE"
)
POLICY = click.option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Whom to trust: a C2SP tlog-policy file.",
)
VKEYS = click.option("--vkey", "vkeys", multiple=True, help="Trust this log's key, and need no witness.")


@click.group()
def log() -> None:
    """An append-only log of opaque entries, in static tiles that any C2SP tool reads."""


def _read(path: Path) -> bytes:
    stream = sys.stdin.buffer if str(path) == "-" else None
    try:
        raw = stream.read(MAX_INPUT_BYTES + 1) if stream else path.read_bytes()
    except OSError as error:
        raise OptionError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if len(raw) > MAX_INPUT_BYTES:
        raise OptionError(f"longer than {MAX_INPUT_BYTES} bytes", where=str(path))
    return raw


def _keys(vkeys: tuple[str, ...]) -> tuple[PublicKey, ...]:
    from auditor.merkle.keys import parse_vkey  # noqa: PLC0415

    return tuple(parse_vkey(vkey) for vkey in vkeys)


def _policy(policy_file: Path | None, vkeys: tuple[str, ...]) -> Policy:
    from auditor.merkle.policy import Policy, parse_policy  # noqa: PLC0415

    if (policy_file is None) == (not vkeys):
        raise OptionError("say whom to trust", fix="give either --policy FILE or --vkey KEY")
    return parse_policy(_read(policy_file), str(policy_file)) if policy_file else Policy(_keys(vkeys))


@log.command()
@FOLDER
@click.option(
    "--origin", required=True, help="The log's name, such as example.com/log; its key has the same."
)
def init(folder: Path, origin: str) -> None:
    """Make an empty log."""
    from auditor.transparency_log import TransparencyLog  # noqa: PLC0415

    TransparencyLog.create(folder, origin)


@log.command()
@FOLDER
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
def append(folder: Path, files: tuple[Path, ...]) -> None:
    """Add each file as one entry; prints the index of each. A checkpoint makes them count."""
    from auditor.transparency_log import TransparencyLog  # noqa: PLC0415

    for index in TransparencyLog(folder).append([_read(file) for file in files]):
        click.echo(index)


@log.command()
@FOLDER
@KEYS
@click.option(
    "--head",
    "head_file",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="What was signed last; never inside DIR. [default: the first key's file, with .head]",
)
def checkpoint(folder: Path, key_files: tuple[Path, ...], head_file: Path | None) -> None:
    """Sign and publish the log's head; refuses to shrink or fork what was signed before."""
    from auditor.key_files import read_key  # noqa: PLC0415
    from auditor.transparency_log import TransparencyLog  # noqa: PLC0415

    signers = [read_key(file, passphrase()) for file in key_files]
    place = head_file or key_files[0].with_name(key_files[0].name + ".head")
    if place.resolve().is_relative_to(folder.resolve()):
        raise OptionError(
            f"{place} is inside the log",
            fix="keep key and head elsewhere: a restored copy must not bring both",
        )
    note = TransparencyLog(folder).sign(signers, place, int(time.time()))
    click.echo(note.serialize(), nl=False)


@log.command()
@FOLDER
@click.argument("index", type=click.IntRange(min=0))
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, metavar="FILE", help="[default: stdout]"
)
def prove(folder: Path, index: int, out: Path | None) -> None:
    """A receipt (.tlog-proof) for entry INDEX; verifies offline."""
    from auditor.durable_files import write_durably  # noqa: PLC0415
    from auditor.transparency_log import TransparencyLog  # noqa: PLC0415

    receipt = TransparencyLog(folder).prove(index).serialize()
    if out is None:
        click.echo(receipt, nl=False)
    else:
        write_durably(out, receipt)


@log.command()
@click.argument("subject", type=click.Path(path_type=Path))
@click.option(
    "--entry", type=click.Path(path_type=Path), default=None, metavar="FILE", help="The entry's bytes."
)
@POLICY
@VKEYS
def verify(subject: Path, entry: Path | None, policy_file: Path | None, vkeys: tuple[str, ...]) -> None:
    """Verify a whole log (SUBJECT is its folder), or a receipt with --entry. Read-only and offline.

    Exit status: 0 it holds, 1 it does not, 2 it cannot be read.
    """
    from auditor.commands import print_error  # noqa: PLC0415
    from auditor.merkle.receipts import parse_receipt, verify_receipt  # noqa: PLC0415
    from auditor.transparency_log import verify_log  # noqa: PLC0415

    policy = _policy(policy_file, vkeys)
    if subject.is_dir() == (entry is not None):
        raise OptionError("give a log's folder, or a receipt and --entry FILE", where=str(subject))
    try:
        if entry is None:
            head = verify_log(subject, policy)
            click.echo(f"{head.origin}: {head.size:,} entries, root {head.root.hex()}")
        else:
            receipt = parse_receipt(_read(subject), str(subject))
            approval = verify_receipt(receipt, _read(entry), policy, str(subject))
            witnesses = ", ".join(approval.witnesses) or "no witness"
            click.echo(f"{approval.log.key.name}: entry {receipt.index}, cosigned by {witnesses}")
    except VerificationFailedError as error:
        print_error(error)
        sys.exit(REFUSED)


@log.command()
@FOLDER
@click.option("--old", type=click.IntRange(min=0), default=0, help="Leaves the witness saw last.")
def request(folder: Path, old: int) -> None:
    """What to send to a witness: the checkpoint and the proof that it extends OLD leaves."""
    from auditor.transparency_log import TransparencyLog  # noqa: PLC0415

    click.echo(TransparencyLog(folder).witness_request(old).serialize(), nl=False)


@log.command()
@FOLDER
@click.argument("answer", type=click.Path(path_type=Path))
@POLICY
def attach(folder: Path, answer: Path, policy_file: Path | None) -> None:
    """Add a witness's signature lines (ANSWER, or - for standard input) to the published checkpoint.

    Lines of keys that the policy does not name are left out; a line that does not verify is refused.
    """
    from auditor.merkle.policy import parse_policy  # noqa: PLC0415
    from auditor.transparency_log import TransparencyLog, attach_cosignatures  # noqa: PLC0415

    if policy_file is None:
        raise OptionError("say which witnesses to trust", fix="give --policy FILE")
    policy = parse_policy(_read(policy_file), str(policy_file))
    added = attach_cosignatures(TransparencyLog(folder), _read(answer), list(policy.witnesses.values()))
    click.echo(f"{added} cosignature(s) added", err=True)


@log.command()
@click.argument("state", type=click.Path(path_type=Path), metavar="STATE_DIR")
@click.argument("request_file", type=click.Path(path_type=Path), required=False, metavar="[REQUEST]")
@KEYS
@click.option("--log", "vkeys", multiple=True, required=True, metavar="VKEY", help="A log to watch.")
@click.option("--listen", default=None, metavar="HOST:PORT", help="Serve POST /add-checkpoint instead.")
def witness(
    state: Path,
    request_file: Path | None,
    key_files: tuple[Path, ...],
    vkeys: tuple[str, ...],
    listen: str | None,
) -> None:
    """Cosign a checkpoint (REQUEST, or - for standard input) that extends what STATE_DIR has seen."""
    from auditor.key_files import read_key  # noqa: PLC0415
    from auditor.witness import Witness, witness_server  # noqa: PLC0415

    signers = [read_key(file, passphrase()) for file in key_files]
    service = Witness(state, signers, _keys(vkeys), time.time)
    if (request_file is None) == (listen is None):
        raise OptionError("give a REQUEST or --listen HOST:PORT")
    if request_file is not None:
        click.echo(service.cosign(_read(request_file), str(request_file)), nl=False)
        return
    host, _, port = (listen or "").rpartition(":")
    if not port.isdecimal() or not host:
        raise OptionError(f"{listen!r} is no address", where="--listen", fix="write HOST:PORT")
    with witness_server(service, host, int(port)) as server:
        click.echo(f"witness on http://{host}:{server.server_address[1]}", err=True)
        server.serve_forever()
