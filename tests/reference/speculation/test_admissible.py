"""The admissible set: exactly what speculation can return, and costs that are movements of logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from auditor.kernels.keyed_noise import keyed_noise
from auditor.reference.noise import noise_scheme
from auditor.reference.sampling import SamplingSpec
from auditor.reference.speculation import NO_DRAFT, SpeculatedRows, draw_speculated, score_speculated
from tests.reference.speculation.by_the_book import SPECS, kept_by

OWN = noise_scheme("gumbel-pos-v1")
VOCABULARY = 12


def by_the_rule(z, spec, key, coin, draft):
    """One token of speculation with a one-hot draft, as the paper has it."""
    p = kept_by(z, spec)
    if draft >= 0 and p[draft] > coin:
        return draft
    noise = keyed_noise(OWN.noise, np.array([key], np.uint64), np.arange(len(z))[None])[0]
    with np.errstate(divide="ignore"):
        race = np.where(p > 0, np.log(p) + noise, -np.inf)
    if draft >= 0:
        race[draft] = -np.inf
    return int(race.argmax())


ROW = st.tuples(st.integers(0, 2**32), st.floats(0.002, 0.998), st.sampled_from(list(SPECS)))


def row_of(seed):
    return np.random.default_rng(seed).normal(size=VOCABULARY).astype(np.float32) * 2.0


def scored(z, spec, key, coin, draft, claims):
    count = len(claims)
    rows = SpeculatedRows(
        np.full(count, coin), None if draft is None else np.full(count, draft, np.int64), doubt=0.0
    )
    logits = torch.from_numpy(np.tile(z, (count, 1)))
    keys = np.full(count, key, np.uint64)
    return score_speculated(logits, np.asarray(claims, np.int64), spec, OWN, keys, rows)


def edges_apart(z, spec):
    """Whether no filter's edge and no coin is so near that the two ways of adding up may differ."""
    p = kept_by(z, spec)
    near = kept_by(z + np.linspace(-1e-4, 1e-4, len(z)).astype(np.float32), spec)
    return ((p > 0) == (near > 0)).all()


@given(ROW, st.integers(-1, VOCABULARY - 1))
def test_with_a_logged_draft_one_token_is_legal(row, draft):
    seed, coin, name = row
    z, spec = row_of(seed), SPECS[name]
    if not edges_apart(z, spec):
        return
    legal = by_the_rule(z, spec, seed, coin, draft)
    stats = scored(z, spec, seed, coin, draft, range(VOCABULARY))
    assert np.flatnonzero(stats.margin == 0.0).tolist() == [legal]
    assert (stats.winner[stats.margin > 0] == legal).all()
    drawn = draw_speculated(
        torch.from_numpy(z[None]),
        spec,
        OWN,
        np.array([seed], np.uint64),
        SpeculatedRows(np.array([coin]), np.array([draft]), 0.0),
    )
    assert drawn.tolist() == [legal]


@given(ROW)
def test_without_logged_drafts_the_admissible_are_those_that_some_draft_leads_to(row):
    seed, coin, name = row
    z, spec = row_of(seed), SPECS[name]
    if not edges_apart(z, spec):
        return
    possible = {by_the_rule(z, spec, seed, coin, draft) for draft in range(NO_DRAFT, VOCABULARY)}
    stats = scored(z, spec, seed, coin, None, range(VOCABULARY))
    assert set(np.flatnonzero(stats.margin == 0.0).tolist()) == possible


@given(ROW, st.integers(NO_DRAFT, VOCABULARY - 1), st.integers(0, VOCABULARY - 1), st.booleans())
def test_moving_logits_by_the_margin_makes_the_claim_admissible(row, draft, claim, logged):
    seed, coin, name = row
    z, spec = row_of(seed), SPECS["plain" if name in ("top-k", "top-p", "min-p") else name]
    margin = scored(z, spec, seed, coin, draft if logged else None, [claim]).margin[0]
    moved = z.astype(np.float64)
    moved[claim] += margin + 1e-4
    rivals = [d for d in range(NO_DRAFT, VOCABULARY) if not logged or d == draft]
    found = set()
    for d in rivals:
        lowered = moved.copy()
        if d not in (claim, NO_DRAFT):
            lowered[d] -= margin + 1e-4
        found.add(by_the_rule(lowered.astype(np.float32), spec, seed, coin, d))
    assert claim in found


@given(ROW, st.integers(NO_DRAFT, VOCABULARY - 1), st.integers(0, 2**32), st.booleans())
def test_numeric_noise_below_half_the_slack_brings_no_other_token(row, draft, shake, logged):
    seed, coin, name = row
    z, spec = row_of(seed), SPECS["plain" if name in ("top-k", "top-p", "min-p") else name]
    known = draft if logged else None
    stats = scored(z, spec, seed, coin, known, range(VOCABULARY))
    admissible = set(np.flatnonzero(stats.margin == 0.0).tolist())
    slack = stats.slack[0]
    half = np.random.default_rng(shake).uniform(-1, 1, VOCABULARY) * min(slack, 50.0) * 0.499
    shaken = (z + half).astype(np.float32)
    drafts = [draft] if logged else range(NO_DRAFT, VOCABULARY)
    assert {by_the_rule(shaken, spec, seed, coin, d) for d in drafts} <= admissible


@pytest.mark.parametrize("name", list(SPECS))
def test_tokens_follow_the_models_distribution_whatever_the_draft(name):
    """Chi-square over 3,000 rows of noise, with the likeliest, a rare and an impossible draft."""
    z, spec, count = row_of(4), SPECS[name], 3_000
    p = kept_by(z, spec)
    rule_keys = OWN.row_keys(17, 1, 0, count)
    coins = np.random.default_rng(8).uniform(size=count)
    logits = torch.from_numpy(np.tile(z, (count, 1)))
    for draft in (int(p.argmax()), int(np.argsort(p)[-3]), int(p.argmin())):
        rows = SpeculatedRows(coins, np.full(count, draft, np.int64), 0.0)
        drawn = np.bincount(draw_speculated(logits, spec, OWN, rule_keys, rows), minlength=VOCABULARY)
        assert drawn[p == 0].sum() == 0
        rare = count * p < 10  # counted together
        seen, expected = (np.append(x[~rare], x[rare].sum()) for x in (drawn, count * p))
        statistic = ((seen - expected) ** 2 / np.maximum(expected, 1.0)).sum()
        assert statistic < 40.0  # at most 11 degrees of freedom: 3.6e-5


def test_at_most_three_tokens_are_admissible_on_average():
    generator, sizes = np.random.default_rng(1), []
    for _ in range(200):
        seed = int(generator.integers(2**32))
        stats = scored(row_of(seed), SPECS["plain"], seed, generator.uniform(), None, range(VOCABULARY))
        sizes.append((stats.margin == 0.0).sum())
    assert 1.0 < np.mean(sizes) <= 3.0


def test_greedy_requests_are_scored_as_if_nothing_had_been_drafted():
    z = row_of(2)
    stats = scored(z, SamplingSpec(temperature=0.0), 1, 0.5, 3, range(VOCABULARY))
    assert np.flatnonzero(stats.margin == 0.0).tolist() == [int(z.argmax())]
