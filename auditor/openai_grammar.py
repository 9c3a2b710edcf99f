"""Structured output in an OpenAI-style request, as the one `grammar` object a trace carries.

Servers take it in three spellings: OpenAI's `response_format`, vLLM's `structured_outputs`, and vLLM's
older `guided_*`. The result names the `kind` and what the kind needs, and keeps the fields as sent under
`request`. Which library compiled it is not in the log and not guessed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from auditor.errors import TraceFieldError, TraceSyntaxError
from auditor.strict_json import load_json

if TYPE_CHECKING:
    from collections.abc import Mapping

KINDS = {
    "json": ("json_schema", "schema"),
    "regex": ("regex", "pattern"),
    "choice": ("choice", "choices"),
    "grammar": ("grammar", "grammar"),
    "json_object": ("json_object", None),
    "structural_tag": ("structural_tag", "structural_tag"),
}
"""vLLM's name of a constraint -> our kind, and the field that holds it."""

_GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
_OPTIONS = ("guided_decoding_backend", "guided_whitespace_pattern")

GRAMMAR_FIELDS = ("response_format", "structured_outputs", *_GUIDED, "structural_tag", *_OPTIONS)
"""Request fields that `grammar_of` carries into the trace."""


def grammar_of(request: Mapping[str, Any], *, where: str) -> dict[str, Any] | None:
    """Return what constrains the output, or None when nothing does.

    A request with two constraints at once has the kind `several`, one we have never seen `unknown`:
    a scorer must refuse both.

    Raises:
        TraceFieldError: a constraint is mistyped, or its JSON schema is no JSON.
    """
    sent = {name: request[name] for name in GRAMMAR_FIELDS if request.get(name) is not None}
    found = [
        *_from_response_format(sent.get("response_format"), where),
        *_from_structured_outputs(sent.get("structured_outputs"), where),
        *(_constraint(name.removeprefix("guided_"), sent[name], where) for name in _GUIDED if name in sent),
        *(
            [{"kind": "structural_tag", "structural_tag": request["structural_tag"]}]
            if "structural_tag" in sent
            else []
        ),
    ]
    if not found:
        return None
    return {**(found[0] if len(found) == 1 else {"kind": "several"}), "request": sent}


def _constraint(name: str, value: Any, where: str) -> dict[str, Any]:
    kind, field = KINDS[name]
    if field is None:
        return {"kind": kind}
    if name == "json" and isinstance(value, str):
        value = _schema_of(value, where)
    return {"kind": kind, field: value}


def _schema_of(text: str, where: str) -> Any:
    try:
        return load_json(text.encode("utf-8"), where=where)
    except TraceSyntaxError as error:
        raise TraceFieldError(f"JSON schema in the request: {error.message}", where=where) from None


def _object(value: Any, name: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TraceFieldError(f"field request.{name}: is not an object", where=where)
    return value


def _from_response_format(value: Any, where: str) -> list[dict[str, Any]]:
    if value is None:
        return []
    kind = _object(value, "response_format", where).get("type")
    if kind == "text":
        return []
    if kind == "json_object":
        return [{"kind": "json_object"}]
    if kind == "json_schema":
        wrapper = _object(value.get("json_schema"), "response_format.json_schema", where)
        # vLLM accepts the key `json_schema` as well as OpenAI's `schema`.
        return [{"kind": "json_schema", "schema": wrapper.get("schema", wrapper.get("json_schema"))}]
    return [{"kind": "structural_tag" if kind == "structural_tag" else "unknown"}]


def _from_structured_outputs(value: Any, where: str) -> list[dict[str, Any]]:
    if value is None:
        return []
    options = _object(value, "structured_outputs", where)
    found = [
        _constraint(name, options[name], where)
        for name in KINDS
        if options.get(name) is not None and options[name] is not False
    ]
    if options.get("disable_any_whitespace") is True:
        found = [{**constraint, "any_whitespace": False} for constraint in found]
    return found
