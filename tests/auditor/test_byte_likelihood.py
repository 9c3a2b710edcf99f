"""Texts under two models, byte by byte: the writer is told from another model, across tokenizers, for one pass."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from auditor.commands import cli
from auditor.errors import CannotScoreError, TraceIncompleteError
from auditor.reference.byte_level import byte_law, canonical
from auditor.reference.canonical_pairs import canonical_pairs
from auditor.reference.demo.prompts import DRAFT, TARGET
from auditor.reference.prefix_rows import PrefixRows
from auditor.replay import Reference
from auditor.token_counts.bill import token_bytes
from auditor.token_counts.byte_likelihood import compare_bytes, text_log_probability
from auditor.trace_files import read_traces, write_traces

HONEST = Path(__file__).parent.parent / "traces" / "vllm-cpu-bf16-plain.jsonl.gz"


@pytest.fixture(scope="module")
def texts():
    traces = itertools.islice(read_traces(HONEST), 6)
    return [replace(t, output_token_ids=None, seed=None, noise=None) for t in traces]


@pytest.fixture(scope="module")
def target():
    return Reference.load(TARGET)


@pytest.fixture(scope="module")
def draft():
    return Reference.load(DRAFT)


@pytest.fixture(scope="module")
def retokenized(tmp_path_factory):
    """The draft model behind a tokenizer that knows only half of the merges: other ids for the same text."""
    directory = tmp_path_factory.mktemp("models") / "retokenized"
    shutil.copytree(DRAFT, directory)
    value = json.loads((directory / "tokenizer.json").read_text())
    value["model"]["merges"] = value["model"]["merges"][: len(value["model"]["merges"]) // 2]
    (directory / "tokenizer.json").write_text(json.dumps(value))
    return directory


def test_the_model_that_wrote_the_texts_finds_their_bytes_likelier(texts, target, draft, retokenized):
    same = compare_bytes(texts, target, target)
    assert same.log_ratio == 0.0
    smaller = compare_bytes(texts, target, draft)
    assert smaller.responses == 6
    assert smaller.claimed < smaller.other
    assert smaller.log_ratio < -10.0
    assert smaller.log_ratio == pytest.approx(
        (smaller.claimed - smaller.other) * smaller.size * math.log(2.0)
    )
    other = Reference.load(retokenized)
    ids = {tuple(r.tokenizer.encode(texts[0].text)) for r in (draft, other)}
    assert len(ids) == 2, "or the tokenizers are no different"
    across = compare_bytes(texts, target, other)
    assert across.responses == 6
    assert across.log_ratio < smaller.log_ratio, "a model is worse at pieces it was not trained on"


def test_a_text_that_was_cut_counts_every_token_that_reaches_beyond_it(texts, target):
    trace = replace(texts[0], text=texts[0].text.split("<|")[0][:60], finish_reason="length")
    whole = text_log_probability(trace, target)
    vocabulary = token_bytes(target.tokenizer, target.model.config.vocab_size)
    follow = canonical(canonical_pairs(target.tokenizer))
    rows = PrefixRows(target.model, trace.prompt_token_ids)
    assert whole == byte_law(trace.text.encode(), vocabulary, rows, follow).log_probability
    ended = text_log_probability(replace(trace, finish_reason="stop"), target)
    assert ended < whole, "that it ends here is less likely than that it goes on somehow"
    # Of all bytes that may come next, one does: longer texts share out what the shorter one has.
    longer = replace(trace, text=trace.text + "e")
    assert text_log_probability(longer, target) < whole


def test_special_tokens_inside_a_cut_text_are_symbols_of_their_own(texts, target):
    (trace,) = [t for t in texts if t.text.count("<|answer|>") == 1][:1]
    place = trace.text.index("<|answer|>") + len("<|answer|>")
    cut = replace(trace, text=trace.text[: place + 4], finish_reason="length")
    found = text_log_probability(cut, target)
    assert np.isfinite(found)
    before = replace(trace, text=trace.text[: place + 3], finish_reason="length")
    assert found <= text_log_probability(before, target) + 1e-6


def test_what_cannot_be_scored_is_left_out_on_both_sides(texts, target, draft):
    lost = replace(texts[0], text=None)
    with pytest.raises(TraceIncompleteError):
        text_log_probability(lost, target)
    assert compare_bytes([lost], target, draft).responses == 0
    both = compare_bytes([lost, *texts[:2]], target, draft)
    assert both == compare_bytes(texts[:2], target, draft)
    with pytest.raises((CannotScoreError, TraceIncompleteError)):
        text_log_probability(replace(texts[0], text="<|end|>"), target)


def test_audit_tokens_prints_both_models(texts, retokenized, tmp_path):
    write_traces(tmp_path / "texts.jsonl", texts[:3])
    done = CliRunner().invoke(
        cli, ["tokens", str(tmp_path / "texts.jsonl"), "--other", str(retokenized), "--format", "json"]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["bytes_compared"]
    assert found["responses"] == 3
    assert found["claimed"] < found["other"]
    shown = CliRunner().invoke(cli, ["tokens", str(tmp_path / "texts.jsonl"), "--other", str(retokenized)])
    assert "bits a byte by the claimed model" in shown.stdout
