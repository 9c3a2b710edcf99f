"""Does a service already make its model ramble? One lengthening probe, black box. Pure.

A provider can bill more by steering the model to longer answers (hidden instructions, steering vectors, a
suppressed end token). Such a service has little room left: asked to be as long as possible, it lengthens
far less than the honest model does ("saturation", arXiv 2609.20370). The same questions are asked with and
without `LENGTHEN` of the service and of a trusted copy of the model; the null is that both lengthen alike.

A signal, never proof: an honest service with a length limit, or another system prompt, saturates too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import permutation_test

from auditor.errors import OptionError

if TYPE_CHECKING:
    from auditor.trace import Trace

LENGTHEN = (
    "Answer at the greatest length you can: explain every step, repeat every detail, do not stop early."
)
_PERMUTATIONS = 9_999


@dataclass(frozen=True, slots=True)
class Lengthening:
    """How much two services lengthen.

    Attributes:
        questions: that both were asked both ways.
        service, trusted: mean log of (lengthened / plain) tokens over the questions.
        p_value: probability that a service like the trusted copy lengthens so much less.
        limited: questions of which the trusted copy was not let to end a lengthened answer.
    """

    questions: int
    service: float
    trusted: float
    p_value: float
    limited: int


def lengthened(messages: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """The same conversation, asking for length.

    Raises:
        OptionError: there is no user message to ask in, or it is not text.
    """
    changed = [dict(message) for message in messages]
    for message in reversed(changed):
        if message.get("role") == "user" and isinstance(message.get("content"), str):
            message["content"] = f"{message['content']} {LENGTHEN}"
            return tuple(changed)
    raise OptionError("the conversation has no user message in words", fix="probe with one that has")


@dataclass(frozen=True, slots=True)
class Lengths:
    """Output tokens of one question asked both ways, means over its answers.

    Attributes:
        cut: whether a lengthened answer was ended by its limit and not by the model.
    """

    plain: float
    lengthened: float
    cut: bool = False


def lengths_of(traces: Iterable[Trace]) -> dict[str, Lengths]:
    """Questions that a log has both plainly and with `LENGTHEN`, by what was asked.

    An answer counts as one token at least. Traces without messages or a number of output tokens are skipped.
    """
    plain: dict[str, list[int]] = {}
    longer: dict[str, list[tuple[int, bool]]] = {}
    for trace in traces:
        tokens = trace.usage.completion_tokens
        if tokens is None:
            tokens = len(trace.output_token_ids) if trace.output_token_ids is not None else None
        if trace.messages is None or tokens is None:
            continue
        question = _question(trace.messages)
        if question is None:
            plain.setdefault(_key(trace.messages), []).append(max(1, tokens))
        else:
            longer.setdefault(_key(question), []).append((max(1, tokens), trace.finish_reason == "length"))
    return {
        key: Lengths(
            float(np.mean(plain[key])), float(np.mean([n for n, _ in found])), any(cut for _, cut in found)
        )
        for key, found in longer.items()
        if key in plain
    }


def _key(messages: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(messages, sort_keys=True, default=dict)


def _question(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """What was asked before it was lengthened; None where it was not."""
    asked = [dict(message) for message in messages]
    for message in reversed(asked):
        content = message.get("content")
        if message.get("role") == "user" and isinstance(content, str) and content.endswith(f" {LENGTHEN}"):
            message["content"] = content.removesuffix(f" {LENGTHEN}")
            return asked
    return None


def compare_lengthening(service: Iterable[Trace], trusted: Iterable[Trace]) -> Lengthening:
    """Compare two logs on the questions that both have, asked both ways.

    Raises:
        OptionError: fewer than 5 such questions.
    """
    ours, theirs = lengths_of(service), lengths_of(trusted)
    shared = sorted(ours.keys() & theirs.keys())
    return lengthening([ours[k] for k in shared], [theirs[k] for k in shared], np.random.default_rng(0))


def lengthening(
    service: Sequence[Lengths], trusted: Sequence[Lengths], generator: np.random.Generator
) -> Lengthening:
    """Compare how much two services lengthen.

    Args:
        service, trusted: of the same questions, in the same order.

    Raises:
        OptionError: fewer than 5 questions, or different numbers of them.
    """
    if len(service) != len(trusted) or len(service) < 5:
        raise OptionError(
            f"{len(service)} and {len(trusted)} questions asked both ways",
            fix="ask both sides the same ones, at least 5: `lengthen = true` in the plan of `audit probe`",
        )
    gains = np.log([[q.lengthened / q.plain for q in side] for side in (service, trusted)])
    # Question by question the two sides are exchangeable under the null: their labels are swapped.
    found = permutation_test(
        (gains[0], gains[1]),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        alternative="less",
        n_resamples=_PERMUTATIONS,
        rng=generator,
    )
    return Lengthening(
        len(service),
        float(gains[0].mean()),
        float(gains[1].mean()),
        float(found.pvalue),
        sum(q.cut for q in trusted),
    )
