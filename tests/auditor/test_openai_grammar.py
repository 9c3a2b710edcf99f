"""Structured output in its three spellings becomes one grammar object."""

from __future__ import annotations

import json

import pytest

from auditor.errors import TraceFieldError
from auditor.openai_grammar import grammar_of
from auditor.openai_logs import parse_openai_line

SCHEMA = {"type": "object"}


@pytest.mark.parametrize(
    ("request_fields", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"kind": "json_object"}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            {"kind": "json_schema", "schema": SCHEMA},
        ),
        ({"response_format": {"type": "new"}}, {"kind": "unknown"}),
        ({"guided_json": SCHEMA}, {"kind": "json_schema", "schema": SCHEMA}),
        ({"guided_json": '{"type": "object"}'}, {"kind": "json_schema", "schema": SCHEMA}),
        ({"guided_regex": "a+"}, {"kind": "regex", "pattern": "a+"}),
        ({"guided_choice": ["a", "b"]}, {"kind": "choice", "choices": ["a", "b"]}),
        ({"guided_grammar": "root ::= x"}, {"kind": "grammar", "grammar": "root ::= x"}),
        ({"structural_tag": "{}"}, {"kind": "structural_tag", "structural_tag": "{}"}),
        ({"structured_outputs": {"regex": "a+"}}, {"kind": "regex", "pattern": "a+"}),
        (
            {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
            {"kind": "json_schema", "schema": SCHEMA, "any_whitespace": False},
        ),
        ({"structured_outputs": {"json_object": False}}, None),
        ({"guided_regex": "a", "guided_choice": ["b"]}, {"kind": "several"}),
    ],
)
def test_structured_output_becomes_the_grammar(request_fields, grammar):
    found = grammar_of({"model": "demo", **request_fields}, where="log.jsonl:3")
    if grammar is None:
        assert found is None
    else:
        assert found == {**grammar, "request": request_fields}


@pytest.mark.parametrize(
    "request_fields",
    [
        {"response_format": "json"},
        {"response_format": {"type": "json_schema"}},
        {"structured_outputs": []},
    ],
)
def test_mistyped_structured_output_is_refused(request_fields):
    with pytest.raises(TraceFieldError, match=r"log\.jsonl:3: field request\."):
        grammar_of(request_fields, where="log.jsonl:3")


def test_json_schema_sent_as_broken_text_is_refused():
    with pytest.raises(TraceFieldError, match=r"log\.jsonl:3: JSON schema in the request"):
        grammar_of({"guided_json": "{"}, where="log.jsonl:3")


def test_grammar_of_a_request_reaches_the_trace():
    value = {
        "request": {"model": "demo", "guided_regex": "a+"},
        "response": {"id": "1", "choices": [{"text": "aa"}]},
    }
    (trace,) = parse_openai_line(json.dumps(value).encode(), file="log.jsonl", line=3)
    assert trace.sampling.grammar == {"kind": "regex", "pattern": "a+", "request": {"guided_regex": "a+"}}
    assert "guided_regex" not in trace.extra["openai"]["request"]
