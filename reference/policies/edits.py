"""Text inserted into a cached prompt without computing what follows it again (PIE, arXiv 2407.03157).

A provider that had cached a prompt keeps, when a span is inserted into it, the keys and values before it,
encodes the span against them, and turns the keys behind it on by the span's length; what those keys and
values say of the text is stale, for they were computed without the span. The prompt's last token is read
again, so that the first output token sees everything.

In one pass over the edited prompt that is: rows behind the span, but for the last of the prompt, do not see
the span, and see what lies in front of it as near as it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from auditor.errors import OptionError
from auditor.reference.architecture import Rope
from auditor.reference.batch import Attending, AttentionHook
from auditor.reference.layers.rotary import frequencies, rotate
from auditor.reference.layers.self_attention import AttentionPlan
from auditor.reference.loading import ReferenceModel
from auditor.reference.policies.selection import gathered, scores_of


def inserted_span(*, at: int, inserted: int, ropes: Sequence[Rope]) -> AttentionHook:
    """Attention after `inserted` tokens came in at position `at`; a prompt that ends before is whole.

    Args:
        ropes: of each layer.
    """

    def attend(asked: Attending) -> Tensor:
        seen = scores_of(asked)
        place, behind = torch.arange(seen.rows), at + inserted
        stale = (place >= behind) & (place < asked.prompt - 1)
        raw = seen.raw
        if stale.any():
            raw = raw.clone()
            raw[:, stale, :at] = _as_near_as_before(asked, stale, at, inserted, ropes[asked.layer])
        span = (place >= at) & (place < behind)
        visible = (seen.newest >= 0) & ~(stale[:, None] & span)
        return gathered(asked, raw.masked_fill(~visible, -torch.inf).softmax(-1))

    return attend


def _as_near_as_before(asked: Attending, stale: Tensor, at: int, inserted: int, rope: Rope) -> Tensor:
    """Scaled scores of stale rows and the keys in front of the span, [heads, stale rows, at]."""
    queries, keys = asked.queries[stale].float(), asked.keys[:at].float()
    turns = -inserted * frequencies(rope, rope.rotary_dim or queries.shape[-1])
    turned = rotate(queries, turns.cos(), turns.sin()).transpose(0, 1)
    group = queries.shape[1] // keys.shape[1]
    return turned @ keys.transpose(0, 1).repeat_interleave(group, 0).transpose(1, 2) * asked.softmax.scale


def ropes_of(model: ReferenceModel) -> list[Rope]:
    """How each layer turns positions.

    Raises:
        OptionError: a layer where turning keys on does not move them.
    """
    plans = [layer.mixer for layer in getattr(model.config, "layers", ())]
    ropes = [plan.rope for plan in plans if isinstance(plan, AttentionPlan) and plan.rope is not None]
    if len(ropes) < max(len(plans), 1) or any(rope.rope_type == "longrope" for rope in ropes):
        raise OptionError(f"policy kv/pie on a {model.config.model_type} model: cached keys cannot be moved")
    return ropes


__all__ = ["inserted_span", "ropes_of"]
