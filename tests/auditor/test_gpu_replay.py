"""Calibrating and auditing on a device of its own (`tests/reference/separate_device.py`): the CPU's verdicts."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from auditor.calibration import calibrate
from auditor.commands import cli
from auditor.reference.demo.prompts import TARGET
from auditor.reference.device import CPU
from auditor.replay import Reference
from auditor.trace_files import read_traces
from auditor.verification import verify
from tests.reference.separate_device import OnSeparateDevice, separate_device

TRACES = Path(__file__).parent.parent / "traces"


def traces(name, count=None):
    return list(islice(read_traces(TRACES / f"{name}.jsonl.gz"), count))


def audited(device, dtype=torch.float32):
    reference = Reference.load(TARGET, device=device, dtype=dtype)
    profile = calibrate(traces("vllm-cpu-bf16-plain", 24), reference, shadow_tokens=300, keep_suspects=True)
    find = {profile.key: profile}.get
    results = [
        verify(lambda name=name: iter(traces(name, 8)), reference, find_profile=find, alpha=0.01)
        for name in ("vllm-cpu-w4a16-g128", "vllm-cpu-bf16-topp95")
    ]
    return profile, [result.verdicts[0] for result in results]


def test_profiles_and_verdicts_are_those_of_the_cpu():
    profile, verdicts = audited(CPU)
    with OnSeparateDevice():
        other, others = audited(separate_device())
    assert other.key.reference_recipe == f"{profile.key.reference_recipe}/separate"
    assert set(other.deviations) == set(profile.deviations)
    assert [v.outcome for v in others] == [v.outcome for v in verdicts]
    assert [v.log_e for v in others] == pytest.approx([v.log_e for v in verdicts], abs=0.5)


def test_a_profile_of_the_cpu_is_not_taken_for_a_gpu():
    found = []
    with OnSeparateDevice():
        reference = Reference.load(TARGET, device=separate_device(), dtype=torch.bfloat16)
        result = verify(
            lambda: iter(traces("vllm-cpu-bf16-topp95", 2)),
            reference,
            find_profile=found.append,
        )
    assert result.verdicts[0].outcome == "inconclusive"
    assert {key.reference_recipe for key in found} == {"auditor-0.1/bfloat16/prefill/separate"}


@pytest.mark.parametrize("command", ["verify", "calibrate", "worker"])
def test_a_gpu_that_is_not_there_is_one_line(command, tmp_path):
    log = str(TRACES / "vllm-cpu-bf16-plain.jsonl.gz")
    arguments = {
        "verify": [log],
        "calibrate": [log, "--out", str(tmp_path / "profile.json")],
        "worker": ["--database", f"sqlite:///{tmp_path / 'store.db'}"],
    }
    got = CliRunner().invoke(cli, [command, *arguments[command], "--device", "cuda:99"])
    assert got.exit_code != 0
    assert "device cuda:99" in str(got.exception) + got.output
