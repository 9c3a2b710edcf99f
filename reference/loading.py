"""One way to load any checkpoint: by its family, or through transformers where no family is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from auditor.errors import OptionError
from auditor.reference.batch import AttentionHook, KeyValueHook, ResidualHook, Span
from auditor.reference.config import read_fields
from auditor.reference.device import CPU, on_gpu
from auditor.reference.fallback import FallbackModel
from auditor.reference.families import FAMILIES
from auditor.reference.layers.parameters import WeightsHook
from auditor.reference.model import Model
from auditor.reference.slots import SlotKV


class Sizes(Protocol):
    """What callers may ask of any model's configuration."""

    @property
    def model_type(self) -> str: ...  # noqa: D102  as in `ModelConfig`
    @property
    def vocab_size(self) -> int: ...  # noqa: D102
    @property
    def hidden_size(self) -> int: ...  # noqa: D102
    @property
    def context_length(self) -> int: ...  # noqa: D102
    @property
    def num_hidden_layers(self) -> int: ...  # noqa: D102
    @property
    def shares_prefixes(self) -> bool: ...  # noqa: D102
    @property
    def follows_trees(self) -> bool: ...  # noqa: D102


class ReferenceModel(Protocol):
    """What scoring and generating need of a model; `Model` documents each."""

    @property
    def config(self) -> Sizes: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102
    @property
    def directory(self) -> Path: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102
    @property
    def pack_tokens(self) -> int: ...  # noqa: D102
    @property
    def calls_at_once(self) -> int: ...  # noqa: D102
    @property
    def from_the_beginning(self) -> bool: ...  # noqa: D102
    def new_cache(self, *, limit: int | None = None) -> SlotKV: ...  # noqa: D102
    def forward(  # noqa: D102
        self, spans: Sequence[Span], cache: SlotKV | None = None, *, exact: bool = True
    ) -> Tensor: ...
    def prefill(self, sequences: Iterable[Tensor]) -> Tensor: ...  # noqa: D102
    def showing(self, layers: Sequence[int]) -> ReferenceModel: ...  # noqa: D102
    def up_to(self, layer: int) -> ReferenceModel: ...  # noqa: D102
    def logits(  # noqa: D102
        self, hidden: Tensor, *, exact: bool = True, fetch: bool = True
    ) -> Tensor: ...
    def replace(  # noqa: D102
        self,
        *,
        weights: WeightsHook | None = None,
        key_value: KeyValueHook | None = None,
        skip_layers: frozenset[int] = frozenset(),
        attention: AttentionHook | None = None,
        residual: ResidualHook | None = None,
    ) -> ReferenceModel: ...


def load_model(
    directory: Path | str,
    *,
    dtype: torch.dtype = torch.float32,
    wide_matmul: bool = False,
    adapter: Path | str | None = None,
    device: torch.device = CPU,
) -> ReferenceModel:
    """Read a local HF checkpoint as `Model.load` does, or, with a warning, as `FallbackModel.load` does.

    An architecture that has a family here never goes through transformers: an option that its family
    refuses is refused.

    Raises:
        OptionError: another dtype; an adapter, or a GPU, for an architecture without a family.
        ModelNotFoundError, ModelUnsafeError, ModelUnsupportedError, ModelCorruptError: as those two.
    """
    if read_fields(directory).raw.get("model_type") in FAMILIES:
        return Model.load(directory, dtype=dtype, wide_matmul=wide_matmul, adapter=adapter, device=device)
    if on_gpu(device):
        raise OptionError(
            "an architecture that runs through transformers is computed on the CPU",
            where=str(directory),
            fix="leave --device out",
        )
    if adapter is not None:
        raise OptionError(
            "an adapter on an architecture that runs through transformers",
            where=str(adapter),
            fix="merge it into the weights",
        )
    return FallbackModel.load(directory, dtype=dtype)
