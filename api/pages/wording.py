"""Numbers and names in the form in which people read them."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from auditor.service.clock import to_text

OUTCOMES = {
    "inconsistent": "This log was not made by what it declares.",
    "consistent": "This log is what the declared model returns.",
    "inconclusive": "Nothing is held against this log, and nothing is vouched for.",
}
STATES = {
    "queued": "Waiting for a worker",
    "running": "Being replayed",
    "done": "Done",
    "dead": "Ended without a verdict",
    "quarantined": "Set aside: workers died over it",
    "cancelled": "Cancelled",
}
CHALLENGES = {
    "open": "An answer is awaited.",
    "held": "What was opened is what the provider signed.",
    "failed": "What was opened contradicts what the provider signed.",
    "withheld": "The provider did not open what was drawn.",
}
CHALLENGE_COLOURS = {
    "open": "inconclusive",
    "held": "consistent",
    "failed": "inconsistent",
    "withheld": "inconsistent",
}
TESTS = {
    "token-difr": "How far tokens are off",
    "token-difr-uncalibrated": "Share of tokens off, without a profile",
    "outside-support": "Tokens that the request's filters exclude",
    "stop-decisions": "How outputs end",
    "seed-free-surprise": "Surprise of tokens without seeds",
    "seed-free-rank": "Rank of tokens without seeds",
    "text-surprise": "Surprise of texts, ids assumed",
    "text-rank": "Rank of texts, ids assumed",
    "token-count": "Bills against texts",
}
_PLAIN, _LARGEST = 2.0, 300.0


def power_of_ten(exponent: float) -> Markup:
    """10 to a power: a plain number near 1, `10<sup>n</sup>` beyond."""
    if abs(exponent) < _PLAIN:
        return Markup("{}").format(f"{10.0**exponent:.2g}")
    sign = "\N{MINUS SIGN}" if exponent < 0 else ""
    return Markup("10<sup>{}{}</sup>").format(sign, f"{abs(math.floor(exponent)):,}")


def e_value(value: float) -> Markup:
    """An e-value as `auditor.result/v1` has it, where 1e300 stands for that and more."""
    if value <= 0.0:
        return Markup("below 10<sup>\N{MINUS SIGN}{}</sup>").format(f"{_LARGEST:.0f}")
    exponent = math.log10(value)
    return (
        Markup("over {}").format(power_of_ten(_LARGEST)) if exponent >= _LARGEST else power_of_ten(exponent)
    )


def probability(value: float | None) -> str:
    """A p-value."""
    if value is None:
        return ""
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def share(value: float | None) -> str:
    """A share in per cent."""
    return "" if value is None else f"{value:.2%}"


def number(value: int | None) -> str:
    """An integer with its thousands apart."""
    return "" if value is None else f"{value:,}"


def size(value: int) -> str:
    """Bytes."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024  # type: ignore[assignment]
    return f"{value:,} bytes" if unit == "bytes" else f"{value:,.1f} {unit}"


def moment(microseconds: int) -> Markup:
    """A time, to the second, in UTC."""
    text = to_text(microseconds)
    return Markup('<time datetime="{}">{} {}</time>').format(text, text[:10], text[11:19] + " UTC")


def day(microseconds: int) -> Markup:
    """A date."""
    text = to_text(microseconds)
    return Markup('<time datetime="{}">{}</time>').format(text, text[:10])


def one_in(alpha: float) -> str:
    """A false-alarm rate as one in so many."""
    return f"1 in {1 / alpha:,.0f}" if alpha < 0.5 else f"{alpha:g}"


def test_name(name: str) -> str:
    """What a test looks at."""
    if name.startswith("activation"):
        return "Activation fingerprints"
    return TESTS.get(name, name)


def quantity(count: int, one: str, many: str = "") -> str:
    """`1 request`, `2 requests`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


FILTERS: dict[str, Any] = {
    name: globals()[name]
    for name in (
        "day",
        "e_value",
        "moment",
        "number",
        "one_in",
        "power_of_ten",
        "probability",
        "quantity",
        "share",
        "size",
        "test_name",
    )
} | {
    "challenge_verdict": CHALLENGE_COLOURS.__getitem__,
    "challenge_words": CHALLENGES.__getitem__,
    "outcome_words": OUTCOMES.__getitem__,
    "state_words": STATES.__getitem__,
}
