"""`serve --processes 2`, as real processes on real databases: what one was told the other knows, and either may die."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from auditor.service import tenants
from auditor.service.invariants import check_all
from auditor.store import Store
from tests.api.conftest import LINE

SERVE = (
    "import sys; from pathlib import Path; from auditor.api import serving; from auditor.service.egress import Egress;"
    "from auditor.reference.demo.prompts import TARGET;"
    "serving.serve_all(url=sys.argv[1], folder=Path(sys.argv[2]), listen='127.0.0.1:0', workers=0, worker_options=[],"
    " new_key=False, model=TARGET, blob_store=None, issuer=None, egress=Egress(), processes=2,"
    " on_start=lambda address, _: print(address, flush=True))"
)


class Pair:
    """Two processes behind one address, and the one that keeps them."""

    def __init__(self, url, folder):
        command = [sys.executable, "-c", SERVE, url, str(folder / "blobs")]
        self.parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.address = self.parent.stdout.readline().strip()
        assert self.address, self.parent.stderr.read()
        self.children = self.wait_for(2)

    def pids(self):
        found = Path(f"/proc/{self.parent.pid}/task/{self.parent.pid}/children").read_text().split()
        threads = Path(f"/proc/{self.parent.pid}/task").glob("*/children")
        found += [pid for path in threads for pid in path.read_text().split()]
        return sorted({int(pid) for pid in found})

    def wait_for(self, count, but=()):
        """The processes that listen, once there are so many, without some that are to be gone."""
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            up = [pid for pid in self.pids() if pid not in but and self.answers(pid)]
            if len(up) == count:
                return up
            time.sleep(0.05)
        raise AssertionError("they are not up")

    @staticmethod
    def answers(pid):
        """Whether it waits for connections: the socket is among what its loop polls."""
        with contextlib.suppress(OSError):
            for path in Path(f"/proc/{pid}/fdinfo").iterdir():
                if "tfd:" in (told := path.read_text()):
                    watched = {int(found) for found in re.findall(r"tfd:\s+(\d+)", told)}
                    links = {str(Path(f"/proc/{pid}/fd/{fd}").readlink()) for fd in watched}
                    listening = {line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
                                 if line.split()[3] == "0A"}  # fmt: skip
                    if any(link[8:-1] in listening for link in links if link.startswith("socket:")):
                        return True
        return False

    @contextlib.contextmanager
    def only(self, pid):
        """While this one alone takes connections."""
        others = [other for other in self.children if other != pid]
        for other in others:
            os.kill(other, signal.SIGSTOP)
        try:
            yield
        finally:
            for other in others:
                os.kill(other, signal.SIGCONT)

    def call(self, method, path, key, **options):
        headers = {"Authorization": f"Bearer {key}"} | options.pop("headers", {})
        with httpx.Client(base_url=self.address, timeout=30, trust_env=False) as client:
            return client.request(method, path, headers=headers, **options)

    def submit(self, key, number):
        headers = {"Idempotency-Key": f"key-{number}", "Content-Type": "application/jsonl"}
        return self.call("POST", "/v1/audits", key, content=LINE % number, headers=headers)

    def end(self):
        self.parent.terminate()
        assert self.parent.wait(30) == 0
        self.parent.stdout.close()
        self.parent.stderr.close()


@pytest.fixture
def keys(database_url):
    with Store.open(database_url) as store, store.transaction(writes=True) as connection:
        tenant = tenants.create_tenant(connection, "acme", most_running=100)
        return [tenants.create_key(connection, tenant.id, "k", tenants.SCOPES, days=1)[1] for _ in range(2)]


def test_two_processes_are_one_service(database_url, keys, tmp_path):
    pair = Pair(database_url, tmp_path)
    (key, other), (one, two) = keys, pair.children
    try:
        with pair.only(one):
            first = pair.submit(key, 1)
            assert first.status_code == 202
            assert pair.submit(other, 2).status_code == 202
        with pair.only(two):
            again = pair.submit(key, 1)
            assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
            assert again.headers["idempotent-replayed"] == "true"
            assert pair.call("DELETE", f"/v1/keys/{other.split('.')[0]}", key).status_code == 200
        with pair.only(one):  # which has seen that key a moment ago
            assert pair.submit(other, 3).status_code == 401
            told = pair.call("GET", "/metrics", key).text
        counted = re.findall(r'requests_total{method="POST",route="/v1/audits",status="202"} (\d+)', told)
        assert counted == ["3"], "what both answered"
        acknowledged = under_a_kill(pair, key)
    finally:
        children = pair.pids()
        pair.end()
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()], "they ended with the first"
    with Store.open(database_url) as store, store.transaction() as connection:
        kept = set(connection.execute(text("SELECT id FROM audit")).scalars())
        assert acknowledged <= kept, "acknowledged and lost"
        assert len(kept) == len(acknowledged) + 2, "ordered twice"
        assert not [found.invariant.name for found in check_all(connection) if found.broken_by]


def under_a_kill(pair, key):
    """Submit from four threads while a process is killed; the ids that were acknowledged."""
    ended, acknowledged = threading.Event(), set()

    def stream(number):
        while not ended.is_set():
            number += 4
            while True:  # until it is acknowledged
                with contextlib.suppress(httpx.TransportError):
                    answer = pair.submit(key, number)
                    if answer.status_code == 202:
                        acknowledged.add(answer.json()["id"])
                        break
                    assert answer.status_code in (409, 429, 503), answer.text
                time.sleep(0.02)

    threads = [threading.Thread(target=stream, args=(100 + n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.5)
        killed = pair.children[0]
        os.kill(killed, signal.SIGKILL)
        pair.children = pair.wait_for(2, but=[killed])
        time.sleep(0.2)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert len(acknowledged) > 4
    return acknowledged
