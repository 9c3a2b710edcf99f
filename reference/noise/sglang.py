"""SGLang with `--enable-deterministic-inference`: noise hashed from (seed, position, column).

The position is that of the last token consumed. Without filters the column is the token id. Under top-k or
top-p it is the token's rank among the sorted probabilities: there a difference in the last bit of two logits
swaps the noise of two tokens, and a margin could not tell that from a cheat, so such requests are refused
(docs/decisions/0007). min-p with a seed is refused by SGLang itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from auditor.errors import NoiseUnknownError
from auditor.kernels import murmur
from auditor.kernels.keyed_noise import KeyedNoise
from auditor.kernels.splitmix import U64
from auditor.reference.noise.scheme import (
    Declared,
    Evidence,
    Family,
    FilterOrder,
    KeyedRows,
    Served,
    positions,
)


@dataclass(frozen=True, slots=True)
class SglangHash:
    """One released variant of the hash and its end points."""

    name: str
    noise: KeyedNoise
    evidence: Evidence
    served: tuple[Served, ...]
    family: Family = "race"
    filters: FilterOrder = "transformers"

    def row_keys(self, seed: int, prompt_tokens: int, start: int, stop: int) -> U64:
        """Keys uint64 [stop - start] of output tokens start..stop-1: hash states, or step seeds."""
        consumed = positions(prompt_tokens - 1, start, stop)
        if self.noise in (KeyedNoise.SGLANG_32, KeyedNoise.SGLANG_32_OPEN):
            return murmur.row_states(seed, consumed).astype(np.uint64)
        with np.errstate(over="ignore"):
            own = np.array([seed % 2**64], np.uint64) * np.uint64(19349663)
            return np.asarray(own ^ (consumed * np.uint64(73856093)))

    def declared(self, request: Declared) -> SglangHash:
        """As `NoiseScheme`.

        Raises:
            NoiseUnknownError: a filter is on.
        """
        if request.top_k > 0 or request.top_p < 1.0 or request.min_p > 0.0:
            raise NoiseUnknownError(
                "under filters SGLang draws noise by rank, where rounding swaps it between tokens",
                fix="sample without filters",
            )
        return self

    def draws(self, seed: int, prompt_tokens: int, vocabulary: int, *, filtered: bool) -> KeyedRows:
        """As `NoiseScheme`."""
        del vocabulary, filtered
        return KeyedRows(self, seed, prompt_tokens)


def _variant(name: str, noise: KeyedNoise, *versions: str) -> SglangHash:
    evidence = Evidence(
        confirmed=False,
        source=f"sglang {', '.join(versions)}, srt/layers/sampler.py: multinomial_with_seed; one run on CPU",
        needs="deterministic inference; no top-k, top-p or min-p",
    )
    served = Served("sglang", versions, "cuda", flags=frozenset({"deterministic"}))
    return SglangHash(name, noise, evidence, (served,))


VARIANTS = (
    _variant("sglang/murmur32", KeyedNoise.SGLANG_32, "0.5.18", "0.5.21", "0.5.23"),
    _variant("sglang/murmur32-open", KeyedNoise.SGLANG_32_OPEN, "0.5.10", "0.5.15"),
    _variant("sglang/hash24", KeyedNoise.SGLANG_24, "0.5.4", "0.5.5", "0.5.6", "0.5.8"),
    _variant("sglang/hash24-epsilon", KeyedNoise.SGLANG_24_EPSILON, "0.5.3"),
)
