"""Bytes by their digest in a folder: `sha256/ab/abcd...`. Nothing a user names becomes part of a path.

A blob is whole and on disk before `put` returns, so what a committed row refers to is there.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from auditor.durable_files import flush_folder
from auditor.errors import StoreError
from auditor.service.tracing import spanned

if TYPE_CHECKING:
    from typing import BinaryIO

CHUNK_BYTES = 1 << 20
_DIGEST = re.compile(r"sha256:([0-9a-f]{2})([0-9a-f]{62})")


class Blobs(Protocol):
    """Where bytes lie by their digest: a folder, or S3-compatible storage (`s3_blobs.py`)."""

    def prepare(self) -> None:
        """Make ready, once, before the first blob."""

    def put(self, data: bytes) -> str:
        """Keep bytes; returns `sha256:...`. Durable when it returns."""

    def put_all(self, chunks: Iterable[bytes], *, expected: str) -> None:
        """Keep a stream whose digest is known, in bounded memory."""

    def holds(self, digest: str) -> bool:
        """Whether it is there."""

    def path(self, digest: str) -> Path:
        """A local file with its bytes, until `release`."""

    def open(self, digest: str) -> BinaryIO:
        """Read it."""

    def release(self, digest: str) -> None:
        """Say that the local file is not needed any more."""

    def remove(self, digest: str) -> None:
        """Remove it for good; again is the same as once."""


class BlobFolder:
    """Blobs of all tenants; who may read which is the database's business."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> None:
        """Make the folders, so that no blob has to wait for its own to be on disk.

        Raises:
            StoreError: they cannot be made.
        """
        try:
            for number in range(256):
                (self.folder / "sha256" / f"{number:02x}").mkdir(parents=True, exist_ok=True)
            flush_folder(self.folder / "sha256")
        except OSError as error:
            raise StoreError(f"cannot be made: {error.strerror}", where=str(self.folder)) from error

    def path(self, digest: str) -> Path:
        """Where a blob lies.

        Raises:
            StoreError: not a digest.
        """
        match = _DIGEST.fullmatch(digest)
        if match is None:
            raise StoreError("not the digest of a blob", where=digest[:80])
        return self.folder / "sha256" / match[1] / (match[1] + match[2])

    @spanned("blob put")
    def put(self, data: bytes) -> str:
        """Keep bytes; returns `sha256:...`.

        Raises:
            StoreError: the disk is full or gone.
        """
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        path = self.path(digest)
        try:
            # The size too: a crash of the machine may leave a name whose bytes were never written.
            if not path.is_file() or path.stat().st_size != len(data):
                self._write(path, [data], digest)
        except OSError as error:
            raise StoreError(f"cannot be kept: {error.strerror}", where=str(self.folder)) from error
        return digest

    @spanned("blob put")
    def put_all(self, chunks: Iterable[bytes], *, expected: str) -> None:
        """Keep a stream whose digest is known, in bounded memory.

        Raises:
            StoreError: the disk is full or gone, or these are other bytes.
        """
        path = self.path(expected)
        try:
            self._write(path, chunks, expected)
        except OSError as error:
            raise StoreError(f"cannot be kept: {error.strerror}", where=str(self.folder)) from error

    def _write(self, path: Path, chunks: Iterable[bytes], expected: str) -> None:
        fresh = not path.parent.is_dir()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Threads of one process may write one blob at once.
        partial = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
        running = hashlib.sha256()
        try:
            with partial.open("xb") as stream:
                for chunk in chunks:
                    running.update(chunk)
                    stream.write(chunk)
                stream.flush()
                os.fsync(stream.fileno())
            if f"sha256:{running.hexdigest()}" != expected:
                raise StoreError("these are other bytes", where=expected)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        flush_folder(path.parent)
        if fresh:
            flush_folder(path.parent.parent)

    def holds(self, digest: str) -> bool:
        """Whether it is there."""
        return self.path(digest).is_file()

    def release(self, digest: str) -> None:
        """Nothing: the file is the blob."""

    @spanned("blob remove")
    def remove(self, digest: str) -> None:
        """Remove a blob; again is the same as once.

        Raises:
            StoreError: the disk refused.
        """
        try:
            self.path(digest).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot be removed: {error.strerror}", where=digest) from error

    @spanned("blob open")
    def open(self, digest: str) -> BinaryIO:
        """Read a blob.

        Raises:
            StoreError: it is not there.
        """
        try:
            return self.path(digest).open("rb")
        except OSError as error:
            raise StoreError(f"a blob is missing: {error.strerror}", where=digest) from error
