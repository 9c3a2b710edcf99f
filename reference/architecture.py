"""What a model is made of, as data: plans of layers, each naming the parts that `layers/` builds.

A family file turns one `config.json` into a `ModelConfig`; nothing else in the runner knows a family's name.
Plans say everything that moves a logit, so two models with equal plans and equal tensors are the same model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from auditor.reference.layers.build import Mixing, Parameters, RowWise


@dataclass(frozen=True, slots=True)
class Norm:
    """Root-mean-square norm; arithmetic is float32 in every form.

    Attributes:
        eps: added to the mean square before its root.
        offset: added to the weight (Gemma stores weight - 1).
        late_cast: the weight multiplies before the result is rounded (Gemma, OLMo 2), not after (Llama).
    """

    eps: float
    offset: float = 0.0
    late_cast: bool = False


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions of one kind of layer.

    Attributes:
        theta: base of the frequencies.
        rope_type: `default`, `linear`, `llama3`, `yarn` or `longrope`; what follows is 1 or 0 where unused.
        rotary_dim: how many of a head's dimensions turn, 0 for all of them.
        factor: how much the context was stretched.
        low_freq_factor, high_freq_factor, original_context_length: llama3's band, or yarn's original length.
        beta_fast, beta_slow, truncate: yarn's band.
        short_factors, long_factors: longrope's divisors, one a frequency.
        attention_factor: scales cosine and sine (yarn, longrope).
        interleaved: pairs are neighbours (2i, 2i + 1) instead of halves (i, i + dim / 2); what is rotated is
            written as halves.
        float32: cosine and sine are not rounded before the rotation, its result is (OLMo 2).
    """

    theta: float = 10_000.0
    rope_type: Literal["default", "linear", "llama3", "yarn", "longrope"] = "default"
    rotary_dim: int = 0
    factor: float = 1.0
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    original_context_length: int = 0
    beta_fast: float = 0.0
    beta_slow: float = 0.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    attention_factor: float = 1.0
    interleaved: bool = False
    float32: bool = False


class MixerPlan(Protocol):
    """How positions of a sequence exchange information: attention in some form, or a recurrence."""

    def build(self, parameters: Parameters, prefix: str, index: int) -> Mixing:
        """Read what it needs under `prefix` (`model.layers.3`) and return the layer's mixer."""
        ...


class FeedForwardPlan(Protocol):
    """What a layer does with each row alone."""

    def build(self, parameters: Parameters, prefix: str) -> RowWise:
        """Read what it needs under `prefix` and return the layer's feed-forward part."""
        ...


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One decoder layer: x + mixer(norm(x)), then x + feed_forward(norm(x)).

    Attributes:
        mixer_norm, feed_forward_norm: names of the norms before each part, None where there is none (OLMo 2).
        mixer_post_norm, feed_forward_post_norm: names of norms of each part's output (Gemma, OLMo 2).
        feed_forward: None for a layer that only mixes (Mamba).
        scale: what each part's output is multiplied by before it is added (Granite's residual multiplier).
    """

    mixer: MixerPlan
    feed_forward: FeedForwardPlan | None
    mixer_norm: str | None = "input_layernorm"
    feed_forward_norm: str | None = "post_attention_layernorm"
    mixer_post_norm: str | None = None
    feed_forward_post_norm: str | None = None
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The architecture of one decoder-only model.

    Attributes:
        model_type: as `config.json` has it.
        context_length: the most positions a sequence may have.
        norm: of every norm that a plan names, and of the final one.
        tie_word_embeddings: the output matrix is the embedding matrix.
        embedding_scale: what embeddings are multiplied by, rounded to the compute dtype first (Gemma)
            unless `round_embedding_scale` is off (Granite).
        residual_float32: what layers add to is float32, what they read of it is rounded (Mamba).
        logits_softcap: logits become c * tanh(logits / c); 0 leaves them.
        logits_divisor: logits are divided by it (Granite).
        ignored: beginnings of names of tensors that a checkpoint may have and this model does not use.
        embedding, final_norm, head: tensor names. layer_prefix: of layer i, with `{}` for i.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    context_length: int
    norm: Norm
    tie_word_embeddings: bool
    layers: tuple[LayerPlan, ...]
    embedding_scale: float = 1.0
    round_embedding_scale: bool = True
    residual_float32: bool = False
    logits_softcap: float = 0.0
    logits_divisor: float = 1.0
    ignored: tuple[str, ...] = ()
    embedding: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    head: str = "lm_head.weight"
    layer_prefix: str = "model.layers.{}"

    @property
    def num_hidden_layers(self) -> int:
        """Decoder layers."""
        return len(self.layers)

    @property
    def shares_prefixes(self) -> bool:
        """Whether what layers keep of a sequence's beginning serves every sequence that begins so.

        A recurrent layer keeps nothing by position, and longrope turns the keys of long sequences otherwise.
        """
        return all(_kept_by_position(plan.mixer, self.context_length) for plan in self.layers)

    @property
    def follows_trees(self) -> bool:
        """Whether rows of a draft tree can be verified; longrope turns keys by the length of the whole."""
        ropes = [getattr(plan.mixer, "rope", None) for plan in self.layers]
        return not any(isinstance(rope, Rope) and rope.rope_type == "longrope" for rope in ropes)


def _kept_by_position(mixer: MixerPlan, context_length: int) -> bool:
    rope = getattr(mixer, "rope", None)
    if (
        isinstance(rope, Rope)
        and rope.rope_type == "longrope"
        and rope.original_context_length < context_length
    ):
        return False
    return hasattr(mixer, "key_value_shape")
