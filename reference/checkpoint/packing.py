"""Integer codes out of the layouts that pack them into int32, and the matrix that they stand for.

Layouts, w bits a code, code k of a word in its bits w*k to w*k + w - 1:

- compressed-tensors `pack-quantized`: `[outputs, inputs * w / 32]`, a word runs along the inputs; codes are
  stored plus 2**(w-1). Zero points likewise, but along the outputs: `[outputs * w / 32, groups]`.
- GPTQ (AutoGPTQ, GPTQModel): transposed, `qweight` `[inputs * w / 32, outputs]` along the inputs, `qzeros`
  `[groups, outputs * w / 32]` along the outputs, `scales` `[groups, outputs]`.
- AWQ (AutoAWQ, GEMM): `qweight` `[inputs, outputs / 8]` and `qzeros` `[groups, outputs / 8]` along the
  outputs, where place k of a word holds output `AWQ_ORDER[k]` of its eight.

Sources: `compressors/pack_quantized/helpers.py` of compressed-tensors 0.17; `auto_gptq.py` and `auto_awq.py`
of vLLM 0.32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Which of its eight outputs each place of an AWQ word holds, from the low bits up.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """A matrix as integer codes with a scale for each row's group of columns.

    Attributes:
        codes: integers [outputs, inputs].
        scales: floats [outputs, groups], as stored.
        size: columns in a group; the last group may have fewer.
        zeros: integers [outputs, groups], None for none.
        order: int64 [inputs], the group of each column where they are not runs of `size`.
    """

    codes: Tensor
    scales: Tensor
    size: int
    zeros: Tensor | None = None
    order: Tensor | None = None

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """(code - zero) * scale, the scale rounded to `dtype` first and the product once: [outputs, inputs].

        So do vLLM's weight-only kernels and compressed-tensors (whose `dtype` is the scales' own).
        """
        wide = self.codes.to(torch.float32)
        scales = self.scales.to(dtype).to(torch.float32)
        zeros = None if self.zeros is None else self.zeros.to(torch.float32)
        if self.order is not None:
            wide -= 0.0 if zeros is None else zeros[:, self.order]
            return (wide * scales[:, self.order]).to(dtype)
        columns = wide.shape[1]
        wide = torch.nn.functional.pad(wide, (0, -columns % self.size)).view(len(wide), -1, self.size)
        if zeros is not None:
            wide -= zeros[:, :, None]
        return (wide * scales[:, :, None]).flatten(1)[:, :columns].to(dtype)


def unpacked(words: Tensor, bits: int, axis: int) -> Tensor:
    """Unsigned codes, int32, of int32 words along `axis` of [rows, columns]; it grows 32 / bits times."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    along = words.movedim(axis, -1)
    codes: Tensor = (along[:, :, None] >> shifts) & (2**bits - 1)
    return codes.reshape(len(along), -1).movedim(-1, axis)


def unpacked_awq(words: Tensor) -> Tensor:
    """Unsigned 4-bit codes, int32 [rows, 8 * columns], of AWQ's words [rows, columns]."""
    places = torch.tensor(AWQ_ORDER).argsort()  # in which place each output is
    return unpacked(words, 4, 1).reshape(len(words), -1, 8)[:, :, places].flatten(1)
