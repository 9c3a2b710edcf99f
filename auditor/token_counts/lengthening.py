"""Does a service already make its model ramble? One lengthening probe, black box. Pure.

A provider can bill more by steering the model to longer answers (hidden instructions, steering vectors, a
suppressed end token). Such a service has little room left: asked to be as long as possible, it lengthens
far less than the honest model does ("saturation", arXiv 2609.20370). The same questions are asked with and
without `LENGTHEN` of the service and of a trusted copy of the model; the null is that both lengthen alike.

A signal, never proof: an honest service with a length limit, or another system prompt, saturates too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import permutation_test

from auditor.errors import OptionError

LENGTHEN = (
    "Answer at the greatest length you can: explain every step, repeat every detail, do not stop early."
)
_PERMUTATIONS = 9_999


@dataclass(frozen=True, slots=True)
class Lengthening:
    """How much two services lengthen.

    Attributes:
        service, trusted: mean log of (lengthened / plain) tokens over the questions.
        p_value: probability that a service like the trusted copy lengthens so much less.
        limited: questions whose lengthened answer the trusted copy was not let to end.
    """

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


def lengthening(
    service: Sequence[tuple[int, int]],
    trusted: Sequence[tuple[int, int]],
    generator: np.random.Generator,
    *,
    limit: int | None = None,
) -> Lengthening:
    """Compare how much two services lengthen.

    Args:
        service, trusted: (plain, lengthened) output tokens of the same questions, in the same order.
        limit: most output tokens; answers that reach it were cut, on either side alike.

    Raises:
        OptionError: fewer than 5 questions, different numbers of them, or answers without tokens.
    """
    if len(service) != len(trusted) or len(service) < 5:
        raise OptionError(
            f"{len(service)} and {len(trusted)} questions",
            fix="ask both sides the same questions, at least 5",
        )
    pairs = np.array([service, trusted], np.float64)
    if pairs.min() < 1:
        raise OptionError("an answer without tokens has no length to compare", fix="leave the question out")
    gains = np.log(pairs[:, :, 1] / pairs[:, :, 0])
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
    cut = 0 if limit is None else int((pairs[1, :, 1] >= limit).sum())
    return Lengthening(float(gains[0].mean()), float(gains[1].mean()), float(found.pvalue), cut)
