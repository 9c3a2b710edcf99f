"""Logs of observability tools: what is taken from them, which grade they deserve, what is refused."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.adapters import format_of
from auditor.errors import AuditError, TraceFieldError
from auditor.profiles import profile_finder
from auditor.reference.demo.prompts import TARGET
from auditor.replay import Reference
from auditor.trace import Trace
from auditor.trace_files import read_traces
from auditor.trace_format import digest_of, parse_trace, trace_to_line
from auditor.verification import verify
from tests.auditor.adapters import observed
from tests.auditor.adapters.observed import LINES, otlp, span

TRACES = Path(__file__).parent.parent.parent / "traces"


def recorded(name, count):
    with gzip.open(TRACES / f"{name}.jsonl.gz", "rt") as stream:
        return [json.loads(line) for _, line in zip(range(count), stream, strict=False)]


HONEST = recorded("vllm-cpu-bf16-plain", 6)
SHAPED = recorded("vllm-cpu-bf16-t07-topk50-topp95", 2)


@pytest.fixture
def read(tmp_path):
    def run(*lines, input_format="auto"):
        path = tmp_path / "log.jsonl"
        path.write_bytes(b"\n".join(json.dumps(line).encode() for line in lines))
        return list(read_traces(path, input_format=input_format))

    return run


@pytest.fixture
def one(read):
    def run(line, **more):
        (found,) = read(line, **more)
        assert isinstance(found, Trace), found
        return found

    return run


@pytest.fixture
def refused(read):
    def run(line, **more):
        (found,) = read(line, **more)
        assert isinstance(found, AuditError), found
        assert "\n" not in str(found)
        return found

    return run


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("source", [HONEST[0], SHAPED[0]], ids=["plain", "shaped"])
def test_a_span_with_token_ids_seed_and_noise_is_the_trace_itself(name, source, one):
    trace, original = one(LINES[name](source)), parse_trace(json.dumps(source).encode(), file="", line=0)
    same = ("model", "prompt_token_ids", "output_token_ids", "sampling", "seed", "noise", "model_digest")
    for field in (*same, "text", "engine"):
        assert getattr(trace, field) == getattr(original, field), field
    assert trace.usage.completion_tokens == len(original.output_token_ids)
    assert trace.grade == "B"
    assert trace.created == "2026-11-23T14:51:59Z"
    assert trace.provider in ("vllm", "hosted_vllm", None)


@pytest.mark.parametrize("name", LINES)
def test_without_the_namespace_it_is_grade_c(name, one):
    trace = one(LINES[name](HONEST[0], added=False))
    assert trace.grade == "C"
    assert (trace.output_token_ids, trace.noise) == (None, None)
    assert trace.text == HONEST[0]["text"]
    assert trace.seed == HONEST[0]["seed"]


@pytest.mark.parametrize("name", LINES)
def test_the_digest_is_of_the_lines_bytes_and_what_was_read_is_kept(name, one):
    line = LINES[name](HONEST[0])
    trace = one(line)
    assert trace.raw_digest == digest_of(json.dumps(line).encode())
    again = parse_trace(trace_to_line(trace), file="x", line=1)
    assert again.extra == trace.extra
    assert again.output_token_ids == trace.output_token_ids


def test_the_format_is_told_by_the_keys():
    assert format_of(LINES["otel"](HONEST[0])) == "otel"
    assert format_of(LINES["langfuse"](HONEST[0])) == "langfuse"
    assert format_of({"standard_logging_object": LINES["litellm"](HONEST[0])}) == "litellm"
    assert format_of(HONEST[0]) is None


@pytest.mark.parametrize("name", ["otel", "openinference", "langfuse", "litellm"])
def test_a_format_can_be_forced(name, one):
    assert one(LINES[name](HONEST[0]), input_format=name).grade == "B"


def test_many_spans_of_a_line_are_traces_of_their_own(read):
    spans = [span(observed.as_otel(trace)) for trace in HONEST[:2]]
    spans.insert(1, span({"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "weather"}))
    spans.append(span(observed.as_openinference(HONEST[2])))
    found = read(otlp(*spans))
    assert [list(t.output_token_ids) for t in found] == [t["output_token_ids"] for t in HONEST[:3]]
    assert len({t.raw_digest for t in found}) == 3
    assert len({t.extra["adapted"]["line_digest"] for t in found}) == 1


def test_a_bad_span_costs_only_itself(read):
    bad = observed.as_otel(HONEST[1]) | {"gen_ai.request.temperature": "hot"}
    found = read(otlp(span(observed.as_otel(HONEST[0])), span(bad), span(observed.as_otel(HONEST[2]))))
    assert [type(item) for item in found] == [Trace, TraceFieldError, Trace]
    assert "0000000000000001" in str(found[1])


def test_a_log_without_generations_holds_no_requests(read):
    with pytest.raises(AuditError, match="holds no requests"):
        read(otlp(span({"http.request.method": "GET"})))


def test_facts_of_the_process_may_lie_in_the_resource(one):
    attributes = observed.as_otel(HONEST[0])
    shared = {key: attributes.pop(key) for key in list(attributes) if key.startswith("auditor.engine")}
    shared["auditor.noise"] = attributes.pop("auditor.noise")
    trace = one(otlp(span(attributes), resource=shared))
    assert trace.engine.recipe == HONEST[0]["engine"]["recipe"]
    assert trace.grade == "B"


def test_older_content_events_are_read(one):
    def event(name, **attributes):
        return {"name": name, "attributes": observed.otlp_attributes(attributes)}

    attributes = {"gen_ai.system": "openai", "gen_ai.request.model": "demo"}
    told = [
        event("gen_ai.system.message", content="Be brief."),
        event("gen_ai.user.message", content="Hi"),
        event(
            "gen_ai.choice",
            message=json.dumps({"role": "assistant", "content": " Hello"}),
            finish_reason="stop",
        ),
    ]
    trace = one(otlp(span(attributes, told)))
    assert [m["content"] for m in trace.messages] == ["Be brief.", "Hi"]
    assert (trace.text, trace.finish_reason) == (" Hello", "stop")
    older = [
        event("gen_ai.content.prompt", **{"gen_ai.prompt": '[{"role": "user", "content": "Hi"}]'}),
        event(
            "gen_ai.content.completion", **{"gen_ai.completion": '[{"role": "assistant", "content": "Yo"}]'}
        ),
    ]
    trace = one(otlp(span(attributes, older)))
    assert (trace.messages[0]["content"], trace.text) == ("Hi", "Yo")


def test_a_span_as_an_sdk_prints_it(one):
    nested = {
        "name": "llm",
        "context": {"trace_id": "409df945", "span_id": "01fa9612"},
        "span_kind": "LLM",
        "start_time": "2024-01-11T16:45:17.982858-07:00",
        "status_code": "OK",
        "attributes": {
            "llm.input_messages": [{"message.role": "user", "message.content": "what is 23 times 87"}],
            "llm.model_name": "demo",
            "llm.invocation_parameters": '{"model": "demo", "temperature": 0.1, "max_tokens": null}',
            "llm.output_messages": [{"message.role": "assistant", "message.content": "2001"}],
            "llm.token_count.completion": 14,
        },
        "events": [],
    }
    trace = one(nested)
    assert (trace.id, trace.text, trace.sampling.temperature) == ("01fa9612", "2001", 0.1)
    assert trace.usage.completion_tokens == 14
    assert trace.created == "2024-01-11T23:45:17Z"


def test_a_log_record_that_holds_a_generation(one):
    record = {
        "timeUnixNano": "1795445519000000000",
        "attributes": observed.otlp_attributes(observed.as_otel(HONEST[0])),
    }
    line = {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}
    assert one(line).grade == "B"


def test_litellm_gives_the_token_ids_that_vllm_returned(one):
    line = observed.as_litellm(HONEST[0], added=False)
    line["response"]["prompt_token_ids"] = HONEST[0]["prompt_token_ids"]
    ids = HONEST[0]["output_token_ids"]
    line["response"]["choices"][0]["provider_specific_fields"] = {"token_ids": ids}
    trace = one(line)
    assert list(trace.output_token_ids) == ids
    assert trace.grade == "C"  # noise and recipe are still to be asserted
    assert any("http://vllm:8000/v1" in note for note in trace.extra["notes"])


def test_tools_without_prompt_ids_are_never_replayed_by_the_template_alone(one):
    line = observed.as_litellm(HONEST[0], added=False)
    line["model_parameters"]["tools"] = [{"type": "function", "function": {"name": "weather"}}]
    assert one(line).extra["sampling"]["tools_without_prompt_ids"]
    line["response"]["prompt_token_ids"] = HONEST[0]["prompt_token_ids"]
    assert "sampling" not in one(line).extra


def test_an_answer_out_of_a_cache_is_not_replayed(one):
    line = observed.as_litellm(HONEST[0]) | {"cache_hit": True}
    assert one(line).extra["sampling"] == {"cache_hit": True}


def test_langfuse_writes_an_unlimited_output_as_inf(one):
    line = observed.as_langfuse(HONEST[0], added=False)
    line["model_parameters"] = json.dumps({"max_tokens": "inf", "temperature": 1})
    assert one(line).sampling.max_tokens is None


def test_langfuse_names_of_the_api(one):
    line = {
        "id": "o",
        "traceId": "t",
        "type": "GENERATION",
        "model": "demo",
        "modelParameters": {"temperature": 0.5},
        "input": [{"role": "user", "content": "Hi"}],
        "output": "Hello",
        "usageDetails": {"output": 2},
        "startTime": "2026-11-23T14:51:59.000Z",
    }
    trace = one(line)
    assert (trace.text, trace.sampling.temperature, trace.usage.completion_tokens) == ("Hello", 0.5, 2)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            observed.as_litellm(HONEST[0]) | {"status": "failure", "error_str": "429"},
            "answered with an error",
        ),
        (
            observed.as_langfuse(HONEST[0]) | {"level": "ERROR", "status_message": "429"},
            "answered with an error",
        ),
        (
            otlp(span(observed.as_otel(HONEST[0]), (), {"code": 2, "message": "429"})),
            "answered with an error",
        ),
        (otlp(span(observed.as_otel(HONEST[0]) | {"auditor.tokens": 1})), "auditor.tokens"),
        (otlp(span(observed.as_otel(HONEST[0]) | {"auditor.engine.recipies": "x"})), "is unknown"),
        (
            otlp(span(observed.as_otel(HONEST[0]) | {"gen_ai.request.seed": 5})),
            "says other than the log itself",
        ),
        (
            otlp(span(observed.as_otel(HONEST[0]) | {"auditor.output_token_ids": [-1]})),
            "outside [0, 2147483648)",
        ),
        (
            otlp(span(observed.as_otel(HONEST[0]) | {"auditor.output_token_ids": "[1, 1e999]"})),
            "range of a double",
        ),
        (observed.as_langfuse(HONEST[0]) | {"model_parameters": "[]"}, "model_parameters"),
        (
            otlp(
                span(
                    {k: v for k, v in observed.as_otel(HONEST[0]).items() if k != "auditor.prompt_token_ids"}
                )
            ),
            "is missing beside",
        ),
    ],
)
def test_what_cannot_be_relied_on_is_refused_with_a_reason(line, said, refused):
    assert said in str(refused(line))


def test_one_answers_ids_beside_two_answers_are_refused(refused):
    attributes = observed.as_otel(HONEST[0])
    answer = {"role": "assistant", "parts": observed.parts("a"), "finish_reason": "stop"}
    attributes["gen_ai.output.messages"] = json.dumps([answer, answer])
    assert "there are 2" in str(refused(otlp(span(attributes))))


@pytest.fixture(scope="module")
def reference():
    return Reference.load(TARGET)


def test_int4_is_convicted_through_spans_with_the_evidence_of_the_recorded_log(reference, tmp_path):
    source = recorded("vllm-cpu-w4a16-g128", 24)
    results = []
    for name in ("trace", "otel", "litellm"):
        path = tmp_path / f"{name}.jsonl"
        lines = source if name == "trace" else [LINES[name](trace) for trace in source]
        path.write_text("\n".join(map(json.dumps, lines)))
        found = verify(
            lambda path=path: read_traces(path), reference, find_profile=profile_finder(()), explain=False
        )
        results.append((found.outcome, found.log_e, found.tokens, found.matched, len(found.errors)))
    assert results[0][0] == "inconsistent"
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("name", ["otel", "langfuse"])
def test_texts_alone_never_acquit(name, reference, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(json.dumps(LINES[name](trace, added=False)) for trace in HONEST))
    found = verify(lambda: read_traces(path), reference, find_profile=profile_finder(()), explain=False)
    assert found.outcome == "inconclusive"
    assert not found.errors


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12) | st.sampled_from(["[", "{}", '{"a": 1}', '[{"role": 1}]', '"', "[[[["]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=150)
@given(st.sampled_from(sorted(LINES)), st.data())
def test_hostile_lines_become_traces_or_errors_of_one_line_with_a_code(tmp_path_factory, name, data):
    line = copy.deepcopy(LINES[name](HONEST[0]))
    for _ in range(data.draw(st.integers(1, 3))):
        holder, key = line, None
        while True:
            keys = sorted(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            inner = holder[key]
            if not isinstance(inner, (dict, list)) or not inner or data.draw(st.integers(0, 4)) == 0:
                break
            holder = inner
        if key is not None:
            holder[key] = data.draw(JSON)
    kind = name.removesuffix("-old")
    path = tmp_path_factory.getbasetemp() / "hostile.jsonl"
    path.write_bytes(json.dumps(line).encode())
    try:
        found = list(read_traces(path, input_format=data.draw(st.sampled_from(["auto", kind]))))
    except AuditError as error:
        found = [error]
    for item in found:
        if isinstance(item, AuditError):
            assert item.code != "internal"
            assert "\n" not in str(item)
            assert len(str(item)) < 1000
        else:
            parse_trace(trace_to_line(item), file="x", line=1)
