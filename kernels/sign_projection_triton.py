# ruff: noqa: ANN001, N803 - kernels take pointers and compile-time constants, named as Triton does
"""`sign_projection` and `value_codes` on a GPU: one pass from hidden states to codes. Kernels, launchers.

A program owns a few rows. It walks their width a word (64 columns) at a time, draws that word's signs in
registers, multiplies, mixes, and for int4 and int8 picks the scale byte and rounds: neither the matrix nor
the features are written, and what leaves the device is the codes.

Needs Triton. With TRITON_INTERPRET=1, set before Triton is first imported, it runs on the CPU, slowly.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from auditor.kernels.sign_fold import FOLD
from auditor.kernels.sign_projection import SignBasis
from auditor.kernels.splitmix_triton import token_words
from auditor.kernels.value_codes import SCALES, TOPS, Coded, CodeName

_ROWS = 16


@triton.jit  # type: ignore[untyped-decorator]
def _project(  # type: ignore[no-untyped-def]  # noqa: ANN202
    hidden,
    row_keys,
    shared_key,
    mixer,
    r,
    rows,
    f,
    WIDTH: tl.constexpr,
    FEATURES: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Features float32 [r, f]; columns beyond FEATURES are zero."""
    keys = tl.load(row_keys + f, mask=f < FEATURES, other=0).to(tl.uint64, bitcast=True)
    bit = tl.arange(0, 64)
    y = tl.zeros((r.shape[0], f.shape[0]), tl.float32)
    for start in range(0, WIDTH, 64):
        column = start + bit
        inside = (r < rows)[:, None] & (column < WIDTH)[None, :]
        a = tl.load(hidden + r[:, None].to(tl.int64) * WIDTH + column[None, :], mask=inside, other=0.0)
        words = token_words(keys[None, :], bit[:, None] * 0 + start // 64 % WORDS)
        if WIDTH > WORDS * 64:
            shared = tl.load(shared_key + bit[:, None] * 0).to(tl.uint64, bitcast=True)
            words = words ^ token_words(shared, bit[:, None] * 0 + start // 64)
        negative = (words >> bit[:, None].to(tl.uint64)) & 1
        signs = 1.0 - 2.0 * negative.to(tl.int32).to(tl.float32)
        y = tl.dot(a.to(tl.float32), signs, y, input_precision="ieee")
    square = (f < FEATURES)[:, None] & (f < FEATURES)[None, :]
    mixing = tl.load(mixer + f[None, :] * FEATURES + f[:, None], mask=square, other=0.0)
    return tl.dot(y, mixing, input_precision="ieee")


@triton.jit  # type: ignore[untyped-decorator]
def _features(  # type: ignore[no-untyped-def]  # noqa: ANN202
    hidden,
    row_keys,
    shared_key,
    mixer,
    out,
    rows,
    WIDTH: tl.constexpr,
    FEATURES: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED: tl.constexpr,
    WORDS: tl.constexpr,
):
    r, f = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    y = _project(hidden, row_keys, shared_key, mixer, r, rows, f, WIDTH, FEATURES, WORDS)
    tl.store(out + r[:, None] * FEATURES + f[None, :], y, mask=(r < rows)[:, None] & (f < FEATURES)[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _codes(  # type: ignore[no-untyped-def]  # noqa: ANN202
    hidden,
    row_keys,
    shared_key,
    mixer,
    scales,
    places,
    levels,
    largest,
    rows,
    TOP: tl.constexpr,
    WIDTH: tl.constexpr,
    FEATURES: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED: tl.constexpr,
    WORDS: tl.constexpr,
):
    r, f = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    y = _project(hidden, row_keys, shared_key, mixer, r, rows, f, WIDTH, FEATURES, WORDS)
    top = tl.max(tl.abs(y), axis=1)
    # A NaN loses every comparison: what is not finite is reported as infinite.
    finite = tl.sum(tl.where(tl.abs(y) < float("inf"), 0, 1), axis=1) == 0
    table = tl.load(scales + tl.arange(0, 256))
    place = tl.sum((table[None, :] * TOP < top[:, None]).to(tl.int32), axis=1)
    scale = tl.load(scales + tl.minimum(place, 255))
    x = tl.math.div_rn(y, tl.zeros(y.shape, tl.float32) + scale[:, None])
    whole = tl.floor(x + 0.5)
    tie = (whole - x == 0.5) & (tl.floor(whole * 0.5) * 2.0 != whole)
    whole = tl.minimum(tl.maximum(tl.where(tie, whole - 1.0, whole), -TOP), TOP)
    tl.store(largest + r, tl.where(finite & (place < 256), 0, 1), mask=r < rows)
    tl.store(places + r, place.to(tl.uint8), mask=r < rows)
    inside = (r < rows)[:, None] & (f < FEATURES)[None, :]
    tl.store(levels + r[:, None] * FEATURES + f[None, :], whole.to(tl.int8), mask=inside)


def _arguments(hidden: torch.Tensor, basis: SignBasis) -> tuple[tuple[torch.Tensor, ...], dict[str, int]]:
    keys = torch.from_numpy(np.array(basis.row_keys).view(np.int64)).to(hidden.device)
    # A pointer to nothing is not one: rows that are not folded get a key that is never read.
    common = np.append(basis.shared_key, np.uint64(0))[:1]
    shared = torch.from_numpy(common.view(np.int64)).to(hidden.device)
    mixer = torch.from_numpy(basis.mixer.astype(np.float32)).to(hidden.device)
    padded = max(16, triton.next_power_of_2(basis.rows))
    constants = {"WIDTH": basis.width, "FEATURES": basis.rows, "ROWS": _ROWS, "PADDED": padded}
    # Words after which a row's own signs repeat; those of narrow rows never do.
    return (hidden.contiguous(), keys, shared, mixer), {**constants, "WORDS": FOLD // 64}


def project_rows(hidden: torch.Tensor, basis: SignBasis) -> torch.Tensor:
    """Features float32 [n, k] of rows [n, d] of any float dtype, on their device."""
    out = torch.empty((len(hidden), basis.rows), dtype=torch.float32, device=hidden.device)
    tensors, constants = _arguments(hidden, basis)
    if len(hidden):
        _features[(triton.cdiv(len(hidden), _ROWS),)](*tensors, out, len(hidden), **constants)
    return out


def code_rows(hidden: torch.Tensor, basis: SignBasis, code: CodeName) -> Coded:
    """int4 or int8 codes of rows [n, d], projected and coded in one kernel.

    Raises:
        ValueError: as `value_codes.quantize`.
    """
    n, device = len(hidden), hidden.device
    places = torch.empty(n, dtype=torch.uint8, device=device)
    levels = torch.empty((n, basis.rows), dtype=torch.int8, device=device)
    bad = torch.zeros(n, dtype=torch.int32, device=device)
    tensors, constants = _arguments(hidden, basis)
    scales = torch.from_numpy(SCALES.astype(np.float32)).to(device)
    if n:
        _codes[(triton.cdiv(n, _ROWS),)](
            *tensors, scales, places, levels, bad, n, TOP=TOPS[code], **constants
        )
    if bool(bad.any()):
        raise ValueError("features that are NaN, infinite or too large for a scale byte")
    return Coded(code, places.cpu().numpy(), levels.cpu().numpy())
