"""`audit check`: openings of commitments, held to what was signed and asked."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from auditor.commands import activations, options
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
    traces_of,
    vkey_option,
)
from auditor.errors import AuditError

if TYPE_CHECKING:
    from auditor.hidden_tokens.checking import Committed, Opened
    from auditor.hidden_tokens.embedders import Embedder
    from auditor.merkle.keys import PublicKey
    from auditor.merkle.token_openings import Challenge, Opening
    from auditor.trace import Trace


@click.command()
@committed_argument
@kind_option
@options.model_option
@file_option("--challenge", "The challenges that were sent.")
@file_option("--opening", "The provider's answer.")
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
@click.option(
    "--likelihood",
    is_flag=True,
    help="Tokens: with --honest, score what was opened under the weights of --model, too.",
)
@options.format_option
def check(
    committed: Path,
    kind: str,
    model_directory: Path | None,
    challenge: Path,
    opening: Path,
    vkeys: tuple[str, ...],
    log: Path | None,
    out: Path | None,
    force: bool,
    honest: Path | None,
    alpha: float,
    likelihood: bool,
    output_format: str,
) -> None:
    """Auditor: check openings against what was COMMITTED and challenged; withholding is failure.

    Signatures, chains, counts, order in time, whole blocks, roots; text, canonical tokenization and
    embeddings are worked out anew. Prints what share of the hidden tokens was seen. With weights go on with
    `audit verify`. Hidden states are computed anew up to the layer that was drawn, and compared.

    What cannot be read of one response fails it and hides nothing of the others.

    Exit status: 0 all hold, 1 some response fails, 2 something else cannot be read.
    """
    from auditor.trace_files import write_traces  # noqa: PLC0415

    if kind == "activations":
        files = activations.Answered(committed, challenge, opening, needed(log, "--log", kind))
        well = activations.check(files, model_directory, honest, alpha, output_format)
        sys.exit(0 if well else REFUSED)
    report = CheckReport()
    asked, answers = challenges_of(challenge), _answers(opening, report)
    directory = model_directory or options.demo_model()
    checker = _Checker(directory, public_keys(vkeys))
    for trace in traces_of(committed):
        if trace.id not in asked:
            report.unasked += 1
            continue
        try:
            known, found = checker.check(trace, asked[trace.id], answers.get(trace.id))
        except AuditError as problem:
            report.failed(trace, problem)
        else:
            report.passed(trace, known, asked[trace.id], answers[trace.id], found)
    report.missing(set(asked), committed)
    if honest is not None and report.opened:
        weights = directory if likelihood else None
        report.judge(list(traces_of(honest)), checker.tokenizer, alpha, weights)
    if out is not None:
        write_traces(out, report.traces, overwrite=force)
    report.show(output_format)
    sys.exit(report.exit_status)


class _Checker:
    """Checks responses with one tokenizer and the embedders that their heads name."""

    def __init__(self, directory: Path, keys: Sequence[PublicKey]) -> None:
        from auditor.reference.checkpoint.digests import tokenizer_digest  # noqa: PLC0415
        from auditor.reference.tokenizer import Tokenizer  # noqa: PLC0415

        self.tokenizer, self._digest = Tokenizer.load(directory), tokenizer_digest(directory)
        self._keys = keys
        self._embedders: dict[str, Embedder | None] = {}

    def check(self, trace: Trace, challenge: Challenge, opening: Opening | None) -> tuple[Committed, Opened]:
        """See `check_commitment` and `check_opened`."""
        from auditor.hidden_tokens.checking import check_commitment, check_opened  # noqa: PLC0415
        from auditor.hidden_tokens.embedders import embedder_of_digest  # noqa: PLC0415

        known = check_commitment(trace, self._keys)
        digest = known.head.embedder
        if digest not in self._embedders:
            self._embedders[digest] = embedder_of_digest(digest)
        found = check_opened(
            known,
            challenge,
            opening,
            self.tokenizer,
            self._embedders[digest],
            tokenizer_digest=self._digest,
            vocabulary=self.tokenizer.vocab_size,
        )
        return known, found


def _answers(path: Path, report: CheckReport) -> dict[str, Opening]:
    """Openings by response. A line that cannot be read is told, and answers nothing: that is withholding."""
    from auditor.hidden_tokens.wire import object_of, opening_from_json, raw_lines  # noqa: PLC0415

    def readable() -> Iterator[tuple[str, Opening]]:
        for line, where in raw_lines(path):
            try:
                yield opening_from_json(object_of(line, where), where)
            except AuditError as problem:
                report.unreadable.append(problem)

    return by_request(readable(), path)
