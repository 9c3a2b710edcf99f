"""Where a service keeps things: its database, and a folder of blobs beside it."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_data_dir

from auditor.errors import StoreError
from auditor.service.blobs import BlobFolder, Blobs
from auditor.service.s3_blobs import S3Blobs
from auditor.service.small_logs import SmallLogs
from auditor.store import Store
from auditor.store_engine import find_place

BLOB_STORE_VARIABLE = "AUDITOR_BLOB_STORE"
_NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "afs", "ceph", "lustre"}


def open_store(url: str | None) -> Store:
    """Open the database of a service; a SQLite file is moved to this program's schema first.

    Raises:
        StoreError: it cannot be used, a PostgreSQL schema is older than ours, or a SQLite file is on a
            network file system, where locks of several machines cannot be relied on.
    """
    place = find_place(url)
    if place.is_sqlite:
        _refuse_network(Path(str(place.url.database)))
        Store.upgrade(url)
    return Store.open(url)


def blob_folder(url: str | None, named: Path | None) -> Path:
    """The folder named, else one beside the SQLite file, else one in the user's data folder."""
    if named is not None:
        return named.absolute()
    place = find_place(url)
    if place.is_sqlite:
        return Path(str(place.url.database)).absolute().parent / "blobs"
    return Path(user_data_dir("auditor")) / "blobs"


def open_blobs(folder: Path, url: str | None) -> Blobs:
    """Blobs in a folder, or in storage with that folder for copies.

    Raises:
        OptionError: the URL is no place for blobs, or a package is missing.
    """
    named = url or os.environ.get(BLOB_STORE_VARIABLE)
    return BlobFolder(folder) if not named else S3Blobs(named, BlobFolder(folder))


def open_logs(store: Store, folder: Path, url: str | None) -> Blobs:
    """Every log of a service, whether it lies in the database or is a blob.

    Raises:
        OptionError: as `open_blobs`.
    """
    return SmallLogs(store, open_blobs(folder, url))


def file_system_of(path: Path, mounts: str) -> str:
    """Type of the file system that holds a path, given the text of `/proc/self/mounts`."""
    found, longest = "", -1
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split(" ")
        mount = Path(point.replace("\\040", " "))
        if (path == mount or mount in path.parents) and len(mount.parts) > longest:
            found, longest = kind, len(mount.parts)
    return found


def _refuse_network(file: Path) -> None:
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return  # no Linux: nothing to read it from
    kind = file_system_of(Path(os.path.realpath(file)), mounts)
    if kind in _NETWORK_FILE_SYSTEMS:
        raise StoreError(
            f"SQLite is for one machine, and this file is on {kind}",
            where=str(file),
            fix="use a local disk, or PostgreSQL",
        )
