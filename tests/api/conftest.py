"""A service over a real database, spoken to through ASGI, with two tenants."""

from __future__ import annotations

import functools
import itertools
import json
from dataclasses import dataclass

import pytest
from starlette.testclient import TestClient

from auditor.api.application import create_application
from auditor.api.service import Service
from auditor.service import audits, tenants
from auditor.service.blobs import BlobFolder
from auditor.service.log_placing import open_report_key
from auditor.service.small_logs import SmallLogs
from auditor.service.webhook_signing import WebhookSigner
from auditor.service.worker import Worker
from auditor.store import Store

LINE = b'{"schema": "auditor.trace/v1", "id": "req-%d", "model": "demo"}\n'
_numbers = itertools.count()


@dataclass
class Party:
    """A tenant with a key, and calls in its name."""

    client: TestClient
    tenant: tenants.Tenant
    key: str

    def call(self, method, path, **options):
        headers = {"Authorization": f"Bearer {self.key}"} | options.pop("headers", {})
        return self.client.request(method, path, headers=headers, **options)

    def get(self, path, **options):
        return self.call("GET", path, **options)

    def submit(self, body=LINE % 1, *, key=None, kind="application/jsonl", query="", **headers):
        headers |= {"Content-Type": kind, "Idempotency-Key": key or f"test-{next(_numbers)}"}
        return self.call("POST", f"/v1/audits{query}", content=body, headers=headers)


@dataclass
class World:
    service: Service
    client: TestClient
    alice: Party
    bob: Party

    def work(self):
        """Let a worker do what is queued, with evidence of two traces each."""

        def work(job, lease):
            with lease.store.transaction() as connection:
                audit = audits.find(connection, job.tenant_id, job.audit_id)
            lease.save(0, b"x", {"traces": 2})
            told = {"where": "log:1", "tokens": 9}
            traces = [
                json.dumps(told | {"id": "a", "verdict": "consistent", "spans": []}).encode(),
                json.dumps(told | {"id": "b", "verdict": "inconsistent", "spans": [[2, 5], [7, 8]]}).encode(),
            ]
            body = b'{"schema":"auditor.result/v1"}'
            return lambda c, now: audits.record(c, audit, body, "inconsistent", traces, now)

        worker = Worker(self.service.store, work)
        while worker.run_once():
            pass

    def party(self, name, scopes=tuple(tenants.SCOPES)):
        with self.service.store.transaction(writes=True) as connection:
            tenant = tenants.create_tenant(connection, name)
            _, key = tenants.create_key(connection, tenant.id, "k", scopes, days=1)
        return Party(self.client, tenant, key)


@functools.cache
def _application():
    return create_application(None)


def application_over(service):
    """The application over a service; made once, since all its routes take a third of a second to describe."""
    application = _application()
    application.state.service = service
    return application


@pytest.fixture
def world(database_url, tmp_path):
    with Store.open(database_url) as store:
        service = Service(
            store,
            SmallLogs(store, BlobFolder(tmp_path / "blobs")),
            tmp_path / "uploads",
            tmp_path / "log",
            WebhookSigner(bytes(32)),
            open_report_key(tmp_path / "report.key"),
        )
        with TestClient(application_over(service), raise_server_exceptions=False) as client:
            world = World(service, client, None, None)
            world.alice, world.bob = world.party("alice"), world.party("bob")
            yield world


def refused(response, status, code):
    """Check a problem document; returns it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    value = response.json()
    assert (value["code"], value["status"], value["type"]) == (code, status, f"/problems/{code}")
    return value
