"""Raw logs of OpenAI-compatible servers: one `{"request": ..., "response": ...}` a line becomes traces.

Completions and chat completions, as vLLM, SGLang, llama.cpp and OpenAI write them; request and response
may lie in a `body`, as in OpenAI's batch files. What such a line does not say is not guessed:

* No engine, dtype or noise scheme. Only a `system_fingerprint` of the form `vllm-X.Y.Z` names the engine.
* A parameter the client did not send had the server's default. Assumed are the API's: temperature 1,
  every filter and penalty off. vLLM takes its defaults from the model's `generation_config.json`, so the
  assumption can be wrong; the names of such parameters are listed in `extra["defaulted"]`.
* Null in a request is "not sent". Seed -1 is "no seed" (vLLM and llama.cpp).
* Only the first of several choices can have used the request's seed as it stands: the others get none.
* The prompt ids are those the client ordered, where it sent ids; what a server says it ran instead is noted.

`extra` of such a trace: `defaulted`, `notes` (one sentence each), `system_fingerprint`, `sampling` (features
that `SamplingSpec` does not model and a scorer must refuse), `usage`, and under `openai` the unused rest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from auditor.errors import TraceFieldError
from auditor.openai_grammar import GRAMMAR_FIELDS, grammar_of
from auditor.openai_wire import (
    DEFAULTED,
    SENT_AS_IS,
    UNMODELLED,
    ChoiceWire,
    PromptWire,
    RequestWire,
    ResponseWire,
)
from auditor.strict_json import load_object
from auditor.trace import Engine, Trace, Usage
from auditor.trace_format import SamplingWire, UsageWire, digest_of, sampling_of, validate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from auditor.reference.sampling import SamplingSpec

_VLLM_FINGERPRINT = re.compile(r"vllm-(\d+\.\d+\.\d+)(?:[-+].*)?", re.ASCII | re.DOTALL)
_TOKEN_AS_ID = re.compile(r"token_id:(0|[1-9][0-9]{0,9})", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Exchange:
    """One line, taken apart: what was asked, what came back, what lay around both, where it was read."""

    request: RequestWire
    response: ResponseWire
    sent: Mapping[str, Any]
    envelope: Mapping[str, Any]
    file: str
    line: int
    raw_digest: str

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def several(self) -> bool:
        return len(self.response.choices) > 1


@dataclass(frozen=True, slots=True)
class _Remarks:
    """What is found out on the way about one choice: sentences for `notes`, values for `openai`."""

    notes: list[str]
    kept: dict[str, Any]


def parse_openai_line(raw: bytes, *, file: str, line: int) -> tuple[Trace, ...]:
    """Read one line of a raw log; a response with n choices gives n traces, `ID#0` to `ID#n-1`.

    Raises:
        TraceSyntaxError: the bytes are no JSON object, or not one that can be read exactly.
        TraceFieldError: a field is missing, mistyped or out of range, or the request had failed.
    """
    value = load_object(raw, where=f"{file}:{line}")
    return traces_from_exchange(value, file=file, line=line, raw_digest=digest_of(raw))


def traces_from_exchange(
    value: Mapping[str, Any], *, file: str, line: int, raw_digest: str
) -> tuple[Trace, ...]:
    """Make traces of a decoded request and response.

    Raises:
        TraceFieldError: a field is missing, mistyped or out of range, or the request had failed.
    """
    where = f"{file}:{line}"
    _refuse_failure(value, where)
    envelope = {name: item for name, item in value.items() if name not in {"request", "response"}}
    sent = _body(value, "request", envelope, where)
    answered = _body(value, "response", envelope, where)
    exchange = _Exchange(
        request=validate(RequestWire, sent, where=where, inside="request"),
        response=validate(ResponseWire, answered, where=where, inside="response"),
        sent=sent,
        envelope=envelope,
        file=file,
        line=line,
        raw_digest=raw_digest,
    )
    indices = _choice_indices(exchange)
    # Scores are remembered by this digest: two answers of one line must not be taken for each other.
    digests = [
        digest_of(f"{raw_digest}#{index}".encode()) if exchange.several else raw_digest for index in indices
    ]
    return tuple(
        replace(_trace_of(exchange, choice, index), raw_digest=digest)
        for choice, index, digest in zip(exchange.response.choices, indices, digests, strict=True)
    )


def _refuse_failure(value: Mapping[str, Any], where: str) -> None:
    """Refuse an error response: it holds no tokens, so it is unusable rather than an empty output."""
    outer = value.get("response")
    layers = [value, *(layer for layer in (outer, _inner(outer)) if isinstance(layer, dict))]
    for layer in layers:
        status = layer.get("status_code", 200)
        failure = layer.get("error") or (layer if layer.get("object") == "error" else None)
        if failure or (isinstance(status, int) and status >= 400):
            said = failure.get("message") if isinstance(failure, dict) else failure
            reason = f": {str(said)[:120]}" if said else f" (status {status})"
            raise TraceFieldError(f"field response: the server answered with an error{reason}", where=where)


def _inner(part: Any) -> Any:
    return part.get("body") if isinstance(part, dict) else None


def _body(value: Mapping[str, Any], side: str, envelope: dict[str, Any], where: str) -> dict[str, Any]:
    """Take the request or the response out of its wrapper, whose other fields join the envelope."""
    if side not in value:
        raise TraceFieldError(
            f"field {side}: is missing", where=where, fix="log the request beside its response"
        )
    part = value[side]
    if not isinstance(part, dict):
        raise TraceFieldError(f"field {side}: is not an object", where=where)
    inner = _inner(part)
    if not isinstance(inner, dict):
        return part
    envelope[side] = {name: item for name, item in part.items() if name != "body"}
    return inner


def _choice_indices(exchange: _Exchange) -> list[int]:
    choices = exchange.response.choices
    indices = [place if choice.index is None else choice.index for place, choice in enumerate(choices)]
    if len(set(indices)) != len(indices):
        raise TraceFieldError("field response.choices: two choices have one index", where=exchange.where)
    return indices


def _trace_of(exchange: _Exchange, choice: ChoiceWire, index: int) -> Trace:
    request, response = exchange.request, exchange.response
    remarks = _Remarks(list(_recorder_notes(exchange)), {})
    identity = response.id or exchange.envelope.get("custom_id") or f"line-{exchange.line}"
    prompt_text, prompt_ids = _prompt_of(exchange, choice, index, remarks)
    version = _VLLM_FINGERPRINT.fullmatch(response.system_fingerprint or "")
    known: dict[str, Any] = {
        "id": f"{identity}#{index}" if exchange.several else str(identity),
        "model": _model_of(exchange, remarks),
        "prompt_token_ids": prompt_ids,
        "output_token_ids": _output_of(choice, request, remarks),
        "sampling": requested_sampling(request, exchange.sent, where=exchange.where),
        "seed": _seed_of(request, index, remarks),
        "created": _iso_time(response.created),
        "messages": None if request.messages is None else tuple(request.messages),
        "prompt_text": prompt_text,
        "text": _text_of(choice, request, remarks),
        "finish_reason": choice.finish_reason,
        "usage": _usage_of(exchange, remarks),
        "logprobs": choice.logprobs,
        "timing": _timing_of(exchange),
        "engine": Engine(name="vllm", version=version[1]) if version else Engine(),
    }
    return Trace(
        **known,
        extra=_extra_of(exchange, choice, remarks, has_ids=bool(prompt_ids)),
        file=exchange.file,
        line=exchange.line,
        raw_digest=exchange.raw_digest,
    )


def _timing_of(exchange: _Exchange) -> dict[str, Any] | None:
    timing = exchange.envelope.get("timing")
    return timing if isinstance(timing, dict) else None


def _recorder_notes(exchange: _Exchange) -> Iterator[str]:
    """What `audit record` or `audit probe` found worth saying about the exchange."""
    recorded = exchange.envelope.get("recorded")
    if not isinstance(recorded, dict):
        return
    ended, notes = recorded.get("ended"), recorded.get("notes")
    if isinstance(ended, str) and ended != "complete":
        yield f"the answer is not whole: {ended}"
    yield from (note for note in notes if isinstance(note, str)) if isinstance(notes, list) else ()


def _iso_time(seconds: float | None) -> str | None:
    return None if seconds is None else f"{datetime.fromtimestamp(int(seconds), UTC):%Y-%m-%dT%H:%M:%SZ}"


def _model_of(exchange: _Exchange, remarks: _Remarks) -> str:
    ordered, declared = exchange.request.model, exchange.response.model
    if ordered and declared and ordered != declared:
        remarks.notes.append(f"the request names model {ordered!r}, the response {declared!r}")
    model = ordered or declared
    if not model:
        raise TraceFieldError("field request.model: is missing", where=exchange.where, fix="log the model")
    return model


def _seed_of(request: RequestWire, index: int, remarks: _Remarks) -> int | None:
    if request.seed is None:
        return None
    if request.seed == -1:
        remarks.notes.append("seed -1 means that the server drew one itself")
        return None
    if index > 0:
        remarks.notes.append(
            "the seed of a choice other than the first is derived in a way the log does not say"
        )
        return None
    if request.best_of is not None and request.best_of > (request.n or 1):
        remarks.notes.append("best_of picked this choice from several: which seed it used is not logged")
        return None
    return request.seed


def _prompt_of(
    exchange: _Exchange, choice: ChoiceWire, index: int, remarks: _Remarks
) -> tuple[str | None, tuple[int, ...] | None]:
    """Find the prompt of a choice: its text if sent as text, its ids as ordered, else as the server says."""
    logged = choice.prompt_token_ids
    if logged is None:
        logged = exchange.response.prompt_token_ids
    ran = None if logged is None else tuple(logged)
    prompts = exchange.request.prompt
    place = index // (exchange.request.n or 1)
    if not prompts or place >= len(prompts):
        return None, ran
    prompt = prompts[place]
    if isinstance(prompt, str):
        return prompt, ran
    checked = validate(PromptWire, {"prompt": prompt}, where=exchange.where, inside="request").prompt
    ordered = tuple(checked)
    if ran is None or ran == ordered:
        return None, ordered
    if exchange.request.model_extra and exchange.request.model_extra.get("truncate_prompt_tokens"):
        remarks.notes.append("the server shortened the prompt as asked (truncate_prompt_tokens)")
        remarks.kept["prompt_token_ids_sent"] = list(ordered)
        return None, ran
    remarks.notes.append("the server's prompt ids are not those the client sent; the client's are audited")
    remarks.kept["prompt_token_ids_of_server"] = list(ran)
    return None, ordered


def requested_sampling(request: RequestWire, sent: Mapping[str, Any], *, where: str) -> SamplingSpec:
    """The sampling parameters of a request; those it does not name are off.

    Raises:
        TraceFieldError: one is mistyped or out of range.
    """
    fields = {name: sent[name] for name in SENT_AS_IS if sent.get(name) is not None}
    fields["grammar"] = grammar_of(sent, where=where)
    fields["stop"] = request.stop or []
    newer = request.max_completion_tokens
    fields["max_tokens"] = request.max_tokens if newer is None else newer
    return sampling_of(validate(SamplingWire, fields, where=where, inside="request"))


def _output_of(choice: ChoiceWire, request: RequestWire, remarks: _Remarks) -> tuple[int, ...] | None:
    """Take the output ids as logged, else from logprobs whose tokens are written as `token_id:123`."""
    if choice.token_ids is not None:
        return tuple(choice.token_ids)
    logged = choice.logprobs or {}
    entries = logged.get("tokens") or logged.get("content")
    # With `echo` the logprobs begin with the prompt, and the log does not say where it ends.
    if not isinstance(entries, list) or request.echo:
        return None
    tokens = [entry.get("token") if isinstance(entry, dict) else entry for entry in entries]
    matches = [_TOKEN_AS_ID.fullmatch(token) if isinstance(token, str) else None for token in tokens]
    ids = tuple(int(match[1]) for match in matches if match)
    if not ids or len(ids) != len(tokens) or max(ids) >= 2**31:
        return None
    remarks.notes.append("output ids are taken from the logprobs")
    return ids


def _text_of(choice: ChoiceWire, request: RequestWire, remarks: _Remarks) -> str | None:
    message = choice.message
    if message is not None:
        reasoning = message.reasoning or message.reasoning_content
        if reasoning:
            remarks.notes.append("text is the reasoning followed by the content")
            remarks.kept["message"] = {"content": message.content, "reasoning": reasoning}
            return reasoning + (message.content or "")
        return message.content
    if request.echo and choice.text is not None:
        remarks.notes.append("text is left out, because it repeats the prompt (echo)")
        remarks.kept["text"] = choice.text
        return None
    return choice.text


def _usage_of(exchange: _Exchange, remarks: _Remarks) -> Usage:
    usage = exchange.response.usage
    if usage is None:
        return Usage()
    if exchange.several:
        remarks.notes.append("usage was logged for all choices together")
        remarks.kept["usage"] = usage
        return Usage()
    details = usage.get("completion_tokens_details")
    reasoning = details.get("reasoning_tokens") if isinstance(details, dict) else None
    known = {"reasoning_tokens": reasoning, **usage}
    wire = validate(UsageWire, known, where=exchange.where, inside="response.usage")
    return Usage(wire.prompt_tokens, wire.completion_tokens, wire.reasoning_tokens)


def requested_features(request: RequestWire, sent: Mapping[str, Any]) -> dict[str, Any]:
    """Find what was asked and cannot be replayed from a `SamplingSpec` and token ids."""
    found = {name: sent[name] for name, off in UNMODELLED.items() if sent.get(name) and sent[name] != off}
    # A forced tool call is a grammar that the log does not spell out.
    if sent.get("tool_choice") not in (None, "none", "auto"):
        found["tool_choice"] = sent["tool_choice"]
    contents = [message.get("content") for message in request.messages or ()]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    kinds = {str(part.get("type")) for part in parts if isinstance(part, dict)}
    if kinds - {"text", "refusal"}:
        found["message_parts"] = sorted(kinds - {"text", "refusal"})
    return found


def _extra_of(exchange: _Exchange, choice: ChoiceWire, remarks: _Remarks, *, has_ids: bool) -> dict[str, Any]:
    sent, response = exchange.sent, exchange.response
    unmodelled = requested_features(exchange.request, sent)
    if sent.get("tools") and not has_ids:
        # Their descriptions are part of the prompt, in a form that only the server knows.
        unmodelled["tools_without_prompt_ids"] = True
    carried = {*SENT_AS_IS, *GRAMMAR_FIELDS, *UNMODELLED, "stop", "messages", "prompt"}
    usage = {} if exchange.several else response.usage or {}
    kept = _timing_of(exchange) is not None
    rest = {
        "request": {name: value for name, value in sent.items() if name not in carried},
        "response": {"model": response.model, **(response.model_extra or {})},
        "choice": {"index": choice.index, **(choice.model_extra or {})},
        "message": {} if choice.message is None else choice.message.model_extra,
        "line": {name: value for name, value in exchange.envelope.items() if name != "timing" or not kept},
        "kept": remarks.kept,
    }
    extra = {
        "defaulted": [name for name in DEFAULTED if sent.get(name) is None],
        "notes": remarks.notes,
        "system_fingerprint": response.system_fingerprint,
        "sampling": unmodelled,
        "usage": {name: value for name, value in usage.items() if name not in UsageWire.model_fields},
        "openai": {name: value for name, value in rest.items() if value},
    }
    return {name: value for name, value in extra.items() if value or name in {"defaulted", "notes"}}
