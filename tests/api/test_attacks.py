"""Attacks on a real server process: each is refused with its code, and the server's memory stays flat."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from auditor.service import tenants
from auditor.store import Store
from tests.api.conftest import LINE, refused

ROOT = Path(__file__).parents[2]
GIB = 1 << 30
MOST_GROWTH = 64 << 20
_numbers = itertools.count()


class Target:
    """The server, and what memory it held at most."""

    def __init__(self, address, pid, key, folder):
        self.client = httpx.Client(
            base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=60, trust_env=False
        )
        self.pid, self.folder = pid, folder

    def most_memory(self):
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10

    def submit(self, body, kind="application/octet-stream", query=""):
        headers = {"Content-Type": kind, "Idempotency-Key": f"attack-{next(_numbers)}"}
        return self.client.post(f"/v1/audits{query}", content=body, headers=headers)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacked")
    url = f"sqlite:///{folder}/store.sqlite3"
    Store.upgrade(url)
    with Store.open(url) as store, store.transaction(writes=True) as connection:
        tenant = tenants.create_tenant(connection, "mallory")
        _, key = tenants.create_key(connection, tenant.id, "k", tenants.SCOPES, days=1)
    command = [sys.executable, "-m", "tests.auditor.service.killable_server", url, str(folder / "blobs")]
    with subprocess.Popen([*command, "127.0.0.1:0"], stdout=subprocess.PIPE, cwd=ROOT, text=True) as server:
        try:
            target = Target(server.stdout.readline().strip(), server.pid, key, folder)
            assert target.submit(LINE % 1 * 100_000).status_code == 202  # what honest work takes
            yield target
        finally:
            server.kill()


@pytest.fixture(autouse=True)
def flat(target):
    before = target.most_memory()
    yield
    assert target.most_memory() - before < MOST_GROWTH


def blanks(count):
    return b" " * count


def long_line(pack, total=GIB, step=16 << 20):
    """A long line of blanks, compressed without holding it."""
    chunk = blanks(step)
    if pack == "zstd":
        machine = zstandard.ZstdCompressor(level=3).compressobj()
    else:
        stream = io.BytesIO()
        with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=9) as packed:
            for _ in range(total // step):
                packed.write(chunk)
        return stream.getvalue()
    return b"".join(machine.compress(chunk) for _ in range(total // step)) + machine.flush()


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: long_line("zstd"), "compression-bomb"),
        (lambda: long_line("gzip", 512 << 20), "compression-bomb"),
        (lambda: zstandard.compress(zstandard.compress(blanks(64 << 20))), "compression-bomb"),
        (lambda: gzip.compress(long_line("zstd")), "compression-bomb"),
        (lambda: zstandard.compress(gzip.compress(LINE * 9)), "compression-bomb"),
        (lambda: zstandard.compress(blanks(1 << 20)) * 2000, "compression-bomb"),
        (lambda: gzip.compress(blanks(1 << 20)) * 1000, "compression-bomb"),
        (lambda: gzip.compress(LINE % 1) + gzip.compress(blanks(64 << 20)), "compression-bomb"),
        (lambda: zstandard.compress(LINE % 1)[:-3], "request-invalid"),
        (lambda: b"\x28\xb5\x2f\xfd" + os.urandom(200), "request-invalid"),
    ],
    ids=["zstd", "gzip", "zstd2", "gzip-zstd", "zstd-gzip", "frames", "members", "second", "cut", "noise"],
)
def test_bombs_are_refused_in_the_memory_of_a_step(target, make, code):
    refused(target.submit(make()), 422, code)


def test_a_window_wider_than_eight_mebibytes_is_refused(target):
    settings = zstandard.ZstdCompressionParameters(window_log=27)
    machine = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    body = machine.compress(os.urandom(1 << 20)) + machine.flush()
    refused(target.submit(body), 422, "request-invalid")


def test_a_bomb_in_parts_is_refused(target):
    bomb = long_line("zstd")
    order = {"name": "b", "digest": f"sha256:{hashlib.sha256(bomb).hexdigest()}", "bytes": len(bomb)}
    made = target.client.post("/v1/uploads", json=order, headers={"Idempotency-Key": "bomb"})
    path = made.headers["location"]
    digest = base64.b64encode(hashlib.sha256(bomb).digest()).decode()
    put = target.client.put(
        f"{path}/parts/0", content=bomb, headers={"Content-Digest": f"sha-256=:{digest}:"}
    )
    assert put.status_code == 204
    refused(target.client.post(f"{path}/complete"), 422, "compression-bomb")


@pytest.mark.parametrize(
    "body",
    [
        b'{"log": ' + b"[" * 60_000 + b"]" * 5000 + b"}",
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"log": "a", "log": "b"}',
        b'{"log": "a", "alpha": NaN}',
        b'{"log": "a", "alpha": -Infinity}',
        b'{"log": "a", "alpha": 1e999}',
        b'{"log": "a", "alpha": ' + b"9" * 5000 + b"}",
        b'{"log": "\\ud800"}',
        b'{"log": "\xed\xa0\x80"}',
        b'\xef\xbb\xbf{"log": "a"}',
        b'{"log": "a"} {}',
        b"\x00",
    ],
    ids=["deep", "deeper", "twice", "nan", "inf", "huge", "digits", "half", "cesu", "bom", "two", "nul"],
)
def test_json_abuse_is_refused(target, body):
    refused(target.submit(body, "application/json"), 400, "body-malformed")


@pytest.mark.parametrize("number", [1 << 63, 1 << 64, -1, 1e300, 0.5, True, "1"])
def test_numbers_beyond_what_is_meant_are_refused(target, number):
    order = {"name": "b", "digest": "sha256:" + "0" * 64, "bytes": number}
    answer = target.client.post("/v1/uploads", json=order, headers={"Idempotency-Key": f"n{number}"})
    refused(answer, 422, "request-invalid")


def test_a_body_that_does_not_end_is_cut_off(target):
    def endless():
        for _ in range(2000):
            yield b"x" * (1 << 20)

    try:
        answer = target.submit(endless())
    except httpx.TransportError:  # it hung up while we were still sending
        return
    refused(answer, 413, "body-too-large")


def table_of(rows, **columns):
    made = io.BytesIO()
    filled = {"schema": "auditor.trace/v1", "id": "x", "model": "demo", "sampling": "{}"} | columns
    arrays = {
        name: value if isinstance(value, pa.Array) else pa.array([value] * rows)
        for name, value in filled.items()
    }
    pq.write_table(pa.table(arrays), made, compression="zstd")
    return made.getvalue()


def dictionary_bomb():
    """Rows that all name one long text: kilobytes that stand for gigabytes."""
    indices = pa.array([0] * 4096, pa.int32())
    text = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * (4 << 20)]))
    return table_of(4096, text=text)


def quiet_bomb():
    """No page is large: the rows are only very many."""
    return table_of(3_000_000)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (dictionary_bomb, "compression-bomb"),
        (quiet_bomb, "compression-bomb"),
        (lambda: table_of(2)[:-20] + b"PAR1", "request-invalid"),
        (lambda: b"PAR1" + os.urandom(5000) + b"PAR1", "request-invalid"),
        (lambda: b"PAR1" + (GIB * 2 - 9).to_bytes(4, "little") + b"PAR1", "request-invalid"),
        (lambda: table_of(1, **{f"c{n}": 1 for n in range(1200)}), "compression-bomb"),
    ],
    ids=["dictionary", "rows", "cut", "noise", "footer", "columns"],
)
def test_crafted_parquet_is_refused(target, make, code):
    body = make()
    assert len(body) < 8 << 20
    refused(target.submit(body), 422, code)


def test_honest_parquet_is_taken(target):
    assert target.submit(table_of(300)).status_code == 202


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "..\\..\\x",
        "a/b",
        ".",
        "..",
        "~root",
        "%2e%2e%2f",
        "CON",
        "x" * 200,
    ],
)
def test_names_are_labels_and_never_paths(target, name):
    body = LINE % 7 * 1100 + name.encode()  # large enough to be a file
    answer = target.client.post(
        "/v1/audits",
        params={"name": name},
        content=body,
        headers={"Content-Type": "application/jsonl", "Idempotency-Key": f"name {name}"},
    )
    assert answer.status_code == 202, answer.text
    assert answer.json()["log"]["name"] == name
    found = {path.name for path in (target.folder / "blobs").rglob("*") if path.is_file()}
    assert hashlib.sha256(body).hexdigest() in found
    assert all(re.fullmatch("[0-9a-f]{64}|[0-9]+", name) for name in found)


@pytest.mark.parametrize(
    "path",
    [
        "/log/tile/../../log.key",
        "/log/tile/..%2f..%2flog.key",
        "/log/tile/entries/..%2f..%2f..%2flog.key",
        "/log/tile/0/%2e%2e/%2e%2e/checkpoint",
        "/v1/uploads/..%2f..%2fstore.sqlite3",
        "/v1/uploads/%2e%2e",
        "/v1/audits/..%2f",
        "/problems/..%2f..%2fetc%2fpasswd",
        "/static/../../log.key",
    ],
)
def test_paths_lead_nowhere_else(target, path):
    url = httpx.URL(str(target.client.base_url)).copy_with(raw_path=path.encode())
    refused(target.client.get(url), 404, "not-found")


def test_a_header_of_a_mebibyte_is_refused_and_the_next_request_served(target):
    with contextlib.suppress(httpx.TransportError):  # it may hang up
        assert target.client.get("/livez", headers={"x": "y" * (1 << 20)}).status_code in (400, 431)
    assert json.loads(target.client.get("/v1/audits?limit=1").content)["items"]
