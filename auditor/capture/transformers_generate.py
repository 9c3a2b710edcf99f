"""`model.generate` of transformers, seeded and recorded: one call, one request, one line of the log.

transformers draws from torch's global generator, one row of exponentials for every row of the batch and
every step. So a request is replayable only if it is alone in its batch and the generator is seeded just
before: both are done here, under a lock, and the generator's state is put back afterwards.

Every parameter is resolved first (the call's, then `model.generation_config`'s, then transformers' own
default, which for top-k is 50) and handed to `generate` in full, so that what is recorded is what ran.
Parameters that a trace does not model are recorded under their own names, where a replay stops.

Fingerprints are of what the output matrix is given: the last row of each forward pass, which is the state
that the next token is sampled from. They are under a projection drawn here, so the provider knows it.

Source: `generation/utils.py` and `configuration_utils.py` of transformers 5.19 and 5.23.
"""

from __future__ import annotations

import copy
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from auditor.capture.append_log import AppendLog
from auditor.capture.final_states import recorded_entry, recorded_kind
from auditor.errors import CaptureError, OptionError
from auditor.reference.checkpoint.digests import template_digest, tokenizer_digest, weights_digest
from auditor.reference.noise import noise_scheme
from auditor.trace import SCHEMA
from auditor.trace_format import trace_from_object, trace_to_line

if TYPE_CHECKING:
    from auditor.fingerprints.activation_difr import FingerprintKind

_NOISE = "torch-cpu-multinomial"
_GLOBAL_GENERATOR = threading.Lock()

_DEFAULTS: Mapping[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "max_length": 20,
    "min_length": 0,
}
"""transformers' own values for what neither the call nor the model sets."""

_MODELLED = frozenset(
    {*_DEFAULTS, "max_new_tokens", "min_new_tokens", "stop_strings", "eos_token_id", "pad_token_id"}
)
_DECIDE_NOTHING = frozenset(
    {
        *("bos_token_id", "decoder_start_token_id", "transformers_version", "_from_model_config"),
        *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size"),
        *("compile_config", "disable_compile", "continuous_batching_config", "low_memory", "is_assistant"),
        *("return_dict_in_generate", "output_attentions", "output_hidden_states", "output_logits"),
        *("output_scores", "early_stopping", "length_penalty", "num_assistant_tokens"),
        *("num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_lookbehind"),
        *("target_lookbehind", "remove_invalid_values"),
    }
)
"""Without beams and assistants these move no choice; the cache's kind is part of the recipe."""

_NO_STATES = "record without fingerprints"
_OFF_AT_ONE = frozenset({"encoder_repetition_penalty", "num_beam_groups"})
_PASSED_ON = frozenset({"attention_mask", "streamer"})


def recorded_generate(
    model: Any,
    input_ids: torch.Tensor,
    *,
    seed: int,
    log: Path | str | AppendLog,
    tokenizer: Any = None,
    messages: Sequence[Mapping[str, Any]] | None = None,
    generation_config: Any = None,
    fingerprints: str | None = None,
    **options: Any,
) -> torch.Tensor:
    """Generate from one prompt with a seed, append the trace to a log, and return what `generate` returned.

    Args:
        model: a causal language model of transformers.
        input_ids: int64 [1, prompt length], without padding.
        seed: for torch's generator, which on CPU uses the low 32 bits only.
        log: a file ending in .jsonl, or one already open.
        tokenizer: makes the trace's text, and finds stop strings.
        messages: the conversation the prompt was rendered from, for the record.
        generation_config, options: as in `generate`; an option wins over the configuration.
        fingerprints: the kind of activation fingerprint that the trace is to carry, for example `int8:16`.

    Returns:
        int64 [1, prompt length + output length].

    Raises:
        OptionError: more than one row, padding, or something that takes choices out of the parameters' hands
            (a logits processor, an assistant, beams).
        CaptureError: torch does not draw as known, the log cannot be written, or the model shows no state for
            each output token.
    """
    kind = None if fingerprints is None else recorded_kind(fingerprints, where="fingerprints")
    if input_ids.ndim != 2 or input_ids.shape[0] != 1 or input_ids.shape[1] == 0:
        raise OptionError(f"input_ids of shape {list(input_ids.shape)}", fix="pass one prompt, [1, length]")
    config = copy.deepcopy(generation_config) if generation_config else _blank()
    rest = config.update(**options)
    _resolve(config, model.generation_config)
    sampling = _sampling(config, input_ids.shape[1], _ends(model.generation_config))
    _refuse(config, rest)
    on_cpu = input_ids.device.type == "cpu"
    if on_cpu and config.do_sample:
        _check_multinomial()
    if config.stop_strings:
        rest["tokenizer"] = tokenizer
    received = datetime.now(UTC)
    states: list[torch.Tensor] = []
    watching = nullcontext() if kind is None else _watched(model, states)
    with watching, _GLOBAL_GENERATOR, torch.random.fork_rng(enabled=on_cpu, devices=[]):
        torch.manual_seed(seed)
        result = model.generate(input_ids, generation_config=config, **rest)
    sequence = result if isinstance(result, torch.Tensor) else result.sequences
    output = sequence[0, input_ids.shape[1] :].tolist()
    ends = _ends(config)
    value = {
        "schema": SCHEMA,
        "id": f"transformers-{secrets.token_hex(8)}",
        "created": _time(received),
        "provider": "transformers",
        **_identity(model),
        "messages": None if messages is None else [dict(message) for message in messages],
        "prompt_token_ids": input_ids[0].tolist(),
        "sampling": sampling,
        "seed": seed,
        "noise": ("greedy" if not config.do_sample else _NOISE if on_cpu else None),
        "output_token_ids": output,
        "text": _text(tokenizer, output, ends),
        "finish_reason": _finish_reason(output, ends, sampling["max_tokens"]),
        "usage": {"prompt_tokens": input_ids.shape[1], "completion_tokens": len(output)},
        "timing": {"received": _time(received), "finished": _time(datetime.now(UTC))},
        "engine": _engine(model, config),
    }
    if kind is not None:
        value["fingerprints"] = [_entry(states, kind, value)] if output else []
    line = trace_to_line(trace_from_object(value, file="capture", line=0, raw_digest=""))
    if isinstance(log, AppendLog):
        log.write(line)
    else:
        with AppendLog(Path(log)) as opened:
            opened.write(line)
    return sequence


@contextmanager
def _watched(model: Any, states: list[torch.Tensor]) -> Iterator[None]:
    """Append the output matrix's last input row, [hidden], of every forward pass.

    Raises:
        CaptureError: the model has no output matrix.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise CaptureError("a model without an output matrix", where="fingerprints", fix=_NO_STATES)

    def keep(_module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        states.append(arguments[0][0, -1].detach().clone())

    handle = head.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def _entry(states: list[torch.Tensor], kind: FingerprintKind, value: Mapping[str, Any]) -> dict[str, str]:
    prompt, output = value["prompt_token_ids"], value["output_token_ids"]
    if len(states) < len(output):
        raise CaptureError(
            f"the output matrix was called {len(states)} times for {len(output)} tokens",
            where="fingerprints",
            fix=_NO_STATES,
        )
    # A prompt that is computed in parts calls it once a part, before the pass that is sampled from.
    seen = states[-len(output) :]
    return recorded_entry(seen, kind, prompt=prompt, output=output, seed=value["seed"])


def _blank() -> Any:
    new: Any = transformers.GenerationConfig  # untyped there
    return new()


def _resolve(config: Any, model_defaults: Any) -> None:
    """Fill what is unset, in place, in transformers' order; `max_new_tokens` rules out `max_length`."""
    for source in (model_defaults.to_dict(), _DEFAULTS):
        for name, value in source.items():
            superseded = name == "max_length" and config.max_new_tokens is not None
            if getattr(config, name, None) is None and value is not None and not superseded:
                setattr(config, name, value)


def _refuse(config: Any, rest: Mapping[str, Any]) -> None:
    unknown = sorted(set(rest) - _PASSED_ON)
    if unknown:
        raise OptionError(
            f"{', '.join(unknown)} cannot be recorded", fix="generate without a record, or without it"
        )
    mask = rest.get("attention_mask")
    if mask is not None and not bool(mask.all()):
        raise OptionError("a padded prompt", where="attention_mask", fix="pass the prompt's own ids only")
    if config.num_beams != 1 or config.num_return_sequences != 1:
        raise OptionError(
            f"num_beams {config.num_beams}, num_return_sequences {config.num_return_sequences}",
            fix="one output a call: other rows would share the noise",
        )


def _sampling(config: Any, prompt_tokens: int, own_ends: Sequence[int]) -> dict[str, Any]:
    sampled = bool(config.do_sample)
    longest, shortest = config.max_new_tokens, config.min_new_tokens
    stop = config.stop_strings or []
    wire: dict[str, Any] = {
        # Filters are warpers of sampling only; penalties hold for the greedy choice too.
        "temperature": float(config.temperature) if sampled else 0.0,
        "top_k": int(config.top_k) if sampled else 0,
        "top_p": float(config.top_p) if sampled else 1.0,
        "min_p": float(config.min_p) if sampled else 0.0,
        "typical_p": float(config.typical_p) if sampled else 1.0,
        "repetition_penalty": float(config.repetition_penalty),
        "max_tokens": longest if longest is not None else config.max_length - prompt_tokens,
        "min_tokens": shortest if shortest is not None else max(0, config.min_length - prompt_tokens),
        "stop": [stop] if isinstance(stop, str) else list(stop),
        "stop_token_ids": [token for token in _ends(config) if token not in own_ends],
    }
    for name, value in vars(config).items():
        off = value is None or value is False or value == 0 or (name in _OFF_AT_ONE and value == 1)
        if name not in _MODELLED and name not in _DECIDE_NOTHING and not off:
            wire[name] = value if isinstance(value, (bool, int, float, str, list)) else repr(value)
    return wire


def _ends(config: Any) -> tuple[int, ...]:
    ids = config.eos_token_id
    return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)


def _finish_reason(output: Sequence[int], ends: Sequence[int], most: int) -> str | None:
    if output and output[-1] in ends:
        return "stop"
    return "length" if len(output) >= most else None


def _text(tokenizer: Any, output: Sequence[int], ends: Sequence[int]) -> str | None:
    if tokenizer is None:
        return None
    body = output[:-1] if output and output[-1] in ends else output
    return str(tokenizer.decode(body, skip_special_tokens=False))


def _identity(model: Any) -> dict[str, Any]:
    """Name and digests of the folder the model was loaded from; a name alone when it is no folder here."""
    folder = Path(model.name_or_path)
    if not folder.is_dir():
        return {"model": model.name_or_path or "unnamed"}
    return {
        "model": folder.name,
        "model_digest": weights_digest(folder),
        "tokenizer_digest": tokenizer_digest(folder) if (folder / "tokenizer.json").is_file() else None,
        "template_digest": template_digest(folder),
    }


def _engine(model: Any, config: Any) -> dict[str, Any]:
    release, dtype = transformers.__version__, str(model.dtype).removeprefix("torch.")
    quantizer = getattr(model, "hf_quantizer", None)
    steps = [
        f"transformers-{release}",
        f"torch-{torch.__version__.split('+')[0]}",
        dtype,
        *([str(quantizer.quantization_config.quant_method)] if quantizer is not None else []),
        str(model.config._attn_implementation),  # noqa: SLF001  # the public name is a setter
        f"{config.cache_implementation or 'dynamic'}-cache" if config.use_cache is not False else "no-cache",
    ]
    return {
        "name": "transformers",
        "version": release,
        "dtype": dtype,
        "device": model.device.type,
        "recipe": "/".join(steps),
    }


@cache
def _check_multinomial() -> None:
    """Compare torch's `multinomial` with the scheme that traces will declare, once.

    Raises:
        CaptureError: this torch draws otherwise.
    """
    vocabulary, rows = 97, 5
    scheme: Any = noise_scheme(_NOISE)
    probabilities = torch.softmax(torch.arange(vocabulary).mul(37).remainder(101).div(20), 0)[None]
    for seed in (0, 7, 2**32 + 5, 2**63 - 1):
        generator = torch.Generator().manual_seed(seed)
        drawn = [int(torch.multinomial(probabilities, 1, generator=generator)) for _ in range(rows)]
        noise = scheme.draws(seed, 0, vocabulary, filtered=False).take(0, rows)
        if drawn != (probabilities.double().log().numpy() + noise).argmax(axis=1).tolist():
            raise CaptureError(
                f"torch {torch.__version__} does not draw {_NOISE}", fix="generate without a record"
            )


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
