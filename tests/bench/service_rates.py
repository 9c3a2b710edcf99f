"""What submissions are held against: bare inserts and commits on the same database, and a client that costs little.

The client and the server share the machine's cores, so the client says HTTP/1.1 over a socket of its own and does
nothing else. Three bare rates, each of so many streams that wait for their own commits, on the same
database with the same promise that a commit is on disk:

* `one_row`: a single row of 200 bytes in a table without keys to others: one flush of the disk;
* `same_rows`: the eight rows that a submission changes (log, its bytes, audit, job, event, log entry, Idempotency-Key,
  and the key's allowance), in the tables they belong in, one statement each: one flush;
* `rows_and_file`: seven of those, once the log's bytes are on disk as a blob, as they are where a log is larger than
  what lies in the database: three flushes, one after the other (the file, its folder, the commit).
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from urllib.parse import urlsplit

from sqlalchemy import Column, Integer, LargeBinary, MetaData, Table, insert, select, update

from auditor.service.identifiers import new_id
from auditor.store_schema import (
    api_key,
    audit,
    event,
    idempotency_key,
    job,
    log_entry,
    small_log,
    trace_log,
)

_numbers = itertools.count()


def rate(call, streams, seconds):
    """Calls a second of so many streams, each one after the other; `call()` makes a stream's call."""
    ending, counts = time.monotonic() + seconds, []

    def stream():
        one, count = call(), 0
        while time.monotonic() < ending:
            one()
            count += 1
        counts.append(count)

    started = time.monotonic()
    threads = [threading.Thread(target=stream) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - started)


def one_row(store):
    """The cheapest thing that a database can keep."""
    scratch = Table("bench", MetaData(), Column("n", Integer, primary_key=True), Column("body", LargeBinary))
    scratch.metadata.create_all(store._engine)

    def bare():
        with store.transaction(writes=True) as connection:
            connection.execute(insert(scratch).values(body=b"x" * 200))

    return lambda: bare


def same_rows(store, blobs=None):
    """The rows of a submission, made in advance; with `blobs`, after a file there."""
    with store.transaction() as connection:
        found = connection.execute(select(api_key.c.id, api_key.c.tenant_id)).all()

    def stream():
        key = found[next(_numbers) % len(found)]

        def bare():
            number, now, whose = next(_numbers), time.time_ns() // 1000, {"tenant_id": key.tenant_id}
            log, made = new_id("log"), {"id": new_id("aud"), "created": now}
            if blobs is not None:
                blobs.put(b'{"schema": "auditor.trace/v1", "id": "b-%d"}\n' % number)
            with store.transaction(writes=True) as connection:
                run = connection.execute
                run(
                    insert(trace_log),
                    {
                        "id": log,
                        "digest": f"sha256:{number:064x}",
                        "name": "log",
                        "size": 60,
                        "created": now,
                        **whose,
                    },
                )
                if blobs is None:
                    run(insert(small_log), {"digest": f"sha256:{number:064x}", "body": b"x" * 60})
                run(
                    insert(audit),
                    {"trace_log_id": log, "options": "{}" * 60, "provider": "", **made, **whose},
                )
                state = {"state": "done", "run_at": now, "attempts": 0, "lost_leases": 0, "token": 0}
                run(insert(job), {"audit_id": made["id"], **state, **whose})
                run(
                    insert(event),
                    {"audit_id": made["id"], "sequence": 1, "kind": "queued", "data": "{}", "created": now},
                )
                run(insert(log_entry), {"subject": made["id"], "kind": "submission", "body": b"x" * 300})
                told = {"key": f"bare-{number}", "request_sha256": bytes(32), "resource_id": made["id"]}
                run(insert(idempotency_key), {"created": now, **told, **whose})
                run(update(api_key).where(api_key.c.id == key.id).values(allowance=1e9, allowance_at=now))

        return bare

    return stream


def submissions(address, keys):
    """A stream of submissions over one connection, each acknowledged before the next."""
    target = urlsplit(address)

    def stream():
        link = socket.create_connection((target.hostname, target.port))
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def submit():
            number = next(_numbers)
            key, body = keys[number % len(keys)], b'{"schema": "auditor.trace/v1", "id": "r-%d"}\n' % number
            head = (
                f"POST /v1/audits HTTP/1.1\r\nHost: {target.netloc}\r\nAuthorization: Bearer {key}\r\n"
                f"Idempotency-Key: bench-{number}\r\nContent-Type: application/jsonl\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            link.sendall(head.encode() + body)
            answer = link.recv(65536)
            assert answer.startswith(b"HTTP/1.1 202 "), answer
            length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            wanted = answer.index(b"\r\n\r\n") + 4 + length
            while len(answer) < wanted:
                answer += link.recv(65536)

        return submit

    return stream
