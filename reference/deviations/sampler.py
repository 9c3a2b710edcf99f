"""The right model behind another sampler than the one declared."""

from __future__ import annotations

from dataclasses import replace

from auditor.reference.deviations.base import Deviation
from auditor.reference.sampling import SamplingSpec


def _hotter(spec: SamplingSpec) -> SamplingSpec:
    return replace(spec, temperature=spec.temperature + 0.1)


def _no_top_p(spec: SamplingSpec) -> SamplingSpec:
    return replace(spec, top_p=1.0)


def _no_penalty(spec: SamplingSpec) -> SamplingSpec:
    return replace(spec, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0)


DEVIATIONS = (
    Deviation(
        name="seed/wrong",
        gain="no need to keep per-request generators: faster batched sampling",
        source="DiFR, arXiv 2511.20621 (seed 43 for 42)",
        seed=lambda seed: (seed + 1) % 2**63,
        needs_noise=True,
    ),
    Deviation(
        name="temperature/+0.1",
        gain="hides quantization in livelier text, or is a plain misconfiguration",
        source="DiFR, arXiv 2511.20621 (T 1.1 for 1.0)",
        sampling=_hotter,
    ),
    Deviation(
        name="filter/top-p-ignored",
        gain="no sort in the sampler",
        source="difr.md section 2.1; engines that drop unsupported parameters silently",
        sampling=_no_top_p,
        needs_filter=True,
    ),
    Deviation(
        name="penalty/ignored",
        gain="no counts of every request's tokens to keep beside the sampler",
        source="engines that drop unsupported parameters silently; engines.md section 4.2 (penalties)",
        sampling=_no_penalty,
        needs_penalty=True,
    ),
)
