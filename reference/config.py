"""What a checkpoint's `config.json` says about its architecture, read strictly.

Invariant: a `ModelConfig` names an architecture that `model.py` implements exactly as transformers 5.19
does. Whatever this file does not know is refused: a field that is silently ignored here is a reference
that silently differs from what the provider ran.

Sources: `configuration_{llama,mistral,qwen2,qwen3}.py` and `modeling_rope_utils.py` of transformers 5.19
for defaults, precedence of the old and the new rotary fields, and validation.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from auditor.errors import ModelCorruptError, ModelNotFoundError, ModelUnsafeError, ModelUnsupportedError

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
# Rope types and the fields each has besides `rope_theta`.
ROPE_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
DEFAULT_ROPE_THETA = 10_000.0
# What transformers assumes when the file has no such field; llama's is the number of query heads.
DEFAULT_KEY_VALUE_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}
DEFAULT_SLIDING_WINDOW = 4096
DEFAULT_MAX_WINDOW_LAYERS = 28
DEFAULT_QWEN3_HEAD_DIM = 128


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position parameters; `factor` and what follows are 1 and 0 where the type does not use them.

    Attributes:
        rope_type: `default`, `linear` or `llama3`.
        theta: base of the frequencies.
        factor: how much the context was stretched.
        low_freq_factor, high_freq_factor, original_context_length: llama3's interpolation band.

    """

    rope_type: str = "default"
    theta: float = DEFAULT_ROPE_THETA
    factor: float = 1.0
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    original_context_length: int = 0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The architecture of one decoder-only model.

    Attributes:
        model_type: one of `MODEL_TYPES`.
        vocab_size, hidden_size, intermediate_size, num_hidden_layers: as in `config.json`.
        num_attention_heads, num_key_value_heads, head_dim: query heads share key/value heads in groups.
        context_length: `max_position_embeddings`, the most positions a sequence may have.
        rms_norm_eps: added to the mean square before its root.
        tie_word_embeddings: the output matrix is the embedding matrix.
        qkv_bias, output_bias, mlp_bias: which projections have biases.
        qk_norm: RMS normalisation of every query and key head (Qwen3).
        sliding_windows: per layer the number of newest positions it sees, its own included; None is all.
        rope: rotary position parameters.

    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    context_length: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_windows: tuple[int | None, ...]
    rope: Rope


def read_config(directory: Path | str) -> ModelConfig:
    """Read the architecture of the checkpoint in `directory`.

    Raises:
        ModelNotFoundError: no such directory, or no `config.json` in it.
        ModelUnsafeError: the configuration asks for code of its own (`auto_map`, `trust_remote_code`).
        ModelUnsupportedError: an architecture or option that the reference does not implement exactly.
        ModelCorruptError: not a JSON object, or a field with an impossible value (NaN among them).

    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ModelNotFoundError(
            "no such model directory", where=str(directory), fix="give a local checkpoint directory"
        )
    path = directory / "config.json"
    return _Fields(read_json_object(path), path).config()


def read_json_object(path: Path) -> dict[str, Any]:
    """Read the JSON object in a checkpoint's file; NaN and infinities are refused.

    Raises:
        ModelNotFoundError: no such file.
        ModelCorruptError: not UTF-8, not JSON, or not an object.

    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a number in JSON")

    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except FileNotFoundError:
        raise ModelNotFoundError(
            "the checkpoint lacks this file", where=str(path), fix="copy the whole checkpoint"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelCorruptError(f"unreadable: {error}", where=str(path), fix="copy the file again") from error
    if not isinstance(value, dict):
        raise ModelCorruptError(f"expected a JSON object, found {type(value).__name__}", where=str(path))
    return value


@dataclass(frozen=True, slots=True)
class _Fields:
    """Typed reading of one configuration object, with the file named in every error."""

    raw: dict[str, Any]
    path: Path

    def config(self) -> ModelConfig:
        self.refuse_code()
        model_type = self.raw.get("model_type")
        if model_type not in MODEL_TYPES:
            self.unsupported(f"model_type {model_type!r}", f"supported: {', '.join(MODEL_TYPES)}")
        self.refuse_options(model_type)
        heads = self.integer("num_attention_heads")
        layers = self.integer("num_hidden_layers")
        key_value_heads = self.key_value_heads(model_type, heads)
        attention_bias = model_type in ("llama", "qwen3") and self.boolean("attention_bias")
        return ModelConfig(
            model_type=model_type,
            vocab_size=self.integer("vocab_size"),
            hidden_size=self.integer("hidden_size"),
            intermediate_size=self.integer("intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            head_dim=self.head_dim(model_type, heads),
            context_length=self.integer("max_position_embeddings"),
            rms_norm_eps=self.number(self.raw, "rms_norm_eps", 1e-6),
            tie_word_embeddings=self.boolean("tie_word_embeddings"),
            qkv_bias=attention_bias or model_type == "qwen2",
            output_bias=attention_bias,
            mlp_bias=model_type == "llama" and self.boolean("mlp_bias"),
            qk_norm=model_type == "qwen3",
            sliding_windows=self.sliding_windows(model_type, layers),
            rope=self.rope(),
        )

    def refuse_code(self) -> None:
        for field in ("auto_map", "trust_remote_code"):
            if self.raw.get(field):
                raise ModelUnsafeError(
                    f"{field} asks to run code that comes with the checkpoint",
                    where=str(self.path),
                    fix="use a checkpoint of a standard architecture without remote code",
                )

    def refuse_options(self, model_type: str) -> None:
        if self.raw.get("quantization_config") is not None:
            self.unsupported(
                "quantization_config", "audit against the unquantized checkpoint, or dequantize it first"
            )
        activation = self.raw.get("hidden_act", "silu")
        if activation != "silu":
            self.unsupported(f"hidden_act {activation!r}", "only silu is implemented")
        # transformers ignores these for the model type at hand while other engines obey them: the
        # checkpoint does not say one thing, so there is no one reference for it.
        ambiguous = {
            "llama": ("sliding_window", "layer_types"),
            "mistral": ("layer_types", "attention_bias", "mlp_bias"),
            "qwen2": ("mlp_bias",),
            "qwen3": ("mlp_bias",),
        }
        for field in ambiguous[model_type]:
            if self.raw.get(field):
                self.unsupported(
                    f"{field} in a {model_type} configuration", "engines disagree on its meaning"
                )

    def key_value_heads(self, model_type: str, heads: int) -> int:
        count = heads
        if self.raw.get("num_key_value_heads") is not None:
            count = self.integer("num_key_value_heads")
        elif "num_key_value_heads" not in self.raw:
            count = DEFAULT_KEY_VALUE_HEADS.get(model_type, heads)
        if heads % count:
            self.corrupt(f"{heads} attention heads cannot share {count} key/value heads evenly")
        return count

    def head_dim(self, model_type: str, heads: int) -> int:
        if self.raw.get("head_dim") is not None:
            head_dim = self.integer("head_dim")
        elif model_type == "qwen3" and "head_dim" not in self.raw:
            head_dim = DEFAULT_QWEN3_HEAD_DIM
        else:
            head_dim, rest = divmod(self.integer("hidden_size"), heads)
            if rest:
                self.corrupt(f"hidden_size is not a multiple of {heads} attention heads")
        if head_dim % 2 or head_dim == 0:
            self.corrupt(f"head_dim {head_dim}: rotary embeddings need an even size")
        return head_dim

    def sliding_windows(self, model_type: str, layers: int) -> tuple[int | None, ...]:
        if model_type == "llama":
            return (None,) * layers
        window = None
        if self.raw.get("sliding_window", DEFAULT_SLIDING_WINDOW) is not None:
            window = self.integer("sliding_window", DEFAULT_SLIDING_WINDOW)
        if model_type == "mistral":
            return (window,) * layers
        if not self.boolean("use_sliding_window"):
            window = None
        types = self.raw.get("layer_types")
        if types is None:
            first = self.integer("max_window_layers", DEFAULT_MAX_WINDOW_LAYERS, least=0)
            return tuple(window if index >= first else None for index in range(layers))
        if not isinstance(types, list) or len(types) != layers:
            self.corrupt(f"layer_types must list {layers} layers")
        for kind in types:
            if kind not in ("full_attention", "sliding_attention"):
                self.unsupported(
                    f"layer type {kind!r}", "full_attention and sliding_attention are implemented"
                )
        if window is None and "sliding_attention" in types:
            self.corrupt("layer_types has sliding_attention but no sliding window is in use")
        return tuple(window if kind == "sliding_attention" else None for kind in types)

    def rope(self) -> Rope:
        # The old field wins over the new one, and a theta inside over one outside, as in transformers.
        raw = self.raw.get("rope_scaling") or self.raw.get("rope_parameters") or {}
        if not isinstance(raw, dict):
            self.corrupt("rotary parameters must be an object")
        rope_type = raw.get("rope_type", raw.get("type", "default"))
        self.refuse_rope(raw, rope_type)
        theta = self.number(raw, "rope_theta", self.number(self.raw, "rope_theta", DEFAULT_ROPE_THETA))
        if rope_type == "default":
            return Rope(theta=theta)
        factor = self.number(raw, "factor")
        if rope_type == "linear":
            return Rope("linear", theta, factor)
        low, high = self.number(raw, "low_freq_factor"), self.number(raw, "high_freq_factor")
        if high <= low:
            self.corrupt(f"high_freq_factor {high} must exceed low_freq_factor {low}")
        original = self.number(
            raw, "original_max_position_embeddings", self.integer("max_position_embeddings")
        )
        return Rope("llama3", theta, factor, low, high, int(original))

    def refuse_rope(self, raw: dict[str, Any], rope_type: Any) -> None:
        if rope_type not in ROPE_FIELDS:
            self.unsupported(f"rope type {rope_type!r}", f"supported: {', '.join(ROPE_FIELDS)}")
        if "original_max_position_embeddings" in self.raw:
            self.unsupported(
                "original_max_position_embeddings outside the rotary parameters", "move it inside"
            )
        for holder in (self.raw, raw):
            if holder.get("partial_rotary_factor") not in (None, 1, 1.0):
                self.unsupported("partial_rotary_factor", "only whole heads are rotated")
        known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *ROPE_FIELDS[rope_type]}
        if unknown := sorted(raw.keys() - known):
            self.unsupported(
                f"rotary parameter {unknown[0]} with rope type {rope_type}", "remove it if it means nothing"
            )

    def integer(self, field: str, default: int | None = None, *, least: int = 1) -> int:
        value = self.raw.get(field, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self.corrupt(f"{field} must be an integer of at least {least}, found {value!r}")
        return value

    def number(self, holder: dict[str, Any], field: str, default: float | None = None) -> float:
        value = holder.get(field, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or value <= 0
        ):
            self.corrupt(f"{field} must be a finite positive number, found {value!r}")
        return float(value)

    def boolean(self, field: str) -> bool:
        value = self.raw.get(field, False)
        if not isinstance(value, bool):
            self.corrupt(f"{field} must be true or false, found {value!r}")
        return value

    def corrupt(self, message: str) -> NoReturn:
        raise ModelCorruptError(message, where=str(self.path), fix="restore the checkpoint's own config.json")

    def unsupported(self, what: str, fix: str) -> NoReturn:
        raise ModelUnsupportedError(f"not implemented: {what}", where=str(self.path), fix=fix)
