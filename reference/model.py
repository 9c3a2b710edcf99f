"""The trusted forward pass: a list of layers over packed rows.

Invariants: arithmetic and rounding follow transformers 5.19 (norms and rotary angles in float32 then cast,
attention and products in the model dtype, logits in the model dtype then cast to float32). A row's result
does not depend on what it is packed with, nor on where its sequence was cut, to the bit on CPUs with oneDNN
or MKL (tests/reference/test_invariance.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from auditor.errors import OptionError
from auditor.reference.architecture import ModelConfig
from auditor.reference.batch import AttentionHook, KeyValueHook, ResidualHook, Run, Span, check_spans
from auditor.reference.checkpoint.adapters import AdaptedTensors, Adapter
from auditor.reference.checkpoint.digests import adapted_digest, adapter_digest, weights_digest
from auditor.reference.checkpoint.files import DTYPES, Checkpoint
from auditor.reference.checkpoint.quantized import ServedTensors, key_value_of
from auditor.reference.config import read_config
from auditor.reference.device import CPU, on_gpu
from auditor.reference.few_rows import MOST_ROWS, FewRows, few_rows_of
from auditor.reference.layers.build import DecoderLayer, build_layer
from auditor.reference.layers.linear import ROW_TILE, Linear
from auditor.reference.layers.norm import RmsNorm
from auditor.reference.layers.parameters import Parameters, TensorsInMemory, TensorSource, WeightsHook
from auditor.reference.slots import SlotKV
from auditor.reference.streaming import LayerStream, fits_in_memory, free_memory

# Share of the memory that is free when decoding begins which a second copy of the weights may take.
SPARE_SHARE = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A loaded checkpoint; immutable, and safe to share between threads.

    Attributes:
        config: the architecture.
        digest: `weights_digest` of the files it was loaded from, with an adapter `adapted_digest`; a modified
            copy keeps it.
        dtype: what it computes in.
        directory: where it was loaded from.
        parameters: every parameter in memory under its HF name (views of the fused matrices; do not write to
            them). A streamed model's layers are not among them.
        device: where it computes (`device.py`).
    """

    config: ModelConfig
    digest: str
    dtype: torch.dtype
    directory: Path
    parameters: dict[str, Tensor]
    _layers: tuple[DecoderLayer, ...] | LayerStream
    _final_norm: RmsNorm | None
    _head: Linear
    device: torch.device = CPU
    _wide_matmul: bool = False
    _key_value: KeyValueHook | None = None
    _attention: AttentionHook | None = None
    _residual: ResidualHook | None = None
    _shown: tuple[int, ...] = ()
    _few: dict[str, FewRows | None] = field(init=False, default_factory=dict)

    @classmethod
    def load(
        cls,
        directory: Path | str,
        *,
        dtype: torch.dtype = torch.float32,
        wide_matmul: bool = False,
        stream: bool | None = None,
        adapter: Path | str | None = None,
        device: torch.device = CPU,
    ) -> Model:
        """Read a local HF checkpoint and round it to `dtype` (float32, bfloat16 or float16).

        `stream` reads layers when they are needed instead of holding them: the same bits, in little memory,
        at the disk's pace. None does so when the weights would take too much of the memory that is free.

        A quantization that the checkpoint declares is run as declared: weights, rounded inputs, and the
        key/value cache.

        `adapter` is a PEFT LoRA directory, computed beside each product in the compute dtype, as engines do,
        and not merged into the weights.

        `wide_matmul` multiplies the rounded operands in float32 and rounds the result once, instead of
        calling the library's half-precision product. It is as exact, much quicker on processors without
        bfloat16 instructions, costs 4 bytes a parameter, and is another recipe: its last bits differ.

        Raises:
            OptionError: another dtype.
            ModelNotFoundError, ModelUnsafeError, ModelUnsupportedError, ModelCorruptError: as `read_config`
                and `ServedTensors.of`; a tensor that the architecture needs is missing or misshapen, or one
                that it does not use is present.
        """
        if dtype not in DTYPES:
            raise OptionError(f"dtype {dtype}", fix="choose float32, bfloat16 or float16")
        directory = Path(directory)
        config = read_config(directory)
        digest = weights_digest(directory)
        checkpoint = Checkpoint.open(directory)
        source: TensorSource = ServedTensors.of(checkpoint, dtype)
        if adapter is not None:
            source = AdaptedTensors.of(source, Adapter.open(adapter), merge=False)
            digest = adapted_digest(digest, adapter_digest(adapter))
        held = torch.float32 if wide_matmul else dtype
        parameters = Parameters(
            source, dtype, config.norm, wide_matmul=wide_matmul, where=str(directory), device=device
        )
        final_norm, head = _ends(config, parameters)
        layers: tuple[DecoderLayer, ...] | LayerStream
        if stream or (stream is None and not fits_in_memory(checkpoint, held, device)):
            layers = LayerStream.checked(
                config, checkpoint, source, dtype, wide_matmul=wide_matmul, device=device
            )
        else:
            layers = tuple(
                build_layer(config, parameters, index) for index in range(config.num_hidden_layers)
            )
            parameters.check_all_used(lambda name: _is_spare(config, source, name))
        key_value = key_value_of(checkpoint, config.num_hidden_layers)
        return cls(
            config,
            digest,
            dtype,
            directory,
            parameters.tensors,
            layers,
            final_norm,
            head,
            device,
            wide_matmul,
            key_value,
        )

    @property
    def pack_tokens(self) -> int:
        """Rows worth packing into one call: a streamed model reads every layer once a call.

        Otherwise one tile keeps the products busy, and a larger pack only holds more activations: it is as
        large as the longest sequence may be, up to 2,048, so that few are cut. A GPU takes 8,192.
        """
        if isinstance(self._layers, LayerStream):
            return 16_384
        if on_gpu(self.device):
            return 8_192
        return min(max(ROW_TILE, self.config.context_length), 2_048)

    @property
    def calls_at_once(self) -> int:
        """Calls worth running side by side, a thread each; a streamed model reads its layers once for all."""
        return 1 if isinstance(self._layers, LayerStream) or on_gpu(self.device) else torch.get_num_threads()

    @property
    def from_the_beginning(self) -> bool:
        """Whether hooks look at whole sequences: nothing is shared with another one, no tree is verified."""
        return self._attention is not None or self._residual is not None

    def replace(
        self,
        *,
        weights: WeightsHook | None = None,
        key_value: KeyValueHook | None = None,
        skip_layers: frozenset[int] = frozenset(),
        attention: AttentionHook | None = None,
        residual: ResidualHook | None = None,
    ) -> Model:
        """Return a modified copy, for simulating providers that do not run what they sold.

        Args:
            weights: `(HF name, tensor in the model's dtype) -> tensor` of the same shape, applied to every
                parameter; with tied embeddings the one matrix is named `model.embed_tokens.weight`.
            key_value: `(layer, keys, values) -> (keys, values)`, each [tokens, key/value heads, head_dim],
                applied to rotated keys and to values before they are stored or attended to, in prefill and
                decode. The rows of several sequences come together. It takes the place of an earlier one.
            skip_layers: decoder layers to leave out, besides those that already are; the others keep their
                numbers.
            attention, residual: what attention layers gather instead, and what layers leave behind
                (`batch.py`). Neither verifies draft trees or begins behind a stored prefix; the second sees
                whole sequences, so that such a model scores and does not decode.

        Raises:
            OptionError: a layer number that the model does not have.
            ModelCorruptError: `weights` returned another shape, or NaN or infinity.
        """
        if unknown := sorted(skip_layers - set(range(self.config.num_hidden_layers))):
            raise OptionError(f"layer {unknown[0]} of a model of {self.config.num_hidden_layers} layers")
        changed, layers = self, self._layers
        if weights is not None:
            parameters = Parameters(
                TensorsInMemory(self.parameters),
                self.dtype,
                self.config.norm,
                wide_matmul=self._wide_matmul,
                hook=weights,
                where="replaced weights",
                device=self.device,
            )
            final_norm, head = _ends(self.config, parameters)
            if isinstance(layers, LayerStream):
                layers = dataclasses.replace(layers, hook=_both(layers.hook, weights))
            else:
                layers = tuple(build_layer(self.config, parameters, layer.index) for layer in layers)
            changed = dataclasses.replace(
                self,
                parameters=parameters.tensors,
                _final_norm=None if self._final_norm is None else final_norm,
                _head=head,
            )
        return dataclasses.replace(
            changed,
            _layers=_kept(layers, lambda index: index not in skip_layers),
            _key_value=self._key_value if key_value is None else key_value,
            _attention=self._attention if attention is None else attention,
            _residual=self._residual if residual is None else residual,
        )

    def showing(self, layers: Sequence[int]) -> Model:
        """Return a copy whose hidden states are followed by the residual stream after some decoder layers.

        `forward` then returns [rows, (1 + layers) x hidden], in `dtype`.

        Raises:
            OptionError: a layer number that the model does not have.
        """
        for layer in layers:
            self._check_layer(layer)
        return dataclasses.replace(self, _shown=tuple(layers))

    def up_to(self, layer: int) -> Model:
        """Return a copy that stops after decoder layer `layer`; its hidden states are the residual there.

        What comes later is not computed, hence it has no logits.

        Raises:
            OptionError: a layer number that the model does not have.
        """
        self._check_layer(layer)
        kept = _kept(self._layers, lambda index: index <= layer)
        return dataclasses.replace(self, _layers=kept, _final_norm=None, _shown=())

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < self.config.num_hidden_layers:
            raise OptionError(f"layer {layer} of a model of {self.config.num_hidden_layers} layers")

    def new_cache(self, *, limit: int | None = None) -> SlotKV:
        """An empty key/value cache for this model, of at most `limit` positions."""
        layout = tuple(getattr(plan.mixer, "key_value_shape", None) for plan in self.config.layers)
        return SlotKV(layout, self.dtype, limit=limit, device=self.device)

    @torch.no_grad()
    def forward(self, spans: Sequence[Span], cache: SlotKV | None = None, *, exact: bool = True) -> Tensor:
        """Hidden states after the final norm of the wanted rows, [wanted rows, hidden], on its device.

        Args:
            cache: where the spans' slots are; not needed when no span has any.
            exact: see `batch.Run`. Prefill is exact; decoding is quicker without.

        Raises:
            TraceFieldError: an empty span.
            TokenOutOfRangeError: an id outside the vocabulary.
            ContextLengthError: a position beyond the context.
            OptionError: a hook that sees whole sequences, asked for a part of one.
        """
        if not exact and (few := self._few_rows(spans)) is not None:
            assert cache is not None, "rows to keep need a cache"
            return few.forward(spans, cache)
        if not spans:
            width = self.config.hidden_size * (1 + len(self._shown))
            return torch.empty(0, width, dtype=self.dtype, device=self.device)
        check_spans(spans, self.config.vocab_size, self.config.context_length)
        self._check_hooks(spans)
        run = Run(spans, cache, self.dtype, exact, self._key_value, self._attention, self.device)
        tokens = torch.cat([span.tokens for span in spans]).to(self.device)
        hidden = functional.embedding(tokens, self.parameters[self.config.embedding]).to(self.dtype)
        if self.config.embedding_scale != 1.0:
            scale = torch.tensor(self.config.embedding_scale, dtype=self.dtype)
            hidden = hidden * (scale if self.config.round_embedding_scale else self.config.embedding_scale)
        if self.config.residual_float32:
            hidden = hidden.float()
        wanted, taps = run.wanted, self._taps
        shown = {-1: _copied(hidden, wanted)} if -1 in taps else {}
        for place, layer in enumerate(self._layers, start=1):
            last = place == len(self._layers)
            if self._residual is None:
                hidden = layer(hidden, run, wanted if last else None)
            else:
                before = hidden.clone()
                hidden = self._residual(layer.index, before, layer(hidden, run), run.decoded)
                if last and wanted is not None:
                    hidden = hidden[wanted]
            if taps and layer.index in taps:
                shown[layer.index] = hidden if last else _copied(hidden, wanted)
        if len(self._layers) == 0 and wanted is not None:
            hidden = hidden[wanted]
        final = (hidden if self._final_norm is None else self._final_norm(hidden)).to(self.dtype)
        return torch.cat([final, *(shown[tap].to(self.dtype) for tap in taps)], dim=1) if taps else final

    def _few_rows(self, spans: Sequence[Span]) -> FewRows | None:
        """The path of few rows; None where there is none for these."""
        few = sum(span.tokens.shape[0] for span in spans) <= MOST_ROWS
        return self._few_path if few and spans and all(span.keep is not None for span in spans) else None

    @property
    def _few_path(self) -> FewRows | None:
        """Made when it is first asked for."""
        if "made" not in self._few:
            other = (self._key_value, self._attention, self._residual, self._shown or None)
            plain = self.dtype == torch.float32 and all(hook is None for hook in other)
            elsewhere = isinstance(self._layers, LayerStream) or on_gpu(self.device)
            layers = self._layers if plain and not elsewhere else ()
            packed = sum(t.nbytes for t in self.parameters.values()) <= SPARE_SHARE * free_memory()
            ends = self._final_norm, self._head, self.parameters[self.config.embedding]
            self._few["made"] = few_rows_of(self.config, layers, ends, packed=packed)
        return self._few["made"]

    def _check_hooks(self, spans: Sequence[Span]) -> None:
        if self._residual is not None and any(span.past is not None for span in spans):
            raise OptionError(
                "this provider's depth is simulated on whole sequences only",
                fix="measure it by `audit matrix`; it cannot decode",
            )
        if self.from_the_beginning and any(span.branches for span in spans):
            raise OptionError("under a policy draft trees cannot be verified", fix="decode without drafts")

    @property
    def _taps(self) -> tuple[int, ...]:
        """For each shown layer the last one up to it that is not left out, -1 if all are."""
        if not self._shown:
            return ()
        layers = self._layers
        kept = layers.indices if isinstance(layers, LayerStream) else [layer.index for layer in layers]
        return tuple(max((index for index in kept if index <= point), default=-1) for point in self._shown)

    def prefill(self, sequences: Iterable[Tensor]) -> Tensor:
        """Hidden states of whole sequences (int64 [tokens] each), [total tokens, hidden], packed in order.

        Raises:
            TraceFieldError, TokenOutOfRangeError, ContextLengthError: as `forward`.
        """
        return self.forward([Span(tokens) for tokens in sequences])

    @torch.no_grad()
    def logits(self, hidden: Tensor, *, exact: bool = True, fetch: bool = True) -> Tensor:
        """Turn hidden states [n, hidden] into float32 logits [n, vocab], rounded to `dtype` on the way.

        Columns beyond `hidden` (`showing`) are not looked at. `exact` is as `forward` has it. Without `fetch`
        they stay on the model's device.
        """
        hidden = hidden[:, : self.config.hidden_size].contiguous()
        few = None if exact or len(hidden) > MOST_ROWS else self._few_path
        logits = self._head(hidden).float() if few is None else few.logits(hidden)
        if self.config.logits_divisor != 1.0:
            logits = (logits / self.config.logits_divisor).to(self.dtype).float()
        if self.config.logits_softcap:
            cap = self.config.logits_softcap
            logits = torch.tanh((logits / cap).to(self.dtype)).mul(cap).float()
        return logits.cpu() if fetch else logits


def _ends(config: ModelConfig, parameters: Parameters) -> tuple[RmsNorm, Linear]:
    """The final norm and the head; the embedding is read on the way."""
    shape = (config.vocab_size, config.hidden_size)
    embedding = parameters.matrix(config.embedding, *shape)
    head = embedding if config.tie_word_embeddings else parameters.matrix(config.head, *shape)
    return parameters.norm(config.final_norm.removesuffix(".weight"), config.hidden_size), Linear(head)


def _copied(hidden: Tensor, wanted: Tensor | None) -> Tensor:
    """The wanted rows, apart from what the next layer overwrites."""
    return hidden.clone() if wanted is None else hidden[wanted]


def _kept(
    layers: tuple[DecoderLayer, ...] | LayerStream, keep: Callable[[int], bool]
) -> tuple[DecoderLayer, ...] | LayerStream:
    if isinstance(layers, LayerStream):
        return dataclasses.replace(layers, indices=tuple(filter(keep, layers.indices)))
    return tuple(layer for layer in layers if keep(layer.index))


def _both(first: WeightsHook | None, second: WeightsHook) -> WeightsHook:
    return second if first is None else lambda name, tensor: second(name, first(name, tensor))


def _is_spare(config: ModelConfig, source: TensorSource, name: str) -> bool:
    """Whether nothing is lost without `name`: the tied output matrix, written twice, or a part left out."""
    if name.startswith(config.ignored):
        return True
    tied = config.tie_word_embeddings and name == config.head
    return tied and torch.equal(source.tensor(name), source.tensor(config.embedding))
