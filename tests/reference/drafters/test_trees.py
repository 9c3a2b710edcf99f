"""Draft trees, cost curves, and the structures that drafters guess from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.reference.drafters import ROOT, Budget, CostCurve, DraftTree
from auditor.reference.drafters.blend import joined
from auditor.reference.drafters.cost import Call
from auditor.reference.drafters.counts import backed_off
from auditor.reference.drafters.expansion import HitTable
from auditor.reference.drafters.suffix import SuffixTrie

FORKED = DraftTree((5, 6, 7, 8, 5), (ROOT, 0, ROOT, 0, 3))


@st.composite
def trees(draw):
    pairs = []
    for node in range(draw(st.integers(0, 12))):
        pair = draw(st.integers(ROOT, node - 1)), draw(st.integers(0, 5))
        if pair not in pairs and pair[0] < len(pairs):
            pairs.append(pair)
    return DraftTree(tuple(token for _, token in pairs), tuple(parent for parent, _ in pairs))


@pytest.mark.parametrize(
    ("tokens", "parents"),
    [((1,), ()), ((1,), (0,)), ((1, 2), (ROOT, 2)), ((1, 2), (ROOT, -2)), ((4, 4), (ROOT, ROOT))],
    ids=["lengths", "own parent", "parent behind", "no parent", "equal siblings"],
)
def test_what_is_no_tree_is_refused(tokens, parents):
    with pytest.raises(ValueError, match=r"parent|token"):
        DraftTree(tokens, parents)


def test_depths_paths_and_ancestors_of_a_fork():
    assert FORKED.depths == (1, 2, 1, 2, 3)
    assert FORKED.path(4) == (5, 8, 5)
    assert not FORKED.is_chain
    assert DraftTree.chain([3, 3, 3]).is_chain
    seen = [set(row.nonzero()[:, 0].tolist()) for row in FORKED.ancestors()]
    assert seen == [{0}, {0, 1}, {0, 1, 2}, {0, 3}, {0, 1, 4}, {0, 1, 4, 5}]


@given(trees())
def test_a_row_sees_its_path_and_nothing_else(tree):
    seen = tree.ancestors()
    for node in range(len(tree)):
        assert int(seen[node + 1].sum()) == tree.depths[node] + 1
        assert [tree.tokens[n - 1] for n in seen[node + 1].nonzero()[1:, 0].tolist()] == list(tree.path(node))


@given(trees(), st.data())
def test_a_walk_follows_what_is_chosen_for_as_long_as_it_was_guessed(tree, data):
    chosen = data.draw(st.lists(st.integers(0, 5), min_size=14, max_size=14))
    nodes, tokens = tree.walk(lambda node: chosen[0 if node == ROOT else tree.depths[node]])
    assert list(tokens) == chosen[: len(tokens)]
    assert len(tokens) == len(nodes) + 1
    assert tokens[:-1] == (tree.path(nodes[-1]) if nodes else ())
    assert tree.child(nodes[-1] if nodes else ROOT, tokens[-1]) is None


@given(trees(), st.integers(1, 6), st.integers(0, 5), st.integers(0, 12))
def test_pruning_leaves_whole_paths_of_what_can_be_verified(tree, vocabulary, depth, nodes):
    pruned = tree.pruned(vocabulary, depth, nodes)
    paths = {tree.path(node) for node in range(len(tree))}
    assert {pruned.path(node) for node in range(len(pruned))} <= paths
    assert len(pruned) <= nodes
    assert max(pruned.depths, default=0) <= depth
    assert max(pruned.tokens, default=0) < vocabulary


@given(st.lists(trees(), max_size=3))
def test_a_blend_has_every_path_once(several):
    blend = joined(several)
    paths = [blend.path(node) for node in range(len(blend))]
    assert len(paths) == len(set(paths))
    assert set(paths) == {tree.path(node) for tree in several for node in range(len(tree))}


def test_a_guess_is_taken_while_it_raises_tokens_a_second():
    """A row of 0.1 seconds beside 1 second of plain decoding pays from a chance of a tenth on."""
    curve = CostCurve((1, 101), (1.0, 11.0))
    assert curve(1) == 1.0
    assert curve(51) == pytest.approx(6.0)
    assert curve(201) == pytest.approx(21.0)
    budget = Budget.alone(64, cost=curve)
    assert budget.worth(0.11)
    assert not budget.worth(0.09)
    budget.spend(0.11)
    assert budget.call.rows == 2
    assert not budget.worth(0.1)
    assert not Budget(3, 0, Call(None, 9, 1, 1.0)).worth(1.0)
    assert not Budget(3, 5, Call(None, 0, 1, 1.0)).worth(1.0)


def test_a_curve_with_a_jump_is_smoothed_from_below():
    curve = CostCurve((1, 2, 16, 32), (1.0, 3.0, 3.1, 6.0))
    smooth = curve.smooth
    assert smooth.rows == (1, 16, 32)
    assert all(smooth(rows) <= curve(rows) + 1e-12 for rows in range(1, 40))
    slopes = [smooth(rows + 1) - smooth(rows) for rows in range(1, 40)]
    assert slopes == sorted(slopes) or max(b - a for a, b in zip(slopes[1:], slopes, strict=False)) < 1e-9


def test_longer_matches_are_heard_first_and_shorter_ones_where_they_are_thin():
    found = backed_off([(3, {7: 1}), (1, {7: 2, 8: 6})])
    chances = dict(zip(found.tokens, found.scores, strict=True))
    assert chances[7] > chances[8]
    assert sum(2.718281828459045**score for score in found.scores) == pytest.approx(1.0)
    assert not backed_off([]).tokens
    assert list(backed_off([], {5: 0.5, 6: 0.0}).tokens) == [5]
    thick = backed_off([(3, {7: 20}), (1, {8: 1})])
    assert thick.support > found.support


def test_chances_are_learned():
    table = HitTable()
    kind = (0, 2, 5)
    first = table.chance(kind)
    for _ in range(200):
        table.learn(kind, hit=True)
    assert table.chance(kind) > 0.98 > first
    assert table.chance((1, 2, 5)) < first


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=30), min_size=1, max_size=6))
def test_a_suffix_trie_counts_every_run_of_the_texts_that_it_still_holds(texts):
    trie = SuffixTrie(most=40)
    for text in texts:
        trie.remember(tuple(text))
    held = [list(text) for text in trie._texts]
    assert held == texts[len(texts) - len(held) :]
    assert sum(map(len, held)) <= 40 or len(held) == 1

    nodes = [0]

    def counted(node, run):
        for token, count in trie.counts(node).items():
            own = [*run, token]
            true = sum(text[at : at + len(own)] == own for text in held for at in range(len(text)))
            assert count == true > 0
            nodes.append(trie._children[node][token])
            counted(nodes[-1], own)

    counted(0, [])
    assert set(trie.counts(0)) == {token for text in held for token in text}
    assert sorted(nodes + trie._unused) == list(range(len(trie._counts))), "a node is lost, or used twice"


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30))
def test_endings_are_found_a_token_at_a_time(text):
    trie = SuffixTrie()
    trie.remember(tuple(text))
    ending = ()
    for at, token in enumerate(text):
        ending = trie.ending(ending, token)
        assert [length for length, _ in ending] == list(range(min(at + 1, 24), 0, -1))
