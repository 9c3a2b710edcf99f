"""`audit check`: openings of commitments, held to what was signed and asked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from auditor.commands import activations, options, remote_commitments
from auditor.commands.check_report import CheckReport
from auditor.commands.commitment_options import (
    REFUSED,
    by_request,
    challenges_of,
    committed_argument,
    file_option,
    kind_option,
    needed,
    public_keys,
    service_option,
    traces_of,
    vkey_option,
)
from auditor.errors import VerificationFailedError


@click.command()
@committed_argument
@kind_option
@options.model_option
@service_option
@file_option("--challenge", "The challenges that were sent.", required=False)
@file_option("--opening", "The provider's answer.", required=False)
@vkey_option
@file_option("--log", "Activations: the traces that the states are of.", required=False)
@file_option("--out", "Tokens: write what passed, openings included, for `audit verify`.", required=False)
@click.option("--force", is_flag=True, help="Overwrite --out.")
@file_option(
    "--honest",
    "Tokens: full traces of honest responses, to judge the content of what was opened against theirs; needs "
    "the `content` extra. Activations: JSON output of an earlier check of honest responses.",
    required=False,
)
@click.option(
    "--alpha", type=float, default=0.001, show_default=True, help="False-alarm rate of what --honest judges."
)
@options.format_option
def check(
    committed: Path,
    kind: str,
    model_directory: Path | None,
    service: bool,
    challenge: Path | None,
    opening: Path | None,
    vkeys: tuple[str, ...],
    log: Path | None,
    out: Path | None,
    force: bool,
    honest: Path | None,
    alpha: float,
    output_format: str,
) -> None:
    """Auditor: check openings against what was COMMITTED and challenged; withholding is failure.

    Signatures, chains, counts, order in time, whole blocks, roots; text, canonical tokenization and
    embeddings are worked out anew. Prints what share of the hidden tokens was seen. With weights go on with
    `audit verify`. Hidden states are computed anew up to the layer that was drawn, and compared.

    With --service: what its challenges of these responses came to.

    Exit status: 0 all hold, 1 some response fails, 2 something cannot be read, 3 some challenge is open yet.
    """
    from auditor.hidden_tokens.checking import check_commitment, check_opened  # noqa: PLC0415
    from auditor.hidden_tokens.embedders import embedder_of_digest  # noqa: PLC0415
    from auditor.hidden_tokens.wire import opening_from_json, read_lines  # noqa: PLC0415
    from auditor.reference.tokenizer import Tokenizer  # noqa: PLC0415
    from auditor.trace_files import write_traces  # noqa: PLC0415

    if service:
        sys.exit(remote_commitments.check(committed, output_format))
    challenge, opening = needed(challenge, "--challenge", kind), needed(opening, "--opening", kind)
    if kind == "activations":
        files = activations.Answered(committed, challenge, opening, needed(log, "--log", kind))
        well = activations.check(files, model_directory, honest, alpha, output_format)
        sys.exit(0 if well else REFUSED)
    keys, asked = public_keys(vkeys), challenges_of(challenge)
    tokenizer = Tokenizer.load(model_directory or options.demo_model())
    answers = by_request((opening_from_json(value, where) for value, where in read_lines(opening)), opening)
    embedders: dict[str, Any] = {}
    report = CheckReport()
    for trace in traces_of(committed):
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
        report.judge(list(traces_of(honest)), tokenizer, alpha)
    if out is not None:
        write_traces(out, report.traces, overwrite=force)
    report.show(output_format)
    sys.exit(REFUSED if report.failures or report.convicted else 0)
