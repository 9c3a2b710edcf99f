"""Checkpoints of every family with a tensor missing, left over, misshapen or not finite: one clear line each."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from auditor.errors import ModelCorruptError, ModelUnsupportedError
from auditor.reference.model import Model


@pytest.fixture
def tampered(architecture, checkpoint_of, tmp_path):
    source = checkpoint_of(architecture)
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())

    def write(change):
        tensors = load_file(source / "model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "model.safetensors")
        return tmp_path

    return write


def some_names(directory_tensors):
    """One name of each kind of tensor: those of layer 1, or of no layer, and of expert 0."""
    return [
        name
        for name in directory_tensors
        if (".layers.1." in name or "layers." not in name) and (".experts." not in name or ".0." in name)
    ]


def test_every_tensor_is_needed(tampered):
    names = []
    tampered(lambda tensors: names.extend(some_names(tensors)))
    for name in names:
        with pytest.raises((ModelCorruptError, ModelUnsupportedError)) as caught:
            Model.load(tampered(lambda tensors, name=name: tensors.pop(name)))
        assert "\n" not in str(caught.value)
        assert "tensor" in str(caught.value)


def test_no_tensor_is_left_over(tampered):
    def add(tensors):
        tensors["model.layers.0.self_attn.extra.weight"] = torch.zeros(2)

    with pytest.raises(ModelUnsupportedError, match=r"self_attn\.extra\.weight has no place"):
        Model.load(tampered(add))


def test_shapes_and_values_are_checked(tampered):
    names = []
    tampered(lambda tensors: names.extend(some_names(tensors)))

    def longer(tensors, name):
        tensors[name] = torch.cat([tensors[name], tensors[name]])

    def with_nan(tensors, name):
        tensors[name].view(-1)[-1] = torch.nan

    for name in names:
        with pytest.raises(ModelCorruptError, match="not \\[") as caught:
            Model.load(tampered(lambda tensors, name=name: longer(tensors, name)))
        assert name in str(caught.value)
        with pytest.raises(ModelCorruptError, match="NaN") as caught:
            Model.load(tampered(lambda tensors, name=name: with_nan(tensors, name)))
        assert name in str(caught.value)
