"""Every engine's scheme elects what a plain implementation of the engine samples, and what its own code elected."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.reference.head import effective_sampling, score_rows
from auditor.reference.noise import SCHEMES, Declared, Draws
from auditor.reference.sampling import SamplingSpec

HERE, VECTORS = Path(__file__).parent, Path(__file__).parents[2] / "vectors"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PlainEngine = load(HERE / "plain_engines.py").PlainEngine
GOLDEN = json.loads((VECTORS / "engine-noise.json").read_text())["cases"]
PLAIN = [
    name
    for name in SCHEMES
    if name.split("/")[0] in ("vllm-gpu-v2", "vllm-gpu-v1", "vllm-cpu-0.31", "tgi-gpu", "sglang")
    or name.startswith(("openvino", "torch-cuda"))
]
SPECS = {
    "plain": SamplingSpec(temperature=0.8),
    "hot": SamplingSpec(temperature=1.7),
    "top-k": SamplingSpec(top_k=6),
    "top-p": SamplingSpec(top_p=0.8, temperature=0.7),
    "both": SamplingSpec(top_k=20, top_p=0.9, temperature=1.2),
}


def refused(scheme, spec):
    if scheme.startswith("sglang"):
        return spec.filtered
    return scheme.startswith("openvino") and spec.top_k > 0 and spec.top_p == 1.0


CASES = [(s, n) for s in PLAIN for n in SPECS if not refused(s, SPECS[n])]


def rows_of(kind, count, vocabulary, seed):
    z = torch.randn(count, vocabulary, generator=torch.Generator().manual_seed(seed)) * 2
    if kind == "ties":
        z = z.round()
    if kind == "excluded":
        z[:, ::3] = -torch.inf
    if kind == "alone":
        alone = torch.full_like(z, -torch.inf)
        z = alone.scatter(1, z.argmax(dim=1, keepdim=True), 1.0)
    return z


def scored(z, claimed, scheme, spec, seed, prompt_tokens):
    scheme = SCHEMES[scheme].declared(Declared(z.shape[1], None, spec.top_k, spec.top_p, spec.min_p))
    spec = effective_sampling(spec, scheme)
    draws = Draws(scheme, seed, prompt_tokens, z.shape[1], spec).take(len(z))
    return score_rows(z, np.asarray(claimed, np.int64), spec, scheme, draws)


def honest(z, scheme, spec, seed, prompt_tokens):
    engine = PlainEngine(scheme, seed, prompt_tokens, spec)
    return [engine.sample(row) for row in z]


@pytest.mark.parametrize(("scheme", "name"), CASES)
def test_a_plain_engine_is_matched_at_margin_zero(scheme, name):
    z = rows_of("random", 12, 300, 3)
    claimed = honest(z, scheme, SPECS[name], 2**40 + 77, 9)
    stats = scored(z, claimed, scheme, SPECS[name], 2**40 + 77, 9)
    clear = stats.slack > 1e-5
    assert clear.mean() > 0.7
    assert stats.matched[clear].all()
    assert (stats.margin[clear] == 0).all()
    assert np.isfinite(stats.margin).all()


@settings(deadline=None, max_examples=40)
@given(
    scheme=st.sampled_from(PLAIN),
    kind=st.sampled_from(["random", "ties", "excluded", "alone"]),
    vocabulary=st.sampled_from([1, 2, 65, 130]),
    seed=st.integers(0, 2**63 - 1),
)
def test_ties_infinities_and_lone_candidates_are_elected_as_by_the_engine(scheme, kind, vocabulary, seed):
    z = rows_of(kind, 3, vocabulary, seed % 1000)
    if kind == "excluded" and vocabulary < 3:
        z = rows_of("random", 3, vocabulary, seed % 1000)
    claimed = honest(z, scheme, SPECS["plain"], seed, 2)
    stats = scored(z, claimed, scheme, SPECS["plain"], seed, 2)
    clear = stats.slack > 1e-4
    assert stats.matched[clear].all()
    assert (stats.margin < 1e-3).all()
    if kind == "alone":
        assert stats.matched.all()


@pytest.mark.parametrize("scheme", PLAIN)
def test_another_seed_or_position_is_not_matched(scheme):
    z = rows_of("random", 60, 300, 5)
    spec = SPECS["hot"]
    stats = scored(z, scored(z, [0] * 60, scheme, spec, 5, 9).winner, scheme, spec, 6, 9)
    assert stats.matched.mean() < 0.2
    moved = scored(z[1:], scored(z, [0] * 60, scheme, spec, 5, 9).winner[1:], scheme, spec, 5, 9)
    assert moved.matched.mean() < 0.2


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"{c['scheme']}-{c['seed']}")
def test_what_the_engines_own_code_elected_is_matched(case):
    """Tokens made by the released wheels' sampling functions (tests/vectors/engine_noise.py)."""
    z = np.stack([logits_of(row) for row in range(len(case["tokens"]))])
    stats = scored(
        torch.from_numpy(z), case["tokens"], case["scheme"], SamplingSpec(), case["seed"], case["first"] + 1
    )
    assert stats.matched.all()


def logits_of(row, vocabulary=1500):
    z = (np.arange(vocabulary, dtype=np.uint64) * 2654435769 + row * 40503) % 2**32
    return ((z / 2.0**32 - 0.5) * 8).astype(np.float32)


def test_every_variant_with_a_released_source_has_golden_vectors():
    missing = {n for n in SCHEMES if n.startswith(("vllm-gpu-v2", "sglang"))} - {c["scheme"] for c in GOLDEN}
    assert missing == {"vllm-gpu-v2/murmur24"}  # of which no release exists
