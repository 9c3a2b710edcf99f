"""Hidden states inside vLLM: the right row for each token, and a refusal where rows are not what is audited."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from auditor.calibration import calibrate
from auditor.capture.rows import Rows
from auditor.capture.vllm_states import check_rows_are_states, watch_states
from auditor.capture.vllm_trace import has_states
from auditor.errors import CaptureError
from auditor.reference.demo.prompts import TARGET
from auditor.reference.model import Model
from auditor.replay import Reference, replay
from auditor.trace_files import read_traces
from auditor.verdict import judge

CAPTURED = Path(__file__).parent.parent.parent / "traces" / "captured" / "vllm-plugin-fingerprints.jsonl.gz"
SWAP = "SWAP"


@pytest.fixture(scope="module")
def model():
    return Model.load(TARGET)


@pytest.fixture(scope="module")
def reference():
    return Reference.load(TARGET)


def params():
    return SimpleNamespace(eos_token_id=2, stop_token_ids=[], max_tokens=9)


def batch(*requests):
    reports = []
    rows = Rows(
        lambda served, _reason: reports.append(served),
        context_length=99,
        is_swap=lambda kind: kind == SWAP,
        clock=lambda: 0.0,
    )
    added = [(row, params(), [row], output) for row, output in enumerate(requests)]
    rows.update(SimpleNamespace(removed=[], added=added, moved=[]))
    return rows, reports


def numbered(*numbers):
    return torch.tensor(numbers, dtype=torch.float32)[:, None].expand(-1, 4)


def test_each_output_token_has_the_state_it_was_sampled_from_wherever_its_request_moves():
    first, second = [], []
    rows, reports = batch(first, second)
    assert rows.see(numbered(10, 20))
    first.append(5)
    second.append(6)
    rows.update(SimpleNamespace(removed=[], added=[], moved=[(0, 1, SWAP)]))
    assert rows.see(numbered(21, 11))
    first.append(7)
    second.append(8)
    rows.close()
    seen = {tuple(served.output): [int(served.states[t][0]) for t in range(2)] for served in reports}
    assert seen == {(5, 7): [10, 11], (6, 8): [20, 21]}


def test_the_rows_of_a_prompts_parts_are_overwritten_by_the_one_that_was_sampled_from():
    output = []
    rows, reports = batch(output)
    for part in (1, 2, 3):  # a prompt in three parts: the engine ignores what it samples of the first two
        assert rows.see(numbered(part))
        rows.update(None)
    output.append(4)
    rows.close()
    assert int(reports[0].states[0][0]) == 3


def test_rows_that_are_not_the_batchs_are_not_taken_and_the_trace_then_has_no_fingerprint():
    output = []
    rows, reports = batch(output)
    assert not rows.see(numbered(1, 2))
    output.append(4)
    rows.close()
    assert not has_states(reports[0])


class Served:
    """A model as vLLM's runner holds it, computing with ours."""

    def __init__(self, model):
        self._model = model

    def compute_logits(self, hidden):
        return self._model.logits(hidden)

    def parameters(self):
        return iter(self._model.parameters.values())


class Runner:
    def __init__(self, model):
        self._loads = model

    def load_model(self):
        self.model = Served(self._loads)

    def get_model(self):
        return self.model


def test_a_loaded_model_shows_its_rows_and_answers_as_before(model):
    shown = []
    put_back = watch_states([Runner], TARGET, shown.append)
    try:
        runner = Runner(model)
        runner.load_model()
        assert shown == []
        hidden = model.prefill([torch.tensor([5, 6, 7])])
        assert torch.equal(runner.get_model().compute_logits(hidden), model.logits(hidden))
        assert len(shown) == 1
        assert shown[0] is hidden
    finally:
        put_back()
    later = Runner(model)
    later.load_model()
    later.get_model().compute_logits(hidden)
    assert len(shown) == 1


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda m, h: m.logits(h / h.norm(dim=1, keepdim=True)), "not the product"),
        (lambda m, h: m.logits(h)[:1], "row for row"),
        (lambda m, h: m.logits(h)[:, :100], "row for row"),
        (lambda m, h: torch.tanh(m.logits(h) / 5) * 5, "not the product"),
        (lambda _m, _h: None, "row for row"),
    ],
)
def test_a_model_whose_logits_are_not_the_plain_product_is_refused(model, spoil, said):
    with pytest.raises(CaptureError, match=said):
        check_rows_are_states(lambda hidden: spoil(model, hidden), TARGET, torch.float32)


def test_a_checkpoint_without_a_readable_output_matrix_is_refused(model, tmp_path):
    with pytest.raises(CaptureError, match="no output matrix"):
        check_rows_are_states(model.logits, tmp_path, torch.float32)


def test_fingerprints_from_inside_a_real_vllm_are_near_and_convict_a_provider_with_other_states(reference):
    """Recorded: half calibrates, half is audited; then each request with another one's states."""
    traces = list(read_traces(CAPTURED))
    assert len(traces) == 32
    profile = calibrate(traces[::2], reference, shadow_tokens=0)
    honest = list(replay(traces[1::2], reference))
    assert all(s.fingerprint_problem is None and len(s.fingerprints) == 1 for s in honest)
    assert max(f.distance for s in honest for f in s.fingerprints) < 0.2
    verdict = judge(honest, profile, alpha=0.01)
    kinds = {e.name: e.log_e for e in verdict.evidence}
    assert kinds["activation-difr/v2 int8 k16 w1 final"] < 1.0
    assert verdict.outcome != "inconsistent"
    swapped = [
        replace(a, fingerprints=b.fingerprints) for a, b in zip(traces[1::2], traces[::2], strict=True)
    ]
    assert all(s.fingerprint_problem is not None for s in replay(swapped, reference))
