"""The trusted forward pass: Llama, Mistral, Qwen2 and Qwen3, written out once.

Invariants: arithmetic and rounding follow transformers 5.19 (`modeling_llama.py`, `modeling_qwen3.py`,
`sdpa_attention.py`): RMS norms in float32 then cast, rotary angles in float32 then cast, SDPA in the model
dtype, logits in the model dtype then cast to float32. Sequences are packed, never padded: the row-wise
layers run on all rows at once, attention runs on one sequence at a time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from auditor.errors import ContextLengthError, OptionError, TokenOutOfRangeError, TraceFieldError
from auditor.reference.config import ModelConfig, read_config
from auditor.reference.layer import EMBEDDING, FINAL_NORM, HEAD, Layer, build_layer, check_parameters
from auditor.reference.weights import DTYPES, load_weights, weights_digest

if TYPE_CHECKING:
    from auditor.reference.kv_cache import KVCache

WeightsHook = Callable[[str, Tensor], Tensor]
KeyValueHook = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
Attend = Callable[[Layer, Tensor, Tensor, Tensor], Tensor]

# From this many rows on, the bits of a float32 product were measured not to depend on their number.
LEAST_ROWS = 16


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A loaded checkpoint; immutable, and safe to share between threads.

    Attributes:
        config: the architecture.
        digest: `weights_digest` of the files it was loaded from, which a modified copy keeps.
        dtype: what it computes in.
        directory: where it was loaded from.
        parameters: every parameter under its HF name (views of the fused matrices; do not write to them).

    """

    config: ModelConfig
    digest: str
    dtype: torch.dtype
    directory: Path
    parameters: dict[str, Tensor]
    _layers: tuple[Layer, ...]
    _frequencies: Tensor
    _wide_matmul: bool = False
    _key_value: KeyValueHook | None = None

    @classmethod
    def load(
        cls, directory: Path | str, *, dtype: torch.dtype = torch.float32, wide_matmul: bool = False
    ) -> Model:
        """Read a local HF checkpoint and round it to `dtype` (float32, bfloat16 or float16).

        `wide_matmul` multiplies the rounded operands in float32 and rounds the result once, instead of
        calling the library's bfloat16 product. It is as exact, about five times quicker on processors without
        bfloat16 instructions, costs 4 bytes a parameter, and is another recipe: its last bits differ.

        Raises:
            OptionError: another dtype.
            ModelNotFoundError, ModelUnsafeError, ModelUnsupportedError, ModelCorruptError: as `read_config`
                and `load_weights`; a tensor that the architecture needs is missing or misshapen, or one that
                it does not use is present.

        """
        if dtype not in DTYPES:
            raise OptionError(f"dtype {dtype}", fix="choose float32, bfloat16 or float16")
        directory = Path(directory)
        config = read_config(directory)
        digest = weights_digest(directory)
        tensors = check_parameters(config, load_weights(directory), dtype, where=str(directory))
        parameters, layers = _assembled(config, tensors, wide_matmul)
        frequencies = rope_frequencies(config)
        return cls(config, digest, dtype, directory, parameters, layers, frequencies, wide_matmul)

    def replace(
        self,
        *,
        weights: WeightsHook | None = None,
        key_value: KeyValueHook | None = None,
        skip_layers: frozenset[int] = frozenset(),
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

        Raises:
            OptionError: a layer number that the model does not have.
            ModelCorruptError: `weights` returned another shape, or NaN or infinity.

        """
        if unknown := sorted(skip_layers - set(range(self.config.num_hidden_layers))):
            raise OptionError(f"layer {unknown[0]} of a model of {self.config.num_hidden_layers} layers")
        parameters, layers = self.parameters, self._layers
        if weights is not None:
            changed = {name: weights(name, tensor.to(self.dtype)) for name, tensor in parameters.items()}
            changed = check_parameters(self.config, changed, self.dtype, where="replaced weights")
            parameters, built = _assembled(self.config, changed, self._wide_matmul)
            layers = tuple(built[layer.index] for layer in layers)
        return dataclasses.replace(
            self,
            parameters=parameters,
            _layers=tuple(layer for layer in layers if layer.index not in skip_layers),
            _key_value=self._key_value if key_value is None else key_value,
        )

    @torch.no_grad()
    def prefill(self, sequences: Sequence[Tensor], *, cache: KVCache | None = None) -> Tensor:
        """Compute hidden states after the final norm, [total tokens, hidden] in `dtype`, packed in order.

        A sequence's rows do not depend on what it is packed with: measured equal to the bit for lengths 1 to
        200 alone and in company (AVX2, torch 2.13, one and two threads, float32, bfloat16 and wide_matmul).
        The matrix library promises no such thing, so the bound that the tests hold every machine to is one
        part in 100,000 of the largest entry in float32 and one in 50 (a few roundings) in bfloat16.

        Args:
            sequences: int64 token ids, each [tokens] and not empty.
            cache: its rows 0..n-1 are overwritten with these sequences' keys and values; it grows as needed.

        Raises:
            TraceFieldError: an empty sequence.
            TokenOutOfRangeError: an id outside the vocabulary.
            ContextLengthError: a sequence longer than the context.
            OptionError: more sequences than the cache has rows, or a cache of another dtype.

        """
        lengths = self._check_sequences(sequences)
        if not lengths:
            return torch.empty(0, self.config.hidden_size, dtype=self.dtype)
        if cache is not None:
            self._check_cache(cache, at_least=len(lengths))
            cache.grow(max(lengths))

        def attend(layer: Layer, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            attended = torch.empty_like(queries)
            start = 0
            for row, length in enumerate(lengths):
                own = slice(start, start + length)
                if cache is not None:
                    cache.write_prompt(layer.index, row, keys[own], values[own])
                attended[own] = _causal_attention(queries[own], keys[own], values[own], layer.sliding_window)
                start += length
            return attended

        positions = torch.cat([torch.arange(length) for length in lengths])
        hidden = self._forward(torch.cat(list(sequences)), positions, attend)
        if cache is not None:
            cache.lengths[: len(lengths)] = torch.tensor(lengths)
        return hidden

    @torch.no_grad()
    def decode(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Append one token to every sequence: int64 [batch] -> hidden states [batch, hidden] in `dtype`.

        Raises:
            TokenOutOfRangeError: an id outside the vocabulary.
            ContextLengthError: a sequence that already fills the context.
            OptionError: not one token a row, or a cache of another dtype.

        """
        if tokens.shape != (cache.batch,):
            raise OptionError(f"{list(tokens.shape)} tokens for a cache of {cache.batch} rows")
        self._check_cache(cache, at_least=cache.batch)
        self._check_ids(tokens, "decode")
        if cache.batch == 0:
            return torch.empty(0, self.config.hidden_size, dtype=self.dtype)
        end = int(cache.lengths.max()) + 1
        cache.grow(end)
        masks = {
            window: _decode_mask(cache.lengths, end, window) for window in set(self.config.sliding_windows)
        }

        def attend(layer: Layer, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            cache.write_next(layer.index, keys, values)
            stored = cache.keys[layer.index, :, :, :end], cache.values[layer.index, :, :, :end]
            return _decode_attention(queries, *stored, masks[layer.sliding_window])

        hidden = self._forward(tokens, cache.lengths, attend)
        cache.lengths += 1
        return hidden

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Turn hidden states [n, hidden] into float32 logits [n, vocab], rounded to `dtype` on the way."""
        head = self.parameters[EMBEDDING if self.config.tie_word_embeddings else HEAD]
        return _linear(hidden, head, None).float()

    def _forward(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        config, eps = self.config, self.config.rms_norm_eps
        heads, key_value_heads = config.num_attention_heads, config.num_key_value_heads
        angles = positions[:, None, None].float() * self._frequencies
        cos, sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        hidden = functional.embedding(tokens, self.parameters[EMBEDDING]).to(self.dtype)
        for layer in self._layers:
            normed = _rms_norm(hidden, layer.attention_norm, eps)
            qkv = _linear(normed, layer.qkv, layer.qkv_bias).view(len(tokens), -1, config.head_dim)
            qk, values = torch.split(qkv, [heads + key_value_heads, key_value_heads], dim=1)
            if layer.qk_norm is not None:
                qk = _rms_norm(qk, layer.qk_norm, eps)
            queries, keys = torch.split(_rotate(qk, cos, sin), [heads, key_value_heads], dim=1)
            if self._key_value is not None:
                keys, values = self._key_value(layer.index, keys, values)
            attended = attend(layer, queries, keys, values).flatten(1)
            hidden = hidden + _linear(attended, layer.output, layer.output_bias)
            normed = _rms_norm(hidden, layer.mlp_norm, eps)
            gate, up = _linear(normed, layer.gate_up, layer.gate_up_bias).chunk(2, dim=1)
            hidden = hidden + _linear(functional.silu(gate) * up, layer.down, layer.down_bias)
        return _rms_norm(hidden, self.parameters[FINAL_NORM], eps)

    def _check_sequences(self, sequences: Sequence[Tensor]) -> list[int]:
        for number, tokens in enumerate(sequences):
            where = f"sequence {number}"
            if tokens.dim() != 1 or len(tokens) == 0:
                raise TraceFieldError("token ids must be a non-empty row", where=where)
            if len(tokens) > self.config.context_length:
                raise ContextLengthError(
                    f"{len(tokens)} tokens; the model has {self.config.context_length} positions", where=where
                )
            self._check_ids(tokens, where)
        return [len(tokens) for tokens in sequences]

    def _check_ids(self, tokens: Tensor, where: str) -> None:
        if tokens.dtype != torch.int64:
            raise OptionError(f"token ids are {tokens.dtype}, not int64", where=where)
        outside = tokens[(tokens < 0) | (tokens >= self.config.vocab_size)]
        if len(outside):
            raise TokenOutOfRangeError(
                f"token id {int(outside[0])}; the vocabulary has {self.config.vocab_size}", where=where
            )

    def _check_cache(self, cache: KVCache, *, at_least: int) -> None:
        if cache.batch < at_least or cache.dtype != self.dtype:
            raise OptionError(
                f"a cache of {cache.batch} rows of {cache.dtype} for {at_least} sequences of {self.dtype}"
            )


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Rotary frequencies, float32 [head_dim / 2], to the bit as `modeling_rope_utils.py` computes them."""
    rope = config.rope
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.rope_type == "linear":
        return frequencies / rope.factor
    if rope.rope_type == "default":
        return frequencies
    # llama3: long waves are stretched, short ones kept, those between interpolated.
    low, high, original = rope.low_freq_factor, rope.high_freq_factor, rope.original_context_length
    wavelengths = 2 * math.pi / frequencies
    scaled = torch.where(wavelengths > original / low, frequencies / rope.factor, frequencies)
    smooth = (original / wavelengths - low) / (high - low)
    smoothed = (1 - smooth) * scaled / rope.factor + smooth * scaled
    between = (wavelengths >= original / high) & (wavelengths <= original / low)
    return torch.where(between, smoothed, scaled)


def _assembled(
    config: ModelConfig, tensors: dict[str, Tensor], wide_matmul: bool
) -> tuple[dict[str, Tensor], tuple[Layer, ...]]:
    """Parameters as they are computed with, and the layers made of them."""
    parameters = {
        name: tensor.float() if wide_matmul and not name.endswith("norm.weight") else tensor
        for name, tensor in tensors.items()
    }
    layers = tuple(build_layer(config, parameters, index) for index in range(config.num_hidden_layers))
    return parameters, layers


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias` in the weight's dtype, rounded to `x`'s.

    Few rows are padded to `LEAST_ROWS`: the libraries sum in another order there, and a row's bits must not
    depend on how many rows it came with.
    """
    rows = len(x)
    if rows < LEAST_ROWS:
        x = functional.pad(x, (0, 0, 0, LEAST_ROWS - rows))
    return functional.linear(x.to(weight.dtype), weight, bias)[:rows].to(x.dtype)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + head_dim / 2) of [tokens, heads, head_dim] by angles [tokens, 1, head_dim / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _causal_attention(queries: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    """Attention of one sequence with itself; all [tokens, heads, head_dim]."""
    length = queries.shape[0]
    mask = None
    if window is not None and window < length:
        age = torch.arange(length)[:, None] - torch.arange(length)
        mask = (age >= 0) & (age < window)
    attended = functional.scaled_dot_product_attention(
        queries.transpose(0, 1)[None],
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=True,
    )
    return attended[0].transpose(0, 1)


def _decode_mask(lengths: Tensor, end: int, window: int | None) -> Tensor:
    """Which stored positions each row's new token (at position `length`) sees: boolean [batch, 1, 1, end]."""
    age = lengths[:, None] - torch.arange(end)
    seen = age >= 0 if window is None else (age >= 0) & (age < window)
    return seen[:, None, None, :]


def _decode_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention of one token a row with what its row has stored, all heads at once.

    Queries are [batch, heads, head_dim], keys and values [batch, key/value heads, end, head_dim]. The query
    heads that share a key/value head stand as that head's query rows, so that SDPA reads the cache once
    instead of copying it per query head.
    """
    grouped = queries.reshape(len(queries), keys.shape[1], -1, keys.shape[3])
    mask = mask.expand(-1, -1, grouped.shape[2], -1)
    return functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).flatten(1, 2)
