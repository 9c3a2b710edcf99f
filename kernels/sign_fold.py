"""Rows folded to `FOLD` columns: signs that all features share are applied, and blocks are added up.

Where rows are wide, the features' signs differ only within a block (`sign_projection.py`), so a projection is
one pass over the row and a small product. Numba makes vector code of it; bfloat16 is read by its bits,
without a float32 copy. On the CPU only.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
import torch

FOLD = 256
"""Columns in a block; narrower rows are not folded."""


@numba.njit(cache=True, nogil=True)
def _fold_bits(rows, signs, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    width = rows.shape[1]
    for r in range(len(rows)):
        total = out[r]
        for start in range(0, width, FOLD):
            count = min(FOLD, width - start)
            x, sign = rows[r, start : start + count], signs[start : start + count]
            for j in range(count):
                total[j] += np.uint32(np.uint32(x[j] ^ sign[j]) << np.uint32(16)).view(np.float32)


@numba.njit(cache=True, nogil=True)
def _fold_floats(rows, signs, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    width = rows.shape[1]
    for r in range(len(rows)):
        total = out[r]
        for start in range(0, width, FOLD):
            count = min(FOLD, width - start)
            x, sign = rows[r, start : start + count], signs[start : start + count]
            for j in range(count):
                total[j] += np.uint32(x[j] ^ (np.uint32(sign[j]) << np.uint32(16))).view(np.float32)


def fold(hidden: torch.Tensor, signs: npt.NDArray[np.uint16]) -> torch.Tensor:
    """Columns `j`, `j + FOLD`, ... added up with their signs in float32, in that order: [n, FOLD].

    Args:
        hidden: [n, d] on the CPU, of any float dtype.
        signs: uint16 [d], 0x8000 for minus, 0 for plus.
    """
    out = torch.zeros(len(hidden), FOLD)
    rows = hidden.detach().contiguous()
    if rows.dtype == torch.bfloat16:
        _fold_bits(rows.view(torch.int16).numpy().view(np.uint16), signs, out.numpy())
    else:
        _fold_floats(rows.float().view(torch.int32).numpy().view(np.uint32), signs, out.numpy())
    return out
