"""What a report is made of: rows of the database, and a tally of each audit's traces. Pure.

Everything is *as of the end of the period*: an audit that was judged later was unfinished then, whatever it
is now. That is what lets the same report be made again at any time.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from auditor.reports.canonical import log_of

MOST_EXCEPTIONS = 20
"""Requests of one audit that are named one by one; all are counted."""

DONE, UNFINISHED = "done", "unfinished"


@dataclass(frozen=True, slots=True)
class Sample:
    """How an audit's requests were picked from what the provider served.

    Attributes:
        method: `all`, `uniform/v1` (each request alike), or the name of another rule.
        seed: what the draw can be done again with; empty where nothing was drawn.
    """

    population_requests: int
    sampled_requests: int
    method: str
    seed: str = ""


@dataclass(frozen=True, slots=True)
class AuditRow:
    """An audit as it stood at the end of the period. Times are microseconds since 1970 (UTC).

    Attributes:
        state: `done`, `dead`, `quarantined`, `cancelled` or `unfinished`.
        verdict: `auditor.result/v1` without traces; None unless done.
    """

    id: str
    provider: str
    submitted: int
    options: Mapping[str, Any]
    log_digest: str
    state: str
    error_code: str | None = None
    judged: int | None = None
    verdict_digest: str | None = None
    verdict: Mapping[str, Any] | None = None
    sample: Sample | None = None

    @property
    def outcome(self) -> str | None:
        """The verdict in a word."""
        return None if self.verdict is None else str(self.verdict["verdict"])

    @property
    def log_e(self) -> float:
        """Natural log of the audit's e-value; 0 without a verdict."""
        return 0.0 if self.verdict is None else log_of(float(self.verdict["e_value"]))

    @property
    def refuted(self) -> bool:
        """Whether it was convicted by the provider's own signatures: no error rate is spent on that."""
        return self.outcome == "inconsistent" and self.log_e < -log_of(float(self.verdict_alpha))

    @property
    def verdict_alpha(self) -> float:
        """The audit's own false-alarm rate."""
        return float(self.options.get("alpha", 0.001))


@dataclass(slots=True)
class TraceTally:
    """Counts over an audit's traces, and the strongest of those that convict alone."""

    requests: int = 0
    tokens: int = 0
    unscored: int = 0
    contradicted: int = 0
    committed: int = 0
    grades: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    _worst: list[tuple[float, int, Mapping[str, Any]]] = field(default_factory=list)

    def add(self, number: int, trace: Mapping[str, Any]) -> None:
        """Count one trace (`auditor.result/v1`)."""
        self.requests += 1
        self.tokens += trace.get("tokens") or 0
        self.unscored += trace.get("tokens") is None
        self.contradicted += bool(trace.get("contradictions"))
        self.committed += trace.get("commitment") is not None
        self.grades[str(trace.get("grade"))] += 1
        outcome = str(trace.get("verdict"))
        self.outcomes[outcome] += 1
        if outcome == "inconsistent":
            item = (float(trace.get("e_value") or 0.0), -number, trace)
            if len(self._worst) < MOST_EXCEPTIONS:
                heapq.heappush(self._worst, item)
            elif item[:2] > self._worst[0][:2]:
                heapq.heapreplace(self._worst, item)

    def exceptions(self) -> list[tuple[int, Mapping[str, Any]]]:
        """(number, trace) of the strongest, strongest first; of equals the earlier first."""
        ranked = sorted(self._worst, key=lambda item: item[:2], reverse=True)
        return [(-number, trace) for _, number, trace in ranked]


def tally(traces: Iterable[tuple[int, Mapping[str, Any]]]) -> TraceTally:
    """Count an audit's traces in one pass."""
    result = TraceTally()
    for number, trace in traces:
        result.add(number, trace)
    return result


@dataclass(frozen=True, slots=True)
class Scope:
    """What a report is about: one provider, or all when it is empty; [start, end) in microseconds, UTC."""

    report_id: str
    tenant_id: str
    provider: str
    start: int
    end: int
