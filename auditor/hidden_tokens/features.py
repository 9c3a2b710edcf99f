"""What an auditor can tell from opened blocks without weights: text against text, all computed here.

For each block: scores of both matching heads (A: its tokens to its text, B: its text to the answer, CoIn's
parts), and eight plain features that see what the heads are blind to: copied n-grams, likeness to other
blocks, coherence with its neighbours, compressibility, how likely its tokens and pairs are in honest
reasoning, distinct tokens, likeness to the answer. A response is described by statistics over its blocks,
which do not tell their number, and by three rules that learn from no attack: the longest copied run, the
excess over the canonical tokenization, and pairs of tokens that honest reasoning does not have.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from auditor.hidden_tokens.embedders import F32, Embedder

F64 = npt.NDArray[np.float64]

NGRAM = 8
BLOCK_FEATURES = (
    *("tokens_to_block", "block_to_answer", "copied", "nearest_block", "neighbours", "compression"),
    *("unigram", "seen_bigrams", "distinct", "answer_cosine"),
)


@dataclass(frozen=True, slots=True)
class OpenedResponse:
    """What was opened of one response.

    Attributes:
        blocks: token ids of each opened block, in order.
        places: block numbers; neighbours in number are neighbours in text.
        texts: of each block.
        answer: the visible text.
        excess: tokens beyond the canonical tokenization.
        prompt: ids before the first hidden token; needed for likelihoods only.
    """

    blocks: tuple[tuple[int, ...], ...]
    places: tuple[int, ...]
    texts: tuple[str, ...]
    answer: str
    excess: int = 0
    prompt: tuple[int, ...] = ()

    @property
    def runs(self) -> list[tuple[int, ...]]:
        """Tokens of neighbouring blocks, joined."""
        found: list[tuple[int, ...]] = []
        for i, block in enumerate(self.blocks):
            if i and self.places[i] == self.places[i - 1] + 1:
                found[-1] += block
            else:
                found.append(block)
        return found

    @property
    def tokens(self) -> int:
        """Opened tokens."""
        return sum(len(block) for block in self.blocks)


@dataclass(frozen=True, slots=True)
class Vectors:
    """Embeddings of one response: of each block's tokens (mean), of each block's text, of the answer."""

    tokens: F32
    blocks: F32
    answer: F32


class Vectoriser:
    """Embeds responses; texts and tokens that it has seen are not embedded again.

    Args:
        decode: token ids -> text.
    """

    def __init__(self, embedder: Embedder, decode: Callable[[Sequence[int]], str]) -> None:
        self._embedder, self._decode = embedder, decode
        self._texts: dict[str, F32] = {}
        self._tokens: dict[int, F32] = {}

    def vectors(self, responses: Sequence[OpenedResponse]) -> list[Vectors]:
        """Vectors of each response: float32 [blocks, d], [blocks, d] and [d]."""
        self._remember(text for r in responses for text in (*r.texts, r.answer))
        self._remember_tokens({token for r in responses for block in r.blocks for token in block})
        return [
            Vectors(
                np.stack([np.mean([self._tokens[t] for t in block], axis=0) for block in r.blocks]),
                np.stack([self._texts[text] for text in r.texts]),
                self._texts[r.answer],
            )
            for r in responses
        ]

    def _remember(self, texts: Iterable[str]) -> None:
        new = sorted({text for text in texts if text not in self._texts})
        self._texts |= dict(zip(new, self._embedder.embed(new), strict=True))

    def _remember_tokens(self, tokens: set[int]) -> None:
        new = sorted(tokens - self._tokens.keys())
        texts = [self._decode([token]) for token in new]
        self._tokens |= dict(zip(new, self._embedder.embed(texts), strict=True))


class Lexicon:
    """Unigrams and pairs of honest reasoning, add-one smoothed."""

    def __init__(self, responses: Iterable[OpenedResponse], vocabulary: int) -> None:
        self._unigrams: Counter[int] = Counter()
        self._bigrams: set[tuple[int, int]] = set()
        for response in responses:
            for block in response.blocks:
                self._unigrams.update(block)
                self._bigrams.update(pairwise(block))
        self._total = math.log(sum(self._unigrams.values()) + vocabulary)

    def log_probability(self, block: Sequence[int]) -> float:
        """Mean log-probability of a block's tokens, nats."""
        return sum(math.log(self._unigrams[t] + 1) - self._total for t in block) / len(block)

    def has(self, pair: tuple[int, int]) -> bool:
        """Whether honest reasoning has this pair of neighbours."""
        return pair in self._bigrams

    def seen_pairs(self, block: Sequence[int]) -> float:
        """Share of a block's neighbouring pairs that honest reasoning has; 1 for a single token."""
        pairs = list(pairwise(block))
        return sum(pair in self._bigrams for pair in pairs) / len(pairs) if pairs else 1.0


class MatchingHead(Protocol):
    """Scores pairs of vectors."""

    def score(self, left: F32, right: F32) -> F64:
        """Match probability of each row pair, float64 [n]."""
        ...


@dataclass(frozen=True, slots=True)
class Extractor:
    """Fitted heads and lexicon: responses to block features."""

    tokens_to_block: MatchingHead
    block_to_answer: MatchingHead
    lexicon: Lexicon

    def blocks(self, response: OpenedResponse, vectors: Vectors) -> F64:
        """`BLOCK_FEATURES` of each block, float64 [blocks, 10]."""
        answers = np.repeat(vectors.answer[None, :], len(response.blocks), axis=0)
        nearest, neighbours = _likeness(vectors.blocks, response.places)
        columns = (
            self.tokens_to_block.score(vectors.tokens, vectors.blocks),
            self.block_to_answer.score(vectors.blocks, answers),
            _copied_shares(response.blocks),
            nearest,
            neighbours,
            np.array([_compression(text) for text in response.texts]),
            np.array([self.lexicon.log_probability(block) for block in response.blocks]),
            np.array([self.lexicon.seen_pairs(block) for block in response.blocks]),
            np.array([len(set(block)) / len(block) for block in response.blocks]),
            (vectors.blocks * vectors.answer).sum(axis=1),
        )
        return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)


def pooled(blocks: F64) -> F64:
    """A response's description: mean, deviation, least and largest of each block feature, [4 * f]."""
    return np.concatenate([blocks.mean(axis=0), blocks.std(axis=0), blocks.min(axis=0), blocks.max(axis=0)])


def _likeness(blocks: F32, places: Sequence[int]) -> tuple[F64, F64]:
    cosines = np.asarray(blocks @ blocks.T, np.float64)
    count = len(blocks)
    nearest, neighbours = np.zeros(count), np.zeros(count)
    for i in range(count):
        others = [cosines[i, j] for j in range(count) if j != i]
        beside = [cosines[i, j] for j in range(count) if abs(places[i] - places[j]) == 1]
        nearest[i] = max(others, default=0.0)
        neighbours[i] = float(np.mean(beside)) if beside else (float(np.mean(others)) if others else 0.0)
    return nearest, neighbours


def _copied_shares(blocks: Sequence[Sequence[int]]) -> F64:
    """Share of each block's 8-grams that an earlier opened block has."""
    earlier: set[tuple[int, ...]] = set()
    shares = np.zeros(len(blocks))
    for i, block in enumerate(blocks):
        grams = [tuple(block[s : s + NGRAM]) for s in range(len(block) - NGRAM + 1)]
        shares[i] = sum(gram in earlier for gram in grams) / len(grams) if grams else 0.0
        earlier.update(grams)
    return shares


def _compression(text: str) -> float:
    raw = text.encode("utf-8", "replace")
    return len(zlib.compress(raw, 9)) / max(1, len(raw))


def longest_copy(response: OpenedResponse) -> int:
    """Tokens of the longest run that occurs twice, without overlap, in what was opened."""
    tokens = [token for block in response.blocks for token in block]
    low, high = 0, len(tokens) // 2
    while low < high:
        middle = (low + high + 1) // 2
        if _repeats(tokens, middle):
            low = middle
        else:
            high = middle - 1
    return low


def _repeats(tokens: Sequence[int], length: int) -> bool:
    first: dict[tuple[int, ...], int] = {}
    for start in range(len(tokens) - length + 1):
        gram = tuple(tokens[start : start + length])
        if start - first.setdefault(gram, start) >= length:
            return True
    return False


def unseen_pairs(response: OpenedResponse, lexicons: Sequence[Lexicon]) -> int:
    """Most neighbouring pairs in any block that none of the lexicons has."""
    return max(
        sum(not any(lexicon.has(pair) for lexicon in lexicons) for pair in pairwise(block))
        for block in response.blocks
    )


def rules(response: OpenedResponse, lexicons: Sequence[Lexicon]) -> Mapping[str, float]:
    """Scores of the rules that learn from no attack; larger is more suspicious.

    Args:
        lexicons: of honest responses other than those that the scores are held against.
    """
    return {
        "copied-run": float(longest_copy(response)),
        "canonical-excess": response.excess / max(1, response.tokens),
        "unseen-pairs": float(unseen_pairs(response, lexicons)),
    }
