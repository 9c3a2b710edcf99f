"""Typical-p, top-n-sigma and XTC keep what each engine keeps, and no token's edge is infinitely far."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from auditor.errors import SamplingUnsupportedError
from auditor.reference.noise import SCHEMES
from auditor.reference.sampling import SamplingSpec
from auditor.reference.shape_filters import FAR, check_shape, shape_row

CLOSE = 1e-5  # an edge nearer than this is decided by float32 rounding
F32 = np.float32
TORCH = [
    SamplingSpec(typical_p=0.9),
    SamplingSpec(typical_p=0.2, temperature=0.7),
    SamplingSpec(typical_p=0.999, temperature=1.6),
    SamplingSpec(typical_p=1e-4),
    SamplingSpec(typical_p=0.8, top_k=20, temperature=1.3),
    SamplingSpec(typical_p=0.5, top_p=0.9),
    SamplingSpec(typical_p=0.7, min_p=0.05),
    SamplingSpec(typical_p=0.6, top_k=40, top_p=0.95, min_p=0.02, temperature=0.8),
    SamplingSpec(typical_p=0.9, top_k=1),
]
LLAMA_CPP = [
    *TORCH,
    SamplingSpec(top_n_sigma=1.0),
    SamplingSpec(top_n_sigma=0.3, temperature=0.5),
    SamplingSpec(top_n_sigma=2.5, top_k=12),
    SamplingSpec(top_n_sigma=1.5, top_p=0.8, min_p=0.1),
    SamplingSpec(xtc_probability=0.5, xtc_threshold=0.1),
    SamplingSpec(xtc_probability=0.5, xtc_threshold=0.01, temperature=0.6),
    SamplingSpec(xtc_probability=1.0, xtc_threshold=0.05, top_k=5),
    SamplingSpec(xtc_probability=1.0, xtc_threshold=0.5),
    SamplingSpec(xtc_probability=0.2, xtc_threshold=0.02, top_n_sigma=1.0),
    SamplingSpec(xtc_probability=0.2, xtc_threshold=1e-3, top_k=9),
]


def by_transformers(z, spec):
    """The library's own processors, in `generate`'s order; ids kept."""
    warpers = [TemperatureLogitsWarper(spec.temperature)]
    warpers += [TopKLogitsWarper(spec.top_k)] if spec.top_k else []
    warpers += [TopPLogitsWarper(spec.top_p)] if spec.top_p < 1 else []
    warpers += [MinPLogitsWarper(spec.min_p)] if spec.min_p > 0 else []
    warpers += [TypicalLogitsWarper(spec.typical_p)]
    x = torch.from_numpy(z)[None]
    for warper in warpers:
        x = warper(None, x)
    return torch.isfinite(x[0]).nonzero()[:, 0].tolist()


class PlainLlamaCpp:
    """llama.cpp's chain by the letter, a candidate at a time: [id, logit, p], float32."""

    def __init__(self, z):
        self.candidates = [[i, x, F32(0)] for i, x in enumerate(z)]

    def sort(self):
        self.candidates.sort(key=lambda c: -c[1])

    def softmax(self):
        largest, total = max(c[1] for c in self.candidates), F32(0)
        for c in self.candidates:
            c[2] = np.exp(c[1] - largest, dtype=F32)
            total += c[2]
        for c in self.candidates:
            c[2] /= total

    def top_n_sigma(self, n):
        valid = [c[1] for c in self.candidates if np.isfinite(c[1])]
        if n <= 0 or len(self.candidates) < 2:
            return
        total, squares = F32(0), F32(0)
        for x in valid:
            total += x
        mean = total / F32(len(valid))
        for x in valid:
            squares = F32(float(squares) + float(x - mean) ** 2)
        least = max(valid) - F32(n) * np.sqrt(squares / F32(len(valid)))
        for c in self.candidates:
            c[1] = F32(-np.inf) if c[1] < least else c[1]

    def top_k(self, k):
        if k > 0:
            self.sort()
            del self.candidates[k:]

    def typical(self, mass):
        if mass >= 1:
            return
        self.sort()
        self.softmax()
        entropy = F32(0)
        for c in self.candidates:
            entropy += -c[2] * np.log(c[2])
        self.candidates.sort(key=lambda c: abs(-np.log(c[2]) - entropy))
        self._until(lambda total: total > F32(mass))

    def top_p(self, mass):
        if mass >= 1:
            return
        self.softmax()
        self.sort()
        self._until(lambda total: total >= F32(mass))

    def _until(self, enough):
        total = F32(0)
        for i, c in enumerate(self.candidates):
            total += c[2]
            if enough(total):
                del self.candidates[i + 1 :]
                return

    def min_p(self, share):
        if share > 0:
            least = max(c[1] for c in self.candidates) + np.log(F32(share))
            self.candidates = [c for c in self.candidates if c[1] >= least]

    def xtc(self, probability, threshold, chance):
        if probability <= 0 or threshold > 0.5 or len(self.candidates) < 2 or chance > F32(probability):
            return
        self.sort()
        self.softmax()
        last = 0
        for i, c in enumerate(self.candidates):
            if c[2] < F32(threshold):
                break
            last = i
        del self.candidates[:last]

    def run(self, spec, chance):
        """Ids and logits of what reaches the draw, in order."""
        self.top_n_sigma(spec.top_n_sigma)
        self.top_k(spec.top_k)
        self.typical(spec.typical_p)
        self.top_p(spec.top_p)
        self.min_p(spec.min_p)
        self.xtc(spec.xtc_probability, spec.xtc_threshold, chance)
        return [c[0] for c in self.candidates if np.isfinite(c[1])]


def by_llama_cpp(z, spec, chance=0.0):
    return PlainLlamaCpp(z).run(spec, F32(chance))


ROWS = ("spread", "flat", "peaked", "ties", "excluded", "alone")


def row_of(kind, vocabulary, seed):
    z = np.random.default_rng(seed).normal(0.0, 2.0, vocabulary).astype(F32)
    if kind == "flat":
        z *= F32(0.05)
    if kind == "peaked":
        z *= F32(4.0)
    if kind == "ties":
        z = z.round()
    if kind == "excluded":
        z[::3] = -np.inf
    if kind == "alone":
        z[np.arange(vocabulary) != z.argmax()] = -np.inf
    return z


def kept(row):
    return np.flatnonzero(row.edge >= 0).tolist()


@given(
    kind=st.sampled_from(ROWS),
    vocabulary=st.integers(2, 400),
    seed=st.integers(0, 2**20),
    spec=st.sampled_from(TORCH),
)
@settings(max_examples=300, deadline=None)
def test_transformers_keeps_what_its_own_warpers_keep(kind, vocabulary, seed, spec):
    z = row_of(kind, vocabulary, seed)
    row = shape_row(z, spec, "transformers")
    assert row.modelled
    assert kept(row)
    if np.abs(row.edge).min() >= CLOSE:
        assert kept(row) == by_transformers(z, spec)


@given(
    kind=st.sampled_from(ROWS),
    vocabulary=st.integers(2, 400),
    seed=st.integers(0, 2**20),
    spec=st.sampled_from(LLAMA_CPP),
    chance=st.sampled_from([0.0, 0.3, 0.7]),
)
@settings(max_examples=300, deadline=None)
def test_llama_cpp_keeps_what_its_chain_keeps(kind, vocabulary, seed, spec, chance):
    z = row_of(kind, vocabulary, seed)
    row = shape_row(z, spec, "llama.cpp", chance)
    assert kept(row)
    alive = np.isfinite(z).sum()
    # -inf among the candidates makes its entropy NaN, unless top-k leaves them out.
    cut = 0 < spec.top_k <= alive
    if spec.typical_p < 1 and alive < vocabulary and not cut:
        return
    if np.abs(row.edge).min() >= CLOSE and row.modelled:
        assert kept(row) == sorted(by_llama_cpp(z, spec, chance))


@pytest.mark.parametrize("spec", [s for s in LLAMA_CPP if s.typical_p < 1.0 or s.crossed], ids=str)
def test_llama_cpp_candidates_stand_in_the_order_of_its_last_sort(spec):
    for seed in range(20):
        z = row_of("spread", 200, seed)
        row = shape_row(z, spec, "llama.cpp", 0.1)
        if np.abs(row.edge).min() < CLOSE:
            continue
        place = np.arange(200.0) if row.place is None else row.place
        ours = sorted(kept(row), key=lambda token: (place[token], -z[token]))
        assert ours == by_llama_cpp(z, spec, 0.1)


CASES = [("transformers", spec) for spec in TORCH] + [("llama.cpp", spec) for spec in LLAMA_CPP]


@pytest.mark.parametrize(("order", "spec"), CASES)
@given(
    kind=st.sampled_from(("spread", "flat", "peaked")), seed=st.integers(0, 2**20), share=st.floats(0, 0.99)
)
@settings(max_examples=15, deadline=None)
def test_a_movement_below_an_edge_cost_does_not_carry_the_token_across(order, spec, kind, seed, share):
    """Costs are from below: logits that move against each other by less than a token's cost leave it there."""
    z = row_of(kind, 120, seed)
    before = shape_row(z, spec, order, 0.1)
    rng = np.random.default_rng(seed)
    costs = np.abs(before.edge[np.isfinite(before.edge)])
    filters = (spec.top_k > 0, spec.top_p < 1, spec.min_p > 0, spec.top_n_sigma > 0, spec.crossed)
    # A filter's costs are far from its edge only as long as the cuts before it stay.
    reach = [0.0] if sum(filters) + (spec.typical_p < 1) > 1 else [0.0, 0.05, 0.3]
    for scale in np.quantile(costs, reach) if len(costs) else ():
        movement = float(scale) * share
        moved = z + (movement * (rng.random(120) - 0.5)).astype(F32)
        after = shape_row(moved, spec, order, 0.1)
        crossed = (after.edge >= 0) != (before.edge >= 0)
        assert not (crossed & (np.abs(before.edge) > movement + CLOSE)).any()


@pytest.mark.parametrize(("order", "spec"), CASES)
def test_every_edge_is_finite_for_a_token_that_can_be_had(order, spec):
    for kind, seed in product(ROWS, range(5)):
        z = row_of(kind, 60, seed)
        edge = shape_row(z, spec, order, 0.1).edge
        assert not np.isnan(edge).any()
        assert (edge[np.isfinite(z)] > -FAR / 2).all()
        assert (edge[~np.isfinite(z)] == -FAR).all() or spec.temperature != 1.0


def test_a_token_whose_probability_is_lost_leaves_llama_cpp_without_an_entropy():
    z = np.array([0.0, 1.0, -200.0], F32)
    assert not shape_row(z, SamplingSpec(typical_p=0.9), "llama.cpp").modelled
    assert shape_row(z, SamplingSpec(typical_p=0.9, top_k=2), "llama.cpp").modelled
    assert shape_row(z, SamplingSpec(typical_p=0.9), "transformers").modelled


LLAMA, GENERATE = SCHEMES["llama.cpp/mt19937-u64-icdf"], SCHEMES["torch-cpu-multinomial"]
REFUSED = {
    "typical-p of vLLM": (SCHEMES["vllm-cpu-0.32/splitmix64"], SamplingSpec(typical_p=0.9), "typical_p"),
    "typical-p of TGI": (SCHEMES["tgi-gpu/exponential"], SamplingSpec(typical_p=0.9), "typical_p"),
    "top-n-sigma of transformers": (GENERATE, SamplingSpec(top_n_sigma=1.0), "top_n_sigma"),
    "XTC of transformers": (GENERATE, SamplingSpec(xtc_probability=0.1), "xtc_probability"),
    "typical-p of OpenVINO": (
        SCHEMES["openvino-genai-2026.4.1/mt19937-u32-icdf"],
        SamplingSpec(typical_p=0.9),
        "typical_p",
    ),
    "an entropy of excluded tokens": (LLAMA, SamplingSpec(typical_p=0.9, top_n_sigma=1.0), "not a number"),
    "coins that top-p may save": (LLAMA, SamplingSpec(xtc_probability=0.1, top_p=0.9), "coin"),
    "coins that min-p may save": (LLAMA, SamplingSpec(xtc_probability=0.1, min_p=0.1), "coin"),
    "coins that typical-p may save": (LLAMA, SamplingSpec(xtc_probability=0.1, typical_p=0.9), "coin"),
    "a threshold that excluded tokens reach": (
        LLAMA,
        SamplingSpec(xtc_probability=0.1, xtc_threshold=0.0),
        "xtc_threshold",
    ),
    "greedy after typical-p": (LLAMA, SamplingSpec(typical_p=0.9, temperature=0.0), "temperature 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_engine_does_not_offer_or_nobody_can_replay_is_refused_by_name(case):
    scheme, spec, said = REFUSED[case]
    with pytest.raises(SamplingUnsupportedError, match=said):
        check_shape(spec, scheme)


def test_drafts_and_shape_filters_together_are_refused():
    with pytest.raises(SamplingUnsupportedError, match="under speculation"):
        check_shape(SamplingSpec(typical_p=0.9), GENERATE, speculated=True)


@pytest.mark.parametrize(
    ("scheme", "spec"),
    [
        (GENERATE, SamplingSpec(typical_p=0.9, top_k=50, top_p=0.9, min_p=0.01)),
        (LLAMA, SamplingSpec(typical_p=0.9, top_k=50, top_p=0.9, min_p=0.01)),
        (LLAMA, SamplingSpec(top_n_sigma=1.0, top_p=0.9, min_p=0.01)),
        (LLAMA, SamplingSpec(xtc_probability=0.5, top_n_sigma=1.0, top_k=40)),
        (SCHEMES["vllm-cpu-0.32/splitmix64"], SamplingSpec(xtc_probability=0.5, xtc_threshold=0.6)),
    ],
)
def test_what_can_be_replayed_or_is_off_is_let_through(scheme, spec):
    check_shape(spec, scheme)
