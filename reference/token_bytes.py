"""Every vocabulary entry as the bytes it stands for, and which entries can come next in a given text.

Two families of `tokenizer.json` spell bytes out: byte-level (GPT-2's table of 256 printable characters) and
SentencePiece's (a mark for the space, `<0xAB>` for bytes without a piece). Others lose bytes and are refused.
Added tokens that are special are symbols of their own, beside the 256 bytes; other added tokens are text.

What a SentencePiece decoder strips at the very beginning of a text is not stripped here: engines decode an
output behind its prompt.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from auditor.errors import ModelUnsupportedError

if TYPE_CHECKING:
    from auditor.reference.tokenizer import Tokenizer

Index = npt.NDArray[np.int64]

_SPACE_MARK = "\u2581"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, eq=False)
class TokenBytes:
    """A vocabulary.

    Attributes:
        spelled: by id, the bytes of an ordinary token; None for special tokens and for ids without an entry.
        special_ids: the symbols beside bytes, ascending.
    """

    spelled: tuple[bytes | None, ...]
    special_ids: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, size: int | None = None) -> TokenBytes:
        """Read a tokenizer's entries; `size` is the model's vocabulary where it is padded beyond them.

        Raises:
            ModelUnsupportedError: its decoder is of another family.
        """
        backend = tokenizer.backend
        decoder = json.loads(backend.to_str()).get("decoder")
        kinds = {part.get("type") for part in _parts(decoder)}
        if "ByteLevel" in kinds:
            spell = _byte_level
        elif "ByteFallback" in kinds:
            spell = _sentence_piece
        else:
            raise ModelUnsupportedError(
                f"tokens of a {sorted(map(str, kinds))} decoder do not spell bytes out",
                where=str(tokenizer.directory),
                fix="byte-level and byte-fallback tokenizers do",
            )
        added = backend.get_added_tokens_decoder()
        count = max(tokenizer.vocab_size, size or 0)
        spelled: list[bytes | None] = [None] * count
        for text, token_id in backend.get_vocab(with_added_tokens=True).items():
            if token_id in added:
                spelled[token_id] = None if added[token_id].special else text.encode()
            elif token_id < count:
                spelled[token_id] = spell(text)
        return cls(tuple(spelled), tuple(sorted(tokenizer.special_ids)))

    @property
    def size(self) -> int:
        """Ids, special ones and holes included."""
        return len(self.spelled)

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return max((len(b) for b in self.spelled if b), default=0)

    @cached_property
    def _by_bytes(self) -> Mapping[bytes, tuple[int, ...]]:
        found: dict[bytes, tuple[int, ...]] = {}
        for token_id, b in enumerate(self.spelled):
            if b:
                found[b] = (*found.get(b, ()), token_id)
        return found

    @cached_property
    def _sorted(self) -> list[tuple[bytes, int]]:
        return sorted((b, i) for i, b in enumerate(self.spelled) if b)

    def named(self, piece: bytes) -> tuple[int, ...]:
        """Ids that spell exactly `piece`."""
        return self._by_bytes.get(piece, ())

    @cached_property
    def _beginnings(self) -> frozenset[bytes]:
        return frozenset(b[:n] for b in self.spelled if b for n in range(1, len(b) + 1))

    def begins(self, piece: bytes) -> bool:
        """Whether some token's bytes begin with `piece`, which is not empty."""
        return piece in self._beginnings

    def matching(self, data: bytes, at: int) -> list[int]:
        """Ids whose bytes are those of `data` from `at` on, shortest first."""
        found: list[int] = []
        for end in range(at + 1, len(data) + 1):
            piece = data[at:end]
            if piece not in self._beginnings:
                break
            found.extend(self._by_bytes.get(piece, ()))
        return found

    def continuations(self, piece: bytes) -> tuple[Index, Index, Index]:
        """Ids that spell exactly `piece`, ids whose bytes go on behind it, and their next bytes."""
        if not piece:
            return self._first_bytes
        low = bisect_left(self._sorted, (piece, -1))
        beyond: list[tuple[int, int]] = []
        exact: list[int] = []
        for place in range(low, len(self._sorted)):
            spelled, token_id = self._sorted[place]
            if not spelled.startswith(piece):
                break
            if len(spelled) == len(piece):
                exact.append(token_id)
            else:
                beyond.append((token_id, spelled[len(piece)]))
        pairs = np.array(beyond, np.int64).reshape(-1, 2)
        return np.array(exact, np.int64), pairs[:, 0], pairs[:, 1]

    @cached_property
    def _first_bytes(self) -> tuple[Index, Index, Index]:
        pairs = np.array([(i, b[0]) for b, i in self._sorted], np.int64).reshape(-1, 2)
        return np.empty(0, np.int64), pairs[:, 0], pairs[:, 1]

    def join(self, ids: Sequence[int]) -> bytes:
        """The bytes of a sequence; special tokens and holes give none."""
        return b"".join(self.spelled[i] or b"" for i in ids)


def _parts(decoder: Any) -> list[Mapping[str, Any]]:
    if not isinstance(decoder, dict):
        return []
    return list(decoder.get("decoders") or [decoder])


def _characters_of_bytes() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 stands for itself, the other bytes for 256, 257, ... in order."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in shown}
    hidden = (b for b in range(256) if b not in set(shown))
    return table | {chr(256 + n): b for n, b in enumerate(hidden)}


_BYTE_OF = _characters_of_bytes()


def _byte_level(text: str) -> bytes | None:
    """None for a text that is no token of the table (an entry which is never produced)."""
    if any(c not in _BYTE_OF for c in text):
        return None
    return bytes(_BYTE_OF[c] for c in text)


def _sentence_piece(text: str) -> bytes | None:
    piece = _BYTE_PIECE.fullmatch(text)
    if piece is not None:
        return bytes([int(piece[1], 16)])
    return text.replace(_SPACE_MARK, " ").encode()
