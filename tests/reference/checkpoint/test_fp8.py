"""Plain float8 checkpoints: DeepSeek-V3's blocks and one scale a matrix, and modules that contradict them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from auditor.errors import ModelCorruptError, ModelUnsupportedError
from auditor.reference.checkpoint.files import Checkpoint
from auditor.reference.checkpoint.quantized import ServedTensors, dequantized, linear_of

FLOAT8 = torch.float8_e4m3fn
MODULE = "model.layers.0.self_attn.o_proj"
BLOCKS = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
WHOLE = {
    "activation_scheme": "static",
    "quant_method": "fp8",
    "ignored_layers": ["lm_head"],
    "kv_cache_scheme": None,
}


@pytest.fixture
def write(tmp_path):
    def write(parts, quantization, extra=None):
        tensors = {f"{MODULE}.{name}": tensor for name, tensor in parts.items()} | (extra or {})
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
        return Checkpoint.open(tmp_path)

    return write


def codes(rows, columns):
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)) * 100
    return values.clamp(-448, 448).to(FLOAT8)


def test_deepseek_blocks_with_a_last_one_that_is_short(write):
    """576 rows in blocks of 128, as its compressed keys and values have."""
    weight, scales = codes(576, 256), torch.rand(5, 2) * 1e-3
    checkpoint = write({"weight": weight, "weight_scale_inv": scales}, BLOCKS)
    spread = scales.repeat_interleave(128, 0)[:576].repeat_interleave(128, 1)
    expected = (weight.float() * spread).bfloat16()
    assert torch.equal(dequantized(checkpoint, MODULE, torch.bfloat16), expected)
    linear = linear_of(checkpoint, MODULE, torch.bfloat16)
    x = torch.randn(3, 256).bfloat16()
    assert (linear.input_scheme.kind, linear.input_scheme.group, linear.input_scheme.scale) == (
        "float8",
        128,
        None,
    )
    exact = x.double() @ expected.double().T
    assert torch.allclose(linear(x).double(), exact, atol=0.05 * float(exact.abs().max()))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv"])
def test_one_scale_a_matrix_with_stored_scales_of_inputs(write, shape, name):
    weight = codes(16, 32)
    parts = {"weight": weight, name: torch.full(shape, 0.25), "input_scale": torch.tensor(0.5)}
    checkpoint = write(parts, WHOLE)
    assert torch.equal(dequantized(checkpoint, MODULE, torch.float32), weight.float() * 0.25)
    linear = linear_of(checkpoint, MODULE, torch.float32)
    assert linear.input_scheme.scale == torch.tensor(0.5)
    x = torch.tensor([[1.0] + [0.0] * 31])
    assert torch.equal(linear(x), weight[:, :1].float().T * 0.25)


def test_one_scale_a_matrix_with_inputs_rounded_by_row(write):
    checkpoint = write(
        {"weight": codes(16, 32), "weight_scale": torch.tensor(1.0)}, WHOLE | {"activation_scheme": "dynamic"}
    )
    assert linear_of(checkpoint, MODULE, torch.float32).input_scheme.scale is None


def test_a_bias_is_held_in_the_compute_dtype(write):
    parts = {"weight": codes(16, 32), "weight_scale": torch.tensor(1.0), "input_scale": torch.tensor(1.0)}
    parts["bias"] = torch.full((16,), 1.001)
    linear = linear_of(write(parts, WHOLE), MODULE, torch.bfloat16)
    assert torch.equal(linear(torch.zeros(1, 32).bfloat16()), torch.ones(1, 16).bfloat16())


def test_dense_modules_are_those_that_are_listed_and_the_head(write):
    dense = {
        f"{name}.weight": torch.ones(4, 8)
        for name in ("lm_head", "model.layers.1.mlp.up_proj", "model.layers.2.mlp.gate")
    }
    parts = {"weight": codes(128, 128), "weight_scale_inv": torch.ones(1, 1)}
    config = BLOCKS | {"modules_to_not_convert": ["gate", "model.layers.1.mlp"]}
    checkpoint = write(parts, config, dense)
    for name in dense:
        assert linear_of(checkpoint, name.removesuffix(".weight"), torch.float32).shape == (4, 8)
    with pytest.raises(ModelCorruptError, match="up_proj is declared quantized but stored dense"):
        linear_of(write(parts, BLOCKS, dense), "model.layers.1.mlp.up_proj", torch.float32)
    with pytest.raises(ModelCorruptError, match="o_proj is declared dense but stored quantized"):
        linear_of(write(parts, BLOCKS | {"ignored_layers": [MODULE]}, dense), MODULE, torch.float32)


def test_a_source_tells_products_from_matrices(write):
    parts = {"weight": codes(128, 128), "weight_scale_inv": torch.ones(1, 1)}
    source = ServedTensors.of(write(parts, BLOCKS, {"lm_head.weight": torch.ones(4, 8)}), torch.bfloat16)
    assert source.product("lm_head", torch.bfloat16) is None
    assert source.product(MODULE, torch.bfloat16).codes.dtype == FLOAT8
    with pytest.raises(ModelCorruptError, match="up_proj is declared quantized but stored dense"):
        source.product("model.layers.1.mlp.up_proj", torch.bfloat16)


@pytest.mark.parametrize(
    "change",
    [
        {"activation_scheme": "none"},
        {"activation_scheme": "static"},
        {"fmt": "e5m2"},
        {"scale_fmt": "ue8m0"},
        {"kv_cache_scheme": "static"},
        {"store_dtype": "mxfp4"},
        {"dequantize": True},
    ],
)
def test_what_is_not_implemented_is_refused(write, change):
    checkpoint = write({"weight": codes(128, 128), "weight_scale_inv": torch.ones(1, 1)}, BLOCKS | change)
    with pytest.raises(ModelUnsupportedError, match=r"config\.json: quantization_config: not implemented"):
        linear_of(checkpoint, MODULE, torch.float32)


@pytest.mark.parametrize("block", [[128], [128, 0], "128x128", [128, 128.0], {}])
def test_blocks_that_are_no_two_sizes_are_refused(write, block):
    checkpoint = write(
        {"weight": codes(128, 128), "weight_scale_inv": torch.ones(1, 1)},
        BLOCKS | {"weight_block_size": block},
    )
    with pytest.raises(ModelCorruptError, match="weight_block_size must be two sizes"):
        linear_of(checkpoint, MODULE, torch.float32)


def nan_code():
    weight = codes(128, 256).view(torch.uint8)
    weight[3, 5] = 0xFF
    return weight.view(FLOAT8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": nan_code()}, "weight holds NaN"),
        ({"weight": codes(128, 256).view(torch.int8)}, "is torch.int8, not torch.float8_e4m3fn"),
        ({"weight": codes(128, 256).flatten()}, "not a matrix"),
        ({"weight_scale_inv": torch.ones(2, 2)}, r"is \[2, 2\], not \[1, 2\]"),
        ({"weight_scale_inv": torch.ones(2)}, None),
        ({"weight_scale_inv": torch.full((1, 2), float("inf"))}, "NaN, infinity or negative"),
        ({"weight_scale_inv": torch.ones(1, 2, dtype=torch.int32)}, "is torch.int32, not torch.float32"),
        ({"weight_scale": torch.ones(1, 2)}, "has 2 tensors of scales, not one"),
        ({"input_scale": torch.tensor(1.0)}, "is stored but not declared"),
    ],
)
def test_tensors_that_make_no_sense_are_refused(write, change, message):
    parts = {"weight": codes(128, 256), "weight_scale_inv": torch.ones(1, 2)} | change
    checkpoint = write(parts, BLOCKS)
    if message is None:  # one row of blocks may be stored without its axis
        assert linear_of(checkpoint, MODULE, torch.float32).weight_scale.shape == (128, 2)
        return
    with pytest.raises(ModelCorruptError, match=message):
        linear_of(checkpoint, MODULE, torch.float32)


@pytest.mark.parametrize("scale", [None, torch.tensor(0.0), torch.ones(2), torch.tensor(float("nan"))])
def test_static_scales_of_inputs_must_be_one_positive_number(write, scale):
    parts = {"weight": codes(16, 32), "weight_scale": torch.tensor(1.0)}
    if scale is not None:
        parts["input_scale"] = scale
    with pytest.raises(ModelCorruptError, match="input_scale"):
        linear_of(write(parts, WHOLE), MODULE, torch.float32)


def test_columns_that_do_not_fill_their_blocks_are_refused(write):
    """Engines refuse to round inputs by group there."""
    checkpoint = write({"weight": codes(128, 192), "weight_scale_inv": torch.ones(1, 2)}, BLOCKS)
    with pytest.raises(ModelUnsupportedError, match=r"192 columns of .* in blocks of 128"):
        linear_of(checkpoint, MODULE, torch.float32)


def test_parts_of_other_formats_are_refused(write):
    parts = {
        "weight": codes(128, 128),
        "weight_scale_inv": torch.ones(1, 1),
        "input_zero_point": torch.zeros(1),
    }
    with pytest.raises(ModelUnsupportedError, match="input_zero_point with the layout codes"):
        linear_of(write(parts, BLOCKS), MODULE, torch.float32)
