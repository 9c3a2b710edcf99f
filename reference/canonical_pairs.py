"""Which tokens may stand side by side in a canonical byte-pair encoding.

A sequence of byte-pair tokens is what the encoder makes of its text if and only if every adjacent pair is
(up to the pre-tokenizer's boundaries, which the encoder itself has to judge): "Canonical Autoregressive
Generation", arXiv 2506.06446, and the pair test of arXiv 2506.14123. A pair (a, b) is not canonical when,
while a and b are built by their own merges, a merge across the border comes first. Only pieces on a's right
edge and on b's left edge ever stand at the border, each from the merge that made it until the merge that
consumes it; so for every piece x of a's edge and every merge (x, y) it is enough to look up the tokens that
have y on their left edge. Nothing is encoded.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from auditor.errors import ModelUnsupportedError

if TYPE_CHECKING:
    from auditor.reference.tokenizer import Tokenizer

_NEVER = 1 << 62
Edge = tuple[tuple[int, int, int], ...]
"""(piece, rank of the merge that made it, rank of the merge that consumes it), the token itself first."""


@dataclass(frozen=True, eq=False)
class CanonicalPairs:
    """The merges of a tokenizer, arranged by what stands at a border.

    Attributes:
        size: ids.
    """

    size: int
    _right: Mapping[int, Edge]
    _merges_from: Mapping[int, Sequence[tuple[int, int]]]
    _left_of: Mapping[int, Sequence[tuple[int, int, int]]]
    _cache: dict[int, frozenset[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> CanonicalPairs:
        """Read a byte-pair tokenizer's merges.

        Raises:
            ModelUnsupportedError: it is not one.
        """
        model = json.loads(tokenizer.backend.to_str())["model"]
        if model.get("type") != "BPE" or model.get("dropout"):
            raise ModelUnsupportedError(
                f"canonical pairs of a {model.get('type')} tokenizer are not known",
                where=str(tokenizer.directory),
                fix="byte-pair tokenizers without dropout have them",
            )
        pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        vocabulary = model["vocab"]
        merges = [
            (vocabulary[left], vocabulary[right], vocabulary[left + right])
            for left, right in pairs
            if left in vocabulary and right in vocabulary and left + right in vocabulary
        ]
        return cls.of_merges(merges, max(tokenizer.vocab_size, max(vocabulary.values()) + 1))

    @classmethod
    def of_merges(cls, merges: Sequence[tuple[int, int, int]], size: int) -> CanonicalPairs:
        """From (left, right, merged) ids by rising rank."""
        made: dict[int, tuple[int, int, int]] = {}
        merges_from: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for rank, (left, right, whole) in enumerate(merges):
            made.setdefault(whole, (left, right, rank))
            merges_from[left].append((right, rank))
        left_of: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        right_edges = {}
        for token in range(size):
            right_edges[token] = _edge(token, made, side=1)
            for piece, born, gone in _edge(token, made, side=0):
                left_of[piece].append((token, born, gone))
        return cls(size, right_edges, merges_from, left_of)

    def forbidden_after(self, token: int) -> frozenset[int]:
        """Ids that never follow `token` in a canonical sequence."""
        known = self._cache.get(token)
        if known is None:
            known = self._cache[token] = frozenset(
                other
                for x, x_born, x_gone in self._right.get(token, ())
                for y, rank in self._merges_from.get(x, ())
                for other, y_born, y_gone in self._left_of.get(y, ())
                if _crosses(rank, x_born, x_gone, y_born, y_gone)
            )
        return known

    def allows(self, token: int, other: int) -> bool:
        """Whether `other` may follow `token`."""
        return other not in self.forbidden_after(token)

    def refused(self, ids: Sequence[int]) -> list[int]:
        """Places i of a sequence where ids[i], ids[i + 1] is no canonical pair."""
        return [i for i in range(len(ids) - 1) if not self.allows(ids[i], ids[i + 1])]


def _edge(token: int, made: Mapping[int, tuple[int, int, int]], side: int) -> Edge:
    pieces = []
    gone = _NEVER
    while True:
        parts = made.get(token)
        born = -1 if parts is None else parts[2]
        pieces.append((token, born, gone))
        if parts is None:
            return tuple(pieces)
        token, gone = parts[side], born


def _crosses(rank: int, x_born: int, x_gone: int, y_born: int, y_gone: int) -> bool:
    """Whether the merge across fires: both pieces are there, and neither is consumed before.

    The lowest rank goes first and, of equal ranks, the leftmost: x's own consumption lies to the left of the
    border, so it wins a tie; y's lies to the right, so it loses one.
    """
    return max(x_born, y_born) < rank < x_gone and rank <= y_gone


@lru_cache(maxsize=8)
def canonical_pairs(tokenizer: Tokenizer) -> CanonicalPairs:
    """A tokenizer's pairs, made once.

    Raises:
        ModelUnsupportedError: as `CanonicalPairs.of`.
    """
    return CanonicalPairs.of(tokenizer)
