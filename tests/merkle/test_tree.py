"""Trees, proofs and compact ranges against the RFC's own recursion, against pymerkle, and against bit flips."""

from __future__ import annotations

import hashlib
import warnings

import pymerkle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymerkle import InmemoryTree

from auditor.errors import (
    AuditError,
    HashLengthError,
    LeafIndexError,
    ProofLengthError,
    ProofRootError,
    SubtreeRangeError,
    TreeSizeError,
)
from auditor.merkle.compact_range import CompactRange
from auditor.merkle.hashing import EMPTY_ROOT, leaf_hash
from auditor.merkle.multiproof import prove_many, verify_many
from auditor.merkle.proofs import (
    verify_consistency,
    verify_inclusion,
    verify_subtree_consistency,
    verify_subtree_inclusion,
)
from auditor.merkle.tree import Tree

ENTRIES = [b"entry %d" % i for i in range(70)]
LEAVES = [leaf_hash(entry) for entry in ENTRIES]
TREE = Tree.of_entries(ENTRIES)


def h(data):
    return hashlib.sha256(data).digest()


# RFC 6962 section 2.1, word for word and slowly.
def mth(entries):
    n = len(entries)
    if n == 0:
        return h(b"")
    if n == 1:
        return h(b"\x00" + entries[0])
    k = 1 << ((n - 1).bit_length() - 1)
    return h(b"\x01" + mth(entries[:k]) + mth(entries[k:]))


def path(m, entries):
    n = len(entries)
    if n == 1:
        return []
    k = 1 << ((n - 1).bit_length() - 1)
    if m < k:
        return [*path(m, entries[:k]), mth(entries[k:])]
    return [*path(m - k, entries[k:]), mth(entries[:k])]


def subproof(m, entries, whole):
    n = len(entries)
    if m == n:
        return [] if whole else [mth(entries)]
    k = 1 << ((n - 1).bit_length() - 1)
    if m <= k:
        return [*subproof(m, entries[:k], whole), mth(entries[k:])]
    return [*subproof(m - k, entries[k:], False), mth(entries[:k])]


def flips(value):
    for bit in range(8 * len(value)):
        changed = bytearray(value)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def refused(check, *arguments):
    try:
        check(*arguments)
    except AuditError:
        return True
    return False


def test_roots_and_proofs_of_every_size_equal_the_recursion():
    for size in range(70):
        assert TREE.root(size) == mth(ENTRIES[:size])
        for index in range(size):
            assert TREE.inclusion_proof(index, size) == path(index, ENTRIES[:size])
        for old in range(1, size + 1):
            assert TREE.consistency_proof(old, size) == subproof(old, ENTRIES[:size], True)


def test_every_proof_of_every_size_verifies():
    for size in range(1, 70):
        root = TREE.root(size)
        for index in range(size):
            verify_inclusion(LEAVES[index], index, size, TREE.inclusion_proof(index, size), root)
        for old in range(1, size + 1):
            verify_consistency(old, size, TREE.consistency_proof(old, size), TREE.root(old), root)


def test_every_subtree_of_every_size_verifies():
    for size in range(1, 34):
        root = TREE.root(size)
        for start in range(size):
            for end in range(start + 1, size + 1):
                if start % (1 << (end - start - 1).bit_length()):
                    with pytest.raises(SubtreeRangeError):
                        TREE.subtree_proof(start, end, size)
                    continue
                subroot = TREE.subtree_root(start, end)
                assert subroot == mth(ENTRIES[start:end])
                proof = TREE.subtree_proof(start, end, size)
                verify_subtree_consistency(start, end, size, proof, subroot, root)
                for index in range(start, end):
                    inner = path(index - start, ENTRIES[start:end])
                    verify_subtree_inclusion(LEAVES[index], index, start, end, inner, subroot)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 33])
def test_every_single_bit_flip_of_leaf_path_root_and_index_is_refused(size):
    root = TREE.root(size)
    for index in {0, size // 2, size - 1}:
        proof = TREE.inclusion_proof(index, size)
        leaf = LEAVES[index]
        assert all(refused(verify_inclusion, bad, index, size, proof, root) for bad in flips(leaf))
        assert all(refused(verify_inclusion, leaf, index, size, proof, bad) for bad in flips(root))
        for i, value in enumerate(proof):
            for bad in flips(value):
                assert refused(verify_inclusion, leaf, index, size, [*proof[:i], bad, *proof[i + 1 :]], root)
        for bit in range(64):
            assert refused(verify_inclusion, leaf, index ^ 1 << bit, size, proof, root)


@pytest.mark.parametrize(("old", "new"), [(1, 2), (3, 7), (4, 7), (6, 13), (8, 8), (32, 33)])
def test_every_single_bit_flip_of_a_consistency_proof_and_its_roots_is_refused(old, new):
    old_root, new_root, proof = TREE.root(old), TREE.root(new), TREE.consistency_proof(old, new)
    assert all(refused(verify_consistency, old, new, proof, bad, new_root) for bad in flips(old_root))
    assert all(refused(verify_consistency, old, new, proof, old_root, bad) for bad in flips(new_root))
    for i, value in enumerate(proof):
        for bad in flips(value):
            assert refused(
                verify_consistency, old, new, [*proof[:i], bad, *proof[i + 1 :]], old_root, new_root
            )
    for bit in range(64):
        assert refused(verify_consistency, old ^ 1 << bit, new, proof, old_root, new_root)


def test_a_bare_proof_binds_the_size_only_up_to_the_paths_shape():
    """Why sizes are always taken from what was signed with the root; there every flip is refused (test_receipts)."""
    for size in range(1, 34):
        for index in range(size):
            proof = path(index, ENTRIES[:size])
            for bit in range(7):
                other = size ^ 1 << bit
                if not index < other:
                    assert refused(verify_inclusion, LEAVES[index], index, other, proof, TREE.root(size))
                elif not refused(verify_inclusion, LEAVES[index], index, other, proof, TREE.root(size)):
                    assert _shape(index, other) == _shape(index, size)


def _shape(index, size):
    sides = []
    start, end = 0, size
    while end - start > 1:
        k = start + (1 << ((end - start - 1).bit_length() - 1))
        sides.append(index < k)
        start, end = (start, k) if index < k else (k, end)
    return sides


def test_missing_and_left_over_hashes_are_refused_by_name():
    root, proof = TREE.root(13), TREE.inclusion_proof(5, 13)
    for cut in range(len(proof)):
        with pytest.raises(ProofLengthError):
            verify_inclusion(LEAVES[5], 5, 13, proof[:cut], root)
    with pytest.raises(ProofLengthError):
        verify_inclusion(LEAVES[5], 5, 13, [*proof, proof[0]], root)
    with pytest.raises(ProofLengthError):
        verify_consistency(5, 13, [], TREE.root(5), root)
    with pytest.raises(ProofLengthError):
        verify_consistency(5, 13, [*TREE.consistency_proof(5, 13), root], TREE.root(5), root)
    with pytest.raises(ProofLengthError):
        verify_consistency(13, 13, [root], root, root)


def test_each_impossible_argument_has_its_own_error():
    root, proof = TREE.root(8), TREE.inclusion_proof(3, 8)
    with pytest.raises(TreeSizeError, match="size 0"):
        verify_inclusion(LEAVES[0], 0, 0, [], EMPTY_ROOT)
    with pytest.raises(LeafIndexError):
        verify_inclusion(LEAVES[3], 8, 8, proof, root)
    with pytest.raises(LeafIndexError):
        verify_inclusion(LEAVES[3], -1, 8, proof, root)
    with pytest.raises(TreeSizeError):
        verify_inclusion(LEAVES[3], 3, 1 << 63, proof, root)
    with pytest.raises(HashLengthError):
        verify_inclusion(LEAVES[3][:31], 3, 8, proof, root)
    with pytest.raises(HashLengthError):
        verify_inclusion(LEAVES[3], 3, 8, [*proof[:2], b""], root)
    with pytest.raises(ProofRootError):
        verify_inclusion(LEAVES[3], 3, 8, proof, TREE.root(9))
    with pytest.raises(TreeSizeError, match="shows nothing"):
        verify_consistency(0, 8, [], EMPTY_ROOT, root)
    with pytest.raises(TreeSizeError):
        verify_consistency(9, 8, [], TREE.root(9), root)
    verify_consistency(0, 0, [], EMPTY_ROOT, EMPTY_ROOT)
    with pytest.raises(ProofRootError):
        verify_consistency(0, 0, [], root, root)
    with pytest.raises(TreeSizeError):
        TREE.root(71)
    with pytest.raises(TreeSizeError):
        TREE.inclusion_proof(0, 0)
    with pytest.raises(LeafIndexError):
        TREE.inclusion_proof(70)
    with pytest.raises(TreeSizeError):
        TREE.consistency_proof(5, 4)
    with pytest.raises(TreeSizeError):
        TREE.subtree_proof(0, 71)
    with pytest.raises(TreeSizeError):
        verify_subtree_consistency(0, 9, 8, [], root, root)
    with pytest.raises(LeafIndexError):
        TREE.node(3, 8)
    with pytest.raises(HashLengthError):
        Tree(b"short")
    with pytest.raises(HashLengthError):
        Tree().append(LEAVES[0] + LEAVES[1])


def test_a_doubled_last_leaf_gives_another_root():
    """CVE-2012-2459: trees that double the last node let a provider count one token twice."""
    for size in range(1, 40):
        assert TREE.root(size) != Tree(b"".join([*LEAVES[:size], LEAVES[size - 1]])).root()


def test_a_node_cannot_be_passed_off_as_a_leaf():
    inner = LEAVES[0] + LEAVES[1]
    proof = TREE.inclusion_proof(0, 4)[1:]
    with pytest.raises(ProofRootError):
        verify_inclusion(leaf_hash(inner), 0, 2, proof, TREE.root(4))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=12), st.data())
def test_growth_in_any_steps_equals_growth_at_once(steps, data):
    tree, stream = Tree(), CompactRange()
    for step in steps:
        new = LEAVES[tree.size : tree.size + step]
        tree.extend(b"".join(new))
        for leaf in new:
            stream = stream.append(leaf)
    assert stream.size == tree.size
    assert stream.root() == tree.root() == mth(ENTRIES[: tree.size])
    size = data.draw(st.integers(0, tree.size))
    assert tree.root(size) == mth(ENTRIES[:size])


def test_compact_range_refuses_what_is_not_one():
    with pytest.raises(HashLengthError):
        CompactRange(3, (LEAVES[0],))
    with pytest.raises(HashLengthError):
        CompactRange(1, (b"x",))
    with pytest.raises(TreeSizeError):
        CompactRange(-1, ())
    with pytest.raises(HashLengthError):
        CompactRange().append(b"x")


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 70), st.data())
def test_one_proof_for_many_leaves(size, data):
    indices = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=12)))
    proof = prove_many(TREE.node, indices, size)
    root = TREE.root(size)
    leaves = {i: LEAVES[i] for i in indices}
    verify_many(leaves, size, proof, root)
    assert len(proof) <= sum(len(TREE.inclusion_proof(i, size)) for i in indices)
    if len(indices) == 1:
        assert sorted(proof) == sorted(TREE.inclusion_proof(indices[0], size))
    victim = data.draw(st.sampled_from(indices))
    for bad in list(flips(LEAVES[victim]))[::17]:
        assert refused(verify_many, leaves | {victim: bad}, size, proof, root)
    for i, value in enumerate(proof):
        for bad in list(flips(value))[::17]:
            assert refused(verify_many, leaves, size, [*proof[:i], bad, *proof[i + 1 :]], root)
    assert refused(verify_many, leaves, size, [*proof, root], root)
    assert not proof or refused(verify_many, leaves, size, proof[:-1], root)
    others = [i for i in range(size) if i not in leaves]
    if others:
        moved = {i: v for i, v in leaves.items() if i != victim} | {others[0]: leaves[victim]}
        assert refused(verify_many, moved, size, proof, root)


def test_many_leaves_with_impossible_indices():
    root = TREE.root(8)
    for indices in ([], [8], [-1], [2, 2], [3, 1]):
        with pytest.raises(LeafIndexError):
            prove_many(TREE.node, indices, 8)
    with pytest.raises(LeafIndexError):
        verify_many({}, 8, [root], root)
    with pytest.raises(TreeSizeError):
        prove_many(TREE.node, [0], 0)
    with pytest.raises(HashLengthError):
        verify_many({0: b"short"}, 8, [], root)
    with pytest.raises(ProofLengthError, match="fewer"):
        verify_many({0: LEAVES[0]}, 8, [], root)
    with pytest.raises(ProofLengthError, match="more"):
        verify_many({0: LEAVES[0]}, 8, [*prove_many(TREE.node, [0], 8), root], root)
    with pytest.raises(ProofRootError):
        verify_many({0: LEAVES[1]}, 8, prove_many(TREE.node, [0], 8), root)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=80), st.data())
def test_pymerkle_agrees(entries, data):
    peer = InmemoryTree.init_from_entries(entries, algorithm="sha256")
    ours = Tree.of_entries(entries)
    size = data.draw(st.integers(1, len(entries)))
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(1, size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        root, old_root = peer.get_state(size), peer.get_state(old)
    assert ours.root(size) == root
    # Their path begins with the leaf itself; their indices start at 1.
    theirs = peer.prove_inclusion(index + 1, size)
    leaf, *siblings = [bytes.fromhex(value) for value in theirs.serialize()["path"]]
    assert leaf == leaf_hash(entries[index])
    assert siblings == ours.inclusion_proof(index, size)
    verify_inclusion(leaf, index, size, siblings, root)
    pymerkle.verify_inclusion(leaf_hash(entries[index]), ours.root(size), theirs)
    consistency = peer.prove_consistency(old, size)
    pymerkle.verify_consistency(ours.root(old), ours.root(size), consistency)
    verify_consistency(old, size, ours.consistency_proof(old, size), old_root, root)
