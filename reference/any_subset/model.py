"""A small any-order language model: two streams of attention, as XLNet has them (arXiv 1906.08237).

Position j has a rank, its turn in the order in which tokens come to be known. The content stream of a
position knows its own token and those of no later rank; the query stream knows where it stands but not what
stands there, and attends to contents of earlier ranks only. So one pass gives, for every position at once,
the distribution of its token given any earlier ones: which ones is a matter of ranks, not of weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from auditor.errors import OptionError

_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class _Layer:
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class AnyOrderModel:
    """A two-stream transformer of `length` positions over `vocabulary` tokens.

    Attributes:
        tokens: [V, hidden], the head too. places: [length, hidden]. blank: [hidden], where a query begins.
    """

    tokens: Tensor
    places: Tensor
    blank: Tensor
    layers: tuple[_Layer, ...]
    heads: int

    @property
    def vocabulary(self) -> int:
        """Tokens."""
        return len(self.tokens)

    @property
    def length(self) -> int:
        """Positions."""
        return len(self.places)

    @classmethod
    def random(
        cls,
        seed: int,
        *,
        vocabulary: int = 64,
        length: int = 48,
        hidden: int = 32,
        layers: int = 2,
        heads: int = 4,
        scale: float = 1.0,
    ) -> AnyOrderModel:
        """Initialise at random; `scale` multiplies the embeddings, hence how peaked the distributions are."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, std: float) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64) * std

        own = hidden**-0.5

        def layer() -> _Layer:
            query, key, value, output = (normal(hidden, hidden, std=2 * own) for _ in range(4))
            up, down = normal(hidden, 4 * hidden, std=own), normal(4 * hidden, hidden, std=0.5 * own)
            return _Layer(query, key, value, output, up, down)

        built = tuple(layer() for _ in range(layers))
        tokens = normal(vocabulary, hidden, std=scale)
        return cls(tokens, normal(length, hidden, std=1.0), normal(hidden, std=1.0), built, heads)

    @torch.no_grad()
    def logits(self, tokens: Tensor, ranks: Tensor, seen_from: Tensor, wanted: Tensor) -> Tensor:
        """Logits float64 [wanted, V] of the tokens at some positions.

        Args:
            tokens: int64 [length]; what stands at positions that nobody attends to is not looked at.
            ranks: int64 [length], each position's turn.
            seen_from: int64 [length]; the query at a position sees contents of ranks below this number.
            wanted: int64 positions.

        Raises:
            OptionError: another length.
        """
        if not len(tokens) == len(ranks) == len(seen_from) == self.length:
            raise OptionError(f"{len(tokens)} tokens; the model has {self.length} positions")
        content = self.tokens[tokens] + self.places
        query = (self.blank + self.places)[wanted]
        for layer in self.layers:
            keys, values = _normed(content) @ layer.key, _normed(content) @ layer.value
            streams = []
            for stream, seen in (
                (content, ranks[None, :] <= ranks[:, None]),
                (query, ranks[None, :] < seen_from[wanted][:, None]),
            ):
                mixed = (
                    stream + self._attend(_normed(stream) @ layer.query, keys, values, seen) @ layer.output
                )
                streams.append(mixed + functional.gelu(_normed(mixed) @ layer.up) @ layer.down)
            content, query = streams
        return torch.matmul(_normed(query), self.tokens.T)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        """Rows that see nothing gather nothing."""
        split = [torch.unflatten(x, 1, (self.heads, -1)).transpose(0, 1) for x in (queries, keys, values)]
        scores = split[0] @ split[1].transpose(1, 2) * split[0].shape[-1] ** -0.5
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
        return torch.matmul(weights, split[2]).transpose(0, 1).flatten(1)


def _normed(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + _EPS)
