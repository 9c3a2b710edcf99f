"""A quantized module's stored tensors: names, shapes and dtypes as its scheme calls for, and nothing else.

Invariant: what is handed out is complete and consistent: shapes fit each other, scales are finite and not
negative, codes are numbers, and no tensor of the module is left unread.

Sources: as `packing.py`; for `codes`, `compressors/naive_quantized/base.py` of compressed-tensors 0.17 and
`fp8.py` of vLLM 0.32 (DeepSeek-V3 calls its scales `weight_scale_inv`, but multiplies by them as well).
"""

from __future__ import annotations

from math import prod
from typing import NoReturn

import torch
from torch import Tensor

from auditor.errors import ModelCorruptError, ModelUnsupportedError
from auditor.reference.checkpoint.declared import Scheme
from auditor.reference.checkpoint.files import DTYPES, Checkpoint
from auditor.reference.checkpoint.packing import Groups, unpacked, unpacked_awq
from auditor.reference.checkpoint.products import FLOAT8

# Every name that tools give a tensor of a quantized module besides `bias`; then those of each layout.
PARTS = frozenset(
    {
        "weight",
        "weight_packed",
        "weight_shape",
        "weight_scale",
        "weight_scale_inv",
        "weight_zero_point",
        "weight_g_idx",
        "weight_global_scale",
        "input_scale",
        "input_zero_point",
        "input_global_scale",
        "qweight",
        "qzeros",
        "scales",
        "g_idx",
    }
)
_OWN = {
    "codes": {"weight", "weight_scale", "weight_scale_inv", "weight_zero_point", "input_scale"},
    "packed": {"weight_packed", "weight_scale", "weight_shape", "weight_zero_point"},
    "gptq": {"qweight", "qzeros", "scales", "g_idx"},
    "awq": {"qweight", "qzeros", "scales"},
}


def quantized_parts(checkpoint: Checkpoint, module: str) -> frozenset[str]:
    """Names of the tensors that a quantized module consists of; empty for a dense one."""
    names = frozenset(f"{module}.{part}" for part in PARTS) & checkpoint.names
    if not names - {f"{module}.weight"} and all(checkpoint.dtype(name) in DTYPES for name in names):
        return frozenset()
    return names


def dense_shape(checkpoint: Checkpoint, module: str, scheme: Scheme) -> tuple[int, ...]:
    """Shape [outputs, inputs] of the weight that a quantized module stands for, without reading its codes.

    Raises:
        ModelCorruptError: a tensor that is missing or no matrix.
    """
    if scheme.layout == "codes":
        return checkpoint.shape(f"{module}.weight")
    if scheme.layout == "packed":
        return tuple(int(size) for size in checkpoint.tensor(f"{module}.weight_shape").flatten())
    words, scales = checkpoint.shape(f"{module}.qweight"), checkpoint.shape(f"{module}.scales")
    if len(words) != 2 or len(scales) != 2:
        raise ModelCorruptError(f"module {module} has no matrices", where=str(checkpoint.directory))
    return scales[1], words[0] * (1 if scheme.layout == "awq" else 32 // scheme.bits)


class Module:
    """Reads the tensors of one module.

    Raises:
        ModelCorruptError: a tensor that is missing, misshapen, of another dtype, or holds what is no number.
        ModelUnsupportedError: a tensor that the scheme does not use, or sizes that do not fit its blocks.
    """

    def __init__(self, checkpoint: Checkpoint, module: str, scheme: Scheme) -> None:
        self._checkpoint, self._module, self._scheme = checkpoint, module, scheme
        for name in sorted(quantized_parts(checkpoint, module)):
            if name.rpartition(".")[2] not in _OWN[scheme.layout]:
                self._unsupported(f"tensor {name} with the layout {scheme.layout}")

    def codes(self) -> tuple[Tensor, Tensor]:
        """Codes [outputs, inputs] and their scales, float32 [outputs, equal runs of columns]."""
        codes = self._read("weight", FLOAT8 if self._scheme.kind == "float8" else torch.int8)
        if codes.dim() != 2:
            self._corrupt("weight", f"is {list(codes.shape)}, not a matrix")
        if codes.dtype == FLOAT8 and bool(((codes.view(torch.uint8) & 0x7F) == 0x7F).any()):
            self._corrupt("weight", "holds NaN")
        names = [part for part in ("weight_scale", "weight_scale_inv") if self._has(part)]
        if len(names) != 1:
            self._corrupt("weight", f"has {len(names)} tensors of scales, not one")
        return codes, self._spread(names[0], *codes.shape)

    def groups(self) -> Groups:
        """The matrix in integer codes."""
        layout = self._scheme.layout
        if layout == "codes":
            return self._plain()
        return self._packed() if layout == "packed" else self._transposed()

    def input_scale(self) -> Tensor | None:
        """The stored scale of static activations, float32 []; None where they have their own."""
        static = self._scheme.activations is not None and self._scheme.activations.static
        if static != self._has("input_scale"):
            self._corrupt("input_scale", "is missing" if static else "is stored but not declared")
        if not static:
            return None
        scale = self._scales("input_scale")
        if scale.numel() != 1 or float(scale) <= 0:
            self._corrupt("input_scale", "is not one positive number")
        return scale.reshape(())

    def _plain(self) -> Groups:
        codes = self._read("weight", torch.int8)
        scales = self._spread("weight_scale", *codes.shape)
        stored = self._checkpoint.dtype(f"{self._module}.weight_scale")
        zeros = None
        if not self._scheme.symmetric:
            zeros = self._read("weight_zero_point", torch.int8)
            if zeros.numel() == 1:
                zeros = zeros.reshape(1, 1).expand_as(scales)
            self._shaped("weight_zero_point", zeros, *scales.shape)
        elif self._has("weight_zero_point"):
            self._unsupported(f"zero points of the symmetric module {self._module}")
        return Groups(codes, scales.to(stored), codes.shape[1] // scales.shape[1], zeros)

    def _packed(self) -> Groups:
        bits, offset = self._scheme.bits, 2 ** (self._scheme.bits - 1)
        shape = self._checkpoint.tensor(self._name("weight_shape")).flatten().tolist()
        words = self._read("weight_packed", torch.int32)
        if len(shape) != 2 or not all(isinstance(size, int) and size > 0 for size in shape):
            self._corrupt("weight_shape", "is not two sizes")
        rows, columns = shape
        self._shaped("weight_packed", words, rows, -(-columns * bits // 32))
        codes = unpacked(words, bits, 1)[:, :columns] - offset
        size, groups = self._runs(columns)
        scales = self._scales("weight_scale")
        self._shaped("weight_scale", scales, rows, groups)
        if self._scheme.symmetric:
            if self._has("weight_zero_point"):
                self._unsupported(f"zero points of the symmetric module {self._module}")
            return Groups(codes, scales, size)
        zeros = self._read("weight_zero_point", torch.int32)
        self._shaped("weight_zero_point", zeros, -(-rows * bits // 32), groups)
        return Groups(codes, scales, size, unpacked(zeros, bits, 0)[:rows] - offset)

    def _transposed(self) -> Groups:
        bits, awq = self._scheme.bits, self._scheme.layout == "awq"
        words, zero_words = self._read("qweight", torch.int32), self._read("qzeros", torch.int32)
        scales = self._scales("scales")
        if words.dim() != 2 or scales.dim() != 2:
            self._corrupt("qweight", "and its scales are not matrices")
        rows, columns = scales.shape[1], words.shape[0] * (1 if awq else 32 // bits)
        size, groups = self._runs(columns)
        self._shaped("scales", scales, groups, rows)
        self._shaped("qzeros", zero_words, groups, rows * bits // 32)
        self._shaped("qweight", words, *((columns, rows // 8) if awq else (columns * bits // 32, rows)))
        codes = (unpacked_awq(words) if awq else unpacked(words, bits, 0)).t()
        zeros = (unpacked_awq(zero_words) if awq else unpacked(zero_words, bits, 1)).t()
        if awq:
            return Groups(codes, scales.t(), size, zeros)
        return Groups(codes, scales.t(), size, self._gptq_zeros(zeros), self._order(columns, size, groups))

    def _gptq_zeros(self, stored: Tensor) -> Tensor:
        zeros = stored + self._scheme.zero_offset
        middle = 2 ** (self._scheme.bits - 1)
        if self._scheme.symmetric and not bool((zeros == middle).all()):
            self._corrupt("qzeros", f"are not {middle} throughout, but the weights are declared symmetric")
        if bool((zeros >= 2**self._scheme.bits).any()):
            # 0 less one has no code: some kernels read it back as 0, others as 2**bits.
            self._unsupported(f"a zero point of {self._module} that GPTQ's first format cannot hold")
        return zeros

    def _order(self, columns: int, size: int, groups: int) -> Tensor | None:
        runs = torch.arange(columns) // size
        if not self._has("g_idx"):
            if self._scheme.reordered:
                self._corrupt("g_idx", "is missing, but columns are declared reordered")
            return None
        order = self._read("g_idx", torch.int32).to(torch.int64)
        self._shaped("g_idx", order, columns)
        if torch.equal(order, runs):
            return None
        if not self._scheme.reordered:
            self._corrupt("g_idx", "reorders columns, which is not declared")
        if int(order.min()) < 0 or int(order.max()) >= groups:
            self._corrupt("g_idx", f"names a group outside 0 to {groups - 1}")
        return order

    def _runs(self, columns: int) -> tuple[int, int]:
        size = self._scheme.block[1] or columns
        return size, -(-columns // size)

    def _spread(self, part: str, rows: int, columns: int) -> Tensor:
        """Scales of blocks, one of each row and run of columns."""
        scales = self._scales(part)
        high, wide = (size or whole for size, whole in zip(self._scheme.block, (rows, columns), strict=True))
        if columns % wide:
            self._unsupported(f"{columns} columns of {self._module} in blocks of {wide}")
        shape = (-(-rows // high), columns // wide)
        if scales.dim() < 2 and scales.numel() == prod(shape) and 1 in shape:
            scales = scales.reshape(shape)  # one scale, or one a row, may be stored without a second axis
        self._shaped(part, scales, *shape)
        return scales.to(torch.float32).repeat_interleave(high, dim=0)[:rows]

    def _scales(self, part: str) -> Tensor:
        scales = self._read(part, *DTYPES)
        if not (torch.isfinite(scales) & (scales >= 0)).all():
            self._corrupt(part, "holds NaN, infinity or negative scales")
        return scales

    def _read(self, part: str, *dtypes: torch.dtype) -> Tensor:
        tensor = self._checkpoint.tensor(self._name(part))
        if tensor.dtype not in dtypes:
            self._corrupt(part, f"is {tensor.dtype}, not {' or '.join(map(str, dtypes))}")
        return tensor

    def _shaped(self, part: str, tensor: Tensor, *shape: int) -> None:
        if tuple(tensor.shape) != shape:
            self._corrupt(part, f"is {list(tensor.shape)}, not {list(shape)}")

    def _has(self, part: str) -> bool:
        return self._name(part) in self._checkpoint.names

    def _name(self, part: str) -> str:
        return f"{self._module}.{part}"

    def _corrupt(self, part: str, message: str) -> NoReturn:
        where = (
            self._checkpoint.where(self._name(part)) if self._has(part) else str(self._checkpoint.directory)
        )
        raise ModelCorruptError(f"tensor {self._name(part)} {message}", where=where, fix="download it again")

    def _unsupported(self, what: str) -> NoReturn:
        raise ModelUnsupportedError(f"not implemented: {what}", where=str(self._checkpoint.directory))
