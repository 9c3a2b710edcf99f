"""Masks of a compiled grammar along a logged output, by the library that the engine used.

`xgrammar` and `llguidance` are optional (the `grammar` extra) and imported when first needed. Compilation
takes source from a log: it runs with a time limit, and whatever the library says against it is a refusal.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as OutOfTimeError
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from auditor.errors import SamplingUnsupportedError
from auditor.reference.grammar import Grammar, choices_as_ebnf, looks_like_lark
from auditor.reference.tokenizer import Tokenizer

COMPILE_SECONDS = 60.0
"""How long a grammar may compile, imports and vocabulary apart; vLLM's own limit for a regex is shorter."""

Words = npt.NDArray[np.int32]


class Matcher(Protocol):
    """A grammar's state after some tokens."""

    @property
    def terminated(self) -> bool:
        """Whether the grammar is at its end and constrains nothing any more."""
        ...

    def fill(self, words: Words) -> None:
        """Write which tokens may follow, one bit each, int32 [words]."""
        ...

    def accept(self, token: int) -> bool:
        """Take one token; False if the grammar does not allow it."""
        ...


class CompiledGrammar:
    """A grammar ready for one vocabulary; `matcher()` starts at its beginning, `words` is a mask's length."""

    def __init__(self, start: Callable[[], Matcher], vocabulary: int, words: int) -> None:
        self.matcher, self.vocabulary, self.words = start, vocabulary, words


@lru_cache(maxsize=64)
def compile_grammar(
    grammar: Grammar, tokenizer: Tokenizer, vocabulary: int, stop_ids: frozenset[int]
) -> CompiledGrammar:
    """Compile once for each grammar, tokenizer and set of ids that end an output.

    Raises:
        SamplingUnsupportedError: the library is not installed in that version, or refuses the grammar.
    """
    check_library(grammar)
    if grammar.library == "xgrammar":
        _xgrammar_compiler(tokenizer, vocabulary)
        build = _xgrammar
    else:
        _llguidance_tokenizer(tokenizer, vocabulary)
        build = _llguidance
    executor = ThreadPoolExecutor(max_workers=1)
    try:
        start = executor.submit(build, grammar, tokenizer, vocabulary, stop_ids).result(COMPILE_SECONDS)
    except OutOfTimeError:
        raise SamplingUnsupportedError(
            f"{grammar.library} needs more than {COMPILE_SECONDS:.0f} s to compile the grammar"
        ) from None
    except Exception as error:  # both libraries raise bare RuntimeError and ValueError from foreign code
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise SamplingUnsupportedError(f"{grammar.library} refuses the grammar: {first}") from error
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
    # llguidance's masks also cover ids that only the tokenizer has.
    widest = vocabulary if grammar.library == "xgrammar" else max(vocabulary, tokenizer.vocab_size)
    return CompiledGrammar(start, vocabulary, -(-widest // 32))


def check_library(grammar: Grammar) -> None:
    """See that masks would come from the very release that the trace names.

    Raises:
        SamplingUnsupportedError: not installed, or another version is.
    """
    wanted = f"{grammar.library}=={grammar.version}"
    try:
        installed = importlib.metadata.version(grammar.library)
    except importlib.metadata.PackageNotFoundError:
        raise SamplingUnsupportedError(
            f"the grammar was compiled by {wanted}, which is not installed",
            fix="pip install 'verifiable-inference-auditor[grammar]'",
        ) from None
    if installed != grammar.version:
        raise SamplingUnsupportedError(
            f"the grammar was compiled by {wanted}, installed is {installed}: their masks may differ",
            fix=f"pip install {wanted}",
        )


@lru_cache(maxsize=4)
def _fast_tokenizer(tokenizer: Tokenizer) -> Any:
    """The tokenizer as transformers wraps it: the form from which both libraries read a vocabulary."""
    transformers = importlib.import_module("transformers")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend, eos_token=tokenizer.named_tokens.get("eos_token")
    )


@lru_cache(maxsize=4)
def _xgrammar_compiler(tokenizer: Tokenizer, vocabulary: int) -> Any:
    xgrammar = importlib.import_module("xgrammar")
    info = xgrammar.TokenizerInfo.from_huggingface(_fast_tokenizer(tokenizer), vocab_size=vocabulary)
    return xgrammar.GrammarCompiler(info, max_threads=1)


def _xgrammar(
    grammar: Grammar, tokenizer: Tokenizer, vocabulary: int, stop_ids: frozenset[int]
) -> Callable[[], Matcher]:
    xgrammar = importlib.import_module("xgrammar")
    compiler = _xgrammar_compiler(tokenizer, vocabulary)
    if grammar.kind in ("json_schema", "json_object"):
        separators = None if grammar.any_whitespace else (",", ":")
        compiled = compiler.compile_json_schema(
            grammar.source, any_whitespace=grammar.any_whitespace, separators=separators
        )
    elif grammar.kind == "regex":
        compiled = compiler.compile_regex(grammar.source)
    elif grammar.kind == "choice":
        compiled = compiler.compile_grammar(choices_as_ebnf(json.loads(grammar.source)))
    elif looks_like_lark(grammar.source):
        compiled = compiler.compile_lark(grammar.source)
    else:
        compiled = compiler.compile_grammar(grammar.source)
    stops = sorted(stop_ids) or None
    return lambda: _XgrammarMatcher(xgrammar.GrammarMatcher(compiled, override_stop_tokens=stops))


class _XgrammarMatcher:
    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    @property
    def terminated(self) -> bool:
        return bool(self._matcher.is_terminated())

    def fill(self, words: Words) -> None:
        self._matcher.fill_next_token_bitmask(torch.from_numpy(words)[None])

    def accept(self, token: int) -> bool:
        return bool(self._matcher.accept_token(token))


@lru_cache(maxsize=4)
def _llguidance_tokenizer(tokenizer: Tokenizer, vocabulary: int) -> Any:
    importer = importlib.import_module("llguidance.hf")
    fast = _fast_tokenizer(tokenizer)
    return importer.from_tokenizer(fast, max(vocabulary, tokenizer.vocab_size))


def _llguidance(
    grammar: Grammar, tokenizer: Tokenizer, vocabulary: int, stop_ids: frozenset[int]
) -> Callable[[], Matcher]:
    del stop_ids  # llguidance ends at the tokenizer's own end token only
    llguidance = importlib.import_module("llguidance")
    own = _llguidance_tokenizer(tokenizer, vocabulary)
    if grammar.kind in ("json_schema", "json_object"):
        source = llguidance.LLMatcher.grammar_from_json_schema(
            grammar.source, defaults={"whitespace_flexible": grammar.any_whitespace}
        )
    else:
        source = llguidance.grammar_from(grammar.kind, grammar.source)
    error = llguidance.LLMatcher.validate_grammar(source, own)
    if error:
        raise ValueError(error)
    return lambda: _LlguidanceMatcher(llguidance.LLMatcher(own, source, log_level=0), own.eos_token)


class _LlguidanceMatcher:
    """As vLLM drives it: the end token ends the constraint, a finished grammar allows only that token."""

    def __init__(self, matcher: Any, end_id: int) -> None:
        self._matcher, self._end_id = matcher, end_id
        self.terminated = False

    def fill(self, words: Words) -> None:
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)

    def accept(self, token: int) -> bool:
        if token == self._end_id:
            complete = bool(self._matcher.is_accepting() or self._matcher.is_stopped())
            self.terminated = True
            return complete
        if self._matcher.is_stopped():
            return False
        return bool(self._matcher.consume_token(token))


class GrammarWalk:
    """One output's walk through a grammar; asked in order it computes each mask once."""

    def __init__(self, compiled: CompiledGrammar) -> None:
        self._compiled = compiled
        self._restart()

    def _restart(self) -> None:
        self._matcher = self._compiled.matcher()
        self._taken = 0
        self._lost = False

    def allowed(
        self, output: npt.NDArray[np.int64], start: int, rows: int
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which tokens may stand at output positions start..start+rows-1.

        Args:
            output: int64, at least the `start + rows - 1` tokens before the last position.

        Returns:
            bool [rows, V]; and bool [rows], where the walk is lost: a token before was not allowed, so
            no engine's mask from there on is known (such rows allow everything).
        """
        if self._taken > start:
            self._restart()
        words = np.full((rows, self._compiled.words), -1, np.int32)
        lost = np.zeros(rows, np.bool_)
        for row in range(rows):
            self._advance(output[self._taken : start + row])
            lost[row] = self._lost
            if not self._lost and not self._matcher.terminated:
                self._matcher.fill(words[row])
        bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
        return bits[:, : self._compiled.vocabulary].astype(np.bool_), lost

    def _advance(self, tokens: npt.NDArray[np.int64]) -> None:
        for token in tokens.tolist():
            self._taken += 1
            if not self._lost and not self._matcher.terminated:
                self._lost = not self._matcher.accept(token)
