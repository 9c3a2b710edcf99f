"""Architectures without a family: transformers itself behind the interface of `Model`.

Slow and plain on purpose: each sequence is computed alone and from its beginning in every call, so company
cannot change a bit, and none of transformers' caches is trusted. Its "hidden states" are the logits
themselves, for only the architecture's own code knows what it does between the two.

Invariants: no code comes with a checkpoint, no pickle is opened, nothing is fetched; every parameter comes
from the checkpoint, and every tensor of the checkpoint is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from auditor.errors import ModelCorruptError, ModelUnsupportedError, OptionError
from auditor.reference.batch import AttentionHook, KeyValueHook, ResidualHook, Span, check_spans
from auditor.reference.checkpoint.digests import weights_digest
from auditor.reference.checkpoint.files import DTYPES
from auditor.reference.config import read_fields
from auditor.reference.device import CPU
from auditor.reference.layers.parameters import WeightsHook
from auditor.reference.slots import SlotKV

UNBOUNDED = 2**31 - 1
# Names under which configurations have the most positions.
CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


@dataclass(frozen=True, slots=True)
class FallbackConfig:
    """As `ModelConfig`, as far as callers look."""

    model_type: str
    vocab_size: int
    context_length: int
    num_hidden_layers: int
    shares_prefixes: bool = False
    follows_trees: bool = False

    @property
    def hidden_size(self) -> int:
        """The size of what `forward` returns."""
        return self.vocab_size


@dataclass(frozen=True, slots=True, eq=False)
class FallbackModel:
    """A checkpoint that transformers runs.

    Attributes:
        config, digest, dtype, directory: as of `Model`.
    """

    config: FallbackConfig
    digest: str
    dtype: torch.dtype
    directory: Path
    _model: Any

    @classmethod
    def load(cls, directory: Path | str, *, dtype: torch.dtype = torch.float32) -> FallbackModel:
        """Read a local HF checkpoint of any causal language model that transformers has; warns of its speed.

        Raises:
            OptionError: a dtype other than float32, bfloat16 and float16.
            ModelNotFoundError, ModelUnsafeError, ModelCorruptError: as `Model.load`.
            ModelUnsupportedError: transformers is not installed or does not know the architecture, the
                checkpoint is quantized, or it holds a tensor that has no place.
        """
        if dtype not in DTYPES:
            raise OptionError(f"dtype {dtype}", fix="choose float32, bfloat16 or float16")
        directory = Path(directory)
        fields = read_fields(directory)
        if fields.raw.get("quantization_config") is not None:
            fields.unsupported("quantization_config", "audit against the unquantized checkpoint")
        if (directory / "adapter_config.json").exists():
            fields.unsupported(
                "an adapter beside an architecture without a family", "merge it into the weights"
            )
        model_type = str(fields.raw.get("model_type"))
        digest = weights_digest(directory)
        model = _loaded(directory, model_type, dtype)
        warnings.warn(
            f"{model_type} runs through transformers: many times slower than the architectures written here",
            stacklevel=2,
        )
        return cls(_config(model, model_type), digest, dtype, directory, model)

    def replace(
        self,
        *,
        weights: WeightsHook | None = None,
        key_value: KeyValueHook | None = None,
        skip_layers: frozenset[int] = frozenset(),
        attention: AttentionHook | None = None,
        residual: ResidualHook | None = None,
    ) -> NoReturn:
        """Refuse.

        Raises:
            OptionError: always.
        """
        del weights, key_value, skip_layers, attention, residual
        raise OptionError(
            f"a modified {self.config.model_type}: this architecture runs through transformers as it is",
            fix="simulate deviations on an architecture that is written here",
        )

    def showing(self, layers: Sequence[int]) -> NoReturn:
        """Refuse: nothing is known of what happens inside.

        Raises:
            OptionError: always.
        """
        del layers
        raise OptionError(f"hidden states of {self.config.model_type}, which runs through transformers")

    def up_to(self, layer: int) -> NoReturn:
        """As `showing`.

        Raises:
            OptionError: always.
        """
        self.showing((layer,))

    @property
    def pack_tokens(self) -> int:
        """Rows worth packing into one call."""
        return 2_048

    @property
    def calls_at_once(self) -> int:
        """One: what transformers keeps between calls is its own affair."""
        return 1

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return CPU

    @property
    def from_the_beginning(self) -> bool:
        """Whether it was modified so: never, it is what transformers computes."""
        return False

    def new_cache(self, *, limit: int | None = None) -> SlotKV:
        """Return a cache that holds positions and nothing else."""
        return SlotKV((None,) * self.config.num_hidden_layers, self.dtype, limit=limit)

    @torch.no_grad()
    def forward(self, spans: Sequence[Span], cache: SlotKV | None = None, *, exact: bool = True) -> Tensor:
        """As `Model.forward`, but what comes out are logits, [wanted rows, vocabulary] in `dtype`.

        A span that continues a sequence finds the tokens so far in its state, and computes them again.

        Raises:
            OptionError: a draft tree, or a sequence whose beginning is not there.
            TraceFieldError, TokenOutOfRangeError, ContextLengthError: as `check_spans`.
        """
        del cache, exact
        check_spans(spans, self.config.vocab_size, self.config.context_length)
        outputs = [torch.empty(0, self.config.vocab_size, dtype=self.dtype)]
        for span in spans:
            tokens = _from_the_beginning(span)
            logits = self._model(tokens[None], use_cache=False).logits[0]
            outputs.append(logits[span.start + span.wanted :, : self.config.vocab_size].to(self.dtype))
            if span.state is not None:
                span.state[0] = tokens
        return torch.cat(outputs)

    def prefill(self, sequences: Iterable[Tensor]) -> Tensor:
        """As `Model.prefill`."""
        return self.forward([Span(tokens) for tokens in sequences])

    def logits(self, hidden: Tensor, *, exact: bool = True, fetch: bool = True) -> Tensor:
        """As `Model.logits`: what `forward` returned, in float32."""
        del exact, fetch
        return hidden.float()


def _from_the_beginning(span: Span) -> Tensor:
    """All tokens of the span's sequence up to its last."""
    if span.ancestors is not None:
        raise OptionError("transformers cannot follow the branches of a draft tree", fix="draft chains")
    if span.start == 0:
        return span.tokens
    past = None if span.state is None else span.state.get(0)
    if not isinstance(past, Tensor) or len(past) != span.start:
        raise OptionError(
            f"the first {span.start} tokens of a sequence are not there",
            fix="compute the sequence again from its beginning",
        )
    return torch.cat([past, span.tokens])


def _loaded(directory: Path, model_type: str, dtype: torch.dtype) -> Any:
    try:
        from transformers import AutoModelForCausalLM  # noqa: PLC0415  not a dependency of its own
    except ImportError as error:
        raise ModelUnsupportedError(
            f"not implemented: model_type {model_type!r}, and transformers is not installed",
            where=str(directory),
            fix="pip install transformers",
        ) from error
    loader: Any = AutoModelForCausalLM
    try:
        model, report = loader.from_pretrained(
            directory,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="eager",  # the one that leaves no option of an architecture out
            output_loading_info=True,
        )
    except Exception as error:
        raise ModelUnsupportedError(
            f"transformers cannot load model_type {model_type!r}: {str(error)[:300]}", where=str(directory)
        ) from error
    _check_complete(model, report, f"{directory}")
    return model.eval()


def _check_complete(model: Any, report: dict[str, Any], where: str) -> None:
    """See that the file and the architecture have the same tensors, and that all are finite."""
    for kind in ("missing_keys", "mismatched_keys"):
        if report[kind]:
            raise ModelCorruptError(
                f"tensor {min(map(str, report[kind]))} is missing or misshapen", where=where
            )
    if report["unexpected_keys"]:
        first = min(report["unexpected_keys"])
        raise ModelUnsupportedError(f"tensor {first} has no place in this architecture", where=where)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelCorruptError(f"tensor {name} holds NaN or infinity", where=where)


def _config(model: Any, model_type: str) -> FallbackConfig:
    config = model.config.get_text_config()
    lengths = (getattr(config, name, None) for name in CONTEXT_FIELDS)
    return FallbackConfig(
        model_type,
        vocab_size=int(config.vocab_size),
        context_length=next((length for length in lengths if isinstance(length, int)), UNBOUNDED),
        num_hidden_layers=int(config.num_hidden_layers),
    )
