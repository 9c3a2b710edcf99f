"""`tokens`: what a log's bills are worth beside its texts, response by response and together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from auditor.errors import AuditError, CannotScoreError, TraceIncompleteError
from auditor.preparation import without_seed
from auditor.reference.canonical_pairs import CanonicalPairs, canonical_pairs
from auditor.reference.prefix_rows import PrefixRows
from auditor.reference.token_bytes import TokenBytes
from auditor.result import e_value, error_to_json
from auditor.token_counts.bill import token_bytes
from auditor.token_counts.byte_likelihood import ByteComparison, compare_bytes
from auditor.token_counts.evidence import CountEvidence, count_evidence
from auditor.token_counts.honest_bills import AgainstHonest, BillAgainstHonest, HonestBills
from auditor.token_counts.ladder import (
    Circumstances,
    RoundTrip,
    round_trip,
    shadow_bill,
    split_log_e,
    split_log_ratios,
    ways_to_split,
)
from auditor.token_counts.lattice import F64, Ids
from auditor.token_counts.lengthening import Lengthening, compare_lengthening
from auditor.token_counts.manifest import Segmentation, segmentation
from auditor.token_counts.response import ResponseCount, count_response, path_scores

if TYPE_CHECKING:
    from auditor.replay import Reference
    from auditor.trace import Trace

SCHEMA = "auditor.tokens/v1"


@dataclass(frozen=True, slots=True)
class ResponseReport:
    """One response.

    Attributes:
        round_trip: of logged ids; None without ids, or where they do not spell the text (`finding`).
        refused_pairs: logged adjacent pairs that are not canonical by themselves; None for other tokenizers.
        split_ratios: `split_log_ratios` of the ids; None where the request's distribution is not known.
        count: of a text without ids that account for its bill.
        finding: what contradicts the trace. problem: why it could not be counted.
    """

    trace: Trace
    round_trip: RoundTrip | None = None
    refused_pairs: int | None = None
    split_ratios: F64 | None = None
    count: ResponseCount | None = None
    finding: str | None = None
    problem: AuditError | None = None


@dataclass(frozen=True, slots=True)
class TokenReport:
    """A log.

    Attributes:
        bills: of responses without ids. split_log_e: of those with ids.
        manifest: reported pieces beside the claimed tokenizer's, over responses with ids; None without any.
        against_honest: bills beside honest ones; None without any. lengthening: beside a trusted copy.
        bytes_compared: texts under the claimed model and another.
    """

    responses: tuple[ResponseReport, ...]
    errors: tuple[AuditError, ...]
    bills: CountEvidence | None
    split_log_e: float
    manifest: Segmentation | None
    billed: int
    canonical: int
    characters: int
    against_honest: AgainstHonest | None = None
    lengthening: Lengthening | None = None
    bytes_compared: ByteComparison | None = None

    @property
    def convicts(self) -> bool:
        """Whether honest bills show that this log's are too high, at the stated error rate."""
        return self.against_honest is not None and self.against_honest.convicts

    @property
    def characters_per_token(self) -> float:
        """Of the canonical tokenization of all texts."""
        return self.characters / max(1, self.canonical)

    @property
    def artefacts(self) -> Counter[str]:
        """Deviations by class; those that none excuses are `none`."""
        found: Counter[str] = Counter()
        for response in self.responses:
            for deviation in response.round_trip.deviations if response.round_trip else ():
                found.update(deviation.classes or ("none",))
        return found

    def shadow_bill(self, price_per_token: float) -> float:
        """What the texts cost by characters."""
        return shadow_bill(self.characters, price_per_token, self.characters_per_token)


@dataclass
class _Totals:
    reported: list[list[bytes]] = field(default_factory=list)
    claimed: list[list[bytes]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    billed: int = 0
    canonical: int = 0
    characters: int = 0


def tokens(
    source: Callable[[], Iterable[Trace | AuditError]],
    reference: Reference,
    *,
    honest: Iterable[Trace] | None = None,
    trusted: Iterable[Trace] | None = None,
    other: Reference | None = None,
    alpha: float = 0.001,
    on_response: Callable[[ResponseReport], None] = lambda _response: None,
) -> TokenReport:
    """Audit a log's token counts.

    Args:
        honest: responses of the same deployment that are known to be honest; the only thing that makes a
            conviction here (`honest_bills.py`).
        trusted: answers of a trusted copy to the same questions, plain and lengthened (`lengthening.py`).
        other: another model that may have written the texts (`byte_likelihood.py`).
        alpha: false-alarm rate of what `honest` judges.

    Raises:
        ModelUnsupportedError: the claimed tokenizer does not spell bytes out.
        OptionError: no honest response can be counted, fewer than 5 questions asked both ways, or alpha is
            out of range.
    """
    vocabulary = token_bytes(reference.tokenizer, reference.model.config.vocab_size)
    totals = _Totals()
    responses: list[ResponseReport] = []
    errors: list[AuditError] = []
    for item in source():
        if isinstance(item, AuditError):
            errors.append(item)
            continue
        response = _respond(item, reference, vocabulary, totals)
        on_response(response)
        responses.append(response)
    traces = [response.trace for response in responses]
    beside = None if honest is None else HonestBills(honest, reference.tokenizer).judge(traces, alpha)
    return TokenReport(
        tuple(responses),
        tuple(errors),
        count_evidence((r.trace, r.count) for r in responses if r.count is not None),
        split_log_e([r.split_ratios for r in responses if r.split_ratios is not None]),
        segmentation(totals.reported, totals.claimed, totals.texts) if totals.texts else None,
        totals.billed,
        totals.canonical,
        totals.characters,
        beside,
        None if trusted is None else compare_lengthening(traces, trusted),
        None if other is None else compare_bytes(traces, reference, other),
    )


def _respond(trace: Trace, reference: Reference, vocabulary: TokenBytes, totals: _Totals) -> ResponseReport:
    if trace.text and trace.usage.completion_tokens is not None:
        totals.billed += trace.usage.completion_tokens
        totals.canonical += len(reference.tokenizer.encode(trace.text))
        totals.characters += len(trace.text)
    if not trace.output_token_ids:
        try:
            return ResponseReport(trace, count=count_response(trace, reference))
        except AuditError as problem:
            return ResponseReport(trace, problem=problem)
    reported = trace.output_token_ids
    decoded = reference.tokenizer.decode(reported)
    canonical = tuple(reference.tokenizer.encode(decoded))
    _segment(reported, canonical, decoded, trace, vocabulary, totals)
    circumstances = Circumstances(
        trace.sampling.grammar is not None,
        bool(trace.sampling.stop),
        trace.finish_reason in ("tool_calls", "function_call"),
    )
    trip = round_trip(reported, canonical, vocabulary, circumstances)
    if trip is None:
        what = "its ids do not survive decoding and encoding (unfinished characters)"
        return ResponseReport(trace, problem=CannotScoreError(what, where=trace.where))
    return ResponseReport(
        trace,
        trip,
        _refused_pairs(reported, reference),
        _splits(trace, reported, canonical, trip, reference, vocabulary),
        finding=_finding(trace, decoded, reference),
    )


def _segment(
    reported: Ids, canonical: Ids, decoded: str, trace: Trace, vocabulary: TokenBytes, totals: _Totals
) -> None:
    totals.reported.append([vocabulary.spelled[i] or b"" for i in reported if i < vocabulary.size])
    totals.claimed.append([vocabulary.spelled[i] or b"" for i in canonical])
    plain = b"".join(totals.claimed[-1]).decode(errors="replace")
    # Special tokens have no bytes here; a text that names them is compared without them.
    totals.texts.append(plain if trace.text is None or trace.text in decoded else trace.text)


def _finding(trace: Trace, decoded: str, reference: Reference) -> str | None:
    text, billed = trace.text, trace.usage.completion_tokens
    shown = reference.tokenizer.decode(trace.output_token_ids or (), skip_special=True)
    if text is not None and not trace.sampling.stop and text not in decoded and text.strip() != shown.strip():
        return "the logged ids spell another text"
    if billed is not None and billed != len(trace.output_token_ids or ()):
        return f"{billed} tokens billed, {len(trace.output_token_ids or ())} logged"
    return None


def _refused_pairs(reported: Ids, reference: Reference) -> int | None:
    try:
        pairs: CanonicalPairs = canonical_pairs(reference.tokenizer)
    except AuditError:
        return None
    return len(pairs.refused(reported))


def _splits(
    trace: Trace,
    reported: Ids,
    canonical: Ids,
    trip: RoundTrip,
    reference: Reference,
    vocabulary: TokenBytes,
) -> F64 | None:
    """The split test; ids without deviations say that nothing was split, at almost no cost."""
    request = without_seed(trace, TraceIncompleteError("no seed is looked at"), reference)
    if request is None:
        return None
    split = [ways_to_split(d.canonical[0], vocabulary) for d in trip.deviations if d.is_split]
    whole = sum(ways_to_split(token, vocabulary) > 0 for token in canonical) - len(split)
    if any(not d.is_split for d in trip.deviations):
        return split_log_ratios(0.0, -np.inf, split, whole)
    if not split:
        return split_log_ratios(0.0, 0.0, (), whole)
    scheme = request.scheme if trace.sampling.filtered else None
    rows = PrefixRows(reference.model, request.prompt, trace.sampling, scheme)
    scores = path_scores([reported, canonical], rows, {})
    return split_log_ratios(scores[0], scores[1], split, whole)


def report_to_json(report: TokenReport, price_per_token: float | None) -> dict[str, Any]:
    """The report as one JSON object, `auditor.tokens/v1`."""
    bills = report.bills
    return {
        "schema": SCHEMA,
        "responses": len(report.responses),
        "billed": report.billed,
        "canonical": report.canonical,
        "characters": report.characters,
        "characters_per_token": report.characters_per_token,
        "shadow_bill": None if price_per_token is None else report.shadow_bill(price_per_token),
        "bill": None if price_per_token is None else report.billed * price_per_token,
        "token_count": None
        if bills is None
        else {"responses": bills.responses, "excess": bills.excess, "e_value": e_value(bills.log_e)},
        "splits": {
            "found": sum(r.round_trip.splits for r in report.responses if r.round_trip),
            "e_value": e_value(report.split_log_e),
        },
        "artefacts": dict(report.artefacts),
        "manifest": None if report.manifest is None else asdict(report.manifest),
        "against_honest": _against_honest(report.against_honest),
        "lengthening": None if report.lengthening is None else asdict(report.lengthening),
        "bytes_compared": None if report.bytes_compared is None else asdict(report.bytes_compared),
        "traces": [_response(response) for response in report.responses],
        "errors": [error_to_json(error) for error in report.errors],
    }


def _against_honest(found: AgainstHonest | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "alpha": found.alpha,
        "convicts": found.convicts,
        "unmatched": found.unmatched,
        "conditions": [
            asdict(result.condition)
            | {"honest": result.honest, "responses": result.responses, "needed": result.needed}
            | {"e_value": e_value(result.log_e), "convicts": result.convicts}
            for result in found.conditions
        ],
        "responses": [_bill(bill) for bill in found.responses],
        "refused": [error_to_json(error) for error in found.refused],
    }


def _bill(bill: BillAgainstHonest) -> dict[str, Any]:
    return {
        "id": bill.trace.id,
        "where": bill.trace.where,
        "excess": bill.excess,
        "p_value": bill.p_value,
        # Infinite bounds are no JSON, and none is: an excess is finite, and what is left of it at least 0.
        "overbilled_at_least": bill.overbilled,
    }


def _response(response: ResponseReport) -> dict[str, Any]:
    trip, count = response.round_trip, response.count
    return {
        "id": response.trace.id,
        "where": response.trace.where,
        "billed": response.trace.usage.completion_tokens,
        "excess": trip.excess if trip else None if count is None else count.counted.excess,
        "expected_excess": None if count is None else count.counted.expected,
        "deviations": [asdict(deviation) for deviation in trip.deviations] if trip else [],
        "refused_pairs": response.refused_pairs,
        "finding": response.finding,
        "problem": None if response.problem is None else error_to_json(response.problem),
    }
