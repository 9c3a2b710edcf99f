"""Evidence packs: a zip whose bytes are a function of its members, read without extracting anything. Pure.

Members are stored, not compressed (compressors differ between versions), in order of their names, with one
fixed time. A reader makes the archive again from what it read and compares: no byte of a pack is idle.

    report.json  report.html  policy.toml       the truth, the same for people, by which rules
    report.dsse.json  svr.dsse.json             the signed statements about it
    entry.json  report.tlog-proof               what the log holds, and the proof
    pack.dsse.json                              signed: the digest of every member
    report.tsr                                  a time stamp of report.dsse.json, where one was asked for
    keys.txt  VERIFY.md                         whose keys to ask for, and how to check
    disclosures/N-FIELD.json                    texts that open commitments; may be taken out
    disputes/AUDIT/...                          reproductions of convictions; may be taken out
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping

from auditor.reports.errors import PackAlteredError, PackSyntaxError

MAX_PACK_BYTES = 512 * 1024 * 1024
MAX_MEMBERS = 5_000
REQUIRED = (
    "VERIFY.md",
    "entry.json",
    "keys.txt",
    "pack.dsse.json",
    "policy.toml",
    "report.dsse.json",
    "report.html",
    "report.json",
    "report.tlog-proof",
    "svr.dsse.json",
)
TIME_STAMP = "report.tsr"
_REMOVABLE = re.compile(r"disclosures/[0-9]{1,6}-[a-z]{1,20}\.json|disputes/aud_[0-9a-f]{32}/[A-Za-z.]{1,40}")
_TIME = (1980, 1, 1, 0, 0, 0)


def removable(name: str) -> bool:
    """Whether a pack without this member is still one."""
    return _REMOVABLE.fullmatch(name) is not None


def write_pack(members: Mapping[str, bytes]) -> bytes:
    """The archive of these members."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, members[name])
    return stream.getvalue()


def read_pack(raw: bytes, where: str = "") -> dict[str, bytes]:
    """Every member by name.

    Raises:
        PackSyntaxError: no zip, too large, or a member that no pack has.
        PackAlteredError: bytes that the members do not account for.
    """
    if len(raw) > MAX_PACK_BYTES:
        raise PackSyntaxError(f"longer than {MAX_PACK_BYTES} bytes", where=where)
    members: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_MEMBERS:
                raise PackSyntaxError(f"more than {MAX_MEMBERS} members", where=where)
            # Members that share bytes could be far larger than the archive.
            if sum(entry.file_size for entry in entries) > len(raw):
                raise PackSyntaxError("its members are longer than it is", where=where)
            for entry in entries:
                _check(entry, members, where)
                members[entry.filename] = archive.read(entry)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise PackSyntaxError(f"no zip archive of ours: {error}", where=where) from None
    if write_pack(members) != raw:
        raise PackAlteredError("the archive has bytes that its members do not account for", where=where)
    return members


def _check(entry: zipfile.ZipInfo, members: Mapping[str, bytes], where: str) -> None:
    name = entry.filename
    if name in members:
        raise PackSyntaxError(f"the member {name[:60]!r} twice", where=where)
    if name not in (*REQUIRED, TIME_STAMP) and not removable(name):
        raise PackSyntaxError(f"a member {name[:60]!r}, which no pack has", where=where)
    # Stored members are as long as they take place: nothing can be inflated.
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise PackSyntaxError(f"the member {name} is compressed", where=where)
