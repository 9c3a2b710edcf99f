"""The OpenAPI description: every operation shows what is sent and answered, and every refusal is documented."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from jsonschema import Draft202012Validator

from auditor.api.application import create_application
from auditor.api.problems import MEDIA_TYPE
from auditor.api.service import Service


@pytest.fixture(scope="module")
def description():
    application = create_application(Service(None, None, None, None, None))
    assert isinstance(application, FastAPI)
    return application.openapi()


def operations(description):
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def resolved(schema, description):
    while "$ref" in schema:
        schema = description["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


def examples(content, description):
    schema = resolved(content.get("schema", {}), description)
    found = [content["example"]] if "example" in content else []
    return found + [e["value"] for e in content.get("examples", {}).values()] + schema.get("examples", [])


def bodies(operation):
    """(what, media type, content) of the request and of every answer that is no refusal."""
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield "request", media_type, content
    for status, answer in operation["responses"].items():
        for media_type, content in answer.get("content", {}).items():
            if media_type != MEDIA_TYPE:
                yield status, media_type, content


def test_every_operation_shows_an_example_of_what_is_sent_and_answered(description):
    lacking = [
        (name, what, media_type)
        for name, operation in operations(description)
        for what, media_type, content in bodies(operation)
        if content.get("schema", {}).get("format") != "binary" and not examples(content, description)
    ]
    assert lacking == []


def test_examples_are_what_their_schemas_say(description):
    checked = 0
    for name, operation in operations(description):
        for _, _, content in bodies(operation):
            schema = content.get("schema", {}) | {"components": description["components"]}
            for example in examples(content, description):
                errors = [error.message for error in Draft202012Validator(schema).iter_errors(example)]
                assert errors == [], name
                checked += 1
    assert checked >= 40


def test_parameters_of_paths_and_headers_have_examples_or_bounds(description):
    for name, operation in operations(description):
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "header" and parameter["required"]:
                assert "example" in parameter, (name, parameter["name"])


def test_every_refusal_is_a_documented_problem(description):
    for name, operation in operations(description):
        for status, answer in operation["responses"].items():
            if status[0] in "45":
                assert list(answer["content"]) == [MEDIA_TYPE], (name, status)
                assert answer["content"][MEDIA_TYPE]["schema"]["title"] == "Problem"
        if operation.get("security"):
            assert {"401", "403"} <= operation["responses"].keys(), name
        if "{" in name and operation.get("security"):
            assert "404" in operation["responses"], name
        if "requestBody" in operation:
            assert {"413", "422"} <= operation["responses"].keys(), name
        assert operation["summary"], name
        assert operation["description"], name


def test_every_code_has_a_page(world):
    from auditor.api.problems import FAMILIES

    for code in FAMILIES:
        assert code in world.client.get(f"/problems/{code}").text


@pytest.mark.parametrize("path", ["/v1/disputes", "/v1/disputes/{dispute_id}/answer"])
def test_a_statement_of_blanks_is_none_in_the_description_either(description, path):
    schema = description["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    said = Draft202012Validator(resolved(schema, description)["properties"]["statement"])
    assert all(said.is_valid(text) for text in ("x", " x\n", "\nwell, no\n", "\u00e9"))
    assert not any(said.is_valid(text) for text in ("", " ", "\f", "\n\t", "\x1f", "x\0"))
