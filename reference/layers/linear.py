"""Matrix products whose rows do not depend on each other's company.

Invariant: a row's result has the same bits whatever rows come with it. MKL's strict mode, on Intel's
processors, keeps this as it stands (decision 0041). oneDNN's products were measured to keep it for every
number of rows from 2 on (float32 and bfloat16, one and two threads, torch 2.13), MKL's with AVX2 on AMD's
processors from 16 on, to which fewer are padded. For oneDNN, which compiles and keeps a kernel for every
number of rows it meets, they are padded to a multiple of 16. Which is the quickest depends on the processor
(decision 0005). bfloat16 by AMX has ten times the rate, and does not keep it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import llvmlite.binding as llvm
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from auditor.kernels.narrow_product import ROWS, U16, narrow_product
from auditor.reference.device import on_gpu

ROW_QUANTUM = 16
# Rows computed at a time: more gain nothing in the products, and hold more activations.
ROW_TILE = 512

_AVAILABLE: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
# What `torch.compile` calls for a linear layer on a CPU; there is no public name for it.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if _AVAILABLE else None
# Below AVX-512 oneDNN has no bfloat16 product at all. torch's own is slow there, and keeps the invariant.
ONEDNN_DTYPES = {torch.float32}
if _ONEDNN is not None and torch.ops.mkldnn._is_mkldnn_bf16_supported():  # noqa: SLF001
    ONEDNN_DTYPES.add(torch.bfloat16)
# oneDNN uses these instructions where they are, unless its environment holds it to older ones.
BFLOAT16_BY_AMX = (
    torch.bfloat16 in ONEDNN_DTYPES
    and llvm.get_host_cpu_features().get("amx-bf16", False)
    and "ONEDNN_MAX_CPU_ISA" not in os.environ
)
# What this process asks of MKL, unless its environment says otherwise: the same bits in any company.
MKL_SETTINGS = {"MKL_CBWR": "AUTO,STRICT"}
_MKL: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
_AMD = llvm.get_host_cpu_name().startswith("znver")


def _mkl_is_strict() -> bool:
    """Ask for MKL's strict mode, which it takes up at its first call, and see whether that is in force.

    In no other mode have a few rows the bits that they have among many (measured with AVX2 and AVX-512).
    """
    # MKL promises the mode on Intel's processors only. A variable that is set stays: somebody meant it.
    if not _MKL or _AMD:
        return False
    for name, value in MKL_SETTINGS.items():
        os.environ.setdefault(name, value)
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 640, generator=generator) for rows in (64, 256))
    whole = functional.linear(x, weight)
    few = (functional.linear(x[:rows], weight) for rows in range(1, ROW_QUANTUM))
    return all(torch.equal(part, whole[: len(part)]) for part in few)


MKL_IS_STRICT = _mkl_is_strict()
# Left to MKL, which torch's own product calls. Without the mode its AVX2 products keep the invariant on AMD's
# processors, and not on Intel's; with AVX-512 they are by far the slower on AMD's.
_MKL_ON_AMD = _MKL and _AMD and torch.backends.cpu.get_cpu_capability() == "AVX2"
MKL_DTYPES = {torch.float32} if MKL_IS_STRICT or _MKL_ON_AMD else set()

_reorder = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None) if _AVAILABLE else None


class Product(Protocol):
    """A matrix as a function of rows: dense, or quantized as the provider declares."""

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, inputs] -> [rows, outputs], in the dtype of `x`."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """`x @ weight.T + bias` in the weight's dtype, rounded to `x`'s; the weight is [outputs, inputs]."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, inputs] -> [rows, outputs]."""
        rows, wide = len(x), x.to(self.weight.dtype)
        if short := _missing_rows(wide):
            wide = functional.pad(wide, (0, 0, 0, short))
        return _product(wide, self.weight, self.bias)[:rows].to(x.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class PackedLinear:
    """`Linear` in float32 for few rows: copies of the weight in the order in which they are read.

    Up to eight rows are read in bfloat16, where that loses nothing (`kernels/narrow_product.py`); more have
    the bits of oneDNN's product of the plain weight, since its own order changes none.

    Attributes:
        narrow: the weight's bits in bfloat16, uint16 [outputs, inputs]; None where it has more of them.
    """

    weight: Tensor
    bias: Tensor | None
    narrow: U16 | None = None

    @classmethod
    def of(cls, product: Product, *, packed: bool) -> PackedLinear:
        """Prepare what `serves`; not `packed`, it reads the weight where it is."""
        assert isinstance(product, Linear), "only dense products are packed"
        weight = product.weight
        if not packed:
            return cls(weight, product.bias)
        half = weight.bfloat16()
        exact = torch.equal(half.float(), weight)
        narrow = half.view(torch.int16).numpy().view(np.uint16) if exact else None
        return cls(weight if _reorder is None else _reorder(weight, ROW_QUANTUM), product.bias, narrow)

    @staticmethod
    def serves(product: Product) -> bool:
        """Whether a product can be prepared."""
        return _ONEDNN is not None and isinstance(product, Linear) and product.weight.dtype == torch.float32

    @staticmethod
    def room(rows: int) -> int:
        """Rows to make room for: one alone, or eight by eight; oneDNN compiles for every number it meets."""
        return rows if rows == 1 else rows + -rows % max(ROWS)

    def __call__(self, x: Tensor) -> Tensor:
        """[`room` of rows, inputs], contiguous -> [the same, outputs]."""
        if self.narrow is not None and len(x) in ROWS:
            out = torch.empty(len(x), len(self.narrow))
            narrow_product(x.numpy(), self.narrow, out.numpy())
            return out if self.bias is None else out.add_(self.bias)
        assert _ONEDNN is not None, "what is served needs oneDNN"
        product: Tensor = _ONEDNN(x, self.weight, self.bias, "none", [], "")
        return product

    def padded(self, x: Tensor) -> Tensor:
        """[rows, inputs] -> [rows, outputs]."""
        rows = len(x)
        if rows != self.room(rows):
            x = functional.pad(x, (0, 0, 0, self.room(rows) - rows))
        return self(x.contiguous())[:rows]


@dataclass(frozen=True, slots=True, eq=False)
class Stacked:
    """Several products of the same rows, side by side."""

    parts: tuple[Product, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, inputs] -> [rows, sum of outputs]."""
        return torch.cat([part(x) for part in self.parts], dim=1)


def _missing_rows(x: Tensor) -> int:
    """Rows to add before a product."""
    if _by_mkl(x):
        return 0 if MKL_IS_STRICT else max(ROW_QUANTUM - len(x), 0)
    return -len(x) % ROW_QUANTUM


def _by_mkl(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in MKL_DTYPES


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    by_onednn = x.device.type == "cpu" and x.dtype in ONEDNN_DTYPES and not _by_mkl(x)
    if _ONEDNN is None or not by_onednn:
        return functional.linear(x, weight, bias)
    product: Tensor = _ONEDNN(x.contiguous(), weight, bias, "none", [], "")
    return product


def row_tiles(rows: int, device: torch.device) -> Iterator[slice]:
    """Cut 0..rows-1 into runs of at most `ROW_TILE` on a CPU; a GPU takes all at once."""
    return even_runs(rows, max(rows, 1) if on_gpu(device) else ROW_TILE)


def even_runs(rows: int, most: int) -> Iterator[slice]:
    """Cut 0..rows-1 into as few runs as will do, about equal, for short products are slow ones.

    Args:
        most: rows of a run, a multiple of `ROW_QUANTUM`, or at least `rows`.
    """
    runs = max(-(-rows // most), 1)
    size = -(-rows // (runs * ROW_QUANTUM)) * ROW_QUANTUM
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size or 1))
