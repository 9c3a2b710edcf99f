"""Four actors of a local Ray cluster, one killed mid-way, against one process: the same bytes, and how fast.

    python -m tests.proofs.ray_fan_out [--requests 2000] [--actors 4]

Real processes, a real SQLite queue and the demo model: 2,000 honest requests are generated, and audited four
times: by a worker alone, by a worker whose crew of actors loses one to SIGKILL after the first shards, as Parquet
through Ray Data, losing one of its actors too, and by a crew on two nodes of which one is killed with half of the
actors, for whom there is no room elsewhere. Ends with status 1 unless all verdicts and all evidence are the same
bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

from sqlalchemy import select

from auditor.profiles import profile_finder
from auditor.reference.demo.prompts import TARGET
from auditor.replay import Reference
from auditor.service import audits, tenants
from auditor.service.audit_work import AuditWork
from auditor.service.audits import AuditOptions
from auditor.service.blobs import BlobFolder
from auditor.service.ray_crew import RayCrew
from auditor.service.worker import Worker
from auditor.store import Store
from auditor.store_schema import event as event_table
from auditor.store_schema import evidence as evidence_table
from auditor.store_schema import verdict as verdict_table
from auditor.trace_files import read_traces, write_traces


class Service:
    """A store with one tenant and the blobs of its logs."""

    def __init__(self, folder, reference):
        self.url = f"sqlite:///{folder}/service.sqlite3"
        Store.upgrade(self.url)
        self.store = Store.open(self.url)
        self.blobs = BlobFolder(folder / "blobs")
        self.reference = reference
        with self.store.transaction(writes=True) as connection:
            self.tenant = tenants.create_tenant(connection, "proof").id

    def submit(self, data):
        digest = self.blobs.put(data)
        with self.store.transaction(writes=True) as connection:
            log = audits.keep_log(connection, self.tenant, digest, "traffic", len(data))
            return audits.submit(connection, log, AuditOptions())

    def work(self, crew):
        started = time.monotonic()
        assert Worker(self.store, AuditWork(self.blobs, self.reference, profile_finder(()), crew)).run_once()
        return time.monotonic() - started

    def found(self, audit_id):
        with self.store.transaction() as connection:
            state = audits.find(connection, self.tenant, audit_id)
            body = select(verdict_table.c.body).where(verdict_table.c.audit_id == audit_id)
            rows = select(evidence_table.c.body).where(evidence_table.c.audit_id == audit_id)
            rows = rows.order_by(evidence_table.c.number)
            assert state.state == "done", (state.state, state.error)
            return bytes(connection.execute(body).scalar_one()), list(connection.execute(rows).scalars())

    def events(self, audit_id):
        column = event_table.c
        with self.store.transaction() as connection:
            rows = select(column.kind, column.created).where(column.audit_id == audit_id)
            return list(connection.execute(rows.order_by(column.sequence)))

    def scoring_seconds(self, audit_id):
        events = self.events(audit_id)
        last = max(when for kind, when in events if kind == "progress")
        return (last - next(when for kind, when in events if kind == "running")) / 1e6


def actor_processes(name):
    """Processes whose title Ray set to that of an actor's method or class."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                title = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if title.startswith("ray::") and name in title:
                found.append(int(entry.name))
    return found


def killing(service, audit_id, kill):
    """Call `kill` once the first shards have been committed, until it says that it has killed."""

    def run():
        for _ in range(3000):
            time.sleep(0.1)
            progress = sum(kind == "progress" for kind, _ in service.events(audit_id))
            if progress >= 4 and kill():
                return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--actors", type=int, default=4)
    parser.add_argument("--log", type=Path, help="audit this log instead of a fresh one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ray-proof-") as name:
        folder = Path(name)
        log = options.log or folder / "traffic.jsonl.gz"
        if options.log is None:
            counts = ["--requests", str(options.requests), "--seed", "5", "--max-tokens", "6"]
            subprocess.run(
                [Path(sys.executable).parent / "audit", "generate", "--out", log, *counts], check=True
            )
        bulk = folder / "traffic.parquet"
        write_traces(bulk, read_traces(log))
        ok = prove(Service(folder, Reference.load(TARGET)), log.read_bytes(), bulk.read_bytes(), options)
    sys.exit(0 if ok else 1)


def prove(service, lines, parquet, options):
    alone = service.submit(lines)
    service.work(None)
    crew = RayCrew("local", TARGET, actors=options.actors)
    processes = crew.processes()
    print(f"{options.actors} actors: processes {processes}; {os.cpu_count()} processors", flush=True)
    first = service.found(alone)
    tokens = json.loads(first[0])["tokens"]["audited"]
    print(f"{len(first[1])} traces, {tokens} tokens scored, verdict {json.loads(first[0])['verdict']}")
    ok = report(service, "one process", alone, first, [])
    for what, data, title in (("actors", lines, "ShardActor"), ("Ray Data, Parquet", parquet, "Parquet")):
        audit_id, killed = service.submit(data), []
        thread = killing(service, audit_id, partial(kill_an_actor, title, killed))
        service.work(crew)
        thread.join(timeout=1)
        ok = report(service, what, audit_id, first, killed) and bool(killed) and ok
    crew.close()
    return on_two_nodes(service, lines, first, options.actors) and ok


def kill_an_actor(name, killed):
    ours = [process for process in actor_processes(name) if process not in killed]
    if ours:
        os.kill(ours[0], signal.SIGKILL)
        killed.append(ours[0])
    return bool(ours)


def on_two_nodes(service, lines, first, actors):
    from ray.cluster_utils import Cluster

    room = {"num_cpus": actors // 2, "object_store_memory": 128 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=room)
    second = cluster.add_node(num_cpus=actors - actors // 2, object_store_memory=128 << 20)
    crew, killed = RayCrew(cluster.address, TARGET, actors=actors), []

    def kill_the_node():
        before = set(actor_processes("ShardActor"))
        cluster.remove_node(second, allow_graceful=False)
        time.sleep(1.0)
        killed.extend(sorted(before - set(actor_processes("ShardActor"))))
        return True

    print(f"two nodes: actors {crew.processes()}", flush=True)
    audit_id = service.submit(lines)
    thread = killing(service, audit_id, kill_the_node)
    service.work(crew)
    thread.join(timeout=5)
    ok = report(service, "a node", audit_id, first, killed) and bool(killed)
    crew.close()
    cluster.shutdown()
    return ok


def report(service, what, audit_id, first, killed):
    same = service.found(audit_id) == first
    seconds = service.scoring_seconds(audit_id)
    said = f"killed {killed}" if killed else "nobody killed"
    rate = len(first[1]) / seconds
    print(f"{what:18s} {said:16s} {seconds:7.1f} s {rate:6.1f} traces/s  same bytes: {same}", flush=True)
    return same


if __name__ == "__main__":
    main()
