"""The line `auditor.trace/v1`: bytes to `Trace` and back, without any I/O (design.md, "The trace file").

Invariants:

* A line becomes a `Trace` whose every field has its type and range, or an error that names the field.
* Nothing is dropped. An unknown top-level field `x` is kept as `extra["x"]`; an unknown field `x`
  inside one of the objects of `NESTED` (say `sampling`) is kept as `extra["sampling"]["x"]`. The two
  cannot meet, because `sampling` itself is a known field. Writing puts both back where they were.
* `sampling.grammar` is an object whose fields `reference/grammar.py` names: what constrains the output, and
  the library, version and digest of what was compiled.
* What a scorer must not overlook is therefore in one place: `extra["sampling"]` holds the sampling
  features that `SamplingSpec` does not model.
* `prompt_text` and `asserted`, and of `sampling` the fields of `_RARE`, are written only when set, every
  other field always. The place of a trace (`file`, `line`, `raw_digest`) is not part of the line.

Token ids are checked against [0, 2**31) here, against the model's vocabulary where the model is known.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from auditor.errors import TraceFieldError
from auditor.reference.sampling import SamplingSpec
from auditor.strict_json import dump_json, load_object
from auditor.trace import SCHEMA, Engine, Speculation, Trace, Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

NESTED = ("sampling", "usage", "engine", "speculation")
"""Top-level objects whose unknown fields are kept under the same name in `extra`."""


def within(interval: str) -> AfterValidator:
    """Check a number against an interval in the usual notation, say `(0, 1]`.

    The ends are doubles, which hold every power of two; Python compares an int with a double exactly.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    open_low, open_high = interval[0] == "(", interval[-1] == ")"

    def check(value: float) -> float:
        above = low < value if open_low else low <= value
        below = value < high if open_high else value <= high
        if not (above and below):
            raise PydanticCustomError("outside", "is outside {interval}", {"interval": interval})
        return value

    return AfterValidator(check)


# Ids are checked by pydantic's own core, not by `within`: there are thousands of them in a line.
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
Seed = Annotated[int, within("[-9223372036854775808, 18446744073709551616)")]
Count = Annotated[int, within("[0, 9223372036854775808)")]


class Wire(BaseModel):
    """A JSON object as it came: strict types, unknown fields kept in `model_extra`."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)


_CANONICAL_ID = re.compile(r"(0|[1-9][0-9]{0,9})", re.ASCII)


def _keyed_by_token(value: dict[str, float]) -> dict[str, float]:
    for key in value:
        # Only the canonical spelling: "7" and "07" would be two biases of one token.
        if not (_CANONICAL_ID.fullmatch(key) and int(key) < 2**31):
            raise PydanticCustomError(
                "bias_key", "has a key that is no token id in [0, 2147483648): {key}", {"key": _shown(key)}
            )
    return value


class SamplingWire(Wire):
    """`sampling`: names, defaults and meanings of `SamplingSpec`, with the ranges that make sense."""

    temperature: Annotated[float, within("[0, inf)")] = 1.0
    top_k: Annotated[int, within("[-1, 9223372036854775808)")] = 0
    top_p: Annotated[float, within("(0, 1]")] = 1.0
    min_p: Annotated[float, within("[0, 1]")] = 0.0
    typical_p: Annotated[float, within("(0, 1]")] = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: Annotated[float, within("[0, 1]")] = 0.0
    xtc_threshold: Annotated[float, within("[0, 1]")] = 0.1
    repetition_penalty: Annotated[float, within("(0, inf)")] = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Annotated[dict[str, float], AfterValidator(_keyed_by_token)] = Field(default_factory=dict)
    allowed_token_ids: Annotated[TokenIds, Field(min_length=1)] | None = None
    bad_words: list[str] = Field(default_factory=list, fail_fast=True)
    bad_words_ids: list[Annotated[TokenIds, Field(min_length=1)]] = Field(default_factory=list)
    min_tokens: Count = 0
    max_tokens: Count | None = None
    stop: list[str] = Field(default_factory=list, fail_fast=True)
    stop_token_ids: TokenIds = Field(default_factory=list)
    ignore_eos: bool = False
    grammar: dict[str, Any] | None = None


class UsageWire(Wire):
    """`usage`: what was billed."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    reasoning_tokens: Count | None = None


class EngineWire(Wire):
    """`engine`: what served the request."""

    name: str | None = None
    version: str | None = None
    dtype: str | None = None
    device: str | None = None
    recipe: str | None = None


class SpeculationWire(Wire):
    """`speculation`: how drafts took part."""

    rule: str = "none"
    draft_token_ids: list[TokenIds] | None = Field(default=None, fail_fast=True)


class _TraceWire(Wire):
    id: Annotated[str, Field(min_length=1)]
    model: Annotated[str, Field(min_length=1)]
    sampling: SamplingWire
    prompt_token_ids: TokenIds | None = None
    output_token_ids: TokenIds | None = None
    seed: Seed | None = None
    noise: str | None = None
    created: str | None = None
    provider: str | None = None
    model_digest: str | None = None
    tokenizer_digest: str | None = None
    template_digest: str | None = None
    messages: list[dict[str, Any]] | None = Field(default=None, fail_fast=True)
    prompt_text: str | None = None
    text: str | None = None
    finish_reason: str | None = None
    usage: UsageWire | None = None
    timing: dict[str, Any] | None = None
    logprobs: Any = None
    engine: EngineWire | None = None
    speculation: SpeculationWire | None = None
    policy: Any = None
    fingerprints: list[Any] | None = None
    commitment: Any = None
    asserted: list[str] | None = Field(default=None, fail_fast=True)


_NOUNS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
}

_W = TypeVar("_W", bound=Wire)


def _path_of(location: tuple[int | str, ...]) -> str:
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            path += f".{step[:40]}" if path else step[:40]
    return path


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "...")
    text = json.dumps(value) if value is None or isinstance(value, bool) else str(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _complaint(error: ErrorDetails) -> tuple[str, str]:
    """Say what is wrong with the value and how to mend it, from pydantic's description of one error."""
    kind, shown = error["type"], _shown(error["input"])
    if kind == "missing":
        return "is missing", "add the field"
    if kind in _NOUNS:
        fix = "write it as digits only" if kind == "int_type" else ""
        return f"{shown} is not {_NOUNS[kind]}", fix
    if kind in {"greater_than_equal", "less_than"}:
        return f"{shown} is outside [0, 2147483648)", "token ids are whole numbers from 0 on"
    if kind == "string_too_short":
        return "is empty", "give it a value"
    return f"{shown} {error['msg']}", ""


def validate(model: type[_W], value: Mapping[str, Any], *, where: str, inside: str = "") -> _W:
    """Check an object against its wire model; `inside` names the object the fields lie in.

    Raises:
        TraceFieldError: the first field that is missing, mistyped or out of range.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = _path_of(((inside,) if inside else ()) + first["loc"])
        problem, fix = _complaint(first)
        raise TraceFieldError(f"field {path}: {problem}", where=where, fix=fix) from None


def sampling_of(wire: SamplingWire) -> SamplingSpec:
    """Make the checked request the value every room uses; below 0 top_k and top_n_sigma are off."""
    known = {name: getattr(wire, name) for name in SamplingWire.model_fields}
    known["top_k"], known["top_n_sigma"] = max(wire.top_k, 0), max(wire.top_n_sigma, 0.0)
    known["logit_bias"] = {int(key): bias for key, bias in wire.logit_bias.items()}
    known["stop"] = tuple(wire.stop)
    known["stop_token_ids"] = tuple(wire.stop_token_ids)
    if wire.allowed_token_ids is not None:
        known["allowed_token_ids"] = tuple(wire.allowed_token_ids)
    known["bad_words"] = tuple(wire.bad_words)
    known["bad_words_ids"] = tuple(tuple(sequence) for sequence in wire.bad_words_ids)
    return SamplingSpec(**known)


def digest_of(raw: bytes) -> str:
    """`sha256:` of a line without its line end: a request keeps it under LF and CRLF."""
    return "sha256:" + hashlib.sha256(raw.rstrip(b"\r\n")).hexdigest()


def parse_trace(raw: bytes, *, file: str, line: int) -> Trace:
    """Read one line of `auditor.trace/v1`.

    Raises:
        TraceSyntaxError: the bytes are no JSON object, or not one that can be read exactly.
        TraceFieldError: a field is missing, mistyped or out of range.
    """
    value = load_object(raw, where=f"{file}:{line}")
    return trace_from_object(value, file=file, line=line, raw_digest=digest_of(raw))


def trace_from_object(value: Mapping[str, Any], *, file: str, line: int, raw_digest: str) -> Trace:
    """Check a decoded JSON object and make it a `Trace`.

    Raises:
        TraceFieldError: a field is missing, mistyped or out of range.
    """
    where = f"{file}:{line}"
    schema = value.get("schema")
    if schema != SCHEMA:
        problem = f"{_shown(schema)} is not {SCHEMA!r}" if "schema" in value else "is missing"
        raise TraceFieldError(f"field schema: {problem}", where=where, fix=f"write {SCHEMA}")
    wire = validate(_TraceWire, {k: v for k, v in value.items() if k != "schema"}, where=where)
    known: dict[str, Any] = {name: getattr(wire, name) for name in _TraceWire.model_fields}
    for name in ("prompt_token_ids", "output_token_ids", "messages"):
        known[name] = None if known[name] is None else tuple(known[name])
    for name in ("fingerprints", "asserted"):
        known[name] = tuple(known[name] or ())
    known["sampling"] = sampling_of(wire.sampling)
    known["usage"] = Usage(**_known(wire.usage)) if wire.usage else Usage()
    known["engine"] = Engine(**_known(wire.engine)) if wire.engine else Engine()
    known["speculation"] = speculation_of(wire.speculation)
    return Trace(**known, extra=_extra_of(wire), file=file, line=line, raw_digest=raw_digest)


def _known(wire: Wire) -> dict[str, Any]:
    return {name: getattr(wire, name) for name in type(wire).model_fields}


def speculation_of(wire: SpeculationWire | None) -> Speculation:
    """Make the checked object a `Speculation`; none where none was logged."""
    if wire is None:
        return Speculation()
    drafts = wire.draft_token_ids
    return Speculation(wire.rule, None if drafts is None else tuple(tuple(draft) for draft in drafts))


def _extra_of(wire: _TraceWire) -> dict[str, Any]:
    extra: dict[str, Any] = dict(wire.model_extra or {})
    for name in NESTED:
        unknown = getattr(getattr(wire, name), "model_extra", None)
        if unknown:
            extra[name] = dict(unknown)
    return extra


def trace_to_json(trace: Trace) -> dict[str, Any]:
    """Make the object of a trace line, in design.md's order; what `extra` keeps goes back to its place.

    Raises:
        TraceFieldError: `extra` would overwrite a known field.
    """
    result: dict[str, Any] = {"schema": SCHEMA}
    for name in _ORDER:
        value = getattr(trace, name)
        if name in NESTED:
            result[name] = _nested_to_json(value)
        elif name not in _WRITTEN_WHEN_SET or value not in (None, ()):
            result[name] = list(value) if isinstance(value, tuple) else value
    for name, value in trace.extra.items():
        target, unknown = (result[name], value) if name in NESTED else (result, {name: value})
        taken = [key for key in unknown if key in target or (target is result and key in _ORDER)]
        if taken:
            raise TraceFieldError(f"extra field {taken[0]!r} would overwrite a known one", where=trace.where)
        target.update(unknown)
    return result


_WRITTEN_WHEN_SET = ("prompt_text", "asserted")
_RARE = (  # of `sampling`: written when set
    *("typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold"),
    *("allowed_token_ids", "bad_words", "bad_words_ids"),
)
_UNSET = SamplingSpec()
_ORDER = (
    *("id", "created", "provider", "model", "model_digest", "tokenizer_digest", "template_digest"),
    *("messages", "prompt_text", "prompt_token_ids", "sampling", "seed", "noise", "output_token_ids"),
    *("text", "finish_reason", "usage", "timing", "logprobs", "engine", "speculation", "policy"),
    *("fingerprints", "commitment", "asserted"),
)


def _nested_to_json(value: SamplingSpec | Usage | Engine | Speculation) -> dict[str, Any]:
    result = {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, SamplingSpec):
        result["logit_bias"] = {str(key): bias for key, bias in value.logit_bias.items()}
        result = {k: item for k, item in result.items() if k not in _RARE or item != getattr(_UNSET, k)}
        if value.bad_words_ids:
            result["bad_words_ids"] = [list(sequence) for sequence in value.bad_words_ids]
    drafts = result.get("draft_token_ids")
    if drafts is not None:
        result["draft_token_ids"] = [list(draft) for draft in drafts]
    return {key: list(item) if isinstance(item, tuple) else item for key, item in result.items()}


def trace_to_line(trace: Trace) -> bytes:
    """One line of `auditor.trace/v1` with its line feed; `parse_trace` reads the same trace back.

    Raises:
        TraceFieldError: `extra` would overwrite a known field.
        TraceSyntaxError: a value has no exact JSON form (NaN, half a surrogate pair, a foreign type).
    """
    return dump_json(trace_to_json(trace), where=trace.where) + b"\n"
