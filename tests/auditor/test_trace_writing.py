"""Written trace files: whole or not there at all; and Parquet, column by column."""

from __future__ import annotations

import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from auditor.errors import AuditError, OptionError, OutputExistsError, TraceFieldError, TraceFileError
from auditor.reference.sampling import SamplingSpec
from auditor.trace import Trace
from auditor.trace_files import TraceWriter, read_traces, write_traces
from auditor.trace_parquet import PARQUET_SCHEMA

ENDINGS = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"]


def a_trace(number=1, **changes):
    known = {
        "id": f"req-{number}",
        "model": "demo",
        "prompt_token_ids": (1, number),
        "output_token_ids": (5, 2),
        "sampling": SamplingSpec(),
        "seed": number,
    }
    return Trace(**known | changes)


def while_someone_writes(path):
    yield a_trace()
    path.write_text("theirs")


def places(items):
    return [
        f"!{item.where.rpartition(':')[2]}" if isinstance(item, AuditError) else item.id for item in items
    ]


@pytest.mark.parametrize("ending", ENDINGS)
def test_file_appears_whole_when_the_block_ends(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    with TraceWriter(path) as writer:
        for number in (1, 2, 3):
            writer.write(a_trace(number))
        assert not path.exists()
    assert writer.count == 3
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    assert places(read_traces(path)) == ["req-1", "req-2", "req-3"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_failure_half_way_leaves_no_file(tmp_path, ending):
    def failing():
        yield a_trace()
        raise KeyError("the engine died")

    with pytest.raises(KeyError, match="the engine died"):
        write_traces(tmp_path / f"a{ending}", failing())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_trace_that_cannot_be_written_leaves_no_file(tmp_path, ending):
    with pytest.raises(AuditError, match="cannot be written"):
        write_traces(tmp_path / f"a{ending}", [a_trace(), a_trace(extra={"x": float("nan")})])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_refused_trace_does_not_spoil_those_around_it(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    with TraceWriter(path) as writer:
        writer.write(a_trace(1))
        with pytest.raises(AuditError):
            writer.write(a_trace(2, text="\ud800"))
        writer.write(a_trace(3))
    assert (writer.count, places(read_traces(path))) == (2, ["req-1", "req-3"])


def test_existing_file_is_kept_unless_overwriting_is_asked_for(tmp_path):
    path = tmp_path / "a.jsonl"
    write_traces(path, [a_trace(1)])
    with pytest.raises(OutputExistsError, match="exists already"):
        write_traces(path, [a_trace(2)])
    assert places(read_traces(path)) == ["req-1"]
    write_traces(path, [a_trace(2)], overwrite=True)
    assert places(read_traces(path)) == ["req-2"]


def test_failure_while_overwriting_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.jsonl"
    write_traces(path, [a_trace(1)])
    with pytest.raises(AuditError):
        write_traces(path, [a_trace(extra={"seed": 1})], overwrite=True)
    assert places(read_traces(path)) == ["req-1"]


def test_file_made_by_someone_else_in_the_meantime_is_not_overwritten(tmp_path):
    path = tmp_path / "a.jsonl"
    with pytest.raises(OutputExistsError):
        write_traces(path, while_someone_writes(path))
    assert path.read_text() == "theirs"
    assert [item.name for item in tmp_path.iterdir()] == ["a.jsonl"]


def test_file_system_without_links_is_written_all_the_same(tmp_path, monkeypatch):
    def no_links(source, target):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr("os.link", no_links)
    path = tmp_path / "a.jsonl"
    write_traces(path, [a_trace()])
    assert places(read_traces(path)) == ["req-1"]
    with pytest.raises(OutputExistsError):
        write_traces(tmp_path / "b.jsonl", while_someone_writes(tmp_path / "b.jsonl"))
    assert (tmp_path / "b.jsonl").read_text() == "theirs"


@pytest.mark.parametrize("name", ["a.json", "a", "a.jsonl.xz", "-"])
def test_unknown_ending_is_refused(tmp_path, name):
    with pytest.raises(OptionError, match="ends in none of"):
        write_traces(tmp_path / name, [])


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(TraceFileError, match="No such file or directory"):
        write_traces(tmp_path / "none" / "a.jsonl", [a_trace()])


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst", ".jsonl"])
def test_full_disk_is_an_error_with_the_file_name(tmp_path, monkeypatch, ending):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(TraceFileError, match=r"a\.jsonl.*No space left"):
        write_traces(tmp_path / f"a{ending}", [a_trace()])
    assert list(tmp_path.iterdir()) == []


def test_parquet_has_native_ids_and_an_exact_seed(tmp_path):
    path = tmp_path / "a.parquet"
    seeds = [2**64 - 1, -(2**63), 2**53 + 1, None]
    write_traces(path, [a_trace(seed=seed, extra={"user": "u"}) for seed in seeds])
    table = pq.read_table(path)
    assert table.schema.equals(PARQUET_SCHEMA)
    assert table["output_token_ids"].type == pa.list_(pa.int32())
    assert table["seed"].to_pylist() == [None if seed is None else Decimal(seed) for seed in seeds]
    assert json.loads(table["sampling"][0].as_py())["temperature"] == 1.0
    assert json.loads(table["extra"][0].as_py()) == {"user": "u"}


BASE = {"schema": "auditor.trace/v1", "id": "r", "model": "m", "sampling": '{"top_p": 0.9}'}


def read_rows(tmp_path, rows, schema=None):
    path = tmp_path / "foreign.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return list(read_traces(path))


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64(), pa.decimal128(38, 0), pa.decimal128(22, 2)])
def test_parquet_seed_may_have_any_exact_type(tmp_path, kind):
    schema = pa.schema([*((name, pa.string()) for name in BASE), ("seed", kind)])
    (trace,) = read_rows(tmp_path, [{**BASE, "seed": 2**62 + 1}], schema)
    assert trace.seed == 2**62 + 1


def test_parquet_with_native_structs_and_more_columns_is_read(tmp_path):
    row = {**BASE, "sampling": {"top_p": 0.9}, "engine": {"name": "x"}, "user": "u", "output_token_ids": [1]}
    (trace,) = read_rows(tmp_path, [row])
    assert (trace.sampling.top_p, trace.engine.name, trace.extra) == (0.9, "x", {"user": "u"})
    assert (trace.output_token_ids, trace.line) == ((1,), 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sampling": "{"}, "column sampling: not valid JSON"),
        ({"sampling": '{"top_p": NaN}'}, "NaN is not a JSON number"),
        ({"sampling": '{"top_p": 1.7}'}, "field sampling.top_p: 1.7 is outside (0, 1]"),
        ({"sampling": None}, "field sampling: is missing"),
        ({"id": None}, "field id: is missing"),
        ({"output_token_ids": [1, -1]}, "field output_token_ids[1]: -1 is outside"),
        ({"output_token_ids": [1.0]}, "field output_token_ids[0]: 1.0 is not a whole number"),
        ({"output_token_ids": [None, 1]}, "field output_token_ids[0]: null is not a whole number"),
        ({"seed": 1.5e18}, "field seed: 1.5e+18 is not a whole number"),
        ({"seed": Decimal("1.5")}, "cannot be written as JSON"),
        ({"other": float("nan")}, "cannot be written as JSON"),
        ({"other": b"x"}, "cannot be written as JSON"),
        ({"extra": "[]"}, "column extra: is no object"),
        ({"extra": '{"seed": 1}'}, "column extra: is no object"),
    ],
)
def test_bad_parquet_row_is_reported_with_its_number(tmp_path, change, said):
    good = read_rows(tmp_path, [BASE])
    found = read_rows(tmp_path, [{**BASE, **change}, {**BASE, **change}])
    assert places(good + found) == ["r", "!1", "!2"]
    assert said in str(found[1])
    assert "\n" not in str(found[1])


def test_good_rows_around_a_bad_one_are_read(tmp_path):
    rows = [{**BASE, "model": None if number == 300 else "m"} for number in range(1, 601)]
    found = read_rows(tmp_path, rows)
    assert [index for index, item in enumerate(found, 1) if isinstance(item, AuditError)] == [300]
    assert isinstance(found[299], TraceFieldError)


def test_text_that_is_no_utf8_spoils_only_its_row(tmp_path):
    texts = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff"))
    columns = {name: [value] * 2 for name, value in BASE.items()} | {"text": texts}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert places(read_traces(tmp_path / "a.parquet")) == ["r", "!2"]


def test_raw_digest_of_a_row_is_that_of_its_canonical_json(tmp_path):
    (first,) = read_rows(tmp_path, [BASE])
    (second,) = read_rows(tmp_path, [dict(reversed(BASE.items())) | {"sampling": '{ "top_p":0.9 }'}])
    assert first.raw_digest == second.raw_digest


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pa.table({"a": [1]}), "without a column 'schema'"),
        (pa.table({name: pa.array([], pa.string()) for name in BASE}), "holds no requests"),
        (pa.table([["x"]] * 5, names=[*BASE, "id"]), "two columns of one name"),
    ],
)
def test_parquet_that_is_no_log_is_refused(tmp_path, table, said):
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(TraceFileError, match=said):
        next(read_traces(tmp_path / "a.parquet"))


def test_damaged_parquet_is_refused_or_ends_in_an_error(tmp_path):
    path = tmp_path / "a.parquet"
    write_traces(path, [a_trace(number, text="x" * number) for number in range(3000)])
    raw = bytearray(path.read_bytes())
    path.write_bytes(raw[:-20])
    with pytest.raises(TraceFileError, match="no readable Parquet"):
        next(read_traces(path))
    middle = len(raw) // 3
    raw[middle : middle + 200] = bytes(200)
    path.write_bytes(raw)
    found = list(read_traces(path))
    assert isinstance(found[-1], TraceFileError)
    assert "cannot be decoded" in str(found[-1])


def test_raw_server_logs_are_not_looked_for_in_parquet(tmp_path):
    write_traces(tmp_path / "a.parquet", [a_trace()])
    with pytest.raises(TraceFileError, match="holds traces, not openai logs"):
        next(read_traces(tmp_path / "a.parquet", input_format="openai"))
    assert places(read_traces(tmp_path / "a.parquet", input_format="parquet")) == ["req-1"]
