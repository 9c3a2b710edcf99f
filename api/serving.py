"""`serve`: the whole service from one command: database, API, workers."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from auditor.api.application import create_application
from auditor.api.service import Service
from auditor.errors import AuditError
from auditor.listening import address_of, bound_socket, serve
from auditor.service import challenges, erasure, tenants
from auditor.service.blobs import Blobs
from auditor.service.delivering import Sender
from auditor.service.egress import Egress
from auditor.service.log_placing import ServiceLog, open_log, open_report_key, place
from auditor.service.oidc import Issuer
from auditor.service.opening_checks import OpeningChecker
from auditor.service.places import BLOB_STORE_VARIABLE, open_logs, open_store
from auditor.service.webhook_signing import open_webhook_key
from auditor.store import Store

logger = logging.getLogger("auditor.serve")

_WORKER = "from auditor.commands import main; main()"
_MOST_REST = 30.0
_M_MMAP_THRESHOLD = -3  # of glibc's <malloc.h>
SWEEP_SECONDS = 600.0
PLACE_SECONDS = 2.0
"""An entry is in a signed tree after about so long."""
SWITCH_SECONDS = 0.0005
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

    Raises:
        OptionError, StoreError: an option or place cannot be used.
    """
    with ExitStack() as stack:
        listener = stack.enter_context(bound_socket(listen))
        store = stack.enter_context(open_store(url))
        key = first_key(store, always=new_key)
        log = open_log(folder.parent / "log", folder.parent / "log.key")
        report_signer = open_report_key(folder.parent / "report.key")
        signer = open_webhook_key(folder.parent / "webhook.key")
        blobs = open_logs(store, folder, blob_store)
        blobs.prepare()
        service = Service(
            store,
            blobs,
            folder / "uploads",
            log.folder,
            signer,
            report_signer,
            issuer,
            checker=OpeningChecker.of_model(model),
            log_key=log.signer.public.vkey,
        )
        command = [sys.executable, "-c", _WORKER, "worker", "--blobs", str(folder), "--with-parent"]
        environment = os.environ | ({"AUDITOR_DATABASE_URL": url} if url else {})
        environment |= {BLOB_STORE_VARIABLE: blob_store} if blob_store else {}
        for _ in range(workers):
            stack.enter_context(kept_running([*command, *worker_options], environment))
        on_start(address_of(listener), key)
        # The server passes the signal that ended it on when it is done; there is still cleaning up to do.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        stack.enter_context(kept_settled(store))
        stack.enter_context(kept_logged(store, log))
        stack.enter_context(kept_swept(store, service.blobs))
        stack.enter_context(_meanwhile("webhooks", Sender(store, signer, egress).run))
        # Whoever waits for the interpreter gets it sooner: an answer is many short turns.
        sys.setswitchinterval(SWITCH_SECONDS)
        _give_memory_back()
        serve(create_application(service), listener)


def _give_memory_back() -> None:
    """Have bodies of requests taken from the system and given back to it.

    By itself glibc keeps such blocks once it has seen one freed, and the process grows to what all its
    threads held at different times. Elsewhere nothing happens.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


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

    with _meanwhile("log", keep):
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

    with _meanwhile("retention", keep):
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

    with _meanwhile("deadlines", keep):
        yield


@contextmanager
def kept_running(command: Sequence[str], environment: dict[str, str]) -> Iterator[None]:
    """Run a process for as long as the block lasts; one that ends is started again, after longer rests.

    It ends with this process, however that ends: its standard input is a pipe of ours.
    """

    def keep(ended: threading.Event) -> None:
        rest = 0.5
        while not ended.is_set():
            with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:  # noqa: S603
                while process.poll() is None and not ended.wait(0.2):
                    pass
                if ended.is_set():
                    process.terminate()
                    return
            logger.error("a worker ended with status %s; starting another", process.returncode)
            ended.wait(rest)
            rest = min(2 * rest, _MOST_REST)

    with _meanwhile("worker", keep):
        yield


@contextmanager
def _meanwhile(name: str, keep: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run `keep` in a thread until the block ends, which the event tells it."""
    ended = threading.Event()
    thread = threading.Thread(target=keep, args=(ended,), name=name)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
