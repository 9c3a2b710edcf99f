"""A checkpoint's tensors, in safetensors files, read one at a time.

Invariants: nothing that can execute code is ever opened (no pickle, whatever its name, and no Python file);
every file read lies directly in the model directory; every tensor comes from exactly one file. What a
tensor's name, shape and dtype are is known from the files' headers; its data are read when asked for, into
memory of their own, so a model larger than memory can be streamed. (`safe_open` maps whole files: copy on
write, which Linux refuses for a file larger than memory, and what it returns changes when the file does.)
A file that changes after its header was read is an error. Whether values are finite is the caller's to check.

Which files: `model.safetensors`, or the shards that `model.safetensors.index.json` lists; never both.
Sources: https://github.com/huggingface/safetensors; transformers 5.19, `modeling_utils.py` (index).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from auditor.errors import ModelCorruptError, ModelNotFoundError, ModelUnsafeError, ModelUnsupportedError
from auditor.reference.checkpoint.headers import Entry, file_state, read_entries
from auditor.reference.config import read_json_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The tensors of one directory; read-only, and safe to share between threads.

    Attributes:
        directory: where the files lie.
        files: the files that hold the weights, in the order of their names.
        quantization_config: that field of `config.json` as it stood when the checkpoint was opened, None
            without the field or the file; `declared.py` reads it.
    """

    directory: Path
    files: tuple[Path, ...]
    quantization_config: dict[str, Any] | None
    _entries: dict[str, Entry]

    @classmethod
    def open(cls, directory: Path | str) -> Checkpoint:
        """Read the index and the headers of the model directory; no data.

        Raises:
            ModelNotFoundError: no such directory, or no weights in it.
            ModelUnsafeError: weights that are pickles, by name or by content.
            ModelUnsupportedError: a tensor of a dtype that the reference cannot hold.
            ModelCorruptError: unreadable or contradictory files, a shard outside the directory, or a tensor
                that is missing or doubled.
        """
        directory = Path(directory)
        files = weight_files(directory)
        entries = {}
        for path, expected in files.items():
            for name, entry in read_entries(path).items():
                if name in entries or (expected is not None and name not in expected):
                    raise ModelCorruptError(
                        f"tensor {name} is in this file against the index",
                        where=str(path),
                        fix="download it again",
                    )
                entries[name] = entry
            if missing := sorted((expected or set()) - entries.keys()):
                raise ModelCorruptError(
                    f"tensor {missing[0]} is in the index but not in this file",
                    where=str(path),
                    fix="download the shard again",
                )
        return cls(directory, tuple(files), _quantization_config(directory), entries)

    @classmethod
    def of_file(cls, path: Path) -> Checkpoint:
        """Read the header of one safetensors file that is not a model's.

        Raises:
            ModelNotFoundError: no such file.
            ModelUnsafeError, ModelUnsupportedError, ModelCorruptError: as `open`.
        """
        if not path.is_file():
            raise ModelNotFoundError("no such file", where=str(path), fix="copy the weights")
        return cls(path.parent, (path,), None, read_entries(path))

    @property
    def names(self) -> frozenset[str]:
        """Every stored tensor's name."""
        return frozenset(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header.

        Raises:
            ModelCorruptError: no such tensor.
        """
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Stored dtype of a tensor, from the header.

        Raises:
            ModelCorruptError: no such tensor.
        """
        return self._entry(name).dtype

    def tensor(self, name: str) -> Tensor:
        """Read one tensor in its stored dtype, on the CPU.

        Raises:
            ModelCorruptError: no such tensor, or the file is not what it was when it was opened.
        """
        entry = self._entry(name)
        data = torch.empty(prod(entry.shape) * entry.dtype.itemsize, dtype=torch.uint8)
        try:
            with entry.path.open("rb") as file:
                file.seek(entry.begin)
                read = file.readinto(data.numpy().data)
                state = file_state(file)
        except OSError as error:
            raise ModelCorruptError(
                f"tensor {name} is not readable: {error}", where=str(entry.path), fix="download it again"
            ) from error
        if read != len(data) or state != entry.state:
            raise ModelCorruptError("the file changed after it was opened", where=str(entry.path))
        return data.view(entry.dtype).view(entry.shape)

    def where(self, name: str) -> str:
        """Name the file of a tensor, for an error."""
        return str(self._entry(name).path)

    def _entry(self, name: str) -> Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise ModelCorruptError(
                f"tensor {name} is missing", where=str(self.directory), fix="copy the whole checkpoint"
            )
        return entry


def load_weights(directory: Path | str) -> dict[str, Tensor]:
    """Read every tensor of an unquantized checkpoint under its HF name, in the stored dtype, on the CPU.

    Raises:
        ModelUnsupportedError: a tensor that is not float32, bfloat16 or float16 (a quantized checkpoint).
        ModelNotFoundError, ModelUnsafeError, ModelCorruptError: as `Checkpoint.open` and `tensor`.
    """
    checkpoint = Checkpoint.open(directory)
    for name in sorted(checkpoint.names):
        if checkpoint.dtype(name) not in DTYPES:
            raise ModelUnsupportedError(
                f"tensor {name} is {checkpoint.dtype(name)}",
                where=checkpoint.where(name),
                fix="use the unquantized checkpoint",
            )
    return {name: checkpoint.tensor(name) for name in checkpoint.names}


def weight_files(directory: Path) -> dict[Path, set[str] | None]:
    """Find each weights file, with the names that the index puts there (None without an index).

    Raises:
        ModelNotFoundError, ModelUnsafeError, ModelCorruptError: as `Checkpoint.open`, by names alone.
    """
    if not directory.is_dir():
        raise ModelNotFoundError(
            "no such model directory", where=str(directory), fix="give a local checkpoint directory"
        )
    single, index = directory / SINGLE_FILE, directory / INDEX_FILE
    if single.exists() and index.exists():
        # Engines differ in which of the two they read, so the directory does not name one set of weights.
        raise ModelCorruptError(
            f"both {SINGLE_FILE} and {INDEX_FILE} are present", where=str(directory), fix="remove one of them"
        )
    if index.exists():
        return dict(sorted(_shards(index).items()))
    if single.exists():
        return {single: None}
    if pickles := sorted(path.name for path in directory.iterdir() if path.suffix in PICKLE_SUFFIXES):
        raise ModelUnsafeError(
            f"{pickles[0]} is a pickle, which can run code when it is opened",
            where=str(directory),
            fix="convert the checkpoint to safetensors",
        )
    raise ModelNotFoundError(
        f"neither {SINGLE_FILE} nor {INDEX_FILE} is here", where=str(directory), fix="copy the weights"
    )


def _shards(index: Path) -> dict[Path, set[str] | None]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelCorruptError("weight_map must map tensors to files", where=str(index))
    shards: dict[Path, set[str] | None] = {}
    for name, shard in sorted(weight_map.items()):
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or "/" in shard or "\\" in shard:
            raise ModelCorruptError(
                f"shard {shard!r} of {name} is not the name of a safetensors file in this directory",
                where=str(index),
                fix="download the index again",
            )
        path = index.parent / shard
        if not path.is_file():
            raise ModelCorruptError(
                "shard listed in the index is missing", where=str(path), fix="download it"
            )
        names = shards.setdefault(path, set())
        assert names is not None
        names.add(name)
    return shards


def _quantization_config(directory: Path) -> dict[str, Any] | None:
    path = directory / "config.json"
    if not path.exists():
        return None
    raw = read_json_object(path)
    value = raw.get("quantization_config")
    if raw.get("compression_config") is not None:
        raise ModelUnsupportedError(
            "compression_config, an old spelling of quantization_config", where=str(path), fix="rename it"
        )
    if value is not None and not isinstance(value, dict):
        raise ModelCorruptError("quantization_config must be an object", where=str(path))
    return value
