"""`Verdict`: evidence of a group of traces fused into one answer at a stated false-alarm rate. Pure.

Rule, in order:

0. Inconsistent, if the provider's own signatures contradict the log (`hidden_tokens/revealed.py`): more
   tokens billed than it signed, say. No noise explains that, so no error rate is spent on it.
1. Inconsistent, if the fused e-value reaches 1/alpha. An honest provider meets this with probability at
   most alpha, whatever its prompts and sampling parameters.
2. Inconclusive, if anything in the group could not be scored, or no profile fits. So a trace whose seed is
   missing can accuse (`seed_free.py`), but never acquit; a log of texts only beside a trusted deployment's
   (`comparison.py`).
3. Inconclusive, if traces contradict their own requests (`Scored.contradictions`) more often than in
   calibration.
4. Inconclusive, if a sample like this one would have caught some required deviation with power below 0.9.
5. Consistent otherwise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from auditor.errors import AuditError, FingerprintUncalibratedError
from auditor.evidence import ANY_HONEST_SCALE, margin_log_e, uncalibrated_log_e
from auditor.gathering import Evidence, Tally, fused_log_e, gather_evidence, text_evidence
from auditor.hidden_tokens.revealed import doubts, refutations
from auditor.must_detect import REQUIRED_POWER
from auditor.noise_model import F64, log_likelihoods
from auditor.power import Detectable, detection_power, enough, more_tokens
from auditor.profile import Profile
from auditor.replay import Scored
from auditor.seed_free import seed_free_evidence
from auditor.text_only import is_text_only
from auditor.token_counts.evidence import TOKEN_COUNT, count_evidence

Outcome = Literal["consistent", "inconsistent", "inconclusive"]

UNCALIBRATED = "token-difr-uncalibrated"
"""Name of the test of margins without a profile; its statistic is the share of tokens that do not match."""

_MATCH_ODDS = 0.1
_MOST_ODDS, _STRONG_ODDS = 30.0, 12.0


@dataclass(frozen=True, slots=True)
class TraceVerdict:
    """One trace's share of the evidence. `spans` are [start, end) runs of output tokens that carry it."""

    scored: Scored
    outcome: Outcome
    log_e: float
    mean_margin: float | None
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer for one group (one recipe, one score family).

    Attributes:
        log_e: log of the fused e-value; the p-value is its inverse, at most 1.
        reasons: why the verdict is inconclusive, or what the provider signed against itself.
        diagnosis: (cause, weight) by falling weight, only when inconsistent; `judge` leaves it empty, for
            causes are told apart by replaying (`diagnosis/`).
        detectable: power against each measured cause; None when the profile has no measurements.
    """

    outcome: Outcome
    alpha: float
    recipe: str | None
    log_e: float
    evidence: tuple[Evidence, ...]
    reasons: tuple[str, ...]
    diagnosis: tuple[tuple[str, float], ...]
    detectable: tuple[Detectable, ...] | None
    traces: tuple[TraceVerdict, ...]
    profile: Profile | None

    @property
    def p_value(self) -> float:
        """Probability bound of evidence this strong from an honest provider."""
        return math.exp(min(0.0, -self.log_e))


def judge(
    scored: Sequence[Scored],
    profile: Profile | None,
    *,
    alpha: float,
    why_no_profile: str = "",
    further: tuple[Evidence, ...] = (),
) -> Verdict:
    """Judge one group against its profile.

    Args:
        scored: every trace of the group, with or without scores.
        profile: None when none fits; then inconclusive for the reason given, but for `further`.
        further: evidence that rests on no profile (`comparison.py`).
    """
    recipe = scored[0].trace.recipe
    usable = [s for s in scored if s.counts is not None and s.scores is not None]
    refuted = refutations([s.trace for s in scored])
    reasons = (*refuted, *_problems(scored), *doubts([s.trace for s in scored]))
    reasons = (*reasons, *_fingerprint_problems(scored, profile))
    if profile is None:
        verdict = _judge_uncalibrated(scored, usable, recipe, (*reasons, why_no_profile), alpha, further)
        return replace(verdict, outcome="inconsistent") if refuted else verdict
    grids = log_likelihoods(s.counts for s in usable if s.counts is not None)
    unseeded = [s.seed_free for s in scored if s.seed_free is not None and not is_text_only(s.trace)]
    evidence = gather_evidence(Tally.of(usable, profile), profile, grids.sum(axis=0)) if usable else ()
    if unseeded:
        found = seed_free_evidence(unseeded, profile.calibration)
        evidence += (
            Evidence("seed-free-surprise", found.excess, found.log_e_surprise),
            Evidence("seed-free-rank", found.distance, found.log_e_rank),
        )
        reasons += (f"without seeds, only surprise and rank of {found.used:,} tokens could be tested",)
    evidence += further
    log_e = fused_log_e(evidence)
    for shown, said in (text_evidence(scored, profile), _bills(scored, alpha)):
        evidence, reasons = evidence + shown, reasons + said
    detectable: tuple[Detectable, ...] | None = None
    tokens = tokens_by_mode(usable)
    if profile.deviations and usable:
        detectable = tuple(detection_power(profile, tokens, alpha))
    reasons = (*reasons, *_contradicted(usable, profile))
    if refuted or log_e >= -math.log(alpha):
        outcome: Outcome = "inconsistent"
    elif reasons or not usable:
        outcome = "inconclusive"
    elif detectable is None or not enough(detectable):
        outcome = "inconclusive"
        reasons = (*reasons, _too_small(detectable, more_tokens(profile, tokens, alpha)))
    else:
        outcome = "consistent"
    traces = tuple(_trace_verdicts(scored, profile, grids, alpha))
    return Verdict(outcome, alpha, recipe, log_e, evidence, reasons, (), detectable, traces, profile)


def _judge_uncalibrated(
    scored: Sequence[Scored],
    usable: Sequence[Scored],
    recipe: str | None,
    reasons: tuple[str, ...],
    alpha: float,
    further: tuple[Evidence, ...],
) -> Verdict:
    """Without a profile nothing is acquitted, and no replay convicts: see `uncalibrated_log_e`."""
    traces = tuple(TraceVerdict(s, "inconclusive", 0.0, None, ()) for s in scored)
    evidence: tuple[Evidence, ...] = ()
    if usable:
        grids = log_likelihoods(s.counts for s in usable if s.counts is not None)
        log_e = float(uncalibrated_log_e(grids.sum(axis=0)))
        tokens = sum(s.scores.evidence for s in usable if s.scores)
        missed = tokens - sum(s.scores.matched for s in usable if s.scores)
        evidence = (Evidence(UNCALIBRATED, missed / max(1, tokens), log_e),)
        if log_e >= -math.log(alpha):
            said = (
                f"no numeric noise up to {ANY_HONEST_SCALE} logits explains {missed:,} of {tokens:,} tokens "
                "that do not match: it is another model, prompt, seed or noise scheme; calibrate this recipe"
            )
            reasons = (*reasons, said)
    bills, suspect = _bills(scored, alpha)
    evidence, reasons = evidence + bills, reasons + suspect
    convicting = fused_log_e(further)
    outcome: Outcome = "inconsistent" if convicting >= -math.log(alpha) else "inconclusive"
    found = evidence + further
    return Verdict(outcome, alpha, recipe, convicting, found, reasons, (), None, traces, None)


def _bills(scored: Sequence[Scored], alpha: float) -> tuple[tuple[Evidence, ...], tuple[str, ...]]:
    """Bills against texts, where ids do not account for both: shown, and a reason to look; never fused.

    Its tolerance is nobody's measurement, and no profile knows what a deployment is in the habit of billing
    beyond the text. What convicts is `audit tokens --honest` (`token_counts/honest_bills.py`).
    """
    found = count_evidence((s.trace, s.token_count) for s in scored if s.token_count is not None)
    if found is None:
        return (), ()
    said = (
        f"{found.excess:,.1f} tokens a response are billed beyond what the claimed model takes for these "
        "texts: reason to look (audit tokens --honest)"
    )
    evidence = (Evidence(TOKEN_COUNT, found.excess, found.log_e),)
    return evidence, (said,) if found.log_e >= -math.log(alpha) else ()


def _counted(problems: Iterable[AuditError | None]) -> Counter[str]:
    """How often each was said, in order of first appearance."""
    return Counter(f"{problem.message} [{problem.code}]" for problem in problems if problem is not None)


def _problems(scored: Sequence[Scored]) -> tuple[str, ...]:
    by_text = _counted(s.problem for s in scored)
    found = [
        f"{count} of {len(scored)} traces could not be scored: {text}" for text, count in by_text.items()
    ]
    lost = [s.scores.unmodelled for s in scored if s.scores is not None and s.scores.unmodelled]
    if lost:
        found.append(
            f"{sum(lost)} output tokens of {len(lost)} traces could not be scored: "
            "they follow one that the request's grammar excludes, or its rules leave none"
        )
    unpaid = [s.bill_problem for s in scored if s.bill_problem is not None]
    if unpaid:
        said = f"{unpaid[0].where}: {unpaid[0].message} [{unpaid[0].code}]"
        found.append(
            f"{len(unpaid)} of {len(scored)} traces bill more than the log accounts for; the first, {said}"
        )
    return tuple(found)


def _contradicted(usable: Sequence[Scored], profile: Profile) -> tuple[str, ...]:
    """A reason not to acquit, unless calibration has the same habit at least as often."""
    found = [s for s in usable if s.contradictions]
    if len(found) * len(profile.honest) <= profile.contradicted * len(usable):
        return ()
    first = found[0]
    said = f"{len(found)} of {len(usable)} traces contradict their own request"
    return (f"{said}; the first, {first.trace.where}: {first.contradictions[0]}",)


def _fingerprint_problems(scored: Sequence[Scored], profile: Profile | None) -> tuple[str, ...]:
    """Fingerprints that were refused, and kinds without honest distances to hold them against."""
    by_text = _counted(s.fingerprint_problem for s in scored)
    refused = [f"fingerprints of {n} of {len(scored)} traces were refused: {t}" for t, n in by_text.items()]
    kinds = {f.kind for s in scored for f in s.fingerprints} - set(profile.fingerprints if profile else ())
    code = FingerprintUncalibratedError.code
    missing = [f"the profile has no honest distances of {kind} [{code}]" for kind in sorted(kinds)]
    return (*refused, *(missing if profile else ()))


def _too_small(detectable: Sequence[Detectable] | None, more: int | None) -> str:
    if detectable is None:
        return "the profile holds no measured deviations, so nothing can be said to be excluded"
    weak = [d for d in detectable if d.required and (d.power is None or d.power < REQUIRED_POWER)]
    causes = ", ".join(f"{d.cause} (power {d.power:.2f})" for d in weak if d.power is not None)
    if not causes:
        return "the profile did not measure every required deviation on requests sampled this way"
    needed = "no log of this size times a thousand would do"
    if more is not None:
        needed = f"about {more:,} more output tokens are needed"
    return f"too small a sample to exclude {causes}: {needed}"


def tokens_by_mode(usable: Sequence[Scored]) -> Mapping[str, int]:
    """Tokens that can speak for or against the provider, by `replay.mode_of`."""
    tokens: dict[str, int] = {}
    for s in usable:
        tokens[s.mode] = tokens.get(s.mode, 0) + (s.scores.evidence if s.scores else 0)
    return tokens


def _trace_verdicts(
    scored: Sequence[Scored], profile: Profile, grids: F64, alpha: float
) -> list[TraceVerdict]:
    """Each trace by itself; convicted alone only at alpha shared among all traces (Bonferroni)."""
    bar = -math.log(alpha) + math.log(len(scored))
    verdicts = []
    log_es = iter(margin_log_e(profile.calibration, grids).tolist() if len(grids) else ())
    for s in scored:
        if s.scores is None or s.counts is None:
            verdicts.append(TraceVerdict(s, "inconclusive", 0.0, None, ()))
            continue
        log_e = next(log_es)
        outcome: Outcome = "inconsistent" if log_e >= bar else "inconclusive"
        spans = suspicious_spans(s, profile) if s.scores.misses else ()
        verdicts.append(TraceVerdict(s, outcome, log_e, s.scores.mean_margin(profile.clip), spans))
    return verdicts


def suspicious_spans(scored: Scored, profile: Profile) -> tuple[tuple[int, int], ...]:
    """The run of tokens with the strongest evidence, if any is strong: the maximal-sum segment of scores.

    A miss adds the log-odds of its margin against the calibrated noise scale (capped); a match takes off what
    it says against a provider that shows in one token of ten. So a run would begin and end with a miss; but
    what was tampered with reaches further, by as much as the matches around still allow (`_reach`).
    """
    if scored.scores is None:
        return ()
    return flagged_spans(scored.scores.misses, scored.scores.tokens, profile.noise_scale[2])


def flagged_spans(
    missed: Sequence[tuple[int, float, float]], tokens: int, scale: float
) -> tuple[tuple[int, int], ...]:
    """`suspicious_spans` of (position, margin, slack) of the misses among so many tokens.

    Args:
        scale: of honest noise, its upper bound, logits.
    """
    misses = [(t, min(margin / scale, _MOST_ODDS)) for t, margin, _ in missed]
    best, best_run, total, start, before = 0.0, (0, 0), 0.0, 0, 0
    for t, odds in misses:
        total -= _MATCH_ODDS * (t - before)
        if total <= 0.0:
            total, start = 0.0, t
        total, before = total + odds, t + 1
        if total > best:
            best, best_run = total, (start, t + 1)
    if best <= _STRONG_ODDS:
        return ()
    first, end = best_run
    earlier = max((t + 1 for t, _ in misses if t < first), default=0)
    later = min((t for t, _ in misses if t >= end), default=tokens)
    return ((first - _reach(first - earlier), end + _reach(later - end)),)


def _reach(matches: int) -> int:
    """Median of how many of the next matches belong to the run; each takes `_MATCH_ODDS` off."""
    likelihood = np.exp(-_MATCH_ODDS * np.arange(matches + 1)).cumsum()
    return int(np.searchsorted(likelihood, 0.5 * likelihood[-1]))
