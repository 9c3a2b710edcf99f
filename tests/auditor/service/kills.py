"""What must hold however many processes were killed: asserted from outside, on the committed rows."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import random
import socket
import threading
import time
from collections import Counter

import httpx
from sqlalchemy import text

from auditor.merkle.checkpoints import parse_checkpoint
from auditor.merkle.tree import Tree
from auditor.transparency_log import TransparencyLog
from tests.auditor.service.killable_worker import STEPS, output_of, verdict_of
from tests.auditor.service.processes import start_server, start_worker


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


def heads_of(folder):
    """(size, root) of the head that a log shows at this moment."""
    try:
        _, head = parse_checkpoint((folder / "checkpoint").read_bytes())
    except FileNotFoundError:
        return []
    return [(head.size, head.root)]


def check_log(store, folder, heads):
    """Every entry has one place, the log holds them in order, and no head that was ever shown is of another tree."""
    placed = rows(store, "SELECT position, body FROM log_entry ORDER BY position")
    assert [row.position for row in placed] == list(range(len(placed))), "an entry without its place"
    entries = [bytes(row.body) for row in placed]
    log, tree = TransparencyLog(folder), Tree.of_entries(entries)
    _, newest = log.checkpoint()
    assert (log.size, newest.size, newest.root) == (len(entries), len(entries), tree.root())
    assert all(
        log.entry(index) == entries[index] for index in range(max(0, len(entries) - 300), len(entries))
    )
    for size, root in heads:
        assert tree.root(size) == root, "a fork"


class Server:
    """The server process, on one port however often it is killed."""

    def __init__(self, url, blobs):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.listen = f"127.0.0.1:{free.getsockname()[1]}"
        self.arguments = (url, blobs, self.listen)
        self.heads, self.kills = [], 0
        self.start()

    def start(self):
        self.process, self.answered = start_server(*self.arguments), None

    def kill(self):
        self.process.kill()
        self.kills += 1

    def submit(self, key, number):
        """Send one submission until it is acknowledged; returns its id. Sees what head the log shows, too."""
        headers = {
            "Authorization": f"Bearer {key}",
            "Idempotency-Key": f"key-{number}",
            "Content-Type": "application/jsonl",
        }
        body, deadline = b'{"number": %d}\n' % number, time.monotonic() + 120
        while True:
            assert time.monotonic() < deadline, "no server answers"
            try:
                with httpx.Client(base_url=f"http://{self.listen}", timeout=30, trust_env=False) as client:
                    answer = client.post("/v1/audits", content=body, headers=headers)
                    if answer.status_code == 202:
                        self.answered = self.answered or time.monotonic()
                        self.see(client)
                        return answer.json()["id"]
                    assert answer.status_code in (409, 503), answer.text
            except httpx.TransportError:
                pass
            time.sleep(0.05)

    def see(self, client):
        with contextlib.suppress(httpx.TransportError):
            shown = client.get("/log/checkpoint")
            if shown.status_code == 200:
                _, head = parse_checkpoint(shown.content)
                self.heads.append((head.size, head.root))


@contextlib.contextmanager
def oversleeping():
    """By how much this process, asleep for 10 ms at a time, woke too late at worst: a list of one number."""
    ended, worst = threading.Event(), [0.0]

    def sleep():
        while not ended.is_set():
            due = time.monotonic() + 0.01
            time.sleep(0.01)
            worst[0] = max(worst[0], time.monotonic() - due)

    thread = threading.Thread(target=sleep)
    thread.start()
    try:
        yield worst
    finally:
        ended.set()
        thread.join()


class Crew:
    """Workers, some of them idle: a tenant runs fewer jobs at once than there are workers.

    Only a worker at work whose job another could take at once is killed, since what is measured is how long that
    takes: there must be one that is up and has nothing to do.
    """

    def __init__(self, url, count, **terms):
        self._start = lambda: start_worker(url, **terms)
        self.workers = [self._start() for _ in range(count)]
        assert all(worker.is_up(60) for worker in self.workers)
        self.killed = []

    def kill_one(self, running, chance):
        """Kill a worker at work, and start another; whether there was one that may be killed."""
        at_work = {int(row.worker.rpartition(":")[2]): row.audit_id for row in running}
        busy = [number for number, worker in enumerate(self.workers) if worker.pid in at_work]
        idle = [worker for worker in self.workers if worker.pid not in at_work and worker.is_up()]
        if not busy or not idle:
            return False
        number = chance.choice(busy)
        self.workers[number].kill()
        self.killed.append((at_work[self.workers[number].pid], time.time()))
        self.workers[number] = self._start()
        return True

    def end(self):
        for worker in self.workers:
            worker.kill()


def soak(store, url, server, key, *, jobs, kills, crew, seed, seconds):
    """Submit over HTTP and kill at random: workers at work, and the server while it is asked.

    Returns (acknowledged, kills made).
    """
    chance = random.Random(seed)
    acknowledged, made, deadline = set(), 0, time.monotonic() + seconds
    ending, numbers, failures = threading.Event(), itertools.count(), []

    def supply():
        try:
            while not ending.is_set():
                acknowledged.add(server.submit(key, next(numbers)))
                while rows(store, "SELECT count(*) FROM job WHERE state = 'queued'")[0][0] > len(
                    crew.workers
                ):
                    if ending.wait(0.1):
                        return
        except BaseException as error:
            failures.append(error)

    suppliers = [threading.Thread(target=supply) for _ in range(2)]
    for thread in suppliers:
        thread.start()
    patience = 0.5
    try:
        while time.monotonic() < deadline and not failures:
            if made >= kills and len(acknowledged) >= jobs:
                ending.set()
            running = rows(store, "SELECT audit_id, worker FROM job WHERE state = 'running'")
            waiting = rows(store, "SELECT count(*) FROM job WHERE state = 'queued'")[0][0]
            supplied = ending.is_set() and not any(thread.is_alive() for thread in suppliers)
            if supplied and not running and not waiting:
                break
            # One kill in three is the server's, some time after it answered: it is asked without a pause.
            due = server.answered is not None and time.monotonic() - server.answered > patience
            turn = made < kills and 3 * server.kills <= made
            if turn and due:
                server.kill()
                made, patience = made + 1, chance.random()
                server.start()
            elif made < kills and not turn and chance.random() < 0.5:
                made += crew.kill_one(running, chance)
            time.sleep(chance.random() * 0.3)
    finally:
        ending.set()
        for thread in suppliers:
            thread.join()
        crew.end()
        server.kill()
    assert not failures, failures
    return acknowledged, made
