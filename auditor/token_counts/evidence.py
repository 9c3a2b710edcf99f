"""Bills against texts as evidence of a verdict: one e-value over all that could be counted. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from auditor.token_counts.martingale import wealth
from auditor.token_counts.response import ResponseCount
from auditor.trace import Trace

TOKEN_COUNT = "token-count"  # noqa: S105  a name, not a secret
"""Name of the evidence; its statistic is tokens a response billed beyond what the text takes."""


@dataclass(frozen=True, slots=True)
class CountEvidence:
    """What bills say together.

    Attributes:
        responses: counted, each text once. excess: tokens a response beyond the honest expectation, mean.
        log_e: log of the e-value.
    """

    responses: int
    excess: float
    log_e: float


def count_evidence(counted: Iterable[tuple[Trace, ResponseCount]]) -> CountEvidence | None:
    """What the counted responses say, in order; None without any.

    A response that is logged twice, word for word, counts once: an honest oddity must not be multiplied.
    """
    seen: dict[bytes, ResponseCount] = {}
    for trace, count in counted:
        seen.setdefault(content_digest(trace), count)
    if not seen:
        return None
    responses = [count.counted for count in seen.values()]
    excess = [r.excess - min(r.expected, r.ceiling) for r in responses]
    return CountEvidence(len(responses), sum(excess) / len(excess), float(wealth(responses)[-1]))


def content_digest(trace: Trace) -> bytes:
    """Of what was asked, answered and billed: equal for a response that is logged twice."""
    prompt = trace.prompt_token_ids or trace.messages or trace.prompt_text
    parts = (prompt, trace.text, trace.usage, trace.sampling, trace.seed)
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).digest()
