"""Orthonormal random projections made of sign bits: the same matrix on every machine, to the bit.

The k x d matrix is `P = M S`. `S` holds signs from counter-keyed SplitMix64 words, so any block of any row
can be drawn alone and none need be kept. `M` is the k x k lower triangular inverse of the Cholesky factor of
`S S^T`, which makes the rows of P orthonormal (to about 1e-15). Every entry of `S S^T` is an integer, counted
from the bits; `M` comes from one IEEE double operation at a time in a stated order. No library's summation
order, no device and no fused multiply-add can move it (tests/vectors/sign_projection.json).

Rows wider than `FOLD` = 256 columns have signs of two factors: one that all features share, drawn for every
column, and one of each feature's own, which repeats every 256 columns. So a row is folded to 256 sums once,
for all features, and the product that is left is d / 256 times smaller. Both factors keep the length of any
difference in the mean; the relative variance of what k features see of it grows from 2/k to 2/k + 2/256.

The first rows of a larger k are the matrix of a smaller k. A row within 2**-20 of the span of those before
(which only happens where d is tiny) is drawn again. Source of the idea that signs project as well as normal
numbers: Achlioptas, "Database-friendly random projections", PODS 2001.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from auditor.kernels.sign_fold import FOLD, fold
from auditor.kernels.splitmix import F64, GOLDEN, U64, mix

if TYPE_CHECKING:
    import torch

Backend = Literal["reference", "torch", "triton"]

MOST_ROWS = 128
_TRIES = 64
_NEAR = 2.0**-20  # of a row's squared length d: closer to the span of the rows before, it is drawn again
_BLOCK_WORDS = 64  # columns are unpacked 4,096 at a time


@dataclass(frozen=True, slots=True, eq=False)
class SignBasis:
    """`P = mixer @ signs`.

    Attributes:
        width: d.
        row_keys: uint64 [k], the SplitMix64 key of each row's words.
        shared_key: uint64 [1], the key of the words that all rows share; [0] where rows are not folded.
        mixer: float64 [k, k], lower triangular.
    """

    width: int
    row_keys: U64
    shared_key: U64
    mixer: F64

    @property
    def rows(self) -> int:
        """K."""
        return len(self.row_keys)


def sign_words(row_keys: U64, shared_key: U64, first: int, count: int) -> U64:
    """Words `first` to `first + count` of each row, uint64 [k, count]; word c holds columns from 64 c on.

    Bit b of a word (least significant first) is the sign of its column b: 0 for +1, 1 for -1.
    """
    place = np.arange(first, first + count, dtype=np.uint64)
    if not len(shared_key):
        return _words(row_keys, place)
    return _words(row_keys, place % np.uint64(FOLD // 64)) ^ _words(shared_key, place)


def _words(keys: U64, place: U64) -> U64:
    with np.errstate(over="ignore"):
        return mix(keys[:, None] + (place[None, :] + np.uint64(1)) * GOLDEN)


def _row_keys(key: int, rows: npt.NDArray[np.int64], attempt: int) -> U64:
    place = (rows * _TRIES + attempt + 1).astype(np.uint64)
    with np.errstate(over="ignore"):
        return mix(np.uint64(key) + place * GOLDEN)


@lru_cache(maxsize=64)
def sign_basis(key: int, rows: int, width: int) -> SignBasis:
    """Draw the matrix of a 64-bit key.

    Raises:
        ValueError: not 1 <= rows <= min(128, width), or a key outside [0, 2**64).
    """
    if not 1 <= rows <= min(MOST_ROWS, width):
        raise ValueError(f"{rows} rows of width {width}; between 1 and min({MOST_ROWS}, width) are drawn")
    if not 0 <= key < 2**64:
        raise ValueError("the key has more than 64 bits")
    words = -(-width // 64)
    last = np.uint64((1 << (width - 64 * (words - 1))) - 1)
    shared = _row_keys(key, np.array([MOST_ROWS]), 0) if width > FOLD else np.zeros(0, np.uint64)

    def drawn_by(keys: U64) -> U64:
        drawn = sign_words(keys, shared, 0, words)
        drawn[:, -1] &= last
        return drawn

    # All rows at once: drawing one again is rare.
    keys = _row_keys(key, np.arange(rows), 0)
    drawn = drawn_by(keys)
    factor: list[list[float]] = []
    for row in range(rows):
        for attempt in range(_TRIES):
            if attempt:
                keys[row] = _row_keys(key, np.array([row]), attempt)[0]
                drawn[row] = drawn_by(keys[row : row + 1])[0]
            differing = np.bitwise_count(drawn[: row + 1] ^ drawn[row]).sum(axis=1, dtype=np.int64)
            new = _factor_row(factor, (width - 2 * differing).astype(np.float64).tolist(), width)
            if new is not None:
                factor.append(new)
                break
        else:
            raise ValueError(f"no {rows} independent rows of signs of width {width} were found")
    mixer = np.array(_inverse(factor), np.float64)
    for array in (keys, shared, mixer):
        array.setflags(write=False)
    return SignBasis(width, keys, shared, mixer)


def _factor_row(factor: list[list[float]], products: list[float], width: int) -> list[float] | None:
    """The next row of the Cholesky factor, None at a negligible pivot. Sums run in ascending order."""
    row: list[float] = []
    for j, above in enumerate(factor):
        total = products[j]
        for p in range(j):
            total -= row[p] * above[p]
        row.append(total / above[j])
    pivot = products[-1]
    for value in row:
        pivot -= value * value
    if pivot < width * _NEAR:
        return None
    return [*row, math.sqrt(pivot)]


def _inverse(factor: list[list[float]]) -> list[list[float]]:
    """Inverse of a lower triangular matrix; sums run in ascending order."""
    size = len(factor)
    inverse = [[0.0] * size for _ in range(size)]
    for i, row in enumerate(factor):
        inverse[i][i] = 1.0 / row[i]
        for j in range(i):
            total = 0.0
            for p in range(j, i):
                total += row[p] * inverse[p][j]
            inverse[i][j] = -total / row[i]
    return inverse


def signs(basis: SignBasis, first_word: int = 0, words: int | None = None) -> npt.NDArray[np.int8]:
    """Columns `64 first_word` on of S, int8 [k, columns], each +1 or -1."""
    count = -(-basis.width // 64) - first_word if words is None else words
    raw = sign_words(basis.row_keys, basis.shared_key, first_word, count).astype("<u8").view(np.uint8)
    bits = np.unpackbits(raw, axis=1, bitorder="little")[:, : basis.width - 64 * first_word]
    return np.asarray(1 - 2 * bits.astype(np.int8), dtype=np.int8)


def matrix(basis: SignBasis) -> F64:
    """P whole, float64 [k, d], for tests and small widths."""
    return np.asarray(basis.mixer @ signs(basis).astype(np.float64))


def project(
    hidden: npt.NDArray[np.float32] | torch.Tensor, basis: SignBasis, *, backend: Backend = "torch"
) -> F64:
    """Features `hidden @ P.T`, float64 [n, k].

    `reference` works in float64 and draws the signs 4,096 columns at a time, `torch` in float32 with P kept
    (on the CPU folded, where rows are wide), `triton` in float32 with the signs drawn inside the kernel. The
    matrix is exact; the product is rounded, so backends differ by float32's rounding.

    Args:
        hidden: [n, d], an array of float32 or a tensor of any float dtype.

    Raises:
        ValueError: another width than the basis has.
        ImportError: `triton` is asked for and not installed.
    """
    if hidden.shape[1] != basis.width:
        raise ValueError(f"rows of width {hidden.shape[1]} for a projection of width {basis.width}")
    if backend == "reference":
        return _project_reference(_as_array(hidden), basis)
    if backend == "torch":
        return np.asarray(project_torch(as_tensor(hidden), basis).cpu().numpy(), np.float64)
    from auditor.kernels.sign_projection_triton import project_rows  # noqa: PLC0415 - an optional package

    return np.asarray(project_rows(as_tensor(hidden), basis).cpu().numpy(), np.float64)


def _project_reference(hidden: npt.NDArray[np.float32], basis: SignBasis) -> F64:
    total = np.zeros((len(hidden), basis.rows))
    for first in range(0, -(-basis.width // 64), _BLOCK_WORDS):
        block = signs(basis, first, _BLOCK_WORDS).astype(np.float64)
        part = hidden[:, 64 * first : 64 * first + block.shape[1]].astype(np.float64)
        total += part @ block.T
    return np.asarray(total @ basis.mixer.T)


def project_torch(hidden: torch.Tensor, basis: SignBasis) -> torch.Tensor:
    """`project` as a float32 tensor [n, k] on the device of `hidden`."""
    if len(basis.shared_key) and hidden.device.type == "cpu":
        shared, own = _folded(basis)
        return fold(hidden, shared) @ own
    return hidden.float() @ _matrix_on(basis, str(hidden.device))


@lru_cache(maxsize=16)
def _folded(basis: SignBasis) -> tuple[npt.NDArray[np.uint16], torch.Tensor]:
    """The signs that all rows share, as `fold` wants them, and the matrix that is left, float32 [FOLD, k]."""
    import torch  # noqa: PLC0415 - the reference path needs only numpy

    nothing = np.zeros(0, np.uint64)
    common = signs(SignBasis(basis.width, basis.shared_key, nothing, basis.mixer))[0]
    own = signs(SignBasis(FOLD, basis.row_keys, nothing, basis.mixer)).astype(np.float64)
    left = torch.from_numpy((basis.mixer @ own).astype(np.float32).T.copy())
    return np.where(common < 0, 0x8000, 0).astype(np.uint16), left


@lru_cache(maxsize=16)
def _matrix_on(basis: SignBasis, device: str) -> torch.Tensor:
    """P transposed, float32 [d, k]."""
    import torch  # noqa: PLC0415 - the reference path needs only numpy

    return torch.from_numpy(matrix(basis).astype(np.float32).T.copy()).to(device)


def as_tensor(hidden: npt.NDArray[np.float32] | torch.Tensor) -> torch.Tensor:
    """Rows as a tensor; arrays are not copied."""
    import torch  # noqa: PLC0415 - the reference path needs only numpy

    return hidden if isinstance(hidden, torch.Tensor) else torch.from_numpy(hidden)


def _as_array(hidden: npt.NDArray[np.float32] | torch.Tensor) -> npt.NDArray[np.float32]:
    return hidden if isinstance(hidden, np.ndarray) else hidden.float().cpu().numpy()
