"""Recorded engines under filters that keep no prefix of the row: honest is consistent, redeclared is caught.

Profiles are the shipped ones; counts are those of tests/traces/README.md.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path

import pytest

from auditor.profiles import shipped_profiles
from auditor.reference.demo.prompts import TARGET
from auditor.replay import Reference
from auditor.trace_files import read_traces
from auditor.verification import verify

TRACES = Path(__file__).parent.parent / "traces"
ALPHA = 0.001


@cache
def reference():
    return Reference.load(TARGET)


SHAPED = {
    "transformers-bf16-typical90": (6581, 6563),
    "llamacpp-f32-typical90": (2769, 2769),
    "llamacpp-f32-sigma1": (2123, 2123),
    "llamacpp-f32-xtc": (2610, 2609),
    "llamacpp-f16-typical90": (2626, 2601),
    "llamacpp-f16-sigma1": (2589, 2589),
    "llamacpp-f16-xtc": (2616, 2557),
}
LEAST_MATCH = {"llamacpp-f16-xtc": 0.975}  # float16 beside an inverse CDF: each miss within 0.002 logits


def audit(log):
    finder = shipped_profiles().get
    return verify(lambda: iter(log), reference(), find_profile=finder, alpha=ALPHA, explain=False)


@pytest.mark.parametrize("name", SHAPED)
def test_honest_engines_are_consistent_under_filters_that_keep_no_prefix(name):
    tokens, matched = SHAPED[name]
    result = audit(list(read_traces(TRACES / f"{name}.jsonl.gz")))
    assert result.tokens == tokens
    assert result.matched == pytest.approx(matched, abs=3)
    assert result.matched / tokens >= LEAST_MATCH.get(name, 0.99)
    assert (result.outcome, result.exit_status) == ("consistent", 0)


OTHERWISE = {
    "seed + 1": lambda t: replace(t, seed=t.seed + 1),
    "without its filter": lambda t: replace(
        t, sampling=replace(t.sampling, typical_p=1.0, top_n_sigma=0.0, xtc_probability=0.0)
    ),
}


@pytest.mark.parametrize("change", OTHERWISE)
@pytest.mark.parametrize("name", SHAPED)
def test_an_honest_log_under_such_a_filter_redeclared_is_inconsistent(name, change):
    log = list(islice(read_traces(TRACES / f"{name}.jsonl.gz"), 12))
    assert audit([OTHERWISE[change](t) for t in log]).outcome == "inconsistent"
