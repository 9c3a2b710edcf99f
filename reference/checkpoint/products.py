"""Products of rounded activations with quantized weights: what an engine's W8A8 kernels compute, exactly.

Invariants:

- Sums of products of codes are exact: int8 in float32 while they stay below 2**24, then in float64, or in
  int32 by `torch._int_mm` where a probe finds that exact; float8 in float64, whose 53 bits hold any sum of
  2**17 products of e4m3. So a row's bits depend neither on the rows that come with it nor on how
  a matrix library orders its sums, and a block's sum is rounded once, to float32.
- What follows is float32: (sum * weight scale) * input scale, blocks added in order, then the bias, and one
  rounding to the dtype of the inputs.

Measured: int8 with dynamic scales equals vLLM 0.32's CPU kernels to the bit, but for inputs within one
float32 rounding of the middle between two codes: they multiply by 1 / (largest / 127), vLLM's GPU and AMX
kernels by 127 / largest, as here. (vLLM's builds for processors without bfloat16 instructions cut results
off instead of rounding them.)

Sources: vLLM 0.32, `csrc/quantization/w8a8`: `int8/scaled_quant.cu`, `fp8/common.cu`,
`fp8/per_token_group_quant.cu` and the epilogues of `scaled_mm`; DeepSeek-V3, arXiv 2412.19437, section 3.3.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from auditor.errors import ModelUnsupportedError
from auditor.reference.checkpoint.declared import Kind

FLOAT8 = torch.float8_e4m3fn
LARGEST_FLOAT8 = 448.0
# The least scale that vLLM gives a row, and the least largest entry it sees in a group of a row.
LEAST_FLOAT8_SCALE = 1.0 / (LARGEST_FLOAT8 * 512.0)
LEAST_GROUP_ENTRY = 1e-10
# So many products of two int8 codes, at most 2**14 each, sum to no more than 2**24.
EXACT_COLUMNS = 1024
# So many sum to less than 2**31; with one column alone, `torch._int_mm` 2.13 reads the wrong numbers.
INT32_COLUMNS = range(16, 1 << 16)


@dataclass(frozen=True, slots=True, eq=False)
class InputScheme:
    """How inputs become codes.

    Attributes:
        kind: int8 (-128 to 127) or float8 e4m3 (-448 to 448), halves to even.
        scale: the stored scale, float32 []; None for one of each row, from its largest entry.
        group: how many columns share a row's scale, 0 for all of them.
    """

    kind: Kind
    scale: Tensor | None = None
    group: int = 0

    def rounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [n, inputs] -> values of codes [n, inputs], scales [n or 1, groups]; both float32."""
        wide = x.to(torch.float32)
        if self.scale is not None:
            return self._codes(wide * (1.0 / self.scale)), self.scale.view(1, 1)
        size = self.group or wide.shape[1]
        parts = wide.reshape(len(wide), wide.shape[1] // size, size)
        largest = parts.abs().amax(dim=2)
        if self.kind == "int8":
            factors = (127.0 / largest).clamp_max(torch.finfo(torch.float32).max)  # rows of zeros stay zeros
            return self._codes((parts * factors[:, :, None]).flatten(1)), largest / 127.0
        if self.group:
            scales = largest.clamp_min(LEAST_GROUP_ENTRY) / LARGEST_FLOAT8
        else:
            scales = (largest / LARGEST_FLOAT8).clamp_min(LEAST_FLOAT8_SCALE)
        return self._codes((parts / scales[:, :, None]).flatten(1)), scales

    def _codes(self, scaled: Tensor) -> Tensor:
        if self.kind == "int8":
            return scaled.round().clamp(-128.0, 127.0)
        return scaled.clamp(-LARGEST_FLOAT8, LARGEST_FLOAT8).to(FLOAT8).to(torch.float32)


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedLinear:
    """`x @ weight.T + bias` in codes, for weights and inputs that are both quantized.

    Attributes:
        codes: [outputs, inputs] in int8 or float8 e4m3, or the same values wider (`widened`).
        weight_scale: float32 [outputs, blocks], a scale for each equal run of columns.
        bias: float32 [outputs].
        input_scheme: how inputs are rounded.
    """

    codes: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    input_scheme: InputScheme

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.codes.shape[0], self.codes.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        """[n, inputs] of any float dtype -> [n, outputs] in the dtype of `x`."""
        values, input_scale = self.input_scheme.rounded(x)
        width = self.codes.shape[1] // self.weight_scale.shape[1]
        total: Tensor | None = None
        for block, start in enumerate(range(0, self.codes.shape[1], width)):
            columns = slice(start, start + width)
            part = self._sums(values[:, columns], self.codes[:, columns])
            own = input_scale[:, block if input_scale.shape[1] > 1 else 0]
            part = part * self.weight_scale[:, block] * own[:, None]
            total = part if total is None else total.add_(part)
        assert total is not None
        return (total if self.bias is None else total.add_(self.bias)).to(x.dtype)

    def dequantized(self) -> Tensor:
        """The matrix that the codes stand for, float32 [outputs, inputs]."""
        rows, blocks = self.weight_scale.shape
        wide = self.codes.to(torch.float32).reshape(rows, blocks, -1)
        return (wide * self.weight_scale[:, :, None]).flatten(1)

    def widened(self) -> QuantizedLinear:
        """The same product, its codes held as they are multiplied: quicker, 4 or 8 bytes a weight."""
        if self.input_scheme.kind == "int8" and int8_products_are_exact():
            return self
        wide = torch.float32 if self.input_scheme.kind == "int8" else torch.float64
        return dataclasses.replace(self, codes=self.codes.to(wide))

    def _sums(self, values: Tensor, codes: Tensor) -> Tensor:
        if self.input_scheme.kind == "float8":
            return functional.linear(values.to(torch.float64), codes.to(torch.float64)).to(torch.float32)
        columns = codes.shape[1]
        on_cpu = codes.device.type == "cpu"  # where the probe ran
        if codes.dtype == torch.int8 and on_cpu and columns in INT32_COLUMNS and int8_products_are_exact():
            return torch._int_mm(values.to(torch.int8), codes.t()).to(torch.float32)  # noqa: SLF001  no other
        runs = [slice(start, start + EXACT_COLUMNS) for start in range(0, columns, EXACT_COLUMNS)]
        sums = [functional.linear(values[:, run], codes[:, run].to(torch.float32)) for run in runs]
        if len(sums) == 1:
            return sums[0]
        return torch.stack([part.to(torch.float64) for part in sums]).sum(dim=0).to(torch.float32)


def fused(parts: Sequence[QuantizedLinear]) -> QuantizedLinear:
    """Several products of the same rows as one; each output has the same bits either way.

    Raises:
        ModelUnsupportedError: the parts round their inputs differently.
    """
    first = parts[0]
    for part in parts[1:]:
        if _rounding(part) != _rounding(first) or part.weight_scale.shape[1] != first.weight_scale.shape[1]:
            raise ModelUnsupportedError("products that engines fuse round their inputs differently")
    bias = None
    if any(part.bias is not None for part in parts):
        bias = torch.cat([torch.zeros(len(part.codes)) if part.bias is None else part.bias for part in parts])
    scales = torch.cat([part.weight_scale for part in parts])
    return QuantizedLinear(torch.cat([part.codes for part in parts]), scales, bias, first.input_scheme)


def requantized(parts: Sequence[QuantizedLinear]) -> tuple[QuantizedLinear, ...]:
    """What vLLM makes of float8 matrices with one scale each when it fuses them (q, k, v; gate, up).

    It dequantizes each in float16, rounds it again by the largest of their scales, and rounds inputs by the
    largest of theirs (`requantize_with_max_scale` in `w8a8_utils.py`). Other products stay as they are.
    """
    if not all(_has_one_scale(part) for part in parts):
        return tuple(parts)
    scale = torch.stack([part.weight_scale[0, 0] for part in parts]).max()
    inputs = parts[0].input_scheme
    if inputs.scale is not None:
        scales = [part.input_scheme.scale for part in parts]
        inputs = dataclasses.replace(inputs, scale=torch.stack([s for s in scales if s is not None]).max())
    result = []
    for part in parts:
        halves = (part.codes.to(torch.float32) * part.weight_scale[0, 0]).to(torch.float16)
        scaled = (halves.to(torch.float32) * (1.0 / scale)).clamp(-LARGEST_FLOAT8, LARGEST_FLOAT8)
        codes = scaled.to(FLOAT8)
        result.append(QuantizedLinear(codes, scale.expand_as(part.weight_scale), part.bias, inputs))
    return tuple(result)


@functools.cache
def int8_products_are_exact() -> bool:
    """Whether `torch._int_mm` is there and exact on this processor.

    Without the instructions for it, libraries multiply pairs of codes into 16 bits, which saturate.
    """
    extremes = torch.tensor([127, -128, -127, 1], dtype=torch.int8)
    rows = torch.cat([extremes.repeat(20, 64), extremes[:, None].expand(-1, 256)])
    try:
        for part in (rows, rows[:, 1:240], rows[:, :16]):
            exact = functional.linear(part.to(torch.float64), part.to(torch.float64))
            for count in (1, len(rows)):
                found = torch._int_mm(part[:count], part.t())  # noqa: SLF001  no other way
                if not torch.equal(found.to(torch.float64), exact[:count]):
                    return False
    except (AttributeError, RuntimeError):
        return False
    return True


def _rounding(part: QuantizedLinear) -> tuple[Kind, int, float | None]:
    inputs = part.input_scheme
    return inputs.kind, inputs.group, None if inputs.scale is None else float(inputs.scale)


def _has_one_scale(part: QuantizedLinear) -> bool:
    return (
        part.codes.dtype == FLOAT8
        and part.weight_scale.shape[1] == 1
        and bool((part.weight_scale == part.weight_scale[0]).all())
    )
