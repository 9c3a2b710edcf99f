"""TOPLOC proofs, made and verified without the package: the wire format of toploc 0.1.6.

A proof is the polynomial over the integers modulo 65,497 that takes, at the flat index of each of the k
largest activations of a chunk, the bits of its bfloat16 value. Bytes: the index modulus and the coefficients
in rising order, two bytes each, big-endian. Source: TOPLOC, arXiv 2501.16007, and the package's own code
(MIT), read for facts; golden vectors in tests/vectors/toploc_0_1_6.json come from that code.

One departure. Indices are reduced modulo the proof's index modulus before the polynomial is evaluated, as
they were when it was made. Release 0.1.6 forgets that: where two indices of a chunk agree modulo 65,497 the
modulus is smaller, and the package calls the honest proof of that chunk wrong throughout. Proof bytes are
the same.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from auditor.errors import FingerprintError, FingerprintLengthError, FingerprintValueError

if TYPE_CHECKING:
    import torch

I64 = npt.NDArray[np.int64]

FIELD = 65_497
MOST_POINTS = 4_096
NOTHING_TO_COMPARE = float(2**64)
"""Mantissa error where no exponent agreed, as the package writes it."""

_INFINITE = 0x7F80


@dataclass(frozen=True, slots=True)
class ToplocProof:
    """One proof: the modulus of indices, and coefficients int64 [k] in rising order."""

    modulus: int
    coefficients: I64

    def to_bytes(self) -> bytes:
        """`2 + 2 k` bytes."""
        return struct.pack(">H", self.modulus) + self.coefficients.astype(">u2").tobytes()

    @classmethod
    def from_bytes(cls, raw: bytes, *, where: str = "") -> ToplocProof:
        """Read a proof.

        Raises:
            FingerprintError: no points or too many, half a coefficient, one outside the field, or modulus 0,
                which is the null proof that the package writes when it failed.
        """
        count = len(raw) // 2 - 1
        if len(raw) % 2 or not 1 <= count <= MOST_POINTS:
            raise FingerprintError(f"a TOPLOC proof of {len(raw)} bytes", where=where)
        values = np.frombuffer(raw, ">u2").astype(np.int64)
        modulus, coefficients = int(values[0]), values[1:]
        if modulus == 0:
            raise FingerprintError("a null TOPLOC proof: its maker failed", where=where)
        if modulus > FIELD or bool((coefficients >= FIELD).any()):
            raise FingerprintError(f"a TOPLOC proof with a number above {FIELD}", where=where)
        return cls(modulus, coefficients)

    def to_base64(self) -> str:
        """The bytes in base64, the package's text form."""
        return base64.b64encode(self.to_bytes()).decode()

    @classmethod
    def from_base64(cls, text: str, *, where: str = "") -> ToplocProof:
        """Read the text form.

        Raises:
            FingerprintError: as `from_bytes`, or the text is not base64.
        """
        try:
            return cls.from_bytes(base64.b64decode(text, validate=True), where=where)
        except (binascii.Error, ValueError) as error:
            raise FingerprintError("a TOPLOC proof that is not base64", where=where) from error

    def values_at(self, indices: I64) -> I64:
        """The polynomial's values, int64 in [0, 65497), at flat indices."""
        x = indices % self.modulus
        total = np.zeros_like(x)
        for coefficient in self.coefficients[::-1].tolist():
            total = (total * x + coefficient) % FIELD
        return total


def interpolate(indices: I64, values: I64) -> ToplocProof:
    """The proof of k points: indices int64 [k], all different; values int64 [k], bits of bfloat16.

    Raises:
        FingerprintValueError: NaN or infinity, or indices that are not different.
        FingerprintError: no points, or more than 4,096.
    """
    if not 1 <= len(indices) <= MOST_POINTS:
        raise FingerprintError(f"{len(indices)} points; between 1 and {MOST_POINTS}")
    if bool(((values & _INFINITE) == _INFINITE).any()):
        raise FingerprintValueError("activations that are NaN or infinite")
    if len(np.unique(indices)) != len(indices) or bool((indices < 0).any()):
        raise FingerprintValueError("indices that are negative or not all different")
    modulus = _injective_modulus(indices)
    x = indices % modulus
    divided = _divided_differences(x, values % FIELD)
    coefficients = np.zeros(len(x), np.int64)
    factor = np.zeros(len(x) + 1, np.int64)  # (X - x0) (X - x1) ...
    factor[0] = 1
    for i in range(len(x)):
        coefficients = (coefficients + divided[i] * factor[:-1]) % FIELD
        shifted = np.concatenate([[0], factor[:-1]])
        factor = (shifted - x[i] * factor) % FIELD
    return ToplocProof(modulus, coefficients)


def _injective_modulus(indices: I64) -> int:
    """The largest modulus up to 65,497 under which the indices stay different."""
    for modulus in range(FIELD, 0, -1):
        if len(np.unique(indices % modulus)) == len(indices):
            return modulus
    raise FingerprintValueError("no modulus keeps the indices different")


@cache
def _inverses() -> I64:
    """Inverse of each element of the field (0 for 0), by Fermat."""
    base, result, exponent = np.arange(FIELD, dtype=np.int64), np.ones(FIELD, np.int64), FIELD - 2
    while exponent:
        if exponent & 1:
            result = result * base % FIELD
        base, exponent = base * base % FIELD, exponent >> 1
    return result


def _divided_differences(x: I64, y: I64) -> I64:
    divided, inverses = y.copy(), _inverses()
    for k in range(1, len(x)):
        divided[k:] = (divided[k:] - divided[k - 1 : -1]) * inverses[(x[k:] - x[:-k]) % FIELD] % FIELD
    return divided


@dataclass(frozen=True, slots=True)
class ToplocResult:
    """How a proof compares with the verifier's own activations; small is good.

    Attributes:
        exponent_mismatches: of the k largest activations, how many have another exponent in the proof.
        mantissa_error_mean, mantissa_error_median: over those with the same exponent, in units of the last
            bfloat16 bit; `NOTHING_TO_COMPARE` when there are none.
    """

    exponent_mismatches: int
    mantissa_error_mean: float
    mantissa_error_median: float


def _largest(chunk: torch.Tensor, points: int) -> tuple[I64, I64]:
    """Flat indices and bfloat16 bits of the largest activations, as `torch.topk` orders them."""
    import torch  # noqa: PLC0415 - reading proofs needs only numpy

    flat = chunk.reshape(-1)
    if points > len(flat):
        raise FingerprintLengthError(f"{points} points of a chunk of {len(flat)} activations")
    indices = flat.abs().topk(points).indices
    bits = flat[indices].to(torch.bfloat16).view(torch.int16).cpu().numpy()
    return indices.cpu().numpy(), bits.astype(np.int64) & 0xFFFF


def chunks(hidden: torch.Tensor, prefill_rows: int, decode_batch: int) -> Iterator[torch.Tensor]:
    """Cut a request's activations [rows, d] as TOPLOC does: the prefill, then `decode_batch` rows at a time.

    With `prefill_rows` 0 there is no prefill chunk.
    """
    if prefill_rows:
        yield hidden[:prefill_rows]
    for start in range(prefill_rows, len(hidden), decode_batch):
        yield hidden[start : start + decode_batch]


def make_proofs(activations: Sequence[torch.Tensor], points: int = 128) -> list[ToplocProof]:
    """One proof of the largest `points` activations of each chunk (bfloat16, or rounded to it).

    Raises:
        FingerprintLengthError: a chunk with fewer activations than points.
        FingerprintValueError: NaN or infinity.
    """
    return [interpolate(*_largest(chunk, points)) for chunk in activations]


def verify_proofs(activations: Sequence[torch.Tensor], proofs: Sequence[ToplocProof]) -> list[ToplocResult]:
    """Compare each proof with the verifier's own activations of its chunk.

    Raises:
        FingerprintLengthError: another number of proofs than of chunks, or a chunk too small for its proof.
    """
    if len(activations) != len(proofs):
        raise FingerprintLengthError(f"{len(proofs)} TOPLOC proofs for {len(activations)} chunks")
    results = []
    for chunk, proof in zip(activations, proofs, strict=True):
        indices, own = _largest(chunk, len(proof.coefficients))
        given = proof.values_at(indices)
        same = (own & _INFINITE) == (given & _INFINITE)
        errors = np.abs((own & 0x7F) - (given & 0x7F))[same]
        mean = float(errors.mean()) if len(errors) else NOTHING_TO_COMPARE
        median = float(np.median(errors)) if len(errors) else NOTHING_TO_COMPARE
        results.append(ToplocResult(int((~same).sum()), mean, median))
    return results
