"""Which requests of a log to audit when the budget does not reach for all. Pure.

Two parts, both in an order that a key decides:

1. *At random.* Requests in the order of a keyed hash, until a tenth of the budget is spent: whatever the
   rule below overlooks, no kind of request is out of reach.
2. *By promise.* The others by weighted sampling without replacement (Efraimidis and Spirakis, Information
   Processing Letters 97, 2006), until the budget is spent. A request's weight is the context it may reach,
   prompt plus `max_tokens` (many deviations - evicted caches, skipped layers, truncated context - are exact
   until a sequence is long), halved if it is greedy (noise, seed and temperature cannot show there).

**Why the verdict stays valid.** For every honest noise the verdict's e-value is at most an average of
products with one factor for each request, and each factor has expectation at most 1 given everything known
before that request was *generated*. So whatever
picks requests may use only what the provider's draws cannot have moved: the weights are functions of the
prompt and of the parameters the client sent, never of the output, its length or its evidence. Output
lengths enter in one place, as the moment at which the budget is spent; that is a stopping rule over requests
already picked, and e-values hold at any stopping time. The key is independent of all of it.

**Why it cannot be gamed.** The key must be unknown until the provider has handed over its log (or committed
to it): a provider that knows it can behave on the requests that will be picked. `audit verify` draws one
afterwards by itself; a key given with `--selection-seed` is recorded as given, and whoever gives it answers
for when it was drawn (a public beacon after the commitment, say). Every request has a positive chance.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from auditor.errors import OptionError
from auditor.trace import Trace

LEAST_AT_RANDOM = 0.1
"""Share of the budget that is spent without looking at weights."""

RULE = "context-weighted/v1"
_GREEDY = 0.5  # weight of a request that draws nothing, against one that samples
_USUAL_TOKENS = 256  # what a request without max_tokens may come to; only ratios of weights matter


@dataclass(frozen=True, slots=True)
class Candidate:
    """One request of the log: its place, an identity for the hash, its cost and its weight.

    Attributes:
        tokens: output tokens, what the budget counts; a quarter of the characters where no ids were logged.
        weight: > 0, from what was fixed before the request was generated.
    """

    place: int
    identity: str
    tokens: int
    weight: float


@dataclass(frozen=True, slots=True)
class Selection:
    """What was audited, and how it was picked; enough to pick again.

    Attributes:
        seed: the key. seed_given: False when it was drawn at random after the log was in hand.
        at_random, by_weight: requests picked by each part.
    """

    rule: str
    budget: int
    seed: str
    seed_given: bool
    random_share: float
    at_random: int
    by_weight: int
    population_traces: int
    population_tokens: int


def weight_of(trace: Trace) -> float:
    """Promise of a request, from its prompt and parameters alone."""
    prompt = len(trace.prompt_token_ids or ()) or _words(trace)
    reach = prompt + (trace.sampling.max_tokens or _USUAL_TOKENS)
    return max(1.0, float(reach)) * (_GREEDY if trace.sampling.greedy else 1.0)


def _words(trace: Trace) -> int:
    """Rough prompt length where no ids were logged."""
    text = trace.prompt_text or ""
    for message in trace.messages or ():
        text += str(message.get("content") or "")
    return len(text) // 4


def candidate_of(place: int, trace: Trace) -> Candidate:
    """A trace as a candidate."""
    tokens = len(trace.output_token_ids or ()) or max(1, len(trace.text or "") // 4)
    return Candidate(place, trace.raw_digest, tokens, weight_of(trace))


def select(
    candidates: Sequence[Candidate], budget: int, seed: str, *, random_share: float = LEAST_AT_RANDOM
) -> tuple[frozenset[int], frozenset[int]]:
    """Pick requests until about `budget` output tokens are spent.

    Returns:
        Places picked at random, and places picked by weight; disjoint.

    Raises:
        OptionError: a budget below 1, or a random share below a tenth or above 1.
    """
    if budget < 1:
        raise OptionError(f"a budget of {budget} tokens", where="--budget")
    if not LEAST_AT_RANDOM <= random_share <= 1.0:
        raise OptionError(f"a random share of {random_share} is outside [{LEAST_AT_RANDOM}, 1]")
    at_random, spent = _spend(candidates, lambda c: uniform(seed, "random", c), random_share * budget, 0)
    rest = [c for c in candidates if c.place not in at_random]
    by_weight, _ = _spend(rest, lambda c: -math.log(uniform(seed, "weight", c)) / c.weight, budget, spent)
    return at_random, by_weight


def _spend(
    candidates: Iterable[Candidate], rank: Callable[[Candidate], float], budget: float, spent: int
) -> tuple[frozenset[int], int]:
    """Take candidates by rising rank until `budget` is reached."""
    taken = set()
    for candidate in sorted(candidates, key=lambda c: (rank(c), c.place)):
        if spent >= budget:
            break
        taken.add(candidate.place)
        spent += candidate.tokens
    return frozenset(taken), spent


def uniform(seed: str, purpose: str, candidate: Candidate) -> float:
    """A number in (0, 1) that only the key decides, by SHA-256."""
    text = f"auditor selection {purpose}\n{seed}\n{candidate.place}\n{candidate.identity}"
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11
    return (number + 0.5) / 2.0**53
