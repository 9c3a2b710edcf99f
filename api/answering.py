"""Several processes that answer on one socket: `serve --processes N`, and what each of them does.

The process that was started binds the socket, migrates, keeps timetables and the log, and answers nobody. The
others, which it starts, inherit the socket: whichever is free takes the next connection. One that dies takes
only its own connections with it and is started again; all of them end with the first, however that ends.

What must hold between processes is the database's business, as between hosts: Idempotency-Keys, nonces,
allowances and sessions are rows, and each process commits its own groups of submissions. A process's own are
who came a moment ago (`RecentCallers`, looked up again where it counts), an issuer's keys, and one plan at a
time. Metrics are counted together, in files that each process writes and all read.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from auditor.api.application import create_application
from auditor.api.metrics import SHARED_VARIABLE
from auditor.api.processes import answer_quickly, kept_running
from auditor.api.service import Service
from auditor.listening import serve
from auditor.service import tracing
from auditor.service.log_placing import open_report_key
from auditor.service.logs import LogFormat, log_to_standard_error
from auditor.service.oidc import Issuer
from auditor.service.opening_checks import OpeningChecker
from auditor.service.places import open_logs
from auditor.service.webhook_signing import open_webhook_key
from auditor.store import Store

_ANSWER = "from auditor.api.answering import main; main()"


@dataclass(frozen=True, slots=True)
class Answering:
    """What a process that answers is told; the database's URL, which may hold a password, by its environment.

    Attributes:
        folder: of blobs and unfinished uploads; keys and the transparency log are beside it.
        blob_store: of blobs where they are not in the folder.
        model: folder of the model whose tokenizer openings are checked with.
        issuer: (URL, audience) of whose tokens people may come with.
        log_key: the log's public key, as a vkey.
    """

    folder: str
    blob_store: str | None
    model: str
    issuer: tuple[str, str] | None
    log_key: str
    log_format: LogFormat

    def service(self, store: Store) -> Service:
        """The service, over an open database.

        Raises:
            OptionError, KeyFileError, StoreError: a place or key cannot be used.
        """
        folder = Path(self.folder)
        return Service(
            store,
            open_logs(store, folder, self.blob_store),
            folder / "uploads",
            folder.parent / "log",
            open_webhook_key(folder.parent / "webhook.key"),
            open_report_key(folder.parent / "report.key"),
            None if self.issuer is None else Issuer(*self.issuer),
            checker=OpeningChecker.of_model(Path(self.model)),
            log_key=self.log_key,
        )


@contextmanager
def kept_answering(
    told: Answering, listener: socket.socket, count: int, environment: dict[str, str]
) -> Iterator[None]:
    """Have so many processes answer on a listening socket for as long as the block lasts."""
    with ExitStack() as stack:
        # Beside nothing else of ours: a backup of the folder of blobs needs no counts.
        shared = stack.enter_context(tempfile.TemporaryDirectory(prefix="auditor-metrics-"))
        command = [sys.executable, "-c", _ANSWER, str(listener.fileno()), json.dumps(asdict(told))]
        for _ in range(count):
            stack.enter_context(
                kept_running(
                    command,
                    environment | {SHARED_VARIABLE: shared},
                    called="a process that answers",
                    pass_fds=(listener.fileno(),),
                )
            )
        yield


def main() -> None:
    """Answer, in a process of its own, until SIGTERM or until standard input ends."""
    number, text = sys.argv[1:]
    values = json.loads(text)
    told = Answering(**values | {"issuer": values["issuer"] and tuple(values["issuer"])})
    log_to_standard_error(told.log_format)
    tracing.start("serve")

    def end_with_parent() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, name="parent", daemon=True).start()
    answer_quickly()
    with socket.socket(fileno=int(number)) as listener, Store.open() as store:
        serve(create_application(told.service(store)), listener)
    tracing.stop()
