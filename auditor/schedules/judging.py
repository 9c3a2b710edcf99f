"""What a period comes to: its own evidence, the provider's standing, and the words for both. Pure.

The verdict on the provider, in order:

1. inconsistent, if the provider's own signatures contradict the log: no error rate is spent on that;
2. inconsistent, if the standing reaches 1/alpha, now or in an earlier period that no dispute has overturned;
3. inconclusive, if the period was not audited, something in it could not be judged, or it lacked evidence or
   power that the policy asks for;
4. consistent otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import logsumexp

from auditor.schedules.policy import EVIDENCE, Policy
from auditor.schedules.standing import Standing
from auditor.token_counts.evidence import TOKEN_COUNT

FINGERPRINT = "fingerprint"
BILL = "accounting/bill"
"""The cause of a conviction by bills: more tokens billed than were served, and nothing else done."""
_MOST_REASONS = 6


@dataclass(frozen=True, slots=True)
class Judged:
    """The end of a period.

    Attributes:
        causes: (cause, weight) of the newest conviction, by falling weight; empty where none is named.
        convicted: whether this very period's evidence convicts, rather than an earlier one's.
    """

    verdict: str
    reasons: tuple[str, ...]
    causes: tuple[tuple[str, float], ...]
    convicted: bool


def counted_log_e(document: Mapping[str, Any], policy: Policy) -> float | None:
    """Log e-value of the tests that the policy counts, bills aside; None where the audit had none of them.

    Bills have a part of alpha to themselves (`bills_part`): a verdict's own test of them knows no
    deployment's habits and accuses nobody (decision 0020). The mean over the policy's other tests, those that
    the log has no matter for counting as 0, and over the log's groups: means of e-values with weights that no
    outcome moves.
    """
    groups = [_group_log_e(group, policy) for group in document["groups"]]
    if not groups:
        return None
    log_e = float(logsumexp(groups) - math.log(len(groups)))
    return log_e if math.isfinite(log_e) else None


def _group_log_e(group: Mapping[str, Any], policy: Policy) -> float:
    by_name: dict[str, list[float]] = {}
    for evidence in group["evidence"]:
        value = math.log(evidence["e_value"]) if evidence["e_value"] > 0.0 else -math.inf
        by_name.setdefault(kind_of(evidence["name"]), []).append(value)
    counts = [name for name in policy.counts if name != TOKEN_COUNT]
    known = [by_name[name] for name in counts if name in by_name and group["profile"] is not None]
    means = [float(logsumexp(values)) - math.log(len(values)) for values in known]
    return float(logsumexp(means) - math.log(len(counts))) if means else -math.inf


def bills_part(policy: Policy) -> float:
    """The part of alpha that bills have: that of one test among those that count."""
    return (TOKEN_COUNT in policy.counts) / len(policy.counts)


def bills_said(policy: Policy, standing: Standing) -> dict[str, Any]:
    """What became of the bills. `shown`: whether padding of every response would have convicted."""
    test = standing.bills
    told: dict[str, Any] = {"since": test.since, "first": test.first, "responses": test.responses}
    told |= {"beyond": test.beyond, "allowed": test.allowed}
    shown = test.most + math.log(bills_part(policy)) >= -math.log(policy.alpha)
    return told | {
        "log_e": standing.by_bills,
        "accuse": standing.accuses_by_bills(policy.alpha),
        "shown": shown,
    }


def kind_of(name: str) -> str:
    """How a policy calls a test; kinds of activation fingerprints have one name."""
    return name if name in EVIDENCE or ":" not in name else FINGERPRINT


def refuted(document: Mapping[str, Any]) -> bool:
    """Whether a group is convicted by what the provider itself signed."""
    return any(
        group["verdict"] == "inconsistent" and group["e_value"] * group["alpha"] < 1.0
        for group in document["groups"]
    )


def judge_period(
    policy: Policy,
    standing: Standing,
    document: Mapping[str, Any] | None,
    *,
    why_none: str = "",
    bad_lines: int = 0,
    still_accused: bool = False,
    accumulated: Sequence[tuple[str, float]] = (),
) -> Judged:
    """Judge.

    Args:
        document: the audit's verdict, `auditor.result/v1` without traces; None where there is none.
        why_none: why not.
        bad_lines: lines of the period's logs that nobody could read.
        still_accused: an earlier period convicted and no dispute has overturned it.
        accumulated: what explains periods that convict only together.
    """
    causes = () if document is None else causes_of(document)
    if document is not None and refuted(document):
        said = "the provider's own signatures contradict its log"
        return Judged("inconsistent", (said, *document["reasons"][:_MOST_REASONS]), causes, convicted=True)
    if standing.accuses(policy.alpha):
        named, why = _accused(policy, standing, causes or tuple(accumulated))
        return Judged("inconsistent", why, named, convicted=True)
    if still_accused:
        return Judged("inconsistent", ("an earlier period convicted",), (), convicted=False)
    reasons = tuple(_doubts(policy, document, why_none, bad_lines))
    return Judged("inconclusive" if reasons else "consistent", reasons, (), convicted=False)


def _accused(
    policy: Policy, standing: Standing, causes: tuple[tuple[str, float], ...]
) -> tuple[tuple[tuple[str, float], ...], tuple[str, ...]]:
    """Causes and reasons of what accuses: replays, bills, or both, which then share the weight."""
    said: list[str] = []
    replays, bills = standing.accuses_by_replay(policy.alpha), standing.accuses_by_bills(policy.alpha)
    if replays:
        said.append(
            f"the evidence since period {standing.strongest} reaches 1/alpha in the provider's standing"
        )
    if bills:
        test = standing.bills
        said.append(
            f"{test.beyond} of {test.responses} responses since period {test.since} bill more than "
            f"{test.allowed} tokens beyond their ids and texts, which the "
            f"first {test.first} of the provider's do not explain"
        )
    part = 1.0 / len(said)
    named = [(cause, weight * part) for cause, weight in causes if replays]
    named += [(BILL, part)] * bills
    return tuple(sorted(named, key=lambda item: (-item[1], item[0]))), tuple(said)


def causes_of(document: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    """(cause, weight) over an audit's convicted groups, by falling weight; each group counts alike."""
    convicted = [g for g in document["groups"] if g["verdict"] == "inconsistent"]
    weights: dict[str, float] = {}
    for group in convicted:
        for named in group["diagnosis"]:
            share = named["weight"] / len(convicted)
            weights[named["cause"]] = weights.get(named["cause"], 0.0) + share
    return tuple(sorted(weights.items(), key=lambda item: (-item[1], item[0])))


def _doubts(
    policy: Policy, document: Mapping[str, Any] | None, why_none: str, bad_lines: int
) -> Sequence[str]:
    found = []
    if bad_lines:
        found.append(f"{bad_lines} lines of the logs could not be read")
    if document is None:
        return [*found, why_none]
    if document["verdict"] != "consistent":
        found += document["reasons"][:_MOST_REASONS] or [f"the audit is {document['verdict']}"]
    if document["errors"]:
        found.append(f"{len(document['errors'])} requests of the sample could not be read")
    have = {kind_of(e["name"]) for group in document["groups"] for e in group["evidence"]}
    missing = [name for name in policy.evidence if name not in have]
    if missing:
        found.append(f"the policy asks for evidence that the period has not: {', '.join(missing)}")
    weak = [name for name in policy.must_detect if not _shown(document, name, policy.minimum_power)]
    if weak and document["verdict"] == "consistent":
        found.append(f"power below {policy.minimum_power:g} against {', '.join(weak)}")
    return found


def _shown(document: Mapping[str, Any], cause: str, minimum: float) -> bool:
    """Whether every group's sample could have caught it, groups whose traffic cannot show it aside."""
    powers = [
        d["power"]
        for group in document["groups"]
        for d in group["detectable"] or ()
        if d["cause"] == cause and d["power"] is not None
    ]
    return bool(powers) and min(powers) >= minimum
