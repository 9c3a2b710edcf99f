"""Traces sampled by plain implementations of engines, and recorded from OpenVINO, are replayed token for token."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
import torch

from auditor.errors import NoiseUnknownError
from auditor.preparation import prepare
from auditor.reference.batch import Span
from auditor.reference.demo.prompts import TARGET
from auditor.reference.noise import SCHEMES
from auditor.reference.sampling import SamplingSpec
from auditor.replay import Reference, family_of, replay
from auditor.trace import Engine, Trace
from auditor.trace_files import read_traces

TESTS = Path(__file__).parents[1]
TOKENS, PROMPT, SEED = 12, (1, 3, 1157, 773, 1079, 664, 990, 1159, 20, 5), 2**33 + 12345
PLAIN = {"temperature": 0.9}
FILTERED = {"temperature": 0.9, "top_k": 40, "top_p": 0.95}


@cache
def plain_engine():
    path = TESTS / "reference" / "noise" / "plain_engines.py"
    spec = importlib.util.spec_from_file_location("plain_engines", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PlainEngine


@cache
def reference():
    return Reference.load(TARGET)


def served(name, sampling, seed=SEED):
    """What a provider with this engine logs: logits of the whole prefix, a plain sampler, a token at a time."""
    spec, model = SamplingSpec(**sampling), reference().model
    engine, output = plain_engine()(name, seed, len(PROMPT), spec), []
    for _ in range(TOKENS):
        ids = torch.tensor(PROMPT + tuple(output))
        hidden = model.forward([Span(ids, wanted=len(ids) - 1)], model.new_cache())
        output.append(engine.sample(model.logits(hidden)[0]))
    (key, *_) = SCHEMES[name].served
    version = key.versions[0].replace("*", "0")
    return Trace(
        id=name,
        model="demo",
        prompt_token_ids=PROMPT,
        output_token_ids=tuple(output),
        sampling=spec,
        seed=seed,
        noise=name,
        engine=Engine(key.engine, version, "float32", key.device, None),
    )


CASES = [
    (name, sampling)
    for name, scheme in SCHEMES.items()
    if scheme.served and not (scheme.evidence.confirmed and "openvino" not in name)
    for sampling in (PLAIN, FILTERED)
    if not (name.startswith("sglang") and sampling is FILTERED)
]


@pytest.mark.parametrize(("name", "sampling"), CASES, ids=lambda v: v if isinstance(v, str) else str(len(v)))
def test_a_trace_of_a_plain_engine_is_matched_token_for_token(name, sampling):
    trace = served(name, sampling)
    (scored,) = replay([trace], reference())
    assert scored.problem is None
    assert scored.family == ("icdf" if "icdf" in name else "race") == family_of(trace)
    assert scored.scores.matched == scored.scores.tokens == TOKENS
    (wrong,) = replay([replace(trace, seed=SEED + 1)], reference())
    assert wrong.scores.matched < TOKENS


def test_a_filtered_sglang_request_is_refused_with_its_place():
    trace = replace(served("sglang/murmur32", PLAIN), sampling=SamplingSpec(top_k=5), file="log", line=7)
    with pytest.raises(NoiseUnknownError, match=r"log:7: .*by rank"):
        prepare(trace, reference())


def test_another_release_or_device_is_refused():
    trace = served("vllm-gpu-v2/murmur32", PLAIN)
    for engine in (replace(trace.engine, version="0.30.0"), replace(trace.engine, device="cpu")):
        with pytest.raises(NoiseUnknownError):
            prepare(replace(trace, engine=engine), reference())


def recorded(name, stop=None):
    return list(islice(read_traces(TESTS / "traces" / f"{name}.jsonl.gz"), stop))


@pytest.mark.parametrize(("name", "tokens"), [("openvino-f32-plain", 2292), ("openvino-f32-topp90", 2304)])
def test_what_openvino_sampled_is_matched_token_for_token(name, tokens):
    scores = [scored.scores for scored in replay(recorded(name), reference())]
    assert sum(s.tokens for s in scores) == tokens
    assert sum(s.matched for s in scores) == tokens
    (wrong,) = replay([replace(recorded(name, 1)[0], seed=1)], reference())
    assert wrong.scores.match_rate < 0.9


def test_openvinos_heap_order_is_a_problem_not_a_mismatch():
    problems = {type(s.problem) for s in replay(recorded("openvino-f32-topk50-heap"), reference())}
    assert problems == {NoiseUnknownError}
