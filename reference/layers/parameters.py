"""Reading the tensors that a plan calls for: shape, dtype, finiteness, and nothing left over.

Invariant: a model has exactly the parameters its plans ask for. A tensor that is missing, misshapen, not
finite or left over is an error, for a reference that drops a tensor is another model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from auditor.errors import ModelCorruptError, ModelUnsupportedError
from auditor.reference.architecture import Norm
from auditor.reference.device import CPU, on_gpu
from auditor.reference.layers.linear import Linear, Product, Stacked
from auditor.reference.layers.norm import RmsNorm

WeightsHook = Callable[[str, Tensor], Tensor]


class OwnProduct(Product, Protocol):
    """A product that knows its size."""

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """What is added, None for nothing."""
        ...


class TensorSource(Protocol):
    """Where tensors come from: a checkpoint on disk, or another model's parameters."""

    @property
    def names(self) -> frozenset[str]:
        """Every tensor's HF name."""
        ...

    def tensor(self, name: str) -> Tensor:
        """One tensor, in the stored dtype."""
        ...

    def product(self, module: str, dtype: torch.dtype) -> OwnProduct | None:
        """A quantized module's own product, None for a dense one."""
        ...

    def parts(self, module: str) -> frozenset[str]:
        """The names that such a product is made of."""
        ...


@dataclass(frozen=True, slots=True)
class TensorsInMemory:
    """Tensors that were read already, as a `TensorSource`; none of them is quantized."""

    tensors: dict[str, Tensor]

    @property
    def names(self) -> frozenset[str]:
        """As `TensorSource`."""
        return frozenset(self.tensors)

    def tensor(self, name: str) -> Tensor:
        """As `TensorSource`."""
        return self.tensors[name]

    def product(self, module: str, dtype: torch.dtype) -> None:
        """As `TensorSource`."""
        del module, dtype

    def parts(self, module: str) -> frozenset[str]:
        """As `TensorSource`."""
        del module
        return frozenset()


class Parameters:
    """Hands out a source's tensors, checked and rounded to the compute dtype.

    Args:
        norm: of every norm the model has.
        wide_matmul: matrices are rounded to `dtype`, then held and multiplied in float32.
        hook: changes every tensor on its way; it sees the model's dtype.
        where: named in errors.
        device: where the model computes.

    Attributes:
        tensors: what was handed out, under HF names; matrices that were fused are views of the fused one.
    """

    def __init__(
        self,
        source: TensorSource,
        dtype: torch.dtype,
        norm: Norm,
        *,
        wide_matmul: bool = False,
        hook: WeightsHook | None = None,
        where: str = "",
        device: torch.device = CPU,
    ) -> None:
        self.dtype, self.norm_plan = dtype, norm
        self._device = device
        self.tensors: dict[str, Tensor] = {}
        self._source, self._hook, self._where = source, hook, where
        self._wide = torch.float32 if wide_matmul else dtype
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._source.names

    def vector(self, name: str, *shape: int) -> Tensor:
        """A tensor that is not multiplied by a matrix product: norms, sinks."""
        return self._read(name, shape, self.dtype)

    def float_vector(self, name: str, *shape: int) -> Tensor:
        """A vector that stays float32 whatever the model computes in (DeepSeek's router offsets)."""
        return self._read(name, shape, torch.float32, torch.float32)

    def matrix(self, name: str, *shape: int) -> Tensor:
        """A weight of products, or a bias; held in float32 under `wide_matmul`."""
        return self._read(name, shape, self._wide)

    def norm(self, name: str, size: int, plan: Norm | None = None) -> RmsNorm:
        """The norm `name`.weight, of another kind than the model's others if `plan` says so."""
        return RmsNorm(self.vector(f"{name}.weight", size), plan or self.norm_plan)

    def linear(self, module: str, outputs: int, inputs: int, *, bias: bool = False) -> Product:
        """The product of `module`.weight, quantized where the checkpoint declares it."""
        quantized = self._source.product(module, self.dtype)
        if quantized is not None:
            if on_gpu(self._device):
                raise ModelUnsupportedError(
                    f"module {module} rounds its inputs or has an adapter, which is computed on a CPU only",
                    where=self._where,
                    fix="leave --device out",
                )
            self._used |= self._source.parts(module)
            stored = (*quantized.shape, quantized.bias is not None)
            if stored != (outputs, inputs, bias):
                raise ModelCorruptError(
                    f"quantized module {module} is {list(stored)}, not {[outputs, inputs, bias]} "
                    "(outputs, inputs, bias)",
                    where=self._where,
                )
            return quantized
        weight = self.matrix(f"{module}.weight", outputs, inputs)
        return Linear(weight, self.matrix(f"{module}.bias", outputs) if bias else None)

    def stacked(self, modules: Sequence[tuple[str, int]], inputs: int, *, bias: bool = False) -> Product:
        """Several modules' products of the same rows as one: (module, outputs) each.

        One product is quicker than three, and each output element is the same dot product either way.
        """
        parts = [self.linear(module, outputs, inputs, bias=bias) for module, outputs in modules]
        dense = [part for part in parts if isinstance(part, Linear)]
        if len(dense) < len(parts):
            return Stacked(tuple(parts))
        sizes = [outputs for _, outputs in modules]
        weight = self._fuse([f"{module}.weight" for module, _ in modules], sizes)
        fused_bias = self._fuse([f"{module}.bias" for module, _ in modules], sizes) if bias else None
        return Linear(weight, fused_bias)

    def check_all_used(self, ignored: Callable[[str], bool] = lambda _: False) -> None:
        """Refuse a checkpoint with tensors that no plan asked for.

        Raises:
            ModelUnsupportedError: naming the first.
        """
        for name in sorted(self._source.names - self._used):
            if name.endswith("rotary_emb.inv_freq") or ignored(name):
                continue  # a buffer that old checkpoints carry; frequencies come from the configuration
            raise ModelUnsupportedError(
                f"tensor {name} has no place in this architecture with this configuration", where=self._where
            )

    def _fuse(self, names: Sequence[str], sizes: Sequence[int]) -> Tensor:
        parts = [self.tensors[name] for name in names]
        # Not `torch.cat`: of shapes without data (the meta device) it imports 160 MB of the compiler.
        fused = parts[0].new_empty((sum(sizes), *parts[0].shape[1:]))
        for name, part, place in zip(names, parts, torch.split(fused, list(sizes)), strict=True):
            self.tensors[name] = place.copy_(part)
        return fused

    def _read(
        self, name: str, shape: tuple[int, ...], held: torch.dtype, rounded: torch.dtype | None = None
    ) -> Tensor:
        rounded = rounded or self.dtype
        if name not in self._source.names:
            raise ModelCorruptError(
                f"tensor {name} is missing", where=self._where, fix="copy the whole checkpoint"
            )
        self._used.add(name)
        tensor = self._source.tensor(name).to(rounded)
        if self._hook is not None:
            tensor = self._hook(name, tensor).to(rounded)
        if tuple(tensor.shape) != shape:
            raise ModelCorruptError(
                f"tensor {name} is {list(tensor.shape)}, not {list(shape)}", where=self._where
            )
        if not tensor.is_meta and not torch.isfinite(tensor).all():
            raise ModelCorruptError(f"tensor {name} holds NaN or infinity in {rounded}", where=self._where)
        device = tensor.device if tensor.is_meta else self._device
        self.tensors[name] = tensor.to(device, held)
        return self.tensors[name]
