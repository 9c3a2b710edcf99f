"""A real service, its worker, and a real Chromium that may reach nothing else; for `make test-pages`."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from auditor.hidden_tokens.providing import open_challenge
from auditor.hidden_tokens.wire import challenge_from_json, opening_to_json
from auditor.merkle.keys import Algorithm, SeedSigner
from auditor.profile import profile_bytes
from auditor.profile_trust import sign_profile
from auditor.service.audits import AuditOptions
from auditor.service.client import Client
from tests.api.test_challenges import EMBEDDER, SESSION, committed, digests, heads_of, tokenizer
from tests.api.test_providers import ACME, demo_profile

TRACES = Path(__file__).parent.parent / "traces"
HOSTILE = "<script>window.stolen=1</script>\"'><img src=x onerror=window.stolen=1>"
HIDDEN = 24
REQUEST = HOSTILE.replace(" ", "/")
"""A request id has no spaces."""
POLICY = 'schema = "auditor.policy/v1"\nname = "strict"\nversion = "1"\n'
WAIT_SECONDS = 300
FLAGS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
]


def recorded(name, requests, **changes):
    """The first requests of a recorded log, as JSON Lines, with fields replaced."""
    with gzip.open(TRACES / name) as stream:
        rows = [json.loads(line) for _, line in zip(range(requests), stream, strict=False)]
    for number, row in enumerate(rows):
        row |= {key: value(number) if callable(value) else value for key, value in changes.items()}
        row["usage"]["reasoning_tokens"] = HIDDEN
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def hostile_log():
    """An int4 provider's log whose every label and text would like to be script."""
    messages = [{"role": "user", "content": HOSTILE}]
    return recorded(
        "vllm-cpu-w4a16-g128.jsonl.gz",
        10,
        provider=HOSTILE,
        model=HOSTILE,
        id=lambda n: f"{HOSTILE}{n}",
        messages=messages,
    )


@dataclass
class Server:
    """`audit serve` with one worker.

    Attributes:
        audit: one that is done, of `hostile_log`.
        challenge: the page of one that was opened and held.
        more: pages of a schedule, of a dispute and of that challenge.
    """

    address: str
    key: str
    audit: str = ""
    challenge: str = ""
    more: tuple[str, ...] = ()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AUDITOR_DATABASE_URL": f"sqlite:///{folder}/store.sqlite3",
        "OMP_NUM_THREADS": "1",
    }
    command = ["audit", "serve", "--listen", "127.0.0.1:0", "--threads", "1"]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            said = process.stdout.readline() + process.stdout.readline()
            address, key = re.fullmatch(r"export \w+=(\S+)\nexport \w+=(\S+)\n", said).groups()
            yield Server(address, key)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


def _hand_in_profile(client):
    """A profile of the tenant's own, signed by a key of a hostile name that it trusts."""
    signer = SeedSigner(REQUEST.replace("+", "-"), Algorithm.ED25519, b"\x07" * 32)
    tag = client._http.get("/v1/profile-keys").headers["etag"]
    trusted = {"vkeys": [signer.public.vkey]}
    assert client._http.put("/v1/profile-keys", json=trusted, headers={"If-Match": tag}).is_success
    raw = profile_bytes(sign_profile(demo_profile(), signer))
    client.call("POST", "/v1/profiles", content=raw, headers={"Content-Type": "application/json"})


def _opened_challenge(client):
    """The id of a challenge of hostile names that its provider answered."""
    trace, kept = committed(REQUEST)
    for path, body in (
        ("providers", {"name": HOSTILE, "vkeys": [ACME.public.vkey]}),
        ("models", {"name": HOSTILE, **digests()}),
    ):
        client.call("POST", f"/v1/{path}", json=body, headers={"Idempotency-Key": path})
    commitment = client.call("POST", "/v1/commitments", json={"heads": heads_of(trace)})
    order = {"commitment": commitment["id"], "blocks": 5}
    deadline = time.monotonic() + WAIT_SECONDS
    while True:  # until the final head is in a signed tree
        answer = client._http.post("/v1/challenges", json=order, headers={"Idempotency-Key": "c"})
        if answer.status_code == 201:
            break
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.3)
    challenge = answer.json()
    _, asked = challenge_from_json(challenge["challenge"], "")
    opening, _ = open_challenge(kept, asked, tokenizer(), session_key=SESSION, embedder=EMBEDDER)
    client.call("POST", f"/v1/challenges/{challenge['id']}/openings", json=opening_to_json(REQUEST, opening))
    return challenge["id"]


@pytest.fixture(scope="session")
def service(server):
    """The server, with a finished audit that the log holds."""
    with Client(server.address, server.key) as client:
        name = f"{HOSTILE}.jsonl"
        server.audit = client.submit(hostile_log(), name=name, options=AuditOptions()).id
        deadline = time.monotonic() + WAIT_SECONDS
        while not client.audit(server.audit).ended:
            assert time.monotonic() < deadline, "no verdict"
            time.sleep(0.3)
        assert client.audit(server.audit).verdict == "inconsistent"
        while client._http.get(f"/v1/audits/{server.audit}/receipts/verdict").status_code != 200:
            assert time.monotonic() < deadline, "not logged"
            time.sleep(0.3)
        made = {"provider": HOSTILE, "cron": "0 6 1 1 *", "policy": POLICY}
        schedule = client.call("POST", "/v1/schedules", json=made, headers={"Idempotency-Key": "s"})
        said = {"audit": server.audit, "by": HOSTILE, "statement": HOSTILE, "evidence": [HOSTILE]}
        dispute = client.call("POST", "/v1/disputes", json=said, headers={"Idempotency-Key": "d"})
        _hand_in_profile(client)
        server.challenge = f"/challenges/{_opened_challenge(client)}"
        opened = (server.challenge, f"{server.challenge}?hidden=shown")
        server.more = (f"/schedules/{schedule['id']}", f"/disputes/{dispute['id']}", *opened)
    return server


@pytest.fixture(scope="session")
def chromium():
    program = os.environ.get("AUDITOR_TEST_CHROMIUM") or shutil.which("chromium")
    if program is None:
        pytest.fail("no Chromium: install Debian's package `chromium`, or name one in AUDITOR_TEST_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, chromium_sandbox=False, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Watched:
    """What a browser did besides showing a page."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@dataclass
class Opener:
    """Opens pages that are watched: at the end nothing left the host, and the console stayed empty."""

    chromium: object
    server: Server
    watched: Watched = field(default_factory=Watched)
    contexts: list = field(default_factory=list)

    def __call__(self, *, signed_in=True, complains=False, **options):
        context = self.chromium.new_context(base_url=self.server.address, **options)
        context.set_default_timeout(20_000)
        self.contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: self.watched.requests.append(request.url))
        if not complains:
            page.on("pageerror", lambda error: self.watched.complaints.append(str(error)))
            page.on("console", self._said)
        if signed_in:
            page.goto("/sign-in")
            page.fill("#key", self.server.key)
            page.click("main button")
            page.wait_for_url(self.server.address + "/")
        return page

    def _said(self, message):
        if message.type in ("error", "warning"):
            self.watched.complaints.append(message.text)


@pytest.fixture
def open_page(chromium, service):
    opener = Opener(chromium, service)
    yield opener
    for context in opener.contexts:
        context.close()
    assert opener.watched.complaints == []
    elsewhere = [url for url in opener.watched.requests if not url.startswith(service.address + "/")]
    assert elsewhere == []
