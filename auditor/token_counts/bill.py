"""A response's bill and what its text takes, without any model. Pure.

Fail closed: a text that does not hold everything that was generated (stop strings, tool calls, replacement
characters) is refused, never guessed at, and so is a bill far beyond the text: it is one for hidden tokens,
whatever they were. What a text does not show is forgiven: the end token, a leading space that was stripped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from auditor.errors import CannotScoreError, TraceIncompleteError
from auditor.reference.token_bytes import TokenBytes
from auditor.token_counts.lattice import Ids

if TYPE_CHECKING:
    from auditor.reference.tokenizer import Tokenizer
    from auditor.trace import Trace

_REPLACEMENT = "\ufffd"
_MARKS = 3  # tokens around hidden reasoning that count as neither reasoning nor answer
_FEW, _PART = 8, 0.2  # tokens, and share of the text, beyond which hidden tokens must have been billed
_REFUSED_ENDS = frozenset({"tool_calls", "function_call", "content_filter"})


@dataclass(frozen=True, slots=True)
class Bill:
    """A bill beside its text.

    Attributes:
        billed: tokens, without declared reasoning that the text does not hold.
        canonical: ids of the text. allowed: how many tokens it may honestly have taken.
    """

    billed: int
    canonical: Ids
    allowed: int

    @property
    def excess(self) -> int:
        """Tokens billed beyond what is allowed for; negative if fewer."""
        return self.billed - self.allowed


@lru_cache(maxsize=8)
def token_bytes(tokenizer: Tokenizer, size: int | None = None) -> TokenBytes:
    """A tokenizer's bytes, made once.

    Raises:
        ModelUnsupportedError: as `TokenBytes.of`.
    """
    return TokenBytes.of(tokenizer, size)


def bill_of(trace: Trace, tokenizer: Tokenizer, vocabulary: TokenBytes) -> Bill:
    """Hold a response's bill against its text.

    Raises:
        TraceIncompleteError: no text or no bill.
        CannotScoreError: the text does not hold all that was generated, or far less than was billed.
    """
    bill = bill_beside(trace, tokenizer, vocabulary)
    if is_hidden(bill.excess, bill.allowed):
        # Leaving such a response out forgoes a gain of the bet, never a loss, so it costs no validity.
        raise CannotScoreError(
            f"{bill.excess} tokens are billed beyond the {bill.allowed} of the text: hidden tokens that the "
            "log does not declare",
            where=trace.where,
            fix="have them committed to (audit commit), or log usage.reasoning_tokens",
        )
    return bill


def bill_beside(trace: Trace, tokenizer: Tokenizer, vocabulary: TokenBytes) -> Bill:
    """The same, however large the bill: what is refused depends on request and text alone.

    Raises:
        TraceIncompleteError, CannotScoreError: as `bill_of`.
    """
    text, billed = _text_and_bill(trace)
    canonical = canonical_ids(text, tokenizer, vocabulary, trace)
    allowed = len(canonical) + _forgiven(text, trace, tokenizer)
    return Bill(_bill_of_text(billed, trace.usage.reasoning_tokens or 0, allowed), canonical, allowed)


def is_hidden(excess: int, allowed: int) -> bool:
    """Far more tokens than the text takes: padding or undeclared reasoning; no text tells them apart."""
    return excess > max(_FEW, _PART * allowed)


def _text_and_bill(trace: Trace) -> tuple[str, int]:
    if not trace.text or trace.usage.completion_tokens is None:
        raise TraceIncompleteError(
            "no text or no usage.completion_tokens to compare it with", where=trace.where, fix="log both"
        )
    for is_so, why in (
        (bool(trace.sampling.stop), "stop strings cut the text, not the bill"),
        (trace.finish_reason in _REFUSED_ENDS, f"finish_reason {trace.finish_reason}: text was taken out"),
        (_REPLACEMENT in trace.text, "the text has replacement characters for bytes that were lost"),
    ):
        if is_so:
            raise CannotScoreError(f"its tokens cannot be counted from the text: {why}", where=trace.where)
    return trace.text, trace.usage.completion_tokens


def _bill_of_text(billed: int, reasoning: int, allowed: int) -> int:
    """What was billed for the text: all, or all but the reasoning where the text cannot hold it.

    Only a text clearly longer than the answer's own bill is taken to show the reasoning too; hidden reasoning
    cannot be counted from a text, and an honest bill for it must not look like an excess.
    """
    answer = max(0, billed - reasoning - (_MARKS if reasoning else 0))
    return billed if allowed > 1.1 * answer + 8 else answer


def canonical_ids(text: str, tokenizer: Tokenizer, vocabulary: TokenBytes, trace: Trace) -> Ids:
    """The tokenizer's own ids of a text, without end tokens behind it.

    Raises:
        CannotScoreError: they do not give the text back byte for byte. TraceIncompleteError: there are none.
    """
    ids = tuple(tokenizer.encode(text))
    names = {i: tokenizer.decode([i]).encode() for i in tokenizer.special_ids}
    if b"".join(names.get(i) or vocabulary.spelled[i] or b"" for i in ids) != text.encode():
        raise CannotScoreError(
            "the tokenizer does not give the text back byte for byte (it normalises)", where=trace.where
        )
    while ids and ids[-1] in tokenizer.eos_ids:
        ids = ids[:-1]
    if not ids:
        raise TraceIncompleteError("the text has no tokens", where=trace.where)
    return ids


def _forgiven(text: str, trace: Trace, tokenizer: Tokenizer) -> int:
    """The end token unless the limit ended the output, and a leading space that servers strip."""
    end = trace.finish_reason != "length"
    if text[0].isspace():
        return int(end)
    stripped = len(tokenizer.encode(" " + text)) - len(tokenizer.encode(text))
    return int(end) + max(0, stripped)
