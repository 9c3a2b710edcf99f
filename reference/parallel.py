"""One model over several processes that `torch.distributed` joins, each holding a part of the layers.

By tensors: each rank has whole groups of attention heads and a share of every feed-forward part's width.
By layers: each rank has consecutive layers; hidden rows go from rank to rank. The first divides memory and
time, the second only memory, for one rank computes while the others wait. Embedding, norms and head are on
every rank either way.

Invariants:

- Every rank makes the same calls in the same order, from one thread, with the same tokens (which is checked),
  and gets the same result; a `Runner` or `generate` therefore runs on every rank as it does alone.
- By layers the result has the bits of one process on the same kind of processor.
- By tensors it has the same bits on every rank and in every run: partial products are gathered and added in
  the order of ranks, in float32, rounded once. Its last bits differ from one process's and from those of
  another number of ranks, since each rank adds up only its own inputs, and outside float32 rounds what it got
  (not with `wide_matmul`). On two ranks the demo model's logits (up to 15) were at most 2.2e-5 away in
  float32 (median 1.2e-6), and 0.38 (0.016) in bfloat16, whose rounding alone moves them by 0.24 (0.014); two
  ranks were no further from the float32 result, 0.20 (0.014).
- Rows do not depend on their company, as in `model.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from auditor.errors import OptionError
from auditor.reference.architecture import LayerPlan, ModelConfig, Norm
from auditor.reference.batch import AttentionHook, KeyValueHook, ResidualHook, Span
from auditor.reference.layers.build import build_layer
from auditor.reference.layers.linear import Product
from auditor.reference.layers.mlp import MlpPlan
from auditor.reference.layers.norm import RmsNorm
from auditor.reference.layers.parameters import Parameters, WeightsHook
from auditor.reference.layers.self_attention import AttentionPlan
from auditor.reference.model import Model
from auditor.reference.pipeline import consecutive
from auditor.reference.ranks import Ranks
from auditor.reference.slots import SlotKV
from auditor.reference.streaming import LayerStream

Division = Literal["tensors", "layers"]
_OTHERWISE = "divide the model by layers, or run it in one process"


@dataclass(frozen=True, slots=True, eq=False)
class ParallelModel:
    """A `ReferenceModel` of which each rank holds a part; see the module for what callers owe."""

    ranks: Ranks
    by: Division
    _whole: Model  # embedding, final norm and head, and where layers are read from
    _own: Model  # the same ends around this rank's part of the layers

    @classmethod
    def load(
        cls,
        directory: Path | str,
        *,
        by: Division,
        dtype: torch.dtype = torch.float32,
        wide_matmul: bool = False,
        adapter: Path | str | None = None,
    ) -> ParallelModel:
        """Read this rank's part of a checkpoint; options as in `Model.load`.

        Raises:
            OptionError: another division; no process group; a model that cannot be divided so; another rank
                failed, or has another model.
            ModelNotFoundError, ModelUnsafeError, ModelUnsupportedError, ModelCorruptError: as `Model.load`.
        """
        if by not in ("tensors", "layers"):
            raise OptionError(f"a model divided by {by!r}", fix="choose tensors or layers")
        ranks = Ranks.joined()

        def read() -> ParallelModel:
            whole = Model.load(directory, dtype=dtype, wide_matmul=wide_matmul, stream=True, adapter=adapter)
            return cls(ranks, by, whole, _part(whole, ranks, by))

        return ranks.together(read, lambda model: f"{model.digest} by {by} in {dtype} {wide_matmul}")

    @property
    def config(self) -> ModelConfig:
        """The whole model's architecture."""
        return self._whole.config

    @property
    def digest(self) -> str:
        """As `Model.digest`, of the whole checkpoint."""
        return self._whole.digest

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self._whole.dtype

    @property
    def directory(self) -> Path:
        """Where it was loaded from."""
        return self._whole.directory

    @property
    def device(self) -> torch.device:
        """As `Model.device`."""
        return self._own.device

    @property
    def pack_tokens(self) -> int:
        """As `Model.pack_tokens`."""
        return self._own.pack_tokens

    @property
    def calls_at_once(self) -> int:
        """One: the ranks take part in every call."""
        return 1

    @property
    def from_the_beginning(self) -> bool:
        """As `Model.from_the_beginning`."""
        return self._own.from_the_beginning

    def new_cache(self, *, limit: int | None = None) -> SlotKV:
        """An empty cache for this rank's heads or layers."""
        return self._own.new_cache(limit=limit)

    def forward(self, spans: Sequence[Span], cache: SlotKV | None = None, *, exact: bool = True) -> Tensor:
        """As `Model.forward`, on every rank.

        Raises:
            OptionError: another rank was given other rows.
            TraceFieldError, TokenOutOfRangeError, ContextLengthError: as `Model.forward`, on every rank.
        """
        rows = [(span.tokens.tolist(), span.start, span.wanted) for span in spans]
        if not self.ranks.agree(f"{rows} {exact}"):
            raise OptionError("the ranks were given different rows", fix="make the same calls on every rank")
        hidden = self._own.forward(spans, cache, exact=exact)
        return self.ranks.from_last(hidden) if self.by == "layers" else hidden

    def prefill(self, sequences: Iterable[Tensor]) -> Tensor:
        """As `Model.prefill`."""
        return self.forward([Span(tokens) for tokens in sequences])

    def logits(self, hidden: Tensor, *, exact: bool = True, fetch: bool = True) -> Tensor:
        """As `Model.logits`; no rank needs another for it."""
        return self._own.logits(hidden, exact=exact, fetch=fetch)

    def showing(self, layers: Sequence[int]) -> ParallelModel:
        """As `Model.showing`.

        Raises:
            OptionError: as `Model.showing`, or divided by layers, where no rank has all of them.
        """
        return dataclasses.replace(self, _own=self._whole_depth().showing(layers))

    def up_to(self, layer: int) -> ParallelModel:
        """As `Model.up_to`; raises as `showing`."""
        return dataclasses.replace(self, _own=self._whole_depth().up_to(layer))

    def _whole_depth(self) -> Model:
        if self.by == "layers":
            raise OptionError("a layer's states of a model divided by layers", fix="divide it by tensors")
        return self._own

    def replace(
        self,
        *,
        weights: WeightsHook | None = None,
        key_value: KeyValueHook | None = None,
        skip_layers: frozenset[int] = frozenset(),
        attention: AttentionHook | None = None,
        residual: ResidualHook | None = None,
    ) -> ParallelModel:
        """As `Model.replace`; hooks see whole tensors and all heads. This rank's part is read anew.

        Raises:
            OptionError, ModelCorruptError: as `Model.replace`; another rank failed; another attention or
                depth, which no rank sees as a whole.
        """
        if attention is not None or residual is not None:
            raise OptionError(
                "another attention or depth over several ranks", fix="simulate it in one process"
            )

        def read() -> ParallelModel:
            whole = self._whole.replace(weights=weights, key_value=key_value, skip_layers=skip_layers)
            return ParallelModel(self.ranks, self.by, whole, _part(whole, self.ranks, self.by))

        return self.ranks.together(read, lambda model: f"{model.digest} replaced")


def _part(whole: Model, ranks: Ranks, by: Division) -> Model:
    stream = whole._layers  # noqa: SLF001  a streamed model is the whole one without its layers' weights
    assert isinstance(stream, LayerStream)
    if by == "layers":
        return dataclasses.replace(whole, _layers=consecutive(stream, ranks))
    hook = whole._key_value  # noqa: SLF001
    config = dataclasses.replace(
        whole.config, layers=tuple(_narrow(plan, ranks.count) for plan in whole.config.layers)
    )
    parameters = SharedParameters(stream, ranks)
    return dataclasses.replace(
        whole,
        config=config,
        _layers=tuple(build_layer(config, parameters, index) for index in stream.indices),
        _key_value=None if hook is None else WholeKeyValue(hook, ranks),
    )


def _narrow(plan: LayerPlan, ranks: int) -> LayerPlan:
    """One rank's layer: fewer heads and less width.

    Raises:
        OptionError: a kind of layer that is not divided, or sizes that do not divide.
    """
    mixer, feed_forward = plan.mixer, plan.feed_forward
    for part, kind in ((mixer, AttentionPlan), (feed_forward, MlpPlan)):
        if not isinstance(part, kind):
            name = type(part).__name__.removesuffix("Plan")
            raise OptionError(f"layers with {name} are not divided by tensors", fix=_OTHERWISE)
    assert isinstance(mixer, AttentionPlan)
    assert isinstance(feed_forward, MlpPlan)
    if mixer.sinks:
        raise OptionError("attention with sinks is not divided by tensors", fix=_OTHERWISE)
    sizes = ((mixer.key_value_heads, "key/value heads"), (feed_forward.width, "rows of a feed-forward part"))
    for size, what in sizes:
        if size % ranks:
            raise OptionError(f"{size} {what} do not divide among {ranks} ranks", fix=_OTHERWISE)
    mixer = dataclasses.replace(
        mixer, heads=mixer.heads // ranks, key_value_heads=mixer.key_value_heads // ranks
    )
    return dataclasses.replace(
        plan, mixer=mixer, feed_forward=dataclasses.replace(feed_forward, width=feed_forward.width // ranks)
    )


@dataclass(frozen=True, slots=True)
class Cut:
    """How a tensor is shared: along `dim`, each of `parts` that stand side by side there among all ranks."""

    dim: int
    parts: tuple[int, ...]

    def whole(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the tensor of which a rank's share has `shape`."""
        return (*shape[: self.dim], sum(self.parts), *shape[self.dim + 1 :])

    def share(self, whole: Tensor, ranks: Ranks) -> Tensor:
        """Copy this rank's rows or columns."""
        parts = torch.split(whole, list(self.parts), self.dim)
        return torch.cat([part.chunk(ranks.count, self.dim)[ranks.own] for part in parts], self.dim)


def _cuts(plan: LayerPlan, prefix: str) -> dict[str, Cut]:
    """By a tensor's name, of an undivided layer; what is not named is on every rank."""
    mixer, mlp = plan.mixer, plan.feed_forward
    assert isinstance(mixer, AttentionPlan)
    assert isinstance(mlp, MlpPlan)
    query, key, width = mixer.heads * mixer.head_dim, mixer.key_value_heads * mixer.head_dim, mlp.width
    gate, up, down = mlp.names
    by_outputs = {
        "self_attn": {"qkv_proj": (query, key, key)}
        if mixer.fused
        else {"q_proj": (query,), "k_proj": (key,), "v_proj": (key,)},
        mlp.module: {gate: (width,), up: (width,)} if mlp.fused is None else {mlp.fused: (width, width)},
    }
    cuts = {
        f"{prefix}.{part}.{module}.{kind}": Cut(0, sizes)
        for part, modules in by_outputs.items()
        for module, sizes in modules.items()
        for kind in ("weight", "bias")
    }
    cuts[f"{prefix}.self_attn.o_proj.weight"] = Cut(1, (query,))
    cuts[f"{prefix}.{mlp.module}.{down}.weight"] = Cut(1, (width,))
    return cuts


class SharedParameters(Parameters):
    """Hands narrow plans their share of a checkpoint; hooks and checks still see whole tensors."""

    def __init__(self, stream: LayerStream, ranks: Ranks) -> None:
        config = stream.config
        super().__init__(
            stream.source,
            stream.dtype,
            config.norm,
            wide_matmul=stream.wide_matmul,
            hook=stream.hook,
            where=stream.where,
        )
        self._ranks = ranks
        self._cuts: dict[str, Cut] = {}
        self._wide_norms: set[str] = set()
        for index, plan in enumerate(config.layers):
            prefix = config.layer_prefix.format(index)
            self._cuts |= _cuts(plan, prefix)
            if getattr(plan.mixer, "qk_norm", None) == "projection":
                self._wide_norms |= {f"{prefix}.self_attn.{part}_norm" for part in "qk"}

    def linear(self, module: str, outputs: int, inputs: int, *, bias: bool = False) -> Product:
        """As `Parameters.linear`, of this rank's share; the sum over ranks where inputs are divided.

        Raises:
            OptionError: a product of its own: rounded inputs, or an adapter.
        """
        if self._source.product(module, self.dtype) is not None:
            raise OptionError(
                f"{module} has rounded inputs or an adapter, and is not divided by tensors", fix=_OTHERWISE
            )
        cut = self._cuts.get(f"{module}.weight")
        if cut is None or cut.dim == 0:
            return super().linear(module, outputs, inputs, bias=bias)
        partial = super().linear(module, outputs, inputs)
        return Summed(partial, self.matrix(f"{module}.bias", outputs) if bias else None, self._ranks)

    def norm(self, name: str, size: int, plan: Norm | None = None) -> RmsNorm:
        """As `Parameters.norm`; over all ranks' heads where the norm is."""
        if name not in self._wide_norms:
            return super().norm(name, size, plan)
        own = super().norm(name, size * self._ranks.count, plan)
        return WideNorm(own.weight, own.plan, self._ranks)

    def _read(
        self, name: str, shape: tuple[int, ...], held: torch.dtype, rounded: torch.dtype | None = None
    ) -> Tensor:
        cut = self._cuts.get(name)
        if cut is None:
            return super()._read(name, shape, held, rounded)
        whole = super()._read(name, cut.whole(shape), held, rounded)
        self.tensors[name] = cut.share(whole, self._ranks)
        return self.tensors[name]


@dataclass(frozen=True, slots=True, eq=False)
class Summed:
    """A product whose inputs are divided: partial results added in the order of ranks, then the bias."""

    partial: Product
    bias: Tensor | None
    ranks: Ranks

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, own inputs] -> [rows, outputs], in float32 until the end."""
        total, *others = self.ranks.gather(self.partial(x.float()))
        for other in others:
            total = total + other
        return (total if self.bias is None else total + self.bias).to(x.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class WideNorm(RmsNorm):
    """A norm of all ranks' heads together (OLMo 2); gives this rank's back."""

    ranks: Ranks

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, own] -> [rows, own]."""
        whole = RmsNorm.__call__(self, torch.cat(self.ranks.gather(x), dim=-1))
        return whole.chunk(self.ranks.count, dim=-1)[self.ranks.own]


@dataclass(frozen=True, slots=True, eq=False)
class WholeKeyValue:
    """A `KeyValueHook` that is shown all ranks' heads."""

    hook: KeyValueHook
    ranks: Ranks

    def __call__(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What the hook returns for the heads of this rank."""
        whole = (torch.cat(self.ranks.gather(part), dim=1) for part in (keys, values))
        keys, values = (
            part.chunk(self.ranks.count, dim=1)[self.ranks.own] for part in self.hook(layer, *whole)
        )
        return keys, values
