"""Billing for tokens that were never generated: ways to inflate the hidden part of a response.

Each attack turns honest hidden tokens into those that the provider commits to, or leaves them and cheats
around the commitment. The answer stays the honest one. `audit verify` has no seam for these, since nothing
else was run: they are played by whoever makes committed traces (tests/proofs/inflation.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from auditor.errors import OptionError
from auditor.reference.tokenizer import Tokenizer

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Served:
    """What an inflating provider has at hand.

    Attributes:
        hidden: honest hidden tokens.
        block: size of the commitment's blocks.
        others: (prompt, hidden tokens) of other requests.
        draft: a small model: (prefix, count) -> continuation of up to count tokens; None where there is none.
    """

    prompt: Ids
    hidden: Ids
    visible: Ids
    tokenizer: Tokenizer
    block: int
    others: Sequence[tuple[Ids, Ids]] = ()
    draft: Callable[[Ids, int], Ids] | None = None


Fill = Callable[[Served, int, random.Random], Ids]
"""(what was served, tokens to add, random source) -> all hidden tokens that are committed to."""


@dataclass(frozen=True, slots=True)
class Inflation:
    """One way to bill more hidden tokens than were generated.

    Attributes:
        name: `accounting/variant`.
        fill: makes the tokens that are committed to.
        counts_only: the tree stays honest and only the bill grows.
        forges_embeddings: blocks carry the embeddings of honest text instead of their own.
        late: the filler is invented, and committed to, after the answer.
    """

    name: str
    gain: str
    source: str
    fill: Fill
    counts_only: bool = False
    forges_embeddings: bool = False
    late: bool = False

    def inflate(self, served: Served, rate: float, seed: int) -> Ids:
        """Hidden tokens with about `rate` times as many added.

        Raises:
            OptionError: the attack needs a small model or other requests, and there are none.
        """
        extra = max(1, round(rate * len(served.hidden)))
        return self.fill(served, extra, random.Random(seed))  # noqa: S311  # an attacker's, reproducible


def _nothing(served: Served, extra: int, source: random.Random) -> Ids:
    del extra, source
    return served.hidden


def _random_vocabulary(served: Served, extra: int, source: random.Random) -> Ids:
    return served.hidden + _garbage(served, extra, source)


def _garbage(served: Served, count: int, source: random.Random) -> Ids:
    special = served.tokenizer.special_ids
    ordinary = [token for token in range(served.tokenizer.vocab_size) if token not in special]
    return tuple(source.choices(ordinary, k=count))


def _shuffled_own(served: Served, extra: int, source: random.Random) -> Ids:
    filler: list[int] = []
    while len(filler) < extra:
        filler += source.sample(served.hidden, len(served.hidden))
    return served.hidden + tuple(filler[:extra])


def _copied_blocks(served: Served, extra: int, source: random.Random) -> Ids:
    size, filler = served.block, list[int]()
    starts = range(0, max(1, len(served.hidden) - size + 1), size)
    while len(filler) < extra:
        start = source.choice(starts)
        filler += served.hidden[start : start + size]
    return served.hidden + tuple(filler[:extra])


def _same_domain(served: Served, extra: int, source: random.Random) -> Ids:
    """Reasoning of the requests whose prompts are most alike."""
    if not served.others:
        raise OptionError("splicing another request's trace needs other requests")
    own = set(served.prompt)

    def likeness(other: tuple[Ids, Ids]) -> float:
        return len(own & set(other[0])) / len(own | set(other[0]))

    alike = sorted(served.others, key=likeness, reverse=True)[:8]
    source.shuffle(alike)
    filler: list[int] = []
    turn = 0
    while len(filler) < extra:
        filler += alike[turn % len(alike)][1]
        turn += 1
    return served.hidden + tuple(filler[:extra])


def _small_model(served: Served, extra: int, source: random.Random) -> Ids:
    del source
    if served.draft is None:
        raise OptionError("small-model filler needs a small model")
    return served.hidden + served.draft(served.prompt + served.hidden, extra)[:extra]


def _tail_garbage(served: Served, extra: int, source: random.Random) -> Ids:
    """Each block begins with true tokens and ends with garbage: what a truncating embedder never sees."""
    keep = max(1, round(served.block * len(served.hidden) / (len(served.hidden) + extra)))
    keep = min(keep, served.block - 1)
    tokens: list[int] = []
    for start in range(0, len(served.hidden), keep):
        tokens += served.hidden[start : start + keep]
        tokens += _garbage(served, served.block - keep, source)
    return tuple(tokens)


def _splits(served: Served, extra: int, source: random.Random) -> Ids:
    """The published heuristic: the highest id that can be split, into parts whose smaller id is the largest.

    Stops early where nothing can be split any more.
    """
    del source
    tokens = list(served.hidden)
    for _ in range(extra):
        place = max(
            (i for i, token in enumerate(tokens) if halves(served.tokenizer, token) is not None),
            key=lambda i: tokens[i],
            default=None,
        )
        if place is None:
            break
        tokens[place : place + 1] = halves(served.tokenizer, tokens[place]) or ()
    return tuple(tokens)


@lru_cache(maxsize=65536)
def halves(tokenizer: Tokenizer, token: int) -> tuple[int, int] | None:
    """Two ordinary tokens that spell one."""
    spelling = tokenizer.backend.id_to_token(token)
    if token in tokenizer.special_ids or spelling is None:
        return None
    best: tuple[int, int] | None = None
    for cut in range(1, len(spelling)):
        left, right = (tokenizer.backend.token_to_id(part) for part in (spelling[:cut], spelling[cut:]))
        if left is not None and right is not None and (best is None or min(left, right) > min(best)):
            best = (left, right)
    return best


_COIN = "Sun et al., CoIn, arXiv 2505.13778"
_OVERCHARGING = "Is Your LLM Overcharging You?, arXiv 2505.21627 (heuristic misreporting)"

INFLATIONS: Mapping[str, Inflation] = {
    attack.name: attack
    for attack in (
        Inflation(
            "accounting/naive-count", "a larger number costs nothing", _COIN, _nothing, counts_only=True
        ),
        Inflation("accounting/random-vocabulary", "filler without any compute", _COIN, _random_vocabulary),
        Inflation("accounting/shuffled-own", "filler with the right words", _COIN, _shuffled_own),
        Inflation(
            "accounting/copied-blocks", "filler that embeds like reasoning", "coin.md 6", _copied_blocks
        ),
        Inflation(
            "accounting/same-domain",
            "another user's real reasoning, already paid for",
            "coin.md 6",
            _same_domain,
        ),
        Inflation(
            "accounting/small-model",
            "fluent filler at a fraction of the cost",
            "coin.md 1.6, C3",
            _small_model,
        ),
        Inflation(
            "accounting/tail-garbage",
            "hides behind embedders that cut texts",
            "coin.md 1.6, C4",
            _tail_garbage,
        ),
        Inflation("accounting/splits", "the same text in more tokens", _OVERCHARGING, _splits),
        Inflation(
            "accounting/forged-embeddings",
            "any filler, behind the embeddings of honest text",
            "coin.md 1.6, C2; Token Inflation, arXiv 2605.30040",
            _same_domain,
            forges_embeddings=True,
        ),
        Inflation(
            "accounting/late-commit",
            "filler made to fit an answer that is already known",
            "coin.md 7, 3",
            _same_domain,
            late=True,
        ),
    )
}
