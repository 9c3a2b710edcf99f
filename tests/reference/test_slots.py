"""`SlotKV`: what a sequence reads back is what was computed under its own prefix, whatever happens around it.

The runner's invariants I1 (no holes), I3 (each committed slot under exactly its committed prefix), I4 (after a
step one token is pending) and I5 (a freed slot is unreachable) are checked after every step of a random history.
"""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from auditor.errors import OptionError
from auditor.reference.prefix import PrefixTree
from auditor.reference.slots import Sequence, SlotKV, as_run

LAYOUT = ((1, 2, 3), None)


def key_of(tokens):
    """A stand-in for a key: a number that depends on the whole prefix."""
    digest = hashlib.sha256(repr(list(tokens)).encode()).digest()
    return float(int.from_bytes(digest[:3], "big"))


def rows_of(prefixes):
    keys = torch.tensor([key_of(prefix) for prefix in prefixes])
    return keys[:, None, None].expand(-1, 1, 2), keys[:, None, None].expand(-1, 1, 3)


class Histories(RuleBasedStateMachine):
    """Sequences that grow, draft, fork, end and share prefixes in any order, in a cache of bounded size."""

    LIMIT = 600

    def __init__(self):
        super().__init__()
        self.cache = SlotKV(LAYOUT, torch.float32, limit=self.LIMIT)
        self.tree = PrefixTree(self.cache, 40 * self.cache.slot_bytes)
        self.alive = []  # (sequence, its tokens)

    def pick(self, data):
        return data.draw(st.sampled_from(self.alive))

    def write(self, sequence, base, prefixes):
        slots = sequence.table[base : base + len(prefixes)]
        self.cache.write(0, slots, *rows_of(prefixes))

    @rule(tokens=st.lists(st.integers(0, 2), max_size=8))
    def begin(self, tokens):
        if self.cache.free_slots < 20:
            return
        past = self.tree.match(tokens)
        sequence = Sequence(past, len(past))
        self.cache.reserve(sequence, len(tokens))
        self.write(sequence, len(past), [tokens[: n + 1] for n in range(len(past), len(tokens))])
        sequence.length = len(tokens)
        self.alive.append((sequence, list(tokens)))

    @precondition(lambda self: self.alive and self.cache.free_slots > 20)
    @rule(data=st.data(), drafts=st.lists(st.integers(0, 9), min_size=1, max_size=5))
    def draft_and_accept(self, data, drafts):
        """Siblings at one position: some are computed, one chain of them is kept."""
        sequence, tokens = self.pick(data)
        self.cache.reserve(sequence, sequence.length + len(drafts))
        self.write(sequence, sequence.length, [[*tokens, draft] for draft in drafts])
        before = sequence.length
        if data.draw(st.booleans()):
            chosen = data.draw(st.integers(0, len(drafts) - 1))
            self.cache.keep(sequence, torch.tensor([chosen]))
            tokens.append(drafts[chosen])
            assert sequence.length == before + 1
        else:
            assert sequence.length == before

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def fork(self, data):
        sequence, tokens = self.pick(data)
        length = data.draw(st.integers(0, len(tokens)))
        self.alive.append((self.cache.fork(sequence, length), tokens[:length]))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def end(self, data):
        entry = self.pick(data)
        self.alive.remove(entry)
        self.cache.release(entry[0])
        assert entry[0].length == len(entry[0].table) == 0

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def remember(self, data):
        sequence, tokens = self.pick(data)
        self.tree.insert(tokens, sequence.slots)

    @invariant()
    def every_sequence_reads_its_own_prefix(self):
        for sequence, tokens in self.alive:
            assert sequence.length == len(tokens)
            if tokens:
                keys, values = self.cache.read(0, as_run(sequence.slots))
                expected = rows_of([tokens[: n + 1] for n in range(len(tokens))])
                assert torch.equal(keys, expected[0])
                assert torch.equal(values, expected[1])

    @invariant()
    def no_slot_is_lost_or_shared_by_accident(self):
        self.cache.check([sequence for sequence, _ in self.alive], self.tree.held())
        assert self.cache.capacity <= self.LIMIT
        assert sum(len(slots) for slots in self.tree.held()) == self.tree.stored <= 40


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_slots_are_handed_out_in_runs_while_there_is_one():
    cache = SlotKV(LAYOUT, torch.float32, limit=300)
    first, second = cache.alloc(100), cache.alloc(100)
    assert isinstance(as_run(first), slice)
    cache.free(first)
    assert isinstance(as_run(cache.alloc(50)), slice)
    scattered = cache.alloc(150)  # 50 + 100 are free, not side by side
    assert isinstance(as_run(scattered), torch.Tensor)
    assert not set(scattered.tolist()) & set(second.tolist())


def test_a_sequence_grows_behind_itself_if_it_can():
    cache = SlotKV(LAYOUT, torch.float32)
    sequence = Sequence()
    for length in (3, 4, 90):
        cache.reserve(sequence, length)
        assert isinstance(as_run(sequence.table), slice)


def test_a_full_cache_refuses_and_loses_nothing():
    cache = SlotKV(LAYOUT, torch.float32, limit=10)
    held = cache.alloc(8)
    with pytest.raises(OptionError, match="3 more positions do not fit the 10"):
        cache.alloc(3)
    assert cache.free_slots == 2
    cache.free(held)
    assert len(cache.alloc(10)) == 10


def test_a_break_of_the_invariants_is_noticed():
    cache = SlotKV(LAYOUT, torch.float32)
    sequence = Sequence()
    cache.reserve(sequence, 4)
    cache.check([sequence])
    cache.free(sequence.table[1:2])
    with pytest.raises(AssertionError, match="leaked"):
        cache.check([sequence])
    doubled = Sequence(torch.tensor([0, 0]), 2)
    with pytest.raises(AssertionError, match="twice"):
        cache.check([doubled])
