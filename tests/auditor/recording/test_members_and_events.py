"""Members in and out of JSON text without touching another byte; events off a stream; codings."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.errors import TraceSyntaxError
from auditor.recording.codings import Coding, TooLargeError, offered, readable
from auditor.recording.events import EventSplitter, StreamAssembler, event_data, with_data
from auditor.recording.exchange import amended, restored
from auditor.recording.members import with_members, without_members

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=4), JSON, max_size=5)
STYLES = st.sampled_from(
    [
        {},
        {"indent": 2},
        {"separators": (",", ":")},
        {"ensure_ascii": False},
        {"separators": (" ,\n", " :\t"), "ensure_ascii": False},
    ]
)


@settings(max_examples=40, deadline=None)
@given(OBJECTS, STYLES, st.integers(0, 2**64))
def test_what_is_put_in_comes_out_again_byte_for_byte(value, style, seed):
    value.pop("seed", None)
    text = json.dumps(value, **style)
    amended_text = with_members(text, {"seed": seed})
    assert json.loads(amended_text) == {**value, "seed": seed}
    if value:
        back = without_members(amended_text, {"seed": True}, as_null=False)
        assert back[1:].lstrip() == text[1:].lstrip()  # the space after the brace went with the member


@settings(max_examples=40, deadline=None)
@given(OBJECTS, STYLES, st.data())
def test_cutting_leaves_the_other_members_as_they_were_written(value, style, data):
    gone = data.draw(st.sets(st.sampled_from(sorted(value))) if value else st.just(set()))
    out = without_members(
        json.dumps(value, **style), dict.fromkeys(gone, True), as_null=False, nulls_too=True
    )
    assert json.loads(out) == {name: item for name, item in value.items() if name not in gone}
    for name, item in value.items():
        if name not in gone and "indent" not in style:
            assert json.dumps(item, **style) in out


def test_inner_members_and_nulls():
    text = (
        '{"a": 1e400, "choices": [{"token_ids": [1,2], "x": "\\u00e9"}, 7, {"token_ids": null}], "b": 0.10}'
    )
    cuts = {"choices": {"token_ids": True}}
    assert (
        without_members(text, cuts, as_null=False)
        == '{"a": 1e400, "choices": [{"x": "\\u00e9"}, 7, {"token_ids": null}], "b": 0.10}'
    )
    assert (
        without_members(text, cuts, as_null=True)
        == '{"a": 1e400, "choices": [{"token_ids": null, "x": "\\u00e9"}, 7, {"token_ids": null}], "b": 0.10}'
    )


@pytest.mark.parametrize("text", ["[]", "{", '{"a"', '{"a":1', "", "7"])
def test_text_that_is_no_object_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        with_members(text, {"a": 1})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([b"data: {}", b": ping", b"id: 7", b"data:x", b""]), max_size=8), st.data())
def test_events_join_to_the_stream_however_it_is_cut(lines, data):
    end = data.draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    stream = b"".join(line + end for line in lines)
    splitter, events, start = EventSplitter(), [], 0
    while start < len(stream):
        size = data.draw(st.integers(1, 7))
        events += splitter.feed(stream[start : start + size])
        start += size
    assert b"".join(events) + splitter.rest == stream
    whole = EventSplitter()
    if end != b"\r\n":
        assert events == whole.feed(stream)
    payloads = [event_data(event) for event in [*events, splitter.rest]]
    named = [line[5:].strip() for line in lines if line.startswith(b"data:")]
    assert b"\n".join(p for p in payloads if p is not None).split() == b" ".join(named).split()


def test_data_is_replaced_and_everything_else_of_an_event_stays():
    event = b'id: 1\r\ndata: {"a":\r\ndata: 1}\r\nretry: 5\r\n\r\n'
    assert event_data(event) == b'{"a":\n1}'
    assert with_data(event, b"{}") == b"id: 1\r\ndata: {}\r\nretry: 5\r\n\r\n"


def chunk(index=0, **choice):
    return {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": index, **choice}]}


def assembled(*chunks, **options):
    whole = StreamAssembler()
    for part in chunks:
        whole.add(part)
    return whole.response(**options)


def test_chunks_become_the_answer_they_stand_for():
    answer, notes = assembled(
        {**chunk(delta={"role": "assistant", "content": ""}), "prompt_token_ids": [1, 4]},
        chunk(delta={"content": "He"}, token_ids=[5], logprobs={"content": [{"token": "He"}]}),
        chunk(1, delta={"content": "x"}, token_ids=[9]),
        chunk(
            delta={"content": "y"},
            token_ids=[6, 7],
            finish_reason="stop",
            logprobs={"content": [{"token": "y"}]},
        ),
        {"id": "c", "choices": [], "usage": {"completion_tokens": 4}},
    )
    assert notes == []
    assert answer["object"] == "chat.completion"
    assert (answer["prompt_token_ids"], answer["usage"]) == ([1, 4], {"completion_tokens": 4})
    first, second = answer["choices"]
    assert first["message"] == {"role": "assistant", "content": "Hey"}
    assert (first["token_ids"], first["finish_reason"]) == ([5, 6, 7], "stop")
    assert first["logprobs"] == {"content": [{"token": "He"}, {"token": "y"}]}
    assert second["token_ids"] == [9]


def test_tool_calls_come_together_from_their_pieces():
    answer, _ = assembled(
        chunk(delta={"tool_calls": [{"index": 0, "id": "t", "function": {"name": "f", "arguments": '{"a'}}]}),
        chunk(delta={"tool_calls": [{"index": 0, "function": {"arguments": '":1}'}}]}),
        chunk(delta={"tool_calls": [{"index": 1, "function": {"name": "g", "arguments": ""}}]}),
    )
    calls = answer["choices"][0]["message"]["tool_calls"]
    assert [call["function"] for call in calls] == [
        {"name": "f", "arguments": '{"a":1}'},
        {"name": "g", "arguments": ""},
    ]


@pytest.mark.parametrize(
    ("chunks", "options"),
    [
        # A reasoning parser swallowed a token, so no chunk carried its id.
        (
            [
                chunk(delta={"content": "a"}, token_ids=[5]),
                {"choices": [], "usage": {"completion_tokens": 2}},
            ],
            {},
        ),
        ([chunk(delta={"content": "a"}, token_ids=[5]), chunk(delta={"content": "b"})], {}),
        ([chunk(delta={"content": "a"}, token_ids=[5])], {"tools": True}),
        ([chunk(delta={"reasoning": "a"}, token_ids=[5])], {}),
    ],
)
def test_ids_with_a_gap_are_never_taken_for_the_output(chunks, options):
    answer, notes = assembled(*chunks, **options)
    (choice,) = answer["choices"]
    assert (choice["token_ids"], choice["token_ids_incomplete"]) == (None, [5])
    assert len(notes) == 1


def test_ids_beyond_the_bill_are_kept():
    answer, notes = assembled(
        chunk(delta={"content": "a"}, token_ids=[5, 6]), {"choices": [], "usage": {"completion_tokens": 1}}
    )
    assert (answer["choices"][0]["token_ids"], notes) == ([5, 6], [])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["choices", "usage", "id", "error"]), JSON, max_size=3), max_size=4
    )
)
def test_any_chunks_are_assembled_without_a_crash(chunks):
    assembled(*chunks)


def test_request_asks_once_and_only_for_what_is_missing():
    plain = b'{ "model":"m", "temperature":0.70 }'
    sent = amended(plain, ask=True, seed=9)
    assert sent.body == b'{"return_token_ids":true,"seed":9, "model":"m", "temperature":0.70 }'
    assert amended(sent.body, ask=True, seed=8).body == sent.body
    assert amended(plain, ask=False, seed=None).body == plain
    assert amended(b'{"seed":null}', ask=False, seed=3).request == {"seed": 3}
    assert amended(b'{"return_token_ids":false}', ask=True, seed=None).request == {"return_token_ids": True}
    stream = amended(b'{"stream":true}', ask=True, seed=None)
    assert stream.request["stream_options"] == {"include_usage": True}
    own = amended(b'{"stream":true,"stream_options":{"include_usage":false}}', ask=True, seed=None)
    assert "stream_options" not in own.added


@pytest.mark.parametrize("body", [b"", b"[]", b'{"a":NaN}', b'{"a":1,"a":2}', b"\xff", b"x" * 10])
def test_request_that_cannot_be_read_exactly_is_refused(body):
    with pytest.raises(TraceSyntaxError):
        amended(body, ask=True, seed=None)


def test_answer_is_restored_in_the_servers_own_spelling():
    asked = {"return_token_ids": True}
    vllm = '{"system_fingerprint":"vllm-0.32.0-x","choices":[{"token_ids":[1]}],"prompt_token_ids":[2]}'
    other = '{"choices":[{"text":"a","token_ids":[1]}],"prompt_token_ids":[2]}'
    assert restored(vllm, json.loads(vllm), asked) == vllm.replace("[1]", "null").replace("[2]", "null")
    assert restored(other, json.loads(other), asked) == '{"choices":[{"text":"a"}]}'
    assert restored(other, json.loads(other), {}) == other
    count = '{"choices":[],"usage":{"completion_tokens":1}}'
    assert restored(count, json.loads(count), {"stream_options": {}}) is None
    assert restored(count, json.loads(count), asked) == count


@pytest.mark.parametrize("name", ["gzip", "deflate", ""])
def test_coding_round_trip_piece_by_piece(name):
    coding = Coding(name, 1000)
    first = coding.encode(b"one ")
    reader = Coding(name, 1000)
    assert reader.decode(first) == b"one "  # readable before the rest has come
    assert reader.decode(coding.encode(b"two", last=True)) == b"two"


def test_compression_bombs_are_stopped():
    bomb = gzip.compress(bytes(10_000_000))
    with pytest.raises(TooLargeError):
        Coding("gzip", 1_000_000).decode(bomb)
    with pytest.raises(zlib.error):
        Coding("gzip", 100).decode(b"no gzip at all")


def test_only_readable_codings_are_offered():
    assert offered("br, gzip;q=0.8, zstd") == "gzip;q=0.8"
    assert offered("br") == "identity"
    assert readable("GZIP")
    assert not readable("br")
