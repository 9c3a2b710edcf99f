"""A client of the service: typed answers, refusals as `ServiceRefusedError`, retries where they are safe.

A submission carries an Idempotency-Key of its own, so it may be sent again after a cut connection.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import httpx

from auditor.errors import AuditError, OptionError
from auditor.listening import is_loopback

if TYPE_CHECKING:
    from auditor.service.audits import AuditOptions
    from auditor.service.signatures import RequestSigner

URL_VARIABLE = "AUDITOR_URL"
KEY_VARIABLE = "AUDITOR_API_KEY"
DEFAULT_URL = "http://127.0.0.1:8321"
LAST_STATES = ("done", "dead", "quarantined", "cancelled")
_TRIES = 4
_SILENCE_SECONDS = 60.0


class ServiceRefusedError(AuditError):
    """The service's own refusal; `code` is the one it gave."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(
            str(problem.get("detail", "")),
            where=str(problem.get("where", "")),
            fix=str(problem.get("fix", "")),
        )
        self.code = str(problem.get("code", "internal"))


class ServiceUnreachableError(AuditError):
    """The service does not answer, or answers what no service of ours would."""

    code = "service-unreachable"


@dataclass(frozen=True, slots=True)
class RemoteAudit:
    """An audit as the service shows it; `value` is the whole answer."""

    id: str
    state: str
    verdict: str | None
    value: dict[str, Any]

    @property
    def ended(self) -> bool:
        """Whether it will not change any more."""
        return self.state in LAST_STATES


@dataclass(frozen=True, slots=True)
class RemoteEvent:
    """A line of progress."""

    number: int
    kind: str
    data: dict[str, Any]


class Client:
    """Calls of one service with one key.

    Args:
        url: where the service is; else `AUDITOR_URL`, else `http://127.0.0.1:8321`.
        key: an API key; else `AUDITOR_API_KEY`.
        signer: signs submissions, which need no API key then.

    Raises:
        OptionError: no key, or no address.
    """

    def __init__(
        self, url: str | None = None, key: str | None = None, *, signer: RequestSigner | None = None
    ) -> None:
        self._signer = signer
        where = url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
        secret = key or os.environ.get(KEY_VARIABLE, "")
        if not secret and signer is None:
            raise OptionError(
                "no API key", where="--key", fix=f"`audit serve` prints one; set {KEY_VARIABLE}"
            )
        try:
            base = httpx.URL(where)
            headers = {"Authorization": f"Bearer {secret}"} if secret else {}
            self._http = httpx.Client(
                base_url=base,
                headers=headers,
                timeout=httpx.Timeout(_SILENCE_SECONDS, connect=10.0),
                trust_env=not is_loopback(base.host),
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise OptionError(f"cannot be used: {error}", where="--url") from None
        self.url = where

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def submit(
        self, body: bytes, *, name: str, options: AuditOptions, provider: str | None = None
    ) -> RemoteAudit:
        """Hand in a log of at most 8 MiB, in any form that `audit verify` reads; ordered when this returns.

        Raises:
            ServiceRefusedError, ServiceUnreachableError: not ordered, as far as anybody knows.
        """
        given = {slot: getattr(options, slot) for slot in type(options).__slots__}
        given |= {"name": name, "provider": provider}
        query = {slot: value for slot, value in given.items() if value is not None}
        headers = {"Content-Type": "application/octet-stream", "Idempotency-Key": str(uuid.uuid4())}
        return _audit(self.call("POST", "/v1/audits", params=query, content=body, headers=headers))

    def keep(self, body: bytes, *, name: str) -> dict[str, Any]:
        """Hand in a log of at most 8 MiB for scheduled audits; kept when this returns.

        Raises:
            ServiceRefusedError, ServiceUnreachableError.
        """
        headers = {"Content-Type": "application/octet-stream"}
        return self.call("POST", "/v1/logs", params={"name": name}, content=body, headers=headers)

    def audit(self, audit_id: str) -> RemoteAudit:
        """Look at an audit.

        Raises:
            ServiceRefusedError, ServiceUnreachableError.
        """
        return _audit(self.call("GET", f"/v1/audits/{audit_id}"))

    def audits(self, limit: int = 50) -> list[RemoteAudit]:
        """The newest audits.

        Raises:
            ServiceRefusedError, ServiceUnreachableError.
        """
        page = self.call("GET", "/v1/audits", params={"limit": limit})
        return [_audit(item) for item in page["items"]]

    def cancel(self, audit_id: str) -> RemoteAudit:
        """Cancel an audit.

        Raises:
            ServiceRefusedError, ServiceUnreachableError.
        """
        return _audit(self.call("POST", f"/v1/audits/{audit_id}/cancel"))

    def erase(self, log_id: str) -> dict[str, Any]:
        """Erase a log's bytes; returns what is left of it.

        Raises:
            ServiceRefusedError, ServiceUnreachableError: see the class.
        """
        return self.call("DELETE", f"/v1/logs/{log_id}")

    def verdict(self, audit_id: str) -> dict[str, Any]:
        """`auditor.result/v1` without its traces.

        Raises:
            ServiceRefusedError, ServiceUnreachableError.
        """
        return self.call("GET", f"/v1/audits/{audit_id}/verdict")

    def evidence(self, audit_id: str) -> Iterator[dict[str, Any]]:
        """The audit's traces in order.

        Raises:
            ServiceRefusedError, ServiceUnreachableError.
        """
        after: int | None = -1
        while after is not None:
            query = {"after": after, "limit": 200}
            page = self.call("GET", f"/v1/audits/{audit_id}/evidence", params=query)
            yield from page["items"]
            after = page["next"]

    def follow(self, audit_id: str) -> Iterator[RemoteEvent]:
        """Progress until the audit ends; a cut connection goes on where it broke.

        Raises:
            ServiceRefusedError, ServiceUnreachableError.
        """
        seen, failures = 0, 0
        while True:
            try:
                for event in self._stream(audit_id, seen):
                    seen, failures = event.number, 0
                    yield event
                    if event.kind in LAST_STATES:
                        return
            except httpx.TransportError as error:
                failures += 1
                if failures > _TRIES:
                    raise self._unreachable(error) from None
                time.sleep(0.5 * 2**failures)

    def _stream(self, audit_id: str, seen: int) -> Iterator[RemoteEvent]:
        headers = {"Last-Event-ID": str(seen), "Accept": "text/event-stream"}
        with self._http.stream("GET", f"/v1/audits/{audit_id}/events", headers=headers) as response:
            if response.status_code != 200:
                response.read()
                self._read(response)
            fields: dict[str, str] = {}
            for line in response.iter_lines():
                name, _, value = line.partition(":")
                if line:
                    fields[name] = value.removeprefix(" ")
                elif "id" in fields:
                    yield RemoteEvent(int(fields["id"]), fields["event"], json.loads(fields["data"]))
                    fields = {}

    def make(self, path: str, value: dict[str, Any]) -> dict[str, Any]:
        """Have something made, once, whatever becomes of the connection.

        Raises:
            ServiceRefusedError, ServiceUnreachableError.
        """
        return self.call("POST", path, json=value, headers={"Idempotency-Key": str(uuid.uuid4())})

    def items(self, path: str) -> Iterator[dict[str, Any]]:
        """Everything that a listing has.

        Raises:
            ServiceRefusedError, ServiceUnreachableError.
        """
        query: dict[str, Any] = {"limit": 200}
        while True:
            page = self.call("GET", path, params=query)
            yield from page["items"]
            if page["next"] is None:
                return
            query["cursor"] = page["next"]

    def call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """One call; an answer without a body is an empty object.

        Raises:
            ServiceRefusedError, ServiceUnreachableError.
        """
        for attempt in range(_TRIES):
            try:
                return self._read(self._http.send(self._request(method, path, options)))
            except httpx.TransportError as error:
                if attempt == _TRIES - 1:
                    raise self._unreachable(error) from None
                time.sleep(0.2 * 2**attempt)
        raise AssertionError

    def _request(self, method: str, path: str, options: dict[str, Any]) -> httpx.Request:
        request = self._http.build_request(method, path, **options)
        if self._signer is not None and method == "POST" and path == "/v1/audits":
            request.headers.pop("Authorization", None)
            signed = self._signer.headers(method, str(request.url), request.headers, request.content)
            request.headers.update(signed)
        return request

    def _unreachable(self, error: Exception) -> ServiceUnreachableError:
        return ServiceUnreachableError(
            f"no answer: {error or type(error).__name__}", where=self.url, fix="is `audit serve` running?"
        )

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        if response.status_code == httpx.codes.NO_CONTENT:
            return {}
        try:
            value = response.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ServiceUnreachableError(
                f"status {response.status_code}, no service of ours", where=self.url
            )
        if not response.is_success:
            raise ServiceRefusedError(value)
        return value


def _audit(value: dict[str, Any]) -> RemoteAudit:
    return RemoteAudit(value["id"], value["state"], value["verdict"], value)
