r"""The digests that name what was read, all written `sha256:<hex>`.

- `weights_digest`: one `model.safetensors`: the SHA-256 of that file. Shards: the SHA-256 of the text made of
  one line `<file name> <hex SHA-256 of the file>\n` a shard, lines sorted. The index is left out: that each
  tensor lies in one shard only is checked, so the shards alone decide the weights.
- `adapter_digest`: likewise, of `adapter_config.json` and `adapter_model.safetensors`.
- `tokenizer_digest`: the SHA-256 of `tokenizer.json`.
- `template_digest`: the SHA-256 of the chat template's text in UTF-8.

Invariant: a digest is of the bytes now in the file. A remembered one (`digest_cache.py`) is used for the very
inode, size and times it was computed of only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from auditor.errors import ModelNotFoundError
from auditor.reference.checkpoint.digest_cache import DigestCache
from auditor.reference.tokenizer import read_template

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# More readers than this do not make a disk quicker.
MOST_THREADS = 8


def weights_digest(directory: Path | str, *, cache: DigestCache | None = None) -> str:
    """Compute the digest that names these weights; see the module's text for what is hashed.

    Shards are hashed in parallel. `cache` is the user's own unless another is given.

    Raises:
        ModelNotFoundError, ModelUnsafeError, ModelCorruptError: as `weight_files`.
    """
    # Here: a process that answers requests digests tokenizers, and is spared torch (200 MB).
    from auditor.reference.checkpoint.files import SINGLE_FILE, weight_files  # noqa: PLC0415

    files = list(weight_files(Path(directory)))
    digests = file_digests(files, cache=cache)
    if [path.name for path in files] == [SINGLE_FILE]:
        return f"sha256:{digests[0]}"
    lines = sorted(f"{path.name} {digest}\n" for path, digest in zip(files, digests, strict=True))
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def tokenizer_digest(directory: Path | str) -> str:
    """Compute the digest of `tokenizer.json`.

    Raises:
        ModelNotFoundError: no such file.
    """
    return f"sha256:{file_digests([Path(directory) / 'tokenizer.json'])[0]}"


def template_digest(directory: Path | str) -> str | None:
    """Compute the digest of the chat template's text, None for a model without one.

    Raises:
        ModelCorruptError: a template that is not text.
    """
    template = read_template(Path(directory))
    return None if template is None else f"sha256:{hashlib.sha256(template.encode()).hexdigest()}"


def adapter_digest(directory: Path | str) -> str:
    """Compute the digest that names a LoRA adapter: its tensors and the settings that scale them.

    Raises:
        ModelNotFoundError: `adapter_config.json` or `adapter_model.safetensors` is not there.
    """
    files = [Path(directory) / name for name in ADAPTER_FILES]
    digests = file_digests(files)
    lines = [f"{path.name} {digest}\n" for path, digest in zip(files, digests, strict=True)]
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def adapted_digest(model: str, adapter: str) -> str:
    """The digest that names a model served with an adapter, from the digests of the two."""
    text = f"model {model}\nadapter {adapter}\n"
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def file_digests(files: Sequence[Path], *, cache: DigestCache | None = None) -> list[str]:
    """Compute the hexadecimal SHA-256 of each file, in order.

    Raises:
        ModelNotFoundError: a file that cannot be read.
    """
    cache = DigestCache() if cache is None else cache
    known = cache.load()

    def digest(path: Path) -> str:
        try:
            with path.open("rb") as file:
                before = os.fstat(file.fileno())
                if (remembered := known.find(path, before)) is not None:
                    return remembered
                value = hashlib.file_digest(file, "sha256").hexdigest()
                known.add(path, before, os.fstat(file.fileno()), value)
        except OSError as error:
            raise ModelNotFoundError(f"unreadable: {error.strerror}", where=str(path)) from error
        return value

    threads = min(MOST_THREADS, os.cpu_count() or 1, len(files)) or 1
    with ThreadPoolExecutor(threads) as pool:
        digests = list(pool.map(digest, files))
    cache.save(known)
    return digests
