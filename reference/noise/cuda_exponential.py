"""`exponential_` of torch's CUDA generator: vLLM's V1 runner, TGI, and transformers' `generate` on GPUs.

Token = argmax p / E with E ~ Exp(1), a row of V float32 a token. Element i is made by thread i modulo N of a
launch of N threads, so up to N = 256 * (streaming multiprocessors) * (their threads / 256) elements the GPU
has no part in it; beyond, its model must be declared. Beyond 4 N a draw takes several rounds, and engines
that take a discarded draw back assume one: refused.

Integers and uniforms are exact. The logarithm is the hardware's `__logf`, whose documented error is 2**-21.41
(absolute, between 1/2 and 2) or three units in the last place: winners lie near u = 1 and E near 1 / V, so
that is the larger part of their noise that is known only to `tolerance`.

Source: torch's ATen/native/cuda/DistributionTemplates.h and core/TransformationHelper.h; cuRAND's
`curand_uniform`; CUDA C++ Programming Guide, table of intrinsic functions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from auditor.errors import NoiseUnknownError
from auditor.kernels.keyed_noise import KeyedNoise
from auditor.kernels.splitmix import F64, U64
from auditor.reference.noise.scheme import Declared, Evidence, Family, FilterOrder, KeyedRows, Served

# (streaming multiprocessors, most threads in each); published by NVIDIA, not measured here.
GPUS: dict[str, tuple[int, int]] = {
    "t4": (40, 1024),
    "v100": (80, 2048),
    "l4": (58, 1536),
    "a10g": (80, 1536),
    "a40": (84, 1536),
    "rtx-4090": (128, 1536),
    "l40s": (142, 1536),
    "h20": (78, 2048),
    "a100": (108, 2048),
    "h100-pcie": (114, 2048),
    "h100-sxm": (132, 2048),
    "h200": (132, 2048),
}
_BLOCK = 256
_LOG_ERROR, _LOG_ULPS = 2.0**-21.41, 3 * 2.0**-23
_LEAST_E = 2.0**-24


def launch_threads(device: str | None) -> int | None:
    """How many threads a launch has at most on a declared device; None where the device does not say.

    `cuda/<model>` with a model of `GPUS`, or `cuda/threads=<N>` where somebody asked the GPU itself.
    """
    if device is None or "/" not in device:
        return None
    model = device.split("/", 1)[1].lower()
    if counted := re.fullmatch(r"threads=(\d{1,9})", model, re.ASCII):
        threads = int(counted[1])
        return threads if threads > 0 and threads % _BLOCK == 0 else None
    if model not in GPUS:
        return None
    multiprocessors, most = GPUS[model]
    return _BLOCK * multiprocessors * (most // _BLOCK)


# Fewer than any GPU above has: up to here every one of them makes the same numbers.
ANY_GPU = min(_BLOCK * count * (most // _BLOCK) for count, most in GPUS.values())


@dataclass(frozen=True, slots=True)
class CudaExponential:
    """One engine's use of such rows: draw t of a request's generator makes output token t.

    Attributes:
        threads: of the launch, as declared.
    """

    name: str
    filters: FilterOrder
    evidence: Evidence
    served: tuple[Served, ...]
    threads: int = ANY_GPU
    family: Family = "race"
    noise: KeyedNoise = KeyedNoise.CUDA_EXPONENTIAL

    def row_keys(self, seed: int, prompt_tokens: int, start: int, stop: int) -> U64:
        """Keys uint64 [stop - start, 3] of output tokens start..stop-1: seed, draw, threads."""
        del prompt_tokens
        keys = np.empty((stop - start, 3), np.uint64)
        keys[:, 0], keys[:, 1], keys[:, 2] = seed % 2**64, np.arange(start, stop), self.threads
        return keys

    def tolerance(self, noise: F64) -> F64:
        """As `Tolerant`: what the error of `__logf` can add to -ln E, of which torch bounds E by 2**-24."""
        e = np.exp(-noise)
        error = np.where(e < np.log(2.0), _LOG_ERROR, _LOG_ULPS * e)
        return np.asarray(np.where(e <= _LEAST_E * 1.0001, 0.0, np.log(e / np.maximum(e - error, _LEAST_E))))

    def declared(self, request: Declared) -> CudaExponential:
        """As `NoiseScheme`, with the threads of the declared GPU.

        Raises:
            NoiseUnknownError: the vocabulary is larger than the launches of an undeclared GPU may be, or so
                large that a draw takes several rounds.
        """
        threads = launch_threads(request.device)
        if threads is None and request.vocabulary > ANY_GPU:
            raise NoiseUnknownError(
                f"the noise of {request.vocabulary} tokens depends on the GPU, and device "
                f"{request.device!r} does not say which",
                fix=f"declare engine.device as cuda/<model>, one of {', '.join(GPUS)}, or cuda/threads=<N>",
            )
        threads = ANY_GPU if threads is None else threads
        if request.vocabulary > 4 * threads:
            raise NoiseUnknownError(
                f"a draw of {request.vocabulary} numbers takes {threads} threads several rounds, and engines "
                "that take a draw back assume one"
            )
        return replace(self, threads=threads)

    def draws(self, seed: int, prompt_tokens: int, vocabulary: int, *, filtered: bool) -> KeyedRows:
        """As `NoiseScheme`."""
        del vocabulary, filtered
        return KeyedRows(self, seed, prompt_tokens)


_NEEDS = f"above {ANY_GPU:,} tokens the GPU: engine.device cuda/<model>"


def _evidence(source: str, also: str = "") -> Evidence:
    return Evidence(confirmed=False, source=source, needs=f"{also}{_NEEDS}")


VLLM_V1 = CudaExponential(
    "vllm-gpu-v1/exponential",
    "vllm",
    _evidence("these releases' v1/sample/ops/topk_topp_sampler.py: random_sample", "runner V1; "),
    (Served("vllm", ("0.16.0", "0.20.0", "0.24.0", "0.28.0", "0.31.0", "0.32.0"), "cuda", "v1"),),
)
TGI = CudaExponential(
    "tgi-gpu/exponential",
    "transformers",
    _evidence("text-generation-inference d957e326, server utils/tokens.py: Sampling; taken to be 3.3's"),
    (Served("tgi", ("3.3.*",), "cuda"),),
)
TRANSFORMERS = CudaExponential(
    "torch-cuda-multinomial",
    "transformers",
    _evidence("torch, ATen/native/Distributions.cpp: multinomial_out", "one request at a time; "),
    (Served("transformers", ("5.*",), "cuda"),),
)
