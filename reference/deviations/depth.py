"""Fewer layers for some tokens, or something added between them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from auditor.reference.batch import ResidualHook
from auditor.reference.deviations.base import Deviation, Timing
from auditor.reference.loading import ReferenceModel

Change = Callable[[ReferenceModel, ReferenceModel | None], ReferenceModel]


def _skipping(*places: int) -> Change:
    """Drop layers counted from the end when negative."""

    def change(model: ReferenceModel, other: ReferenceModel | None) -> ReferenceModel:
        del other
        count = model.config.num_hidden_layers
        return model.replace(skip_layers=frozenset(place % count for place in places))

    return change


def _steps(decoded: Tensor) -> Tensor:
    """How many tokens were decoded before each row in its sequence, 0 in prompts."""
    count = decoded.long().cumsum(0)
    return count - torch.where(decoded, 0, count).cummax(0).values


def _skip_decode(model: ReferenceModel, other: ReferenceModel | None) -> ReferenceModel:
    """SkipDecode: later tokens pass fewer layers; the first and the last ones stay."""
    del other
    layers, least, length = model.config.num_hidden_layers, 3, 200

    def hook(layer: int, before: Tensor, after: Tensor, decoded: Tensor) -> Tensor:
        active = layers - (layers - least) * (_steps(decoded) / length).clamp(0, 1)
        # One warm-up layer at the bottom, the others from the top.
        skipped = decoded & (layer > 0) & (layers - layer > (active - 1).ceil())
        return torch.where(skipped[:, None], before, after)

    return model.replace(residual=hook)


def _early_exit(threshold: float) -> Change:
    """CALM's saturation rule: a token whose state hardly turned in a layer skips the others."""

    def change(model: ReferenceModel, other: ReferenceModel | None) -> ReferenceModel:
        del other
        state = threading.local()

        def hook(layer: int, before: Tensor, after: Tensor, decoded: Tensor) -> Tensor:
            if layer == 0:
                state.left = torch.zeros(len(decoded), dtype=torch.bool)
            out = torch.where(state.left[:, None], before, after)
            alike = torch.cosine_similarity(before.float(), after.float(), dim=1) > threshold
            if layer > 0:
                state.left |= decoded & alike
            return out

        return model.replace(residual=hook)

    return change


def _added(make: Callable[[Tensor, Tensor], Tensor], at: int = 2) -> Change:
    def hook(layer: int, before: Tensor, after: Tensor, decoded: Tensor) -> Tensor:
        del before
        return after + make(after, decoded).to(after.dtype) if layer == at else after

    own: ResidualHook = hook
    return lambda model, _other: model.replace(residual=own)


def _steering(size: float) -> Change:
    def vector(after: Tensor, decoded: Tensor) -> Tensor:
        del decoded
        direction = torch.randn(after.shape[1], generator=torch.Generator().manual_seed(7))
        return torch.outer(after.float().norm(dim=1), size * direction / direction.norm())

    return _added(vector)


def _rewoven(gate: float) -> Change:
    """Contextual Memory Reweaving's shape: states of this request come back, weighed by likeness."""

    def memory(after: Tensor, decoded: Tensor) -> Tensor:
        begins = ~decoded & decoded.roll(1)
        sequence = begins.cumsum(0)
        wide = after.float()
        unit = wide / wide.norm(dim=1, keepdim=True).clamp_min(1e-6)
        own = (sequence[:, None] == sequence).tril(-1)
        like = (unit @ unit.T).masked_fill(~own, -10.0)
        best = like.topk(min(8, len(like)), dim=1)
        return gate * (torch.softmax(best.values / 0.1, dim=1)[..., None] * wide[best.indices]).sum(1)

    return _added(memory)


def _entry(
    name: str, gain: str, source: str, model: Change, *, timing: Timing = "from-start", decodes: bool = False
) -> Deviation:
    return Deviation(f"depth/{name}", gain, source, model, timing=timing, decodes=decodes)


_DROP = "static layer dropping; Gromov et al., arXiv 2403.17887"
DEVIATIONS = (
    _entry("skip-last", "one layer's compute and cache", _DROP, _skipping(-1), decodes=True),
    _entry("skip-second", "one layer's compute and cache", _DROP, _skipping(1), decodes=True),
    _entry("skip-two", "two layers' compute and cache", _DROP, _skipping(1, 3), decodes=True),
    _entry("skip-decode", "twice the speed in long answers", "SkipDecode, arXiv 2307.02628", _skip_decode,
           timing="after-trigger"),
    *(
        _entry(f"early-exit-{threshold}", "easy tokens pass fewer layers",
               "CALM, arXiv 2207.07061 (state saturation)", _early_exit(threshold), timing="periodic")
        for threshold in (0.9, 0.8)
    ),
    *(
        _entry(f"steered-{size:.0%}", "behaviour changed without a prompt",
               "activation addition; Turner et al., arXiv 2308.10248", _steering(size))
        for size in (0.02, 0.1)
    ),
    *(
        _entry(f"rewoven-{gate:.0%}", "longer recall claimed", "CMR, arXiv 2502.02046 (its shape)",
               _rewoven(gate))
        for gate in (0.01, 0.1)
    ),
)  # fmt: skip
