"""Request bodies: read within a limit, and nothing is made of them before they are checked.

JSON is read by `auditor.strict_json` (no duplicate keys, no NaN, bounded depth), not by the framework.
"""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Depends, Request
from fastapi.dependencies.utils import get_flat_dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from auditor.errors import TraceSyntaxError
from auditor.service.errors import (
    BodyMalformedError,
    BodyTooLargeError,
    MediaTypeError,
    RequestInvalidError,
)
from auditor.strict_json import load_object

MOST_INLINE_BYTES = 8 << 20
MOST_JSON_BYTES = 64 << 10
LOG_TYPES = (
    "application/jsonl",
    "application/x-ndjson",
    "application/vnd.apache.parquet",
    "application/octet-stream",
)
_CODINGS = ("", "identity", "gzip", "zstd")
_query_names: dict[str, frozenset[str]] = {}
Model = TypeVar("Model", bound=BaseModel)


def media_type_of(request: Request) -> str:
    """The body's type without its parameters, lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request, most_bytes: int) -> bytes | bytearray:
    """The whole body.

    Raises:
        BodyTooLargeError: it is longer; the rest is not read.
    """
    too_large = BodyTooLargeError(f"longer than {most_bytes} bytes", fix="larger logs go through /v1/uploads")
    announced = request.headers.get("content-length", "0")
    expected = int(announced) if announced.isdecimal() else 0
    if expected > most_bytes:
        raise too_large
    # Laid out at once and filled: what grows is copied as it grows, and held twice meanwhile.
    body, filled = bytearray(min(expected, MOST_INLINE_BYTES)), 0
    async for part in request.stream():
        if filled + len(part) > most_bytes:
            raise too_large
        body[filled : filled + len(part)] = part
        filled += len(part)
    del body[filled:]
    return body


async def refuse_unknown_query(request: Request) -> None:
    """A dependency: every query parameter is one that the route knows, and comes once.

    Whoever misspells `alpha` must not be judged at the default.

    Raises:
        RequestInvalidError: one is not.
    """
    given = [name for name, _ in request.query_params.multi_items()]
    if not given:
        return
    known = _names_of(request.scope["route"])
    if not known.issuperset(given) or len(set(given)) != len(given):
        choice = f"choose from {', '.join(sorted(known))}" if known else "there is none here"
        raise RequestInvalidError("a query parameter is unknown, or comes twice", where="query", fix=choice)


def _names_of(route: APIRoute) -> frozenset[str]:
    found = _query_names.get(route.unique_id)
    if found is None:
        found = frozenset(field.alias for field in get_flat_dependant(route.dependant).query_params)
        _query_names[route.unique_id] = found
    return found


def json_body(model: type[Model], most_bytes: int = MOST_JSON_BYTES) -> Any:
    """A dependency: the body as this model."""

    async def read(request: Request) -> Model:
        if media_type_of(request) != "application/json":
            raise MediaTypeError("the body must be application/json", where="Content-Type")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise MediaTypeError("JSON is not read compressed", where="Content-Encoding")
        return parsed(model, await read_body(request, most_bytes), most_bytes)

    return Depends(read)


def parsed(model: type[Model], raw: bytes | bytearray, most_bytes: int = MOST_JSON_BYTES) -> Model:
    """Bytes as this model.

    Raises:
        BodyMalformedError: no JSON object.
        RequestInvalidError: a field that is missing, mistyped or unknown.
    """
    try:
        value = load_object(bytes(raw), where="body", max_bytes=most_bytes)
    except TraceSyntaxError as error:
        raise BodyMalformedError(error.message, where="body") from None
    return validated(model, value)


def validated(model: type[Model], value: dict[str, Any]) -> Model:
    """Plain values as this model.

    Raises:
        RequestInvalidError: a field that is missing, mistyped or unknown.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise RequestInvalidError(first["msg"], where=".".join(map(str, first["loc"]))) from None


def json_content(model: type[BaseModel]) -> dict[str, Any]:
    """For OpenAPI: a required JSON body."""
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema_of(model)}},
        }
    }


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """A model's JSON schema without references, which would not resolve inside the description."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(value: Any) -> Any:
        if isinstance(value, list):
            return [inlined(part) for part in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return inlined(definitions[value["$ref"].rsplit("/", 1)[1]])
        return {name: inlined(part) for name, part in value.items()}

    found: dict[str, Any] = inlined(schema)
    return found


async def log_body(request: Request) -> bytes:
    """An inline log as it was sent, still compressed.

    Raises:
        MediaTypeError: a type or coding that is not read here.
        BodyTooLargeError: more than `MOST_INLINE_BYTES`.
    """
    if media_type_of(request) not in LOG_TYPES:
        raise MediaTypeError(f"a log is one of {', '.join(LOG_TYPES)}", where="Content-Type")
    if request.headers.get("content-encoding", "").strip().lower() not in _CODINGS:
        raise MediaTypeError("a log is plain, gzip or zstd, once", where="Content-Encoding")
    return bytes(await read_body(request, MOST_INLINE_BYTES))
