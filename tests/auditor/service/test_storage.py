"""Blobs in a folder and in a real S3 server; erasure and retention on SQLite and PostgreSQL."""

from __future__ import annotations

import hashlib
import threading
import urllib.request

import pytest
from sqlalchemy import select, update

from auditor.errors import OptionError, StoreError
from auditor.merkle.policy import parse_policy
from auditor.merkle.receipts import verify_receipt
from auditor.service import audits, erasure, exhibits, tenants
from auditor.service.audit_work import AuditWork
from auditor.service.audits import AuditOptions
from auditor.service.blobs import BlobFolder
from auditor.service.clock import SECOND
from auditor.service.errors import EvidenceErasedError, NotFoundError
from auditor.service.exhibit import Exhibit
from auditor.service.log_placing import open_log, place
from auditor.service.places import open_blobs
from auditor.service.s3_blobs import S3Blobs
from auditor.service.small_logs import SmallLogs
from auditor.service.worker import Worker
from auditor.store import Store
from auditor.store_schema import trace_log
from auditor.transparency_log import TransparencyLog, verify_log

DATA = b"x" * 100_000
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


@pytest.fixture(scope="module")
def s3_url():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    urllib.request.urlopen(
        urllib.request.Request(f"{address}/logs", method="PUT", data=b""), timeout=30
    ).close()
    yield f"s3://logs/audit?endpoint={address}"
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def blobs(request, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    url = request.getfixturevalue("s3_url") if request.param == "s3" else None
    found = open_blobs(tmp_path / "blobs", url)
    assert isinstance(found, S3Blobs if url else BlobFolder)
    yield found
    found.remove(DIGEST)


def test_bytes_come_back_by_their_digest(blobs):
    assert not blobs.holds(DIGEST)
    assert blobs.put(DATA) == DIGEST
    assert blobs.put(DATA) == DIGEST
    assert blobs.holds(DIGEST)
    assert blobs.path(DIGEST).read_bytes() == DATA
    with blobs.open(DIGEST) as stream:
        assert stream.read() == DATA
    blobs.release(DIGEST)
    assert blobs.path(DIGEST).read_bytes() == DATA


def test_a_stream_of_other_bytes_is_not_kept(blobs):
    with pytest.raises(StoreError, match="other bytes"):
        blobs.put_all([b"other"], expected=DIGEST)
    assert not blobs.holds(DIGEST)
    blobs.put_all(iter([DATA[:70_000], DATA[70_000:]]), expected=DIGEST)
    assert blobs.path(DIGEST).read_bytes() == DATA


def test_what_was_removed_is_gone_and_removing_again_changes_nothing(blobs):
    blobs.put(DATA)
    blobs.path(DIGEST)
    blobs.remove(DIGEST)
    blobs.remove(DIGEST)
    assert not blobs.holds(DIGEST)
    with pytest.raises(StoreError):
        blobs.open(DIGEST)


def test_bytes_that_were_swapped_in_the_bucket_are_refused(tmp_path, s3_url, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    blobs = S3Blobs(s3_url, BlobFolder(tmp_path))
    other = f"sha256:{hashlib.sha256(b'mine').hexdigest()}"
    blobs.put(b"mine")
    blobs._client.put_object(Bucket="logs", Key=blobs._key(other), Body=b"theirs")
    with pytest.raises(StoreError, match="other bytes"):
        blobs.path(other)
    assert not blobs._cache.holds(other)


def test_storage_that_cannot_be_reached_is_one_clear_line(tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    blobs = S3Blobs("s3://logs?endpoint=http://127.0.0.1:9", BlobFolder(tmp_path))
    with pytest.raises(StoreError, match="s3://logs: cannot be looked for") as caught:
        blobs.put(DATA)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://bucket/x", "s3:///x", "s3://bucket?region=x"])
def test_other_urls_are_no_place_for_blobs(url, tmp_path):
    with pytest.raises(OptionError, match="no place for blobs"):
        open_blobs(tmp_path, url)


class World:
    """A store with two tenants, and work that reads the log."""

    def __init__(self, store, blobs):
        self.store, self.blobs = store, blobs
        with store.transaction(writes=True) as connection:
            self.alice = tenants.create_tenant(connection, "alice").id
            self.bob = tenants.create_tenant(connection, "bob", retention_days=30).id

    def hand_in(self, tenant, data=DATA):
        if isinstance(self.blobs, SmallLogs):
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            with self.store.transaction(writes=True) as connection:
                erasure.keep_all(connection, {}, self.blobs, {digest: data})
                return audits.keep_log(connection, tenant, digest, "log", len(data))
        digest = self.blobs.put(data)
        with self.store.transaction(writes=True) as connection:
            erasure.keep(connection, digest, self.blobs, lambda: self.blobs.put(data))
            return audits.keep_log(connection, tenant, digest, "log", len(data))

    def submit(self, log):
        with self.store.transaction(writes=True) as connection:
            return audits.submit(connection, log, AuditOptions())

    def work(self):
        work = AuditWork(self.blobs, None, lambda _key: None)

        def judged(audit, _keys, _lease, path):
            body = path.read_bytes()[:10]
            return lambda c, now: audits.record(c, audit, body, "inconclusive", [], now)

        work._judged = judged
        while Worker(self.store, work).run_once():
            pass

    def audit(self, tenant, audit_id):
        with self.store.transaction() as connection:
            return audits.find(connection, tenant, audit_id)

    def age(self, log, days):
        with self.store.transaction(writes=True) as connection:
            moved = update(trace_log).where(trace_log.c.id == log.id)
            connection.execute(moved.values(created=trace_log.c.created - days * 86_400 * SECOND))


@pytest.fixture(params=["folder", "rows"])
def world(database_url, tmp_path, request):
    with Store.open(database_url) as store:
        folder = BlobFolder(tmp_path / "blobs")
        yield World(store, SmallLogs(store, folder) if request.param == "rows" else folder)


def test_an_erased_log_leaves_digest_verdict_and_a_log_that_verifies(world, tmp_path):
    log = world.hand_in(world.alice)
    audit_id = world.submit(log)
    world.work()
    tree = open_log(tmp_path / "log", tmp_path / "log.key")
    assert place(world.store, tree) == 2
    erased = erasure.erase(world.store, world.blobs, world.alice, log.id)
    assert erased.erased is not None
    assert erased.digest == DIGEST
    assert not world.blobs.holds(DIGEST)
    assert world.audit(world.alice, audit_id).outcome == "inconclusive"
    later = world.hand_in(world.alice, b"later")
    world.submit(later)
    assert place(world.store, tree) == 3
    policy = parse_policy(f"log {tree.signer.public.vkey}\nquorum none\n".encode())
    assert verify_log(tree.folder, policy).size == 3
    with world.store.transaction() as connection:
        position, entry = audits.log_entry(connection, world.alice, audit_id, "verdict")
    assert DIGEST.encode() in entry
    assert verify_receipt(TransparencyLog(tree.folder).prove(position), entry, policy, "receipt")


def test_excerpts_of_a_log_go_with_it_whenever_its_audit_ends(world):
    log = world.hand_in(world.alice)
    before, after = world.submit(log), world.submit(log)
    body = b'{"curves":[1],"excerpts":[{"pieces":["secret"]}]}'
    shown = Exhibit("acme", "demo", "inconsistent", 5, 0.001, body)

    def record(audit_id):
        with world.store.transaction(writes=True) as connection:
            exhibits.record(connection, audits.find(connection, world.alice, audit_id), shown)

    record(before)
    erasure.erase(world.store, world.blobs, world.alice, log.id)
    record(after)
    with world.store.transaction() as connection:
        for audit_id in (before, after):
            assert exhibits.find(connection, world.alice, audit_id) == {"curves": [1], "excerpts": []}


def test_an_audit_of_erased_evidence_says_so(world):
    log = world.hand_in(world.alice)
    waiting = world.submit(log)
    erased = erasure.erase(world.store, world.blobs, world.alice, log.id)
    with pytest.raises(EvidenceErasedError, match="was erased on"):
        world.submit(erased)
    world.work()
    audit = world.audit(world.alice, waiting)
    assert (audit.state, audit.error_code, audit.outcome) == ("dead", "evidence-erased", None)


def test_erasing_again_changes_nothing_and_other_tenants_logs_are_not_found(world):
    log = world.hand_in(world.alice)
    first = erasure.erase(world.store, world.blobs, world.alice, log.id)
    assert erasure.erase(world.store, world.blobs, world.alice, log.id) == first
    with pytest.raises(NotFoundError):
        erasure.erase(world.store, world.blobs, world.bob, log.id)


def test_bytes_that_another_tenant_has_too_stay(world):
    mine, theirs = world.hand_in(world.alice), world.hand_in(world.bob)
    erasure.erase(world.store, world.blobs, world.alice, mine.id)
    assert world.blobs.holds(DIGEST)
    erasure.erase(world.store, world.blobs, world.bob, theirs.id)
    assert not world.blobs.holds(DIGEST)


def test_erased_bytes_that_are_handed_in_again_are_there_again(world):
    log = world.hand_in(world.alice)
    erasure.erase(world.store, world.blobs, world.alice, log.id)
    again = world.hand_in(world.alice)
    assert (again.id, again.erased) == (log.id, None)
    audit_id = world.submit(again)
    world.work()
    assert world.audit(world.alice, audit_id).state == "done"


def test_logs_are_erased_after_the_tenants_days_but_not_under_an_unfinished_audit(world):
    old, new, kept = (
        world.hand_in(world.bob),
        world.hand_in(world.bob, b"new"),
        world.hand_in(world.alice, b"a"),
    )
    for log, days in ((old, 31), (new, 29), (kept, 4000)):
        world.age(log, days)
    audit_id = world.submit(old)
    assert erasure.sweep(world.store, world.blobs) == 0
    world.work()
    assert world.audit(world.bob, audit_id).state == "done"
    assert erasure.sweep(world.store, world.blobs) == 1
    assert not world.blobs.holds(DIGEST)
    assert world.blobs.holds(new.digest)
    assert world.blobs.holds(kept.digest)


def test_what_a_crash_left_behind_is_swept(world):
    log = world.hand_in(world.alice)
    with world.store.transaction(writes=True) as connection:
        connection.execute(update(trace_log).where(trace_log.c.id == log.id).values(erased=1))
    assert world.blobs.holds(DIGEST)
    erasure.sweep(world.store, world.blobs)
    assert not world.blobs.holds(DIGEST)


def test_an_acknowledged_log_never_loses_its_bytes_to_an_erasure(world):
    """Two threads: one hands the bytes in and erases them, the other hands them in for good, again and again."""
    failures = []

    def churn():
        for _ in range(12):
            log = world.hand_in(world.alice)
            erasure.erase(world.store, world.blobs, world.alice, log.id)

    def keep():
        for _ in range(12):
            log = world.hand_in(world.bob)
            if not world.blobs.holds(log.digest):
                failures.append(log)
            erasure.erase(world.store, world.blobs, world.bob, log.id)

    threads = [threading.Thread(target=target) for target in (churn, keep)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with world.store.transaction() as connection:
        live = connection.execute(select(trace_log.c.id).where(trace_log.c.erased.is_(None))).all()
    assert not live
    assert not world.blobs.holds(DIGEST)
