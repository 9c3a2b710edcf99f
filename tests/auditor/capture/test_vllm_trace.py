"""From vLLM's resolved parameters to a trace line. Fields and defaults are those the real engine has (recorded)."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from auditor.capture.rows import Served
from auditor.capture.vllm_engine import RELEASES, RecordedEngine, check_recordable, recorded_engine
from auditor.capture.vllm_sampling import GrammarEngine, sampling_of_params
from auditor.capture.vllm_selftest import DRAWS, check_noise
from auditor.capture.vllm_trace import trace_line
from auditor.errors import CaptureError, SamplingUnsupportedError, TraceFieldError
from auditor.kernels.splitmix import bits53, gumbel
from auditor.preparation import prepare
from auditor.reference.demo.prompts import TARGET
from auditor.reference.noise import noise_scheme
from auditor.replay import Reference
from auditor.trace_format import parse_trace

RECORDED = json.loads(
    gzip.decompress(
        (
            Path(__file__).parent.parent.parent / "traces" / "captured" / "vllm-batch-updates.json.gz"
        ).read_bytes()
    )
)
DEFAULTS = RECORDED["sampling_defaults"]
GRAMMARS = GrammarEngine({"xgrammar": "0.2.8"}, any_whitespace=True)


class Params:
    """`vllm.SamplingParams` as far as the recorder looks at it."""

    __struct_fields__ = tuple(DEFAULTS)

    def __init__(self, **given):
        for name, value in (DEFAULTS | {"max_tokens": 16} | given).items():
            setattr(self, name, value)


def config(**changed):
    values = {
        "async_scheduling": False,
        "speculative_config": None,
        "pipeline_parallel_size": 1,
        "lora_config": None,
        "watermark_config": None,
        "logits_processors": None,
        "use_fp64_gumbel": False,
        "quantization": None,
    } | changed
    return SimpleNamespace(
        model_config=SimpleNamespace(
            model=str(TARGET),
            tokenizer=str(TARGET),
            served_model_name="demo",
            dtype="torch.bfloat16",
            quantization=values["quantization"],
            enforce_eager=True,
            max_model_len=512,
            use_fp64_gumbel=values["use_fp64_gumbel"],
            logits_processors=values["logits_processors"],
            get_vocab_size=lambda: 4096,
        ),
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=values["pipeline_parallel_size"], tensor_parallel_size=1
        ),
        scheduler_config=SimpleNamespace(
            async_scheduling=values["async_scheduling"],
            enable_chunked_prefill=True,
            max_num_seqs=8,
            max_num_batched_tokens=4096,
        ),
        cache_config=SimpleNamespace(cache_dtype="auto", enable_prefix_caching=True),
        structured_outputs_config=SimpleNamespace(disable_any_whitespace=False),
        speculative_config=values["speculative_config"],
        lora_config=values["lora_config"],
        watermark_config=values["watermark_config"],
    )


@pytest.fixture(scope="module")
def engine():
    return recorded_engine(config(), "0.32.0", "cpu")


@pytest.fixture(scope="module")
def reference():
    return Reference.load(TARGET)


def traced(engine, given, output=(7, 8, 2), **served):
    line = trace_line(Served(Params(**given), [1, 3, 5], list(output), 0.0, **served), "stop", engine, 1.5)
    return parse_trace(line, file="x", line=1)


def test_an_ordinary_request_is_replayable_as_it_stands(engine, reference):
    trace = traced(
        engine, {"seed": 2**63 - 1, "temperature": 0.7, "top_p": 0.9, "top_k": 50, "max_tokens": 9}
    )
    assert (trace.seed, trace.noise, trace.grade) == (2**63 - 1, "vllm-cpu-0.32/splitmix64", "B")
    assert trace.engine.recipe == "vllm-cpu-0.32.0/bfloat16/kv-auto/eager"
    assert (trace.prompt_token_ids, trace.output_token_ids) == ((1, 3, 5), (7, 8, 2))
    assert trace.usage.completion_tokens == 3
    assert trace.created == "1970-01-01T00:00:00.000Z"
    request = prepare(trace, reference)
    assert (request.spec.temperature, request.spec.top_k, request.spec.top_p) == (0.7, 50, 0.9)


@pytest.mark.parametrize(
    ("given", "served", "noise"),
    [
        ({"seed": None}, {}, None),
        ({"seed": 5}, {"continues": True}, None),
        ({"seed": None, "temperature": 0.0}, {}, "greedy"),
        ({"seed": 5, "temperature": 9e-6}, {}, "greedy"),
    ],
)
def test_noise_is_claimed_only_where_the_seed_gives_it(engine, given, served, noise):
    trace = traced(engine, given, **served)
    assert trace.noise == noise
    assert trace.sampling.greedy == (noise == "greedy")


def test_a_release_whose_noise_is_not_replayed_claims_none(engine):
    assert traced(replace(engine, noise=None), {"seed": 5}).noise is None
    assert recorded_engine(config(use_fp64_gumbel=True), "0.32.0", "cpu").noise is None


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
        ({"extra_args": {"audit_id": "a", "steer": 3}}, "extra_args"),
        ({"parameter_of_a_later_release": 1}, None),
    ],
)
def test_what_a_trace_does_not_model_is_carried_along_and_stops_the_replay(engine, reference, given, named):
    if named is None:
        Params.__struct_fields__ = (*DEFAULTS, "parameter_of_a_later_release")
        named = "parameter_of_a_later_release"
    try:
        default = Params()
        default.parameter_of_a_later_release = 0
        Params.parameter_of_a_later_release = 0
        trace = traced(engine, {"seed": 5, **given})
    finally:
        Params.__struct_fields__ = tuple(DEFAULTS)
        del Params.parameter_of_a_later_release
    assert named in trace.extra["sampling"]
    with pytest.raises(SamplingUnsupportedError, match=named):
        prepare(trace, reference)


def test_what_moves_no_token_is_left_out(engine, reference):
    harmless = {
        "logprobs": 5,
        "n": 3,
        "detokenize": False,
        "skip_special_tokens": False,
        "stream_interval": 4,
    }
    trace = traced(engine, {"seed": 5, "extra_args": {"audit_id": "mine"}, **harmless})
    assert "sampling" not in trace.extra
    assert trace.extra["audit_id"] == "mine"
    prepare(trace, reference)


def test_two_outputs_of_one_request_have_two_ids(engine):
    given = {"seed": 5, "extra_args": {"audit_id": "mine"}}
    assert traced(engine, given).id != traced(engine, given).id


@dataclass
class Outputs:
    json: object = None
    regex: object = None
    choice: object = None
    grammar: object = None
    json_object: object = None
    structural_tag: object = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: object = None
    _backend: object = "xgrammar"


def test_a_grammar_names_the_library_that_made_the_mask():
    params = Params(structured_outputs=Outputs(json='{"type": "object"}'))
    assert sampling_of_params(params, GRAMMARS)["grammar"] == {
        "kind": "json_schema",
        "schema": {"type": "object"},
        "library": "xgrammar",
        "version": "0.2.8",
        "any_whitespace": True,
    }
    compact = sampling_of_params(params, GrammarEngine({}, any_whitespace=False))["grammar"]
    assert (compact["any_whitespace"], compact["separators"], compact["version"]) == (False, [",", ":"], None)
    asked = Params(structured_outputs=Outputs(regex="a+", disable_any_whitespace=True))
    assert sampling_of_params(asked, GRAMMARS)["grammar"]["disable_any_whitespace"] is True


def test_a_value_no_trace_may_hold_is_an_error_and_not_a_line(engine):
    with pytest.raises(TraceFieldError):
        traced(engine, {"seed": 5, "presence_penalty": float("inf")})


@pytest.mark.parametrize(("release", "device"), [("0.31.0", "cpu"), ("0.32.0", "cuda"), ("0.33.0", "cpu")])
def test_a_release_that_was_never_tried_is_refused(release, device):
    assert (release, device) not in RELEASES
    with pytest.raises(CaptureError, match="never tried"):
        check_recordable(config(), release, device)


@pytest.mark.parametrize(
    "changed",
    [
        {"async_scheduling": True},
        {"speculative_config": object()},
        {"pipeline_parallel_size": 2},
        {"lora_config": object()},
        {"watermark_config": object()},
        {"logits_processors": ["a:b"]},
    ],
)
def test_a_setting_that_hides_what_was_sampled_is_refused(changed):
    with pytest.raises(CaptureError, match="cannot record under"):
        check_recordable(config(**changed), "0.32.0", "cpu")


def test_a_quantized_engine_says_so_in_its_recipe():
    declared = recorded_engine(config(quantization="compressed-tensors"), "0.32.0", "cpu")
    assert declared.engine["recipe"] == "vllm-cpu-0.32.0/bfloat16/compressed-tensors/kv-auto/eager"


def test_a_model_that_is_no_folder_here_has_no_digest():
    elsewhere = config()
    elsewhere.model_config.model = elsewhere.model_config.tokenizer = "someone/some-model"
    declared = recorded_engine(elsewhere, "0.32.0", "cpu")
    assert isinstance(declared, RecordedEngine)
    assert declared.model_digest is None


def engine_sampler(shift):
    """The published sampler, one row at a time; `shift` makes it another release's."""

    def sample(logits, seeds):
        scheme = noise_scheme("vllm-cpu-0.32/splitmix64")
        chosen = np.empty((DRAWS, len(seeds)), np.int64)
        for row, seed in enumerate(seeds):
            keys = scheme.row_keys(seed + shift, 0, 0, DRAWS)
            noise = gumbel(bits53(keys, np.tile(np.arange(logits.shape[1]), (DRAWS, 1))), tail_safe=False)
            chosen[:, row] = (logits[row] + noise).argmax(1)
        return chosen

    return sample


def test_the_start_up_check_refuses_an_engine_that_draws_otherwise():
    check_noise("vllm-cpu-0.32/splitmix64", engine_sampler(0))
    with pytest.raises(CaptureError, match="does not draw"):
        check_noise("vllm-cpu-0.32/splitmix64", engine_sampler(1))


def test_importing_capture_imports_no_engine_and_no_compiler():
    program = (
        "import sys, auditor.capture, auditor.capture.rows, auditor.capture.append_log\n"
        "import auditor.capture.vllm_sampling, auditor.capture.vllm_engine, auditor.capture.vllm_selftest\n"
        "import auditor.capture.vllm_trace\n"
        "assert not {'torch', 'vllm', 'transformers', 'numba'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_entry_point_names_the_class():
    from importlib.metadata import distribution

    (entry,) = [
        e
        for e in distribution("verifiable-inference-auditor").entry_points
        if e.group == "vllm.logits_processors"
    ]
    assert entry.value == "auditor.capture.vllm_plugin:TraceRecorder"
    assert (
        "class TraceRecorder"
        in (Path(__file__).parent.parent.parent.parent / "auditor" / "capture" / "vllm_plugin.py").read_text()
    )
