"""A witness: cosigns checkpoints that extend what it saw (C2SP tlog-witness), on files or over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from auditor.durable_files import locked
from auditor.errors import (
    AuditError,
    KeyUnknownError,
    LogForkError,
    OriginUnknownError,
    SignatureInvalidError,
    WitnessConflictError,
)
from auditor.merkle.checkpoints import sign_checkpoint
from auditor.merkle.keys import PublicKey, Signer
from auditor.merkle.witness import judge, parse_request
from auditor.transparency_log import Head, read_head, write_head

MAX_REQUEST_BYTES = 1_000_000
REQUEST_SECONDS = 30


class Witness:
    """Keeps the last head of each log it watches in a folder.

    Args:
        folder: one file a log.
        signers: the witness's keys.
        log_keys: keys of the logs it watches.
        clock: POSIX seconds.
    """

    def __init__(
        self,
        folder: Path,
        signers: Sequence[Signer],
        log_keys: Sequence[PublicKey],
        clock: Callable[[], float],
    ) -> None:
        self._folder = folder
        self._signers = tuple(signers)
        self._log_keys = tuple(log_keys)
        self._clock = clock

    def cosign(self, raw: bytes, where: str = "") -> bytes:
        """Answer one request: signature lines. The head is on disk before the first line is signed.

        Raises:
            AuditError: as `merkle.witness.parse_request` and `judge`.
        """
        request = parse_request(raw, where)
        head = request.checkpoint
        file = self._folder / f"{sha256(head.origin.encode()).hexdigest()}.head"
        with locked(self._folder / ".lock"):
            last = read_head(file)
            judge(request, None if last is None else (last.size, last.root), self._log_keys)
            write_head(file, Head(head.size, head.root))
        now = int(self._clock())
        return "".join(sign_checkpoint(head, signer, now).line() for signer in self._signers).encode()

    def answer(self, raw: bytes) -> tuple[HTTPStatus, str, bytes]:
        """HTTP status, content type and body for one `add-checkpoint` request."""
        plain = "text/plain; charset=utf-8"
        try:
            return HTTPStatus.OK, plain, self.cosign(raw)
        except WitnessConflictError as error:
            return HTTPStatus.CONFLICT, "text/x.tlog.size", f"{error.size}\n".encode()
        except AuditError as error:
            return _status(error, raw), plain, f"{error.code}: {error}\n".encode()


def _status(error: AuditError, raw: bytes) -> HTTPStatus:
    if isinstance(error, OriginUnknownError):
        return HTTPStatus.NOT_FOUND
    if isinstance(error, (KeyUnknownError, SignatureInvalidError)):
        return HTTPStatus.FORBIDDEN
    if isinstance(error, LogForkError):
        request = parse_request(raw)
        same = request.old_size == request.checkpoint.size
        return HTTPStatus.CONFLICT if same else HTTPStatus.UNPROCESSABLE_ENTITY
    return HTTPStatus.BAD_REQUEST


def witness_server(witness: Witness, host: str, port: int) -> ThreadingHTTPServer:
    """A server of `POST /add-checkpoint`, bound and not yet serving; put TLS in front of it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = REQUEST_SECONDS

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if self.path != "/add-checkpoint" or not length.isdecimal() or int(length) > MAX_REQUEST_BYTES:
                self._send(HTTPStatus.BAD_REQUEST, "text/plain; charset=utf-8", b"POST /add-checkpoint\n")
                self.close_connection = True
                return
            self._send(*witness.answer(self.rfile.read(int(length))))

        def _send(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing: standard output is for data."""

    return ThreadingHTTPServer((host, port), Handler)
