"""Traces that vLLM 0.32 served from quantized checkpoints, replayed on what those checkpoints declare.

The checkpoints are made again here as they were for the recording: of every projection, int4 by groups of 128
or int8 by row, the scale rounded to bfloat16 first. An honest bfloat16 trace replays with a match of 0.9974.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from auditor.preparation import prepare
from auditor.reference.checkpoint.key_value import Float8KeyValue
from auditor.reference.model import Model
from auditor.reference.runner import Runner
from auditor.replay import Reference
from auditor.trace_format import parse_trace

ROOT = Path(__file__).parents[3]
TARGET = ROOT / "reference" / "demo" / "target"


def int4(weight):
    groups = weight.float().view(len(weight), -1, 128)
    scale = (groups.abs().amax(dim=2, keepdim=True) / 7).clamp_min(1e-8).bfloat16()
    codes = ((groups / scale.float()).round().clamp(-8, 7) + 8).to(torch.int32).view(len(weight), -1, 8)
    words = (codes << (4 * torch.arange(8, dtype=torch.int32))).sum(2, dtype=torch.int32)
    return {
        "weight_packed": words,
        "weight_scale": scale[:, :, 0],
        "weight_shape": torch.tensor(weight.shape),
    }


def int8(weight):
    scale = (weight.float().abs().amax(dim=1, keepdim=True) / 127).clamp_min(1e-8).bfloat16()
    return {
        "weight": (weight.float() / scale.float()).round().clamp(-128, 127).to(torch.int8),
        "weight_scale": scale,
    }


@pytest.fixture(scope="module")
def replayed():
    reference = Reference.load(TARGET)

    def replay(model, name):
        """(share of tokens that match, mean margin of a token in logits, each clipped at 5)."""
        with gzip.open(ROOT / "tests" / "traces" / f"{name}.jsonl.gz", "rb") as lines:
            traces = [parse_trace(line.rstrip(b"\n"), file=name, line=1) for line in lines]
        rows = list(Runner(model).score([prepare(trace, reference) for trace in traces]))
        matched = np.concatenate([row.matched for row in rows])
        margin = np.concatenate([row.margin for row in rows])
        return matched.mean(), np.minimum(margin, 5.0).mean()

    return replay


@pytest.fixture(scope="module")
def dense():
    return Model.load(TARGET, dtype=torch.bfloat16)


def test_int4_weights_replay_as_well_as_honest_ones(quantize_demo, ct_config, replayed, dense):
    """Undeclared: 0.9796, 8.9e-3."""
    config = ct_config(
        "pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
    )
    match, margin = replayed(
        Model.load(quantize_demo(int4, config), dtype=torch.bfloat16), "vllm-cpu-w4a16-g128"
    )
    assert match >= 0.9970
    assert margin <= 2e-4
    assert replayed(dense, "vllm-cpu-w4a16-g128")[0] <= 0.985


def test_int8_weights_and_inputs_replay_as_far_as_their_own_noise_lets_them(
    quantize_demo, ct_config, replayed
):
    """Replays in bfloat16 and float32 differ from each other in as many tokens as from the trace: 25 of 8,191."""
    inputs = {"type": "int", "dynamic": True, "strategy": "token", "observer": None}
    config = ct_config("int-quantized", {"type": "int", "strategy": "channel"}, inputs)
    match, margin = replayed(Model.load(quantize_demo(int8, config), dtype=torch.bfloat16), "vllm-cpu-w8a8")
    assert match >= 0.9950
    assert margin <= 5e-4


def test_float8_keys_and_values_replay_when_they_are_cut_as_vllm_cuts_them_on_a_cpu(replayed, dense):
    """Two replays in float32 and bfloat16 differ in 29 tokens of 7,443 from each other, 28 from the trace."""
    results = {
        name: replayed(model, "vllm-cpu-kv-fp8")
        for name, model in {
            "undeclared": dense,
            "cut": dense.replace(key_value=Float8KeyValue.unscaled(toward_zero=True)),
            "rounded": dense.replace(key_value=Float8KeyValue.unscaled()),
        }.items()
    }
    assert results["cut"][0] >= 0.9945
    assert results["cut"][1] <= 0.5 * results["undeclared"][1]
    assert results["rounded"][1] >= results["undeclared"][1]
