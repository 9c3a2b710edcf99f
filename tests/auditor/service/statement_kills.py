"""Kills at every boundary of submitting, of working and of signing the log: a forked child each, on a real database.

    python -m tests.auditor.service.statement_kills submit|work|place URL FOLDER EVERY

A boundary lies before and after each SQL statement, each commit, each flush of a file to disk and each renaming.
After each kill the rest of the service goes on as after a restart, and what must hold is checked. Prints the
number of kills.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path

from sqlalchemy import event
from starlette.testclient import TestClient

from auditor.api.application import create_application
from auditor.api.service import Service
from auditor.key_files import generate
from auditor.merkle.keys import Algorithm
from auditor.service import tenants
from auditor.service.blobs import BlobFolder
from auditor.service.log_placing import open_log, place
from auditor.service.queue import Terms
from auditor.service.signatures import RequestSigner
from auditor.service.small_logs import SmallLogs
from auditor.service.webhook_signing import WebhookSigner
from auditor.service.worker import Worker
from auditor.store import Store
from tests.auditor.service.killable_worker import new_work
from tests.auditor.service.kills import check_invariants, check_log, heads_of, rows

URL = "http://testserver/v1/audits"


def die_at(engine, boundary):
    """Kill this process at a boundary, counted from 0."""
    count = 0

    def pass_one(*_):
        nonlocal count
        if count == boundary:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    def passing(call):
        def both(*arguments, **options):
            pass_one()
            result = call(*arguments, **options)
            pass_one()
            return result

        return both

    for name in ("before_cursor_execute", "after_cursor_execute", "commit"):
        event.listen(engine, name, pass_one)
    os.fsync, os.replace, os.rename = passing(os.fsync), passing(os.replace), passing(os.rename)


def dies(url, boundary, act):
    """Whether `act` in a child of its own reaches the boundary, where it dies; else it must come to its end."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with Store.open(url) as store:
                die_at(store._engine, boundary)
                act(store)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "it failed by itself"
    return False


class Rig:
    """A service without processes: what each of them does, to be done here or in a child."""

    def __init__(self, url, folder):
        self.url, self.folder = url, Path(folder)
        signer = generate("acme.example/submissions", Algorithm.ED25519)
        with Store.open(url) as store, store.transaction(writes=True) as connection:
            tenant = tenants.create_tenant(connection, "acme", most_running=100)
            scope = ["audits:write"]
            key, _ = tenants.create_key(
                connection, tenant.id, "k", scope, days=1, public_key=signer.public.vkey
            )
        self.signer = RequestSigner(key.id, signer)
        # One application for all processes: routes and schemas take longer to make than what they are made for.
        self.application = create_application(self.service(None))

    def service(self, store):
        """The service of a process."""
        blobs, uploads = SmallLogs(store, BlobFolder(self.folder / "blobs")), self.folder / "uploads"
        return Service(store, blobs, uploads, self.folder / "log", WebhookSigner(bytes(32)))

    def submit(self, number):
        """A signed submission over HTTP."""

        def act(store):
            self.application.state.service = self.service(store)
            body = b'{"number": %d}\n' % number
            headers = {"Content-Type": "application/jsonl", "Idempotency-Key": f"key-{number}"}
            headers = self.signer.headers("POST", URL, headers, body)
            answer = TestClient(self.application).post(URL, content=body, headers=headers)
            assert answer.status_code == 202, answer.text
            return answer.json()["id"]

        return act

    def work(self, store):
        worker = Worker(store, new_work(0.0), terms=Terms(most_lost_leases=1000))
        while worker.run_once():
            pass

    def place(self, store):
        place(store, open_log(self.folder / "log", self.folder / "log.key"))


def count(store, table):
    return rows(store, f"SELECT count(*) FROM {table}")[0][0]


def kill_submitting(rig, store, boundary):
    act = rig.submit(boundary)
    audits, nonces = count(store, "audit"), count(store, "nonce")
    died = dies(rig.url, boundary, act)
    check_invariants(store, set(), all_done=False)
    made = count(store, "audit") - audits
    assert made in ((0, 1) if died else (1,))
    assert count(store, "nonce") - nonces == made, (
        "a signature is used up with what it submits, or not at all"
    )
    again = act(store)
    check_invariants(store, {again}, all_done=False)
    assert count(store, "audit") == audits + 1, "ordered once"
    return died


def kill_working(rig, store, boundary):
    audit_id = rig.submit(boundary)(store)
    died = dies(rig.url, boundary, rig.work)
    check_invariants(store, {audit_id}, all_done=False)
    with store.transaction(writes=True) as connection:  # as if the lease were over
        connection.exec_driver_sql("UPDATE job SET lease_until = 0 WHERE state = 'running'")
    rig.work(store)
    check_invariants(store, {audit_id})
    return died


def kill_placing(rig, store, boundary):
    rig.submit(boundary)(store)
    died = dies(rig.url, boundary, rig.place)
    published = heads_of(rig.folder / "log")
    rig.place(store)
    check_log(store, rig.folder / "log", [*published, *kill_placing.published])
    kill_placing.published += published
    return died


kill_placing.published = []


def main():
    what, url, folder, every = sys.argv[1:]
    warnings.simplefilter("ignore")
    kill = {"submit": kill_submitting, "work": kill_working, "place": kill_placing}[what]
    rig = Rig(url, folder)
    boundary = kills = 0
    with Store.open(url) as store:
        if what == "place":
            rig.place(store)
        while kill(rig, store, boundary):
            store._engine.dispose()  # a child must not inherit a connection
            kills, boundary = kills + 1, boundary + int(every)
    print(kills)


if __name__ == "__main__":
    main()
