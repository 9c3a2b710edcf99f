"""The clock bound: hidden tokens cannot outnumber what fits between the request and the first visible token.

    hidden <= rate * (first visible token - request received - prefill)

The only evidence that the provider does not make: both ends are times of the client. The rate is that of the
same response's visible stream, or the fastest that the buyer has ever seen from this provider, whichever is
more. A provider that stalls passes, but pays for it in latency.
"""

from __future__ import annotations

from dataclasses import dataclass

from auditor.hidden_tokens.checking import moment
from auditor.trace import Trace

ALLOWANCE = 1.5
"""Decoding is not even: batches fill up as a request runs. A measured rate may be exceeded by this factor."""

LEAST_VISIBLE = 16
"""Visible tokens below which their stream says nothing of the rate."""


@dataclass(frozen=True, slots=True)
class ClockBound:
    """What fits.

    Attributes:
        seconds: from the request to the first visible token.
        rate: tokens a second that the bound allows.
        most_hidden: the most hidden tokens that fit.
        exceeded: whether more were billed.
    """

    seconds: float
    rate: float
    most_hidden: int
    exceeded: bool


def clock_bound(
    trace: Trace, *, fastest: float | None = None, prefill_seconds: float = 0.0
) -> ClockBound | None:
    """The bound of one response; None without client times, billed reasoning tokens or any rate.

    Args:
        fastest: decode rate, tokens a second, that this provider's single streams have never exceeded.
            Given, it is the bound's rate unless the visible stream was quicker.
        prefill_seconds: the least that prefill takes; 0 forgives most.

    Raises:
        OpeningSyntaxError: a time that is none.
    """
    timing, hidden = trace.timing or {}, trace.usage.reasoning_tokens
    times = [timing.get(name) for name in ("received", "first_token", "finished")]
    if hidden is None or any(time is None for time in times):
        return None
    received, first, finished = (moment(time, trace.where) for time in times)
    visible = len(trace.output_token_ids or ())
    streaming = (finished - first).total_seconds()
    rate = fastest or 0.0
    if visible >= LEAST_VISIBLE and streaming > 0.0:
        rate = max(rate, ALLOWANCE * (visible - 1) / streaming)
    if rate <= 0.0:
        return None
    seconds = (first - received).total_seconds()
    most = int(rate * max(0.0, seconds - prefill_seconds)) + 1
    return ClockBound(seconds, rate, most, hidden > most)
