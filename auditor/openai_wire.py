"""What an OpenAI-compatible request and response may hold, as far as a trace needs it.

Types are strict, unknown fields are kept (`Wire`). Null means "not sent", as in OpenAI's own API.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from auditor.trace_format import Count, Seed, TokenIds, Wire, within

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULTED = (
    *("temperature", "top_k", "top_p", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
"""Parameters whose absence means "as the server likes"; assumed to be off (temperature: 1)."""

SENT_AS_IS = (
    *(*DEFAULTED, "typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold"),
    *("logit_bias", "allowed_token_ids", "bad_words"),
    *("min_tokens", "stop_token_ids", "ignore_eos"),
)
"""Parameters with the same name and meaning in a request and in `SamplingSpec`."""

UNMODELLED: Mapping[str, Any] = {
    **dict.fromkeys(("use_beam_search", "logits_processors")),
    **dict.fromkeys(("thinking_token_budget", "repetition_detection", "vllm_xargs", "prompt_embeds")),
    **dict.fromkeys(("mirostat", "dry_multiplier", "dynatemp_range", "top_a")),
    "repeat_penalty": 1,  # llama.cpp's name, with a window that the log does not say
    "tfs_z": 1,
}
"""Request fields that change what is sampled and have no place in `SamplingSpec`, with the value that
means "off" where that is not null, false, zero or empty."""


def _one_as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _prompts(value: Any) -> Any:
    """Bring the four forms of `prompt` (text, ids, list of either) to a list of texts or id lists."""
    if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int)):
        return [value]
    return value


class RequestWire(Wire):
    """The request body."""

    model: str | None = None
    seed: Seed | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stop: Annotated[list[str] | None, BeforeValidator(_one_as_list)] = None
    n: Annotated[int, within("[1, 65537)")] | None = None
    best_of: Annotated[int, within("[1, 65537)")] | None = None
    echo: bool | None = None
    prompt: Annotated[list[Any] | None, BeforeValidator(_prompts)] = None
    messages: list[dict[str, Any]] | None = Field(default=None, fail_fast=True)


class MessageWire(Wire):
    """The message of a chat choice."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class ChoiceWire(Wire):
    """One of the answers."""

    index: Annotated[int, within("[0, 16777217)")] | None = None
    text: str | None = None
    message: MessageWire | None = None
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None
    token_ids: TokenIds | None = None
    prompt_token_ids: TokenIds | None = None


class ResponseWire(Wire):
    """The response body."""

    choices: Annotated[list[ChoiceWire], Field(min_length=1, fail_fast=True)]
    id: str | None = None
    created: Annotated[float, within("[0, 253402300800)")] | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    prompt_token_ids: TokenIds | None = None
    usage: dict[str, Any] | None = None


class PromptWire(Wire):
    """A prompt sent as token ids."""

    prompt: TokenIds
