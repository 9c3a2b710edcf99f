"""No noise: the largest logit wins."""

from __future__ import annotations

from dataclasses import dataclass

from auditor.reference.noise.scheme import Declared, Evidence, Family, FilterOrder, Served

_EVIDENCE = Evidence(confirmed=True, source="tests/traces/vllm-cpu-bf16-greedy.jsonl.gz")


@dataclass(frozen=True, slots=True)
class Greedy:
    """The largest logit wins. Filters and temperature do not apply (engines skip them)."""

    name: str = "greedy"
    family: Family = "greedy"
    filters: FilterOrder = "vllm"
    evidence: Evidence = _EVIDENCE
    served: tuple[Served, ...] = ()

    def declared(self, request: Declared) -> Greedy:
        """As `NoiseScheme`; any request will do."""
        del request
        return self

    def draws(self, seed: int, prompt_tokens: int, vocabulary: int, *, filtered: bool) -> NoDraws:
        """As `NoiseScheme`."""
        del seed, prompt_tokens, vocabulary, filtered
        return NoDraws()


@dataclass(frozen=True, slots=True)
class NoDraws:
    """Reader of nothing."""

    def take(self, start: int, stop: int) -> None:
        """Nothing is drawn."""
        del start, stop
