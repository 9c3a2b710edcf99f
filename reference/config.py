"""Reading a checkpoint's `config.json`, strictly; `families/` says what its fields mean.

Invariant: whatever a family does not know is refused: a field that is silently ignored here is a reference
that silently differs from what the provider ran. Every field of the file is read by its family, is off (null,
false, zero, empty), or is on the list of those that no forward pass looks at.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from auditor.errors import ModelCorruptError, ModelNotFoundError, ModelUnsafeError, ModelUnsupportedError
from auditor.reference.architecture import ModelConfig

# What no forward pass looks at: provenance, training, generation defaults, labels.
HARMLESS = frozenset(
    [
        "architectures",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "name_or_path",
        "license",
        "use_cache",
        "cache_implementation",
        "initializer_range",
        "initializer_factor",
        "attention_dropout",
        "hidden_dropout",
        "embd_pdrop",
        "resid_pdrop",
        "attn_pdrop",
        "classifier_dropout",
        "output_router_logits",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "aux_loss_alpha",
        "seq_aux",
        "pretraining_tp",
        "tokenizer_class",
        "task_specific_params",
        "id2label",
        "label2id",
        "problem_type",
        "finetuning_task",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "torchscript",
        "use_return_dict",
        "num_logits_to_keep",
        "is_decoder",
        "prefix",
        "chunk_size_feed_forward",
        "max_length",
        "min_length",
        "do_sample",
        "early_stopping",
        "num_beams",
        "num_beam_groups",
        "num_return_sequences",
        "diversity_penalty",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "suppress_tokens",
        "begin_suppress_tokens",
        "exponential_decay_length_penalty",
        "remove_invalid_values",
        "return_dict_in_generate",
        "output_scores",
        "forced_bos_token_id",
    ]
)


def read_config(directory: Path | str) -> ModelConfig:
    """Read the architecture of the checkpoint in `directory`.

    Raises:
        ModelNotFoundError: no such directory, or no `config.json` in it.
        ModelUnsafeError: the configuration asks for code of its own (`auto_map`, `trust_remote_code`).
        ModelUnsupportedError: an architecture or option that the reference does not implement exactly.
        ModelCorruptError: not a JSON object, or a field with an impossible value (NaN among them).
    """
    from auditor.reference.families import FAMILIES  # noqa: PLC0415  families read with `Fields` below

    fields = read_fields(directory)
    model_type = fields.raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        fields.unsupported(f"model_type {model_type!r}", f"supported: {', '.join(sorted(FAMILIES))}")
    fields.skip("quantization_config")  # `checkpoint/` reads it; a family that runs dense only refuses it
    config = FAMILIES[model_type](fields)
    fields.refuse_unread()
    return config


def read_fields(directory: Path | str) -> Fields:
    """Read the `config.json` in `directory`, whatever it describes.

    Raises:
        ModelNotFoundError, ModelUnsafeError, ModelCorruptError: as `read_config`.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ModelNotFoundError(
            "no such model directory", where=str(directory), fix="give a local checkpoint directory"
        )
    path = directory / "config.json"
    fields = Fields(_Recorded(read_json_object(path, infinities=True)), path)
    fields.refuse_code()
    return fields


def read_json_object(path: Path, *, infinities: bool = False) -> dict[str, Any]:
    """Read the JSON object in a checkpoint's file; NaN is refused, and so are infinities unless allowed.

    Raises:
        ModelNotFoundError: no such file.
        ModelCorruptError: not UTF-8, not JSON, or not an object.
    """

    def refuse(constant: str) -> float:
        if infinities and constant != "NaN":
            return float(constant)
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


class _Recorded(dict[str, Any]):
    """A JSON object that knows which of its fields were looked at."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.seen: set[str] = set()

    def __getitem__(self, field: str) -> Any:
        self.seen.add(field)
        return super().__getitem__(field)

    def __contains__(self, field: object) -> bool:
        self.seen.add(str(field))
        return super().__contains__(field)

    def get(self, field: str, default: Any = None) -> Any:
        self.seen.add(field)
        return super().get(field, default)


@dataclass(frozen=True, slots=True)
class Fields:
    """Typed reading of one configuration object, with the file named in every error."""

    raw: dict[str, Any]
    path: Path

    def refuse_code(self) -> None:
        """Refuse a checkpoint that wants its own code run."""
        for field in ("auto_map", "trust_remote_code"):
            if self.raw.get(field):
                raise ModelUnsafeError(
                    f"{field} asks to run code that comes with the checkpoint",
                    where=str(self.path),
                    fix="use a checkpoint of a standard architecture without remote code",
                )

    def refuse(self, *fields: str, because: str = "engines disagree on its meaning") -> None:
        """Refuse options that are set."""
        for field in fields:
            if self.raw.get(field):
                self.unsupported(f"{field} in a {self.raw.get('model_type')} configuration", because)

    def skip(self, *fields: str) -> None:
        """Take note of fields that this family's forward pass does not look at."""
        for field in fields:
            self.raw.get(field)

    def refuse_unread(self) -> None:
        """Refuse options that are set, that nobody looked at and that may move a logit.

        Raises:
            ModelUnsupportedError: naming the first.
        """
        seen = self.raw.seen if isinstance(self.raw, _Recorded) else set(self.raw)
        for field, value in sorted(self.raw.items()):
            harmless = field in HARMLESS or field.startswith("_") or field.endswith(("_token_id", "_version"))
            if value and field not in seen and not harmless:
                self.unsupported(
                    f"field {field} in a {self.raw['model_type']} configuration",
                    "remove it if it means nothing",
                )

    def text(self, field: str, default: str, allowed: tuple[str, ...]) -> str:
        """A string among a few."""
        value = self.raw.get(field, default)
        if value not in allowed:
            self.unsupported(f"{field} {value!r}", f"implemented: {', '.join(allowed)}")
        return str(value)

    def integer(self, field: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self.raw.get(field, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self.corrupt(f"{field} must be an integer of at least {least}, found {value!r}")
        return value

    def either(self, field: str, other: str) -> int:
        """A whole number that configurations have under one of two names, or the same under both."""
        names = [name for name in (field, other) if self.raw.get(name) is not None]
        values = [self.integer(name) for name in names or [field]]
        if len(set(values)) > 1:
            self.corrupt(f"{field} {values[0]} and {other} {values[1]} contradict each other")
        return values[0]

    def number(
        self, field: str, default: float | None = None, *, holder: dict[str, Any] | None = None
    ) -> float:
        """A finite positive number, from `holder` (an inner object) if given."""
        value = (self.raw if holder is None else holder).get(field, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or value <= 0
        ):
            self.corrupt(f"{field} must be a finite positive number, found {value!r}")
        return float(value)

    def boolean(self, field: str, *, default: bool = False) -> bool:
        """True or false."""
        value = self.raw.get(field, default)
        if not isinstance(value, bool):
            self.corrupt(f"{field} must be true or false, found {value!r}")
        return value

    def corrupt(self, message: str) -> NoReturn:
        """Raise ModelCorruptError."""
        raise ModelCorruptError(message, where=str(self.path), fix="restore the checkpoint's own config.json")

    def unsupported(self, what: str, fix: str) -> NoReturn:
        """Raise ModelUnsupportedError."""
        raise ModelUnsupportedError(f"not implemented: {what}", where=str(self.path), fix=fix)
