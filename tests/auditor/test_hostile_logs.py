"""Hostile and broken logs: each request is accounted for with its reason, and nothing crashes or acquits."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auditor.commands.options import log_source
from auditor.errors import AuditError
from auditor.profiles import profile_finder
from auditor.reference.demo.prompts import TARGET
from auditor.replay import Reference
from auditor.result import result_to_json
from auditor.trace_files import read_traces
from auditor.verification import verify

TRACES = Path(__file__).parent.parent / "traces"


def recorded(name, count):
    with gzip.open(TRACES / f"{name}.jsonl.gz", "rt") as stream:
        return [json.loads(line) for _, line in zip(range(count), stream, strict=False)]


HONEST = recorded("vllm-cpu-bf16-plain", 4)
RAW = recorded("vllm-server-completions.raw", 4)


@pytest.fixture(scope="module")
def reference():
    return Reference.load(TARGET)


@pytest.fixture
def audited(reference, tmp_path):
    def run(lines, **options):
        path = tmp_path / "log.jsonl"
        path.write_bytes(
            b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
        )
        # Judging simulates how strong the sample is, which takes its time: only where a verdict is looked at.
        finder = profile_finder(()) if options.pop("judged", False) else lambda _key: None
        source = log_source((str(path),), "auto", None, None)
        result = verify(source, reference, find_profile=finder, alpha=0.01, **options)
        shown = result_to_json(result)
        assert len(shown["traces"]) + len(shown["errors"]) == len(lines)  # nothing is dropped
        assert json.loads(json.dumps(shown, allow_nan=False)) == shown
        return result, shown

    return run


def changed(value, **fields):
    return copy.deepcopy(value) | fields


def notes_of(shown):
    return [" ".join(trace["notes"]) for trace in shown["traces"]]


def test_repeated_request_is_evidence_once_and_both_are_listed(audited):
    once, _ = audited(HONEST)
    many, shown = audited([*HONEST, *HONEST, changed(HONEST[0], id="another-id")])
    assert (many.tokens, many.matched) == (once.tokens, once.matched)
    assert sum("counted once" in note for note in notes_of(shown)) == 5


def test_repeating_an_honest_log_does_not_accuse_its_provider(audited):
    # An honest request whose tokens match worst: as 64 witnesses it would convict.
    lines = recorded("vllm-cpu-bf16-plain", 64)
    result, shown = audited(lines)
    rates = [trace["match_rate"] for trace in shown["traces"]]
    worst = lines[rates.index(min(rates))]
    copies = [changed(worst, seed=worst["seed"], id=f"copy-{number}") for number in range(64)]
    result, _ = audited(copies, judged=True)
    assert result.outcome == "inconclusive"
    assert result.tokens == len(worst["output_token_ids"])


def test_one_id_for_different_requests_is_no_repetition(audited):
    result, shown = audited([changed(value, id="same") for value in HONEST])
    assert [trace["id"] for trace in shown["traces"]] == ["same"] * 4
    assert result.tokens == sum(len(value["output_token_ids"]) for value in HONEST)


def test_models_mixed_by_digest_are_told_apart(audited):
    lines = [*HONEST[:2], changed(HONEST[2], model="other", model_digest="sha256:" + "0" * 64)]
    result, shown = audited(lines)
    assert result.outcome == "inconclusive"
    assert "declares model" in notes_of(shown)[2]


def test_models_mixed_by_name_accuse_nobody_until_it_is_said_which_is_audited(audited):
    stranger = recorded("vllm-cpu-draft-substituted", 2)  # honestly another model, under its own name
    lines = [changed(value, model="target", model_digest=None) for value in HONEST[:2]]
    lines += [changed(value, model="small", model_digest=None) for value in stranger]
    result, shown = audited(lines)
    assert result.outcome == "inconclusive"
    assert all("several models" in note for note in notes_of(shown))
    result, shown = audited(lines, served_model="target")
    assert result.outcome == "inconclusive"
    assert [("not 'target'" in note) for note in notes_of(shown)] == [False] * 2 + [True] * 2
    assert audited(lines, served_model="small", judged=True)[0].outcome == "inconsistent"


def test_seeds_missing_in_half_leave_the_other_half_as_evidence(audited):
    lines = [changed(value, seed=None) if number % 2 else value for number, value in enumerate(HONEST)]
    result, shown = audited(lines)
    assert result.outcome == "inconclusive"
    assert ["without a logged seed" in note for note in notes_of(shown)] == [False, True, False, True]
    assert result.tokens == sum(len(value["output_token_ids"]) for value in HONEST[::2])
    assert any("2 of 4 traces" in reason for reason in shown["reasons"])


@pytest.mark.parametrize("noise", ["gumbel-pos-v1", "torch-cpu-multinomial", "vllm-cpu-0.33/x", "", "greedy"])
def test_wrong_scheme_never_acquits(audited, noise):
    result, shown = audited([changed(value, noise=noise) for value in HONEST], judged=True)
    assert result.outcome != "consistent"
    assert len(shown["traces"]) == 4


def test_counts_that_disagree_with_the_ids_are_noted_on_their_trace(audited):
    usage = HONEST[1]["usage"] | {"completion_tokens": HONEST[1]["usage"]["completion_tokens"] + 7}
    result, shown = audited([HONEST[0], changed(HONEST[1], usage=usage)])
    assert ["completion tokens billed" in note for note in notes_of(shown)] == [False, True]
    assert result.tokens == sum(len(value["output_token_ids"]) for value in HONEST[:2])


BAD_FIELDS = [
    {"seed": "7"},
    {"seed": 7.0},
    {"seed": True},
    {"seed": 2**64},
    {"seed": -(2**63) - 1},
    {"output_token_ids": "1 2 3"},
    {"output_token_ids": [1, "2"]},
    {"output_token_ids": [1, -1]},
    {"output_token_ids": [1, 10**30]},
    {"output_token_ids": [[1]]},
    {"output_token_ids": [4_000_000]},
    {"prompt_token_ids": {"0": 1}},
    {"sampling": []},
    {"sampling": {"temperature": "hot"}},
    {"sampling": {"temperature": 10**400}},
    {"sampling": {"top_k": 10**30}},
    {"sampling": {"logit_bias": {"-1": 1}}},
    {"usage": [1]},
    {"usage": {"completion_tokens": -1}},
    {"engine": "vllm"},
    {"messages": ["hi"]},
    {"id": 7},
    {"schema": "auditor.trace/v2"},
    {"speculation": {"draft_token_ids": [1]}},
]


def test_mistyped_fields_are_one_error_each_and_the_rest_is_audited(audited):
    result, shown = audited([*(changed(HONEST[0], **fields) for fields in BAD_FIELDS), HONEST[1]])
    assert [error["where"].rpartition(":")[2] for error in shown["errors"]] or shown["errors"] == []
    assert (len(shown["errors"]), len(shown["traces"])) == (len(BAD_FIELDS), 1)
    assert result.tokens == len(HONEST[1]["output_token_ids"])
    assert result.exit_status == 2


def test_broken_lines_are_one_error_each_and_the_rest_is_audited(audited):
    line = json.dumps(HONEST[0]).encode()
    broken = [
        line[: len(line) // 2],
        line.replace(b'"seed":', b'"seed": 1, "seed":', 1),
        line.replace(b'"text":', b'"x": "\\ud800", "text":', 1),
        line.replace(b'"text":', b'"x": "\xed\xa0\x80", "text":', 1),
        line.replace(b'"text":', b'"x": ' + b"9" * 5000 + b', "text":', 1),
        line.replace(b'"text":', b'"x": NaN, "text":', 1),
        line.replace(b'"text":', b'"x": 1e999, "text":', 1),
        line.replace(b'"text":', b'"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "text":', 1),
        b'{"a":' * 100_000,
        b"[" * 70 + b"]" * 70,
        b"null",
        b"\x00\x01\x02",
        b"\xff\xfe",
        line + line,
    ]
    result, shown = audited([HONEST[1], *broken])
    assert (len(shown["errors"]), len(shown["traces"])) == (len(broken), 1)
    assert {error["code"] for error in shown["errors"]} == {"trace-syntax"}
    assert all("\n" not in error["message"] and len(error["message"]) < 300 for error in shown["errors"])
    assert result.exit_status == 2


def test_a_hundred_megabyte_line_is_one_error(tmp_path):
    path = tmp_path / "log.jsonl.zst"
    good = json.dumps(HONEST[0]).encode()
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    with path.open("wb") as stream:
        for part in (good, b'\n{"x": "', *([b"y" * 1_000_000] * 100), b'"}\n', good, b"\n"):
            stream.write(packer.compress(part))
        stream.write(packer.flush())
    found = list(read_traces(path))
    assert [isinstance(item, AuditError) for item in found] == [False, True, False]
    assert found[1].where.endswith(":2")


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress], ids=["gzip", "zstd"])
@pytest.mark.parametrize("keep", [0.5, 0.9, 0.999])
def test_truncated_compression_is_said_once_after_what_could_be_read(reference, tmp_path, pack, keep):
    data = b"".join(pack(json.dumps(value).encode() + b"\n") for value in HONEST)  # as logs that grow
    path = tmp_path / "log.jsonl.gz"
    path.write_bytes(data[: int(len(data) * keep)])
    items = list(read_traces(path))
    assert isinstance(items[-1], AuditError)
    assert "breaks off" in str(items[-1])
    assert [item.id for item in items[:-1]] == [value["id"] for value in HONEST[: len(items) - 1]]
    source = log_source((str(path),), "auto", None, None)
    result = verify(source, reference, find_profile=lambda _key: None, alpha=0.01)
    assert (result.exit_status, len(result.errors)) == (2, 1)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=4),
    st.just([]),
    st.just({}),
    st.lists(st.integers(-3, 5000), max_size=4),
)


def places_in(value, path=()):
    """Paths of everything in a JSON value, a list's first and last items only."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if not isinstance(value, list) or key in (0, len(value) - 1):
            yield from places_in(inner, (*path, key))


@st.composite
def mutated(draw, lines):
    value = copy.deepcopy(draw(st.sampled_from(lines)))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places_in(value)) or [("x",)]))
        target = value
        for step in path[:-1]:
            target = target[step]
        action = draw(st.sampled_from(["set", "delete"]))
        if action == "delete":
            del target[path[-1]]
        else:
            target[path[-1]] = draw(JUNK)
    return value


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(lines=st.lists(mutated([*HONEST, *RAW]), min_size=1, max_size=3))
def test_mutated_recorded_lines_are_each_accounted_for(reference, tmp_path, lines):
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    items = list(read_traces(path))
    source = log_source((str(path),), "auto", None, None)
    result = verify(source, reference, find_profile=lambda _key: None, alpha=0.01)
    shown = result_to_json(result)
    assert len(shown["traces"]) + len(shown["errors"]) == len(items)
    at = {
        int(where.rpartition(":")[2]) for where in (t["where"] for t in [*shown["traces"], *shown["errors"]])
    }
    assert at == set(range(1, len(lines) + 1))
    assert all(trace["notes"] for trace in shown["traces"] if trace["tokens"] is None)
