"""Which of a period's new requests are audited: as many as the plan needs, picked by a key drawn afterwards.

1. The population is every request of the provider in logs that no earlier period of it has looked into, less
   those that an earlier period audited, word for word.
2. The plan (`planning.py`) says how many output tokens the policy's power takes at the period's own alpha;
   the policy's budget is the limit.
3. `selection.py` picks them by the slot's seed, which was drawn once the logs were in hand and stored.

Given the logs, the seed and the profile the sample is a function: whoever draws it again gets the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from auditor.errors import AuditError
from auditor.log_checks import content_digest, request_digest
from auditor.planning import plan
from auditor.power import can_show
from auditor.profile import Profile, ProfileKey
from auditor.replay import family_of, mode_of
from auditor.reports.rows import Sample
from auditor.schedules.policy import Policy
from auditor.selection import RULE, Candidate, candidate_of, select
from auditor.trace import Trace
from auditor.trace_format import trace_to_line

FindProfile = Callable[[ProfileKey], Profile | None]
Logs = Callable[[], Iterable[Trace | AuditError]]
Kind = tuple[str | None, str, str]
"""Provider recipe, score family and mode of sampling."""

ROOM = 1.25
"""Tokens drawn for each that the plan needs: simulated powers err, and requests come whole."""
ALL = "all"


@dataclass(slots=True)
class Population:
    """The provider's new requests.

    Attributes:
        contents: what makes each request the same as another, by its place.
        kinds: output tokens of each kind.
        repeated: requests that were there before, word for word.
        bad_lines: lines of the logs that nobody could read.
    """

    candidates: list[Candidate] = field(default_factory=list)
    contents: dict[int, bytes] = field(default_factory=dict)
    kinds: Counter[Kind] = field(default_factory=Counter)
    repeated: int = 0
    bad_lines: int = 0

    @property
    def tokens(self) -> int:
        """Output tokens."""
        return sum(candidate.tokens for candidate in self.candidates)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A sample: the log to audit, the contents that are in it, and how it came about."""

    log: bytes
    contents: tuple[bytes, ...]
    sample: Sample
    sampled_tokens: int


def population_of(logs: Logs, provider: str, policy: Policy, taken: Collection[bytes]) -> Population:
    """Read the logs once.

    Args:
        logs: reads them, each time in the same order.
        taken: contents that earlier periods audited.
    """
    found, seen = Population(), set[bytes]()
    for place, item in enumerate(logs()):
        if isinstance(item, AuditError):
            found.bad_lines += 1
        elif is_of(item, provider, policy):
            content = content_digest(item) if item.seed is not None else request_digest(item)
            if content in taken or content in seen:
                found.repeated += 1
                continue
            seen.add(content)
            candidate = candidate_of(place, item)
            found.candidates.append(candidate)
            found.contents[place] = content
            recipe = item.engine.recipe or policy.log_engine_recipe
            found.kinds[recipe, family_of(item), mode_of(item)] += candidate.tokens
    return found


def is_of(trace: Trace, provider: str, policy: Policy) -> bool:
    """Whether a request counts as the provider's."""
    return trace.provider == provider or (trace.provider is None and policy.log_unnamed)


def planned_tokens(
    kinds: Counter[Kind], policy: Policy, alpha: float, find: Callable[[Kind], Profile | None]
) -> int | None:
    """Output tokens that the policy's power takes, kind by kind; None where no plan can be made.

    A kind that no profile measured, or a cause that its traffic cannot show, needs whatever there is.
    """
    total = 0.0
    for kind, tokens in kinds.items():
        profile, mode = find(kind), kind[2]
        if profile is None:
            return None
        measured = [c for c in policy.must_detect if _measures(profile, c, mode)]
        if not measured:
            return None
        rows = plan(profile, causes=measured, alpha=alpha, power=policy.minimum_power, mode=mode).rows
        total += min(float(tokens), ROOM * max(row.tokens for row in rows))
    return math.ceil(total)


def _measures(profile: Profile, cause: str, mode: str) -> bool:
    deviated = profile.deviations.get(cause)
    return deviated is not None and bool(deviated.requests.get(mode)) and can_show(cause, mode)


def draw(logs: Logs, population: Population, budget: int, seed: str) -> Drawn:
    """Pick and copy: a second pass over the logs."""
    places = frozenset(population.contents)
    method = ALL
    if population.tokens > budget:
        at_random, by_weight = select(population.candidates, budget, seed)
        places, method = at_random | by_weight, RULE
    lines = [
        trace_to_line(item)
        for place, item in enumerate(logs())
        if place in places and not isinstance(item, AuditError)
    ]
    chosen = [candidate for candidate in population.candidates if candidate.place in places]
    return Drawn(
        b"".join(lines),
        tuple(population.contents[candidate.place] for candidate in chosen),
        Sample(len(population.candidates), len(chosen), method, seed if method != ALL else ""),
        sum(candidate.tokens for candidate in chosen),
    )
