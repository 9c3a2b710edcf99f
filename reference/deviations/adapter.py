"""The right weights with an adapter that nobody declared: a fine-tune sold as the model itself."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from auditor.reference.checkpoint.adapters import Adapter, merged
from auditor.reference.deviations.base import Deviation


def undeclared_adapter(directory: Path | str) -> Deviation:
    """A provider that merged a LoRA adapter (a PEFT directory) into the weights it serves.

    It is no entry of the registry, for it needs an adapter of the very model.

    Raises:
        ModelNotFoundError, ModelUnsafeError, ModelUnsupportedError, ModelCorruptError: as `Adapter.open`.
    """
    adapter = Adapter.open(directory)

    def change(name: str, tensor: Tensor) -> Tensor:
        delta = adapter.deltas(name.removesuffix(".weight")) if name.endswith(".weight") else None
        return tensor if delta is None else merged(tensor, delta)

    return Deviation(
        name="adapter/lora",
        gain="steers answers, or serves one base to many customers, without telling the client",
        source="Hu et al., LoRA, arXiv 2106.09685",
        model=lambda model, _other: model.replace(weights=change),
    )
