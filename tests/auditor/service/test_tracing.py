"""Traces: off unless asked for, one trace from the submission to the verdict, and nothing in it that is not ours."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from auditor.api.application import create_application
from auditor.api.service import Service
from auditor.errors import OptionError
from auditor.profiles import shipped_profiles
from auditor.reference.demo.prompts import TARGET
from auditor.replay import Reference
from auditor.service import tenants, tracing
from auditor.service.audit_work import AuditWork
from auditor.service.blobs import BlobFolder
from auditor.service.webhook_signing import WebhookSigner
from auditor.service.worker import Worker
from auditor.store import Store

TRACES = Path(__file__).parent.parent.parent / "traces"
CANARY = "canary-7f3a"
ALLOWED = {
    "http.request.method",
    "http.route",
    "http.response.status_code",
    "db.system.name",
    "db.query.summary",
    "error.type",
    "auditor.audit",
    "auditor.tenant",
    "auditor.attempts",
    "auditor.lost_leases",
    "auditor.state",
    "auditor.step",
    "auditor.traces",
}


class Collector:
    """An OTLP/HTTP receiver on a port of its own."""

    def __init__(self):
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    raw = gzip.decompress(raw)
                collector.received.append((self.path, raw))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                """Nothing on standard error."""

        self.received = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def spans(self):
        """(service, span) of everything that came in."""
        found = []
        for path, raw in self.received:
            assert path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(raw).resource_spans:
                names = {a.key: a.value.string_value for a in resource.resource.attributes}
                found += [(names["service.name"], s) for scope in resource.scope_spans for s in scope.spans]
        return found


@pytest.fixture
def collector():
    found = Collector()
    thread = threading.Thread(target=found.server.serve_forever)
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


@pytest.fixture(autouse=True)
def _off_afterwards():
    yield
    tracing.stop()


@contextmanager
def service(tmp_path):
    with Store.open(f"sqlite:///{tmp_path}/store.sqlite3") as store:
        blobs = BlobFolder(tmp_path / "blobs")
        made = Service(store, blobs, tmp_path / "uploads", tmp_path / "log", WebhookSigner(bytes(32)))
        with store.transaction(writes=True) as connection:
            tenant = tenants.create_tenant(connection, CANARY)
            _, key = tenants.create_key(connection, tenant.id, CANARY, tenants.SCOPES, days=1)
        with TestClient(create_application(made), raise_server_exceptions=False) as client:
            client.headers["Authorization"] = f"Bearer {key}"
            yield made, client


def hidden_log():
    """Two requests whose every text that somebody wrote is a canary."""
    with gzip.open(TRACES / "vllm-cpu-bf16-plain.jsonl.gz") as stream:
        rows = [json.loads(line) for _, line in zip(range(2), stream, strict=False)]
    for number, row in enumerate(rows):
        row |= {"id": f"{CANARY}-{number}", "provider": CANARY, "model": CANARY, "text": CANARY}
        row["messages"] = [{"role": "user", "content": CANARY}]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def submit(client, body, **headers):
    headers |= {"Content-Type": "application/jsonl", "Idempotency-Key": CANARY, "baggage": f"x={CANARY}"}
    query = {"name": CANARY, "provider": CANARY}
    return client.post("/v1/audits", params=query, content=body, headers=headers).json()


def test_one_trace_from_the_submission_to_the_verdict_and_no_word_of_what_was_said(
    tmp_path, collector, monkeypatch
):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
    caller = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    with service(tmp_path) as (made, client):
        audit = submit(client, hidden_log(), traceparent=caller)["id"]
        client.get(f"/v1/audits/{CANARY}")
        client.get("/livez")
        key = client.headers["Authorization"].split(" ")[1]
        tracing.start_with("worker", OTLPSpanExporter())
        reference = Reference.load(TARGET)
        work = AuditWork(made.blobs, reference, lambda key: shipped_profiles().get(key))
        assert Worker(made.store, work).run_once()
        tracing.stop()
    found = collector.spans()
    ours = [(name, s) for name, s in found if s.trace_id == bytes.fromhex("ab" * 16)]
    assert {name for name, _ in ours} == {"auditor-serve", "auditor-worker"}
    by_name = {s.name: s for _, s in ours}
    assert {"POST /v1/audits", "blob put", "INSERT audit", "INSERT job"} <= by_name.keys()
    assert {
        "audit",
        "blob read",
        "audit replay",
        "audit step",
        "audit finish",
        "INSERT verdict",
    } <= by_name.keys()
    assert by_name["POST /v1/audits"].parent_span_id == bytes.fromhex("cd" * 8)
    assert by_name["audit"].parent_span_id == by_name["POST /v1/audits"].span_id
    assert by_name["audit replay"].parent_span_id == by_name["audit"].span_id
    assert by_name["audit step"].parent_span_id == by_name["audit replay"].span_id
    values = {a.key: a.value for a in by_name["audit"].attributes}
    assert (values["auditor.audit"].string_value, values["auditor.state"].string_value) == (audit, "done")
    assert {a.key for _, s in found for a in s.attributes} <= ALLOWED
    routes = [a.value.string_value for _, s in found for a in s.attributes if a.key == "http.route"]
    assert sorted(routes) == ["/v1/audits", "/v1/audits/{audit_id}"], "and no probe"
    everything = b"".join(raw for _, raw in collector.received)
    for secret in (CANARY, key, key.split(".")[1], str(tmp_path)):
        assert secret.encode() not in everything


def test_failures_are_told_by_their_class_only(tmp_path):
    exporter = InMemorySpanExporter()
    with service(tmp_path) as (made, client):
        tracing.start_with("worker", exporter)
        submit(client, b'{"id": "%s"}\n' % CANARY.encode())

        def work(_job, _lease):
            raise ValueError(CANARY)

        Worker(made.store, work).run_once()
        with pytest.raises(ZeroDivisionError), tracing.span("odd"):
            raise ZeroDivisionError(CANARY)
        absent = pytest.raises(Exception, match="no such table")
        with absent, tracing.span("sql"), made.store.transaction() as connection:
            connection.exec_driver_sql(f"SELECT '{CANARY}' FROM nothing_here")
        tracing._on.provider.force_flush()
        spans = exporter.get_finished_spans()
    errors = {
        s.name: s.attributes.get("error.type")
        for s in spans
        if not s.status.is_ok and s.status.status_code.name == "ERROR"
    }
    assert errors["odd"] == "ZeroDivisionError"
    assert errors["SELECT nothing_here"] == "OperationalError"
    assert all(not s.events for s in spans)
    assert CANARY not in "".join(s.to_json() for s in spans)
    assert {key for s in spans for key in s.attributes} <= ALLOWED


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318"}, False),
        ({"OTEL_SDK_DISABLED": "TRUE", "OTEL_TRACES_EXPORTER": "otlp"}, False),
        ({"OTEL_TRACES_EXPORTER": "console"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, None),
    ],
)
def test_only_what_names_a_collector_turns_traces_on(environment, asked):
    if asked is None:
        with pytest.raises(OptionError):
            tracing.wanted(environment)
    else:
        assert tracing.wanted(environment) is asked


def test_off_nothing_of_opentelemetry_is_loaded_and_no_context_is_kept(tmp_path):
    with service(tmp_path) as (made, client):
        submit(client, b'{"id": "a"}\n', traceparent="00-" + "ab" * 16 + "-" + "cd" * 8 + "-01")
        with made.store.transaction() as connection:
            assert connection.exec_driver_sql("SELECT traceparent FROM job").all() == [(None,)]
    asked = (
        "import sys, auditor.api.application, auditor.service.worker; print('opentelemetry' in sys.modules)"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", asked], env=clean, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_without_the_package_the_option_says_what_to_install():
    script = (
        "import sys; sys.modules['opentelemetry.exporter'] = None\n"
        "from auditor.errors import AuditError\nfrom auditor.service import tracing\n"
        "try: tracing.start('serve', 'http://127.0.0.1:1')\n"
        "except AuditError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "auditor[otel]" in done.stdout
    with pytest.raises(OptionError, match="--traces"):
        tracing.start("serve", "collector:4318")
