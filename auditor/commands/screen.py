"""Results as tables for people."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from auditor.comparison import MODEL_EQUALITY
from auditor.gathering import STOP_DECISIONS
from auditor.hidden_tokens.revealed import refutations, revealed_of
from auditor.power import DRAWS
from auditor.result import e_value, p_value
from auditor.synchrony import Synchrony
from auditor.token_counts.evidence import TOKEN_COUNT
from auditor.verdict import UNCALIBRATED, Outcome, Verdict
from auditor.verification import Result

COLOURS: dict[Outcome, str] = {"consistent": "green", "inconsistent": "red", "inconclusive": "yellow"}

MEANING: dict[Outcome, str] = {
    "consistent": "nothing beyond honest numeric noise, "
    "in a sample that would have shown every required deviation",
    "inconsistent": "an honest provider produces evidence this strong with probability at most alpha",
    "inconclusive": "neither an accusation nor an acquittal; the reasons follow",
}

REFUTED = "the log contradicts what the provider itself has signed"
"""Meaning of a verdict that rests on signatures, whatever its e-value."""

UNITS = {
    "token-difr": "logits mean clipped margin",
    "outside-support": "share outside the filters",
    "seed-free-surprise": "nats a token more than the entropy",
    "seed-free-rank": "largest distance of ranks from uniform",
    TOKEN_COUNT: "tokens a response billed beyond what the text takes",
    "text-surprise": "nats a token more than the entropy, ids assumed",
    "text-rank": "largest distance of ranks from uniform, ids assumed",
    MODEL_EQUALITY: "discrepancy from the trusted answers",
    UNCALIBRATED: "share of tokens that do not match",
    STOP_DECISIONS: "share of requests whose end contradicts them",
}
"""What each evidence's statistic is."""

FILE_WIDTH = 140  # columns when the output goes to a file or a pipe


class Screen(Console):
    """A console that lets a closed pipe through: rich would exit with 1, which means `inconsistent`."""

    def on_broken_pipe(self) -> None:
        """Leave it to `main`."""
        raise BrokenPipeError


def styled(outcome: Outcome) -> str:
    """A verdict in its colour."""
    return f"[bold {COLOURS[outcome]}]{outcome}[/]"


def print_result(result: Result, console: Console | None = None) -> None:
    """The verdict first, then what it rests on."""
    console = console or Screen(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    signed = any(refutations([t.scored.trace for t in v.traces]) for v in result.verdicts)
    console.print(f"{styled(result.outcome)}  {REFUTED if signed else MEANING[result.outcome]}")
    console.print(
        f"  alpha {result.alpha:g}   e-value {e_value(result.log_e):.3g}   "
        f"p-value {p_value(result.log_e):.3g}"
    )
    if result.tokens:
        console.print(
            f"  {result.tokens:,} output tokens replayed, {result.matched / result.tokens:.4f} match, "
            f"{result.outside} outside their own filters, "
            f"{result.tokens / max(result.seconds, 1e-9):,.0f} tokens/s"
        )
    if result.forced or result.forbidden:
        console.print(
            f"  {result.forced:,} more had no alternative under the request's own rules and are no evidence; "
            f"{result.forbidden:,} are excluded by those rules"
        )
    if result.selection is not None:
        s = result.selection
        console.print(
            f"  a part of the log: {result.tokens:,} of {s.population_tokens:,} tokens; {s.at_random} "
            f"requests at random, {s.by_weight} by weight; --selection-seed {escape(s.seed)}"
        )
    for verdict, synchrony in zip(result.verdicts, result.synchrony, strict=True):
        _print_group(verdict, synchrony, console, several=len(result.verdicts) > 1)
    if result.errors:
        console.print(f"  [red]{len(result.errors)} unusable line(s), listed on standard error[/]")


def _print_group(verdict: Verdict, synchrony: Synchrony | None, console: Console, *, several: bool) -> None:
    console.print(
        f"\n[bold]{escape(verdict.recipe or 'recipe unknown')}[/]  {len(verdict.traces)} requests", end=""
    )
    console.print(f"  {styled(verdict.outcome)}" if several else "")
    for reason in verdict.reasons:
        console.print(f"  [yellow]-[/] {escape(reason)}")
    for e in verdict.evidence:
        if e.name == STOP_DECISIONS and not e.statistic:
            continue
        unit = UNITS.get(e.name, "of the states' size outside the codes, mean")
        console.print(f"  {e.name}: {e.statistic:.6f} {unit}, e-value {e_value(e.log_e):.3g}")
    if verdict.profile is not None:
        p = verdict.profile
        scale, low, high = p.noise_scale
        console.print(
            f"  calibrated on {p.honest_tokens:,} honest tokens: noise scale {scale:.2g} logits "
            f"(95 %: {low:.2g} to {high:.2g}); the smallest alpha at which it can convict twice that noise "
            f"is {p.smallest_alpha['2']:.2g}, ten times {p.smallest_alpha['10']:.2g}"
        )
        if p.signed_by:
            console.print(f"  profile {escape(p.id[:19])}... signed by {escape(', '.join(p.signed_by))}")
    if verdict.diagnosis:
        ranked = ", ".join(f"{cause} {weight:.0%}" for cause, weight in verdict.diagnosis[:4])
        console.print(f"  explained best by: {ranked}")
    if synchrony is not None and synchrony.found == "distribution-lossless":
        console.print(f"  [yellow]{escape(_lossless(synchrony))}[/]")
    _print_hidden(verdict, console)
    _print_detectable(verdict, console)
    _print_traces(verdict, console)
    _print_contradictions(verdict, console)


def _lossless(synchrony: Synchrony) -> str:
    """What to think of tokens that do not follow the seed and yet the model's distribution."""
    said = f"nothing in {synchrony.tokens:,} tokens speaks against the model's own distribution"
    if synchrony.match is None or synchrony.unrelated is None:
        return f"{said}; whether they follow a seed cannot be tested"
    if synchrony.admitted is not None:
        return (
            f"{said}, and {synchrony.admitted:,} of the {synchrony.unexpected:,} that do not match are ones "
            "that lossless speculation may return: was it on? Then declare it (speculation.rule standard)"
        )
    return (
        f"{said}; they match as often ({synchrony.match:.4f}) as draws unrelated to the logged seed would "
        f"({synchrony.unrelated:.4f}): another seed, noise scheme or speculation rather than another model"
    )


def _print_hidden(verdict: Verdict, console: Console) -> None:
    """How much of the hidden tokens the auditor saw."""
    found = revealed_of([t.scored.trace for t in verdict.traces])
    if not found:
        return
    held = [item for item in found if item.committed is not None]
    seen = sum(item.opened.exposure.seen for item in held if item.opened is not None)
    hidden = sum(item.committed.head.hidden for item in held if item.committed is not None)
    share = seen / hidden if hidden else 0.0
    console.print(
        f"  {len(held)} of {len(found)} commitments hold; "
        f"{seen:,} of {hidden:,} hidden tokens seen ({share:.1%})"
    )


def _print_detectable(verdict: Verdict, console: Console) -> None:
    if not verdict.detectable:
        return
    table = Table(
        title=f"what this sample would have caught ({DRAWS} simulated audits each)",
        title_justify="left",
        box=None,
        padding=(0, 2),
    )
    table.add_column("deviation")
    table.add_column("power", justify="right")
    table.add_column("required")
    for d in verdict.detectable:
        power = "cannot show here" if d.power is None else f"{d.power:.2f}"
        table.add_row(d.cause, power, "yes" if d.required else "")
    console.print(table)


def _print_traces(verdict: Verdict, console: Console) -> None:
    suspects = [t for t in verdict.traces if t.outcome == "inconsistent"]
    if not suspects:
        return
    strongest = sorted(suspects, key=lambda t: -t.log_e)[:5]
    table = Table(
        title=f"{len(suspects)} request(s) convicted alone; the strongest",
        title_justify="left",
        box=None,
        padding=(0, 2),
    )
    for name in ("where", "id", "match", "e-value", "tokens"):
        table.add_column(name)
    for t in strongest:
        scores = t.scored.scores
        spans = ", ".join(f"{start}-{end}" for start, end in t.spans)
        match = f"{scores.match_rate:.3f}" if scores else ""
        table.add_row(
            escape(t.scored.trace.where), escape(t.scored.trace.id), match, f"{e_value(t.log_e):.2g}", spans
        )
    console.print(table)


def _print_contradictions(verdict: Verdict, console: Console) -> None:
    found = [t.scored for t in verdict.traces if t.scored.contradictions]
    for scored in found[:5]:
        console.print(f"  {escape(scored.trace.where)}: {escape('; '.join(scored.contradictions))}")
    if len(found) > 5:
        console.print(f"  ... and {len(found) - 5} more requests whose output contradicts them")
