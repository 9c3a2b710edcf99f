"""Our own noise, keyed by (seed, absolute position, token id)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from auditor.kernels.keyed_noise import KeyedNoise
from auditor.kernels.splitmix import GOLDEN, U64, mix
from auditor.reference.noise.scheme import (
    Declared,
    Evidence,
    Family,
    FilterOrder,
    KeyedRows,
    Served,
    positions,
)

# First eight bytes of SHA-256 of "gumbel-pos-v1/noise": keeps this use of a seed apart from any other.
_DOMAIN_NOISE = np.uint64(0x8D2A5371DD512F83)
_EVIDENCE = Evidence(confirmed=True, source="tests/vectors/gumbel-pos-v1.json")


DRAFTS_AHEAD = 1 << 30
"""How much further on a draft model draws: never a position of the text."""


@dataclass(frozen=True, slots=True)
class GumbelPosition:
    """`gumbel-pos-v1`: keyed by (seed, absolute position of the sampled token, token id).

    row key = mix(mix(seed XOR domain) + (position + 1) * golden); bits = mix(row key + (id + 1) * golden)
    shifted to 53; u = (bits + 1/2) / 2**53; g = -ln(-ln(1 - u)). A function of the position alone, so
    batches, drafts and preemption cannot change a token.

    Attributes:
        ahead: added to every position. A draft model draws its own guesses `DRAFTS_AHEAD`, as vLLM's does.
    """

    name: str = "gumbel-pos-v1"
    family: Family = "race"
    filters: FilterOrder = "vllm"
    noise: KeyedNoise = KeyedNoise.SPLITMIX_TAIL_SAFE
    evidence: Evidence = _EVIDENCE
    served: tuple[Served, ...] = ()
    ahead: int = 0

    def row_keys(self, seed: int, prompt_tokens: int, start: int, stop: int) -> U64:
        """Keys uint64 [stop - start] of output tokens start..stop-1 of a prompt of that length."""
        with np.errstate(over="ignore"):
            base = mix(np.array([seed & (2**64 - 1)], np.uint64) ^ _DOMAIN_NOISE)
            return mix(base + (positions(prompt_tokens + self.ahead, start, stop) + np.uint64(1)) * GOLDEN)

    def declared(self, request: Declared) -> GumbelPosition:
        """As `NoiseScheme`; any request will do."""
        del request
        return self

    def draws(self, seed: int, prompt_tokens: int, vocabulary: int, *, filtered: bool) -> KeyedRows:
        """As `NoiseScheme`."""
        del vocabulary, filtered
        return KeyedRows(self, seed, prompt_tokens)
