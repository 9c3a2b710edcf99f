"""What a diagnosis rests on beside replayed tokens: where in an answer they differ, and fingerprints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

from auditor.diagnosis.filler import filler_fit, stretch_gain
from auditor.diagnosis.replaying import counted
from auditor.diagnosis.states import distance, readable, state_fits
from auditor.evidence import Calibration
from auditor.fingerprints.activation_difr import FingerprintKind, fingerprint
from auditor.noise_model import RequestCounts, log_likelihoods
from auditor.reference.head import RowStats

REQUESTS, TOKENS = 12, 100


def answer(missed, rng):
    """A request whose tokens miss by logits where told, and match elsewhere."""
    n = len(missed)
    claimed = np.arange(n)
    slack = rng.uniform(0.5, 3.0, n)
    nothing = np.zeros(n, np.bool_)
    return RowStats(
        claimed=claimed,
        winner=np.where(missed, n, claimed),
        margin=np.where(missed, slack + rng.uniform(0.0, 5.0, n), 0.0),
        slack=slack,
        rank=np.zeros(n, np.int64),
        log_probability=np.zeros(n),
        outside=nothing,
        edge=np.zeros(n),
        filtered=nothing,
        top_ids=np.zeros((n, 1), np.int64),
        top_logits=np.zeros((n, 1), np.float32),
    )


@pytest.fixture(scope="module")
def calibration():
    return Calibration.of([RequestCounts(200, {36: 199}, {(20, 20): 1})] * 24)


def over_other(requests, calibration):
    """By how many nats a stretch of filler is likelier than noise of any scale and misses at any rate."""
    grid = log_likelihoods(counted(one) for one in requests).sum(axis=0)
    return filler_fit(requests, calibration) - float(logsumexp(grid) - np.log(grid.size))


@pytest.mark.parametrize("rate", [0.3, 0.9])
def test_a_stretch_that_is_not_the_model_s_is_told_from_as_many_misses_anywhere(calibration, rate):
    rng = np.random.default_rng(1)
    padded, strewn = [], []
    for start in rng.integers(5, 40, REQUESTS):
        missed = np.zeros(TOKENS, np.bool_)
        missed[start : start + 30] = rng.random(30) < rate
        padded.append(answer(missed, rng))
        strewn.append(answer(rng.permutation(missed), rng))
    assert over_other(padded, calibration) > 20.0
    assert over_other(strewn, calibration) < -20.0


def test_what_begins_and_stays_is_no_stretch(calibration):
    rng = np.random.default_rng(2)
    stays = np.arange(TOKENS) >= 60
    assert over_other([answer(stays, rng) for _ in range(REQUESTS)], calibration) < 0.0


def test_an_answer_too_short_for_a_stretch_is_an_honest_one(calibration):
    short = [answer(np.zeros(6, np.bool_), np.random.default_rng(3))]
    long = [answer(np.zeros(600, np.bool_), np.random.default_rng(3))]
    assert np.isfinite(filler_fit(short, calibration))
    assert filler_fit(short, calibration) > filler_fit(long, calibration)


@given(st.lists(st.floats(-30.0, 5.0), max_size=60))
def test_every_place_of_a_stretch_counts_once(gains):
    gain = np.array(gains, np.float64)
    behind = max(8, int(np.ceil(len(gain) / 4)))
    places = [gain[a:b].sum() for b in range(8, len(gain) - behind + 1) for a in range(b - 7)]
    found = stretch_gain(gain)
    assert found == -np.inf if not places else np.isclose(found, logsumexp(places) - np.log(len(places)))


def states(seed, tokens=40):
    return torch.randn(tokens, 64, generator=torch.Generator().manual_seed(seed))


def sent(hidden, kind="int8:16"):
    return fingerprint(hidden, FingerprintKind.parse(kind), projection_seed=bytes(16), binding=bytes(8))


def test_the_states_that_were_computed_are_likelier_than_any_others():
    own, declared, other = states(1), states(1) + 0.1 * states(2), states(1) + 0.2 * states(3)
    rounded = own + 0.01 * states(4)
    given_ = sent(own)
    far = {n: [distance(given_, h)] * REQUESTS for n, h in (("right", rounded), ("wrong", other))}
    gains, unknown = state_fits([distance(given_, declared)] * REQUESTS, far)
    assert gains["right"] > unknown > 0.0 > gains["wrong"]
    assert gains["right"] > 100.0
    assert gains["wrong"] > -REQUESTS  # it may have been at work now and then, or never in these


def test_states_of_now_and_then_are_nearer_than_either_alone():
    declared, other = states(1), states(5)
    mixed = torch.where((torch.arange(40) % 2 == 0)[:, None], declared, other) + 0.01 * states(6)
    gains, _ = state_fits(
        [distance(sent(mixed), declared)] * REQUESTS, {"partly": [distance(sent(mixed), other)] * REQUESTS}
    )
    assert gains["partly"] > 100.0


def test_states_as_declared_say_nothing_for_an_unknown_cause():
    own = states(1)
    told = [distance(sent(own), own + 0.01 * states(7))] * REQUESTS
    gains, unknown = state_fits(told, {"other": [distance(sent(own), states(8))] * REQUESTS})
    assert unknown == 0.0 > gains["other"]


def test_requests_without_fingerprints_say_nothing_of_states():
    assert state_fits([None, None], {"any": [None, None]}) == ({"any": 0.0}, 0.0)
    assert distance(None, states(1)) is None
    narrow = states(1)[:, :8]
    assert distance(sent(states(1)), narrow) is None
    assert state_fits([np.ones(40)], {"a smaller model": [None]}) == ({"a smaller model": 0.0}, 0.0)


def test_only_fingerprints_of_final_states_are_compared():
    final, precise, layer = sent(states(1)), sent(states(1), "int8:32"), sent(states(1), "int8:16:1:0")
    assert readable([layer]) is None
    assert readable([layer, final, precise]) is precise
