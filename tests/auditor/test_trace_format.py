"""One trace line: what is kept, what is refused, and in which words."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.errors import AuditError, TraceFieldError, TraceSyntaxError
from auditor.strict_json import MAX_DEPTH, dump_json, load_json, load_object
from auditor.trace_format import parse_trace, trace_to_json, trace_to_line

TRACES = Path(__file__).parent.parent / "traces"

# Requests and output tokens of every recorded file (tests/traces/README.md).
RECORDED = {
    "vllm-cpu-bf16-plain": 8875,
    "vllm-cpu-bf16-topp95": 7770,
    "vllm-cpu-bf16-topk50": 8100,
    "vllm-cpu-bf16-t07-topk50-topp95": 9101,
    "vllm-cpu-bf16-greedy": 8346,
    "vllm-cpu-bf16-penalties": 7763,
    "vllm-cpu-bf16-minp05": 8768,
    "vllm-cpu-bf16-bias-mintokens": 11035,
    "vllm-cpu-bf16-json": 12690,
    "vllm-cpu-bf16-json-compact": 4636,
    "vllm-cpu-fp32-plain": 7970,
    "transformers-bf16-plain": 8516,
    "transformers-fp32-topk50-topp95": 8173,
    "llamacpp-f32-kvf32-plain": 7766,
    "llamacpp-f16-kvf16-plain": 8452,
    "vllm-cpu-hidden-t11": 8541,
    "vllm-cpu-seed-plus-1": 8712,
    "vllm-cpu-hidden-system-prompt": 9060,
    "vllm-cpu-topp-ignored": 7801,
    "vllm-cpu-w8a8": 8191,
    "vllm-cpu-w4a16-g128": 8296,
    "vllm-cpu-kv-fp8": 7443,
    "vllm-cpu-draft-substituted": 7518,
    "transformers-int4": 8454,
    "llamacpp-q8_0": 8487,
    "llamacpp-q4_0": 7916,
}


def lines_of(name):
    return gzip.decompress((TRACES / f"{name}.jsonl.gz").read_bytes()).splitlines(keepends=True)


def an_object(**changes):
    value = {
        "schema": "auditor.trace/v1",
        "id": "req-1",
        "model": "demo",
        "prompt_token_ids": [1, 2, 3],
        "sampling": {"temperature": 1.0},
        "seed": 7,
        "noise": "gumbel-pos-v1",
        "output_token_ids": [4, 5, 2],
    }
    for path, item in changes.items():
        target, *rest = path.split("__")
        if rest:
            value[target] = {**value.get(target, {}), rest[0]: item}
        else:
            value[target] = item
    return value


def read(value, line=3):
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return parse_trace(raw, file="log.jsonl", line=line)


def outcome(value):
    try:
        return read(value)
    except AuditError as error:
        return error


def complaint(error, value):
    with pytest.raises(error) as caught:
        read(value)
    text = str(caught.value)
    assert text.startswith("log.jsonl:3: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_file_keeps_every_field_of_every_line(name):
    raw_lines = lines_of(name)
    traces = [parse_trace(raw, file=name, line=line) for line, raw in enumerate(raw_lines, 1)]
    assert len(traces) == 64
    assert sum(len(trace.output_token_ids) for trace in traces) == RECORDED[name]
    for raw, trace in zip(raw_lines, traces, strict=True):
        logged, written = json.loads(raw), trace_to_json(trace)
        assert {key: written[key] for key in logged} == logged
        assert trace.grade == "B"
        again = parse_trace(trace_to_line(trace), file=name, line=trace.line)
        assert again == replace(trace, raw_digest=again.raw_digest)


def test_counts_add_up_to_the_documented_total():
    assert sum(RECORDED.values()) == 226_804 - 4001 - 4423


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, None])
def test_seed_is_exact_over_its_whole_range(seed):
    assert read(an_object(seed=seed)).seed == seed


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 10**400])
def test_seed_beyond_64_bits_is_refused(seed):
    text = complaint(TraceFieldError, an_object(seed=seed))
    assert "field seed: " in text
    assert "is outside [-9223372036854775808, 18446744073709551616)" in text


def test_out_of_range_names_field_value_and_interval():
    text = complaint(TraceFieldError, an_object(sampling__top_p=1.7))
    assert text == "log.jsonl:3: field sampling.top_p: 1.7 is outside (0, 1]"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("temperature", bad) for bad in (-0.1, "1", None, True, 10**400)],
        *[("top_p", bad) for bad in (0, 1.0001, -1)],
        *[("min_p", bad) for bad in (-0.01, 1.01)],
        *[("typical_p", bad) for bad in (0, 1.01, None)],
        *[("top_n_sigma", bad) for bad in ("1", True, None)],
        *[(f"xtc_{name}", bad) for name in ("probability", "threshold") for bad in (-0.1, 1.1, None)],
        *[("top_k", bad) for bad in (-2, 1.0, True, 2**63)],
        *[("repetition_penalty", bad) for bad in (0, -1, "x")],
        *[("presence_penalty", bad) for bad in ("0", None)],
        *[("logit_bias", bad) for bad in ({"07": 1}, {"-1": 1}, {"x": 1}, {"2147483648": 1}, {"1": "2"}, [])],
        *[("logit_bias", {key: 1.0}) for key in ("", " 1", "1 ", "1_0", "+1", "١", "9" * 5000)],
        *[("min_tokens", bad) for bad in (-1, 1.5, False)],
        *[("max_tokens", bad) for bad in (-1, "200", 1e3)],
        *[("stop", bad) for bad in ("x", [1], None)],
        *[("stop_token_ids", bad) for bad in ([-1], [2**31], [True], "2")],
        *[("ignore_eos", bad) for bad in (0, 1, "no", None)],
        *[("grammar", bad) for bad in ("json", [])],
    ],
)
def test_sampling_out_of_range_or_mistyped_is_refused(field, value):
    assert f"field sampling.{field}" in complaint(TraceFieldError, an_object(**{f"sampling__{field}": value}))


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([1, -1, -2], "[1]: -1 is outside [0, 2147483648)"),
        ([2**31], "[0]: 2147483648 is outside [0, 2147483648)"),
        ([1, True], "[1]: true is not a whole number"),
        ([1.0], "[0]: 1.0 is not a whole number"),
        (["1"], "[0]: '1' is not a whole number"),
        ([None], "[0]: null is not a whole number"),
        ([[1]], "[0]: a list is not a whole number"),
        ("1 2", ": '1 2' is not a list"),
        ({"0": 1}, ": an object is not a list"),
    ],
)
@pytest.mark.parametrize("field", ["prompt_token_ids", "output_token_ids"])
def test_token_ids_are_whole_numbers_from_zero(field, ids, said):
    assert f"field {field}{said}" in complaint(TraceFieldError, an_object(**{field: ids}))


def test_integer_written_with_an_exponent_is_not_an_integer():
    raw = json.dumps(an_object()).replace('"seed": 7', '"seed": 1e3').encode()
    assert "field seed: 1000.0 is not a whole number" in complaint(TraceFieldError, raw)


@pytest.mark.parametrize("field", ["id", "model", "sampling", "schema"])
def test_missing_field_is_named(field):
    value = an_object()
    del value[field]
    assert f"field {field}: is missing" in complaint(TraceFieldError, value)


@pytest.mark.parametrize(("field", "value"), [("id", ""), ("model", ""), ("id", 7), ("sampling", None)])
def test_identity_must_be_text(field, value):
    assert f"field {field}: " in complaint(TraceFieldError, an_object(**{field: value}))


@pytest.mark.parametrize("schema", ["auditor.trace/v2", "", None, 1, ["auditor.trace/v1"]])
def test_another_schema_is_refused(schema):
    assert "field schema: " in complaint(TraceFieldError, an_object(schema=schema))


def test_long_values_and_line_breaks_do_not_reach_the_message():
    text = complaint(TraceFieldError, an_object(seed="x\ny" * 10_000))
    assert len(text) < 200


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"id": NaN}', "NaN is not a JSON number"),
        (b'{"id": [Infinity]}', "Infinity is not a JSON number"),
        (b'{"id": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"id": 1e999}', "beyond the range of a double"),
        (b'{"id": 1, "seed": 2, "id": 1}', "the key 'id' occurs twice"),
        (b'{"x": {"a": 1, "a": 2}}', "the key 'a' occurs twice"),
        (b'{"\\u0061": 1, "a": 2}', "the key 'a' occurs twice"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested deeper than 64 levels"),
        (b'{"a":' + b"[" * 100_000, "nested deeper than 64 levels"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\udfff": 1}', "half of a surrogate pair"),
        (b'{"a": ' + b"1" * 5000 + b"}", "integer of thousands of digits"),
        (b'{"a": "\xff"}', "byte 8 is not UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "is not UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "not valid JSON"),
        (b'{"id": "req-1", "mod', "the line is cut off"),
        (b'{"id": 1', "the line is cut off"),
        (b"{'id': 1}", "not valid JSON at character 2"),
        (b'{"a": 01}', "not valid JSON"),
        (b'{"a": 1} {"b": 2}', "not valid JSON"),
        (b'{"a": "\x00"}', "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[1]", "a list is not a JSON object"),
        (b'"x"', "a text is not a JSON object"),
        (b"3", "a number is not a JSON object"),
        (b"null", "null is not a JSON object"),
    ],
)
def test_line_that_is_no_exact_json_object_is_refused(raw, said):
    assert said in complaint(TraceSyntaxError, raw)


def test_deepest_permitted_nesting_is_read():
    depth = MAX_DEPTH - 1
    trace = read(an_object(x=json.loads("[" * depth + "]" * depth)))
    assert read(trace_to_line(trace)).extra == trace.extra


def test_surrogate_pair_written_as_escapes_is_ordinary_text():
    raw = json.dumps(an_object(text="😀")).encode()
    assert b"\\ud83d\\ude00" in raw
    assert read(raw).text == "😀"


def test_line_over_the_limit_is_refused_before_it_is_decoded():
    with pytest.raises(TraceSyntaxError, match="longer than 10 bytes"):
        load_object(b"{" * 11, where="x:1", max_bytes=10)


def test_unknown_fields_are_kept_where_they_were():
    value = an_object(receipt={"a": [1, None]}, extra=1, file="theirs", sampling__top_a=0.9, usage__cached=3)
    value |= {"engine": {"name": "vllm", "gpu": "none"}, "speculation": {"rule": "none", "k": 4}}
    trace = read(value)
    assert trace.extra == {
        "receipt": {"a": [1, None]},
        "extra": 1,
        "file": "theirs",
        "sampling": {"top_a": 0.9},
        "usage": {"cached": 3},
        "engine": {"gpu": "none"},
        "speculation": {"k": 4},
    }
    written = trace_to_json(trace)
    assert written["sampling"]["top_a"] == 0.9
    assert written["receipt"] == {"a": [1, None]}
    assert read(trace_to_line(trace)).extra == trace.extra


@pytest.mark.parametrize(
    "extra", [{"seed": 1}, {"prompt_text": "x"}, {"schema": 1}, {"sampling": {"top_k": 1}}]
)
def test_extra_cannot_overwrite_a_known_field(extra):
    with pytest.raises(TraceFieldError, match="would overwrite"):
        trace_to_json(replace(read(an_object()), extra=extra))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", object(), {1, 2}, b"x", [10**5000]])
def test_what_cannot_be_read_back_is_not_written(value):
    with pytest.raises(TraceSyntaxError, match="cannot be written"):
        trace_to_line(replace(read(an_object()), extra={"x": value}))


def test_depth_that_cannot_be_read_back_is_not_written():
    value = json.loads("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
    with pytest.raises(TraceSyntaxError, match="levels"):
        dump_json(value, where="x")


def test_top_k_minus_one_is_off():
    assert read(an_object(sampling__top_k=-1)).sampling.top_k == 0


def test_logit_bias_keys_become_token_ids():
    trace = read(an_object(sampling__logit_bias={"0": 1, "2147483647": -2.5}))
    assert trace.sampling.logit_bias == {0: 1.0, 2147483647: -2.5}
    assert trace_to_json(trace)["sampling"]["logit_bias"] == {"0": 1.0, "2147483647": -2.5}


def test_null_objects_mean_nothing_logged():
    trace = read(an_object(usage=None, engine=None, speculation=None, fingerprints=None, timing=None))
    assert trace == replace(read(an_object()), raw_digest=trace.raw_digest)


def test_digest_ignores_the_line_end_only():
    raw = json.dumps(an_object()).encode()
    assert read(raw).raw_digest == read(raw + b"\n").raw_digest == read(raw + b"\r\n").raw_digest
    assert read(raw).raw_digest != read(raw + b" ").raw_digest


@pytest.mark.parametrize(
    ("changes", "grade"),
    [
        ({}, "B"),
        ({"seed": None}, "C"),
        ({"noise": None}, "C"),
        ({"seed": None, "noise": None, "sampling__temperature": 0}, "B"),
        ({"output_token_ids": None}, "C"),
        ({"fingerprints": [{"kind": "toploc"}]}, "A"),
        ({"commitment": {"root": "00"}}, "A"),
        ({"commitment": {"root": "00"}, "seed": None}, "C"),
    ],
)
def test_grade_follows_what_is_logged(changes, grade):
    assert read(an_object(**changes)).grade == grade


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(json_values)
def test_strict_json_reads_back_what_it_wrote(value):
    assert load_json(dump_json(value, where="x"), where="x") == value


@settings(deadline=None)
@given(st.data())
def test_mutated_line_is_read_or_refused_and_nothing_else(data):
    raw = bytearray(lines_of("vllm-cpu-bf16-json-compact")[data.draw(st.integers(0, 63))])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        end = data.draw(st.integers(place, min(place + 20, len(raw))))
        raw[place:end] = data.draw(
            st.binary(max_size=6) | st.sampled_from([b'"', b"{", b"]", b"1e9", b"null"])
        )
        raw = raw or bytearray(b"x")
    found = outcome(bytes(raw))
    if isinstance(found, AuditError):
        assert str(found).startswith("log.jsonl:3: ")
        assert "\n" not in str(found)
    else:
        assert read(trace_to_line(found)).id == found.id


@settings(deadline=None)
@given(st.sampled_from([*an_object(), "usage", "engine", "messages", "timing", "asserted"]), json_values)
def test_any_json_in_any_field_is_read_or_refused_and_nothing_else(field, value):
    found = outcome(an_object(**{field: value}))
    if isinstance(found, AuditError):
        assert str(found).startswith(f"log.jsonl:3: field {field}")
    else:
        again = read(trace_to_line(found))
        assert again == replace(found, raw_digest=again.raw_digest)


def test_filters_of_the_odd_shape_survive_a_round_trip_and_are_not_written_when_they_are_off():
    trace = parse_trace(lines_of("vllm-cpu-bf16-plain")[0], file="f", line=1)
    asked = {"typical_p": 0.9, "top_n_sigma": 1.5, "xtc_probability": 0.5, "xtc_threshold": 0.25}
    assert not set(asked) & set(trace_to_json(trace)["sampling"])
    shaped = replace(trace, sampling=replace(trace.sampling, **asked))
    assert trace_to_json(shaped)["sampling"].items() >= asked.items()
    assert parse_trace(trace_to_line(shaped), file="f", line=1).sampling == shaped.sampling
    assert read(an_object(sampling__top_n_sigma=-1)).sampling == read(an_object()).sampling


def test_masks_survive_a_round_trip_and_are_not_written_when_they_are_off():
    """Lines written before these fields existed keep their bytes."""
    trace = parse_trace(lines_of("vllm-cpu-bf16-plain")[0], file="f", line=1)
    assert not {"allowed_token_ids", "bad_words", "bad_words_ids"} & set(trace_to_json(trace)["sampling"])
    masked = replace(
        trace,
        sampling=replace(
            trace.sampling, allowed_token_ids=(1, 2), bad_words=("a",), bad_words_ids=((3, 4), (5,))
        ),
    )
    assert parse_trace(trace_to_line(masked), file="f", line=1).sampling == masked.sampling


@pytest.mark.parametrize(
    ("field", "value"), [("allowed_token_ids", []), ("bad_words_ids", [[]]), ("bad_words", [3])]
)
def test_a_mask_that_makes_no_sense_is_unusable(field, value):
    line = json.loads(lines_of("vllm-cpu-bf16-plain")[0])
    line["sampling"][field] = value
    with pytest.raises(TraceFieldError, match=field):
        parse_trace(json.dumps(line).encode(), file="f", line=1)
