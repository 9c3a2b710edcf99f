"""The rows under a report, one a request, as CSV or Parquet, in bounded memory. The rim."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import select

from auditor.errors import OptionError, OutputExistsError
from auditor.store_schema import audit as audit_table
from auditor.store_schema import evidence as evidence_table

if TYPE_CHECKING:
    from auditor.store import Store

_BATCH = 10_000
_COLUMNS = pa.schema(
    [
        ("evidence", pa.string()),
        ("audit", pa.string()),
        ("provider", pa.string()),
        ("request", pa.string()),
        ("where", pa.string()),
        ("grade", pa.string()),
        ("verdict", pa.string()),
        ("e_value", pa.float64()),
        ("tokens", pa.int64()),
        ("match_rate", pa.float64()),
        ("mean_margin", pa.float64()),
        ("outside_support", pa.int64()),
        ("prompt_digest", pa.string()),
        ("output_digest", pa.string()),
    ]
)


def write_rows(store: Store, tenant_id: str, document: Mapping[str, Any], path: Path) -> int:
    """Write the requests of a report's judged audits; returns how many. The name's ending says the format.

    Raises:
        OptionError: neither `.csv` nor `.parquet`. OutputExistsError: the file is there.
        StoreError: the database refused.
    """
    if path.suffix not in {".csv", ".parquet"}:
        raise OptionError(f"{path.name} says no format", where="--out", fix="end it in .csv or .parquet")
    if path.exists():
        raise OutputExistsError("exists already", where=str(path), fix="choose another name")
    rows = _rows(store, tenant_id, document)
    return _csv(rows, path) if path.suffix == ".csv" else _parquet(rows, path)


def _rows(store: Store, tenant_id: str, document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for provider in document["providers"]:
        for audit in provider["audits"]:
            if audit["verdict"] is not None:
                yield from _of_audit(store, tenant_id, provider["name"], audit["id"])


def _of_audit(store: Store, tenant_id: str, provider: str, audit_id: str) -> Iterator[dict[str, Any]]:
    column = evidence_table.c
    wanted = (
        select(column.number, column.body)
        .join(audit_table, audit_table.c.id == column.audit_id)
        .where(column.audit_id == audit_id, audit_table.c.tenant_id == tenant_id)
        .order_by(column.number)
    )
    with store.transaction() as connection:
        for row in connection.execution_options(yield_per=1000).execute(wanted):
            trace = json.loads(bytes(row.body))
            digests = trace.get("digests") or {}
            yield {
                "evidence": f"{audit_id}/{row.number}",
                "audit": audit_id,
                "provider": provider,
                "request": str(trace.get("id")),
                "prompt_digest": digests.get("prompt"),
                "output_digest": digests.get("output"),
                **{name: trace.get(name) for name in _COPIED},
            }


_COPIED = ("where", "grade", "verdict", "e_value", "tokens", "match_rate", "mean_margin", "outside_support")


def _csv(rows: Iterator[dict[str, Any]], path: Path) -> int:
    count = 0
    with path.open("x", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, _COLUMNS.names, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _safe(value) for name, value in row.items()})
            count += 1
    return count


def _safe(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula is quoted."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _parquet(rows: Iterator[dict[str, Any]], path: Path) -> int:
    count = 0
    with pq.ParquetWriter(path, _COLUMNS, compression="zstd") as writer:
        while batch := list(islice(rows, _BATCH)):
            writer.write_table(pa.Table.from_pylist(batch, schema=_COLUMNS))
            count += len(batch)
    return count
