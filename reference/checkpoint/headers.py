"""The table of contents of one safetensors file, read without its data.

Invariants: no more than `MAX_HEADER_BYTES` are parsed; every byte of data belongs to exactly one tensor; a
name stands there once, so that two readers cannot disagree on what the file holds (the library takes the
last of two equal names).

Format: https://github.com/huggingface/safetensors (8 bytes little-endian length, a JSON object, the data).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch

from auditor.errors import ModelCorruptError, ModelUnsafeError, ModelUnsupportedError

# The library allows 100 MB; the largest checkpoints of 2026 need about 10 in one file.
MAX_HEADER_BYTES = 32 << 20
MAX_DIMENSIONS = 64
_METADATA = "__metadata__"

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored tensor.

    Attributes:
        begin: where its bytes begin in the file.
        state: the file's identity when its header was read (`file_state`).
    """

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    state: tuple[int, ...]


def file_state(file: BinaryIO) -> tuple[int, ...]:
    """What changes when an open file is written or another stands under its name."""
    status = os.fstat(file.fileno())
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def read_entries(path: Path) -> dict[str, Entry]:
    """Read what tensors the file holds, in the order in which their data lie.

    Raises:
        ModelUnsafeError: the content is a pickle or an archive of pickles, whatever its name.
        ModelUnsupportedError: a dtype that the reference cannot hold.
        ModelCorruptError: unreadable, or not a well-formed safetensors file.
    """
    try:
        with path.open("rb") as file:
            state = file_state(file)
            size = state[2]
            length = _header_length(file, size, path)
            header = json.loads(file.read(length).decode(), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        _corrupt(str(error), path, error)
    if not isinstance(header, dict):
        _corrupt("the header is not an object", path)
    _check_metadata(header.pop(_METADATA, {}), path)
    spans = {name: _span(name, value, path) for name, value in header.items()}
    expected = 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != expected:
            _corrupt(f"the data of {name} begin at byte {begin}, not at {expected}", path)
        expected = end
    if expected != size - 8 - length:
        _corrupt(f"{size - 8 - length} bytes of data, {expected} in the header", path)
    return {
        name: Entry(path, *_layout(name, header[name], end - begin, path), 8 + length + begin, state)
        for name, (begin, end) in spans.items()
    }


def _header_length(file: BinaryIO, size: int, path: Path) -> int:
    start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or start[8:] != b"{" or length > min(size - 8, MAX_HEADER_BYTES):
        if kind := _executable(file, size):
            raise ModelUnsafeError(
                f"{kind} under the name of a safetensors file, which can run code when it is opened",
                where=str(path),
                fix="convert the checkpoint to safetensors",
            )
        _corrupt(f"no header of at most {MAX_HEADER_BYTES >> 20} MiB", path)
    file.seek(8)
    return length


def _executable(file: BinaryIO, size: int) -> str | None:
    """What kind of file that runs code this is, judged by its bytes; None for none that we know."""
    file.seek(0)
    start = file.read(512)
    if start.startswith(b"PK\x03\x04"):
        return "a zip archive (a PyTorch checkpoint)"
    if start[257:262] == b"ustar":
        return "a tar archive (an old PyTorch checkpoint)"
    if len(start) > 1 and start[0] == 0x80 and start[1] <= 5:
        return "a pickle"
    file.seek(max(0, size - 1))
    if start[:1] in (b"(", b"c", b"]", b"}") and file.read(1) == b".":
        return "a pickle of protocol 0 or 1"
    return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, item in pairs:
        if name in value:
            raise ValueError(f"{name} is in the header twice")
        value[name] = item
    return value


def _check_metadata(value: Any, path: Path) -> None:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        _corrupt(f"{_METADATA} must map text to text", path)


def _span(name: str, value: Any, path: Path) -> tuple[int, int]:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        _corrupt(f"{name} needs dtype, shape and data_offsets", path)
    offsets = value["data_offsets"]
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _corrupt(f"data_offsets of {name} are not two rising byte numbers", path)
    return offsets[0], offsets[1]


def _layout(name: str, value: dict[str, Any], size: int, path: Path) -> tuple[torch.dtype, tuple[int, ...]]:
    dtype = DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        raise ModelUnsupportedError(
            f"tensor {name} has the dtype {str(value['dtype'])[:40]}",
            where=str(path),
            fix=f"supported: {', '.join(DTYPES)}",
        )
    if not _naturals(value["shape"]) or len(value["shape"]) > MAX_DIMENSIONS:
        _corrupt(f"shape of {name} is not a list of at most {MAX_DIMENSIONS} sizes", path)
    shape = tuple(value["shape"])
    if prod(shape) * dtype.itemsize != size:
        _corrupt(f"{name} is {list(shape)} of {value['dtype']} in {size} bytes", path)
    return dtype, shape


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _corrupt(message: str, path: Path, cause: BaseException | None = None) -> NoReturn:
    raise ModelCorruptError(
        f"not a readable safetensors file: {message}", where=str(path), fix="download it again"
    ) from cause
