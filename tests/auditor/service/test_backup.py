"""Backup and restore over both databases; the list of invariants, and what breaks each."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from auditor.commands import cli
from auditor.errors import LogForkError
from auditor.service import audits, small_logs, tenants
from auditor.service.audits import AuditOptions
from auditor.service.backup import BackupError, backup, restore
from auditor.service.blobs import BlobFolder
from auditor.service.invariants import INVARIANTS, check_all
from auditor.service.log_placing import open_log, place
from auditor.service.worker import Worker
from auditor.store import Store


class Service:
    """A service's database, blobs and log under one folder."""

    def __init__(self, url, folder):
        self.store, self.folder, self.url = Store.open(url), folder, url
        self.blobs = BlobFolder(folder / "blobs")
        self.log, self.key = folder / "log", folder / "log.key"

    def submit(self, data):
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        with self.store.transaction(writes=True) as connection:
            if data == b"waiting":
                small_logs.keep(connection, {digest: data})
            else:
                self.blobs.put(data)
            found = tenants.tenants(connection, after=None, limit=1)
            tenant = found[0] if found else tenants.create_tenant(connection, "acme")
            log = audits.keep_log(connection, tenant.id, digest, "log", len(data))
            return audits.submit(connection, log, AuditOptions())

    def work(self):
        def work(job, lease):
            lease.save(0, b"\x00step", {"traces": 1})
            with lease.store.transaction() as connection:
                audit = audits.find(connection, job.tenant_id, job.audit_id)
            return lambda c, now: audits.record(c, audit, b"{}", "inconclusive", [b"{}"], now)

        while Worker(self.store, work).run_once():
            pass

    def place(self):
        return place(self.store, open_log(self.log, self.key))

    def backup(self, out):
        return backup(self.store, self.log, out, self.blobs)

    def restore(self, source):
        return restore(self.store, source, self.log, self.key, self.blobs)

    def rows(self):
        with self.store.transaction() as connection:
            column = text("SELECT a.id, j.state, v.digest FROM audit a JOIN job j ON j.audit_id = a.id"
                          " LEFT JOIN verdict v ON v.audit_id = a.id ORDER BY a.id")  # fmt: skip
            return [tuple(row) for row in connection.execute(column)]

    def broken(self):
        with self.store.transaction() as connection:
            return {f.invariant.name for f in check_all(connection, self.blobs) if f.broken_by}


@pytest.fixture
def service(database_url, tmp_path):
    service = Service(database_url, tmp_path / "live")
    for number in range(3):
        service.submit(b"log %d" % number)
    service.work()
    service.submit(b"waiting")
    service.place()
    yield service
    service.store.close()


@pytest.fixture
def empty(postgres_server, tmp_path):
    """A fresh service on the other kind of database."""

    def make(service):
        url = f"sqlite:///{tmp_path}/restored.sqlite3"
        if service.url.startswith("sqlite"):
            url = postgres_server.new_database()
        Store.upgrade(url)
        return Service(url, tmp_path / "restored")

    return make


def test_a_backup_restores_into_the_other_database_and_the_log_goes_on(service, empty, tmp_path):
    said = service.backup(tmp_path / "out")
    assert said["placed"] == 7
    other = empty(service)
    shutil.copy(service.key, tmp_path / "key")
    other.folder.mkdir()
    shutil.copy(service.key, other.key)
    other.restore(tmp_path / "out")
    assert other.rows() == service.rows()
    assert not other.broken()
    other.submit(b"new")
    other.work()
    assert other.place() == 10
    head = (other.log / "checkpoint").read_text().splitlines()
    assert head[1] == "10"
    assert not other.broken()
    other.store.close()


def test_a_backup_that_is_behind_the_log_is_refused(service, empty, tmp_path):
    service.backup(tmp_path / "out")
    service.submit(b"later")
    service.place()
    other = empty(service)
    shutil.copytree(service.folder, other.folder)
    with pytest.raises(LogForkError, match="has 8 entries, the backup gave places to 7"):
        other.restore(tmp_path / "out")
    shutil.rmtree(other.log)  # what the signer remembers is enough
    with pytest.raises(LogForkError, match="has 8 entries"):
        other.restore(tmp_path / "out")
    assert other.rows() == []
    other.store.close()


def test_a_damaged_backup_restores_nothing(service, empty, tmp_path):
    service.backup(tmp_path / "out")
    other = empty(service)
    file = tmp_path / "out" / "tables" / "verdict.jsonl"
    file.write_bytes(file.read_bytes().replace(b"inconclusive", b"inconsistent", 1))
    with pytest.raises(BackupError, match="table verdict is not what was written"):
        other.restore(tmp_path / "out")
    assert other.rows() == []
    other.store.close()


def test_a_database_with_tenants_is_not_overwritten(service, tmp_path):
    service.backup(tmp_path / "out")
    with pytest.raises(BackupError, match="holds tenants already"):
        service.restore(tmp_path / "out")
    with pytest.raises(BackupError, match="exists already"):
        service.backup(tmp_path / "out")


def test_the_commands(service, empty, tmp_path):
    run = CliRunner().invoke
    out = str(tmp_path / "out")
    done = run(cli, ["backup", out, "--database", service.url, "--blobs", str(service.blobs.folder)])
    assert done.exit_code == 0, done.output
    other = empty(service)
    blobs = ["--blobs", str(other.blobs.folder)]
    done = run(cli, ["restore", out, "--database", other.url, *blobs])
    assert done.exit_code == 0, done.output
    done = run(cli, ["doctor", "--database", other.url, *blobs])
    assert done.exit_code == 0, done.output
    assert done.output.count("  ok ") == len(INVARIANTS) + 1 >= 13
    done = run(cli, ["doctor", "--database", other.url, "--format", "json"])
    assert all(item["holds"] for item in json.loads(done.output)["invariants"])
    other.store.close()


BREAKS = {
    "one-job": "UPDATE job SET tenant_id = 'ten_x' WHERE state = 'queued'",
    "own-log": "UPDATE trace_log SET tenant_id = 'ten_x'",
    "done-iff-verdict": "UPDATE job SET state = 'dead' WHERE state = 'done'",
    "evidence-has-verdict": "DELETE FROM verdict",
    "known-state": "UPDATE job SET state = 'lost' WHERE state = 'queued'",
    "lease-iff-running": "UPDATE job SET state = 'running' WHERE state = 'queued'",
    "end-has-time": "UPDATE job SET finished = NULL",
    "fenced": "UPDATE checkpoint SET token = 99",
    "steps-in-order": "UPDATE checkpoint SET step = 1",
    "events-in-order": "DELETE FROM event WHERE sequence = 1",
    "submission-logged": "DELETE FROM log_entry WHERE kind = 'submission'",
    "verdict-logged": "DELETE FROM log_entry WHERE kind = 'verdict'",
    "places-in-order": "UPDATE log_entry SET position = position + 10 WHERE position = 6",
    "one-order-a-key": "INSERT INTO idempotency_key SELECT id, 'k', 'x', 'aud_0', 1 FROM tenant WHERE id <> 'ten_x'",
    "no-stray-logs": "INSERT INTO small_log SELECT 'sha256:0', body FROM small_log",
    "bytes-kept": "UPDATE trace_log SET digest = 'sha256:' || '%s' WHERE name = 'log'" % ("0" * 64),
}


def test_every_invariant_is_broken_by_what_it_forbids(service):
    assert not service.broken()
    assert set(BREAKS) == {item.name for item in INVARIANTS} | {"bytes-kept"}
    with service.store.transaction(writes=True) as connection:
        connection.execute(
            text("INSERT INTO tenant (id, name, created, most_running) VALUES ('ten_x', 'x', 1, 1)")
        )
    for name, statement in BREAKS.items():
        if name == "bytes-kept":
            service.blobs.remove(f"sha256:{'0' * 64}")
            for blob in service.blobs.folder.rglob("*"):
                if blob.is_file():
                    blob.unlink()
            assert service.broken() == {"bytes-kept"}
            continue

        class UndoError(Exception):
            pass

        with pytest.raises(UndoError), service.store.transaction(writes=True) as connection:
            connection.execute(text(statement.replace("'x', 'aud_0'", "CAST('x' AS bytea), 'aud_0'")
                                    if connection.dialect.name == "postgresql" else statement))  # fmt: skip
            broken = {f.invariant.name for f in check_all(connection) if f.broken_by}
            assert name in broken, name
            raise UndoError
