"""Raw server logs: what is taken from them, what is assumed and says so, what is refused."""

from __future__ import annotations

import copy
import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.errors import AuditError, TraceFieldError
from auditor.openai_logs import parse_openai_line
from auditor.openai_wire import DEFAULTED
from auditor.trace_format import parse_trace, trace_to_line

TRACES = Path(__file__).parent.parent / "traces"
RECORDED = {"vllm-server-chat": (32, 4001), "vllm-server-completions": (32, 4423)}

CHAT = {
    "request": {
        "model": "demo",
        "seed": 9,
        "temperature": 0.7,
        "max_tokens": 20,
        "messages": [{"role": "user", "content": "Hi"}],
    },
    "response": {
        "id": "chatcmpl-1",
        "created": 1795445519,
        "model": "demo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": " Hello"},
                "finish_reason": "stop",
                "token_ids": [5, 6, 2],
            }
        ],
        "prompt_token_ids": [1, 4],
        "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
    },
}
COMPLETION = {
    "request": {"model": "demo", "seed": 9, "prompt": "Hi"},
    "response": {"id": "cmpl-1", "model": "demo", "choices": [{"index": 0, "text": " Hello"}]},
}


def changed(base, request=None, response=None, choice=None):
    value = copy.deepcopy(base)
    value["request"].update(request or {})
    value["response"].update(response or {})
    value["response"]["choices"][0].update(choice or {})
    return value


def read(value):
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return parse_openai_line(raw, file="log.jsonl", line=3)


def one(value):
    (trace,) = read(value)
    return trace


def complaint(value):
    with pytest.raises(TraceFieldError) as caught:
        read(value)
    assert str(caught.value).startswith("log.jsonl:3: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_server_log_is_read_whole(name):
    raw_lines = gzip.decompress((TRACES / f"{name}.raw.jsonl.gz").read_bytes()).splitlines()
    tokens = 0
    for number, raw in enumerate(raw_lines):
        (trace,) = parse_openai_line(raw, file=name, line=number + 1)
        logged = json.loads(raw)
        choice = logged["response"]["choices"][0]
        tokens += len(trace.output_token_ids)
        assert trace.output_token_ids == tuple(choice["token_ids"])
        prompt = choice.get("prompt_token_ids") or logged["response"]["prompt_token_ids"]
        assert trace.prompt_token_ids == tuple(prompt)
        assert trace.seed == logged["request"]["seed"]
        assert trace.text == choice.get("text", choice.get("message", {}).get("content"))
        assert trace.sampling.top_p == logged["request"].get("top_p", 1.0)
        assert trace.usage.completion_tokens == len(trace.output_token_ids)
        assert (trace.engine.name, trace.engine.version) == ("vllm", "0.32.0")
        assert (trace.engine.dtype, trace.engine.recipe, trace.noise) == (None, None, None)
        assert trace.grade == ("B" if trace.sampling.greedy else "C")
        assert not trace.extra.get("sampling")
        again = parse_trace(trace_to_line(trace), file=name, line=number + 1)
        assert again == replace(trace, raw_digest=again.raw_digest)
        assert (trace.prompt_text is not None) == (name.endswith("completions") and number % 2 == 0)
    assert (len(raw_lines), tokens) == RECORDED[name]


def test_chat_fields_land_where_they_belong():
    trace = one(CHAT)
    assert (trace.id, trace.model, trace.seed) == ("chatcmpl-1", "demo", 9)
    assert trace.created == "2026-11-23T14:51:59Z"
    assert trace.messages == ({"role": "user", "content": "Hi"},)
    assert (trace.prompt_token_ids, trace.output_token_ids) == ((1, 4), (5, 6, 2))
    assert (trace.text, trace.finish_reason) == (" Hello", "stop")
    assert (trace.sampling.temperature, trace.sampling.max_tokens) == (0.7, 20)
    assert trace.extra["usage"] == {"total_tokens": 5}
    assert trace.where == "log.jsonl:3"


def test_parameters_that_were_not_sent_are_assumed_and_listed():
    trace = one(COMPLETION)
    assert trace.extra["defaulted"] == list(DEFAULTED)
    assert trace.sampling.temperature == 1.0
    assert not trace.sampling.filtered
    assert one(changed(COMPLETION, dict.fromkeys(DEFAULTED, 1))).extra["defaulted"] == []


def test_null_in_a_request_is_not_sent():
    request = dict.fromkeys([*DEFAULTED, "seed", "stop", "logit_bias", "max_tokens", "n", "tools"])
    trace = one(changed(COMPLETION, request))
    assert trace.extra["defaulted"] == list(DEFAULTED)
    assert (trace.seed, trace.sampling.stop) == (None, ())


def test_without_ids_the_trace_keeps_the_text_and_is_grade_c():
    trace = one(changed(COMPLETION, {"temperature": 0}))
    assert (trace.prompt_text, trace.text) == ("Hi", " Hello")
    assert (trace.prompt_token_ids, trace.output_token_ids, trace.grade) == (None, None, "C")


def test_all_sampling_fields_are_read():
    filters = {"temperature": 0.5, "top_k": -1, "top_p": 0.9, "min_p": 0.1}
    penalties = {"repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": -0.3}
    ends = {
        "min_tokens": 2,
        "max_tokens": 9,
        "max_completion_tokens": 8,
        "stop": "END",
        "stop_token_ids": [2],
    }
    request = filters | penalties | ends | {"logit_bias": {"7": -100}, "ignore_eos": True}
    spec = one(changed(CHAT, request)).sampling
    assert (spec.temperature, spec.top_k, spec.top_p, spec.min_p) == (0.5, 0, 0.9, 0.1)
    assert (spec.repetition_penalty, spec.presence_penalty, spec.frequency_penalty) == (1.1, 0.2, -0.3)
    assert (spec.logit_bias, spec.min_tokens, spec.max_tokens) == ({7: -100.0}, 2, 8)
    assert (spec.stop, spec.stop_token_ids, spec.ignore_eos) == (("END",), (2,), True)


def test_several_choices_become_several_traces_and_only_the_first_keeps_the_seed():
    choices = [{"index": place, "text": f"t{place}", "token_ids": [place]} for place in (0, 1, 2)]
    value = changed(COMPLETION, {"n": 3}, {"choices": choices, "usage": {"completion_tokens": 3}})
    traces = read(value)
    assert [trace.id for trace in traces] == ["cmpl-1#0", "cmpl-1#1", "cmpl-1#2"]
    assert [trace.seed for trace in traces] == [9, None, None]
    assert "seed of a choice other than the first" in traces[1].extra["notes"][0]
    assert {trace.prompt_text for trace in traces} == {"Hi"}
    # The bill was for all three: no trace may claim it as its own.
    assert traces[0].usage.completion_tokens is None
    assert traces[0].extra["openai"]["kept"]["usage"] == {"completion_tokens": 3}


def test_several_prompts_find_their_choices():
    choices = [{"index": place, "text": f"t{place}"} for place in (0, 1, 2, 3)]
    traces = read(changed(COMPLETION, {"n": 2, "prompt": ["a", "b"]}, {"choices": choices}))
    assert [trace.prompt_text for trace in traces] == ["a", "a", "b", "b"]
    assert [trace.seed for trace in traces] == [9, None, None, None]


def test_choices_with_one_index_are_refused():
    choices = [{"index": 0, "text": "a"}, {"index": 0, "text": "b"}]
    assert "two choices have one index" in complaint(changed(COMPLETION, {"n": 2}, {"choices": choices}))


@pytest.mark.parametrize(("fields", "said"), [({"seed": -1}, "seed -1"), ({"best_of": 4}, "best_of")])
def test_seed_that_cannot_be_replayed_is_dropped_and_noted(fields, said):
    trace = one(changed(COMPLETION, fields))
    assert trace.seed is None
    assert said in trace.extra["notes"][0]
    assert trace.extra["openai"]["request"]["seed"] == fields.get("seed", 9)


@pytest.mark.parametrize("seed", [2**64 - 1, -(2**63)])
def test_64_bit_seeds_are_exact(seed):
    assert one(changed(CHAT, {"seed": seed})).seed == seed


def test_client_ids_are_audited_even_when_the_server_claims_others():
    value = changed(COMPLETION, {"prompt": [1, 2]}, choice={"prompt_token_ids": [8, 1, 2]})
    trace = one(value)
    assert trace.prompt_token_ids == (1, 2)
    assert "not those the client sent" in trace.extra["notes"][0]
    assert trace.extra["openai"]["kept"]["prompt_token_ids_of_server"] == [8, 1, 2]
    value["request"]["truncate_prompt_tokens"] = 1
    assert one(value).prompt_token_ids == (8, 1, 2)
    assert one(value).extra["openai"]["kept"]["prompt_token_ids_sent"] == [1, 2]


def test_another_model_in_the_response_is_noted():
    trace = one(changed(CHAT, response={"model": "demo-mini"}))
    assert trace.model == "demo"
    assert "'demo-mini'" in trace.extra["notes"][0]
    assert trace.extra["openai"]["response"]["model"] == "demo-mini"


def test_output_ids_come_from_logprobs_when_tokens_are_written_as_ids():
    content = [{"token": "token_id:5", "logprob": -0.1}, {"token": "token_id:2", "logprob": -0.2}]
    chat = one(changed(CHAT, choice={"token_ids": None, "logprobs": {"content": content}}))
    assert chat.output_token_ids == (5, 2)
    assert "logprobs" in chat.extra["notes"][0]
    text = one(changed(COMPLETION, choice={"logprobs": {"tokens": ["token_id:7"]}}))
    assert text.output_token_ids == (7,)


@pytest.mark.parametrize(
    "tokens",
    [[" a"], ["token_id:5", " a"], ["token_id:2147483648"], ["token_id:05"], ["token_id:٥"], [], [5]],
)
def test_logprobs_with_text_tokens_supply_no_ids(tokens):
    assert one(changed(COMPLETION, choice={"logprobs": {"tokens": tokens}})).output_token_ids is None


def test_echoed_prompt_is_not_taken_for_output():
    choice = {"text": "Hi Hello", "logprobs": {"tokens": ["token_id:1", "token_id:7"]}}
    trace = one(changed(COMPLETION, {"echo": True}, choice=choice))
    assert (trace.output_token_ids, trace.text) == (None, None)
    assert trace.extra["openai"]["kept"]["text"] == "Hi Hello"


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_comes_before_the_content(name):
    trace = one(changed(CHAT, choice={"message": {"content": "B", name: "A"}}))
    assert trace.text == "AB"
    assert trace.extra["openai"]["kept"]["message"] == {"content": "B", "reasoning": "A"}


def test_reasoning_tokens_are_billed_apart():
    usage = {"completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 2}}
    assert one(changed(CHAT, response={"usage": usage})).usage.reasoning_tokens == 2


@pytest.mark.parametrize(
    ("fingerprint", "version"),
    [
        ("vllm-0.32.0-ee7d2598", "0.32.0"),
        ("vllm-0.32.0", "0.32.0"),
        ("vllm-0.32.0+cpu-1", "0.32.0"),
        *[
            (other, None)
            for other in ("vllm-0.32.0rc1-x", "vllm-0.32", "my-vllm-0.32.0", "fp_44709d6fcb", None)
        ],
    ],
)
def test_engine_is_named_only_by_an_exact_fingerprint(fingerprint, version):
    trace = one(changed(CHAT, response={"system_fingerprint": fingerprint}))
    assert trace.engine.version == version
    assert trace.engine.name == ("vllm" if version else None)
    assert trace.extra.get("system_fingerprint") == fingerprint


def test_filters_under_the_names_of_llama_cpp_are_carried_into_the_sampling():
    asked = {"typical_p": 0.9, "top_n_sigma": -1, "xtc_probability": 0.5, "xtc_threshold": 0.2}
    sampling = one(changed(CHAT, request=asked)).sampling
    assert (sampling.typical_p, sampling.top_n_sigma) == (0.9, 0.0)
    assert (sampling.xtc_probability, sampling.xtc_threshold) == (0.5, 0.2)
    assert sampling.shaped
    assert "sampling" not in one(changed(CHAT, request=asked)).extra


def test_masks_of_the_request_are_carried_into_the_sampling():
    trace = one(changed(CHAT, request={"allowed_token_ids": [1, 7], "bad_words": ["x"]}))
    assert (trace.sampling.allowed_token_ids, trace.sampling.bad_words) == ((1, 7), ("x",))
    assert "sampling" not in trace.extra


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"repeat_penalty": 1.1}, "repeat_penalty"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"top_a": 0.9}, "top_a"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "message_parts"),
    ],
)
def test_what_the_replay_does_not_model_is_put_before_the_scorer(fields, name):
    trace = one(changed(CHAT, fields))
    assert name in trace.extra["sampling"]
    assert name in json.loads(trace_to_line(trace))["sampling"]


@pytest.mark.parametrize(
    "fields",
    [
        {"bad_words": [], "use_beam_search": False, "typical_p": 1.0, "tool_choice": "auto", "mirostat": 0},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
    ],
)
def test_features_that_are_off_do_not_count(fields):
    assert "sampling" not in one(changed(CHAT, fields)).extra


def test_nothing_of_the_line_is_dropped():
    value = changed(CHAT, {"user": "u1"}, {"service_tier": "x"}, {"stop_reason": 2})
    value["latency"] = 1.5
    kept = one(value).extra["openai"]
    assert kept["request"]["user"] == "u1"
    assert kept["response"]["service_tier"] == "x"
    assert kept["choice"]["stop_reason"] == 2
    assert kept["message"] == {"role": "assistant"}
    assert kept["line"] == {"latency": 1.5}


def test_batch_lines_hold_both_sides_in_a_body():
    value = {
        "custom_id": "mine-1",
        "request": {"method": "POST", "url": "/v1/chat/completions", "body": CHAT["request"]},
        "response": {"status_code": 200, "body": CHAT["response"]},
        "error": None,
    }
    trace = one(value)
    assert trace.output_token_ids == (5, 6, 2)
    line = trace.extra["openai"]["line"]
    assert (line["custom_id"], line["request"]["method"]) == ("mine-1", "POST")
    del value["response"]["body"]["id"]
    assert one(copy.deepcopy(value)).id == "mine-1"


@pytest.mark.parametrize(
    "value",
    [
        {"request": {}, "response": {"error": {"message": "too long", "code": 400}}},
        {"request": {}, "response": {"object": "error", "message": "too long"}},
        {"request": {}, "response": {"status_code": 500, "body": None}},
        {"request": {}, "response": {"status_code": 400, "body": {"error": {"message": "too long"}}}},
        {"request": {}, "response": None, "error": {"message": "too long"}},
        {"request": {}, "response": {"error": "too long"}},
    ],
)
def test_error_response_is_unusable_not_an_empty_output(value):
    assert "the server answered with an error" in complaint(value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"request": {}}, "field response: is missing"),
        ({"response": {}}, "field request: is missing"),
        ({"request": [], "response": {}}, "field request: is not an object"),
        ({"request": {}, "response": {}}, "field response.choices: is missing"),
        (
            changed(CHAT, response={"choices": [{}]}, choice={"token_ids": [-1]}),
            "choices[0].token_ids[0]: -1",
        ),
        (changed(CHAT, {"model": None}, {"model": None}), "field request.model: is missing"),
        (changed(CHAT, {"top_p": 1.7}), "field request.top_p: 1.7 is outside (0, 1]"),
        (changed(CHAT, {"seed": 1.0}), "field request.seed: 1.0 is not a whole number"),
        (changed(CHAT, {"seed": True}), "field request.seed: true is not a whole number"),
        (changed(CHAT, {"stop": 3}), "field request.stop: 3 is not a list"),
        (changed(CHAT, {"messages": ["x"]}), "field request.messages[0]: 'x' is not an object"),
        (changed(CHAT, {"n": 0}), "field request.n: 0 is outside"),
        (changed(COMPLETION, {"prompt": [1, -2]}), "field request.prompt[1]: -2 is outside"),
        (changed(COMPLETION, {"prompt": [[True]]}), "field request.prompt[0]: true is not"),
        (changed(CHAT, response={"created": 1e300}), "field response.created"),
        (changed(CHAT, response={"usage": {"prompt_tokens": -1}}), "field response.usage.prompt_tokens: -1"),
        ({"request": {}, "response": {"choices": []}}, "field response.choices: "),
        (changed(CHAT, choice={"index": -1}), "field response.choices[0].index: -1"),
    ],
)
def test_bad_field_is_named(value, said):
    assert said in complaint(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
REQUEST_FIELDS = [
    *DEFAULTED,
    *CHAT["request"],
    "prompt",
    "n",
    "stop",
    "response_format",
    "structured_outputs",
]


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from([*REQUEST_FIELDS, "tool_choice", "guided_json", "echo"]), json_values),
    st.dictionaries(st.sampled_from([*CHAT["response"], "error", "object", "body"]), json_values),
    st.dictionaries(st.sampled_from([*CHAT["response"]["choices"][0], "text", "logprobs"]), json_values),
)
def test_any_json_anywhere_is_read_or_refused_and_nothing_else(request, response, choice):
    value = copy.deepcopy(CHAT)
    value["response"]["choices"][0].update(choice)
    value["request"].update(request)
    value["response"].update(response)
    try:
        traces = read(value)
    except AuditError as error:
        found = str(error)
    else:
        found = b"".join(trace_to_line(trace) for trace in traces).decode()
    assert found.startswith(("log.jsonl:3: ", '{"schema":"auditor.trace/v1"'))
