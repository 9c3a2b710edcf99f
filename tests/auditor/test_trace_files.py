"""Trace files: every container, every kind of damage, and nothing half-written."""

from __future__ import annotations

import gzip
import io
import json
import os
import threading
import tracemalloc
import types
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auditor.errors import (
    AuditError,
    OptionError,
    TraceFileError,
    TraceSyntaxError,
)
from auditor.reference.sampling import SamplingSpec
from auditor.trace import Engine, Speculation, Trace, Usage
from auditor.trace_files import read_traces, write_traces

TRACES = Path(__file__).parent.parent / "traces"
ENDINGS = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"]


def a_trace(number=1, **changes):
    trace = Trace(
        id=f"req-{number}",
        model="demo",
        prompt_token_ids=(1, number),
        output_token_ids=(5, 2),
        sampling=SamplingSpec(),
        seed=number,
        noise="gumbel-pos-v1",
    )
    return replace(trace, **changes)


def a_line(number=1):
    value = {"schema": "auditor.trace/v1", "id": f"req-{number}", "model": "demo", "sampling": {}}
    return json.dumps(value).encode()


def unplaced(items):
    return [replace(item, file="", line=0, raw_digest="") for item in items]


def places(items):
    """What a caller sees of a file: the id of each trace, `!line` for each error."""
    return [
        f"!{item.where.rpartition(':')[2]}" if isinstance(item, AuditError) else item.id for item in items
    ]


def read_bytes(tmp_path, data, name="log.jsonl", **options):
    path = tmp_path / name
    path.write_bytes(data)
    return list(read_traces(path, **options))


def test_every_recorded_file_is_read_without_an_error():
    requests, tokens = 0, 0
    for path in sorted(TRACES.glob("*.jsonl.gz")):
        found = list(read_traces(path))
        assert not [item for item in found if isinstance(item, AuditError)]
        assert [item.line for item in found] == list(range(1, len(found) + 1))
        requests += len(found)
        tokens += sum(len(item.output_token_ids) for item in found)
    assert (requests, tokens) == (27 * 64 + 2 * 32 + 2 * 48 + 8 + 24 + 64 + 6 * 24, 263_127)


@pytest.mark.parametrize("ending", ENDINGS)
def test_recorded_trace_survives_every_format(tmp_path, ending):
    traces = list(read_traces(TRACES / "vllm-cpu-bf16-json.jsonl.gz"))
    traces += list(read_traces(TRACES / "vllm-server-chat.raw.jsonl.gz"))
    path = tmp_path / f"copy{ending}"
    assert write_traces(path, traces) == 96
    assert unplaced(read_traces(path)) == unplaced(traces)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)
ids = st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple)
text = st.none() | st.text()
count = st.none() | st.integers(0, 2**63 - 1)
unknown = st.dictionaries(st.text(min_size=1).map("x-{}".format), json_values, min_size=1, max_size=2)
unknown_inside = unknown.map(lambda value: {"sampling": value, "usage": value})
sampling = st.builds(
    SamplingSpec,
    temperature=positive | st.just(0.0),
    top_k=st.integers(0, 2**63 - 1),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    repetition_penalty=positive,
    presence_penalty=positive.map(lambda value: -value),
    logit_bias=st.dictionaries(st.integers(0, 2**31 - 1), positive, max_size=3),
    max_tokens=count,
    stop=st.lists(st.text(), max_size=2).map(tuple),
    stop_token_ids=ids,
    ignore_eos=st.booleans(),
    grammar=st.none() | st.dictionaries(st.text(), json_values, max_size=2),
)
traces = st.builds(
    Trace,
    id=st.text(min_size=1),
    model=st.text(min_size=1),
    prompt_token_ids=st.none() | ids,
    output_token_ids=st.none() | ids,
    sampling=sampling,
    seed=st.none() | st.integers(-(2**63), 2**64 - 1),
    noise=text,
    messages=st.none() | st.lists(st.dictionaries(st.text(), json_values, max_size=2), max_size=2).map(tuple),
    prompt_text=text,
    text=text,
    usage=st.builds(Usage, count, count, count),
    timing=st.none() | st.dictionaries(st.text(), json_values, max_size=2),
    logprobs=json_values,
    engine=st.builds(Engine, text, text, text, text, text),
    speculation=st.builds(Speculation, st.text(), st.none() | st.lists(ids, max_size=2).map(tuple)),
    policy=json_values,
    fingerprints=st.lists(json_values, max_size=2).map(tuple),
    commitment=json_values,
    extra=st.builds(lambda a, b: a | b, st.just({}) | unknown, st.just({}) | unknown_inside),
    asserted=st.lists(st.text(), max_size=2).map(tuple),
)


@pytest.mark.parametrize("ending", ENDINGS)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(logged=st.lists(traces, min_size=1, max_size=3))
def test_any_trace_survives_every_format(tmp_path, ending, logged):
    path = tmp_path / f"any{ending}"
    write_traces(path, logged, overwrite=True)
    assert unplaced(read_traces(path)) == logged


@pytest.mark.parametrize("ending", ENDINGS)
def test_container_is_told_by_its_bytes_not_its_name(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    write_traces(path, [a_trace()])
    for other in ENDINGS:
        assert places(read_bytes(tmp_path, path.read_bytes(), f"b{other}")) == ["req-1"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_same_traces_give_the_same_bytes(tmp_path, ending):
    for name in ("a", "b"):
        write_traces(tmp_path / f"{name}{ending}", [a_trace(1), a_trace(2)])
    assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


def test_bad_lines_are_yielded_in_their_place_and_the_rest_is_read(tmp_path):
    data = b"\n".join([a_line(1), b"junk", b"", a_line(2), b'{"schema": 1}', b"[]", b"   ", a_line(1)])
    found = read_bytes(tmp_path, data)
    assert places(found) == ["req-1", "!2", "req-2", "!5", "!6", "req-1"]
    assert [item.line for item in found if isinstance(item, Trace)] == [1, 4, 8]
    assert found[0].raw_digest == found[-1].raw_digest


def test_line_ends_and_byte_order_mark_of_windows(tmp_path):
    plain = read_bytes(tmp_path, a_line(1) + b"\n" + a_line(2) + b"\n")
    windows = read_bytes(tmp_path, b"\xef\xbb\xbf" + a_line(1) + b"\r\n" + a_line(2) + b"\r\n")
    assert plain == windows


def test_byte_order_mark_inside_the_file_is_a_bad_line(tmp_path):
    assert places(read_bytes(tmp_path, a_line() + b"\n\xef\xbb\xbf" + a_line())) == ["req-1", "!2"]


def test_last_line_cut_off_is_a_bad_line(tmp_path):
    found = read_bytes(tmp_path, a_line(1) + b"\n" + a_line(2)[:-9])
    assert places(found) == ["req-1", "!2"]
    assert isinstance(found[1], TraceSyntaxError)
    assert "cut off" in str(found[1])


def test_line_feeds_of_other_alphabets_do_not_end_a_line(tmp_path):
    trace = a_trace(text="a\u2028b\u0085c\x0bd\re")
    write_traces(tmp_path / "a.jsonl", [trace])
    assert unplaced(read_traces(tmp_path / "a.jsonl")) == [trace]


def test_overlong_line_is_reported_and_skipped(tmp_path):
    data = a_line(1) + b"\n" + b"x" * 5000 + b"\n" + a_line(2) + b"\n" + b"y" * 5000
    found = read_bytes(tmp_path, data, max_line_bytes=1000)
    assert places(found) == ["req-1", "!2", "req-2", "!4"]
    assert "longer than 1000 bytes" in str(found[1])


def test_line_of_exactly_the_limit_is_read(tmp_path):
    for ending in (b"", b"\n", b"\r\n"):
        data = a_line() + ending
        assert places(read_bytes(tmp_path, data, max_line_bytes=len(a_line()))) == ["req-1"]
        assert places(read_bytes(tmp_path, data, max_line_bytes=len(a_line()) - 1)) == ["!1"]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_overlong_line_is_never_held_in_memory(tmp_path, ending):
    data = a_line(1) + b"\n" + b"x" * 50_000_000 + b"\n" + a_line(2)
    pack = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.compress}[ending]
    path = tmp_path / f"long{ending}"
    path.write_bytes(pack(data, 1) if ending == ".jsonl.gz" else pack(data))
    del data
    tracemalloc.start()
    try:
        assert places(read_traces(path, max_line_bytes=100_000)) == ["req-1", "!2", "req-2"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # zstd hands out whatever a step of input stands for, here 8 MiB, and joins it from its blocks.
    assert peak < (40_000_000 if ending == ".jsonl.zst" else 2_000_000)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"\n\n  \r\n", "holds no requests"),
        (gzip.compress(b"", mtime=0), "holds no requests"),
        (zstandard.compress(b""), "holds no requests"),
        (b"BZh91AY&SY", "is bzip2"),
        (b"PK\x03\x04xxxx", "is zip"),
        (a_line().decode().encode("utf-16"), "is UTF-16 text"),
        (b"\x80\x00\x00\x00\x00\x00\x00\x00{junk", "is a binary file"),
        (gzip.compress(b"\x7fELF\x00\x00\x00" * 50, mtime=0), "is a binary file"),
        (b"\x1f\x8b junk junk", "cannot be decompressed"),
        (b"\x1f\x8b", "cannot be decompressed"),
        (b"\x28\xb5\x2f\xfd\xff\xff\xff", "cannot be decompressed"),
        (b"PAR1 junk", "no readable Parquet"),
    ],
)
def test_file_that_is_no_log_is_refused_at_first_use(tmp_path, data, said):
    path = tmp_path / "log.jsonl"
    path.write_bytes(data)
    items = read_traces(path)
    with pytest.raises(TraceFileError, match=said) as caught:
        next(items)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path, "a\0b"):
        with pytest.raises(TraceFileError, match="cannot be opened"):
            next(read_traces(path))


def test_junk_first_line_with_nul_bytes_does_not_hide_the_rest(tmp_path):
    assert places(read_bytes(tmp_path, b"\0\0\0junk\n" + a_line(2))) == ["!1", "req-2"]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize("lost", [1, 10, 4000])
def test_truncated_compression_yields_an_error_at_the_line_reached(tmp_path, pack, lost):
    plain = b"".join(a_line(number) + os.urandom(20).hex().encode() + b"\n" for number in range(3000))
    found = read_bytes(tmp_path, pack(plain)[:-lost])
    assert len(found) > 100
    assert isinstance(found[-1], TraceFileError)
    assert "breaks off" in str(found[-1])
    assert places(found[-1:]) == [f"!{len(found)}"]


def test_members_and_frames_one_after_the_other_are_one_file(tmp_path):
    for pack in (gzip.compress, zstandard.compress):
        data = pack(a_line(1) + b"\n") + pack(a_line(2) + b"\n")
        assert places(read_bytes(tmp_path, data)) == ["req-1", "req-2"]
        assert places(read_bytes(tmp_path, data + b"junk junk")) == ["req-1", "req-2", "!3"]


def test_zstd_bomb_stays_within_its_bound():
    from auditor.trace_streams import decompressed

    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(200_000_000))
    assert max(len(chunk) for chunk in decompressed([bomb], "zstd")) <= 8 * 1024 * 1024


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), ending=st.sampled_from([".jsonl", ".jsonl.gz", ".jsonl.zst"]))
def test_mutated_file_is_read_or_refused_and_nothing_else(tmp_path, data, ending):
    path = tmp_path / f"m{ending}"
    write_traces(path, [a_trace(number) for number in range(5)], overwrite=True)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place : data.draw(st.integers(place, len(raw)))] = data.draw(st.binary(min_size=1, max_size=5))
    path.write_bytes(raw)
    try:
        found = list(read_traces(path))
    except TraceFileError as error:
        found = [error]
    assert found
    assert all(isinstance(item, (Trace, AuditError)) for item in found)


OPENAI = {"request": {"model": "m"}, "response": {"id": "x", "choices": [{"text": "a"}, {"text": "b"}]}}


def test_kind_is_told_line_by_line(tmp_path):
    data = b"\n".join([a_line(), json.dumps(OPENAI).encode(), b'{"a": 1}'])
    found = read_bytes(tmp_path, data)
    assert places(found) == ["req-1", "x#0", "x#1", "!3"]
    assert "neither a field schema" in str(found[-1])


def test_forced_format_reads_no_other(tmp_path):
    data = a_line() + b"\n" + json.dumps(OPENAI).encode()
    assert places(read_bytes(tmp_path, data, input_format="trace")) == ["req-1", "!2"]
    assert places(read_bytes(tmp_path, data, input_format="openai")) == ["!1", "x#0", "x#1"]
    with pytest.raises(TraceFileError, match="no Parquet"):
        read_bytes(tmp_path, data, input_format="parquet")
    with pytest.raises(OptionError, match="--input-format"):
        read_bytes(tmp_path, data, input_format="csv")


def standard_input(monkeypatch, data):
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))


def test_dash_reads_standard_input(monkeypatch):
    for pack in (bytes, gzip.compress, zstandard.compress):
        standard_input(monkeypatch, pack(a_line(1) + b"\nx\n" + a_line(2)))
        found = list(read_traces("-"))
        assert places(found) == ["req-1", "!2", "req-2"]
        assert str(found[1]).startswith("<stdin>:2: ")


def test_parquet_on_standard_input_is_refused(monkeypatch):
    standard_input(monkeypatch, b"PAR1....")
    with pytest.raises(TraceFileError, match="cannot be read from a pipe"):
        next(read_traces("-"))


def test_lines_of_a_pipe_come_out_before_it_is_closed(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    go = threading.Event()

    def feed():
        with pipe.open("wb", buffering=0) as stream:
            stream.write(a_line(1) + b"\n")
            go.wait(10)
            stream.write(a_line(2) + b"\n")

    feeder = threading.Thread(target=feed)
    feeder.start()
    items = read_traces(pipe)
    assert next(items).id == "req-1"
    go.set()
    assert places(items) == ["req-2"]
    feeder.join()
