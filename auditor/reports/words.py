"""A report in plain words: what was found, and what it means for whoever has to act on it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from auditor.reports.figures import raised

WORDS = {
    "consistent": "ran what it declared, as far as this evidence reaches",
    "inconsistent": "did not run what it declared",
    "inconclusive": "could not be judged",
    "satisfied": "satisfied",
    "not-satisfied": "not satisfied",
    "not-determined": "not determined",
}


def headline(document: Mapping[str, Any]) -> str:
    """One sentence for the top of the page."""
    providers = document["providers"]
    convicted = [p["name"] for p in providers if p["verdict"] == "inconsistent"]
    open_ones = [p["name"] for p in providers if p["verdict"] == "inconclusive"]
    if not providers:
        return "Nothing was audited in this period."
    if convicted:
        return f"{_named(convicted)} did not run what {'they' if len(convicted) > 1 else 'it'} declared."
    if open_ones:
        return f"Nobody is accused, but the evidence does not settle it for {_named(open_ones)}."
    return "Every provider ran what it declared, as far as this evidence reaches."


def _named(names: Sequence[str]) -> str:
    """A list in words; of many only how many."""
    if len(names) > 3:
        return f"{len(names)} providers"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def odds(log10_e: float) -> str:
    """The chance of evidence this strong from an honest provider, in words that need no statistics."""
    if log10_e <= 0.3:
        return "nothing unusual"
    if log10_e < 6:
        return f"at most 1 in {10**log10_e:,.0f}"
    return f"at most 1 in {raised(int(log10_e))}"


def meaning(provider: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """What a provider's period means, in a few sentences."""
    tokens, requests = provider["requests"]["tokens"], provider["requests"]["audited"]
    seen = f"{requests:,} requests ({tokens:,} tokens) were replayed"
    if provider["verdict"] == "inconsistent":
        cause = provider["causes"][0]["cause"] if provider["causes"] else "no cause that is known"
        strength = max(float(provider["log10_e"]), float((provider.get("standing") or provider)["log10_e"]))
        return (
            f"{seen}. An honest provider would produce evidence this strong with a chance of "
            f"{odds(strength)}. What explains it best: {cause}."
        )
    if provider["verdict"] == "consistent":
        weak = [row["cause"] for row in provider["detectable"] if _blind(row, document)]
        but = f" Not excluded: {', '.join(weak)}." if weak else ""
        return f"{seen}, and nothing contradicts the declared system.{but}"
    return f"{seen}. Why this settles nothing: {'; '.join(provider['reasons'])}."


def _blind(row: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    minimum = float(document["policy"]["minimum_power"])
    return row["power"] is not None and float(row["power"]) < minimum
