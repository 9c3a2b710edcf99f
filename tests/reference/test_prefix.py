"""`PrefixTree` and `shared_prefixes`: the longest stored beginning, within a budget, and an honest hit rate."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from auditor.reference.prefix import PrefixTree, shared_prefixes
from auditor.reference.slots import SlotKV

IDS = st.lists(st.integers(0, 2), max_size=9).map(tuple)


@pytest.fixture
def cache():
    return SlotKV(((1, 1, 1),), torch.float32)


@given(stored=st.lists(IDS, max_size=12), asked=st.lists(IDS, max_size=12))
def test_what_is_found_is_the_longest_common_beginning(stored, asked):
    cache = SlotKV(((1, 1, 1),), torch.float32)
    tree = PrefixTree(cache, 10**6)
    slot_of = {}
    for tokens in stored:
        past = tree.match(tokens, count=False)
        slots = torch.cat([past, cache.alloc(len(tokens) - len(past))])
        assert tree.insert(tokens, slots)
        for n in range(len(tokens)):
            slot_of.setdefault(tokens[: n + 1], int(slots[n]))
        cache.free(slots)
    for tokens in asked:
        best = max(n for n in range(len(tokens) + 1) if n == 0 or tokens[:n] in slot_of)
        assert tree.known(tokens) == best
        found = tree.match(tokens)
        assert found.tolist() == [slot_of[tokens[: n + 1]] for n in range(best)]
        cache.free(found)
    cache.check([], tree.held())
    assert tree.asked == sum(map(len, asked))
    assert tree.stored == len(slot_of)


def test_the_least_recently_used_goes_first(cache):
    tree = PrefixTree(cache, 6 * cache.slot_bytes)
    for tokens in ((1, 1, 1), (2, 2, 2)):
        slots = cache.alloc(3)
        tree.insert(tokens, slots)
        cache.free(slots)
    cache.free(tree.match((1, 1, 1)))
    slots = cache.alloc(2)
    assert tree.insert((3, 3), slots)
    cache.free(slots)
    assert [len(tree.match(t)) for t in ((1, 1, 1), (2, 2, 2), (3, 3))] == [3, 0, 2]


def test_what_does_not_fit_the_budget_is_not_stored(cache):
    tree = PrefixTree(cache, 2 * cache.slot_bytes)
    slots = cache.alloc(3)
    assert not tree.insert((1, 2, 3), slots)
    cache.free(slots)
    assert tree.stored == 0
    cache.check([], tree.held())


def test_an_evicted_prefix_stays_readable_while_somebody_uses_it(cache):
    tree = PrefixTree(cache, 3 * cache.slot_bytes)
    slots = cache.alloc(3)
    tree.insert((1, 2, 3), slots)
    cache.free(slots)
    in_use = tree.match((1, 2, 3))
    other = cache.alloc(3)
    tree.insert((4, 5, 6), other)
    assert not set(cache.alloc(50).tolist()) & set(in_use.tolist())


def test_prefixes_worth_storing_are_those_two_prompts_share():
    a, b, c, d = (1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 9, 9), (7, 7)
    assert shared_prefixes([a, b, c, d], 2) == [(1, 2), (1, 2, 3)]
    assert shared_prefixes([a, b, c, d], 3) == [(1, 2, 3)]
    assert shared_prefixes([a, d], 1) == []
    assert shared_prefixes([], 1) == []


def test_a_prompt_asked_twice_shares_all_but_its_last_token():
    assert shared_prefixes([(1, 2, 3)] * 2, 1) == [(1, 2)]
    assert shared_prefixes([(1, 2), (1, 2, 3)], 1) == [(1,), (1, 2)]
