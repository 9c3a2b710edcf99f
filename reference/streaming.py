"""Layers that are read when they are needed, for models larger than memory.

Invariant: a streamed model computes the same bits as a resident one; only one layer is held besides the next,
which is read while one computes. What the checkpoint lacks is found when it is opened, from the headers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from auditor.reference.device import CPU
from auditor.reference.layers.build import DecoderLayer, build_layer
from auditor.reference.layers.parameters import Parameters, TensorSource, WeightsHook

if TYPE_CHECKING:
    from auditor.reference.architecture import ModelConfig
    from auditor.reference.checkpoint.files import Checkpoint

# Share of the memory that is free now which weights may take before they are streamed instead.
RESIDENT_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class LayerStream:
    """A model's layers, in order, each read anew in every pass.

    Attributes:
        indices: which layers, by their numbers in the checkpoint.
        hook: changes every tensor on its way, as in `Parameters`.
    """

    config: ModelConfig
    source: TensorSource
    dtype: torch.dtype
    wide_matmul: bool
    where: str
    indices: tuple[int, ...]
    hook: WeightsHook | None = None
    device: torch.device = CPU

    @classmethod
    def checked(
        cls,
        config: ModelConfig,
        checkpoint: Checkpoint,
        source: TensorSource,
        dtype: torch.dtype,
        *,
        wide_matmul: bool,
        device: torch.device = CPU,
    ) -> LayerStream:
        """Every layer of a checkpoint in which nothing is missing, misshapen or left over.

        A dense checkpoint is judged by its headers; a quantized one is read once, layer by layer.

        Raises:
            ModelCorruptError, ModelUnsupportedError: as `Parameters`.
        """
        where = str(checkpoint.directory)
        dense = checkpoint.quantization_config is None
        parameters = Parameters(_Shapes(checkpoint) if dense else source, dtype, config.norm, where=where)
        for name in {config.embedding, config.embedding if config.tie_word_embeddings else config.head}:
            parameters.matrix(name, config.vocab_size, config.hidden_size)
        parameters.norm(config.final_norm.removesuffix(".weight"), config.hidden_size)
        for index in range(config.num_hidden_layers):
            build_layer(config, parameters, index)
            parameters.tensors.clear()
        tied = config.head if config.tie_word_embeddings else None
        parameters.check_all_used(lambda name: name.startswith(config.ignored) or name == tied)
        indices = tuple(range(config.num_hidden_layers))
        return cls(config, source, dtype, wide_matmul, where, indices, device=device)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[DecoderLayer]:
        if not self.indices:
            return
        with ThreadPoolExecutor(1, thread_name_prefix="layer") as reader:
            coming = reader.submit(self._read, self.indices[0])
            for following in (*self.indices[1:], None):
                layer = coming.result()
                if following is not None:
                    coming = reader.submit(self._read, following)
                yield layer
                del layer  # before the next but one is read

    def _read(self, index: int) -> DecoderLayer:
        parameters = Parameters(
            self.source,
            self.dtype,
            self.config.norm,
            wide_matmul=self.wide_matmul,
            hook=self.hook,
            where=self.where,
            device=self.device,
        )
        return build_layer(self.config, parameters, index)


@dataclass(frozen=True, slots=True)
class _Shapes:
    """A dense checkpoint's tensors without their data: enough to see whether all are there and fit."""

    checkpoint: Checkpoint

    @property
    def names(self) -> frozenset[str]:
        return self.checkpoint.names

    def tensor(self, name: str) -> Tensor:
        return torch.empty(self.checkpoint.shape(name), dtype=self.checkpoint.dtype(name), device="meta")

    def product(self, module: str, dtype: torch.dtype) -> None:
        del module, dtype

    def parts(self, module: str) -> frozenset[str]:
        del module
        return frozenset()


def fits_in_memory(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device = CPU) -> bool:
    """Whether all weights, held in `dtype`, leave room enough in the device's memory that is free now."""
    held = sum(prod(checkpoint.shape(name)) for name in checkpoint.names) * dtype.itemsize
    return held <= RESIDENT_SHARE * free_memory(device)


def free_memory(device: torch.device = CPU) -> float:
    """Bytes that can be had without swapping; unlimited where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024.0
    except (OSError, ValueError, IndexError):
        pass
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, AttributeError):
        return float("inf")
