"""`audit tokens`: bills beside texts, and reported ids beside the claimed tokenizer's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

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
    from auditor.token_counts.report import TokenReport


@click.command()
@click.argument("traces", nargs=-1, required=True)
@model_option
@adapter_option
@click.option("--price", type=click.FloatRange(min=0.0), default=None, help="Per token, for the shadow bill.")
@input_format_option
@engine_recipe_option
@noise_option
@format_option
def tokens(
    traces: tuple[str, ...],
    model_directory: Path | None,
    adapter: Path | None,
    price: float | None,
    input_format: str,
    engine_recipe: str | None,
    noise: str | None,
    output_format: str,
) -> None:
    """Were the tokens billed the tokens that the texts take?

    Texts without ids: a sequential test of bills against the claimed model. Ids: round trip through the
    claimed tokenizer, deviations by class, a test of tokens split afterwards, segmentation diagnostics.
    Always: the same bill by characters. No verdict is given here (`audit verify` gives one); the exit
    status is 2 after bad lines, else 0.
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
            on_response=lambda _response: advance(1),
        )
    for error in report.errors:
        print_error(error)
    if output_format == "json":
        click.echo(json.dumps(report_to_json(report, price), ensure_ascii=False))
    else:
        _print(report, price)
    if report.errors:
        raise click.exceptions.Exit(2)


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
    found = [r for r in report.responses if r.finding]
    for response in found[:5]:
        say(f"  {response.trace.where}: {response.finding}")
    refused = [r for r in report.responses if r.problem]
    if refused:
        say(f"  {len(refused)} responses could not be counted; the first, {refused[0].problem}")
