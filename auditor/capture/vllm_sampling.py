"""vLLM's resolved `SamplingParams` as the `sampling` object of a trace.

What decides tokens and is modelled gets its field; what decides nothing is left out, by name; whatever else
is not at its default goes into the trace under vLLM's own name, where a replay that does not know it stops.
So a parameter that a later release adds is never overlooked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from auditor.openai_grammar import KINDS

AUDIT_ID = "audit_id"
"""The client's own name of a request, sent as `vllm_xargs` or `extra_args`."""

_GREEDY_BELOW = 1e-5
_SAME_NAME = (
    *("top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("min_tokens", "max_tokens", "ignore_eos"),
)

_DECIDE_NOTHING = frozenset(
    {
        *("n", "logprobs", "prompt_logprobs", "prompt_logprob_token_ids", "prompt_logprob_start"),
        *("logprob_token_ids", "flat_logprobs", "detokenize", "skip_special_tokens"),
        *("spaces_between_special_tokens", "include_stop_str_in_output", "output_kind", "stream_interval"),
        *("skip_clone", "output_text_buffer_length", "skip_reading_prefix_cache", "seed", "watermarking"),
        *("_eos_token_id", "_all_stop_token_ids", "_watermarking_skipped", "_bad_words_token_ids"),
        "routed_experts_prompt_start",
    }
)

# `watermarking` says whether the engine's watermark applies; an engine that has one is not recorded at all.
_ELSEWHERE = frozenset(
    {"temperature", "top_k", "stop", "stop_token_ids", "logit_bias", "structured_outputs", "extra_args"}
)


@dataclass(frozen=True, slots=True)
class GrammarEngine:
    """What compiles grammars: library versions by back end, and the engine's setting for whitespace."""

    versions: Mapping[str, str | None]
    any_whitespace: bool


def sampling_of_params(params: Any, grammars: GrammarEngine) -> dict[str, Any]:
    """Make the wire object of `sampling` from a `vllm.SamplingParams` that the engine has resolved."""
    stop = params.stop or []
    wire: dict[str, Any] = {
        **{name: getattr(params, name) for name in _SAME_NAME},
        # Below this vLLM takes the largest logit, without dividing by the temperature.
        "temperature": params.temperature if params.temperature >= _GREEDY_BELOW else 0.0,
        "top_k": max(params.top_k, 0),
        "stop": [stop] if isinstance(stop, str) else list(stop),
        "stop_token_ids": list(params.stop_token_ids or ()),
        "logit_bias": {str(token): bias for token, bias in (params.logit_bias or {}).items()},
        "grammar": _grammar(params.structured_outputs, grammars),
    }
    spoken_for = {*_SAME_NAME, *_DECIDE_NOTHING, *_ELSEWHERE}
    defaults = type(params)()
    for name in type(params).__struct_fields__:
        value = getattr(params, name)
        if name not in spoken_for and value != getattr(defaults, name):
            wire[name] = _plain(value)
    others = {key: _plain(value) for key, value in (params.extra_args or {}).items() if key != AUDIT_ID}
    return wire | ({"extra_args": others} if others else {})


def _grammar(outputs: Any, grammars: GrammarEngine) -> dict[str, Any] | None:
    if outputs is None:
        return None
    name = next(name for name in KINDS if getattr(outputs, name) not in (None, False))
    kind, field = KINDS[name]
    value = getattr(outputs, name)
    if name == "json" and isinstance(value, str):
        value = json.loads(value)
    library = outputs._backend  # noqa: SLF001  # the back end which the engine chose is recorded nowhere else
    result: dict[str, Any] = {"kind": kind} | ({field: value} if field else {})
    result |= {"library": library, "version": grammars.versions.get(library or "")}
    result["any_whitespace"] = grammars.any_whitespace
    if not grammars.any_whitespace and library == "xgrammar":
        result["separators"] = [",", ":"]  # as `backend_xgrammar.py` passes them
    # Only some back ends heed these: kept, so that a replay which does not know them stops.
    options = ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")
    asked = {option: getattr(outputs, option) for option in options}
    return result | {option: value for option, value in asked.items() if value not in (None, False)}


def _plain(value: Any) -> Any:
    """A value as JSON holds it, or its text where JSON cannot: a replay refuses it anyway."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return repr(value)
