"""A claimed token against its row's own distribution: the definitions, spelt out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from auditor.reference.row_law import TILTS, row_law
from auditor.reference.sampling import SamplingSpec


def rows_of(vocabulary=97, rows=5, seed=0):
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, vocabulary)) * 2).float()
    return logits, np.random.default_rng(seed + 1).integers(0, vocabulary, rows)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
def test_unfiltered_rows_follow_the_definitions(temperature):
    logits, claimed = rows_of()
    law = row_law(logits, claimed, SamplingSpec(temperature=temperature), "vllm")
    for r, token in enumerate(claimed):
        log_p = log_softmax(logits[r].double().numpy() / temperature)
        p = np.exp(log_p)
        assert law.log_probability[r] == pytest.approx(log_p[token], abs=1e-9)
        assert law.entropy[r] == pytest.approx(-(p * log_p).sum(), abs=1e-9)
        assert law.above[r] == pytest.approx(p[log_p > log_p[token]].sum(), abs=1e-9)
        for j, power in enumerate(TILTS):
            q = p**power / (p**power).sum()
            assert law.log_ratio[r, j] == pytest.approx(np.log(q[token] / p[token]), abs=1e-5)
            assert law.spread[r, j] == pytest.approx(np.sqrt((q**2 / p).sum() - 1), abs=1e-4)
    assert np.isinf(law.edge_gap).all()


def test_rivals_and_ranks_have_expectation_one_and_one_half():
    logits, _ = rows_of(vocabulary=31, rows=1)
    every = logits.expand(31, 31).contiguous()
    law = row_law(every, np.arange(31), SamplingSpec(), "vllm")
    p = np.exp(law.log_probability)
    assert p.sum() == pytest.approx(1.0)
    np.testing.assert_allclose((p[:, None] * np.exp(law.log_ratio)).sum(axis=0), 1.0, atol=1e-5)
    assert (p * (law.above + p / 2)).sum() == pytest.approx(0.5)


def test_equal_logits_stand_by_id():
    law = row_law(torch.zeros(4, 4), np.arange(4), SamplingSpec(), "vllm")
    np.testing.assert_allclose(law.above, [0.0, 0.25, 0.5, 0.75])


def test_filtered_rows_are_normalised_inside_and_measure_the_edge():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]]).repeat(3, 1)
    law = row_law(logits, np.array([0, 1, 2]), SamplingSpec(top_k=2), "vllm")
    assert np.exp(law.log_probability[:2]).sum() == pytest.approx(1.0)
    assert law.log_probability[2] == -np.inf
    np.testing.assert_allclose(law.edge_gap, 1.0)
    assert law.entropy[0] == pytest.approx(-(np.exp(law.log_probability[:2]) * law.log_probability[:2]).sum())
