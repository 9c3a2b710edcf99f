"""What is controlled, and what a period's evidence says of each control. Pure.

A control about a kind of cheating is *satisfied* only where the evidence would have shown that cheating: a
conviction for one cause says nothing good about the others, and silence without power says nothing at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SATISFIED, NOT_SATISFIED, NOT_DETERMINED = "satisfied", "not-satisfied", "not-determined"


@dataclass(frozen=True, slots=True)
class Control:
    """A control. `families` are the first words of the causes it is about; empty for those about evidence."""

    id: str
    title: str
    question: str
    families: tuple[str, ...] = ()


OVERALL = Control(
    "SYS-1", "Declared system", "Do the tokens come from the system that the provider declares?"
)
CONTROLS = (
    OVERALL,
    Control(
        "MOD-1",
        "Model and weights",
        "Were it the declared weights, at the declared precision, all of them?",
        ("model", "weights", "depth", "adapter", "experts"),
    ),
    Control("NUM-1", "Cache and numerics", "Was the attention cache kept as declared?", ("kv", "attention")),
    Control(
        "SMP-1",
        "Sampling as requested",
        "Were seed, temperature, filters and penalties those of the request?",
        ("seed", "temperature", "filter", "penalty", "noise", "sampling"),
    ),
    Control("PRM-1", "Prompt as sent", "Was the prompt sent to the model the client's?", ("prompt",)),
    Control("BIL-1", "Tokens billed", "Do bills and signed counts agree with the tokens seen?"),
    Control("EVD-1", "Evidence complete", "Could everything that was handed in be judged?"),
    Control("CAL-1", "Calibration in force", "Was honest noise calibrated, and does somebody vouch for it?"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One control of one provider."""

    control: Control
    status: str
    reason: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What the controls are judged by, of one provider and period.

    Attributes:
        verdict: of the period.
        causes: (cause, weight) of its convictions, strongest first.
        power: best power against each cause; None where the traffic cannot show it.
        required: causes that the policy must have been able to detect.
        refuted: audits that the provider's own signatures contradict.
        doubts: what could not be judged, in words.
        bills: whether anything of the bill was tested, so that padding would have been shown.
        padded: what convicts the provider's bills, in words; empty where nothing does.
        calibrated, vouched: whether every verdict rests on a profile; on one that a trusted key signed.
    """

    verdict: str
    causes: Sequence[tuple[str, float]]
    power: Mapping[str, float | None]
    required: Sequence[str]
    minimum_power: float
    refuted: int
    doubts: Sequence[str]
    bills: bool
    calibrated: bool
    vouched: bool
    signed_profiles: bool
    padded: str = ""


def findings(facts: Facts) -> list[Finding]:
    """Every control, in the order of `CONTROLS`."""
    return [Finding(control, *_judged(control, facts)) for control in CONTROLS]


def _judged(control: Control, facts: Facts) -> tuple[str, str]:
    if control.families:
        return _cause_control(control, facts)
    judge = {"SYS-1": _overall, "BIL-1": _billing, "EVD-1": _complete, "CAL-1": _calibration}
    return judge[control.id](facts)


def _overall(facts: Facts) -> tuple[str, str]:
    if facts.verdict == "inconsistent":
        return NOT_SATISFIED, "the evidence contradicts the declared system at the policy's alpha"
    if facts.verdict == "consistent":
        return SATISFIED, "not contradicted, by evidence that would have shown every cause of the policy"
    return NOT_DETERMINED, "the evidence neither convicts nor would have shown every cause of the policy"


def _cause_control(control: Control, facts: Facts) -> tuple[str, str]:
    mine = {cause: power for cause, power in facts.power.items() if _family(cause) in control.families}
    if facts.verdict == "inconsistent":
        named = facts.causes[0][0] if facts.causes else ""
        if _family(named) in control.families:
            return NOT_SATISFIED, f"explained best by {named}"
        return NOT_DETERMINED, "the period is convicted for something else, which would hide this"
    if facts.verdict != "consistent":
        return NOT_DETERMINED, "the period is inconclusive"
    required = [cause for cause in facts.required if _family(cause) in control.families] or list(mine)
    short = [cause for cause in required if not _enough(mine.get(cause), facts.minimum_power)]
    if not mine or short:
        return NOT_DETERMINED, f"would not have been shown: {', '.join(sorted(short)) or 'nothing measured'}"
    blind = sorted(c for c, p in mine.items() if p is not None and p < facts.minimum_power)
    but = f"; not excluded: {', '.join(blind)}" if blind else ""
    return SATISFIED, f"would have been shown: {', '.join(sorted(required))}{but}"


def _family(cause: str) -> str:
    return cause.split("/", 1)[0]


def _enough(power: float | None, minimum: float) -> bool:
    return power is not None and power >= minimum


def _billing(facts: Facts) -> tuple[str, str]:
    if facts.refuted:
        return NOT_SATISFIED, f"{facts.refuted} audit(s) contradict what the provider itself signed"
    if facts.padded:
        return NOT_SATISFIED, facts.padded
    if facts.bills and facts.verdict == "consistent":
        return SATISFIED, "bills were tested and none was contradicted"
    return NOT_DETERMINED, "no bill was tested against commitments, texts or enough earlier bills"


def _complete(facts: Facts) -> tuple[str, str]:
    if facts.doubts:
        return NOT_SATISFIED, "; ".join(facts.doubts)
    return SATISFIED, "every audit was judged, and every request in it scored"


def _calibration(facts: Facts) -> tuple[str, str]:
    if not facts.calibrated:
        return NOT_SATISFIED, "a verdict rests on no calibration profile"
    if facts.vouched:
        return SATISFIED, "every verdict rests on a profile that a trusted key signed"
    if facts.signed_profiles:
        return NOT_SATISFIED, "the policy asks for signed profiles, and one is not"
    return NOT_DETERMINED, "a profile is not signed: nobody vouches for its honest traffic"
