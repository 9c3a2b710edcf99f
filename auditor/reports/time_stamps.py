"""RFC 3161 time stamps: a third party's word that a report's signed statement was there at a time.

What is stamped is `report.dsse.json`, the envelope that names the report's digest; the token lies beside it
as `report.tsr` and is named by the pack's own statement. Without it times are the signer's and the
witnesses' word.

Asking checks what can be checked without trust: that the answer grants what was asked, of these bytes and
with this nonce. Verifying asks for roots that the reader got from the authority, not from the pack.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from auditor.errors import OptionError
from auditor.reports.errors import (
    TimeStampMismatchError,
    TimeStampMissingError,
    TimeStampRefusedError,
    TimeStampSyntaxError,
    TimeStampUntrustedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography.x509 import Certificate
    from rfc3161_client import TimeStampResponse

STAMPED = "report.dsse.json"
SKEW = timedelta(minutes=5)
"""By how much the authority's clock may lie behind the signer's."""

MAX_BYTES = 256 * 1024
_GRANTED = 0
_HASHES = {
    "2.16.840.1.101.3.4.2.1": hashlib.sha256,
    "2.16.840.1.101.3.4.2.2": hashlib.sha384,
    "2.16.840.1.101.3.4.2.3": hashlib.sha512,
}

Ask = Callable[[bytes], bytes]
"""Sends a query to an authority; `over_http` makes one."""


@contextmanager
def _library() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in {"rfc3161_client", "httpx"}:
            raise
        raise OptionError(
            f"time stamps need {error.name}", fix="pip install 'verifiable-inference-auditor[tsa]'"
        ) from None


def request_stamp(message: bytes, ask: Ask) -> bytes:
    """A time stamp of a message, as the authority sent it (DER).

    Raises:
        OptionError: the extra `tsa` is not installed.
        TimeStampSyntaxError, TimeStampRefusedError, TimeStampMismatchError: what came is no grant for this.
    """
    with _library():
        from rfc3161_client import TimestampRequestBuilder  # noqa: PLC0415

    query = TimestampRequestBuilder().data(message).build()
    raw = ask(query.as_bytes())
    answer = _granted(raw, "the authority's answer")
    _check_message(answer, message, "the authority's answer")
    if answer.tst_info.nonce != query.nonce:
        raise TimeStampMismatchError(
            "answers another query: its nonce is not ours", where="the authority's answer"
        )
    return raw


def over_http(url: str, *, seconds: float = 15.0) -> Ask:
    """Asks the authority at an http or https address.

    Raises:
        OptionError: no such address, or the extra `tsa` is not installed.
    """
    with _library():
        import httpx  # noqa: PLC0415

    if not url.startswith(("http://", "https://")):
        raise OptionError("is no http or https address", where="--timestamp")

    def ask(query: bytes) -> bytes:
        headers = {"Content-Type": "application/timestamp-query", "Accept": "application/timestamp-reply"}
        try:
            with httpx.stream("POST", url, content=query, headers=headers, timeout=seconds) as reply:
                if reply.status_code != httpx.codes.OK:
                    raise TimeStampRefusedError(f"answered with HTTP status {reply.status_code}", where=url)
                return _capped(reply.iter_bytes(), url)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise TimeStampRefusedError(
                f"could not be asked: {error}", where=url, fix="try again, or leave --timestamp out"
            ) from None

    return ask


def _capped(chunks: Iterator[bytes], where: str) -> bytes:
    found = b""
    for chunk in chunks:
        found += chunk
        if len(found) > MAX_BYTES:
            raise TimeStampRefusedError(f"answered with more than {MAX_BYTES} bytes", where=where)
    return found


def verify_stamp(
    raw: bytes | None, message: bytes, made: datetime, roots: Sequence[Certificate], where: str
) -> datetime:
    """When an authority that chains to a trusted root saw a message; UTC.

    Args:
        made: when the signer says it was made.
        roots: at least one, of the reader's own.

    Raises:
        OptionError: the extra `tsa` is not installed.
        TimeStampMissingError: there is no stamp. TimeStampSyntaxError: it is none.
        TimeStampRefusedError: the authority granted nothing.
        TimeStampMismatchError: it is of other bytes, or earlier than they were made.
        TimeStampUntrustedError: no root vouches for it, or its signature or certificate is wrong.
    """
    if raw is None:
        raise TimeStampMissingError("has no time stamp", where=where, fix="leave --tsa-ca out")
    with _library():
        from rfc3161_client import VerificationError, VerifierBuilder  # noqa: PLC0415

    answer = _granted(raw, where)
    _check_message(answer, message, where)
    builder = VerifierBuilder()
    for root in dict.fromkeys(roots):
        builder = builder.add_root_certificate(root)
    try:
        builder.build().verify_message(answer, message)
    except VerificationError as error:
        raise TimeStampUntrustedError(
            f"no trusted time-stamping authority signed it: {_reason(str(error))}", where=where
        ) from None
    stamped = answer.tst_info.gen_time.astimezone(UTC)
    if stamped + SKEW < made:
        raise TimeStampMismatchError(
            f"stamped {stamped.isoformat()}, before it says it was made, {made.isoformat()}", where=where
        )
    return stamped


def _reason(said: str) -> str:
    """OpenSSL's own words out of the library's."""
    found = re.search(r'data: "(?:Verify error: )?([^"]+)"', said) or re.search(r'reason: "([^"]+)"', said)
    return found[1] if found else said


def read_roots(raw: bytes, where: str) -> tuple[Certificate, ...]:
    """Certificates of a PEM file.

    Raises:
        OptionError: there are none.
    """
    from cryptography.x509 import load_pem_x509_certificates  # noqa: PLC0415

    try:
        return tuple(load_pem_x509_certificates(raw))
    except ValueError:
        raise OptionError("holds no certificates (PEM)", where=where) from None


def _granted(raw: bytes, where: str) -> TimeStampResponse:
    with _library():
        from rfc3161_client import decode_timestamp_response  # noqa: PLC0415

    try:
        answer = decode_timestamp_response(raw)
        status = answer.status
    except ValueError as error:
        raise TimeStampSyntaxError(f"no time-stamp response: {error}", where=where) from None
    if status != _GRANTED:
        said = "; ".join(str(text) for text in answer.status_string) or "no reason given"
        raise TimeStampRefusedError(f"the authority granted nothing: status {status}, {said}", where=where)
    return answer


def _check_message(answer: TimeStampResponse, message: bytes, where: str) -> None:
    try:
        imprint = answer.tst_info.message_imprint
    except ValueError as error:
        raise TimeStampSyntaxError(f"no time-stamp token: {error}", where=where) from None
    named = _HASHES.get(imprint.hash_algorithm.dotted_string)
    if named is None:
        raise TimeStampSyntaxError(
            f"a digest of an unknown kind, {imprint.hash_algorithm.dotted_string}", where=where
        )
    if named(message).digest() != imprint.message:
        raise TimeStampMismatchError(f"stamps other bytes than {STAMPED}", where=where)
