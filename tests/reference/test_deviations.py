"""Deviations: each changes what it says and nothing else; the honest one changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.errors import OptionError
from auditor.reference.decode import Ask, generate
from auditor.reference.deviations import (
    DEVIATIONS,
    HONEST,
    Prompt,
    deviation,
    inputs,
    key_value,
    model,
    sampler,
    weights,
)
from auditor.reference.deviations.inputs import HIDDEN_INSTRUCTION
from auditor.reference.deviations.weights import float8_rows, int4_groups, int8_rows
from auditor.reference.model import Model
from auditor.reference.noise import SCHEMES
from auditor.reference.policies.rounding import float8_cache, integer_cache
from auditor.reference.request import Request
from auditor.reference.runner import Runner
from auditor.reference.sampling import SamplingSpec
from auditor.reference.tokenizer import Tokenizer

DEMO = Path(__file__).parents[2] / "reference" / "demo"
TARGET, DRAFT = DEMO / "target", DEMO / "draft"
SPEC = SamplingSpec(temperature=1.2, top_p=0.8, repetition_penalty=1.4)
MESSAGES = ({"role": "user", "content": "What does json do?"},)
INPUT_ONLY = {"prompt/system", "prompt/template"}


@pytest.fixture(scope="module")
def target():
    return Model.load(TARGET)


@pytest.fixture(scope="module")
def draft():
    return Model.load(DRAFT)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(TARGET)


@pytest.fixture(scope="module")
def prompt(tokenizer):
    return Prompt(tuple(tokenizer.encode_chat(MESSAGES)), MESSAGES, tokenizer)


@pytest.fixture(scope="module")
def honest_log(target, prompt):
    """Honest requests with their prompts, filtered and not."""
    scheme = SCHEMES["gumbel-pos-v1"]
    asks = [
        Ask(prompt.token_ids, len(prompt.token_ids), spec, 40 + n, scheme, 60, frozenset())
        for n, spec in enumerate([SPEC, SPEC, replace(SPEC, top_p=1.0), replace(SPEC, top_p=1.0)])
    ]
    outputs = generate(target, asks)
    return [
        ({"own": Request(ask.prompt, output, ask.spec, ask.seed, scheme)}, prompt)
        for ask, output in zip(asks, outputs, strict=True)
    ]


def matched(target, log, deviation, deviant):
    return torch.cat(
        [torch.from_numpy(stats.matched) for _, stats in Runner(target).shadow(log, deviation, deviant)]
    )


def hidden(model, ids):
    return model.prefill([torch.tensor(ids)])


def test_names_are_unique_and_name_their_family():
    assert len(DEVIATIONS) == sum(
        len(family.DEVIATIONS) for family in (model, weights, key_value, sampler, inputs)
    )
    for name, entry in DEVIATIONS.items():
        assert name == entry.name
        assert name.count("/") == 1
        assert deviation(name) is entry
    assert HONEST.name not in DEVIATIONS
    assert deviation("honest") is HONEST


@pytest.mark.parametrize("entry", [HONEST, *DEVIATIONS.values()], ids=lambda d: d.name)
def test_each_says_what_is_gained_and_where_it_is_described(entry):
    assert entry.gain.strip()
    assert entry.source.strip()


def test_an_unknown_name_is_refused_and_says_who_knows_them():
    with pytest.raises(OptionError, match="audit matrix --list"):
        deviation("weights/int3")


def test_the_honest_provider_changes_nothing(target, prompt):
    assert HONEST.model(target, None) is target
    assert HONEST.prompt(prompt) == prompt.token_ids
    assert HONEST.sampling(SPEC) == SPEC
    assert HONEST.seed(7) == 7


def test_the_shadow_of_the_honest_provider_matches_everywhere(target, honest_log):
    assert matched(target, honest_log, HONEST, target).all()


@pytest.mark.parametrize("entry", DEVIATIONS.values(), ids=lambda d: d.name)
def test_a_deviation_moves_its_own_seams_only(entry, target, draft, prompt):
    """Which of model, prompt, sampling and seed it touches, found by trying."""
    changed = set()
    deviant = entry.model(target, draft)
    if not torch.equal(
        deviant.logits(hidden(deviant, prompt.token_ids)), target.logits(hidden(target, prompt.token_ids))
    ):
        changed.add("model")
    if tuple(entry.prompt(prompt)) != prompt.token_ids:
        changed.add("prompt")
    if entry.sampling(SPEC) != SPEC:
        changed.add("sampling")
    if entry.seed(7) != 7:
        changed.add("seed")
    family = entry.name.partition("/")[0]
    expected = {"seed": "seed", "temperature": "sampling", "filter": "sampling", "prompt": "prompt"}
    expected["penalty"] = "sampling"
    assert changed == {expected.get(family, "model")}


@pytest.mark.parametrize("entry", DEVIATIONS.values(), ids=lambda d: d.name)
def test_a_deviation_shows_in_the_shadow_of_an_honest_log(entry, target, draft, honest_log):
    deviant = entry.model(target, draft)
    if entry.name == "weights/int8":
        # Rounding so fine may leave 240 tokens alone: look at margins instead of tokens.
        ids = honest_log[0][0]["own"].prompt
        assert (deviant.logits(hidden(deviant, ids)) - target.logits(hidden(target, ids))).abs().max() > 1e-3
        return
    assert not matched(target, honest_log, entry, deviant).all()


def test_a_substitute_must_be_named(target):
    with pytest.raises(OptionError):
        DEVIATIONS["model/substituted"].model(target, None)
    assert DEVIATIONS["model/substituted"].needs_other_model


def test_the_skipped_layer_is_the_middle_one(target, prompt):
    skipped = DEVIATIONS["depth/skip-layer"].model(target, None)
    by_hand = target.replace(skip_layers=frozenset({2}))
    assert torch.equal(hidden(skipped, prompt.token_ids), hidden(by_hand, prompt.token_ids))


def test_a_wrong_seed_stays_in_range_and_is_another_one():
    seed = DEVIATIONS["seed/wrong"].seed
    for value in (0, 42, 2**32 - 1, 2**63 - 1):
        assert 0 <= seed(value) < 2**63
        assert seed(value) % 2**32 != value % 2**32  # else a Mersenne twister would not notice


def test_sampler_deviations_change_one_parameter():
    assert DEVIATIONS["temperature/+0.1"].sampling(SPEC) == replace(SPEC, temperature=1.2 + 0.1)
    assert DEVIATIONS["filter/top-p-ignored"].sampling(SPEC) == replace(SPEC, top_p=1.0)
    assert DEVIATIONS["penalty/ignored"].sampling(SPEC) == replace(SPEC, repetition_penalty=1.0)


def test_the_undeclared_system_prompt_is_in_the_text_and_keeps_the_conversation(prompt, tokenizer):
    system = DEVIATIONS["prompt/system"].prompt
    text = tokenizer.decode(list(system(prompt)))
    assert HIDDEN_INSTRUCTION in text
    assert MESSAGES[0]["content"] in text
    declared = ({"role": "system", "content": "Be brief."}, *MESSAGES)
    merged = tokenizer.decode(
        list(system(Prompt(tuple(tokenizer.encode_chat(declared)), declared, tokenizer)))
    )
    assert f"{HIDDEN_INSTRUCTION} Be brief." in merged
    assert declared[0]["content"] == "Be brief."  # the log itself is left alone


@pytest.mark.parametrize("name", sorted(INPUT_ONLY))
def test_prompt_deviations_work_on_a_log_without_messages(name, prompt, tokenizer):
    bare = Prompt(prompt.token_ids, None, tokenizer)
    changed = tuple(DEVIATIONS[name].prompt(bare))
    assert len(changed) > len(prompt.token_ids)
    assert changed[0] == prompt.token_ids[0]
    assert changed[-1] == prompt.token_ids[-1]


def test_an_older_template_folds_the_system_turn_into_the_first_user_turn(tokenizer):
    messages = ({"role": "system", "content": "Be brief."}, *MESSAGES)
    declared = Prompt(tuple(tokenizer.encode_chat(messages)), messages, tokenizer)
    folded = DEVIATIONS["prompt/template"].prompt(declared)
    by_hand = [{"role": "user", "content": f"Be brief.\n\n{MESSAGES[0]['content']}"}]
    assert list(folded) == list(tokenizer.encode_chat(by_hand))
    assert list(folded) != list(declared.token_ids)


def test_what_needs_noise_or_a_filter_is_not_expected_to_show_without():
    greedy, plain = replace(SPEC, temperature=0.0), replace(SPEC, top_p=1.0)
    assert not DEVIATIONS["seed/wrong"].shows_in(greedy)
    assert DEVIATIONS["seed/wrong"].shows_in(plain)
    no_top_p = DEVIATIONS["filter/top-p-ignored"]
    assert [no_top_p.shows_in(spec) for spec in (greedy, plain, SPEC)] == [False, False, True]
    assert DEVIATIONS["weights/int4"].shows_in(greedy)
    no_penalty = DEVIATIONS["penalty/ignored"]
    assert no_penalty.shows_in(greedy)
    assert not no_penalty.shows_in(replace(SPEC, repetition_penalty=1.0))


# --- quantizers ---------------------------------------------------------------------------------------

MATRICES = st.tuples(
    st.integers(0, 2**20), st.sampled_from([(3, 64), (5, 128), (4, 50)]), st.floats(1e-3, 1e3)
)


def matrix(seed, shape, size):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size


@given(MATRICES)
@settings(max_examples=30, deadline=None)
def test_int4_errs_by_half_a_step_of_its_group_and_has_16_levels(drawn):
    weight = matrix(*drawn)
    size = 64 if weight.shape[1] % 64 == 0 else weight.shape[1]
    packed = int4_groups(weight)
    groups, rounded = weight.view(weight.shape[0], -1, size), packed.view(weight.shape[0], -1, size)
    step = groups.abs().amax(dim=2, keepdim=True) / 7.5
    assert ((rounded - groups).abs() <= step * 0.5001).all()
    levels = rounded / step
    assert (levels - levels.round()).abs().max() < 1e-3
    assert levels.round().min() >= -8
    assert levels.round().max() <= 7


@given(MATRICES)
@settings(max_examples=30, deadline=None)
def test_int8_errs_by_half_a_step_of_its_row(drawn):
    weight = matrix(*drawn)
    step = weight.abs().amax(dim=1, keepdim=True) / 127.5
    assert ((int8_rows(weight) - weight).abs() <= step * 0.5001).all()


@given(MATRICES)
@settings(max_examples=30, deadline=None)
def test_float8_errs_by_a_sixteenth_or_a_subnormal_step(drawn):
    weight = matrix(*drawn)
    scale = weight.abs().amax(dim=1, keepdim=True) / 448
    bound = torch.maximum(weight.abs() / 16, scale * 2.0**-10)
    assert ((float8_rows(weight) - weight).abs() <= bound * 1.001).all()


@pytest.mark.parametrize("quantize", [int4_groups, int8_rows, float8_rows])
def test_a_row_of_zeros_stays_zero(quantize):
    weight = torch.zeros(3, 64)
    assert torch.equal(quantize(weight), weight)


def test_only_projections_are_quantized(target):
    quantized = DEVIATIONS["weights/int4"].model(target, None)
    for name, tensor in target.parameters.items():
        assert torch.equal(quantized.parameters[name], tensor) != name.endswith("_proj.weight"), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounded_caches_keep_shape_and_dtype_and_err_by_their_step(dtype):
    keys, values = matrix(1, (6, 2, 64), 2.0).to(dtype), matrix(2, (6, 2, 64), 0.1).to(dtype)
    for stored, exact in zip(integer_cache(4, 4)(0, keys, values), (keys, values), strict=True):
        assert stored.dtype == dtype
        step = exact.float().abs().amax(dim=-1, keepdim=True) / 7
        assert ((stored.float() - exact.float()).abs() <= step * 0.51).all()
    for stored, exact in zip(float8_cache(0, keys, values), (keys, values), strict=True):
        assert stored.dtype == dtype
        bound = torch.maximum(exact.float().abs() / 16, torch.tensor(2.0**-10))
        assert ((stored.float() - exact.float()).abs() <= bound * 1.01).all()
        assert not torch.equal(stored, exact)
