"""What the pages show of an audit, made from a real replay of recorded logs."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.profiles import shipped_profiles
from auditor.reference.demo.prompts import TARGET
from auditor.replay import Reference
from auditor.service import exhibit
from auditor.service.exhibit import MOST_TOKENS, exhibit_of
from auditor.trace_files import read_traces
from auditor.verification import verify

TRACES = Path(__file__).parent.parent.parent / "traces"


@pytest.fixture(scope="module")
def reference():
    return Reference.load(TARGET)


@pytest.fixture(scope="module")
def result(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    with gzip.open(TRACES / "vllm-cpu-seed-plus-1.jsonl.gz") as stream:
        path.write_bytes(b"".join(line for _, line in zip(range(4), stream, strict=False)))
    return verify(
        lambda: read_traces(path),
        reference,
        find_profile=lambda key: shipped_profiles().get(key),
        explain=False,
    )


@pytest.fixture(scope="module")
def shown(result):
    return json.loads(exhibit_of(result).body)


def test_the_curve_ends_at_the_verdict(result, shown):
    (curve,) = shown["curves"]
    tokens, exponent = curve["points"][-1]
    assert tokens == result.tokens
    assert exponent == pytest.approx(result.log_e / math.log(10), abs=1e-3)
    assert len(curve["points"]) == 4
    assert curve["recipe"] == result.verdicts[0].recipe


def test_long_logs_are_thinned_and_end_at_the_same_place(result, shown, monkeypatch):
    monkeypatch.setattr(exhibit, "MOST_POINTS", 2)
    (curve,) = json.loads(exhibit_of(result).body)["curves"]
    assert curve["points"] == shown["curves"][0]["points"][1::2]


def test_excerpts_hold_the_whole_text_and_mark_what_is_off(result, reference, shown):
    assert shown["excerpts"]
    evidence = [t for v in result.verdicts for t in v.traces]
    for excerpt in shown["excerpts"]:
        of = evidence[excerpt["number"]]
        assert excerpt["id"] == of.scored.trace.id
        ids = of.scored.trace.output_token_ids
        assert "".join(text for _, text, _ in excerpt["pieces"]) == reference.tokenizer.decode(ids)
        marked = {first for first, _, weight in excerpt["pieces"] if weight}
        assert marked <= {t for t, _, _ in of.scored.scores.misses}
        assert excerpt["hidden"] == of.scored.trace.usage.reasoning_tokens
        assert excerpt["question"] == of.scored.trace.messages[-1]["content"]
    weights = [excerpt["log10_e"] for excerpt in shown["excerpts"]]
    assert weights == sorted(weights, reverse=True)


def test_an_exhibit_is_the_same_bytes_again_and_honest_logs_have_no_excerpts(result):
    assert exhibit_of(result).body == exhibit_of(result).body
    honest = replace(result, verdicts=tuple(replace(v, outcome="inconclusive") for v in result.verdicts))
    assert json.loads(exhibit_of(honest).body)["excerpts"] == []


def renamed(result, names):
    """The result with its traces under other providers' names."""
    (verdict,) = result.verdicts
    traces = tuple(
        replace(t, scored=replace(t.scored, trace=replace(t.scored.trace, provider=name)))
        for t, name in zip(verdict.traces, names, strict=True)
    )
    return replace(result, verdicts=(replace(verdict, traces=traces),))


def test_a_log_of_several_providers_is_counted_against_none(result):
    assert exhibit_of(renamed(result, ["acme"] * 4)).provider == "acme"
    several = exhibit_of(renamed(result, ["acme", "acme", "other", None]))
    assert several.provider is None
    assert [s["requests"] for s in json.loads(several.body)["subjects"]] == [2, 1, 1]
    assert exhibit_of(renamed(result, [None] * 4)).provider is None


def test_names_that_no_database_holds_are_made_into_some(result):
    found = exhibit_of(renamed(result, ["a\0\ud800" + "x" * 999] * 4))
    assert found.provider == "a\N{REPLACEMENT CHARACTER}?" + "x" * 197


@given(st.text(max_size=60), st.integers(0, 30))
def test_characters_of_several_tokens_stay_whole(reference, text, cut):
    ids = tuple(reference.tokenizer.encode(text))
    pieces = list(exhibit._pieces(ids, 0, len(ids), {cut}, reference.tokenizer))
    assert [first for first, _, _ in pieces] == [0, *[after for _, after, _ in pieces]][: len(pieces)]
    assert all(not first < cut < after for first, after, _ in pieces)
    if not any(first == cut for first, _, _ in pieces):
        assert "".join(piece for *_, piece in pieces) == reference.tokenizer.decode(ids)


@given(st.integers(0, 5000), st.lists(st.integers(0, 4999), max_size=3))
def test_long_outputs_are_cut_around_what_they_are_shown_for(tokens, at):
    spans = tuple((t, t + 1) for t in at if t < tokens)
    start, end = exhibit._window(tokens, spans)
    assert 0 <= start <= end <= tokens
    assert end - start == min(tokens, MOST_TOKENS)
    if spans:
        assert start <= spans[0][0] < end
