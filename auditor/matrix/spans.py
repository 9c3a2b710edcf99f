"""Localisation: do the spans that a verdict reports lie where the deviation was at work?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from auditor.matrix.seen import Seen
from auditor.verdict import flagged_spans


def localised(requests: Sequence[Seen], scale: float) -> dict[str, Any]:
    """How a row's flagged tokens lie, over all of its requests together.

    Args:
        scale: of honest noise, its upper bound, logits.

    Returns:
        `flagged` requests of `requests`; `acted`, the share of all tokens at which the deviation was at work;
        `hits`, the share of the flagged ones at which it was; `iou`, of both sets of tokens in the flagged
        requests, and `iou_all`, what flagging every token of them would score.
    """
    flagged = both = either = acted_there = tokens_there = named = 0
    for one in requests:
        inside = np.zeros(one.tokens, np.bool_)
        for first, end in flagged_spans(one.misses(), one.tokens, scale):
            inside[first:end] = True
        if not inside.any():
            continue
        flagged += 1
        named += int(inside.sum())
        both += int((inside & one.acted).sum())
        either += int((inside | one.acted).sum())
        acted_there += int(one.acted.sum())
        tokens_there += one.tokens
    tokens = sum(one.tokens for one in requests)
    return {
        "requests": len(requests),
        "flagged": flagged,
        "acted": sum(int(one.acted.sum()) for one in requests) / max(tokens, 1),
        "hits": both / named if named else None,
        "iou": both / either if either else None,
        "iou_all": acted_there / tokens_there if tokens_there else None,
    }
