"""`audit plan`: how many tokens, requests and seconds an audit needs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from auditor.commands import options

if TYPE_CHECKING:
    from auditor.planning import Plan
    from auditor.profile import Profile
    from auditor.sample_size import Effect

_SIZES = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)


@click.command()
@click.option(
    "--profile",
    "profile_file",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Calibration profile whose simulated deviations are planned against. "
    "[default: the demo model served by vLLM in bfloat16, unless a size is given by hand]",
)
@click.option(
    "--cause", "causes", multiple=True, metavar="NAME", help="Only this deviation; may be repeated."
)
@click.option(
    "--mode",
    type=click.Choice(["sampled", "nucleus", "greedy"]),
    default="sampled",
    show_default=True,
    help="How the audited requests are sampled.",
)
@click.option(
    "--effect",
    nargs=4,
    type=float,
    default=None,
    metavar="M0 S0 M1 S1",
    help="By hand: mean and standard deviation of a token's score, honest then dishonest.",
)
@click.option(
    "--rates",
    nargs=2,
    type=float,
    default=None,
    metavar="HONEST CHEATING",
    help="By hand: mismatch rates a token.",
)
@click.option(
    "--correlation",
    type=click.FloatRange(0.0, 1.0),
    default=0.0,
    show_default=True,
    help="By hand: intra-request correlation of the score.",
)
@click.option(
    "--request-tokens",
    type=click.FloatRange(1.0),
    default=200.0,
    show_default=True,
    help="By hand: output tokens of a request.",
)
@click.option(
    "--alpha", type=float, default=0.001, show_default=True, help="False-alarm rate of the verdict."
)
@click.option(
    "--power", type=float, default=0.9, show_default=True, help="Wanted probability of a conviction."
)
@click.option(
    "--fraction", type=float, default=1.0, show_default=True, help="Share of requests on which it cheats."
)
@click.option(
    "--speed",
    type=float,
    default=None,
    metavar="N",
    help="Measured audit speed, output tokens a second (`audit verify` and `audit bench` print it).",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the simulated audits.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Power curves, .svg or .png.",
)
@click.option("--force", is_flag=True, help="Overwrite the plot.")
@options.format_option
def plan(
    profile_file: Path | None,
    causes: tuple[str, ...],
    mode: str,
    effect: tuple[float, float, float, float] | None,
    rates: tuple[float, float] | None,
    correlation: float,
    request_tokens: float,
    alpha: float,
    power: float,
    fraction: float,
    speed: float | None,
    seed: int,
    plot: Path | None,
    force: bool,
    output_format: str,
) -> None:
    """Plan an audit: tokens, requests and seconds for a wanted power.

    With a profile, audits are simulated with the test that `audit verify` runs, request by request, so that
    correlation within requests is in the figures. By hand the closed forms are used.

    \b
    Examples:
      audit plan --cause weights/int4 --cause temperature/+0.1
      audit plan --profile honest.json --fraction 0.1 --speed 3000 --plot power.svg
      audit plan --rates 0.004 0.02
      audit plan --effect 0.0001 0.004 0.0004 0.009 --correlation 0.05 --request-tokens 200
    """
    from auditor.plan_figure import check_figure_place, write_figure  # noqa: PLC0415
    from auditor.plan_result import plan_to_json  # noqa: PLC0415
    from auditor.planning import plan as run  # noqa: PLC0415

    if plot is not None:
        check_figure_place(plot, overwrite=force)
    size = _effect(effect, rates, correlation, request_tokens)
    made = run(
        None if profile_file is None and size is not None else _profile(profile_file),
        causes=causes,
        effect=size if effect is not None else None,
        rates=rates,
        shape=size,
        alpha=alpha,
        power=power,
        fraction=fraction,
        mode=mode,
        speed=speed,
        seed=seed,
    )
    if plot is not None:
        write_figure(plot, made, overwrite=force)
        click.echo(f"power curves: {plot}", err=True)
    if output_format == "json":
        click.echo(json.dumps(plan_to_json(made), allow_nan=False))
    else:
        _print(made)


def _effect(
    effect: tuple[float, float, float, float] | None,
    rates: tuple[float, float] | None,
    correlation: float,
    request_tokens: float,
) -> Effect | None:
    from auditor.sample_size import Effect  # noqa: PLC0415

    if effect is None and rates is None:
        return None
    return Effect(*(effect or (0.0, 0.0, 0.0, 0.0)), correlation, request_tokens, correlation)


def _profile(path: Path | None) -> Profile:
    from auditor.profile import read_profile  # noqa: PLC0415
    from auditor.profiles import demo_profile  # noqa: PLC0415

    return demo_profile() if path is None else read_profile(path)


def _count(value: float | None) -> str:
    if value is None:
        return ""
    return f"{math.ceil(value):,}" if math.isfinite(value) else "out of reach"


def _print(made: Plan) -> None:
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from auditor.commands.screen import FILE_WIDTH, Screen  # noqa: PLC0415

    console = Screen(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    share = "" if made.fraction == 1.0 else f", the provider cheats on {made.fraction:.3g} of requests"
    console.print(f"for power {made.power:g} at alpha {made.alpha:g}{share}")
    if made.profile is not None:
        recipe, tokens = made.profile.key.provider_recipe, made.profile.honest_tokens
        console.print(f"  {escape(recipe)}, calibrated on {tokens:,} honest tokens, {made.mode} requests")
    table = Table(box=None, padding=(0, 2))
    table.add_column("deviation")
    seconds_head = ["seconds"] if made.speed else []
    heads = ["tokens", "requests", *seconds_head, "power, 95 %", "until convicted", "spot checks"]
    for head in heads:
        table.add_column(head, justify="right")
    for row in made.rows:
        seconds = [_count(row.seconds)] if made.speed else []
        low_high = "" if row.power_between is None else "{:.2f} to {:.2f}".format(*row.power_between)
        cells = (_count(row.tokens), _count(row.requests), *seconds, low_high)
        table.add_row(escape(row.cause), *cells, _count(row.expected_tokens), _count(row.spot_checks))
    console.print(table)
    console.print(
        "  power, 95 %: at that size, as well as the profile's simulated requests can tell; until convicted:"
        " mean tokens with a look after each step; spot checks: requests judged one by one; simulations end"
        " at 2,048 requests"
    )
    for row in made.rows:
        if row.sequential is not None:
            s = row.sequential
            console.print(
                f"  Wald's sequential test: {_count(s.accuse)} tokens on average to convict a cheat, "
                f"{_count(s.acquit)} to clear an honest provider"
            )
    _print_curves(made, console)


def _print_curves(made: Plan, console: Any) -> None:
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(title="power at so many tokens", title_justify="left", box=None, padding=(0, 2))
    table.add_column("deviation")
    for size in _SIZES:
        table.add_column(f"{size:,}", justify="right")
    for row in made.rows:
        if row.curve is not None:
            powers = [row.curve.power_at(size) for size in _SIZES]
            table.add_row(escape(row.cause), *("" if p is None else f"{p:.2f}" for p in powers))
    if table.row_count:
        console.print(table)
