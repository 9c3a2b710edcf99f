"""Compressed tensors of one module that contradict each other or their scheme."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from auditor.errors import ModelCorruptError, ModelUnsupportedError
from auditor.reference.checkpoint.files import Checkpoint
from auditor.reference.checkpoint.quantized import dequantized, linear_of

MODULE = "model.layers.0.mlp.up_proj"


@pytest.fixture
def read(tmp_path, ct_config):
    def read(parts, form, weights, inputs=None):
        save_file(
            {f"{MODULE}.{name}": tensor for name, tensor in parts.items()}, tmp_path / "model.safetensors"
        )
        config = ct_config(form, weights, inputs)
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
        return dequantized(Checkpoint.open(tmp_path), MODULE, torch.float32)

    return read


def packed(*, symmetric=True):
    parts = {
        "weight_packed": torch.zeros(16, 4, dtype=torch.int32),
        "weight_scale": torch.ones(16, 2),
        "weight_shape": torch.tensor([16, 30]),
    }
    if not symmetric:
        parts["weight_zero_point"] = torch.zeros(2, 2, dtype=torch.int32)
    return parts


def four_bits(*, symmetric=True):
    return "pack-quantized", {
        "num_bits": 4,
        "type": "int",
        "strategy": "group",
        "group_size": 16,
        "symmetric": symmetric,
    }


@pytest.mark.parametrize("symmetric", [True, False])
def test_columns_that_do_not_fill_a_word_or_a_group(read, symmetric):
    weight = read(packed(symmetric=symmetric), *four_bits(symmetric=symmetric))
    assert torch.equal(weight, torch.full((16, 30), -8.0 if symmetric else 0.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_shape": torch.tensor([16, 40])}, r"weight_packed is \[16, 4\], not \[16, 5\]"),
        ({"weight_shape": torch.tensor([15, 30])}, r"weight_packed is \[16, 4\], not \[15, 4\]"),
        ({"weight_shape": torch.tensor([16])}, "weight_shape is not two sizes"),
        ({"weight_shape": torch.tensor([16, -30])}, "weight_shape is not two sizes"),
        ({"weight_shape": torch.tensor([16.0, 30.0])}, "weight_shape is not two sizes"),
        ({"weight_scale": torch.ones(16, 1)}, r"weight_scale is \[16, 1\], not \[16, 2\]"),
        ({"weight_scale": torch.full((16, 2), float("inf"))}, "NaN, infinity or negative"),
        ({"weight_packed": torch.zeros(16, 4, dtype=torch.int64)}, "is torch.int64, not torch.int32"),
    ],
)
def test_packed_tensors_that_contradict_each_other_are_refused(read, change, message):
    with pytest.raises(ModelCorruptError, match=message):
        read(packed() | change, *four_bits())


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "weight_shape", "weight_zero_point"])
def test_a_packed_part_that_is_missing_is_named(read, part):
    parts = packed(symmetric=False)
    parts.pop(part)
    with pytest.raises(ModelCorruptError, match=f"{part} is missing"):
        read(parts, *four_bits(symmetric=False))


def test_zero_points_of_symmetric_weights_are_refused(read):
    with pytest.raises(ModelUnsupportedError, match="zero points of the symmetric module"):
        read(packed(symmetric=False), *four_bits())
    plain = {"weight": torch.zeros(4, 8, dtype=torch.int8), "weight_scale": torch.ones(4, 1)}
    plain["weight_zero_point"] = torch.zeros(4, 1, dtype=torch.int8)
    with pytest.raises(ModelUnsupportedError, match="zero points of the symmetric module"):
        read(plain, "int-quantized", {"type": "int", "strategy": "channel"})


@pytest.mark.parametrize("part", ["weight_g_idx", "weight_global_scale", "qweight", "input_zero_point"])
def test_a_part_that_the_scheme_does_not_use_is_refused(read, part):
    with pytest.raises(ModelUnsupportedError, match=f"{part} with the layout packed"):
        read(packed() | {part: torch.zeros(2)}, *four_bits())


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_one_scale_a_row_may_be_stored_without_a_second_axis(read, shape):
    parts = {"weight": torch.ones(4, 8, dtype=torch.int8), "weight_scale": torch.full(shape, 0.5)}
    assert torch.equal(
        read(parts, "int-quantized", {"type": "int", "strategy": "channel"}), torch.full((4, 8), 0.5)
    )


def test_one_zero_point_a_matrix(read):
    parts = {"weight": torch.ones(4, 8, dtype=torch.int8), "weight_scale": torch.tensor([0.5])}
    parts["weight_zero_point"] = torch.tensor([3], dtype=torch.int8)
    scheme = {"type": "int", "strategy": "tensor", "symmetric": False}
    assert torch.equal(read(parts, "int-quantized", scheme), torch.full((4, 8), -1.0))


def test_a_module_that_is_declared_quantized_but_stored_dense_is_refused(read):
    with pytest.raises(ModelCorruptError, match="up_proj is declared quantized but stored dense"):
        read({"weight": torch.ones(4, 8)}, *four_bits())


def test_an_ignored_module_is_read_as_it_stands(tmp_path, ct_config):
    save_file({"lm_head.weight": torch.ones(4, 8).bfloat16()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": ct_config(*four_bits())}))
    read = linear_of(Checkpoint.open(tmp_path), "lm_head", torch.float32)
    assert read.dtype == torch.float32
    assert read.shape == (4, 8)
