"""`audit commit | challenge | open | check`: hidden tokens committed to, challenged, opened and checked."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from auditor.commands import options
from auditor.commands.check_report import CheckReport
from auditor.commands.keys import passphrase
from auditor.commitment_errors import OpeningSyntaxError
from auditor.errors import AuditError, OptionError, VerificationFailedError

if TYPE_CHECKING:
    from auditor.merkle.keys import PublicKey
    from auditor.merkle.token_openings import Challenge
    from auditor.trace import Trace

REFUSED = 1
NONCE_BYTES = 32

kind_option = click.option(
    "--kind",
    type=click.Choice(["tokens"]),
    default="tokens",
    show_default=True,
    help="What was committed to.",
)
session_key_option = click.option(
    "--session-key",
    "session_key_file",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The provider's key of `audit keys session`; salts come from it.",
)
vkey_option = click.option(
    "--vkey", "vkeys", multiple=True, required=True, help="The provider's public key; may be repeated."
)
max_share_option = click.option(
    "--max-share",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Largest share of a response's hidden tokens that may be seen, earlier challenges included.",
)
committed_argument = click.argument("committed", type=click.Path(path_type=Path))


def _file(name: str, description: str, *, required: bool = True) -> Callable[[options.F], options.F]:
    return click.option(
        name,
        type=click.Path(path_type=Path),
        required=required,
        default=None,
        metavar="FILE",
        help=description,
    )


def _traces(path: Path) -> Iterator[Trace]:
    """Traces of a log; a bad line ends it."""
    from auditor.trace_files import read_traces  # noqa: PLC0415

    for item in read_traces(str(path)):
        if isinstance(item, AuditError):
            raise item
        yield item


def _by_request(pairs: Iterable[tuple[str, Any]], where: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for request, value in pairs:
        if request in found:
            raise OpeningSyntaxError(f"response {request} stands there twice", where=str(where))
        found[request] = value
    return found


def _challenges(path: Path) -> dict[str, Challenge]:
    from auditor.hidden_tokens.wire import challenge_from_json, read_lines  # noqa: PLC0415

    return _by_request((challenge_from_json(value, where) for value, where in read_lines(path)), path)


def _keys(vkeys: tuple[str, ...]) -> tuple[PublicKey, ...]:
    from auditor.merkle.keys import parse_vkey  # noqa: PLC0415

    return tuple(parse_vkey(vkey) for vkey in vkeys)


@click.command()
@click.argument("log", type=click.Path(path_type=Path))
@kind_option
@options.model_option
@_file("--key", "The provider's signing key (`audit keys generate`).")
@session_key_option
@_file("--out", "The clients' traces: visible tokens, bill and signed heads.")
@_file("--kept", "What the provider keeps: hidden tokens, for later openings. Mode 0600.")
@click.option(
    "--block", type=click.IntRange(min=1), default=16, show_default=True, help="Tokens opened together."
)
@click.option(
    "--head-every", type=click.IntRange(min=1), default=4, show_default=True, help="Blocks between heads."
)
@click.option(
    "--embedder",
    type=click.Choice(["none", "hashing", "minilm"]),
    default="hashing",
    show_default=True,
    help="Block fingerprints in the leaves; minilm needs the `embedding` extra.",
)
@click.option("--force", is_flag=True, help="Overwrite both files.")
def commit(
    log: Path,
    kind: str,
    model_directory: Path | None,
    key: Path,
    session_key_file: Path,
    out: Path,
    kept: Path,
    block: int,
    head_every: int,
    embedder: str,
    force: bool,
) -> None:
    """Provider: commit to the hidden tokens of a full LOG and split it in two.

    The first usage.reasoning_tokens output tokens of each request are hidden.

    \b
      audit generate --out full.jsonl.gz --hidden-tokens 64
      audit commit full.jsonl.gz --key provider.key --session-key session.key \\
          --out committed.jsonl.gz --kept kept.jsonl
    """
    from auditor.durable_files import write_durably  # noqa: PLC0415
    from auditor.errors import OutputExistsError  # noqa: PLC0415
    from auditor.hidden_tokens.embedders import embedder_of  # noqa: PLC0415
    from auditor.hidden_tokens.providing import commit as commit_trace  # noqa: PLC0415
    from auditor.hidden_tokens.session_keys import read_session_key  # noqa: PLC0415
    from auditor.hidden_tokens.wire import lines_of  # noqa: PLC0415
    from auditor.key_files import read_key  # noqa: PLC0415
    from auditor.reference.tokenizer import Tokenizer  # noqa: PLC0415
    from auditor.trace_files import TraceWriter  # noqa: PLC0415

    del kind
    if kept.exists() and not force:
        raise OutputExistsError("exists already", where=str(kept), fix="choose another name, or --force")
    tokenizer = Tokenizer.load(model_directory or options.demo_model())
    signer, session_key = read_key(key, passphrase()), read_session_key(session_key_file)
    by, records = embedder_of(embedder), []
    with TraceWriter(out, overwrite=force) as writer:
        for trace in _traces(log):
            shown, record = commit_trace(
                trace,
                tokenizer,
                session_key=session_key,
                signer=signer,
                clock=lambda: int(time.time()),
                embedder=by,
                block=block,
                head_blocks=head_every,
            )
            writer.write(shown)
            records.append(record)
        # Kept before the heads are out: a head that nobody can open is a broken promise.
        write_durably(kept, lines_of(record.to_json() for record in records), mode=0o600)
    hidden = sum(len(record.tokens) for record in records)
    click.echo(f"{out}: {len(records)} responses, {hidden:,} hidden tokens committed to", err=True)


@click.command()
@committed_argument
@kind_option
@vkey_option
@click.option(
    "--blocks", "count", type=click.IntRange(min=1), default=1, show_default=True, help="Blocks to draw."
)
@click.option(
    "--prefix", is_flag=True, help="Open all before the last block drawn, too: a replay by seed needs it."
)
@click.option(
    "--fiat-shamir", is_flag=True, help="Draw from the head alone, repeatable by anyone. [default: a nonce]"
)
@max_share_option
@click.option(
    "--earlier",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Challenges made before of the same responses, for the exposure; may be repeated.",
)
@_file("--out", "Where to write. [default: standard output]", required=False)
def challenge(
    committed: Path,
    kind: str,
    vkeys: tuple[str, ...],
    count: int,
    prefix: bool,
    fiat_shamir: bool,
    max_share: float,
    earlier: tuple[Path, ...],
    out: Path | None,
) -> None:
    """Auditor: draw blocks of every COMMITTED response to be opened, after checking its signed heads.

    Exit status 1 when a commitment does not hold.
    """
    from auditor.commands import print_error  # noqa: PLC0415
    from auditor.durable_files import write_durably  # noqa: PLC0415
    from auditor.hidden_tokens.checking import check_commitment  # noqa: PLC0415
    from auditor.hidden_tokens.wire import challenge_to_json, lines_of  # noqa: PLC0415
    from auditor.merkle.token_openings import draw_challenge, exposure  # noqa: PLC0415

    del kind
    before = [_challenges(path) for path in earlier]
    keys, lines, seen, hidden, refused = _keys(vkeys), [], 0, 0, 0
    for trace in _traces(committed):
        try:
            head = check_commitment(trace, keys).head
        except VerificationFailedError as problem:
            print_error(problem)
            refused += 1
            continue
        known = {block for file in before if trace.id in file for block in file[trace.id].blocks}
        nonce = b"" if fiat_shamir else os.urandom(NONCE_BYTES)
        drawn = draw_challenge(head, nonce, count, prefix=prefix, seen=known, max_share=max_share)
        lines.append(challenge_to_json(trace.id, drawn))
        seen += exposure(head, {*known, *drawn.blocks}).seen
        hidden += head.hidden
    data = lines_of(lines)
    if out is None:
        click.echo(data, nl=False)
    else:
        write_durably(out, data)
    share = seen / hidden if hidden else 0.0
    would = f"{seen:,} of {hidden:,} hidden tokens ({share:.1%}) would be seen"
    click.echo(f"{len(lines)} responses challenged: {would}", err=True)
    if refused:
        sys.exit(REFUSED)


@click.command("open")
@click.argument("challenges", type=click.Path(path_type=Path))
@kind_option
@options.model_option
@_file("--kept", "What `audit commit` kept; which blocks were opened is noted in it.")
@session_key_option
@max_share_option
@_file("--out", "Where to write. [default: standard output]", required=False)
def open_(
    challenges: Path,
    kind: str,
    model_directory: Path | None,
    kept: Path,
    session_key_file: Path,
    max_share: float,
    out: Path | None,
) -> None:
    """Provider: open what CHALLENGES ask for; prints what share of the hidden tokens has now been shown."""
    from auditor.durable_files import locked, write_durably  # noqa: PLC0415
    from auditor.hidden_tokens import wire  # noqa: PLC0415
    from auditor.hidden_tokens.embedders import embedder_of_digest  # noqa: PLC0415
    from auditor.hidden_tokens.providing import head_text, open_challenge  # noqa: PLC0415
    from auditor.hidden_tokens.session_keys import read_session_key  # noqa: PLC0415
    from auditor.merkle.token_heads import parse_head_text  # noqa: PLC0415
    from auditor.merkle.token_openings import exposure  # noqa: PLC0415
    from auditor.reference.tokenizer import Tokenizer  # noqa: PLC0415

    del kind
    tokenizer = Tokenizer.load(model_directory or options.demo_model())
    session_key, asked, lines = read_session_key(session_key_file), _challenges(challenges), []
    embedders: dict[str, Any] = {}
    with locked(kept.with_name(kept.name + ".lock")):
        records = _by_request(
            (wire.kept_from_json(value, where) for value, where in wire.read_lines(kept)), kept
        )
        for request, one in asked.items():
            if request not in records:
                raise OptionError(f"response {request} was not committed to here", where=str(challenges))
            digest = parse_head_text(head_text(records[request].head)).embedder
            if digest not in embedders:
                embedders[digest] = embedder_of_digest(digest)
            opening, records[request] = open_challenge(
                records[request],
                one,
                tokenizer,
                session_key=session_key,
                embedder=embedders[digest],
                max_share=max_share,
            )
            lines.append(wire.opening_to_json(request, opening))
        # What was shown is on disk before it is shown.
        write_durably(kept, wire.lines_of(record.to_json() for record in records.values()), mode=0o600)
    data = wire.lines_of(lines)
    if out is None:
        click.echo(data, nl=False)
    else:
        write_durably(out, data)
    shares = [
        exposure(parse_head_text(head_text(record.head)), record.opened)
        for request, record in records.items()
        if request in asked
    ]
    shown, hidden = sum(e.seen for e in shares), sum(e.hidden for e in shares)
    share = shown / hidden if hidden else 0.0
    so_far = f"{shown:,} of {hidden:,} hidden tokens ({share:.1%}) shown so far"
    click.echo(f"{len(lines)} responses opened: {so_far}", err=True)


@click.command()
@committed_argument
@kind_option
@options.model_option
@_file("--challenge", "The challenges that were sent.")
@_file("--opening", "The provider's answer.")
@vkey_option
@_file("--out", "Write the traces that passed, with their openings, for `audit verify`.", required=False)
@click.option("--force", is_flag=True, help="Overwrite --out.")
@_file(
    "--honest",
    "Full traces of honest responses: judge the content of what was opened against theirs. "
    "Needs the `content` extra.",
    required=False,
)
@click.option(
    "--alpha", type=float, default=0.001, show_default=True, help="False-alarm rate of the content test."
)
@options.format_option
def check(
    committed: Path,
    kind: str,
    model_directory: Path | None,
    challenge: Path,
    opening: Path,
    vkeys: tuple[str, ...],
    out: Path | None,
    force: bool,
    honest: Path | None,
    alpha: float,
    output_format: str,
) -> None:
    """Auditor: check openings against COMMITTED heads and challenges; withholding is failure.

    Signatures, chains, counts, order in time, whole blocks, roots; text, canonical tokenization and
    embeddings are worked out anew. Prints what share of the hidden tokens was seen. With weights go on with
    `audit verify`.

    Exit status: 0 all hold, 1 some response fails, 2 something cannot be read.
    """
    from auditor.hidden_tokens.checking import check_commitment, check_opened  # noqa: PLC0415
    from auditor.hidden_tokens.embedders import embedder_of_digest  # noqa: PLC0415
    from auditor.hidden_tokens.wire import opening_from_json, read_lines  # noqa: PLC0415
    from auditor.reference.tokenizer import Tokenizer  # noqa: PLC0415
    from auditor.trace_files import write_traces  # noqa: PLC0415

    del kind
    keys, asked = _keys(vkeys), _challenges(challenge)
    tokenizer = Tokenizer.load(model_directory or options.demo_model())
    answers = _by_request((opening_from_json(value, where) for value, where in read_lines(opening)), opening)
    embedders: dict[str, Any] = {}
    report = CheckReport()
    for trace in _traces(committed):
        if trace.id not in asked:
            report.unasked += 1
            continue
        try:
            known = check_commitment(trace, keys)
            digest = known.head.embedder
            if digest not in embedders:
                embedders[digest] = embedder_of_digest(digest)
            found = check_opened(
                known,
                asked[trace.id],
                answers.get(trace.id),
                tokenizer,
                embedders[digest],
                vocabulary=tokenizer.vocab_size,
            )
        except VerificationFailedError as problem:
            report.failed(trace, problem)
        else:
            report.passed(trace, known, asked[trace.id], answers[trace.id], found)
    report.missing(set(asked), committed)
    if honest is not None and report.opened:
        report.judge(list(_traces(honest)), tokenizer, alpha)
    if out is not None:
        write_traces(out, report.traces, overwrite=force)
    report.show(output_format)
    sys.exit(REFUSED if report.failures or report.convicted else 0)
