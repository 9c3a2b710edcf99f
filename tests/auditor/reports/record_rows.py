"""Make `rows.jsonl.gz` again: what the real worker writes when the demo model audits recorded logs of vLLM.

    python tests/auditor/reports/record_rows.py

Two weekly periods of three providers of one tenant, and one audit of another tenant. Times are set to two weeks
of November 2026, so that tests and screenshots do not depend on when this ran; nothing else is touched.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

import torch
from sqlalchemy import select

from auditor.commands.options import demo_model
from auditor.profiles import shipped_profiles
from auditor.replay import Reference
from auditor.service import audits, tenants
from auditor.service.audit_work import AuditWork
from auditor.service.blobs import BlobFolder
from auditor.service.worker import Worker
from auditor.store import Store
from auditor.store_schema import metadata

HERE = Path(__file__).parent
TRACES = HERE.parent.parent / "traces"
DAY = 86_400_000_000
MONDAY = 1_793_577_600_000_000  # 2026-11-02 00:00 UTC
LOGS = (  # (day, tenant, provider, log)
    (1, "tenant", "acme", "vllm-cpu-bf16-topp95.jsonl.gz"),
    (2, "tenant", "cheapo", "vllm-cpu-bf16-plain.jsonl.gz"),
    (3, "tenant", "hush", "vllm-cpu-bf16-greedy.jsonl.gz"),
    (8, "tenant", "acme", "vllm-cpu-bf16-plain.jsonl.gz"),
    (9, "tenant", "cheapo", "vllm-cpu-w4a16-g128.jsonl.gz"),
    (10, "tenant", "hush", "vllm-cpu-hidden-system-prompt.jsonl.gz"),
    (9, "other", "rival", "vllm-cpu-seed-plus-1.jsonl.gz"),
)


def main():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, Store.open(f"sqlite:///{folder}/s.sqlite3") as store:
        blobs = BlobFolder(Path(folder) / "blobs")
        days = {}
        with store.transaction(writes=True) as connection:
            ids = {name: tenants.create_tenant(connection, name).id for name in ("tenant", "other")}
            for day, tenant, provider, name in LOGS:
                raw = (TRACES / name).read_bytes()
                log = audits.keep_log(connection, ids[tenant], blobs.put(raw), name, len(raw))
                days[audits.submit(connection, log, audits.AuditOptions(), provider)] = day
        worker = Worker(store, AuditWork(blobs, Reference.load(demo_model()), shipped_profiles().get))
        while worker.run_once():
            pass
        with gzip.GzipFile(HERE / "rows.jsonl.gz", "wb", mtime=0) as out, store.transaction() as connection:
            for table in metadata.sorted_tables:
                if table.name in ("checkpoint", "event", "profile"):
                    continue
                for row in connection.execute(select(table)):
                    values = {name: shown(value) for name, value in row._mapping.items()}
                    set_time(table.name, values, days)
                    out.write(json.dumps([table.name, values]).encode() + b"\n")


def shown(value):
    return {"text": value.decode()} if isinstance(value, bytes) else value


def set_time(table, values, days):
    noon = MONDAY + days.get(values.get("audit_id") or values.get("id"), 0) * DAY + DAY // 2
    for name, late in (("created", 0), ("finished", DAY // 24), ("run_at", 0)):
        if values.get(name) is not None:
            values[name] = noon + (DAY // 24 if table == "verdict" else late)


if __name__ == "__main__":
    main()
