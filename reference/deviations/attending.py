"""Attention over fewer keys, or by another rule: what a provider saves in long contexts.

The rules are the declared ones (`reference/policies/`), undeclared here. Budgets are of the demo model's
contexts (a few hundred tokens): with published budgets nothing would ever be dropped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from auditor.reference.batch import Attending
from auditor.reference.deviations.base import Deviation, Timing
from auditor.reference.policies import RULES, Policy
from auditor.reference.policies.selection import everything, gathered, scores_of


def in_layers(
    layers: Callable[[int], bool], hook: Callable[[Attending], Tensor]
) -> Callable[[Attending], Tensor]:
    """`hook` in some layers; the others attend to everything."""
    return lambda asked: (hook if layers(asked.layer) else everything)(asked)


def uniform(asked: Attending) -> Tensor:
    """Every earlier key counts the same: attention without queries and keys."""
    rows = len(asked.queries)
    weights = torch.ones(rows, rows).tril() / torch.arange(1, rows + 1)[:, None]
    return gathered(asked, weights.expand(asked.queries.shape[1], -1, -1))


def rectified(asked: Attending) -> Tensor:
    """ReLU in the place of the exponential."""
    raw = scores_of(asked).raw.clamp_min(0).tril() + 1e-6 * torch.ones(len(asked.queries)).diag()
    return gathered(asked, raw / raw.sum(-1, keepdim=True))


def taylor(asked: Attending) -> Tensor:
    """The exponential's second-order Taylor polynomial: linear-time attention."""
    raw = scores_of(asked).raw
    weights = (1 + raw + raw.square() / 2).tril()
    return gathered(asked, weights / weights.sum(-1, keepdim=True))


def fixed(asked: Attending) -> Tensor:
    """Weights of a sequence drawn once, whatever is asked: no queries and keys to compute."""
    rows = len(asked.queries)
    drawn = torch.randn(rows, 2, 64, generator=torch.Generator().manual_seed(11))
    raw = (drawn[:, 0] @ drawn[:, 1].T / 8).masked_fill(~torch.ones(rows, rows).tril().bool(), -torch.inf)
    return gathered(asked, raw.softmax(-1).expand(asked.queries.shape[1], -1, -1))


def own_value(asked: Attending) -> Tensor:
    """No mixing at all: each row gets its own value."""
    group = asked.queries.shape[1] // asked.values.shape[1]
    return asked.values.repeat_interleave(group, 1).to(asked.queries.dtype)


def _policy(
    line: str, name: str, *, timing: Timing = "after-trigger", source: str | None = None
) -> Deviation:
    policy = Policy.parse(line)
    return Deviation(
        name=f"kv/{name}",
        gain="cache memory and attention time in long contexts",
        source=source or RULES[policy.name].source,
        model=lambda model, _other: policy.applied(model),
        timing=timing,
    )


def _variant(name: str, hook: Callable[[Attending], Tensor]) -> Deviation:
    one = in_layers(lambda layer: layer == 2, hook)
    return Deviation(
        name=f"attention/{name}-in-one-layer",
        gain="a layer's attention in linear time, or none",
        source="Deconstructing Attention, arXiv 2510.11602",
        model=lambda model, _other: model.replace(attention=one),
    )


_CUT = ("streaming", "h2o", "tova", "lazy-eviction", "snapkv", "tokenselect", "fasa", "blocks")
_TIMING: dict[str, Timing] = {"lazy-eviction": "periodic", "tokenselect": "from-start"}

DEVIATIONS = (
    *(
        _policy(f"kv/{name} budget={budget}", f"{name}-{budget}", timing=_TIMING.get(name, "after-trigger"))
        for name in _CUT
        for budget in (32, 64)
    ),
    _policy("kv/h2o budget=1000", "h2o-1000", source="control: a budget above every length drops nothing"),
    _policy("kv/pyramid budget=48", "pyramid-48"),
    _policy("kv/pie at=8 inserted=8", "pie-8-inserted", timing="from-start"),
    _variant("uniform", uniform),
    _variant("relu", rectified),
    _variant("taylor", taylor),
    _variant("identity", own_value),
    _variant("fixed-scores", fixed),
)
