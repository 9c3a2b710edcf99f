"""OpenVINO GenAI's multinomial sampler."""

from __future__ import annotations

from dataclasses import dataclass

from auditor.errors import NoiseUnknownError
from auditor.kernels.mersenne import float_uniforms
from auditor.kernels.splitmix import F64
from auditor.reference.noise.scheme import Declared, Evidence, Family, FilterOrder, Served, UniformRows

_EVIDENCE = Evidence(
    confirmed=True, source="tests/traces/openvino-*.jsonl.gz", needs="no top-k without top-p; no min-p"
)
_SERVED = (Served("openvino-genai", ("2026.4.1", "2026.4.1.0")),)


@dataclass(frozen=True, slots=True)
class OpenVinoInverseCdf:
    """OpenVINO GenAI 2026.4.1: 32 bits of mt19937 a token, float32 weights added up in float32.

    Candidates stand in vocabulary order; top-p sorts them by falling probability. Top-k alone leaves them in
    the order of a heap that saw the whole row: there a difference in the last bit of two logits moves every
    candidate's interval, so such requests are refused (docs/decisions/0007).

    Source: openvino.genai, src/cpp/src/sampling/sampler.cpp and logit_transformers.hpp.
    """

    name: str = "openvino-genai-2026.4.1/mt19937-u32-icdf"
    family: Family = "icdf"
    filters: FilterOrder = "transformers"
    evidence: Evidence = _EVIDENCE
    served: tuple[Served, ...] = _SERVED
    float32_sums: bool = True

    def uniforms(self, seed: int, start: int, stop: int) -> F64:
        """Uniform numbers of output tokens start..stop-1, float64 [stop - start]."""
        return float_uniforms(seed, start, stop)

    def declared(self, request: Declared) -> OpenVinoInverseCdf:
        """As `NoiseScheme`.

        Raises:
            NoiseUnknownError: top-k without top-p, or min-p.
        """
        if request.min_p > 0.0:
            raise NoiseUnknownError("OpenVINO GenAI's min-p was never compared with ours")
        if 0 < request.top_k < request.vocabulary and request.top_p >= 1.0:
            raise NoiseUnknownError(
                "top-k alone leaves OpenVINO GenAI's candidates in heap order, where rounding moves them all",
                fix="sample with top-p",
            )
        return self

    def draws(self, seed: int, prompt_tokens: int, vocabulary: int, *, filtered: bool) -> UniformRows:
        """As `NoiseScheme`."""
        del prompt_tokens, vocabulary, filtered
        return UniformRows(self, seed)
