"""Activations committed to and challenged through files: a random layer, the part of the model below it, a verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from auditor.activation_challenges import (
    answer_challenges,
    challenge_log_e,
    check_activations,
    commit_activations,
    draw_challenges,
    read_commitments,
)
from auditor.errors import FingerprintError, OptionError
from auditor.fingerprints.activation_difr import FINAL, FingerprintKind
from auditor.generation import Provider, generate
from auditor.reference.demo.prompts import TARGET, demo_conversations
from auditor.reference.deviations import HONEST, deviation
from auditor.reference.model import Model
from auditor.reference.sampling import SamplingSpec
from auditor.replay import Reference

KIND = FingerprintKind("int8", 16)
LAYERS = (FINAL, 1, 3)


@cache
def reference():
    torch.set_num_threads(1)
    return Reference.load(TARGET)


@cache
def provider():
    return Provider.load(TARGET)


@cache
def log(requests=3, seed=61):
    spec = SamplingSpec(max_tokens=8)
    conversations = demo_conversations(requests, seed)
    made = generate(provider(), conversations, deviation=HONEST, seed=seed, sampling=spec)
    return tuple(made)


def randomness(seed=0):
    return np.random.default_rng(seed).bytes


@pytest.fixture
def files(tmp_path):
    return [tmp_path / name for name in ("commitments", "kept", "challenges", "answers")]


def committed(files, traces=None, model=None, layers=LAYERS):
    return commit_activations(
        log() if traces is None else traces,
        model or provider().model,
        layers,
        prompt_of=lambda trace: trace.prompt_token_ids,
        out=files[0],
        kept=files[1],
    )


def through(files, traces=None, model=None, layers=LAYERS, seed=0):
    """All four steps; what was checked."""
    committed(files, traces, model, layers)
    draw_challenges(files[0], count=4, kind=KIND, randomness=randomness(seed), out=files[2])
    answer_challenges(files[0], files[2], files[1], out=files[3])
    return checked(files, traces)


def checked(files, traces=None):
    return list(check_activations(files[0], files[2], files[3], traces or log(), reference()))


def test_honest_states_pass_and_are_near_at_prompt_and_output(files):
    found = through(files)
    assert [one.request for one in found] == [trace.id for trace in log()]
    assert all(one.problem is None for one in found)
    assert all(0 < one.output < 0.5 and 0 < one.prompt < 0.5 for one in found)
    assert files[1].stat().st_mode & 0o077 == 0


def test_cheap_states_are_convicted_at_whatever_layer_is_drawn(files):
    cheap = deviation("weights/int4").model(provider().model, None)
    honest = through(files, log(24, 62), seed=1)
    assert len({one.kind for one in honest}) == len(LAYERS)
    assert challenge_log_e(honest, through(files, log(9, 63), cheap, seed=2)) > np.log(1000)
    assert challenge_log_e(honest, through(files, log(9, 63), seed=2)) < 0
    assert challenge_log_e(honest, []) == 0.0


def test_the_auditor_computes_no_layer_above_the_one_it_asked_for(files, monkeypatch):
    """Random depth is what makes verification cheaper than a whole forward pass."""
    through(files, layers=(1, 3))
    depths, real = [], Model.up_to
    monkeypatch.setattr(Model, "up_to", lambda self, layer: depths.append(layer) or real(self, layer))
    monkeypatch.setattr(Model, "showing", lambda _self, layers: pytest.fail(f"shown {layers}"))
    assert all(one.problem is None for one in checked(files))
    assert len(depths) == 3
    assert set(depths) <= {1, 3}


def change(path, **fields):
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), **fields}), *rest]) + "\n")


def problems(files, traces=None):
    return [None if one.problem is None else one.problem.code for one in checked(files, traces)]


def test_an_answer_of_other_states_than_the_committed_ones_is_named(files):
    through(files)
    published = files[0].read_bytes()
    cheap = deviation("weights/int4").model(provider().model, None)
    committed(files, model=cheap)
    files[0].write_bytes(published)  # the digests stay those of the right states
    answer_challenges(files[0], files[2], files[1], out=files[3])
    assert problems(files) == ["fingerprint-opening"] * 3


def test_a_commitment_made_after_the_challenge_is_named(files):
    through(files)
    cheap = deviation("weights/int4").model(provider().model, None)
    committed(files, model=cheap)
    assert problems(files) == ["fingerprint-opening"] * 3
    with pytest.raises(FingerprintError):
        answer_challenges(files[0], files[2], files[1], out=files[3])


def test_one_requests_commitment_for_another_is_named(files):
    through(files)
    first, second, third = log()
    swapped = (replace(second, id=first.id), replace(first, id=second.id), third)
    assert problems(files, swapped) == ["fingerprint-replayed", "fingerprint-replayed", None]


def test_what_was_challenged_and_not_answered_is_a_problem_not_a_gap(files):
    through(files)
    files[3].write_text("\n".join(files[3].read_text().splitlines()[1:]) + "\n")
    assert problems(files) == ["fingerprint-opening", None, None]
    assert problems(files, log()[:2]) == ["fingerprint-opening", None, "fingerprint-opening"]


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        (0, {"layers": {}}),
        (0, {"layers": {"-2": "AA=="}}),
        (0, {"binding": "AA=="}),
        (0, {"more": 1}),
        (0, {"schema": "other"}),
        (2, {"count": 0}),
        (2, {"secret": "AA=="}),
        (3, {"states": {"01": "AA=="}}),
        (3, {"leaves": ["AA"]}),
        (3, {"fingerprint": 7}),
    ],
)
def test_a_malformed_file_is_refused_with_its_place(files, file, fields):
    through(files)
    change(files[file], **fields)
    with pytest.raises(FingerprintError) as caught:
        checked(files)
    assert f"{files[file]}:1" in caught.value.where


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"fingerprint": "AA=="}, "fingerprint-malformed"),
        ({"states": {}}, "fingerprint-opening"),
        ({"states": {"0": "AAAA"}}, "fingerprint-opening"),
        ({"leaves": []}, "fingerprint-length"),
    ],
)
def test_a_bad_answer_is_that_requests_problem_alone(files, fields, code):
    through(files)
    change(files[3], **fields)
    assert problems(files) == [code, None, None]


def test_a_line_twice_and_bytes_that_are_no_json_are_refused(files):
    through(files)
    text = files[0].read_text()
    for bad in (text + text, "{", "[]"):
        files[0].write_text(bad)
        with pytest.raises(FingerprintError):
            read_commitments(files[0])
    files[1].write_bytes(b"no tensors")
    files[0].write_text(text)
    with pytest.raises(FingerprintError):
        answer_challenges(files[0], files[2], files[1], out=files[3])


def test_nothing_to_commit_to_is_refused(files):
    for layers in ((), (5,)):
        with pytest.raises(OptionError):
            committed(files, layers=layers)


def test_more_positions_than_there_are_open_all(files):
    committed(files)
    draw_challenges(files[0], count=10_000, kind=KIND, randomness=randomness(), out=files[2])
    answer_challenges(files[0], files[2], files[1], out=files[3])
    assert problems(files) == [None] * 3
