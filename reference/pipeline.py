"""Layer parallelism: each rank holds consecutive layers, and rows go from one rank to the next."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from auditor.errors import OptionError
from auditor.reference.batch import Run
from auditor.reference.layers.build import DecoderLayer
from auditor.reference.ranks import Ranks
from auditor.reference.streaming import LayerStream


def consecutive(stream: LayerStream, ranks: Ranks) -> tuple[DecoderLayer, ...]:
    """A rank's run of layers, between what arrives and what goes on.

    Raises:
        OptionError: fewer layers than ranks.
    """
    count = stream.config.num_hidden_layers
    if count < ranks.count:
        raise OptionError(
            f"{count} layers do not go round {ranks.count} ranks", fix="join at most a process a layer"
        )
    first, stop = (count * rank // ranks.count for rank in (ranks.own, ranks.own + 1))
    own = tuple(index for index in stream.indices if first <= index < stop)
    before = [Arrival(ranks)] if ranks.own > 0 else []
    after = [Departure(ranks)] if ranks.own + 1 < ranks.count else []
    layers = [*before, *dataclasses.replace(stream, indices=own), *after]
    return tuple(cast("list[DecoderLayer]", layers))


@dataclass(frozen=True, slots=True)
class Arrival:
    """What stands before a rank's first layer: the rows of the rank before, in place of the embeddings."""

    ranks: Ranks

    def __call__(self, hidden: Tensor, run: Run, wanted: Tensor | None = None) -> Tensor:
        """[rows, hidden] -> the same of the rank before."""
        del run
        hidden = self.ranks.receive(hidden)
        return hidden if wanted is None else hidden[wanted]


@dataclass(frozen=True, slots=True)
class Departure:
    """What stands behind a rank's last layer: the next rank goes on with all rows."""

    ranks: Ranks

    def __call__(self, hidden: Tensor, run: Run, wanted: Tensor | None = None) -> Tensor:
        """[rows, hidden] -> rows of the right number, which `from_last` overwrites in the end."""
        del run
        self.ranks.send(hidden)
        return hidden if wanted is None else hidden[wanted]
