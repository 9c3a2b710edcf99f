"""Tokens that were billed although neither the logged ids nor the text hold them. Pure.

Ids say exactly how the text was split, so nothing here depends on how honest sampling leaves the canonical
tokenization. A log may have lost ids, and a text may have lost what a server took out: therefore the
smaller of the two excesses. Whether a response can be counted depends on its request and its text, never on
the bill.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from auditor.errors import AuditError
from auditor.token_counts.bill import bill_beside, is_hidden, token_bytes

if TYPE_CHECKING:
    from auditor.reference.tokenizer import Tokenizer
    from auditor.trace import Trace


@dataclass(frozen=True, slots=True)
class Unaccounted:
    """Of one response. `excess`: tokens, at least 0. `hidden`: so many that they must be hidden tokens."""

    excess: int
    hidden: bool


def unaccounted(trace: Trace, tokenizer: Tokenizer) -> Unaccounted | None:
    """Tokens billed beyond ids and text; None where ids, text or bill are missing or cannot be counted.

    A trace with a commitment is left to that: hidden tokens are counted there.
    """
    billed, ids = trace.usage.completion_tokens, trace.output_token_ids
    if billed is None or not ids or trace.commitment is not None:
        return None
    try:
        bill = bill_beside(trace, tokenizer, token_bytes(tokenizer))
    except AuditError:
        return None
    excess = max(0, min(bill.excess, billed - len(ids) - (trace.usage.reasoning_tokens or 0)))
    return Unaccounted(excess, is_hidden(excess, bill.allowed))
