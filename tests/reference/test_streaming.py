"""A streamed model: the same bits in little memory, and checked before anything is read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from auditor.errors import ModelCorruptError, ModelUnsupportedError
from auditor.reference import streaming
from auditor.reference.demo.prompts import TARGET
from auditor.reference.model import Model

TOKENS = [torch.arange(5, 60), torch.arange(100, 103)]
LAYERS = 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wide_matmul", [False, True])
def test_streamed_bits_are_resident_bits(dtype, wide_matmul):
    resident = Model.load(TARGET, dtype=dtype, wide_matmul=wide_matmul, stream=False)
    streamed = Model.load(TARGET, dtype=dtype, wide_matmul=wide_matmul, stream=True)
    assert streamed.digest == resident.digest
    assert len(streamed.parameters) == 2
    assert torch.equal(streamed.prefill(TOKENS), resident.prefill(TOKENS))


def test_a_streamed_model_can_be_changed():
    def coarser(name, tensor):
        return (tensor * 8).round() / 8 if name.endswith("proj.weight") else tensor

    def silent(name, tensor):
        return torch.zeros_like(tensor) if "layers.3.mlp" in name else tensor

    resident, streamed = (Model.load(TARGET, stream=stream) for stream in (False, True))
    for change in ({"skip_layers": frozenset({1, 4})}, {"weights": coarser}):
        resident, streamed = resident.replace(**change), streamed.replace(**change)
        assert torch.equal(streamed.prefill(TOKENS), resident.prefill(TOKENS))
    resident, streamed = resident.replace(weights=silent), streamed.replace(weights=silent)
    assert torch.equal(streamed.prefill(TOKENS), resident.prefill(TOKENS))


def test_weights_that_do_not_fit_are_streamed_unasked(monkeypatch):
    assert len(Model.load(TARGET).parameters) > 2
    monkeypatch.setattr(streaming, "free_memory", lambda _device: 20e6)
    assert len(Model.load(TARGET).parameters) == 2


@pytest.fixture
def changed(tmp_path):
    """A copy of the demo model whose tensors a test may change."""

    def write(change):
        shutil.copytree(TARGET, tmp_path / "model", dirs_exist_ok=True)
        tensors = load_file(TARGET / "model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "model" / "model.safetensors")
        return tmp_path / "model"

    return write


def test_what_is_missing_is_found_before_anything_is_computed(changed):
    folder = changed(lambda tensors: tensors.pop("model.layers.4.mlp.down_proj.weight"))
    with pytest.raises(ModelCorruptError, match=r"layers\.4\.mlp\.down_proj\.weight is missing"):
        Model.load(folder, stream=True)


def test_what_is_left_over_or_misshapen_is_found_too(changed):
    folder = changed(lambda tensors: tensors.update({"model.layers.5.extra": torch.ones(1)}))
    with pytest.raises(ModelUnsupportedError, match=r"layers\.5\.extra"):
        Model.load(folder, stream=True)
    name = "model.layers.2.self_attn.o_proj.weight"
    folder = changed(lambda tensors: tensors.update({name: torch.ones(3, 256)}))
    with pytest.raises(ModelCorruptError, match=r"\[3, 256\], not \[256, 256\]"):
        Model.load(folder, stream=True)


def test_nan_is_found_when_its_layer_is_read(changed):
    def spoil(tensors):
        tensors["model.layers.2.input_layernorm.weight"][0] = torch.nan

    model = Model.load(changed(spoil), stream=True)
    with pytest.raises(ModelCorruptError, match="holds NaN"):
        model.prefill(TOKENS)


MEASURE = """
import json, resource, sys, torch
from pathlib import Path
from auditor.reference.model import Model
torch.set_num_threads(1)
model = Model.load(sys.argv[1], stream=sys.argv[2] == "stream")
print(float(model.prefill([torch.arange(5, 60)]).double().sum()))
high = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))
print(int(high.split()[1]) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the high-water mark from /proc")
def test_memory_holds_two_layers_not_all(tmp_path):
    """A hundred layers of 2.8 MB in float32: resident they are 275 MB, streamed at most a handful at a time."""
    tensors = load_file(TARGET / "model.safetensors")
    for index in range(5, LAYERS):
        for name in [n for n in tensors if n.startswith("model.layers.0.")]:
            tensors[name.replace("layers.0.", f"layers.{index}.")] = tensors[name].clone()
    config = json.loads((TARGET / "config.json").read_text()) | {"num_hidden_layers": LAYERS}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    answers = {}
    for way in ("stream", "hold"):
        command = [sys.executable, "-c", MEASURE, str(tmp_path), way]
        answers[way] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert answers["stream"][0] == answers["hold"][0]
    assert int(answers["hold"][1]) - int(answers["stream"][1]) > 150e6
