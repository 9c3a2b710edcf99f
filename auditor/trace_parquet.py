"""Traces as Parquet: the columns of `auditor.trace/v1`, one request a row.

Layout: ids and texts are strings, token ids `list<int32>`, the seed `decimal128(20, 0)`: seeds lie in
[-2**63, 2**64), which neither int64 nor uint64 holds, and a double would round. Everything nested
(`sampling`, `usage`, `messages`, ...) is JSON in a string column, and `extra` is a JSON object of the
fields that have no column. A null is an absent field.

Reading is more generous than writing: any integer or decimal type for the seed, any list of integers for
ids, native structs for nested objects, further columns (kept in `Trace.extra`). What a row says is then
checked like a JSON line. Rows are counted from 1 and take the place of line numbers; the raw digest is
that of the row's canonical JSON (sorted keys, compact).
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from auditor.errors import AuditError, TraceFieldError, TraceFileError, TraceSyntaxError
from auditor.strict_json import dump_json, load_json
from auditor.trace_format import digest_of, trace_from_object, trace_to_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import IO

    from auditor.trace import Trace

BATCH_ROWS = 256
"""Rows decoded at once when reading: the bound on memory besides one page per column."""

GROUP_ROWS = 4096
"""Rows collected for one row group when writing."""

_SEED = pa.decimal128(20, 0)
_JSON_COLUMNS = (
    *("messages", "sampling", "usage", "timing", "logprobs", "engine", "speculation"),
    *("policy", "fingerprints", "commitment", "asserted"),
)
_COLUMNS: Mapping[str, pa.DataType] = {
    **dict.fromkeys(("schema", "id", "created", "provider", "model"), pa.string()),
    **dict.fromkeys(("model_digest", "tokenizer_digest", "template_digest"), pa.string()),
    "messages": pa.string(),
    "prompt_text": pa.string(),
    "prompt_token_ids": pa.list_(pa.int32()),
    "sampling": pa.string(),
    "seed": _SEED,
    "noise": pa.string(),
    "output_token_ids": pa.list_(pa.int32()),
    **dict.fromkeys(("text", "finish_reason", "usage", "timing", "logprobs", "engine"), pa.string()),
    **dict.fromkeys(("speculation", "policy", "fingerprints", "commitment"), pa.string()),
    **dict.fromkeys(("asserted", "extra"), pa.string()),
}
_REQUIRED = ("schema", "id", "model", "sampling")

PARQUET_SCHEMA = pa.schema(list(_COLUMNS.items()))


def row_of(trace: Trace) -> dict[str, Any]:
    """Lay a trace out in the columns of `PARQUET_SCHEMA`.

    Raises:
        TraceFieldError, TraceSyntaxError: a value cannot be written and read back exactly.
    """
    fields = trace_to_json(trace)
    rest = {name: fields.pop(name) for name in list(fields) if name not in _COLUMNS or name == "extra"}
    for name in _JSON_COLUMNS:
        if fields.get(name) is not None:
            fields[name] = dump_json(fields[name], where=trace.where).decode("utf-8")
    if trace.seed is not None:
        fields["seed"] = Decimal(trace.seed)
    fields["extra"] = dump_json(rest, where=trace.where).decode("utf-8") if rest else None
    return fields


class ParquetTraceWriter:
    """Collects rows and writes them to an open file, a row group at a time."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._writer = pq.ParquetWriter(stream, PARQUET_SCHEMA, compression="zstd", write_page_checksum=True)
        self._rows: list[dict[str, Any]] = []

    def write(self, trace: Trace) -> None:
        """Add one trace.

        Raises:
            TraceFieldError, TraceSyntaxError: a value cannot be written and read back exactly.
        """
        row = row_of(trace)
        try:
            # Checked row by row: an error met when the group is written could not name its trace.
            pa.RecordBatch.from_pylist([row], schema=PARQUET_SCHEMA)
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            raise TraceFieldError(f"cannot be written to Parquet: {error}", where=trace.where) from None
        self._rows.append(row)
        if len(self._rows) >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=PARQUET_SCHEMA))
            self._rows.clear()

    def close(self) -> None:
        """Write the last group and the footer; the stream stays open."""
        self._flush()
        self._writer.close()


def read_parquet(stream: IO[bytes], *, file: str) -> Iterator[Trace | AuditError]:
    """Read a seekable Parquet file batch by batch; every bad row is yielded as an error in its place.

    Raises:
        TraceFileError: no Parquet, no rows, or not the columns of a trace.
    """
    try:
        parquet = pq.ParquetFile(
            stream, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
        )
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TraceFileError(
            f"is no readable Parquet: {error}", where=file, fix="the file may be truncated; copy it again"
        ) from None
    names = parquet.schema_arrow.names
    missing = [name for name in _REQUIRED if name not in names]
    if missing:
        raise TraceFileError(
            f"Parquet without a column {missing[0]!r}", where=file, fix="see auditor.trace/v1"
        )
    if len(set(names)) != len(names):
        raise TraceFileError("Parquet with two columns of one name", where=file)
    if parquet.metadata.num_rows == 0:
        raise TraceFileError("holds no requests", where=file)
    line = 0
    try:
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS):
            yield from traces_of_batch(batch, file=file, first=line + 1)
            line += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        yield TraceFileError(
            f"the Parquet data cannot be decoded from here on: {error}",
            where=f"{file}:{line + 1}",
            fix="the file is damaged; copy it again",
        )


def traces_of_batch(batch: pa.RecordBatch, *, file: str, first: int) -> Iterator[Trace | AuditError]:
    """The rows of a batch, the first of which has the number `first`; bad ones as errors in their place."""
    for index in range(batch.num_rows):
        yield _read_row(batch, index, file=file, line=first + index)


def _read_row(batch: pa.RecordBatch, index: int, *, file: str, line: int) -> Trace | AuditError:
    where = f"{file}:{line}"
    try:
        row = batch.slice(index, 1).to_pylist()[0]
        value = _object_of(row, where)
        digest = digest_of(dump_json(value, where=where, sort_keys=True))
        return trace_from_object(value, file=file, line=line, raw_digest=digest)
    except AuditError as error:
        return error
    except (pa.ArrowException, ValueError, OverflowError) as error:
        return TraceFieldError(f"a column cannot be read: {error}", where=where)


def _json_column(name: str, text: str, where: str) -> Any:
    try:
        return load_json(text.encode("utf-8"), where=where)
    except TraceSyntaxError as error:
        raise TraceSyntaxError(f"column {name}: {error.message}", where=where, fix=error.fix) from None


def _object_of(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    value = {name: item for name, item in row.items() if item is not None}
    for name in (*_JSON_COLUMNS, "extra"):
        if isinstance(value.get(name), str):
            value[name] = _json_column(name, value[name], where)
    seed = value.get("seed")
    if isinstance(seed, Decimal) and seed == seed.to_integral_value():
        value["seed"] = int(seed)
    extra = value.pop("extra", {})
    if not isinstance(extra, dict) or any(
        name in value or name in _COLUMNS for name in extra if name != "extra"
    ):
        raise TraceFieldError("column extra: is no object of fields without a column", where=where)
    return {**value, **extra}
