"""llama.cpp's `dist` sampler."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from auditor.kernels.mersenne import float_uniforms, words
from auditor.kernels.splitmix import F64, LARGEST_UNIFORM
from auditor.reference.noise.scheme import Declared, Evidence, Family, FilterOrder, Served, UniformRows

_EVIDENCE = Evidence(confirmed=True, source="tests/traces/llamacpp-*.jsonl.gz")
_SERVED = (Served("llama.cpp", ("llama-cpp-python 0.3.36*",)), Served("llama-cpp-python", ("0.3.36*",)))


@dataclass(frozen=True, slots=True)
class LlamaCppInverseCdf:
    """llama.cpp's `dist` sampler: 64 bits of mt19937 a token, candidates in the chain's order.

    The chain filters unscaled logits (top-n-sigma, top-k, typical-p, top-p, min-p, XTC) and divides by the
    temperature last. Candidates stand in vocabulary order; top-k, top-p and XTC sort them by falling logit,
    typical-p by its own distance, the others not.
    """

    name: str = "llama.cpp/mt19937-u64-icdf"
    family: Family = "icdf"
    filters: FilterOrder = "llama.cpp"
    evidence: Evidence = _EVIDENCE
    served: tuple[Served, ...] = _SERVED
    float32_sums: bool = False

    def uniforms(self, seed: int, start: int, stop: int) -> F64:
        """Uniform numbers of output tokens start..stop-1, float64 [stop - start].

        Each is (low + high * 2**32) / 2**64 of two 32-bit words, the low one drawn first.
        """
        drawn = words(seed, 2 * start, 2 * stop).astype(np.float64)
        # The sum may round to 2**64; `std::generate_canonical` then gives the double below 1.
        return np.minimum((drawn[::2] + drawn[1::2] * 2.0**32) * 2.0**-64, LARGEST_UNIFORM)

    def coins(self, seed: int, start: int, stop: int) -> F64:
        """XTC's numbers of output tokens start..stop-1, float64 [stop - start].

        Its generator is its own, with the seed of the draws: one float a token that two candidates reach.
        """
        return float_uniforms(seed, start, stop)

    def declared(self, request: Declared) -> LlamaCppInverseCdf:
        """As `NoiseScheme`; any request will do."""
        del request
        return self

    def draws(self, seed: int, prompt_tokens: int, vocabulary: int, *, filtered: bool) -> UniformRows:
        """As `NoiseScheme`."""
        del prompt_tokens, vocabulary, filtered
        return UniformRows(self, seed)
