"""The forward pass of few rows: decoding and draft trees in float32 on a CPU, little around each product.

A call of `model.py` makes some forty small operations a layer, which take longer than the arithmetic where a
model or a batch is small. Here a layer is four products and four compiled calls, rows lie in one buffer, and
matrices are kept in the order in which oneDNN reads them. It serves models whose layers are plain attention
and a gated product (Llama, Mistral, Qwen 2, ...); others decode as they are scored.

Invariant: of a row's company only the number counts, and only whether it is one, up to eight, or more
(`linear.py`): a tree's row has the bits of plain decoding where calls are alike in that. They are not the
exact path's: `choice.py` on ties.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from auditor.kernels.row_parts import add_and_norm, rms_norm, silu_gate
from auditor.kernels.slot_attention import I64, Places, attend_slots
from auditor.reference.architecture import ModelConfig, Rope
from auditor.reference.batch import Span, check_spans
from auditor.reference.layers.build import DecoderLayer
from auditor.reference.layers.linear import PackedLinear, Product
from auditor.reference.layers.mlp import Gated, Mlp
from auditor.reference.layers.norm import RmsNorm
from auditor.reference.layers.rotary import angles
from auditor.reference.layers.self_attention import SelfAttention

if TYPE_CHECKING:
    from auditor.kernels.row_parts import F32
    from auditor.reference.slots import SlotKV

# More rows are left to attention in tiles of matrix products.
MOST_ROWS = 512


@dataclass(frozen=True, slots=True, eq=False)
class _Weights:
    """A norm's, as the compiled loops take them."""

    weight: F32
    eps: float

    @classmethod
    def of(cls, norm: RmsNorm) -> _Weights:
        weight = norm.weight + norm.plan.offset if norm.plan.offset else norm.weight
        return cls(weight.numpy(), norm.plan.eps)


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    index: int
    before: _Weights
    between: _Weights
    attention: SelfAttention
    qkv: PackedLinear
    output: PackedLinear
    gate_up: PackedLinear
    down: PackedLinear

    @property
    def rope(self) -> tuple[Rope, int]:
        """How its positions turn, and how many dimensions of a head."""
        rope = cast("Rope", self.attention.plan.rope)
        return rope, rope.rotary_dim or self.attention.plan.head_dim

    def mixed(self, normed: Tensor, turns: tuple[F32, F32], places: Places, cache: SlotKV) -> Tensor:
        """What every row gathers, [as many rows as `normed`, heads * dim]; those without a place stay 0."""
        plan = self.attention.plan
        keys, values = cache.read(self.index, slice(None))
        out = torch.zeros(len(normed), plan.heads * plan.head_dim)
        held, scale = (keys.numpy(), values.numpy()), self.attention.softmax.scale
        attend_slots(self.qkv(normed).numpy(), turns, held, places, scale, out.numpy())
        return out


class FewRows:
    """A model's layers, made ready for few rows.

    Args:
        context: the most positions of a sequence.
        embedding: float32 [vocabulary, hidden].
        packed: hold a second copy of all matrices, in the order in which oneDNN reads them.
    """

    def __init__(
        self,
        layers: Sequence[DecoderLayer],
        final_norm: RmsNorm,
        embedding: Tensor,
        head: Product,
        context: int,
        *,
        packed: bool,
    ) -> None:
        self._layers = [_prepared(layer, packed=packed) for layer in layers]
        self._final, self._embedding = _Weights.of(final_norm), embedding.numpy()
        self._head, self._context = PackedLinear.of(head, packed=packed), context
        self._angles: dict[tuple[Rope, int], tuple[F32, F32]] = {}

    def forward(self, spans: Sequence[Span], cache: SlotKV) -> Tensor:
        """As `Model.forward`, of spans whose rows are all kept.

        Raises:
            TraceFieldError, TokenOutOfRangeError, ContextLengthError: as `Model.forward`.
        """
        tokens, positions, places = self._packed(spans)
        rows = len(tokens)
        hidden = self._embedding[tokens]
        normed = torch.zeros(PackedLinear.room(rows), hidden.shape[1])
        own, before = normed.numpy(), [*(layer.before for layer in self._layers), self._final]
        _rms_norm(hidden, before[0], own)
        turns: dict[tuple[Rope, int], tuple[F32, F32]] = {}
        for layer, after in zip(self._layers, before[1:], strict=True):
            kind = layer.rope
            if kind not in turns:
                turns[kind] = self._turns(*kind, positions)
            mixed = layer.mixed(normed, turns[kind], places, cache)
            update = layer.output(mixed).numpy()
            add_and_norm(hidden, update, layer.between.weight, layer.between.eps, own)
            gated = torch.from_numpy(silu_gate(layer.gate_up(normed).numpy()))
            add_and_norm(hidden, layer.down(gated).numpy(), after.weight, after.eps, own)
        return _wanted(normed[:rows], spans)

    def logits(self, hidden: Tensor) -> Tensor:
        """The head's product, float32 [rows, vocabulary]."""
        return self._head.padded(hidden)

    def _turns(self, rope: Rope, dim: int, positions: I64) -> tuple[F32, F32]:
        """Cosine and sine of positions, [rows, dim / 2]; those of all positions so far are kept."""
        found, length = self._angles.get((rope, dim)), int(positions.max()) + 1
        if found is None or len(found[0]) < length:
            count = min(max(1024, 2 * length), self._context)
            cos, sin = angles(rope, dim, torch.arange(count), torch.float32)
            found = cos[:, 0].contiguous().numpy(), sin[:, 0].contiguous().numpy()
            self._angles[rope, dim] = found
        return found[0][positions], found[1][positions]

    def _packed(self, spans: Sequence[Span]) -> tuple[I64, I64, Places]:
        """Token ids, positions and places of all rows."""
        sizes, starts = [span.tokens.shape[0] for span in spans], [span.start for span in spans]
        tokens = np.concatenate([span.tokens.numpy() for span in spans])
        rows = len(tokens)
        sequence = np.repeat(np.arange(len(spans)), sizes)
        firsts = np.cumsum([0, *sizes[:-1]])
        if rows == len(spans):
            depth, seen, counts = np.zeros(rows, np.int64), np.arange(rows), np.ones(rows, np.int64)
        else:
            looks = [_seen(span) for span in spans]
            seen = np.concatenate([columns for columns, _ in looks])
            counts = np.concatenate([counts for _, counts in looks])
            seen += np.repeat(firsts, [len(columns) for columns, _ in looks])
            depth = counts - 1
        positions = np.repeat(np.array(starts), sizes) + depth
        vocabulary = len(self._embedding)
        if tokens.min() < 0 or tokens.max() >= vocabulary or positions.max() >= self._context:
            check_spans(spans, vocabulary, self._context)
        past = [span.past.numpy() for span in spans if span.past is not None]
        keep = np.concatenate([cast("Tensor", span.keep).numpy() for span in spans])
        places = Places(
            keep,
            sequence,
            np.concatenate(past) if past else np.empty(0, np.int64),
            np.cumsum([0, *starts]),
            seen,
            np.cumsum([0, *counts]),
            max(starts) + int(counts.max()),
        )
        return tokens, positions, places


def _wanted(hidden: Tensor, spans: Sequence[Span]) -> Tensor:
    """The rows that somebody asked for."""
    if not any(span.wanted for span in spans):
        return hidden
    sizes = [span.tokens.shape[0] for span in spans]
    parts = zip(torch.split(hidden, sizes), spans, strict=True)
    return torch.cat([part[span.wanted :] for part, span in parts])


def _rms_norm(x: F32, norm: _Weights, out: F32) -> None:
    out[: len(x)] = rms_norm(x, norm.weight, norm.eps)


def _seen(span: Span) -> tuple[I64, I64]:
    """Which new rows each new row sees, one after another, and how many they are."""
    rows = span.tokens.shape[0]
    if span.ancestors is None or rows == 1:
        return _chain(rows)
    seen = span.ancestors.numpy()
    return seen.nonzero()[1], seen.sum(1)


@lru_cache(maxsize=128)
def _chain(rows: int) -> tuple[I64, I64]:
    seen = np.tri(rows, dtype=np.bool_)
    return seen.nonzero()[1], seen.sum(1)


def _prepared(layer: DecoderLayer, *, packed: bool) -> _Layer:
    attention, mlp = cast("SelfAttention", layer.mixer), cast("Mlp", layer.feed_forward)
    before, between = (_Weights.of(cast("RmsNorm", norm)) for norm in layer.norms[:2])
    products = (attention.qkv, attention.output, mlp.gate_up, mlp.down)
    ready = [PackedLinear.of(product, packed=packed) for product in products]
    return _Layer(layer.index, before, between, attention, *ready)


def serves(layer: object) -> bool:
    """Whether a layer is of the kind that few rows have a path of their own for."""
    if not isinstance(layer, DecoderLayer):  # where a rank's rows leave, or come in
        return False
    attention, mlp = layer.mixer, layer.feed_forward
    if not isinstance(attention, SelfAttention) or not isinstance(mlp, Mlp) or layer.plan.scale != 1.0:
        return False
    before, between, *after = layer.norms
    rope, gate = attention.plan.rope, mlp.gated
    return (
        all(isinstance(norm, RmsNorm) and norm.weight.dtype == torch.float32 for norm in (before, between))
        and after == [None, None]
        and rope is not None
        and not rope.interleaved
        and rope.rope_type != "longrope"
        and attention.norms is None
        and attention.softmax.plain
        and isinstance(gate, Gated)
        and gate.activation == "silu"
        and all(PackedLinear.serves(p) for p in (attention.qkv, attention.output, mlp.gate_up, mlp.down))
    )


def few_rows_of(
    config: ModelConfig,
    layers: Iterable[object],
    ends: tuple[RmsNorm | None, Product, Tensor],
    *,
    packed: bool,
) -> FewRows | None:
    """The path of a model with these layers, and this final norm, head and embedding; None without one."""
    norm, head, embedding = ends
    layers = list(layers)  # none: nothing but its ends, or a model that goes another way
    plain = embedding.dtype == torch.float32 and config.embedding_scale == 1.0
    if (
        norm is None
        or not layers
        or not plain
        or not all(map(serves, layers))
        or not PackedLinear.serves(head)
    ):
        return None
    served = cast("list[DecoderLayer]", layers)
    return FewRows(served, norm, embedding, head, config.context_length, packed=packed)
