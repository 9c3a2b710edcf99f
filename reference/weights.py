r"""Reading a checkpoint's tensors from safetensors files, and the digests that name what was read.

Invariants: nothing that can execute code is ever opened (no pickle, no Python files); every file read
lies directly in the model directory; every tensor comes from exactly one file.

Digests, all written `sha256:<hex>`:

- `weights_digest`: one `model.safetensors`: the SHA-256 of that file. Shards: the SHA-256 of the text made of
  one line `<file name> <hex SHA-256 of the file>\n` a shard, lines sorted. The index is left out: that each
  tensor lies in one shard only is checked, so the shards alone decide the weights.
- `tokenizer_digest`: the SHA-256 of `tokenizer.json`.
- `template_digest`: the SHA-256 of the chat template's text in UTF-8.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from auditor.errors import ModelCorruptError, ModelNotFoundError, ModelUnsafeError, ModelUnsupportedError
from auditor.reference.config import read_json_object
from auditor.reference.tokenizer import read_template

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load_weights(directory: Path | str) -> dict[str, Tensor]:
    """Read every tensor of the checkpoint under its HF name, in the stored dtype, on the CPU.

    Raises:
        ModelNotFoundError: no such directory, or no weights in it.
        ModelUnsafeError: the weights are there as pickles only.
        ModelUnsupportedError: a tensor that is not float32, bfloat16 or float16 (a quantized checkpoint).
        ModelCorruptError: unreadable or contradictory files, a shard outside the directory, or a tensor
            that is missing or doubled.

    """
    tensors: dict[str, Tensor] = {}
    for path, expected in _files(Path(directory)).items():
        for name, tensor in _read_file(path).items():
            if name in tensors or (expected is not None and name not in expected):
                raise ModelCorruptError(
                    f"tensor {name} is in this file against the index",
                    where=str(path),
                    fix="download it again",
                )
            tensors[name] = tensor
        if missing := sorted((expected or set()) - tensors.keys()):
            raise ModelCorruptError(
                f"tensor {missing[0]} is in the index but not in this file",
                where=str(path),
                fix="download the shard again",
            )
    return tensors


def weights_digest(directory: Path | str) -> str:
    """Compute the digest that names these weights; see the module's text for what is hashed.

    Raises:
        ModelNotFoundError, ModelUnsafeError, ModelCorruptError: as `load_weights`.

    """
    files = list(_files(Path(directory)))
    if [path.name for path in files] == [SINGLE_FILE]:
        return f"sha256:{_file_digest(files[0])}"
    lines = sorted(f"{path.name} {_file_digest(path)}\n" for path in files)
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def tokenizer_digest(directory: Path | str) -> str:
    """Compute the digest of `tokenizer.json`.

    Raises:
        ModelNotFoundError: no such file.

    """
    return f"sha256:{_file_digest(Path(directory) / 'tokenizer.json')}"


def template_digest(directory: Path | str) -> str | None:
    """Compute the digest of the chat template's text, None for a model without one.

    Raises:
        ModelCorruptError: a template that is not text.

    """
    template = read_template(Path(directory))
    return None if template is None else f"sha256:{hashlib.sha256(template.encode()).hexdigest()}"


def _files(directory: Path) -> dict[Path, set[str] | None]:
    """Each weights file with the names that the index puts there (None without an index)."""
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
        return _shards(index)
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


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelCorruptError(
            f"not a readable safetensors file: {error}", where=str(path), fix="download it again"
        ) from error
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ModelUnsupportedError(
                f"tensor {name} is {tensor.dtype}", where=str(path), fix="use the unquantized checkpoint"
            )
    return tensors


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelNotFoundError(f"unreadable: {error.strerror}", where=str(path)) from error
