"""A tree of guesses about the tokens that follow, as every drafter hands it to the engine.

Invariant: a node stands behind its parent in the order of nodes, and no two children of a parent are the same
token, so that a walk along the chosen tokens is one path from the root.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

ROOT = -1
"""Parent of first guesses: the newest token of the sequence, which is certain."""


@dataclass(frozen=True)
class DraftTree:
    """Guessed tokens.

    Attributes:
        tokens: ids. parents: of each node the number of another before it, or `ROOT`.

    Raises:
        ValueError: of another shape than the invariant says.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.parents):
            raise ValueError(f"{len(self.tokens)} tokens and {len(self.parents)} parents")
        if any(not ROOT <= parent < node for node, parent in enumerate(self.parents)):
            raise ValueError("a node stands before its parent")
        if len(self._children) != len(self.tokens):
            raise ValueError("two children of a node are the same token")

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def chain(cls, tokens: Sequence[int]) -> DraftTree:
        """Return the tree without branches."""
        return cls(tuple(tokens), tuple(range(-1, len(tokens) - 1)))

    @property
    def is_chain(self) -> bool:
        """Whether every node but the last has one child."""
        return self.parents == tuple(range(-1, len(self.parents) - 1))

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """How far each node is from the root; its children are at depth 1."""
        found: list[int] = []
        for parent in self.parents:
            found.append(1 if parent == ROOT else found[parent] + 1)
        return tuple(found)

    @cached_property
    def _children(self) -> dict[tuple[int, int], int]:
        pairs = zip(self.parents, self.tokens, strict=True)
        return {(parent, token): node for node, (parent, token) in enumerate(pairs)}

    def child(self, node: int, token: int) -> int | None:
        """The child of a node (or of `ROOT`) that is this token."""
        return self._children.get((node, token))

    def path(self, node: int) -> tuple[int, ...]:
        """Tokens from the first guess to this node."""
        tokens: list[int] = []
        while node != ROOT:
            tokens.append(self.tokens[node])
            node = self.parents[node]
        return tuple(reversed(tokens))

    def ancestors(self) -> Tensor:
        """Which rows a row sees, boolean [nodes + 1, nodes + 1]; the root's is row 0, node n's n + 1."""
        if self.is_chain:
            return _chain(len(self) + 1)
        seen = np.eye(len(self) + 1, dtype=np.bool_)
        for node, parent in enumerate(self.parents, start=1):
            seen[node] |= seen[parent + 1]
        return torch.from_numpy(seen)

    def pruned(self, vocabulary: int, depth: int, nodes: int) -> DraftTree:
        """What can be verified: ids of the vocabulary, so deep at most, the first so many of them."""
        if len(self) <= nodes and max(self.depths, default=0) <= depth and self._within(vocabulary):
            return self
        number: dict[int, int] = {ROOT: ROOT}
        tokens: list[int] = []
        parents: list[int] = []
        for node, (token, parent) in enumerate(zip(self.tokens, self.parents, strict=True)):
            fits = 0 <= token < vocabulary and self.depths[node] <= depth and len(tokens) < nodes
            if fits and parent in number:
                number[node] = len(tokens)
                tokens.append(token)
                parents.append(number[parent])
        return DraftTree(tuple(tokens), tuple(parents))

    def _within(self, vocabulary: int) -> bool:
        return all(0 <= token < vocabulary for token in self.tokens)

    def walk(self, choose: Callable[[int], int | None]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Follow what is chosen after each node, for as long as it was guessed.

        Args:
            choose: node (or `ROOT`) -> the token after it; None ends the walk there.

        Returns:
            Nodes that were guessed right, from the first on; and tokens, one more than nodes unless
            `choose` ended the walk.
        """
        node: int | None = ROOT
        nodes: list[int] = []
        tokens: list[int] = []
        while node is not None and (token := choose(node)) is not None:
            tokens.append(token)
            node = self.child(node, token)
            if node is not None:
                nodes.append(node)
        return tuple(nodes), tuple(tokens)


@lru_cache(maxsize=128)
def _chain(rows: int) -> Tensor:
    return torch.ones(rows, rows, dtype=torch.bool).tril()


EMPTY = DraftTree()
"""No guess: the step is plain decoding."""
