"""Products of one row, or of eight, with a matrix held in bfloat16: float32 arithmetic, half of the bytes.

Few rows wait for memory. A float32 matrix that came out of a bfloat16 checkpoint loses nothing in bfloat16,
and is widened again in registers. Eight rows share what is read, two outputs share the rows: sixteen sums,
which fit beside their operands where there are 32 vector registers. Where there are 16 (x86 before AVX-512)
four rows share what is read, and all is read twice: 2.2 times as quick there. Both backends have one
signature; `backend=` chooses.

Numba notices a change of the file that holds a cached function, not of what that function calls: after an
edit here remove `kernels/__pycache__`.
"""

from __future__ import annotations

from typing import Literal

import numba
import numpy as np
import numpy.typing as npt
import torch

Backend = Literal["reference", "compiled"]
F32 = npt.NDArray[np.float32]
U16 = npt.NDArray[np.uint16]

ROWS = (1, 8)
"""How many rows there may be."""

FEW_REGISTERS = torch.backends.cpu.get_cpu_capability() == "AVX2"
"""Whether this processor has 16 vector registers only."""


def narrow_product(x: F32, weight: U16, out: F32, *, backend: Backend = "compiled") -> None:
    """Set `out` to x @ weight.T.

    Args:
        x: float32 [1 or 8, inputs], contiguous.
        weight: the bits of bfloat16 numbers, uint16 [outputs, inputs], contiguous.
        out: float32 [as many rows, outputs].
    """
    if backend == "reference":
        out[:] = x @ (weight.astype(np.uint32) << 16).view(np.float32).T
    elif len(x) == 1:
        _one_row(x[0], weight, out[0])
    elif FEW_REGISTERS:
        _four_rows_twice(x, weight, out)
    else:
        _eight_rows(x, weight, out)


@numba.njit(cache=True, nogil=True, inline="always")
def _wide(bits):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _single(x, w):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    total = np.float32(0)
    for i in range(len(w)):
        total += x[i] * _wide(w[i])
    return total


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _eight_outputs(x, weight, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    w0, w1, w2, w3 = weight[0], weight[1], weight[2], weight[3]
    w4, w5, w6, w7 = weight[4], weight[5], weight[6], weight[7]
    a, b, c, d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    e, f, g, h = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for i in range(len(w0)):
        a += x[i] * _wide(w0[i])
        b += x[i] * _wide(w1[i])
        c += x[i] * _wide(w2[i])
        d += x[i] * _wide(w3[i])
        e += x[i] * _wide(w4[i])
        f += x[i] * _wide(w5[i])
        g += x[i] * _wide(w6[i])
        h += x[i] * _wide(w7[i])
    out[0], out[1], out[2], out[3], out[4], out[5], out[6], out[7] = a, b, c, d, e, f, g, h


@numba.njit(cache=True, nogil=True)
def _one_row(x, weight, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    whole = len(weight) // 8 * 8
    for o in range(0, whole, 8):
        _eight_outputs(x, weight[o : o + 8], out[o : o + 8])
    for o in range(whole, len(weight)):
        out[o] = _single(x, weight[o])


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _two_outputs(x, w, v, out, o):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    x0, x1, x2, x3, x4, x5, x6, x7 = x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]
    a0, a1, a2, a3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    a4, a5, a6, a7 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    b0, b1, b2, b3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    b4, b5, b6, b7 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for i in range(len(w)):
        first, second = _wide(w[i]), _wide(v[i])
        a0 += first * x0[i]
        a1 += first * x1[i]
        a2 += first * x2[i]
        a3 += first * x3[i]
        a4 += first * x4[i]
        a5 += first * x5[i]
        a6 += first * x6[i]
        a7 += first * x7[i]
        b0 += second * x0[i]
        b1 += second * x1[i]
        b2 += second * x2[i]
        b3 += second * x3[i]
        b4 += second * x4[i]
        b5 += second * x5[i]
        b6 += second * x6[i]
        b7 += second * x7[i]
    out[0, o], out[1, o], out[2, o], out[3, o] = a0, a1, a2, a3
    out[4, o], out[5, o], out[6, o], out[7, o] = a4, a5, a6, a7
    out[0, o + 1], out[1, o + 1], out[2, o + 1], out[3, o + 1] = b0, b1, b2, b3
    out[4, o + 1], out[5, o + 1], out[6, o + 1], out[7, o + 1] = b4, b5, b6, b7


@numba.njit(cache=True, nogil=True)
def _last_if_odd(x, weight, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    last = len(weight) - 1
    for row in range(8 if last % 2 == 0 else 0):
        out[row, last] = _single(x[row], weight[last])


@numba.njit(cache=True, nogil=True)
def _eight_rows(x, weight, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for o in range(0, len(weight) - 1, 2):
        _two_outputs(x, weight[o], weight[o + 1], out, o)
    _last_if_odd(x, weight, out)


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _two_outputs_of_four(x, w, v, out, o):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    x0, x1, x2, x3 = x[0], x[1], x[2], x[3]
    a0, a1, a2, a3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    b0, b1, b2, b3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for i in range(len(w)):
        first, second = _wide(w[i]), _wide(v[i])
        a0 += first * x0[i]
        a1 += first * x1[i]
        a2 += first * x2[i]
        a3 += first * x3[i]
        b0 += second * x0[i]
        b1 += second * x1[i]
        b2 += second * x2[i]
        b3 += second * x3[i]
    out[0, o], out[1, o], out[2, o], out[3, o] = a0, a1, a2, a3
    out[0, o + 1], out[1, o + 1], out[2, o + 1], out[3, o + 1] = b0, b1, b2, b3


@numba.njit(cache=True, nogil=True)
def _four_rows_twice(x, weight, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for o in range(0, len(weight) - 1, 2):
        for row in (0, 4):
            _two_outputs_of_four(x[row : row + 4], weight[o], weight[o + 1], out[row : row + 4], o)
    _last_if_odd(x, weight, out)
