"""`audit tokens`: bills beside texts, and reported ids beside the claimed tokenizer's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from auditor.commands.commitment_options import traces_of
from auditor.commands.options import (
    adapter_option,
    count_lines,
    demo_model,
    engine_recipe_option,
    format_option,
    input_format_option,
    log_source,
    model_option,
    noise_option,
    progress_bar,
)

if TYPE_CHECKING:
    from auditor.token_counts.honest_bills import AgainstHonest
    from auditor.token_counts.report import TokenReport


@click.command()
@click.argument("traces", nargs=-1, required=True)
@model_option
@adapter_option
@click.option("--price", type=click.FloatRange(min=0.0), default=None, help="Per token, for the shadow bill.")
@click.option(
    "--honest",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Responses of the same deployment known to be honest: bills beside theirs, at --alpha.",
)
@click.option(
    "--alpha",
    type=float,
    default=0.001,
    show_default=True,
    help="False-alarm rate of what --honest judges.",
)
@click.option(
    "--trusted",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="A trusted copy's answers to the same questions, plain and lengthened: does the service ramble?",
)
@click.option(
    "--other",
    type=click.Path(path_type=Path),
    default=None,
    metavar="DIR",
    help="Another model, its tokenizer whatever it is: under which are the texts' bytes likelier?",
)
@input_format_option
@engine_recipe_option
@noise_option
@format_option
def tokens(
    traces: tuple[str, ...],
    model_directory: Path | None,
    adapter: Path | None,
    price: float | None,
    honest: Path | None,
    alpha: float,
    trusted: Path | None,
    other: Path | None,
    input_format: str,
    engine_recipe: str | None,
    noise: str | None,
    output_format: str,
) -> None:
    """Were the tokens billed the tokens that the texts take?

    Texts without ids: a sequential test of bills against the claimed model. Ids: round trip through the
    claimed tokenizer, deviations by class, a test of tokens split afterwards, segmentation diagnostics.
    Always: the same bill by characters.

    Only --honest can convict here: it counts honest bills as it counts the audited ones, so a habit of the
    deployment accuses nobody. --trusted and --other print signals, never proof. Questions asked both ways
    come from `audit probe` (`lengthen = true`), a trusted copy's answers from `audit generate --like`.

    Exit status: 1 when --honest convicts, else 2 after bad lines, else 0.
    """
    from auditor.commands import print_error  # noqa: PLC0415
    from auditor.replay import Reference  # noqa: PLC0415  --help must not pay for torch
    from auditor.token_counts.report import report_to_json  # noqa: PLC0415
    from auditor.token_counts.report import tokens as count_tokens  # noqa: PLC0415

    reference = Reference.load(model_directory or demo_model(), adapter=adapter)
    with progress_bar("counting", count_lines(traces)) as advance:
        report = count_tokens(
            log_source(traces, input_format, engine_recipe, noise),
            reference,
            honest=None if honest is None else traces_of(honest),
            trusted=None if trusted is None else traces_of(trusted),
            other=None if other is None else Reference.load(other),
            alpha=alpha,
            on_response=lambda _response: advance(1),
        )
    for error in report.errors:
        print_error(error)
    if output_format == "json":
        click.echo(json.dumps(report_to_json(report, price), ensure_ascii=False))
    else:
        _print(report, price)
    if report.convicts or report.errors:
        raise click.exceptions.Exit(1 if report.convicts else 2)


def _print_beside(report: TokenReport) -> None:
    """What was held against something else: honest bills, a trusted copy, another model."""
    say = click.echo
    if report.against_honest is not None:
        _print_against_honest(report.against_honest)
    if report.lengthening is not None:
        grown = report.lengthening
        say(
            f"  lengthening: {grown.questions} questions, {math.exp(grown.service):.2f} times here, "
            f"{math.exp(grown.trusted):.2f} times by the trusted copy ({grown.limited} cut by a limit), "
            f"p-value {grown.p_value:.2g}; a signal, no proof"
        )
    if report.bytes_compared is not None:
        both = report.bytes_compared
        say(
            f"  bytes: {both.responses} texts, {both.claimed:.4f} bits a byte by the claimed model, "
            f"{both.other:.4f} by the other; log ratio {both.log_ratio:+.1f} nats for the other"
        )


def _print_against_honest(found: AgainstHonest) -> None:
    from auditor.result import e_value  # noqa: PLC0415

    outcome = "inconsistent" if found.convicts else "nothing to accuse of"
    click.echo(f"  beside honest bills: {outcome} at alpha {found.alpha:g}")
    for result in found.conditions:
        c = result.condition
        constrained = ", constrained" * c.constrained + ", with special tokens" * c.marks
        click.echo(
            f"    {c.model}, {c.script}, temperature {c.temperature:g}{constrained}: "
            f"{result.responses} responses, {result.honest} honest, "
            f"e-value {e_value(result.log_e):.3g} of {result.needed:,.0f}"
        )
    most = max((r.overbilled for r in found.responses if r.overbilled is not None), default=0.0)
    least = min((r.p_value for r in found.responses if r.p_value is not None), default=1.0)
    click.echo(f"    least p-value {least:.3g}; at least {most:g} tokens too many in one response")
    if found.unmatched or found.refused:
        click.echo(
            f"    {found.unmatched} responses without enough honest ones like them, "
            f"{len(found.refused)} whose text does not account for a bill"
        )


def _print(report: TokenReport, price: float | None) -> None:
    from auditor.result import e_value  # noqa: PLC0415

    say = click.echo
    say(f"{len(report.responses)} responses, {report.billed:,} tokens billed, {report.canonical:,} canonical")
    say(f"  {report.characters:,} characters, {report.characters_per_token:.3f} a canonical token")
    if price is not None:
        say(f"  bill {report.billed * price:.6g}; by characters {report.shadow_bill(price):.6g}")
    if report.bills is not None:
        b = report.bills
        said = f"{b.responses} texts without ids: {b.excess:+.3f} tokens a response beyond what they take"
        say(f"  token-count: {said}, e-value {e_value(b.log_e):.3g}")
    trips = [r.round_trip for r in report.responses if r.round_trip]
    if trips:
        deviations = sum(len(t.deviations) for t in trips)
        say(
            f"  {len(trips)} responses with ids: {sum(t.excess for t in trips):+} tokens beyond canonical, "
            f"{deviations} deviations, {sum(t.splits for t in trips)} of them splits, "
            f"e-value {e_value(report.split_log_e):.3g}"
        )
        for name, count in report.artefacts.most_common():
            say(f"    {name}: {count}")
    if report.manifest is not None:
        m = report.manifest
        say(
            f"  segmentation: fertility {m.fertility:.3f} (claimed tokenizer {m.claimed_fertility:.3f}), "
            f"continuation {m.continuation:.3f} ({m.claimed_continuation:.3f}), "
            f"boundary precision {m.precision:.4f}, recall {m.recall:.4f}, F1 {m.f1:.4f}, "
            f"over {m.over:.4f} and under {m.under:.4f} a word, "
            f"CER {m.character_error:.4f}, WER {m.word_error:.4f}"
        )
    _print_beside(report)
    found = [r for r in report.responses if r.finding]
    for response in found[:5]:
        say(f"  {response.trace.where}: {response.finding}")
    refused = [r for r in report.responses if r.problem]
    if refused:
        say(f"  {len(refused)} responses could not be counted; the first, {refused[0].problem}")
