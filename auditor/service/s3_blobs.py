"""Blobs in S3-compatible storage, under their digests: `PREFIX/sha256/ab/abcd...`.

boto3 speaks to AWS, MinIO, Ceph, Garage and the like. Credentials and region are found as boto3 finds them
(environment, files, instance role); another endpoint is `AWS_ENDPOINT_URL_S3` or the URL's `endpoint`.

A blob is sent with its SHA-256, which the storage checks before it answers, and what comes back is checked
again: a bucket that somebody else can write decides nothing. Readers that need a file (memory-mapped
Parquet, several passes) get a copy in a local folder, until `release`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import parse_qs, urlsplit

from auditor.errors import OptionError, StoreError
from auditor.service.blobs import CHUNK_BYTES, BlobFolder
from auditor.service.tracing import spanned

if TYPE_CHECKING:
    from types import ModuleType

_SCHEME = "s3"
_MISSING = {"404", "NoSuchKey", "NotFound"}
_MOST_OBJECT_BYTES = 5 << 30  # of one PUT, which is what carries a checksum of the whole


class S3Blobs:
    """Blobs of all tenants in one bucket. Use `open_blobs`.

    Args:
        url: `s3://BUCKET/PREFIX`, with `?endpoint=http://host:9000` for storage other than AWS.
        cache: folder for copies.

    Raises:
        OptionError: boto3 is not installed, or the URL is none of these.
    """

    def __init__(self, url: str, cache: BlobFolder) -> None:
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        if parts.scheme != _SCHEME or not parts.hostname or set(query) - {"endpoint"}:
            raise OptionError(
                f"{url!r} is no place for blobs", where="--blob-store", fix="say s3://BUCKET/PREFIX"
            )
        try:
            import boto3  # noqa: PLC0415
            import botocore.config  # noqa: PLC0415
            import botocore.exceptions  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise OptionError(
                f"S3 needs {error.name}", fix="pip install 'verifiable-inference-auditor[s3]'"
            ) from None
        self._bucket, self._prefix = parts.netloc, parts.path.strip("/")
        self._errors: ModuleType = botocore.exceptions
        config = botocore.config.Config(retries={"mode": "standard", "max_attempts": 5}, connect_timeout=10)
        endpoint = query.get("endpoint", [None])[0]
        self._client = boto3.client("s3", endpoint_url=endpoint, config=config)
        self._cache = cache

    def _key(self, digest: str) -> str:
        name = self._cache.path(digest).relative_to(self._cache.folder).as_posix()
        return f"{self._prefix}/{name}" if self._prefix else name

    def prepare(self) -> None:
        """Ask for the bucket, so that a wrong one is found before anything is promised.

        Raises:
            StoreError: it is not there, or closed to us.
        """
        with self._named("found"):
            self._client.head_bucket(Bucket=self._bucket)

    @spanned("blob put")
    def put(self, data: bytes) -> str:
        """Keep bytes; returns `sha256:...`.

        Raises:
            StoreError: the storage refused, or cannot be reached.
        """
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if not self.holds(digest):
            self._send(digest, io.BytesIO(data))
        return digest

    @spanned("blob put")
    def put_all(self, chunks: Iterable[bytes], *, expected: str) -> None:
        """Keep a stream whose digest is known, in bounded memory.

        Raises:
            StoreError: these are other bytes, there are more than 5 GiB, or the storage refused.
        """
        running = hashlib.sha256()
        self._cache.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._cache.folder) as spool:
            for chunk in chunks:
                running.update(chunk)
                spool.write(chunk)
            if f"sha256:{running.hexdigest()}" != expected:
                raise StoreError("these are other bytes", where=expected)
            if spool.tell() > _MOST_OBJECT_BYTES:
                raise StoreError(
                    "an object of S3 sent at once holds 5 GiB", where=expected, fix="split the log"
                )
            spool.seek(0)
            self._send(expected, spool)

    def _send(self, digest: str, body: Any) -> None:
        checksum = base64.b64encode(bytes.fromhex(digest.removeprefix("sha256:"))).decode()
        with self._named("kept"):
            self._client.put_object(
                Bucket=self._bucket, Key=self._key(digest), Body=body, ChecksumSHA256=checksum
            )

    def holds(self, digest: str) -> bool:
        """Whether the storage has it.

        Raises:
            StoreError: the storage cannot be asked.
        """
        with self._named("looked for"):
            try:
                self._client.head_object(Bucket=self._bucket, Key=self._key(digest))
            except self._errors.ClientError as error:
                if error.response.get("Error", {}).get("Code") in _MISSING:
                    return False
                raise
        return True

    @spanned("blob fetch")
    def path(self, digest: str) -> Path:
        """A copy in the local folder, its bytes checked.

        Raises:
            StoreError: it is not there, cannot be fetched, or is other bytes.
        """
        path = self._cache.path(digest)
        if not path.is_file():
            self._cache.put_all(self._chunks(digest), expected=digest)
        return path

    def open(self, digest: str) -> BinaryIO:
        """Read a blob.

        Raises:
            StoreError: as `path`.
        """
        self.path(digest)
        return self._cache.open(digest)

    def _chunks(self, digest: str) -> Iterator[bytes]:
        with self._named("fetched"):
            body = self._client.get_object(Bucket=self._bucket, Key=self._key(digest))["Body"]
            with body:
                yield from body.iter_chunks(CHUNK_BYTES)

    def release(self, digest: str) -> None:
        """Remove the local copy; nobody here needs it for now."""
        self._cache.remove(digest)

    @spanned("blob remove")
    def remove(self, digest: str) -> None:
        """Remove the blob and the local copy; again is the same as once.

        Raises:
            StoreError: the storage refused. Where the bucket keeps versions, those are its owner's to expire.
        """
        with self._named("removed"):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(digest))
        self._cache.remove(digest)

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        try:
            yield
        except (self._errors.ClientError, self._errors.BotoCoreError) as error:
            said = " ".join(str(error).split())[:200]
            raise StoreError(f"cannot be {what}: {said}", where=f"s3://{self._bucket}") from None
