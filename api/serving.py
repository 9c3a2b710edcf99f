"""`serve`: the whole service from one command: database, API, workers."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from auditor.api.answering import Answering, kept_answering
from auditor.api.application import create_application
from auditor.api.processes import answer_quickly, kept_running, meanwhile
from auditor.errors import AuditError
from auditor.listening import address_of, bound_socket, serve
from auditor.service import challenges, erasure, tenants
from auditor.service.blobs import Blobs
from auditor.service.delivering import Sender
from auditor.service.egress import Egress
from auditor.service.log_placing import ServiceLog, open_log, place
from auditor.service.logs import LogFormat
from auditor.service.oidc import Issuer
from auditor.service.places import BLOB_STORE_VARIABLE, open_logs, open_store
from auditor.store import Store

logger = logging.getLogger("auditor.serve")

_WORKER = "from auditor.commands import main; main()"
SWEEP_SECONDS = 600.0
PLACE_SECONDS = 2.0
"""An entry is in a signed tree after about so long."""
SETTLE_SECONDS = 10.0
"""Between two looks at the deadlines of challenges."""


def serve_all(
    *,
    url: str | None,
    folder: Path,
    blob_store: str | None,
    listen: str,
    workers: int,
    model: Path,
    worker_options: Sequence[str],
    new_key: bool,
    issuer: Issuer | None,
    egress: Egress,
    on_start: Callable[[str, str | None], None],
    processes: int = 1,
    log_format: LogFormat = "text",
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        url: of the database, as `Store.open` has it; a SQLite file is moved to this program's schema.
        folder: of blobs and unfinished uploads.
        blob_store: of blobs where they are not in the folder.
        listen: `HOST:PORT`.
        workers: worker processes on this machine; 0 where they run elsewhere.
        model: folder of the model whose tokenizer openings are checked with.
        worker_options: of `audit worker`.
        new_key: make a key for the first tenant although there are some.
        issuer: whose tokens people may come with.
        egress: where webhooks may be sent to.
        on_start: told the address, and the text of a key that was made.
        processes: that answer; see `answering.py`.
        log_format: of the service's own log, in those processes.

    Raises:
        OptionError, StoreError: an option or place cannot be used.
    """
    with ExitStack() as stack:
        listener = stack.enter_context(bound_socket(listen))
        store = stack.enter_context(open_store(url))
        key = first_key(store, always=new_key)
        log = open_log(folder.parent / "log", folder.parent / "log.key")
        open_logs(store, folder, blob_store).prepare()
        told = Answering(
            str(folder),
            blob_store,
            str(model),
            None if issuer is None else (issuer.url, issuer.audience),
            log.signer.public.vkey,
            log_format,
        )
        service = told.service(store)
        command = [sys.executable, "-c", _WORKER, "worker", "--blobs", str(folder), "--with-parent"]
        environment = os.environ | ({"AUDITOR_DATABASE_URL": url} if url else {})
        environment |= {BLOB_STORE_VARIABLE: blob_store} if blob_store else {}
        for _ in range(workers):
            stack.enter_context(kept_running([*command, *worker_options], environment, called="a worker"))
        on_start(address_of(listener), key)
        # The server passes the signal that ended it on when it is done; there is still cleaning up to do.
        stopped = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        stack.enter_context(kept_settled(store))
        stack.enter_context(kept_logged(store, log))
        stack.enter_context(kept_swept(store, service.blobs))
        stack.enter_context(meanwhile("webhooks", Sender(store, service.webhooks, egress).run))
        if processes > 1:
            stack.enter_context(kept_answering(told, listener, processes, environment))
            stopped.wait()
        else:
            answer_quickly()
            serve(create_application(service), listener)


def first_key(store: Store, *, always: bool = False) -> str | None:
    """A key of the first tenant with every scope, where there is no tenant yet; None where there is."""
    with store.transaction(writes=True) as connection:
        found = tenants.tenants(connection, after=None, limit=1)
        if found and not always:
            return None
        tenant = found[0] if found else tenants.create_tenant(connection, "default")
        _, text = tenants.create_key(
            connection, tenant.id, "first", tenants.SCOPES, days=tenants.MOST_KEY_DAYS
        )
    return text


@contextmanager
def kept_logged(store: Store, log: ServiceLog) -> Iterator[None]:
    """Place new entries in the log, and sign it, every `PLACE_SECONDS` for as long as the block lasts."""

    def keep(ended: threading.Event) -> None:
        while not ended.wait(PLACE_SECONDS):
            try:
                place(store, log)
            except AuditError as error:
                logger.error("log: %s", error)  # noqa: TRY400  # it says all there is in one line

    with meanwhile("log", keep):
        yield


@contextmanager
def kept_swept(store: Store, blobs: Blobs) -> Iterator[None]:
    """Erase what outlived its tenant's retention, every `SWEEP_SECONDS` for as long as the block lasts."""

    def keep(ended: threading.Event) -> None:
        while not ended.wait(SWEEP_SECONDS):
            try:
                erasure.sweep(store, blobs)
            except AuditError as error:
                logger.error("retention: %s", error)  # noqa: TRY400  # as above

    with meanwhile("retention", keep):
        yield


@contextmanager
def kept_settled(store: Store) -> Iterator[None]:
    """End challenges that were not answered by their deadline, for as long as the block lasts."""

    def keep(ended: threading.Event) -> None:
        while not ended.wait(SETTLE_SECONDS):
            try:
                with store.transaction(writes=True) as connection:
                    challenges.settle(connection)
            except AuditError as error:
                logger.error("challenges: %s", error)  # noqa: TRY400  # it says all there is in one line

    with meanwhile("deadlines", keep):
        yield
