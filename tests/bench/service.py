"""The service under load: submissions beside bare commits, reads while jobs run, and a large upload in little memory.

    python -m tests.bench.service [submissions] [processes] [reads] [upload]    # `make bench-service`: all four

One JSON object a line. Rates are of this machine at this moment: only what was measured in the same run compares.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx

from auditor.service import tenants
from auditor.service.blobs import BlobFolder
from auditor.store import Store
from tests.bench import service_rates
from tests.bench.service_rates import rate
from tests.conftest import _postgres_programs, _start

ROOT = Path(__file__).parents[2]
STREAMS = 8
KEYS = 64
"""Each may submit 50 times a second."""
SECONDS = 6.0
ROUNDS = 3
READS_A_SECOND, READ_SECONDS = 50, 30
UPLOAD_BYTES = int(os.environ.get("AUDITOR_BENCH_UPLOAD_GIB", "10")) << 30
PART_BYTES = 8 << 20


@contextmanager
def database(kind, folder):
    """The URL of an empty database that does put commits on disk."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'store.sqlite3'}"
        return
    with tempfile.TemporaryDirectory(prefix="auditor-pg-", ignore_cleanup_errors=True) as place:
        process, server = _start(_postgres_programs()[0], Path(place), fsync="on")
        try:
            yield server.new_database()
        finally:
            process.terminate()
            process.wait()


@contextmanager
def server(url, folder, processes=1):
    """The server on a database; yields (client, process id, keys)."""
    Store.upgrade(url)
    with Store.open(url) as store, store.transaction(writes=True) as connection:
        tenant = tenants.create_tenant(connection, "bench", most_running=100)
        made = [tenants.create_key(connection, tenant.id, "k", tenants.SCOPES, days=1) for _ in range(KEYS)]
    keys = [text for _, text in made]
    code = (
        "import sys; from pathlib import Path; from auditor.api import serving;"
        "from auditor.service.egress import Egress; from auditor.reference.demo.prompts import TARGET;"
        "serving.serve_all(url=sys.argv[1], folder=Path(sys.argv[2]), listen='127.0.0.1:0', workers=0,"
        " worker_options=[], new_key=False, model=TARGET, blob_store=None, issuer=None, egress=Egress(), processes=int(sys.argv[3]),"
        " on_start=lambda a, _: print(a, flush=True))"
    )
    command = [sys.executable, "-c", code, url, str(folder / "blobs"), str(processes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            address = process.stdout.readline().strip()
            limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
            headers = {"Authorization": f"Bearer {keys[0]}"}
            with httpx.Client(
                base_url=address, headers=headers, timeout=300, trust_env=False, limits=limits
            ) as client:
                yield client, process.pid, keys
        finally:
            process.terminate()
            process.wait()


def submissions(kind, folder, processes=1):
    """Acknowledged submissions beside bare inserts and commits, in turn on one database."""
    with ExitStack() as stack:
        url = stack.enter_context(database(kind, folder))
        client, pid, keys = stack.enter_context(server(url, folder, processes))
        store = stack.enter_context(Store.open(url))
        calls = {
            "one_row": service_rates.one_row(store),
            "same_rows": service_rates.same_rows(store),
            "rows_and_file": service_rates.same_rows(store, BlobFolder(folder / "blobs")),
            "submissions": service_rates.submissions(str(client.base_url), keys),
        }
        client.get("/livez").raise_for_status()
        time.sleep(8.0 * (processes > 1))  # the others are up
        rate(calls["submissions"], STREAMS, 2.0)
        rounds, spent = [], []
        for _ in range(ROUNDS):
            told = {}
            for name, call in calls.items():
                before = sum(map(processor_seconds, family(pid)))
                told[name] = rate(call, STREAMS, SECONDS)
                spent.append((sum(map(processor_seconds, family(pid))) - before) / (told[name] * SECONDS))
            rounds.append(told)
    shares = {name: [told["submissions"] / told[name] for told in rounds] for name in list(calls)[:-1]}
    return {
        "what": "submissions",
        "database": kind,
        "processes": processes,
        "streams": STREAMS,
        "a_second": {name: [round(told[name], 1) for told in rounds] for name in calls},
        "server_processor_milliseconds_each": round(1000 * statistics.median(spent[3::4]), 2),
        "share": {
            name: {
                "median": round(statistics.median(some), 3),
                "range": [round(min(some), 3), round(max(some), 3)],
            }
            for name, some in shares.items()
        },
    }


def reads(kind, folder):
    """Latency of reads that arrive 50 a second, whatever became of those before, while a worker audits."""
    log = (ROOT / "tests/traces/vllm-cpu-bf16-plain.jsonl.gz").read_bytes()
    with ExitStack() as stack:
        url = stack.enter_context(database(kind, folder))
        client, pid, _ = stack.enter_context(server(url, folder))
        program = "from auditor.commands import main; main()"
        command = [
            sys.executable,
            "-c",
            program,
            "worker",
            "--blobs",
            str(folder / "blobs"),
            "--threads",
            "1",
            "--with-parent",
        ]
        environment = os.environ | {"AUDITOR_DATABASE_URL": url, "OMP_NUM_THREADS": "1"}
        worker = stack.enter_context(
            subprocess.Popen(
                command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        )
        stack.callback(worker.terminate)
        ids = []
        for number in range(12):
            headers = {"Idempotency-Key": f"reads-{number}", "Content-Type": "application/jsonl"}
            ids.append(client.post("/v1/audits", content=log, headers=headers).json()["id"])
        while client.get(f"/v1/audits/{ids[0]}").json()["state"] != "done":
            time.sleep(0.5)
        kinds = ["/v1/audits?limit=20", f"/v1/audits/{ids[0]}", f"/v1/audits/{ids[0]}/verdict"]
        kinds += [f"/v1/audits/{ids[0]}/evidence?limit=20", "/v1/keys", f"/v1/audits/{ids[-1]}"]
        started, took, before = time.monotonic() + 0.5, [], processor_seconds(pid)

        def one(number):
            due = started + number / READS_A_SECOND
            time.sleep(max(0.0, due - time.monotonic()))
            answer = client.get(kinds[number % len(kinds)])
            took.append((time.monotonic() - due, number % len(kinds)))
            assert answer.status_code == 200

        with ThreadPoolExecutor(48) as pool, oversleeping() as machine:
            list(pool.map(one, range(READS_A_SECOND * READ_SECONDS)))
        spent = (processor_seconds(pid) - before) / len(took)
        page = client.get("/v1/audits?limit=50").json()["items"]
    names = [re.sub(r"aud_\w+", "ID", path) for path in kinds]
    return {
        "what": "reads",
        "database": kind,
        "per_second": READS_A_SECOND,
        "requests": len(took),
        "milliseconds": quantiles(seconds for seconds, _ in took),
        "p99_milliseconds_by_kind": {
            name: quantiles(seconds for seconds, number in took if names[number] == name)["p99"]
            for name in dict.fromkeys(names)
        },
        "sleeper_milliseconds": quantiles(machine),
        "server_processor_milliseconds_each": round(1000 * spent, 2),
        "audits_done_meanwhile": sum(item["state"] == "done" for item in page),
        "audits": len(page),
    }


@contextmanager
def oversleeping():
    """By how much a process that does nothing but sleep wakes too late: what the machine adds to any latency."""
    code = (
        "import sys, threading, time\n"
        "threading.Thread(target=lambda: (sys.stdin.read(), print(late), __import__('os')._exit(0))).start()\n"
        "late = []\n"
        "while True:\n"
        "    due = time.monotonic() + 0.02\n"
        "    time.sleep(0.02)\n"
        "    late.append(round(time.monotonic() - due, 5))\n"
    )
    found = []
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield found
        finally:
            found += json.loads(process.communicate()[0])


def quantiles(seconds):
    """Of latencies, in milliseconds."""
    took = sorted(seconds)
    points = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "most": 1.0}
    return {name: round(1000 * took[min(len(took) - 1, int(q * len(took)))], 1) for name, q in points.items()}


def processor_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def family(pid):
    """A process and those that it started."""
    found = {pid}
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        found |= {int(child) for child in path.read_text().split()}
    return found


def memory(pid, field):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) >> 10


def upload(kind, folder):
    """A log of `UPLOAD_BYTES` in parts, and the most memory the server held."""
    line = b'{"schema": "auditor.trace/v1", "id": "x", "model": "demo", "filler": "' + b"y" * 180 + b'"}\n'
    part = line * (PART_BYTES // len(line))
    count = UPLOAD_BYTES // len(part) + 1
    running = hashlib.sha256()
    for _ in range(count):
        running.update(part)
    digest = base64.b64encode(hashlib.sha256(part).digest()).decode()
    order = {"name": "large", "digest": f"sha256:{running.hexdigest()}", "bytes": len(part) * count}
    with database(kind, folder) as url, server(url, folder) as (client, pid, _):
        idle, started = memory(pid, "VmHWM"), time.monotonic()
        path = client.post("/v1/uploads", json=order, headers={"Idempotency-Key": "u"}).headers["location"]

        def put(number):
            headers = {"Content-Digest": f"sha-256=:{digest}:"}
            assert client.put(f"{path}/parts/{number}", content=part, headers=headers).status_code == 204

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(put, range(count)))
        sent, mebibytes = time.monotonic() - started, memory(pid, "VmHWM")
        answer = client.post(f"{path}/complete", timeout=3600)
        assert answer.status_code == 200, answer.text
        return {
            "what": "upload",
            "database": kind,
            "gibibytes": round(len(part) * count / (1 << 30), 2),
            "streams": 4,
            "put_seconds": round(sent, 1),
            "complete_seconds": round(time.monotonic() - started - sent, 1),
            "most_resident_mebibytes": {"idle": idle, "putting": mebibytes, "all": memory(pid, "VmHWM")},
        }


def main():
    runs = {
        "submissions": [(submissions, "sqlite"), (submissions, "postgresql")],
        "processes": [
            (partial(submissions, processes=2), "sqlite"),
            (partial(submissions, processes=2), "postgresql"),
        ],
        "reads": [(reads, "sqlite"), (reads, "postgresql")],
        "upload": [(upload, "sqlite")],
    }
    for name in sys.argv[1:] or runs:
        for run, kind in runs[name]:
            folder = Path(tempfile.mkdtemp(prefix="auditor-bench-"))
            try:
                print(json.dumps(run(kind, folder) | {"load_average": os.getloadavg()[0]}), flush=True)
            finally:
                shutil.rmtree(folder)


if __name__ == "__main__":
    main()
