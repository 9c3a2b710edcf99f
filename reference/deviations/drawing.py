"""The right logits, and another token: other parameters, other noise, a watermark, a slip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from auditor.reference.deviations.base import Deviation, Served
from auditor.reference.sampling import SamplingSpec


def _with(**fields: float) -> Callable[[SamplingSpec], SamplingSpec]:
    return lambda spec: replace(spec, **fields)  # type: ignore[arg-type]


def _by(step: float) -> Callable[[SamplingSpec], SamplingSpec]:
    return lambda spec: replace(spec, temperature=max(0.0, spec.temperature + step))


def _marked(delta: float) -> Callable[[torch.Tensor, Served], torch.Tensor]:
    """Half of the vocabulary, chosen by the token before, gains `delta` (Kirchenbauer et al.)."""

    def logits(own: torch.Tensor, served: Served) -> torch.Tensor:
        ids = torch.arange(own.shape[1], dtype=torch.int64)
        last = torch.from_numpy(served.last)[:, None]
        green = ((ids * 2_654_435_761 + last * 40_503 + 12_345) >> 13) & 1
        return own + delta * green

    return logits


def _quantized_logits(own: torch.Tensor, served: Served) -> torch.Tensor:
    """Logits rounded to bfloat16 before sampling."""
    del served
    return own.to(torch.bfloat16).float()


def _capped(own: torch.Tensor, served: Served) -> torch.Tensor:
    """A soft cap that the model was not trained with."""
    del served
    return 30.0 * torch.tanh(own / 30.0)


def _sampling(name: str, change: Callable[[SamplingSpec], SamplingSpec], source: str) -> Deviation:
    return Deviation(
        name=name, gain="livelier, safer or shorter text than was asked for", source=source, sampling=change,
        needs_noise=True,
    )  # fmt: skip


def _seeds(name: str, change: Callable[[int], int], source: str) -> Deviation:
    return Deviation(
        name=f"seed/{name}", gain="no generators to keep for each request", source=source, seed=change,
        needs_noise=True,
    )  # fmt: skip


def _fresh(seed: int) -> int:
    """A seed nobody was told, the same in every run of the matrix."""
    return int(np.random.default_rng(seed).integers(2**63))


_UNTOLD = "engines' defaults and house rules; generation_config.json read or not"
DEVIATIONS = (
    _sampling("temperature/+0.05", _by(0.05), "DiFR, arXiv 2511.20621 (smaller steps)"),
    _sampling("temperature/+0.02", _by(0.02), "demo model's own table: the smallest step measured there"),
    _sampling("temperature/-0.1", _by(-0.1), "safer text than was asked for"),
    _sampling("temperature/greedy", _with(temperature=0.0), "an ignored parameter"),
    _sampling("filter/top-p-0.95-undeclared", _with(top_p=0.95), _UNTOLD),
    _sampling("filter/top-p-0.9-undeclared", _with(top_p=0.9), _UNTOLD),
    _sampling("filter/top-k-50-undeclared", _with(top_k=50), _UNTOLD),
    _sampling("filter/top-k-20-undeclared", _with(top_k=20), _UNTOLD),
    _sampling("filter/min-p-0.05-undeclared", _with(min_p=0.05), _UNTOLD),
    replace(
        _sampling("filter/top-p-0.8-for-0.9", _with(top_p=0.8), _UNTOLD),
        needs_filter=True,
    ),
    _sampling("penalty/repetition-1.05-undeclared", _with(repetition_penalty=1.05), _UNTOLD),
    _sampling("penalty/presence-0.2-undeclared", _with(presence_penalty=0.2), _UNTOLD),
    _sampling("penalty/frequency-0.2-undeclared", _with(frequency_penalty=0.2), _UNTOLD),
    _seeds("shared", lambda _seed: 42, "one generator for all requests"),
    _seeds("fresh", _fresh, "a seed that the engine drew itself; also best-of-n, beams and re-runs"),
    Deviation(
        name="seed/position-off-by-one",
        gain="none: a counter that starts elsewhere (speculation bug B2)",
        source="speculation.md section 7 (honest bugs)",
        shift=1,
        needs_noise=True,
        decodes=False,
    ),
    Deviation(
        name="seed/stale",
        gain="none: a generator that was not set again for the request",
        source="engines that keep a generator by slot",
        shift=200,
        needs_noise=True,
        decodes=False,
    ),
    *(
        Deviation(
            name=f"sampler/runner-up-{share:.0%}",
            gain="none: a race between threads",
            source="the TPU top-k bug of 2025 (approximate top-k lost the best token now and then)",
            slips=share,
            timing="periodic",
            decodes=False,
        )
        for share in (0.01, 0.05)
    ),
    *(
        Deviation(
            name=f"sampler/watermark-{delta:g}",
            gain="text that can be recognised as its own",
            source="Kirchenbauer et al., arXiv 2301.10226 (gamma 0.5)",
            logits=_marked(delta),
            needs_noise=True,
            decodes=False,
        )
        for delta in (0.5, 2.0)
    ),
    Deviation(
        name="sampler/bfloat16-logits",
        gain="half the logits' memory",
        source="engines that sample in the model's dtype",
        logits=_quantized_logits,
        decodes=False,
    ),
    Deviation(
        name="sampler/logits-capped",
        gain="none: another family's setting",
        source="Gemma 2's soft cap on a model without one",
        logits=_capped,
        decodes=False,
    ),
)
