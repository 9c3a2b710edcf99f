"""Filters by the book, in plain numpy over whole rows: what rules of speculation are held against."""

from __future__ import annotations

import numpy as np

from auditor.reference.sampling import SamplingSpec

SPECS = {
    "plain": SamplingSpec(),
    "cold": SamplingSpec(temperature=0.6),
    "top-k": SamplingSpec(top_k=4),
    "top-p": SamplingSpec(top_p=0.8, temperature=0.8),
    "min-p": SamplingSpec(min_p=0.1),
}


def kept_by(z, spec):
    """Probabilities after the filters, by the book; float64 [V]."""
    scaled = (z / np.float32(spec.temperature)).astype(np.float64)
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    keep = np.ones(len(p), bool)
    if spec.min_p:
        keep &= p >= spec.min_p * p.max()
    if spec.top_k:
        keep[order[spec.top_k :]] = False
    if spec.top_p < 1.0:
        mass = p[order] / p[keep].sum() * keep[order]
        keep[order[np.cumsum(mass) - mass >= spec.top_p]] = False
    p = np.where(keep, p, 0.0)
    return p / p.sum()
