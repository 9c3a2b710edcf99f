"""How far honest bills lie above the canonical count, and what that says of others. Pure.

The other side of `martingale.py`: no model is asked, and no tolerance is somebody's choice. Honest responses
of the same deployment are counted and left out as the audited ones are (`bill.py`), so that whatever it is in
the habit of billing (an end token twice, a marker that no text shows) is in both. Excess depends on model,
script, temperature and constrained decoding, so each such condition has its own calibration; without one,
nothing is said.

* One response: p = (1 + honest responses with at least its excess) / (n + 1) is at most alpha with
  probability at most alpha (split conformal prediction; Vovk, Gammerman, Shafer 2005), and what lies above
  the excess of nearly all honest ones was billed too much.
* Many: the bets of `hidden_tokens.decisions.ResponseTest`, which pay for the calibration's luck, too. Several
  conditions share alpha equally: texts and requests decide how many there are, and not the bills.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from auditor.errors import AuditError, OptionError
from auditor.hidden_tokens.decisions import ResponseTest, p_values
from auditor.reference.tokenizer import Tokenizer
from auditor.token_counts.bill import Bill, bill_of, token_bytes
from auditor.token_counts.evidence import content_digest
from auditor.trace import Trace

LEAST_HONEST = 20
LEVEL = 0.999
"""Share of honest responses that `overbilled_at_least` allows for."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What honest excess depends on, and the request and the text decide.

    Attributes:
        script: stands for the language, which no log declares.
        marks: whether special tokens are spelled out in the text. Servers that skip them bill them all the
            same, so texts with and without are not held against each other.
    """

    model: str
    script: str
    temperature: float
    constrained: bool
    marks: bool

    @classmethod
    def of(cls, trace: Trace, *, marks: bool) -> Condition:
        """A response's own."""
        constrained = trace.sampling.grammar is not None
        script = script_of(trace.text or "")
        return cls(trace.model, script, trace.sampling.temperature, constrained, marks)


def script_of(text: str) -> str:
    """Writing system of most letters, as Unicode names it (`LATIN`, `CJK`, ...); `NONE` without letters."""
    names = Counter(unicodedata.name(c, "NONE").split(" ")[0] for c in set(text) if c.isalpha())
    return max(names, key=lambda name: (names[name], name), default="NONE")


@dataclass(frozen=True, slots=True)
class ExcessBound:
    """Honest excesses of one condition.

    Attributes:
        honest: tokens beyond what the text takes, a response each; negative where less was billed.
    """

    honest: tuple[int, ...]

    def p_value(self, excess: int) -> float:
        """Of an excess as large as this, at least 1 / (n + 1)."""
        return float(p_values(np.array(self.honest, np.float64), np.array([excess], np.float64))[0])

    def quantile(self, level: float) -> float:
        """The excess that a fresh honest response exceeds with probability at most 1 - level.

        Infinite when there are too few honest responses to say.
        """
        rank = int(np.ceil(level * (len(self.honest) + 1)))
        return float("inf") if rank > len(self.honest) else float(np.sort(self.honest)[rank - 1])

    def overbilled_at_least(self, excess: int, level: float = LEVEL) -> float:
        """Tokens billed too many, as far as no honest response of the condition explains them."""
        return max(0.0, excess - self.quantile(level))


@dataclass(frozen=True, slots=True)
class BillAgainstHonest:
    """One response. `p_value` and `overbilled` are None where its condition has too few honest responses."""

    trace: Trace
    excess: int
    condition: Condition
    p_value: float | None
    overbilled: float | None


@dataclass(frozen=True, slots=True)
class ConditionResult:
    """All audited responses of one condition together; evidence of `needed` convicts."""

    condition: Condition
    honest: int
    responses: int
    log_e: float
    needed: float

    @property
    def convicts(self) -> bool:
        """Whether the evidence suffices."""
        return self.log_e >= math.log(self.needed)


@dataclass(frozen=True, slots=True)
class AgainstHonest:
    """A log's bills beside honest ones.

    Attributes:
        alpha: false-alarm rate of all conditions together.
        responses: each text once. unmatched: responses of conditions with too few honest ones.
        refused: responses whose bill cannot be held against their text, and why.
    """

    alpha: float
    responses: tuple[BillAgainstHonest, ...]
    conditions: tuple[ConditionResult, ...]
    refused: tuple[AuditError, ...]

    @property
    def unmatched(self) -> int:
        """Responses that nothing can be said of."""
        return sum(r.p_value is None for r in self.responses)

    @property
    def convicts(self) -> bool:
        """Whether any condition's evidence suffices."""
        return any(result.convicts for result in self.conditions)


class HonestBills:
    """Calibrations by condition.

    Args:
        honest: responses of the same deployment that are known to be honest.

    Raises:
        OptionError: none of them can be counted.
        ModelUnsupportedError: as `TokenBytes.of`.
    """

    def __init__(self, honest: Iterable[Trace], tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        found: dict[Condition, list[int]] = {}
        for trace, bill in _counted(honest, tokenizer, []):
            found.setdefault(self._condition(trace, bill), []).append(bill.excess)
        if not found:
            raise OptionError(
                "no honest response whose bill can be held against its text", fix="log texts and usage"
            )
        self.bounds: Mapping[Condition, ExcessBound] = {
            condition: ExcessBound(tuple(values)) for condition, values in found.items()
        }

    def judge(self, traces: Iterable[Trace], alpha: float) -> AgainstHonest:
        """Hold a log's bills against the honest ones.

        Raises:
            OptionError: alpha out of range.
        """
        refused: list[AuditError] = []
        responses: list[BillAgainstHonest] = []
        for trace, bill in _counted(traces, self._tokenizer, refused):
            condition = self._condition(trace, bill)
            bound = self.bounds.get(condition)
            known = bound is not None and len(bound.honest) >= LEAST_HONEST
            responses.append(
                BillAgainstHonest(
                    trace,
                    bill.excess,
                    condition,
                    bound.p_value(bill.excess) if bound and known else None,
                    bound.overbilled_at_least(bill.excess) if bound and known else None,
                )
            )
        return AgainstHonest(alpha, tuple(responses), self._together(responses, alpha), tuple(refused))

    def _condition(self, trace: Trace, bill: Bill) -> Condition:
        return Condition.of(trace, marks=not self._tokenizer.special_ids.isdisjoint(bill.canonical))

    def _together(self, responses: Sequence[BillAgainstHonest], alpha: float) -> tuple[ConditionResult, ...]:
        by_condition: dict[Condition, list[int]] = {}
        for response in responses:
            if response.p_value is not None:
                by_condition.setdefault(response.condition, []).append(response.excess)
        results = []
        for condition, excesses in by_condition.items():
            honest = self.bounds[condition].honest
            test = ResponseTest(np.array(honest, np.float64), alpha / len(by_condition))
            for excess in excesses:
                test.update(excess)
            results.append(
                ConditionResult(condition, len(honest), len(excesses), test.log_e, 2.0 / test.alpha)
            )
        return tuple(results)


def _counted(
    traces: Iterable[Trace], tokenizer: Tokenizer, refused: list[AuditError]
) -> Iterable[tuple[Trace, Bill]]:
    """Bills of responses that can be counted, each response once however often it is logged."""
    vocabulary, seen = token_bytes(tokenizer), set()
    for trace in traces:
        try:
            bill = bill_of(trace, tokenizer, vocabulary)
        except AuditError as problem:
            refused.append(problem)
            continue
        if (digest := content_digest(trace)) not in seen:
            seen.add(digest)
            yield trace, bill
