"""What stands between a layer's matrix products, row by row: norm, gate, rotation, float32, in one pass each.

Step by step in torch they are a dozen passes over memory, a fifth of the time of a small model's layers.
Every value depends on its own row and column alone, never on how many rows there are. All backends have one
signature; `backend=` chooses.

Numba notices a change of the file that holds a cached function, not of what that function calls: after an
edit here remove `kernels/__pycache__`.
"""

from __future__ import annotations

import math
from typing import Literal

import numba
import numpy as np
import numpy.typing as npt

from auditor.kernels.vector_loops import LEAST, RUN, exponential

Backend = Literal["reference", "compiled"]
F32 = npt.NDArray[np.float32]

_ONE = np.float32(1)
# A gate further down is held here: exp would leave float32, and x / exp(-x) is below 1e-35 already.
_MOST = np.float32(87.0)


def silu_gate(gate_up: F32, *, backend: Backend = "compiled") -> F32:
    """The product gate * sigmoid(gate) * up, float32 [R, W].

    Args:
        gate_up: float32 [R, 2 W], contiguous; the gate's half first.
    """
    width = gate_up.shape[1] // 2
    if backend == "compiled":
        out = np.empty((len(gate_up), width), np.float32)
        _silu_gate(gate_up, out)
        return out
    gate, up = gate_up[:, :width], gate_up[:, width:]
    with np.errstate(over="ignore"):
        return np.asarray(gate / (_ONE + np.exp(-gate)) * up)


def rms_norm(x: F32, weight: F32, eps: float, *, backend: Backend = "compiled") -> F32:
    """Each row as x / sqrt(mean(x^2) + eps) * weight over the last dimension, float32 [R, D].

    Args:
        x: float32 [R, D], contiguous. weight: float32 [D].
    """
    if backend == "compiled":
        out = np.empty_like(x)
        _rms_norm(x, weight, np.float64(eps), out)
        return out
    mean = np.square(x).mean(axis=1, keepdims=True)
    return np.asarray(x * (_ONE / np.sqrt(mean + np.float32(eps))) * weight)


def add_and_norm(
    x: F32, update: F32, weight: F32, eps: float, out: F32, *, backend: Backend = "compiled"
) -> None:
    """Add `update` to `x` and set `out` to the norm of the sum, as `rms_norm` has it; all of the rows of `x`.

    Args:
        x: float32 [R, D]. update, out: float32 [at least R, D]; all contiguous. weight: float32 [D].
    """
    if backend == "compiled":
        _add_and_norm(x, update, weight, np.float64(eps), out)
        return
    x += update[: len(x)]
    out[: len(x)] = rms_norm(x, weight, eps, backend="reference")


def rotate_heads(
    x: F32, cos: F32, sin: F32, *, heads: int, head_dim: int, backend: Backend = "compiled"
) -> None:
    """Rotate, in place, the leading 2 N dimensions of the first heads of each row, pairs (i, i + N).

    Args:
        x: float32 [R, at least heads * head_dim], contiguous.
        cos, sin: float32 [R, N].
    """
    if backend == "compiled":
        _rotate_heads(x, cos, sin, heads, head_dim)
        return
    half = cos.shape[1]
    turned = x[:, : heads * head_dim].reshape(len(x), heads, head_dim)
    first, second = turned[..., :half].copy(), turned[..., half : 2 * half].copy()
    turned[..., :half] = first * cos[:, None] - second * sin[:, None]
    turned[..., half : 2 * half] = second * cos[:, None] + first * sin[:, None]
    x[:, : heads * head_dim] = turned.reshape(len(x), -1)


# A check for a division by zero would keep it from being vectorised.
@numba.njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def _silu_gate_row(gate, up, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for i in range(len(out)):
        x = max(gate[i], -_MOST)
        out[i] = x / (_ONE + exponential(max(-x, LEAST))) * up[i]


@numba.njit(cache=True, nogil=True)
def _silu_gate(gate_up, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    width = out.shape[1]
    for r in range(len(out)):
        _silu_gate_row(gate_up[r, :width], gate_up[r, width:], out[r])


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _squares(x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    total = np.float32(0)
    for i in range(len(x)):
        total += x[i] * x[i]
    return np.float64(total)


@numba.njit(cache=True, nogil=True)
def _scaled(x, scale, weight, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for i in range(len(x)):
        out[i] = x[i] * scale * weight[i]


@numba.njit(cache=True, nogil=True)
def _rms_norm(x, weight, eps, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for r in range(len(x)):
        total = 0.0  # a run is short enough for float32, a row may not be
        for start in range(0, x.shape[1], RUN):
            total += _squares(x[r, start : start + RUN])
        _scaled(x[r], np.float32(1.0 / math.sqrt(total / x.shape[1] + eps)), weight, out[r])


@numba.njit(cache=True, nogil=True)
def _add_and_norm(x, update, weight, eps, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for r in range(len(x)):
        for i in range(x.shape[1]):
            x[r, i] += update[r, i]
    _rms_norm(x, weight, eps, out)


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _turn(first, second, cos, sin):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for i in range(len(cos)):
        a, b = first[i], second[i]
        first[i] = a * cos[i] - b * sin[i]
        second[i] = b * cos[i] + a * sin[i]


@numba.njit(cache=True, nogil=True)
def _rotate_heads(x, cos, sin, heads, head_dim):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    half = cos.shape[1]
    for r in range(len(x)):
        for h in range(heads):
            own = x[r, h * head_dim : h * head_dim + 2 * half]
            _turn(own[:half], own[half:], cos[r], sin[r])
