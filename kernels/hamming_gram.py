"""Pairwise agreement of sequences, prompt by prompt: the Gram matrix of the Hamming kernel.

K(x, y) is the number of places at which two padded sequences agree. All backends have one signature;
`backend=` chooses. Counts are integers, so the backends agree to the bit.
"""

from __future__ import annotations

from typing import Literal

import numba
import numpy as np
import numpy.typing as npt

Backend = Literal["reference", "compiled"]


def hamming_gram(sequences: npt.NDArray[np.int32], *, backend: Backend = "compiled") -> npt.NDArray[np.int32]:
    """Agreements of every pair of rows, int32 [N, N], symmetric; the diagonal is L.

    Args:
        sequences: int32 [N, L], contiguous; padding is a value like any other.
    """
    if backend == "compiled":
        return np.asarray(_gram_compiled(np.ascontiguousarray(sequences)))
    return np.stack([(sequences == row).sum(axis=1, dtype=np.int32) for row in sequences])


@numba.njit(cache=True, nogil=True)
def _agreements(a, b):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    count = np.int32(0)
    for i in range(len(a)):
        count += np.int32(a[i] == b[i])
    return count


@numba.njit(cache=True, nogil=True)
def _gram_compiled(sequences):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    rows, length = sequences.shape
    gram = np.empty((rows, rows), np.int32)
    for i in range(rows):
        gram[i, i] = length
        for j in range(i):
            gram[i, j] = gram[j, i] = _agreements(sequences[i], sequences[j])
    return gram
