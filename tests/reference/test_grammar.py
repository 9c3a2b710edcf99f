"""Masks of JSON schemas, regexes, choices and grammars by both libraries, and what is refused."""

from __future__ import annotations

import importlib.metadata
import json
from functools import cache

import numpy as np
import pytest

from auditor.errors import SamplingUnsupportedError
from auditor.reference import grammar_masks
from auditor.reference.demo.prompts import TARGET
from auditor.reference.grammar import (
    Grammar,
    choices_as_ebnf,
    grammar_digest,
    looks_like_lark,
    parse_grammar,
)
from auditor.reference.grammar_masks import GrammarWalk, compile_grammar
from auditor.reference.tokenizer import Tokenizer

V = 4096
END = 2
LIBRARIES = ("xgrammar", "llguidance")
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["sure", "answer"],
    "properties": {"sure": {"type": "boolean"}, "answer": {"type": "integer"}},
}


@cache
def tokenizer():
    return Tokenizer.load(TARGET)


def logged(library="xgrammar", **grammar):
    return {"library": library, "version": importlib.metadata.version(library), **grammar}


def walk(grammar):
    return GrammarWalk(compile_grammar(parse_grammar(grammar), tokenizer(), V, frozenset({END})))


def allowed_along(grammar, text, *, end=True):
    """Whether each token of a text is allowed where it stands."""
    ids = np.array([*tokenizer().encode(text), *([END] if end else [])], np.int64)
    allowed, lost = walk(grammar).allowed(ids, 0, len(ids))
    return allowed[np.arange(len(ids)), ids], lost


CASES = {
    "json": ({"kind": "json_schema", "schema": SCHEMA}, '{"sure": true, "answer": 17}', '{"sure": 1'),
    "any json": ({"kind": "json_object"}, '{"a": [1, null]}', "[1]"),
    "regex": ({"kind": "regex", "pattern": "[0-9]{2,4} (am|pm)"}, "1105 pm", "1105 xx"),
    "choice": ({"kind": "choice", "choices": ['say "yes"', "no\n"]}, 'say "yes"', "say no"),
}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("case", CASES)
def test_what_fits_is_allowed_to_its_end_and_what_does_not_is_excluded(case, library):
    grammar, good, bad = CASES[case]
    fits, lost = allowed_along(logged(library, **grammar), good)
    assert fits.all() and not lost.any()
    fits, lost = allowed_along(logged(library, **grammar), bad, end=False)
    assert not fits.all()
    # From the first token that is not allowed the walk is lost, and allows everything.
    assert lost.tolist() == [False] * (int(fits.argmin()) + 1) + [True] * (len(fits) - int(fits.argmin()) - 1)


@pytest.mark.parametrize(
    ("library", "source"),
    [
        ("xgrammar", 'root ::= "a" digits\ndigits ::= [0-9] [0-9]'),
        ("llguidance", 'start: "a" /[0-9][0-9]/'),
        ("xgrammar", 'start: "a" /[0-9][0-9]/'),
    ],
)
def test_a_written_grammar_in_ebnf_or_lark(library, source):
    grammar = logged(library, kind="grammar", grammar=source)
    assert allowed_along(grammar, "a42")[0].all()
    assert not allowed_along(grammar, "b42", end=False)[0].all()


def test_whitespace_is_as_declared():
    spaced = '{"sure": true, "answer": 17}'
    compact = logged(kind="json_schema", schema=SCHEMA, any_whitespace=False, separators=[",", ":"])
    assert not allowed_along(compact, spaced.replace('": ', '" : '), end=False)[0].all()
    assert allowed_along(logged(kind="json_schema", schema=SCHEMA), spaced.replace('": ', '" :\n '))[0].all()


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_walk_asked_in_tiles_or_again_gives_the_same_masks(library):
    grammar = logged(library, kind="json_schema", schema=SCHEMA)
    ids = np.array([*tokenizer().encode('{"sure": false, "answer": -3}'), END], np.int64)
    whole, _ = walk(grammar).allowed(ids, 0, len(ids))
    tiled = walk(grammar)
    parts = [tiled.allowed(ids, start, min(3, len(ids) - start))[0] for start in range(0, len(ids), 3)]
    assert (np.concatenate(parts) == whole).all()
    assert (tiled.allowed(ids, 2, 2)[0] == whole[2:4]).all()


def test_after_its_end_a_grammar_constrains_nothing():
    ids = np.array([*tokenizer().encode("12"), END, 7, 8], np.int64)
    allowed, lost = walk(logged(kind="regex", pattern="[0-9][0-9]")).allowed(ids, 0, len(ids))
    assert allowed[-2:].all()
    assert not lost.any()


def test_the_tokenizer_is_left_as_it_was():
    before = tokenizer().encode("Let us go <|think|> {x}")
    walk(logged("llguidance", kind="regex", pattern="a+"))
    walk(logged("xgrammar", kind="regex", pattern="a+"))
    assert tokenizer().encode("Let us go <|think|> {x}") == before
    assert tokenizer().decode([END]) == "<|end|>"


REFUSED = {
    "no library": {"kind": "regex", "pattern": "a"},
    "an unknown library": {**logged(kind="regex", pattern="a"), "library": "outlines"},
    "no version": {"kind": "regex", "pattern": "a", "library": "xgrammar"},
    "an unknown kind": logged(kind="structural_tag", structural_tag="{}"),
    "several": logged(kind="several"),
    "an unknown option": logged(kind="regex", pattern="a", reasoning_parser="deepseek"),
    "odd separators": logged(kind="json_schema", schema=SCHEMA, separators=[" ,", ":"]),
    "another digest": logged(kind="regex", pattern="a", digest="sha256:" + "0" * 64),
    "a schema of the wrong type": logged(kind="json_schema", schema="{}"),
    "an empty choice": logged(kind="choice", choices=[]),
    "a NUL": logged(kind="regex", pattern="a\x00b"),
    "a huge grammar": logged(kind="regex", pattern="a" * (1 << 19)),
    "a deep schema": logged(kind="json_schema", schema=json.loads('{"not":' * 90 + "{}" + "}" * 90)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case):
    with pytest.raises(SamplingUnsupportedError):
        parse_grammar(REFUSED[case])


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_the_library_itself_refuses_is_refused(library):
    with pytest.raises(SamplingUnsupportedError, match=f"{library} refuses"):
        walk(logged(library, kind="regex", pattern="(["))


def test_another_release_than_the_one_installed_is_refused():
    with pytest.raises(SamplingUnsupportedError, match="installed is"):
        walk({"kind": "regex", "pattern": "a", "library": "xgrammar", "version": "0.1.9"})


def test_a_grammar_that_takes_too_long_to_compile_is_refused(monkeypatch):
    walk(logged(kind="regex", pattern="a"))  # imports are not counted
    monkeypatch.setattr(grammar_masks, "COMPILE_SECONDS", 0.001)
    with pytest.raises(SamplingUnsupportedError, match="to compile"):
        walk(logged(kind="regex", pattern="[^a]{1000}(x|y){1,500}"))


def test_the_digest_names_content_and_not_library():
    one, other = (grammar_digest(logged(library, kind="regex", pattern="a+")) for library in LIBRARIES)
    assert one == other
    assert one != grammar_digest(logged(kind="regex", pattern="a*"))
    assert parse_grammar(logged(kind="regex", pattern="a+", digest=one)).digest == one
    swapped = {**SCHEMA, "properties": dict(reversed(SCHEMA["properties"].items()))}
    assert grammar_digest(logged(kind="json_schema", schema=SCHEMA)) != grammar_digest(
        logged(kind="json_schema", schema=swapped)
    )


def test_choices_and_lark_are_told_apart_as_vllm_does():
    assert choices_as_ebnf(['a"b\\', "c\nd\x01"]) == 'root ::= "a\\"b\\\\" | "c\\nd\\u0001"'
    assert not looks_like_lark('root ::= "a"')
    assert looks_like_lark('start: "a" // not ::= a rule')


def test_a_grammar_is_compiled_once():
    grammar = Grammar("regex", "once[0-9]", "xgrammar", importlib.metadata.version("xgrammar"), True)
    first, again = (compile_grammar(grammar, tokenizer(), V, frozenset({END})) for _ in range(2))
    assert first is again
