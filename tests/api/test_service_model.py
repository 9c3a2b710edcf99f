"""The service against a plain oracle: tenants, keys, submissions, uploads, workers, verdicts, cancellations, webhooks.

The oracle is dictionaries; every answer is compared with what it says, over HTTP, on a real database. Within a run,
a transition is drawn the more often the more seldom it was taken so far (as the energy of coverage-guided
fuzzers does).
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import random
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from starlette.testclient import TestClient

from auditor.api.service import Service
from auditor.service import audits, jobs, tenants, webhooks
from auditor.service.blobs import BlobFolder
from auditor.service.errors import LeaseLostError
from auditor.service.log_placing import open_log, place
from auditor.service.queue import Terms
from auditor.service.small_logs import SmallLogs
from auditor.service.webhook_signing import WebhookSigner
from auditor.store import Store
from auditor.transparency_log import TransparencyLog
from tests.api.conftest import LINE, application_over

STEPS = int(os.environ.get("AUDITOR_SOAK_STEPS", "240"))
A_RUN = 80
TERMS = Terms(most_attempts=2, most_lost_leases=2, backoff_seconds=0.0)
SMALL = st.integers(0, 3)
SELDOM_TRUE = st.sampled_from([False] * 4 + [True])
done: Counter[str] = Counter()
"""How often each outcome was seen in this process."""


@dataclass
class Known:
    """What the oracle knows of a tenant."""

    id: str
    keys: dict[str, set[str]] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)
    logs: dict[str, str] = field(default_factory=dict)
    audits: dict[str, dict] = field(default_factory=dict)
    used: dict[str, tuple] = field(default_factory=dict)
    uploads: dict[str, dict] = field(default_factory=dict)
    hooks: dict[str, list[str]] = field(default_factory=dict)


def transition(when=lambda _: True, *, weight=1, **arguments):
    """A method that `step` may choose, with strategies for its arguments."""

    def mark(method):
        method.when, method.weight, method.arguments = when, weight, arguments
        return method

    return mark


class ServiceModel(RuleBasedStateMachine):
    """Two tenants and an operator, one database, one worker that may do all that workers do."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        root = Path(self.folder.name)
        self.store = Store.open(self.new_url(root))
        blobs = SmallLogs(self.store, BlobFolder(root / "blobs"))
        service = Service(self.store, blobs, root / "uploads", root / "log", WebhookSigner(bytes(32)))
        self.log = open_log(root / "log", root / "log.key")
        self.client = TestClient(application_over(service), raise_server_exceptions=False)
        self.known, self.entries, self.number, self.messages = [], 0, 0, 0
        for name in ("alice", "bob"):
            with self.store.transaction(writes=True) as connection:
                tenant = tenants.create_tenant(connection, name, most_running=100)
                _, key = tenants.create_key(connection, tenant.id, "k", tenants.SCOPES, days=1)
            self.known.append(Known(tenant.id, {key: set(tenants.SCOPES)}))
        found = {name: getattr(self, name) for name in sorted(vars(type(self)))}
        self.transitions = {name: call for name, call in found.items() if hasattr(call, "when")}
        self.taken = Counter()

    @rule(data=st.data(), seed=st.integers(0, 1 << 32))
    def step(self, data, seed):
        possible = [name for name, call in self.transitions.items() if call.when(self)]
        # Through a generator: what is drawn directly is near the beginning of the list most of the time.
        energies = [self.transitions[name].weight / (1 + self.taken[name]) for name in possible]
        (name,) = random.Random(seed).choices(possible, energies)
        note(name)
        call = self.transitions[name]
        self.taken[name] += 1
        call(**{key: data.draw(strategy, label=key) for key, strategy in call.arguments.items()})
        done["steps"] += 1

    def teardown(self):
        self.store.close()
        self.folder.cleanup()

    def call(self, key, method, path, **options):
        headers = {"Authorization": f"Bearer {key}"} | options.pop("headers", {})
        return self.client.request(method, path, headers=headers, **options)

    def key_of(self, who, scope, *, choice=0):
        """One of the tenant's keys that has the scope; any, so that old and new ones are used."""
        known = self.known[who]
        fit = [k for k, scopes in known.keys.items() if scope in scopes and k not in known.revoked]
        return fit[choice % len(fit)]

    def expect(self, answer, status, code=None, seen=""):
        assert answer.status_code == status, answer.text
        if code is not None:
            assert answer.json()["code"] == code
        done[seen or code or str(status)] += 1
        return answer

    # Keys.

    @transition(who=st.integers(0, 1), scopes=st.sets(st.sampled_from(sorted(tenants.SCOPES)), min_size=1))
    def make_key(self, who, scopes):
        answer = self.call(
            self.key_of(who, "keys"), "POST", "/v1/keys", json={"name": "k", "scopes": sorted(scopes)}
        )
        made = self.expect(answer, 201, seen="key made").json()
        self.known[who].keys[made["key"]] = set(scopes)

    @transition(
        lambda self: any(len(known.keys) - len(known.revoked) > 1 for known in self.known), choice=SMALL
    )
    def revoke_key(self, choice):
        who = next(n for n, known in enumerate(self.known) if len(known.keys) - len(known.revoked) > 1)
        known = self.known[who]
        first, *others = known.keys
        key = others[choice % len(others)]
        assert key != first
        again = key in known.revoked
        answer = self.call(first, "DELETE", f"/v1/keys/{key.split('.')[0]}")
        self.expect(answer, 200, seen="key revoked again" if again else "key revoked")
        stranger = next(iter(self.known[1 - who].keys))
        self.expect(self.call(stranger, "DELETE", f"/v1/keys/{key.split('.')[0]}"), 404, "not-found")
        known.revoked.add(key)

    @transition(who=st.integers(0, 1), choice=SMALL)
    def a_key_does_what_its_scopes_say(self, who, choice):
        known = self.known[who]
        key = list(known.keys)[choice % len(known.keys)]
        answer = self.call(key, "GET", "/v1/audits?limit=1")
        if key in known.revoked:
            self.expect(answer, 401, "unauthenticated")
        elif "audits:read" in known.keys[key]:
            self.expect(answer, 200, seen="read")
        else:
            self.expect(answer, 403, "scope-missing")

    # Submissions.

    @transition(
        weight=4,
        who=st.integers(0, 1),
        body=SMALL,
        key=SMALL,
        alpha=st.sampled_from([0.001, 0.01]),
        choice=SMALL,
    )
    def submit(self, who, body, key, alpha, choice):
        known, text = self.known[who], LINE % body
        headers = {"Idempotency-Key": f"key-{key}", "Content-Type": "application/jsonl"}
        secret = self.key_of(who, "audits:write", choice=choice)
        answer = self.call(secret, "POST", f"/v1/audits?alpha={alpha}", content=text, headers=headers)
        self.submitted(known, f"key-{key}", ("inline", body, alpha), answer, LINE % body)

    @transition(
        lambda self: any(known.logs for known in self.known),
        who=st.integers(0, 1),
        key=st.integers(4, 6),
        choice=SMALL,
        foreign=SELDOM_TRUE,
    )
    def order_an_uploaded_log(self, who, key, choice, foreign):
        owner = self.known[1 - who] if foreign else self.known[who]
        if not owner.logs:
            return
        log = list(owner.logs)[choice % len(owner.logs)]
        headers = {"Idempotency-Key": f"key-{key}"}
        secret = self.key_of(who, "audits:write")
        answer = self.call(secret, "POST", "/v1/audits", json={"log": log}, headers=headers)
        known = self.known[who]
        request = ("order", log)
        if f"key-{key}" not in known.used and foreign:
            self.expect(answer, 404, "not-found")
        else:
            self.submitted(known, f"key-{key}", request, answer, None, log)

    def submitted(self, known, key, request, answer, body, log=None):
        if key in known.used and known.used[key][0] != request:
            self.expect(answer, 422, "idempotency-key-reused")
            return
        made = self.expect(answer, 202, seen="resubmitted" if key in known.used else "submitted").json()
        if key in known.used:
            assert made["id"] == known.used[key][1]
            return
        assert made["id"] not in known.audits
        known.used[key] = (request, made["id"])
        if body is not None:
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
            assert made["log"]["digest"] == digest
            assert known.logs.setdefault(made["log"]["id"], digest) == digest
            assert list(known.logs.values()).count(digest) == 1, "the same bytes are one log"
        known.audits[made["id"]] = {"state": "queued", "attempts": 0, "lost": 0}
        self.entries += 1

    # Uploads.

    @transition(who=st.integers(0, 1), number=SMALL)
    def announce(self, who, number):
        body = LINE % (10 + number) * (number + 1)
        known, key = self.known[who], f"upload-{number}"
        order = {
            "name": "u",
            "digest": f"sha256:{hashlib.sha256(body).hexdigest()}",
            "bytes": len(body),
        }
        answer = self.call(
            self.key_of(who, "audits:write"),
            "POST",
            "/v1/uploads",
            json=order,
            headers={"Idempotency-Key": key},
        )
        made = self.expect(answer, 201, seen="announced").json()
        if made["id"] in known.uploads:
            assert known.used[key][1] == made["id"]
            return
        assert key not in known.used
        known.used[key] = (("upload", number), made["id"])
        known.uploads[made["id"]] = {"body": body, "parts": {}, "log": None}

    def an_upload(self, who, choice):
        known = self.known[who]
        found = list(known.uploads)[choice % len(known.uploads)]
        return found, known.uploads[found]

    @transition(
        lambda self: self.known[0].uploads,
        choice=SMALL,
        number=st.integers(0, 1),
        how=st.sampled_from(["right"] * 4 + ["wrong", "thief"]),
    )
    def put_part(self, choice, number, how):
        upload, known = self.an_upload(0, choice)
        half = len(known["body"]) // 2
        data = (known["body"][:half], known["body"][half:])[number]
        told = hashlib.sha256(data + b"x" if how == "wrong" else data).digest()
        headers = {"Content-Digest": f"sha-256=:{base64.b64encode(told).decode()}:"}
        secret = self.key_of(1 if how == "thief" else 0, "audits:write")
        answer = self.call(
            secret, "PUT", f"/v1/uploads/{upload}/parts/{number}", content=data, headers=headers
        )
        if how == "thief":
            self.expect(answer, 404, "not-found")
        elif known["log"]:
            self.expect(answer, 409, "conflict", seen="part after the end")
        elif how == "wrong":
            self.expect(answer, 422, "digest-mismatch")
        else:
            self.expect(answer, 204, seen="part")
            known["parts"][number] = data

    @transition(lambda self: self.known[0].uploads, choice=SMALL)
    def complete(self, choice):
        upload, known = self.an_upload(0, choice)
        answer = self.call(self.key_of(0, "audits:write"), "POST", f"/v1/uploads/{upload}/complete")
        if known["log"]:
            assert self.expect(answer, 200, seen="completed again").json()["id"] == known["log"]
        elif len(known["parts"]) < 2:
            self.expect(answer, 409, "conflict", seen="incomplete")
        else:
            made = self.expect(answer, 200, seen="completed").json()
            known["log"] = made["id"]
            self.known[0].logs.setdefault(made["id"], made["digest"])

    # Workers and ends.

    def a_claim(self):
        with self.store.transaction(writes=True) as connection:
            return jobs.claim(connection, "w", TERMS)

    def audit_of(self, audit_id):
        (known,) = [known for known in self.known if audit_id in known.audits]
        return known, known.audits[audit_id]

    def tell(self, known, kind):
        told = sum(not types or kind in types for types in known.hooks.values())
        self.messages += told

    @transition(
        weight=5,
        what=st.sampled_from(["finish"] * 3 + ["die"] * 2 + ["fail", "refuse", "hand back"]),
        steps=st.integers(0, 2),
    )
    def work(self, what, steps):
        job = self.a_claim()
        waiting = [a for k in self.known for a in k.audits.values() if a["state"] == "queued"]
        assert (job is None) == (not waiting)
        if job is None:
            return
        known, audit = self.audit_of(job.audit_id)
        assert audit["state"] == "queued"
        with self.store.transaction(writes=True) as connection:
            there = jobs.checkpoints(connection, job.audit_id)
            assert there == audit.get("steps", [])
            for step in range(steps):
                output = b"%d" % (len(there) + step)
                jobs.save_checkpoint(connection, job, len(there) + step, output, {}, TERMS)
                audit.setdefault("steps", []).append(output)
        self.end(job, known, audit, what)
        done[what] += 1

    def end(self, job, known, audit, what):
        with self.store.transaction(writes=True) as connection:
            if what == "finish":
                now = jobs.finish(connection, job)
                found = audits.find(connection, job.tenant_id, job.audit_id)
                audits.record(connection, found, job.audit_id.encode(), "inconclusive", [b"{}"], now)
                audit["state"], self.entries = "done", self.entries + 1
                self.tell(known, "audit.done")
            elif what in ("fail", "refuse"):
                final = what == "refuse"
                jobs.fail(connection, job, TERMS, code="x", error="y", chance=0.0, final=final)
                audit["attempts"] += 1
                if final or audit["attempts"] >= TERMS.most_attempts:
                    audit["state"] = "dead"
                    self.tell(known, "audit.dead")
            elif what == "hand back":
                jobs.hand_back(connection, job)
        if what == "die":
            self.lose_the_lease(job, known, audit)

    def lose_the_lease(self, job, known, audit):
        """The worker is silent past its lease; another looks; the first wakes up and may write nothing."""
        with self.store.transaction(writes=True) as connection:
            connection.exec_driver_sql(f"UPDATE job SET lease_until = 0 WHERE audit_id = '{job.audit_id}'")
            # Looked at first, so that it is this one that is claimed.
            connection.exec_driver_sql(f"UPDATE job SET run_at = 0 WHERE audit_id = '{job.audit_id}'")
        audit["lost"] += 1
        heir = self.a_claim()
        if audit["lost"] >= TERMS.most_lost_leases:
            assert heir is None
            audit["state"] = "quarantined"
            self.tell(known, "audit.quarantined")
            done["quarantined"] += 1
        else:
            assert heir.audit_id == job.audit_id
        with self.store.transaction(writes=True) as connection, pytest.raises(LeaseLostError):
            jobs.finish(connection, job)
        if heir is not None:
            self.end(heir, known, audit, "hand back")

    @transition(
        lambda self: any(known.audits for known in self.known),
        who=st.integers(0, 1),
        choice=st.integers(0, 9),
        foreign=SELDOM_TRUE,
    )
    def cancel(self, who, choice, foreign):
        owner = self.known[1 - who] if foreign else self.known[who]
        if not owner.audits:
            return
        audit_id = list(owner.audits)[choice % len(owner.audits)]
        answer = self.call(self.key_of(who, "audits:write"), "POST", f"/v1/audits/{audit_id}/cancel")
        audit = owner.audits[audit_id]
        if foreign:
            self.expect(answer, 404, "not-found")
        elif audit["state"] in ("queued", "cancelled"):
            self.expect(answer, 200, seen=f"cancelled, was {audit['state']}")
            if audit["state"] == "queued":
                self.tell(owner, "audit.cancelled")
            audit["state"] = "cancelled"
        else:
            self.expect(answer, 409, "conflict", seen=f"not cancelled, was {audit['state']}")

    # Reading.

    @transition(
        lambda self: any(known.audits for known in self.known),
        who=st.integers(0, 1),
        choice=st.integers(0, 9),
        foreign=SELDOM_TRUE,
    )
    def read(self, who, choice, foreign):
        owner = self.known[1 - who] if foreign else self.known[who]
        if not owner.audits:
            return
        audit_id = list(owner.audits)[choice % len(owner.audits)]
        key = self.key_of(who, "audits:read")
        verdict = self.call(key, "GET", f"/v1/audits/{audit_id}/verdict")
        answer = self.call(key, "GET", f"/v1/audits/{audit_id}")
        if foreign:
            self.expect(verdict, 404, "not-found")
            self.expect(answer, 404, "not-found")
            return
        audit, shown = owner.audits[audit_id], self.expect(answer, 200, seen="looked").json()
        assert (shown["state"], shown["attempts"]) == (audit["state"], audit["attempts"])
        assert shown["lost_leases"] == audit["lost"]
        if audit["state"] == "done":
            assert self.expect(verdict, 200, seen="verdict").content == audit_id.encode()
        else:
            self.expect(verdict, 409, "not-finished")

    # Webhooks.

    @transition(who=st.integers(0, 1), types=st.sets(st.sampled_from(sorted(webhooks.TYPES)), max_size=2))
    def make_webhook(self, who, types):
        self.number += 1
        answer = self.call(
            self.key_of(who, "webhooks"),
            "POST",
            "/v1/webhooks",
            json={"url": "https://example.com/", "types": sorted(types)},
            headers={"Idempotency-Key": f"hook-{self.number}"},
        )
        if len(self.known[who].hooks) >= webhooks.MOST_WEBHOOKS:
            self.expect(answer, 409, "conflict", seen="too many webhooks")
        else:
            self.known[who].hooks[self.expect(answer, 201, seen="webhook").json()["id"]] = sorted(types)

    # What always holds.

    @transition()
    def sign_the_log(self):
        assert place(self.store, self.log) == self.entries
        assert TransparencyLog(self.log.folder).checkpoint()[1].size == self.entries
        done["signed"] += 1

    @invariant()
    def lists_show_a_tenants_own_and_nothing_else(self):
        for who, known in enumerate(self.known):
            key = self.key_of(who, "audits:read")
            items = self.call(key, "GET", "/v1/audits?limit=200").json()["items"]
            assert {item["id"]: item["state"] for item in items} == {
                audit_id: audit["state"] for audit_id, audit in known.audits.items()
            }

    @invariant()
    def messages_are_as_many_as_there_were_ends(self):
        with self.store.transaction() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM delivery").scalar() == self.messages


SELDOM = (
    "idempotency-key-reused",
    "resubmitted",
    "digest-mismatch",
    "incomplete",
    "completed",
    "not-found",
    "not-finished",
    "verdict",
    "quarantined",
    "refuse",
    "signed",
    "key revoked",
    "scope-missing",
    "unauthenticated",
    "cancelled, was queued",
    "cancelled, was cancelled",
    "not cancelled, was done",
)


def test_the_service_does_what_the_oracle_says(database_url, request, tmp_path):
    fresh = tmp_path / "fresh.sqlite3"
    Store.upgrade(f"sqlite:///{fresh}")

    def new_url(folder):
        if database_url.startswith("sqlite"):
            shutil.copy(fresh, folder / "store.sqlite3")
            return f"sqlite:///{folder / 'store.sqlite3'}"
        return request.getfixturevalue("postgres_server").new_database()

    ServiceModel.new_url = staticmethod(new_url)
    done.clear()
    # Hypothesis ends a run when it likes, most of them early: so until there were as many as were asked for.
    for turn in itertools.count():
        run_state_machine_as_test(
            seed(turn)(ServiceModel),
            settings=settings(
                max_examples=max(1, (STEPS - done["steps"]) // A_RUN),
                stateful_step_count=A_RUN,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
            ),
        )
        if done["steps"] >= STEPS:
            break
    print(database_url.partition(":")[0], turn + 1, "turns", dict(sorted(done.items())))
    missed = [name for name in SELDOM if not done[name]]
    assert len(missed) <= (3 if STEPS < 1000 else 0), f"never seen: {missed}"
