"""`verify`: logged traces in, one result out. The main job."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from scipy.special import logsumexp

from auditor.comparison import Trusted, answers
from auditor.diagnosis import diagnose
from auditor.errors import AuditError, OptionError, ProfileExpiredError, UnusableInputError
from auditor.fingerprints.token_difr import TokenScores
from auditor.following import Group, Watch
from auditor.hidden_tokens.revealed import Revealer
from auditor.journal import Remembered, open_journal
from auditor.log_checks import counted_once, of_one_model
from auditor.merkle.keys import PublicKey
from auditor.profile import Profile, ProfileKey
from auditor.profile_trust import REFUSALS
from auditor.replay import TOGETHER, Reference, Scored, replay
from auditor.selection import LEAST_AT_RANDOM, RULE, Selection, candidate_of, select
from auditor.synchrony import Synchrony, synchrony_of
from auditor.trace import Trace
from auditor.verdict import Outcome, Verdict, judge

FindProfile = Callable[[ProfileKey], Profile | None]
Source = Callable[[], Iterable[Trace | AuditError]]


@dataclass(frozen=True, slots=True)
class Result:
    """Outcome of one `verify` call.

    Attributes:
        verdicts: one for each (recipe, score family) in the log; the whole has the worst of them.
        synchrony: of each verdict's sampled tokens, None where nothing can be said.
        errors: bad lines, in order; they make the exit status 2 unless something is inconsistent.
        selection: None when the whole log was audited.
        seconds: of the replay; naming a cause comes after it.
    """

    alpha: float
    reference: Reference
    verdicts: tuple[Verdict, ...]
    errors: tuple[AuditError, ...]
    selection: Selection | None
    seconds: float
    synchrony: tuple[Synchrony | None, ...]

    @property
    def outcome(self) -> Outcome:
        """Worst verdict of any group; inconclusive when there is none."""
        outcomes = {v.outcome for v in self.verdicts}
        if "inconsistent" in outcomes:
            return "inconsistent"
        return "consistent" if outcomes == {"consistent"} else "inconclusive"

    @property
    def log_e(self) -> float:
        """Log of the mean of the groups' e-values, itself an e-value."""
        if not self.verdicts:
            return 0.0
        return float(logsumexp([v.log_e for v in self.verdicts]) - math.log(len(self.verdicts)))

    @property
    def tokens(self) -> int:
        """Output tokens scored: those that say anything (neither forced nor unmodelled)."""
        return sum(s.evidence for s in self._scores())

    @property
    def forced(self) -> int:
        """Output tokens that the request's own rules left no choice for: no evidence."""
        return sum(s.forced for s in self._scores())

    @property
    def forbidden(self) -> int:
        """Output tokens that the request's own rules (masks, grammar) exclude."""
        return sum(len(s.forbidden) for s in self._scores())

    @property
    def matched(self) -> int:
        """Output tokens the reference would also have returned."""
        return sum(s.matched for s in self._scores())

    @property
    def outside(self) -> int:
        """Output tokens that the request's own filters exclude."""
        return sum(s.outside for s in self._scores())

    def _scores(self) -> Iterator[TokenScores]:
        return (t.scored.scores for v in self.verdicts for t in v.traces if t.scored.scores is not None)

    @property
    def exit_status(self) -> int:
        """1 inconsistent, 2 bad lines, 3 inconclusive, 0 consistent: the first that applies."""
        if self.outcome == "inconsistent":
            return 1
        if self.errors:
            return 2
        return 3 if self.outcome == "inconclusive" else 0


def verify(
    source: Source,
    reference: Reference,
    *,
    find_profile: FindProfile,
    alpha: float = 0.001,
    budget: int | None = None,
    selection_seed: str | None = None,
    journal: Path | Remembered | None = None,
    served_model: str | None = None,
    on_scored: Callable[[Scored], None] = lambda _scored: None,
    on_evidence: Callable[[float, int, float], None] | None = None,
    explain: bool = True,
    compared_with: Iterable[Trace] | None = None,
    provider_keys: Sequence[PublicKey] = (),
    now: datetime | None = None,
) -> Result:
    """Audit a log.

    Args:
        source: called for each pass over the log (two with a budget); yields traces and bad lines.
        find_profile: the calibrated null for a key, None when there is none.
        alpha: false-alarm rate of the whole result; groups share it equally.
        budget: audit about this many output tokens, requests picked as `auditor.selection` says.
        selection_seed: key of that choice, which the provider must not have known when it served the log;
            drawn at random when None. Stated in the result.
        journal: file, or anything else that remembers scores, that lets an interrupted run continue.
        served_model: what the log calls the reference, for logs of several models without digests.
        on_scored: called after each trace.
        on_evidence: for a growing log (`following.py`): called after each request as `Watch` says;
            reading ends with the first that convicts.
        explain: name the cause of a conviction, a pass over a dozen requests for each hypothesis.
        compared_with: completions of the same requests by a trusted deployment of the declared model, for a
            two-sample test (`comparison.py`); it needs no seeds and no profile.
        provider_keys: whose signatures on commitments to hidden tokens are trusted.
        now: when a profile must not have expired yet; the present when None.

    Raises:
        OptionError: alpha or budget out of range.
    """
    if not 0.0 < alpha < 1.0:
        raise OptionError(f"alpha {alpha} is outside (0, 1)", where="--alpha")
    started = time.monotonic()
    selection, chosen = (None, None) if budget is None else _choose(source, budget, selection_seed)
    errors: list[AuditError] = []
    trusted = _trusted(compared_with, reference)

    revealer = Revealer(provider_keys, reference)

    def good() -> Iterator[Trace]:
        for place, item in enumerate(source()):
            if isinstance(item, AuditError):
                errors.append(item)
            elif chosen is None or place in chosen:
                yield revealer.reveal(item)

    all_scored: list[Scored] = []
    nulls = _Nulls(reference, find_profile, now or datetime.now(UTC))
    watch = None
    if on_evidence is not None:
        watch = Watch(alpha, nulls.of, on_evidence)
    keys = {"model_digest": reference.model.digest, "reference_recipe": reference.recipe}
    with open_journal(journal, **keys) as remembered:
        for scored in _scored(good(), reference, remembered, watch):
            on_scored(scored)
            if isinstance(scored.problem, UnusableInputError):
                errors.append(scored.problem)
            else:
                all_scored.append(scored)
    seconds = time.monotonic() - started
    groups = _grouped(of_one_model(all_scored, served_model))
    level = (lambda _group: alpha / len(groups)) if watch is None else watch.level
    verdicts = tuple(
        _judge_group(members, group, nulls, level(group), trusted) for group, members in groups.items()
    )
    if explain:
        verdicts = tuple(explained(v, reference) if v.outcome == "inconsistent" else v for v in verdicts)
    synchrony = tuple(synchrony_of(verdict, _declared(verdict, reference)) for verdict in verdicts)
    return Result(alpha, reference, verdicts, tuple(errors), selection, seconds, synchrony)


def _scored(
    traces: Iterator[Trace], reference: Reference, remembered: Remembered, watch: Watch | None
) -> Iterator[Scored]:
    """Scores in order; of a log that is watched, up to the request that convicts."""
    together = TOGETHER if watch is None else 1
    for scored in counted_once(replay(traces, reference, remembered, together=together)):
        yield scored
        usable = not isinstance(scored.problem, UnusableInputError)
        if watch is not None and usable and watch.convicts(_group_of(scored), scored):
            return


def _grouped(all_scored: Iterable[Scored]) -> dict[Group, list[Scored]]:
    groups: dict[Group, list[Scored]] = {}
    for scored in all_scored:
        groups.setdefault(_group_of(scored), []).append(scored)
    return groups


def _group_of(scored: Scored) -> Group:
    return scored.trace.recipe, scored.family


@dataclass(frozen=True, slots=True)
class _Nulls:
    """Profiles as this audit may use them."""

    reference: Reference
    find_profile: FindProfile
    now: datetime

    def of(self, group: Group) -> Profile | None:
        """The null of a group; None without one that is in force."""
        profile = self._any(group)
        return None if profile is None or profile.has_expired(self.now) else profile

    def _any(self, group: Group) -> Profile | None:
        try:
            return self._found(group)
        except REFUSALS:  # `why_none` says it: other groups are judged still
            return None

    def _found(self, group: Group) -> Profile | None:
        recipe, family = group
        if recipe is None:
            return None
        key = ProfileKey(self.reference.model.digest, recipe, self.reference.recipe, family)
        return self.find_profile(key)

    def why_none(self, group: Group) -> str:
        """What to say where there is none."""
        recipe, family = group
        if recipe is None:
            return "the log does not name the provider's recipe; assert it with --engine-recipe"
        try:
            profile = self._found(group)
        except REFUSALS as refusal:
            return f"the profile of {recipe} ({family}) is not used: {refusal} [{refusal.code}]"
        if profile is not None and profile.expires is not None:
            said = f"the profile of {recipe} ({family}) expired on {profile.expires}; calibrate anew"
            return f"{said} [{ProfileExpiredError.code}]"
        return (
            f"no calibration profile for provider recipe {recipe} ({family}) "
            f"and reference recipe {self.reference.recipe}"
        )


def _trusted(compared_with: Iterable[Trace] | None, reference: Reference) -> Trusted | None:
    if compared_with is None:
        return None
    return Trusted(answers(compared_with, reference), reference, np.random.default_rng(0))


def _judge_group(
    members: Sequence[Scored], group: Group, nulls: _Nulls, alpha: float, trusted: Trusted | None
) -> Verdict:
    profile = nulls.of(group)
    why = "" if profile is not None else nulls.why_none(group)
    further, not_compared = ((), ()) if trusted is None else trusted.beside(members, alpha)
    verdict = judge(members, profile, alpha=alpha, why_no_profile=why, further=further)
    return replace(verdict, reasons=(*verdict.reasons, *not_compared))


def _declared(verdict: Verdict, reference: Reference) -> Reference:
    """The reference as the group's provider declares to run it: one policy a group."""
    return reference.declared(verdict.traces[0].scored.trace.policy)


def explained(verdict: Verdict, reference: Reference) -> Verdict:
    """The verdict with the causes that explain it best; as it is where there is nothing to replay."""
    usable = [t.scored for t in verdict.traces if t.scored.counts is not None]
    if not usable or verdict.profile is None:
        return verdict
    return replace(verdict, diagnosis=diagnose(usable, verdict.profile, _declared(verdict, reference)))


def _choose(source: Source, budget: int, seed: str | None) -> tuple[Selection, frozenset[int]]:
    """A first pass over the log: which places to audit."""
    key = secrets.token_hex(16) if seed is None else seed
    candidates = [candidate_of(n, item) for n, item in enumerate(source()) if isinstance(item, Trace)]
    at_random, by_weight = select(candidates, budget, key)
    selection = Selection(
        rule=RULE,
        budget=budget,
        seed=key,
        seed_given=seed is not None,
        random_share=LEAST_AT_RANDOM,
        at_random=len(at_random),
        by_weight=len(by_weight),
        population_traces=len(candidates),
        population_tokens=sum(c.tokens for c in candidates),
    )
    return selection, at_random | by_weight
