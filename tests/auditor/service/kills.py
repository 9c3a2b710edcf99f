"""What must hold however many processes were killed: asserted from outside, on the committed rows."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from sqlalchemy import text

from tests.auditor.service.killable_worker import STEPS, output_of, verdict_of

WORKER = Path(__file__).with_name("killable_worker.py")


def start_worker(url, *, lease, step, boundary=()):
    command = [sys.executable, "-m", "tests.auditor.service.killable_worker", url, str(lease), str(step)]
    root = WORKER.parents[3]
    return subprocess.Popen([*command, *map(str, boundary)], stdout=subprocess.PIPE, cwd=root)


def rows(store, sql):
    with store.transaction() as connection:
        return connection.execute(text(sql)).all()


def check_invariants(store, acknowledged, *, all_done=True):
    """0 acknowledged jobs lost, 0 double effects, 0 wrong ones."""
    audits = {
        r.id: r
        for r in rows(
            store,
            "SELECT a.id, l.digest, j.state FROM audit a"
            " JOIN trace_log l ON l.id = a.trace_log_id"
            " JOIN job j ON j.audit_id = a.id",
        )
    }
    assert acknowledged <= audits.keys(), "acknowledged and lost"
    verdicts = {r.audit_id: r for r in rows(store, "SELECT audit_id, body, digest FROM verdict")}
    done = {audit_id for audit_id, row in audits.items() if row.state == "done"}
    assert verdicts.keys() == done, "a verdict without its job's end, or the other way round"
    if all_done:
        assert acknowledged <= done
    for audit_id, verdict in verdicts.items():
        assert bytes(verdict.body) == verdict_of(audits[audit_id].digest), "a wrong verdict"
    evidence = Counter(r.audit_id for r in rows(store, "SELECT audit_id FROM evidence"))
    assert evidence == dict.fromkeys(done, STEPS)
    steps = Counter()
    for row in rows(store, "SELECT audit_id, step, output FROM checkpoint"):
        assert bytes(row.output) == output_of(audits[row.audit_id].digest, row.step)
        steps[row.audit_id] += 1
    assert {audit_id: steps[audit_id] for audit_id in done} == dict.fromkeys(done, STEPS)
    entries = Counter((r.subject, r.kind) for r in rows(store, "SELECT subject, kind FROM log_entry"))
    wanted = {(a, "submission") for a in audits} | {(a, "verdict") for a in done}
    assert entries == dict.fromkeys(wanted, 1), "an entry too many or too few in the log"
    for row in rows(store, "SELECT subject, body FROM log_entry WHERE kind = 'verdict'"):
        entry = json.loads(bytes(row.body))
        assert entry["verdict"] == "sha256:" + hashlib.sha256(bytes(verdicts[row.subject].body)).hexdigest()
    ends = Counter(r.audit_id for r in rows(store, "SELECT audit_id FROM event WHERE kind = 'done'"))
    assert ends == dict.fromkeys(done, 1)
    told = rows(store, "SELECT audit_id, count(*) AS n, max(sequence) AS last FROM event GROUP BY audit_id")
    assert all(row.n == row.last for row in told), "a gap in an audit's events"


def takeovers(store, killed):
    """Seconds from each kill of a worker with a job in hand to that job's next claim."""
    waits = []
    for audit_id, moment in killed:
        claims = rows(
            store,
            f"SELECT created FROM event WHERE audit_id = '{audit_id}' AND kind = 'running' ORDER BY sequence",
        )
        later = [claim.created / 1e6 for claim in claims if claim.created / 1e6 > moment]
        waits += [later[0] - moment] if later else []  # it may have ended the job with its last breath
    return sorted(waits)


def soak(store, url, submit, *, jobs, kills, workers, lease, step, seed, seconds):
    """Submit and kill at random, mostly those at work; returns (acknowledged, kills made, [(job, when)])."""
    chance = random.Random(seed)
    alive = [start_worker(url, lease=lease, step=step) for _ in range(workers)]
    for process in alive:
        assert process.stdout.readline() == b"ready\n"
    acknowledged, made, killed, deadline = set(), 0, [], time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            running = rows(store, "SELECT audit_id, worker FROM job WHERE state = 'running'")
            waiting = rows(store, "SELECT count(*) FROM job WHERE state = 'queued'")[0][0]
            if made >= kills and len(acknowledged) >= jobs and not running and not waiting:
                break
            if len(acknowledged) < jobs or (made < kills and waiting < workers):
                acknowledged.add(submit(len(acknowledged)))
            at_work = {int(row.worker.rpartition(":")[2]): row.audit_id for row in running}
            busy = [n for n, process in enumerate(alive) if process.pid in at_work]
            if made < kills and chance.random() < 0.5 and (busy or chance.random() < 0.1):
                number = chance.choice(busy or range(workers))
                pid = alive[number].pid
                alive[number].kill()
                if pid in at_work:
                    killed.append((at_work[pid], time.time()))
                alive[number].communicate()
                made += 1
                alive[number] = start_worker(url, lease=lease, step=step)
            time.sleep(chance.random() * 0.3)
    finally:
        for process in alive:
            process.kill()
            process.communicate()
    return acknowledged, made, killed
