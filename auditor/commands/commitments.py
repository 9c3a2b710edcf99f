"""`audit commit | challenge | open`: hidden tokens or states committed to, challenged and opened."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from auditor.commands import activations, options, remote_commitments
from auditor.commands.commitment_options import (
    REFUSED,
    by_request,
    challenges_of,
    committed_argument,
    file_option,
    kind_option,
    max_share_option,
    needed,
    public_keys,
    service_option,
    session_key_option,
    traces_of,
    vkey_option,
)
from auditor.commands.keys import passphrase
from auditor.commitment_errors import ExposureError
from auditor.errors import AuditError, OptionError

if TYPE_CHECKING:
    from auditor.hidden_tokens.wire import Kept
    from auditor.merkle.token_openings import Challenge, Exposure
    from auditor.trace_files import TraceWriter

NONCE_BYTES = 32


@click.command()
@click.argument("log", type=click.Path(path_type=Path))
@kind_option
@options.model_option
@file_option("--key", "Tokens: the provider's signing key (`audit keys generate`).", required=False)
@session_key_option
@file_option("--out", "For clients: traces with visible tokens, bill and signed heads, or digests of states.")
@file_option("--kept", "What the provider keeps for later openings: hidden tokens or states. Mode 0600.")
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
@click.option(
    "--layer",
    "layers",
    type=click.IntRange(min=-1),
    multiple=True,
    help="Activations: a decoder layer to commit to, from 0; -1 is the final state. May be repeated. "
    "[default: -1]",
)
@options.dtype_option
@service_option
@click.option("--force", is_flag=True, help="Overwrite both files.")
def commit(
    log: Path,
    kind: str,
    model_directory: Path | None,
    key: Path | None,
    session_key_file: Path | None,
    out: Path,
    kept: Path,
    block: int,
    head_every: int,
    embedder: str,
    layers: tuple[int, ...],
    dtype: str,
    service: bool,
    force: bool,
) -> None:
    """Provider: commit to the hidden tokens of a full LOG and split it in two, or to its hidden states.

    The first usage.reasoning_tokens output tokens of each request are hidden. With --service the signed heads
    are posted, too.

    \b
      audit generate --out full.jsonl.gz --hidden-tokens 64
      audit commit full.jsonl.gz --key provider.key --session-key session.key \\
          --out committed.jsonl.gz --kept kept.jsonl
      audit commit log.jsonl.gz --kind activations --layer -1 --layer 2 \\
          --out committed.jsonl --kept states.safetensors
    """
    from auditor.durable_files import write_durably  # noqa: PLC0415
    from auditor.errors import OutputExistsError  # noqa: PLC0415
    from auditor.hidden_tokens.wire import lines_of  # noqa: PLC0415
    from auditor.trace_files import TraceWriter  # noqa: PLC0415

    for path in (kept, out):
        if path.exists() and not force:
            raise OutputExistsError("exists already", where=str(path), fix="choose another name, or --force")
    if kind == "activations":
        activations.commit(log, model_directory, dtype, layers or (-1,), out=out, kept=kept)
        return
    keys = _Keys(needed(key, "--key", kind), needed(session_key_file, "--session-key", kind))
    policy = {"block": block, "head_blocks": head_every}
    directory = model_directory or options.demo_model()
    with TraceWriter(out, overwrite=force) as writer:
        records, heads = _commit_tokens(log, directory, keys, embedder, policy, writer)
        # Kept before the heads are out: a head that nobody can open is a broken promise.
        write_durably(kept, lines_of(record.to_json() for record in records), mode=0o600)
    hidden = sum(len(record.tokens) for record in records)
    click.echo(f"{out}: {len(records)} responses, {hidden:,} hidden tokens committed to", err=True)
    if service:
        remote_commitments.post_heads(heads)


class _Keys(NamedTuple):
    signing: Path
    session: Path


def _commit_tokens(
    log: Path, model: Path, keys: _Keys, embedder: str, policy: dict[str, int], writer: TraceWriter
) -> tuple[list[Kept], list[tuple[str, Any]]]:
    """What is kept, and (response, `commitment`) of each."""
    from auditor.hidden_tokens.embedders import embedder_of  # noqa: PLC0415
    from auditor.hidden_tokens.providing import commit as commit_trace  # noqa: PLC0415
    from auditor.hidden_tokens.session_keys import read_session_key  # noqa: PLC0415
    from auditor.key_files import read_key  # noqa: PLC0415
    from auditor.reference.tokenizer import Tokenizer  # noqa: PLC0415

    tokenizer, by = Tokenizer.load(model), embedder_of(embedder)
    signer, session_key = read_key(keys.signing, passphrase()), read_session_key(keys.session)
    records, heads = [], []
    for trace in traces_of(log):
        shown, record = commit_trace(
            trace,
            tokenizer,
            session_key=session_key,
            signer=signer,
            clock=lambda: int(time.time()),
            embedder=by,
            **policy,
        )
        writer.write(shown)
        records.append(record)
        heads.append((shown.id, shown.commitment))
    return records, heads


@click.command()
@committed_argument
@kind_option
@service_option
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
@click.option(
    "--positions",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Activations: states to open of each response.",
)
@click.option(
    "--fingerprint",
    default="int8:16",
    show_default=True,
    metavar="CODE:K",
    help="Activations: the fingerprint asked of every position.",
)
@file_option("--out", "Where to write. [default: standard output]", required=False)
def challenge(
    committed: Path,
    kind: str,
    service: bool,
    vkeys: tuple[str, ...],
    count: int,
    prefix: bool,
    fiat_shamir: bool,
    max_share: float,
    earlier: tuple[Path, ...],
    positions: int,
    fingerprint: str,
    out: Path | None,
) -> None:
    """Auditor: draw what every COMMITTED response must open: blocks of tokens, or a layer's states.

    Signed heads of hidden tokens are checked first. With --service it draws, of heads that were posted to it.

    Exit status 1 when a commitment does not hold.
    """
    from auditor.commands import print_error  # noqa: PLC0415
    from auditor.durable_files import write_durably  # noqa: PLC0415
    from auditor.hidden_tokens.checking import check_commitment  # noqa: PLC0415
    from auditor.hidden_tokens.wire import challenge_to_json, lines_of  # noqa: PLC0415
    from auditor.merkle.token_openings import draw_challenge, exposure  # noqa: PLC0415

    if kind == "activations":
        activations.challenge(committed, positions, fingerprint, out=needed(out, "--out", kind))
        return
    if service:
        remote_commitments.challenge(committed, blocks=count, prefix=prefix, max_share=max_share, out=out)
        return
    before = [challenges_of(path) for path in earlier]
    keys, lines, seen, hidden, refused = public_keys(vkeys), [], 0, 0, 0
    for trace in traces_of(committed):
        known = {block for file in before if trace.id in file for block in file[trace.id].blocks}
        nonce = b"" if fiat_shamir else os.urandom(NONCE_BYTES)
        try:
            head = check_commitment(trace, keys).head
            drawn = draw_challenge(head, nonce, count, prefix=prefix, seen=known, max_share=max_share)
        except ExposureError:
            raise  # the auditor's own bound
        except AuditError as problem:
            print_error(problem)
            refused += 1
            continue
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
@click.argument("challenges", type=click.Path(path_type=Path), required=False)
@kind_option
@service_option
@options.model_option
@file_option("--kept", "What `audit commit` kept; which blocks were opened is noted in it.")
@file_option("--committed", "Activations: what `audit commit` gave to clients.", required=False)
@session_key_option
@max_share_option
@file_option("--out", "Where to write. [default: standard output]", required=False)
def open_(
    challenges: Path | None,
    kind: str,
    service: bool,
    model_directory: Path | None,
    kept: Path,
    committed: Path | None,
    session_key_file: Path | None,
    max_share: float,
    out: Path | None,
) -> None:
    """Provider: open what CHALLENGES ask for; prints what share of the hidden tokens has now been shown.

    With --service in place of CHALLENGES: all that are open there, and the answers are posted.
    """
    from auditor.durable_files import write_durably  # noqa: PLC0415
    from auditor.hidden_tokens.session_keys import read_session_key  # noqa: PLC0415
    from auditor.hidden_tokens.wire import lines_of  # noqa: PLC0415

    if (challenges is None) != service:
        raise OptionError("one of CHALLENGES and --service says what is asked")
    if kind == "activations":
        states_of, asked_for = needed(committed, "--committed", kind), needed(challenges, "CHALLENGES", kind)
        activations.open_states(states_of, asked_for, kept, out=needed(out, "--out", kind))
        return
    session_key = read_session_key(needed(session_key_file, "--session-key", kind))
    directory = model_directory or options.demo_model()
    asked = remote_commitments.asked() if challenges is None else remote_commitments.listed(challenges)
    lines, shares = _open_tokens(asked, directory, kept, session_key, max_share)
    if service:
        remote_commitments.post_openings(asked, lines)
    elif out is None:
        click.echo(lines_of(lines), nl=False)
    else:
        write_durably(out, lines_of(lines))
    shown, hidden = sum(e.seen for e in shares), sum(e.hidden for e in shares)
    share = shown / hidden if hidden else 0.0
    so_far = f"{shown:,} of {hidden:,} hidden tokens ({share:.1%}) shown so far"
    click.echo(f"{len(lines)} responses opened: {so_far}", err=True)


def _open_tokens(
    asked: list[tuple[str, str, Challenge]], model: Path, kept: Path, session_key: bytes, max_share: float
) -> tuple[list[dict[str, Any]], list[Exposure]]:
    """Openings as lines, and what of each challenged response has now been shown; noted in `kept` first."""
    from auditor.durable_files import locked, write_durably  # noqa: PLC0415
    from auditor.hidden_tokens import wire  # noqa: PLC0415
    from auditor.hidden_tokens.embedders import embedder_of_digest  # noqa: PLC0415
    from auditor.hidden_tokens.providing import head_text, open_challenge  # noqa: PLC0415
    from auditor.merkle.token_heads import parse_head_text  # noqa: PLC0415
    from auditor.merkle.token_openings import exposure  # noqa: PLC0415
    from auditor.reference.tokenizer import Tokenizer  # noqa: PLC0415

    tokenizer, lines, shares = Tokenizer.load(model), [], []
    embedders: dict[str, Any] = {}
    with locked(kept.with_name(kept.name + ".lock")):
        records = by_request(
            (wire.kept_from_json(value, where) for value, where in wire.read_lines(kept)), kept
        )
        for _, request, one in asked:
            if request not in records:
                raise OptionError(f"response {request} was not committed to here", where=str(kept))
            head = parse_head_text(head_text(records[request].head))
            if head.embedder not in embedders:
                embedders[head.embedder] = embedder_of_digest(head.embedder)
            opening, records[request] = open_challenge(
                records[request],
                one,
                tokenizer,
                session_key=session_key,
                embedder=embedders[head.embedder],
                max_share=max_share,
            )
            lines.append(wire.opening_to_json(request, opening))
            shares.append(exposure(head, records[request].opened))
        # What was shown is on disk before it is shown.
        write_durably(kept, wire.lines_of(record.to_json() for record in records.values()), mode=0o600)
    return lines, shares
