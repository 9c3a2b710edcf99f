"""The vLLM recorder's book-keeping, driven with what the real engine reported (tests/traces/captured)."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.capture.rows import Rows, Served, finish_reason
from auditor.capture.vllm_selftest import check_rows
from auditor.errors import CaptureError

RECORDED = Path(__file__).parent.parent.parent / "traces" / "captured" / "vllm-batch-updates.json.gz"


@dataclass
class Update:
    removed: list = field(default_factory=list)
    added: list = field(default_factory=list)
    moved: list = field(default_factory=list)


def params(most=100, eos=2, stops=()):
    return SimpleNamespace(eos_token_id=eos, stop_token_ids=list(stops), max_tokens=most)


def book():
    reports = []
    rows = Rows(
        lambda served, reason: reports.append((served, tuple(served.output), reason)),
        context_length=512,
        is_swap=lambda kind: kind == "SWAP",
        clock=lambda: 7.0,
    )
    return rows, reports


def test_every_request_of_the_real_engine_is_reported_once_with_the_tokens_its_api_returned():
    recorded = json.loads(gzip.decompress(RECORDED.read_bytes()))
    kinds = [len(step.get("moved", ())) for step in recorded["steps"]]
    entries = [name for step in recorded["steps"] for *_, name in step.get("added", ())]
    assert sum(kinds) > 0
    assert len(entries) > len(set(entries)), "the recording shows a request that was preempted and resumed"
    rows, reports = book()
    outputs, names = {}, {}
    for step in recorded["steps"]:
        # The engine lets go of the list of a request that is over; so does this loop.
        for name in set(outputs) - set(step["outputs"]):
            del outputs[name]
        for name, content in step["outputs"].items():
            if name in outputs:
                outputs[name][:] = content
        if "added" not in step:
            rows.update(None)
            continue
        added = []
        for row, settings, prompt, name in step["added"]:
            output = outputs.setdefault(name, [])
            known = names.setdefault(name, SimpleNamespace(**settings, name=name))
            added.append((row, known, prompt, output))
        rows.update(Update(step["removed"], added, step["moved"]))
    rows.close()
    returned = {served.params.name: output for served, output, _ in reports}
    assert len(reports) == len(returned)
    for name, output in recorded["returned"].items():
        # The front end, not the engine, ends an output at a stop text: the engine may have sampled on.
        assert list(returned[name][: len(output)]) == output, name
        assert len(returned[name]) - len(output) <= (2 if name == "r3" else 0), name
    assert {reason for _, _, reason in reports} >= {"length", None}


def test_requests_leave_by_removal_by_an_add_and_by_a_one_way_move():
    rows, reports = book()
    lists = [[], [], [], []]
    rows.update(Update(added=[(i, params(1), [i], lists[i]) for i in range(3)]))
    for output in lists[:3]:
        output.append(9)
    rows.update(Update(removed=[1], added=[(0, params(1), [3], lists[3])], moved=[(2, 1, "UNIDIRECTIONAL")]))
    assert sorted(served.prompt[0] for served, *_ in reports) == [0, 1]
    rows.update(Update(moved=[(1, 0, "UNIDIRECTIONAL")]))  # overwrites a row that nobody removed
    rows.update(Update(removed=[0]))
    rows.close()
    assert sorted(served.prompt[0] for served, *_ in reports) == [0, 1, 2, 3]


def test_a_swap_loses_nobody():
    rows, reports = book()
    first, second = [], []
    rows.update(Update(added=[(0, params(1), [0], first), (1, params(1), [1], second)]))
    rows.update(Update(moved=[(0, 1, "SWAP")]))
    first.append(5)
    rows.update(Update(removed=[1]))
    assert [(served.prompt, output) for served, output, _ in reports] == [([0], (5,))]


def test_a_preempted_request_is_one_request():
    rows, reports = book()
    output, settings = [4], params(3)
    rows.update(Update(added=[(0, settings, [1], output)]))
    rows.update(Update(removed=[0]))
    rows.update(None)
    assert reports == []
    rows.update(Update(added=[(0, settings, [1], output)]))
    output += [5, 6]
    rows.update(Update(removed=[0]))
    assert [(output, reason) for _, output, reason in reports] == [((4, 5, 6), "length")]


def test_an_aborted_request_is_reported_as_soon_as_the_engine_forgets_it():
    rows, reports = book()
    output = [4, 5]
    rows.update(Update(added=[(0, params(), [1], output)]))
    rows.update(Update(removed=[0]))
    assert reports == []
    del output
    rows.update(None)
    assert [(output, reason) for _, output, reason in reports] == [((4, 5), None)]


def test_a_session_that_goes_on_is_marked_since_its_seed_no_longer_gives_its_noise():
    rows, reports = book()
    output = [4]
    rows.update(Update(added=[(0, params(), [1], output)]))
    output.clear()  # what a streaming session does with its own list
    rows.update(Update(removed=[0], added=[(0, params(1), [1, 4], output)]))
    output.append(8)
    rows.update(Update(removed=[0]))
    assert [(s.prompt, s.continues, out) for s, out, _ in reports] == [([1, 4], True, (8,))]
    assert rows.sessions_cut == 1


@pytest.mark.parametrize(
    ("output", "reason"),
    [([], None), ([7], None), ([7, 2], "stop"), ([2, 7], None), ([7, 11], "stop"), ([7, 7, 7], "length")],
)
def test_an_output_is_over_for_the_reasons_the_scheduler_has(output, reason):
    assert finish_reason(Served(params(3, stops=[11]), [1], output, 0.0), 512) == reason


def test_a_full_context_ends_an_output():
    assert finish_reason(Served(params(100), [1] * 510, [7, 7], 0.0), 512) == "length"
    assert finish_reason(Served(params(100), [1] * 509, [7, 7], 0.0), 512) is None


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["add", "remove", "swap", "move", "sample"])),
        max_size=60,
    )
)
def test_any_history_reports_each_request_exactly_once(history):
    """Against the plain statement: what entered the batch comes out, once, with all it sampled."""
    rows, reports = book()
    entered, sampled, batch = [], {}, {}
    for row, action in history:
        if action == "add":
            number = len(entered)
            entered.append([])
            sampled[number] = entered[number]
            batch[row] = number
            rows.update(Update(added=[(row, params(), [number], entered[number])]))
        elif action == "remove" and row in batch:
            del batch[row]
            rows.update(Update(removed=[row]))
        elif action in ("swap", "move") and batch.get(row) is not None:
            other = (row + 1) % 6
            kind = "SWAP" if action == "swap" else "UNIDIRECTIONAL"
            mine, theirs = batch.pop(row), batch.pop(other, None)
            batch[other] = mine
            if action == "swap" and theirs is not None:
                batch[row] = theirs
            rows.update(Update(moved=[(row, other, kind)]))
        elif action == "sample" and row in batch:
            entered[batch[row]].append(1000 + batch[row])
    rows.close()
    assert sorted(served.prompt[0] for served, *_ in reports) == list(range(len(entered)))
    for served, output, _ in reports:
        assert list(output) == sampled[served.prompt[0]]


class OtherEngine:
    """A batch-update builder as vLLM's, to be varied."""

    def __init__(self):
        self.removed, self.added, self.moved = [], [], []

    def removed_append(self, row):
        self.removed.append(row)

    def peek_removed(self):
        return min(self.removed)

    def pop_removed(self):
        lowest = min(self.removed)
        self.removed.remove(lowest)
        return lowest

    def get_and_reset(self, size):
        del size
        update = Update(self.removed, [self.added_as(*request) for request in self.added], self.moved)
        self.removed, self.added, self.moved = [], [], []
        return update

    @staticmethod
    def added_as(row, settings, prompt, output):
        return row, settings, prompt, output


def test_the_start_up_check_passes_the_known_engine_and_refuses_another():
    check_rows(OtherEngine, "UNIDIRECTIONAL", "SWAP")

    class HandsOutCopies(OtherEngine):
        @staticmethod
        def added_as(row, settings, prompt, output):
            return row, settings, prompt, list(output)

    class OtherOrder(OtherEngine):
        @staticmethod
        def added_as(row, settings, prompt, output):
            return row, settings, output, prompt

    for changed in (HandsOutCopies, OtherOrder):
        with pytest.raises(CaptureError, match="otherwise than known"):
            check_rows(changed, "UNIDIRECTIONAL", "SWAP")
