"""Structured output: the tokens a JSON schema, regex, choice or grammar allows after a logged prefix.

A mask is a function of the grammar, of the library that compiled it (its exact version: two releases allow
different tokens), of the vocabulary and of the prefix. All are in the trace or the model, so a replay asks
the same library, `xgrammar` or `llguidance`, with the options that vLLM passes on. A trace names them in
`sampling.grammar`:

    {"kind": "json_schema", "schema": {...}, "library": "xgrammar", "version": "0.2.8",
     "any_whitespace": true, "digest": "sha256:..."}

`kind` is json_schema (`schema`), json_object, regex (`pattern`), choice (`choices`) or grammar (`grammar`,
EBNF or Lark). `any_whitespace` false also sets the separators "," and ":". A `digest`, when logged, must be
`grammar_digest`'s. Anything else is refused, never guessed.

Source of the calls: vLLM 0.32 `backend_xgrammar.py`, `backend_guidance.py`, `structured_output/utils.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from auditor.errors import SamplingUnsupportedError

LIBRARIES = ("xgrammar", "llguidance")

_SOURCES = {
    "json_schema": "schema",
    "json_object": None,
    "regex": "pattern",
    "choice": "choices",
    "grammar": "grammar",
}
# `request` holds the fields as the client sent them, for people; the rest is what was compiled.
_KNOWN = {"kind", "library", "version", "any_whitespace", "separators", "digest", "request"}
_COMPACT = (",", ":")

# Hostile input: vLLM refuses deeper schemas too; no honest grammar is larger than this.
_DEEPEST = 64
_LONGEST = 1 << 18


@dataclass(frozen=True, slots=True)
class Grammar:
    """One constraint, checked and in the form its library takes; hashable, so that it is compiled once.

    Attributes:
        source: the schema as JSON in its logged order, the pattern, the grammar, or the choices as JSON.
        library, version: what compiled it. any_whitespace: whether JSON may be spaced freely.
    """

    kind: str
    source: str
    library: str
    version: str
    any_whitespace: bool

    @property
    def digest(self) -> str:
        """`sha256:` of what was compiled, without the library: one grammar has one digest in both."""
        content = json.dumps([self.kind, self.source, self.any_whitespace], ensure_ascii=False)
        return "sha256:" + hashlib.sha256(content.encode()).hexdigest()


def grammar_digest(logged: Mapping[str, Any]) -> str:
    """Digest of a trace's `sampling.grammar`.

    Raises:
        SamplingUnsupportedError: it cannot be replayed.
    """
    return parse_grammar(logged).digest


def parse_grammar(logged: Mapping[str, Any]) -> Grammar:
    """Check a trace's `sampling.grammar`.

    Raises:
        SamplingUnsupportedError: a kind, option, library or size that is not replayed, or another digest.
    """
    kind = logged.get("kind")
    if kind not in _SOURCES:
        raise SamplingUnsupportedError(f"a grammar of kind {kind!r} cannot be replayed")
    field = _SOURCES[kind]
    unknown = sorted(set(logged) - _KNOWN - {field})
    if unknown:
        raise SamplingUnsupportedError(f"grammar option {unknown[0]!r} cannot be replayed")
    library, version = logged.get("library"), logged.get("version")
    if library not in LIBRARIES or not isinstance(version, str):
        raise SamplingUnsupportedError(
            f"the log does not say which library and version compiled the grammar ({library!r} {version!r})",
            fix=f"log grammar.library ({' or '.join(LIBRARIES)}) and grammar.version",
        )
    spaced = logged.get("any_whitespace", True)
    separators = logged.get("separators")
    usual = None if spaced else list(_COMPACT)
    if not isinstance(spaced, bool) or (separators is not None and list(separators) != usual):
        raise SamplingUnsupportedError(f"grammar separators {separators!r} cannot be replayed")
    grammar = Grammar(
        kind, _source(kind, None if field is None else logged.get(field)), library, version, spaced
    )
    if logged.get("digest") not in (None, grammar.digest):
        raise SamplingUnsupportedError(
            f"grammar.digest is {str(logged['digest'])[:18]}..., what is logged has {grammar.digest[:18]}..."
        )
    return grammar


def _source(kind: str, value: Any) -> str:
    if kind == "json_object":
        return '{"type": "object"}'
    if kind == "json_schema" and isinstance(value, (dict, bool)):
        if _depth(value) > _DEEPEST:
            raise SamplingUnsupportedError(f"a JSON schema nested deeper than {_DEEPEST} levels")
        source = json.dumps(value, ensure_ascii=False)
    elif kind == "choice" and isinstance(value, list) and value and all(isinstance(c, str) for c in value):
        source = json.dumps(value, ensure_ascii=False)
    elif kind in ("regex", "grammar") and isinstance(value, str) and "\x00" not in value:
        source = value
    else:
        raise SamplingUnsupportedError(f"a {kind} constraint whose {_SOURCES[kind]} is not of its type")
    if len(source) > _LONGEST:
        raise SamplingUnsupportedError(
            f"a grammar of {len(source)} characters; at most {_LONGEST} are compiled"
        )
    return source


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level and depth <= _DEEPEST:
        depth += 1
        level = [
            child
            for node in level
            if isinstance(node, (dict, list))
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
    return depth


def choices_as_ebnf(choices: list[str]) -> str:
    """A choice of texts as the EBNF that vLLM hands to xgrammar."""
    named = {"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"}

    def escaped(text: str) -> str:
        return "".join(
            named.get(c) or (f"\\u{ord(c):04x}" if ord(c) < 0x20 or ord(c) == 0x7F else c) for c in text
        )

    return "root ::= " + " | ".join(f'"{escaped(choice)}"' for choice in choices)


def looks_like_lark(grammar: str) -> bool:
    """Whether vLLM takes a grammar for Lark: no line, comments aside, defines a rule with `::=`."""
    lines = (line.partition("#")[0].partition("//")[0] for line in grammar.split("\n"))
    return bool(grammar) and not any("::=" in line for line in lines)
