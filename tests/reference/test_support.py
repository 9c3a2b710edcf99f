"""Filters: the tokens kept are those each engine keeps, and the edge is never infinitely far."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from auditor.reference.sampling import SamplingSpec
from auditor.reference.support import find_support

CLOSE = 1e-5  # an edge nearer than this is decided by float32 rounding
SPECS = [
    SamplingSpec(top_k=1),
    SamplingSpec(top_k=5, temperature=0.7),
    SamplingSpec(top_p=0.9),
    SamplingSpec(top_p=0.3, temperature=1.7),
    SamplingSpec(top_p=1e-6),
    SamplingSpec(top_p=0.99),
    SamplingSpec(min_p=0.05),
    SamplingSpec(min_p=0.3, temperature=2.0),
    SamplingSpec(min_p=1.0),
    SamplingSpec(top_k=40, top_p=0.95, min_p=0.05, temperature=0.8),
    SamplingSpec(top_k=7, top_p=0.6),
    SamplingSpec(top_p=0.8, min_p=0.1, temperature=1.3),
    SamplingSpec(top_k=9, min_p=0.02),
    SamplingSpec(top_k=10**6, top_p=0.9),
]


def spec_id(spec):
    return f"k{spec.top_k}-p{spec.top_p}-m{spec.min_p}-t{spec.temperature}"


def kept_by_vllm(z, spec):
    """engines.md 4.2 and 4.4, one row: temperature, min-p, top-k, top-p by ascending float32 cumulation."""
    x = z / torch.tensor(spec.temperature, dtype=torch.float32)
    if spec.min_p > 0:
        p = torch.softmax(x, 0)
        x = x.masked_fill(p < spec.min_p * p.max(), -torch.inf)
    if 0 < spec.top_k < len(z):
        x = x.masked_fill(x < x.topk(spec.top_k).values[-1], -torch.inf)
    if spec.top_p < 1:
        rising, ids = x.sort()
        gone = torch.softmax(rising, 0).cumsum(0) <= 1 - spec.top_p
        gone[-1] = False
        x = x.scatter(0, ids, rising.masked_fill(gone, -torch.inf))
    return set(torch.isfinite(x).nonzero()[:, 0].tolist())


def kept_by_transformers(z, spec):
    """The library's own processors, in `generate`'s order."""
    warpers = [TemperatureLogitsWarper(spec.temperature)]
    if spec.top_k:
        warpers.append(TopKLogitsWarper(spec.top_k))
    if spec.top_p < 1:
        warpers.append(TopPLogitsWarper(spec.top_p))
    if spec.min_p > 0:
        warpers.append(MinPLogitsWarper(spec.min_p))
    x = z[None]
    for warper in warpers:
        x = warper(None, x)
    return set(torch.isfinite(x[0]).nonzero()[:, 0].tolist())


def kept_by_llama_cpp(z, spec):
    """engines.md section 5: filters see unscaled logits."""
    order = np.argsort(-z.numpy(), kind="stable")
    logits = z.numpy()[order]
    if spec.top_k:
        order, logits = order[: spec.top_k], logits[: spec.top_k]
    if spec.top_p < 1:
        p = np.exp(logits - logits.max(), dtype=np.float32)
        reached = np.cumsum(p / p.sum(dtype=np.float32), dtype=np.float32) >= np.float32(spec.top_p)
        last = int(reached.argmax()) + 1 if reached.any() else len(order)
        order, logits = order[:last], logits[:last]
    if spec.min_p > 0:
        order = order[logits >= logits.max() + np.float32(np.log(spec.min_p))]
    return set(order.tolist())


ENGINES = {"vllm": kept_by_vllm, "transformers": kept_by_transformers, "llama.cpp": kept_by_llama_cpp}


def kept(support, row=0):
    return set(support.ids[row, : support.kept[row]].tolist())


def support_of(z, spec, order, claimed=None):
    rows = z if z.dim() == 2 else z[None]
    claims = np.zeros(len(rows), np.int64) if claimed is None else np.asarray(claimed)
    return find_support(rows, claims, spec, order)


def rows_of(count, vocabulary, spread=2.0, seed=0):
    return torch.randn(count, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize("order", ENGINES)
@pytest.mark.parametrize("spec", SPECS, ids=spec_id)
@pytest.mark.parametrize(
    ("vocabulary", "spread"), [(3, 1.0), (50, 2.0), (1500, 1.0), (3000, 0.2), (3000, 4.0)]
)
def test_the_tokens_kept_are_the_engines(order, spec, vocabulary, spread):
    z = rows_of(6, vocabulary, spread, seed=vocabulary)
    support = support_of(z, spec, order)
    compared = 0
    for row in range(len(z)):
        if np.abs(support.edge[row]).min() < CLOSE:
            continue  # on the edge itself either answer is right
        compared += 1
        assert kept(support, row) == ENGINES[order](z[row], spec)
    # In flat rows the mass before a token, and so the edge, is only known to a few float32 roundings.
    assert compared or spread == 0.2


@pytest.mark.parametrize("order", ENGINES)
@given(
    values=st.lists(st.floats(-12, 12, width=32), min_size=2, max_size=60, unique=True),
    spec=st.builds(
        SamplingSpec,
        top_k=st.sampled_from([0, 1, 3, 20]),
        top_p=st.sampled_from([1.0, 0.95, 0.5, 0.1]),
        min_p=st.sampled_from([0.0, 0.02, 0.5]),
        temperature=st.sampled_from([0.3, 1.0, 1.9]),
    ),
)
@settings(max_examples=80, deadline=None)
def test_any_row_and_any_filters_keep_the_engines_tokens(order, values, spec):
    z = torch.tensor(values)
    support = support_of(z, spec, order)
    assume(np.abs(support.edge).min() > CLOSE)
    assert kept(support) == ENGINES[order](z, spec)


@pytest.mark.parametrize("order", ENGINES)
@pytest.mark.parametrize("spec", SPECS, ids=spec_id)
def test_edges_are_signed_finite_outside_and_never_nan(order, spec):
    z = rows_of(5, 400)
    claimed = [int(row.argmin()) for row in z]
    support = support_of(z, spec, order, claimed)
    inside = np.arange(support.edge.shape[1]) < support.kept[:, None]
    assert not np.isnan(support.edge).any()
    assert (support.kept >= 1).all()
    assert (support.edge[inside] >= 0).all()
    assert (support.edge[~inside] < 0).all()
    assert np.isfinite(support.edge[~inside]).all()
    # The unlikeliest token of 400 is outside all but the mildest filter, by a finite distance.
    assert np.isfinite(support.claimed_edge[support.claimed_edge < 0]).all()
    if spec.top_p < 0.99 or 0 < spec.top_k < 400:
        assert (support.claimed_edge < 0).all()
    assert (np.diff(support.logits, axis=1) <= 0).all()


@pytest.mark.parametrize("order", ENGINES)
def test_a_token_outside_costs_what_moves_it_in(order):
    z = torch.tensor([[5.0, 4.0, 3.0, 1.0, -7.0]])
    by_k = support_of(z, SamplingSpec(top_k=2), order, [4])
    assert by_k.kept.tolist() == [2]
    assert by_k.edge[0].tolist() == [2.0, 1.0, -1.0, -3.0, -11.0]
    assert by_k.claimed_edge.tolist() == [-11.0]
    by_min_p = support_of(z, SamplingSpec(min_p=float(np.exp(-1.5))), order, [4])
    assert by_min_p.edge[0, 1:] == pytest.approx([0.5, -0.5, -2.5, -10.5])


@pytest.mark.parametrize(("order", "factor"), [("vllm", 2.0), ("transformers", 2.0), ("llama.cpp", 1.0)])
def test_the_edge_is_in_logits_at_any_temperature(order, factor):
    z = torch.tensor([[5.0, 4.0, 3.0, 1.0, -7.0]])
    spec = SamplingSpec(min_p=float(np.exp(-1.0)), temperature=2.0)
    assert support_of(z, spec, order).edge[0, 2] == pytest.approx(3.0 - (5.0 - factor), abs=1e-6)


@pytest.mark.parametrize("order", ENGINES)
def test_moving_mass_by_the_edge_cost_moves_the_nucleus(order):
    """Tilting the tokens before one against the rest by its cost brings it to the edge."""
    z = rows_of(1, 40, 1.0, seed=3)
    spec = SamplingSpec(top_p=0.8)
    support = support_of(z, spec, order)
    place = int(support.kept[0])  # first one out
    cost = -support.edge[0, place]
    assert 0 < cost < 1
    tilted = z[0].clone()
    tilted[torch.from_numpy(support.ids[0, :place])] -= cost + 1e-4
    assert support_of(tilted, spec, order).kept[0] >= place + 1


@pytest.mark.parametrize("order", ENGINES)
def test_a_flat_row_is_sorted_to_its_end(order):
    z = rows_of(2, 5000, 0.05)
    support = support_of(z, SamplingSpec(top_p=0.9), order)
    assert (support.kept > 4000).all()
    assert kept(support, 1) <= set(range(5000))
    far = support_of(z, SamplingSpec(top_k=3), order, [int(row.argmin()) for row in z])
    assert (far.claimed_column == -1).all()
    assert np.isfinite(far.claimed_edge).all()
    assert far.ids.shape[1] < 50


def test_the_nucleus_of_what_min_p_leaves_counts_mass_beyond_the_sorted_head():
    """Only 1,024 tokens are sorted at first; here min-p leaves about 4,000 and top-p takes 3,400 of them."""
    z = rows_of(3, 4096, 0.3)
    spec = SamplingSpec(top_p=0.9, min_p=1e-3)
    support = support_of(z, spec, "vllm")
    for row in range(3):
        theirs = kept_by_vllm(z[row], spec)
        # Float32 cumulation over a flat row misplaces the edge by a few of thousands.
        assert len(kept(support, row) ^ theirs) <= 3
        assert len(theirs) > 3000


def test_only_llama_cpp_filters_before_the_temperature():
    z = rows_of(1, 200)
    spec = SamplingSpec(top_p=0.8, temperature=0.25)
    sizes = {order: int(support_of(z, spec, order).kept[0]) for order in ENGINES}
    assert sizes["vllm"] == sizes["transformers"] < sizes["llama.cpp"]


def test_vllm_cuts_by_min_p_before_the_nucleus_and_transformers_after():
    z = torch.tensor([[2.0, 1.9, *([0.0] * 20)]])
    z[0, 2:] -= torch.arange(20) * 1e-3
    spec = SamplingSpec(top_p=0.55, min_p=0.5)
    assert support_of(z, spec, "vllm").kept.tolist() == [2]
    assert kept_by_vllm(z[0], spec) == {0, 1}
    assert support_of(z, spec, "transformers").kept.tolist() == [2]
    tighter = SamplingSpec(top_p=0.45, min_p=0.5)
    assert support_of(z, tighter, "vllm").kept.tolist() == [1]
    assert support_of(z, tighter, "transformers").kept.tolist() == [2]
    assert kept_by_vllm(z[0], tighter) == {0}
    assert kept_by_transformers(z[0], tighter) == {0, 1}


@pytest.mark.parametrize("order", ENGINES)
def test_equal_logits_at_the_cut_keep_a_prefix_and_a_claim_on_the_tie_costs_next_to_nothing(order):
    z = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    support = support_of(z, SamplingSpec(top_k=2), order, [4])
    assert support.kept.tolist() == [2]
    assert support.ids[0, :2].tolist() == [1, 2]
    assert -1e-300 < support.claimed_edge[0] < 0


@pytest.mark.parametrize("order", ENGINES)
@pytest.mark.parametrize("spec", SPECS, ids=spec_id)
def test_the_sorted_head_and_the_whole_row_tell_the_same(order, spec):
    z = rows_of(4, 4000, 3.0)
    likely = [int(row.argmax()) for row in z]
    unlikely = [int(row.argmin()) for row in z]  # forces the full sort
    short, full = support_of(z, spec, order, likely), support_of(z, spec, order, unlikely)
    assert short.kept.tolist() == full.kept.tolist()
    columns = min(short.edge.shape[1], full.edge.shape[1])
    assert short.ids[:, :columns].tolist() == full.ids[:, :columns].tolist()
    np.testing.assert_allclose(short.edge[:, :columns], full.edge[:, :columns], rtol=1e-9, atol=1e-9)


def test_a_filter_that_cuts_nothing_keeps_everything():
    z = rows_of(2, 30)
    for order in ENGINES:
        assert support_of(z, SamplingSpec(top_k=30), order).kept.tolist() == [30, 30]
        assert support_of(z, SamplingSpec(top_k=99), order).kept.tolist() == [30, 30]
