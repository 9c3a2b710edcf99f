"""`audit generate --speculation coupled`: the log of plain decoding, made with fewer steps and audited as such."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from auditor.commands.generate import generate
from auditor.reference.demo.prompts import DRAFT, TARGET
from auditor.replay import Reference, replay
from auditor.trace_files import read_traces


def made(out, *more):
    arguments = [
        "--out",
        str(out),
        "--requests",
        "3",
        "--max-tokens",
        "24",
        "--dtype",
        "float32",
        "--seed",
        "3",
    ]
    result = CliRunner().invoke(generate, [*arguments, *more])
    assert result.exit_code == 0, result.output
    return list(read_traces(out))


def test_drafters_leave_the_log_as_it_is_and_the_audit_takes_it_for_plain_sampling(tmp_path):
    plain = made(tmp_path / "plain.jsonl")
    for drafter in ("suffix", "blend", str(DRAFT)):
        out = tmp_path / "fast.jsonl"
        traces = made(out, "--force", "--speculation", "coupled", "--drafter", drafter)
        assert [t.output_token_ids for t in traces] == [t.output_token_ids for t in plain]
        assert {t.speculation.rule for t in traces} == {"coupled"}
        assert all(t.speculation.draft_token_ids is None for t in traces)
    scored = list(replay(traces, Reference.load(TARGET)))
    assert all(s.problem is None for s in scored)
    assert sum(s.scores.matched for s in scored) == sum(s.scores.evidence for s in scored) > 24


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--speculation", "relaxed"],
            "rule 'relaxed' is not one of: coupled, standard, lenient, typical, block",
        ),
        (["--speculation", "standard", "--drafter", "ngram"], "judges the drafts of a model"),
    ],
)
def test_what_does_not_go_together_is_said(tmp_path, arguments, said):
    result = CliRunner().invoke(generate, ["--out", str(tmp_path / "log.jsonl"), *arguments])
    assert result.exit_code != 0
    assert said in str(result.exception) + result.output
