"""What a running vLLM is, as a trace declares it, and which of them are known to be recorded rightly.

`RELEASES` is the list of what was tried: release and device, and the noise scheme a seeded request draws
there (None: the tokens are recorded, the draws of that release are not replayed). Anything else is refused,
as are settings under which the rows of the batch do not tell what was sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from auditor.capture.vllm_sampling import GrammarEngine
from auditor.errors import AuditError, CaptureError

RELEASES: Mapping[tuple[str, str], str | None] = {
    ("0.28.0", "cpu"): None,
    ("0.32.0", "cpu"): "vllm-cpu-0.32/splitmix64",
}
"""(release, device) -> noise scheme."""

_GRAMMAR_LIBRARIES = {
    "xgrammar": "xgrammar",
    "guidance": "llguidance",
    "outlines": "outlines_core",
    "lm-format-enforcer": "lm-format-enforcer",
}
"""vLLM's name of a grammar back end -> the distribution whose version counts."""


@dataclass(frozen=True, slots=True)
class RecordedEngine:
    """Everything in a trace that is the engine's and not the request's.

    Attributes:
        engine: the wire object of `engine`; its `settings` are facts that move no token of an honest engine.
        noise: the scheme that seeded requests draw, None when it is not known.
        context_length: most tokens of prompt and output together.
        vocabulary: entries of a row of logits.
    """

    model: str
    model_digest: str | None
    tokenizer_digest: str | None
    template_digest: str | None
    engine: Mapping[str, Any]
    noise: str | None
    context_length: int
    vocabulary: int
    grammars: GrammarEngine


def check_recordable(config: Any, release: str, device: str) -> str | None:
    """Refuse what was not tried, and return the noise scheme.

    Raises:
        CaptureError: an unknown release or device, or a setting that hides what was sampled.
    """
    if (release, device) not in RELEASES:
        known = ", ".join(f"{name} on {kind}" for name, kind in RELEASES)
        raise CaptureError(
            f"vLLM {release} on {device} was never tried with this recorder",
            fix=f"known: {known}; unset AUDITOR_CAPTURE to serve without recording",
        )
    parallel = config.parallel_config
    hidden = {
        "asynchronous scheduling (--no-async-scheduling)": config.scheduler_config.async_scheduling,
        "speculative decoding": config.speculative_config is not None,
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "LoRA adapters": config.lora_config is not None,
        "watermarking": getattr(config, "watermark_config", None) is not None,
        "custom logits processors": bool(config.model_config.logits_processors),
    }
    found = [name for name, is_on in hidden.items() if is_on]
    if found:
        raise CaptureError(
            f"cannot record under {', '.join(found)}", fix="switch it off or unset AUDITOR_CAPTURE"
        )
    return None if config.model_config.use_fp64_gumbel else RELEASES[release, device]


def recorded_engine(config: Any, release: str, device: str) -> RecordedEngine:
    """Describe an engine from its `VllmConfig`.

    Raises:
        CaptureError: as `check_recordable`.
    """
    noise = check_recordable(config, release, device)
    model = config.model_config
    names = model.served_model_name
    name = names if isinstance(names, str) else (list(names or ()) or [model.model])[0]
    digests = _digests(Path(model.model), Path(model.tokenizer))
    outputs = config.structured_outputs_config
    return RecordedEngine(
        model=Path(name).name if Path(name).is_dir() else name,  # a server's paths are nobody's business
        **digests,
        engine=_engine(config, release, device),
        noise=noise,
        context_length=model.max_model_len,
        vocabulary=model.get_vocab_size(),
        grammars=GrammarEngine(
            {name: _version(library) for name, library in _GRAMMAR_LIBRARIES.items()},
            not outputs.disable_any_whitespace,
        ),
    )


def _engine(config: Any, release: str, device: str) -> dict[str, Any]:
    """Name the recipe: whatever moves the last bits of a logit, engine and release first."""
    model, scheduler = config.model_config, config.scheduler_config
    dtype = str(model.dtype).removeprefix("torch.")
    parallel = config.parallel_config.tensor_parallel_size
    steps = [
        f"vllm-{device}-{release}",
        dtype,
        *([model.quantization] if model.quantization else []),
        f"kv-{config.cache_config.cache_dtype}",
        "eager" if model.enforce_eager else "compiled",
        *([f"tp{parallel}"] if parallel > 1 else []),
    ]
    return {
        "name": "vllm",
        "version": release,
        "dtype": dtype,
        "device": device,
        "recipe": "/".join(steps),
        "settings": {
            "runner": "V1",
            "prefix_caching": bool(config.cache_config.enable_prefix_caching),
            "chunked_prefill": bool(scheduler.enable_chunked_prefill),
            "max_num_seqs": scheduler.max_num_seqs,
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        },
    }


def _digests(model: Path, tokenizer: Path) -> dict[str, str | None]:
    """Digests of what was loaded; None for what is not a folder on this machine's disk."""
    from auditor.reference.checkpoint.digests import (  # noqa: PLC0415  # imports the tokenizer's libraries
        template_digest,
        tokenizer_digest,
        weights_digest,
    )

    makers = {
        "model_digest": (weights_digest, model),
        "tokenizer_digest": (tokenizer_digest, tokenizer),
        "template_digest": (template_digest, tokenizer),
    }
    found: dict[str, str | None] = {}
    for name, (digest, folder) in makers.items():
        try:
            found[name] = digest(folder) if folder.is_dir() else None
        except AuditError:
            found[name] = None  # a checkpoint we would not open ourselves, in pickle for instance
    return found


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
