"""The two-sample test: the published package's statistic, exact false-alarm rate, power, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from auditor.errors import OptionError
from auditor.model_equality import PADDING, Completions, code_points, model_equality, padded

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "model-equality.json").read_text())


def side(value):
    return Completions(np.array(value["prompts"]), np.array(value["sequences"], np.int32))


@pytest.mark.parametrize("case", VECTORS["cases"])
@pytest.mark.parametrize("backend", ["reference", "compiled"])
def test_statistic_is_the_published_package_s(case, backend):
    generator = np.random.default_rng(0)
    found = model_equality(
        side(case["provider"]), side(case["reference"]), permutations=1, generator=generator, backend=backend
    )
    assert found.statistic == pytest.approx(case["mmd_hamming"], abs=1e-12)


def drawn(generator, prompts, each, agreement, bases):
    names = np.repeat(np.arange(prompts), each)
    rows = bases[names].copy()
    other = generator.random(rows.shape) > agreement
    rows[other] = generator.integers(0, 50, int(other.sum()))
    return Completions(names, rows.astype(np.int32))


def p_values(own, other, *, each=(6, 6), runs=600, permutations=99):
    generator = np.random.default_rng(7)
    bases = generator.integers(0, 50, (5, 12))
    found = []
    for _ in range(runs):
        provider = drawn(generator, 5, each[0], own, bases)
        reference = drawn(generator, 5, each[1], other, bases)
        test = model_equality(provider, reference, permutations=permutations, generator=generator)
        found.append(test.p_value)
    return np.array(found)


@pytest.mark.parametrize("each", [(6, 6), (3, 9)])
def test_equal_sides_are_accused_at_most_at_alpha(each):
    p = p_values(0.5, 0.5, each=each)
    for alpha in (0.01, 0.05, 0.2, 0.5):
        # exact up to this simulation's own three standard errors
        assert (p <= alpha).mean() <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / len(p))
    assert (p <= 0.5).mean() > 0.4  # and not empty caution


def test_another_distribution_is_seen():
    assert (p_values(0.5, 0.75, runs=100) <= 0.05).mean() > 0.8


def test_prompts_answered_unequally_often_accuse_nobody():
    """Two easy prompts for the provider, two hard ones more for the reference: only shared ones count."""
    generator = np.random.default_rng(3)
    bases = generator.integers(0, 50, (4, 12))
    hits = 0
    for _ in range(200):
        provider, reference = (drawn(generator, 4, 8, 0.5, bases) for _ in range(2))
        keep_own, keep_other = (provider.prompts != 3) | (np.arange(32) < 26), reference.prompts != 0
        own = Completions(provider.prompts[keep_own], provider.sequences[keep_own])
        other = Completions(reference.prompts[keep_other], reference.sequences[keep_other])
        found = model_equality(own, other, permutations=19, generator=generator)
        assert found.prompts == 3
        hits += found.p_value <= 0.05
    assert hits <= 10 + 3 * 3.1


def test_what_cannot_be_tested_is_refused():
    generator = np.random.default_rng(0)
    one = Completions(np.array([0, 0]), np.zeros((2, 3), np.int32))
    other = Completions(np.array([1, 1]), np.zeros((2, 3), np.int32))
    single = Completions(np.array([0]), np.zeros((1, 3), np.int32))
    for provider, reference, permutations in ((one, other, 9), (one, single, 9), (one, one, 0)):
        with pytest.raises(OptionError):
            model_equality(provider, reference, permutations=permutations, generator=generator)


def test_identical_completions_have_no_evidence():
    generator = np.random.default_rng(0)
    one = Completions(np.zeros(4, np.int64), np.zeros((4, 3), np.int32))
    found = model_equality(one, one, permutations=99, generator=generator)
    assert found.p_value == 1.0


def test_texts_become_code_points_and_ids_rows():
    rows = code_points(["ab", "\U0001f600", ""], most=2)
    np.testing.assert_array_equal(rows, [[97, 98], [0x1F600, PADDING], [PADDING, PADDING]])
    np.testing.assert_array_equal(padded([(1, 2, 3), (4,)], 2), [[1, 2], [4, PADDING]])
    assert code_points([]).shape == (0, 1)
    assert code_points(["\ud800"])[0, 0] == 0xD800


def test_the_e_value_has_expectation_one_under_the_null():
    """All labellings of one pool, each as the observed one: their e-values' mean is at most 1."""
    from itertools import combinations

    generator = np.random.default_rng(4)
    rows = generator.integers(0, 3, (6, 5)).astype(np.int32)
    found = []
    for chosen in combinations(range(6), 3):
        own = np.isin(np.arange(6), chosen)
        sides = [Completions(np.zeros(3, np.int64), rows[mask]) for mask in (own, ~own)]
        found.append(np.exp(model_equality(*sides, permutations=3999, generator=generator).log_e))
    assert len(found) == 20
    assert 0.9 < np.mean(found) <= 1.02  # 3,999 random labellings stand for all 20


def test_the_e_value_convicts_with_few_permutations():
    generator = np.random.default_rng(9)
    bases = generator.integers(0, 50, (5, 12))
    honest, other = (drawn(generator, 5, 8, share, bases) for share in (0.5, 0.9))
    assert model_equality(honest, other, permutations=20_000, generator=generator).log_e > np.log(1000)
    same = drawn(generator, 5, 8, 0.5, bases)
    assert model_equality(honest, same, permutations=20_000, generator=generator).log_e < np.log(10)
