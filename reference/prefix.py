"""Prompts' common beginnings, computed once: a radix tree from token ids to slots of keys and values.

Invariant: the slots on the way to a node hold exactly the keys and values of the token ids on that way, so
what is found here is what a fresh forward pass would compute, bit for bit (`attention.causal`).
Source of the idea: SGLang's RadixAttention, arXiv 2312.07104.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from auditor.reference.slots import SlotKV


@dataclass(eq=False)
class _Node:
    tokens: tuple[int, ...]
    slots: Tensor
    parent: _Node | None
    used: int = 0
    children: dict[int, _Node] = field(default_factory=dict)


class PrefixTree:
    """Stored prefixes within a byte budget; the least recently used go first.

    Args:
        cache: where the keys and values are; the tree is one of the users of its slots.
        budget_bytes: of keys and values that only the tree still needs.

    Attributes:
        asked, found: tokens looked up so far, and how many of them were there.
    """

    def __init__(self, cache: SlotKV, budget_bytes: int) -> None:
        self._cache = cache
        self._budget = budget_bytes // max(cache.slot_bytes, 1)
        self._root = _Node((), torch.empty(0, dtype=torch.int64), None)
        self._clock = 0
        self.stored = 0
        self.asked = 0
        self.found = 0

    def match(self, tokens: Sequence[int], *, count: bool = True) -> Tensor:
        """Slots of the longest stored prefix of `tokens`, int64; shared with the caller until it frees them.

        Args:
            count: whether this look-up enters the hit rate.
        """
        self._clock += 1
        pieces = []
        for node, common in self._way(tokens):
            node.used = self._clock
            pieces.append(node.slots[:common])
        slots = torch.cat(pieces) if pieces else self._root.slots
        self._cache.share(slots)
        if count:
            self.asked += len(tokens)
            self.found += len(slots)
        return slots

    def insert(self, tokens: Sequence[int], slots: Tensor) -> bool:
        """Store a prefix whose keys and values lie in `slots`; False when it does not fit the budget."""
        node, position = self._descend(tokens)
        rest = tuple(tokens[position:])
        if not rest:
            return True
        if not self._make_room(len(rest), spared=node):
            return False
        self._clock += 1
        own = slots[position:].clone()
        self._cache.share(own)
        node.children[rest[0]] = _Node(rest, own, node, self._clock)
        self.stored += len(rest)
        return True

    def known(self, tokens: Sequence[int]) -> int:
        """How many of the first tokens are stored; nothing is counted, shared or kept longer for it."""
        return sum(common for _, common in self._way(tokens))

    def held(self) -> Iterator[Tensor]:
        """The slots of every node, for `SlotKV.check`."""
        yield from (node.slots for node in self._nodes())

    def _way(self, tokens: Sequence[int]) -> Iterator[tuple[_Node, int]]:
        """Nodes on the way of `tokens`, and how many tokens of each are: of all but the last, all."""
        node, position, common = self._root, 0, 0
        while position < len(tokens) and common == len(node.tokens):
            child = node.children.get(tokens[position])
            if child is None:
                return
            node, common = child, _common(child.tokens, tokens, position)
            position += common
            yield node, common

    def _descend(self, tokens: Sequence[int]) -> tuple[_Node, int]:
        """The node where `tokens` leaves the tree, split there if need be, and how many tokens lead to it."""
        way = list(self._way(tokens))
        if not way:
            return self._root, 0
        node, common = way[-1]
        length = sum(common for _, common in way)
        return (node if common == len(node.tokens) else self._split(node, common)), length

    def _split(self, node: _Node, at: int) -> _Node:
        assert node.parent is not None, "the root has no tokens to split"
        upper = _Node(node.tokens[:at], node.slots[:at], node.parent, node.used)
        node.parent.children[node.tokens[0]] = upper
        node.tokens, node.slots, node.parent = node.tokens[at:], node.slots[at:], upper
        upper.children[node.tokens[0]] = node
        return upper

    def _make_room(self, count: int, spared: _Node) -> bool:
        keep = set()
        ancestor: _Node | None = spared
        while ancestor is not None:
            keep.add(ancestor)
            ancestor = ancestor.parent
        while self.stored + count > self._budget:
            leaves = [n for n in self._nodes() if not n.children and n not in keep]
            if not leaves:
                return False
            oldest = min(leaves, key=lambda leaf: leaf.used)
            assert oldest.parent is not None, "a leaf with tokens has a parent"
            del oldest.parent.children[oldest.tokens[0]]
            self._cache.free(oldest.slots)
            self.stored -= len(oldest.tokens)
        return True

    def _nodes(self) -> Iterator[_Node]:
        stack = list(self._root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())


def _common(run: Sequence[int], tokens: Sequence[int], start: int) -> int:
    """How many leading tokens of `run` stand in `tokens` from `start` on."""
    length = min(len(run), len(tokens) - start)
    for offset in range(length):
        if run[offset] != tokens[start + offset]:
            return offset
    return length


def shared_prefixes(prompts: Sequence[tuple[int, ...]], least: int) -> list[tuple[int, ...]]:
    """Beginnings of at least `least` tokens that two of the prompts have in common, shortest first.

    Sorted, a prompt shares most with a neighbour. A prompt's last token is never part of its prefix: its
    hidden state is wanted, not only its keys.
    """
    ordered = sorted(set(prompts))
    longest = [0] * len(ordered)
    for place in range(1, len(ordered)):
        common = _common(ordered[place - 1], ordered[place], 0)
        for side in (place - 1, place):
            longest[side] = max(longest[side], min(common, len(ordered[side]) - 1))
    repeated = (
        {prompt for prompt in ordered if prompts.count(prompt) > 1} if len(ordered) < len(prompts) else set()
    )
    found = set()
    for prompt, length in zip(ordered, longest, strict=True):
        common = len(prompt) - 1 if prompt in repeated else length
        if common >= least:
            found.add(prompt[:common])
    return sorted(found, key=len)
