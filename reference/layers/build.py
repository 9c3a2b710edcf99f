"""What a built layer part must be able to do, and the layer itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from auditor.reference.layers.linear import row_tiles
from auditor.reference.layers.parameters import Parameters

if TYPE_CHECKING:
    from auditor.reference.architecture import LayerPlan, ModelConfig
    from auditor.reference.batch import Run

__all__ = ["DecoderLayer", "Mixing", "Parameters", "RowWise", "build_layer"]


class RowWise(Protocol):
    """A part that treats each row alone."""

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, hidden]."""
        ...


class Mixing(Protocol):
    """A part in which positions meet: row-wise before and after, by sequence in between."""

    def inputs(self, x: Tensor, run: Run, rows: slice) -> tuple[Tensor, ...]:
        """Normalised rows [n, hidden] -> what `mix` needs of them, each [n, ...]."""
        ...

    def mix(self, parts: tuple[Tensor, ...], run: Run) -> Tensor:
        """Every row's parts -> what each row gathered, [rows, ...]."""
        ...

    def outputs(self, mixed: Tensor) -> Tensor:
        """[n, ...] -> [n, hidden]."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class DecoderLayer:
    """One layer; a norm that the plan does not name is None."""

    index: int
    plan: LayerPlan
    mixer: Mixing
    feed_forward: RowWise | None
    norms: tuple[RowWise | None, RowWise | None, RowWise | None, RowWise | None]

    def __call__(self, hidden: Tensor, run: Run, wanted: Tensor | None = None) -> Tensor:
        """Hidden states [rows, hidden], overwritten, to those after the layer.

        Args:
            wanted: the rows that are still needed after this layer (int64), None for all; the others are
                mixed, since later positions look at them, and then dropped.
        """
        before, between = self.norms[:2]
        parts = [
            self.mixer.inputs(_through(before, hidden[rows].to(run.dtype)), run, rows)
            for rows in row_tiles(len(hidden), hidden.device)
        ]
        joined = tuple(
            torch.cat(pieces) if len(pieces) > 1 else pieces[0] for pieces in zip(*parts, strict=True)
        )
        mixed = self.mixer.mix(joined, run)
        if wanted is not None:
            # For whole rows, several times as quick as indexing.
            hidden, mixed = hidden.index_select(0, wanted), mixed.index_select(0, wanted)
        for rows in row_tiles(len(hidden), hidden.device):
            own = hidden[rows]  # a view: what is added to it is added to `hidden`
            self._add(own, _through(self.norms[2], self.mixer.outputs(mixed[rows])))
            if self.feed_forward is not None:
                update = self.feed_forward(_through(between, own.to(run.dtype)))
                self._add(own, _through(self.norms[3], update))
        return hidden

    def _add(self, hidden: Tensor, update: Tensor) -> None:
        hidden += update if self.plan.scale == 1.0 else update * self.plan.scale


def _through(norm: RowWise | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


def build_layer(config: ModelConfig, parameters: Parameters, index: int) -> DecoderLayer:
    """Read layer `index`."""
    plan = config.layers[index]
    prefix = config.layer_prefix.format(index)

    def norm(name: str | None) -> RowWise | None:
        return None if name is None else parameters.norm(f"{prefix}.{name}", config.hidden_size)

    names = (plan.mixer_norm, plan.feed_forward_norm, plan.mixer_post_norm, plan.feed_forward_post_norm)
    norms = tuple(norm(name) for name in names)
    feed_forward = None if plan.feed_forward is None else plan.feed_forward.build(parameters, prefix)
    return DecoderLayer(index, plan, plan.mixer.build(parameters, prefix, index), feed_forward, norms)  # type: ignore[arg-type]
