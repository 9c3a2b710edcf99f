"""The OpenAPI description, completed: refusals as they are answered, and an example of every JSON body.

Examples are put together from those of the fields, so that each is written once, beside its field.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from fastapi import FastAPI

from auditor.api.problems import responses

_GENERATED = ("HTTPValidationError", "ValidationError")


def complete(application: FastAPI) -> None:
    """Have the application describe itself completely."""
    generate = application.openapi

    def openapi() -> dict[str, Any]:
        if application.openapi_schema is None:
            _complete(generate())
        return generate()

    application.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation has it


def _complete(schema: dict[str, Any]) -> None:
    components = schema.get("components", {}).get("schemas", {})
    for operation in _operations(schema):
        refused = operation["responses"].get("422", {})
        if "HTTPValidationError" in str(refused):  # FastAPI says what we do not answer
            operation["responses"]["422"] = responses(422)[422]
        for content in _json_contents(operation):
            if "example" not in content:
                with suppress(LookupError):  # a test names those that lack one
                    content["example"] = example_of(content["schema"], components)
    for name in _GENERATED:
        components.pop(name, None)


def _operations(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for methods in schema["paths"].values():
        yield from methods.values()


def _json_contents(operation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for holder in (operation.get("requestBody", {}), *operation["responses"].values()):
        for media_type, content in holder.get("content", {}).items():
            if media_type in ("application/json", "application/problem+json"):
                yield content


def example_of(  # noqa: PLR0911  # a case each
    schema: dict[str, Any], components: dict[str, Any]
) -> Any:
    """A value that the schema allows, from the examples, defaults and constants that it names.

    Raises:
        LookupError: a text or number has none of these.
    """
    if "$ref" in schema:
        return example_of(components[schema["$ref"].rsplit("/", 1)[1]], components)
    if schema.get("examples"):
        return schema["examples"][0]
    for word in ("const", "default"):
        if word in schema:
            return schema[word]
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return example_of(schema["anyOf"][0], components)
    kind = schema.get("type")
    if kind == "object" and "properties" in schema:
        return {name: example_of(part, components) for name, part in schema["properties"].items()}
    if kind == "array":
        return [example_of(schema["items"], components)]
    if kind == "boolean":
        return False
    raise LookupError(schema.get("title", str(schema)))
