"""The service's own logs hold no prompts, whatever goes wrong."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from auditor.service import audits, tenants
from auditor.service.audits import AuditOptions
from auditor.service.blobs import BlobFolder
from auditor.service.logs import JsonLines, Lines
from auditor.store import Store

CANARY = "canary-7f3a9c"
TRACES = Path(__file__).parent.parent.parent / "traces"


@pytest.mark.parametrize("formatter", [Lines(), JsonLines()], ids=["text", "json"])
def test_an_exception_is_told_by_type_and_place_only(formatter):
    try:
        int(f"the prompt was {CANARY}")
    except ValueError:
        record = logging.LogRecord(
            "auditor.x", logging.ERROR, "f", 1, "%s failed", ("aud_1",), sys.exc_info()
        )
    said = formatter.format(record)
    assert CANARY not in said
    assert "\n" not in said
    assert "ValueError" in said
    assert "test_logs.py:" in said
    if isinstance(formatter, JsonLines):
        value = json.loads(said)
        assert (value["level"], value["logger"], value["message"]) == ("error", "auditor.x", "aud_1 failed")


def test_a_workers_log_of_good_bad_and_failing_audits_holds_no_prompt(tmp_path):
    """A real worker process, and logs that hold a canary wherever text can be."""
    url = f"sqlite:///{tmp_path}/s.sqlite3"
    Store.upgrade(url)
    blobs = BlobFolder(tmp_path / "blobs")
    with gzip.open(TRACES / "vllm-cpu-bf16-plain.jsonl.gz", "rt") as stream:
        trace = json.loads(next(stream))
    good = trace | {"messages": [{"role": "user", "content": CANARY}], "id": CANARY, "text": CANARY}
    lines = [
        json.dumps(good),
        json.dumps(good | {"output_token_ids": [CANARY]}),
        json.dumps(good | {"sampling": {"temperature": CANARY}}),
        f'{{"schema": "{CANARY}"',
        f'{{"prompt": "{CANARY}"}}',
    ]
    ordered = []
    with Store.open(url) as store:
        with store.transaction(writes=True) as connection:
            tenant = tenants.create_tenant(connection, "acme").id
        for body in ("\n".join(lines), lines[-1], "", json.dumps(good) + f"\n{CANARY}"):
            data = body.encode()
            digest = blobs.put(data)
            with store.transaction(writes=True) as connection:
                log = audits.keep_log(connection, tenant, digest, "log", len(data))
                ordered.append(audits.submit(connection, log, AuditOptions()))
        blobs.remove(digest)  # of the last: its audit fails
        command = [
            sys.executable,
            "-c",
            "from auditor.commands import main; main()",
            "worker",
            "--with-parent",
        ]
        environment = os.environ | {"AUDITOR_DATABASE_URL": url, "OMP_NUM_THREADS": "1"}
        command += ["--blobs", str(blobs.folder), "--log-format", "json", "--threads", "1"]
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as worker:
            for _ in range(600):
                with store.transaction() as connection:
                    found = [audits.find(connection, tenant, audit_id) for audit_id in ordered]
                if all(a.state in ("done", "dead") or a.attempts for a in found):
                    break
                try:
                    worker.wait(0.2)
                except subprocess.TimeoutExpired:
                    continue
                break
            _, said = worker.communicate("")
    assert all(audit.state in ("done", "dead") or audit.attempts for audit in found), said
    assert CANARY not in said
    records = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert any(re.search(r"aud_\w+", record["message"]) for record in records), said
