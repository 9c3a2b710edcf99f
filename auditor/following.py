"""A log that is still being written: evidence after every request, so that a conviction need not wait.

The e-value may be looked at after each request (`evidence.py`), so stopping at the first one that convicts
costs no error rate. What a growing log does change is the sharing of alpha: how many recipes it will name is
not known when the first is judged. So the k-th recipe to appear is judged at alpha * 6 / (pi^2 k^2)
(`ledger.py`). And a test may join while it grows, at the first request with a filter or a fingerprint, which
changes the weights of all: between two such moments they are fixed, so each stretch may spend its share.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from auditor.gathering import Tally, fused_log_e, gather_evidence
from auditor.ledger import Ledger
from auditor.noise_model import F64, request_log_likelihood
from auditor.profile import Profile
from auditor.replay import Scored

Group = tuple[str | None, str]
"""Provider recipe and score family."""

_POLL_SECONDS = 0.5


def until_idle(
    seconds: float | None, *, sleep: Callable[[float], None] = time.sleep
) -> Callable[[bool], bool]:
    """What to do at the end of a growing file: wait a little and look again.

    Args:
        seconds: without anything new after which the file counts as ended; None waits until interrupted.

    Returns:
        A function of whether anything came since the last call; false when the file has ended.
    """
    waited = 0.0

    def more(came: bool) -> bool:
        nonlocal waited
        waited = 0.0 if came else waited + _POLL_SECONDS
        if seconds is not None and waited >= seconds:
            return False
        try:
            sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            return False
        return True

    return more


@dataclass
class _Seen:
    level: float
    profile: Profile | None
    tally: Tally = field(default_factory=Tally)
    audited: F64 | float = 0.0


class Watch:
    """Running evidence of a log's groups.

    Args:
        alpha: false-alarm rate of the whole log, however many recipes it comes to name.
        profile_of: the null of a group, None where there is none.
        on_evidence: called after each request with a group's log e-value, the request's output tokens, and
            the alpha at which the group is judged.
    """

    def __init__(
        self,
        alpha: float,
        profile_of: Callable[[Group], Profile | None],
        on_evidence: Callable[[float, int, float], None],
    ) -> None:
        self._ledger, self._profile_of, self._on_evidence = Ledger(alpha), profile_of, on_evidence
        self._groups: dict[Group, _Seen] = {}

    def level(self, group: Group) -> float:
        """The alpha of a group, from its first request on."""
        if group not in self._groups:
            self._ledger, entry = self._ledger.opened(f"{group[0]} ({group[1]})")
            profile = self._profile_of(group)
            self._groups[group] = _Seen(entry.alpha / _stretches(profile), profile)
        return self._groups[group].level

    def convicts(self, group: Group, scored: Scored) -> bool:
        """Whether a group's evidence convicts with one more request."""
        level = self.level(group)
        seen = self._groups[group]
        if seen.profile is None or scored.counts is None:
            return False
        seen.tally.add(scored, seen.profile)
        seen.audited = seen.audited + request_log_likelihood(scored.counts)
        log_e = fused_log_e(gather_evidence(seen.tally, seen.profile, seen.audited))
        self._on_evidence(log_e, scored.counts.tokens, level)
        return log_e >= -math.log(level)


def _stretches(profile: Profile | None) -> int:
    """Between how many moments the weights of a group's tests are fixed."""
    return 1 if profile is None else 1 + bool(profile.filtered) + len(profile.fingerprints)
