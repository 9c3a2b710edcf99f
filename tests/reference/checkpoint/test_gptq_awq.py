"""GPTQ and AWQ: packed here bit by bit from the published layouts, read back, and the contradictions refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from auditor.errors import ModelCorruptError, ModelUnsupportedError
from auditor.reference.checkpoint.files import Checkpoint
from auditor.reference.checkpoint.quantized import ServedTensors, dequantized, linear_of

MODULE = "model.layers.0.mlp.up_proj"
GPTQ = {
    "bits": 4,
    "group_size": 16,
    "damp_percent": 0.1,
    "desc_act": False,
    "sym": False,
    "true_sequential": True,
    "model_name_or_path": None,
    "quant_method": "gptq",
    "checkpoint_format": "gptq",
    "dynamic": {},
    "meta": {"quantizer": ["gptqmodel:2.0.0"]},
    "static_groups": False,
    "pack_dtype": "int32",
    "lm_head": False,
}
AWQ = {
    "bits": 4,
    "group_size": 16,
    "modules_to_not_convert": None,
    "quant_method": "awq",
    "version": "gemm",
    "zero_point": True,
}


class Matrix:
    """A small quantized matrix: codes, zero points and scales in plain lists, [inputs][outputs]."""

    def __init__(self, inputs, outputs, group, bits, *, order=None, symmetric=False, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.inputs, self.outputs, self.bits = inputs, outputs, bits
        groups = -(-inputs // group)
        self.order = list(order) if order is not None else [row // group for row in range(inputs)]
        top = 2**bits
        self.codes = torch.randint(0, top, (inputs, outputs), generator=generator).tolist()
        # GPTQ's first format cannot hold a zero point of 0
        self.zeros = torch.randint(1, top, (groups, outputs), generator=generator).tolist()
        if symmetric:
            self.zeros = [[top // 2] * outputs for _ in range(groups)]
        self.scales = torch.rand(groups, outputs, generator=generator).mul(0.01).half()

    def weight(self, dtype):
        """[outputs, inputs], one number after the other."""
        scales = self.scales.to(dtype).float()
        weight = torch.empty(self.outputs, self.inputs)
        for row in range(self.inputs):
            group = self.order[row]
            for column in range(self.outputs):
                code = self.codes[row][column] - self.zeros[group][column]
                weight[column, row] = code * scales[group, column]
        return weight.to(dtype)


def word(numbers, bits):
    """An int32 with the first number in the lowest bits."""
    value = sum(number << (bits * place) for place, number in enumerate(numbers))
    return value - 2**32 if value >= 2**31 else value


def words(rows, bits):
    per = 32 // bits
    return torch.tensor(
        [[word(row[i : i + per], bits) for i in range(0, len(row), per)] for row in rows], dtype=torch.int32
    )


def gptq(matrix, *, less=1, with_order=True):
    """`qweight`: words along the inputs; `qzeros`: along the outputs, one less than they are in the first format."""
    down = words([list(column) for column in zip(*matrix.codes, strict=True)], matrix.bits).T
    mask = 2**matrix.bits - 1
    zeros = words([[(zero - less) & mask for zero in row] for row in matrix.zeros], matrix.bits)
    tensors = {"qweight": down, "qzeros": zeros, "scales": matrix.scales}
    if with_order:
        tensors["g_idx"] = torch.tensor(matrix.order, dtype=torch.int32)
    return tensors


def awq(matrix):
    """Words along the outputs; of every eight, outputs 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits up."""

    def shuffled(row):
        return [row[start + place] for start in range(0, len(row), 8) for place in (0, 2, 4, 6, 1, 3, 5, 7)]

    return {
        "qweight": words([shuffled(row) for row in matrix.codes], 4),
        "qzeros": words([shuffled(row) for row in matrix.zeros], 4),
        "scales": matrix.scales,
    }


@pytest.fixture
def write(tmp_path):
    def write(parts, quantization, extra=None):
        tensors = {f"{MODULE}.{name}": tensor.contiguous() for name, tensor in parts.items()} | (extra or {})
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
        return Checkpoint.open(tmp_path)

    return write


DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [16, 64, -1])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2", None])
def test_gptq(write, bits, group, symmetric, form):
    matrix = Matrix(64, 32, 64 if group == -1 else group, bits, symmetric=symmetric)
    parts = gptq(matrix, less=0 if form == "gptq_v2" else 1)
    config = GPTQ | {"bits": bits, "group_size": group, "sym": symmetric, "checkpoint_format": form}
    checkpoint = write(parts, config)
    for dtype in DTYPES:
        assert torch.equal(dequantized(checkpoint, MODULE, dtype), matrix.weight(dtype))
    assert torch.equal(linear_of(checkpoint, MODULE, torch.float16), matrix.weight(torch.float16))


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_with_columns_in_an_order_of_their_own(write, bits):
    order = torch.randperm(64, generator=torch.Generator().manual_seed(9)) // 16
    matrix = Matrix(64, 32, 16, bits, order=order.tolist())
    checkpoint = write(gptq(matrix), GPTQ | {"bits": bits, "desc_act": True})
    assert torch.equal(dequantized(checkpoint, MODULE, torch.float16), matrix.weight(torch.float16))


def test_gptq_with_a_short_last_group_and_without_an_order(write):
    matrix = Matrix(40, 32, 16, 4)
    checkpoint = write(gptq(matrix, with_order=False), GPTQ)
    assert torch.equal(dequantized(checkpoint, MODULE, torch.float16), matrix.weight(torch.float16))


@pytest.mark.parametrize("group", [16, 64, -1])
@pytest.mark.parametrize("names", [("bits", "group_size", "gemm"), ("w_bit", "q_group_size", "GEMM")])
def test_awq(write, group, names):
    matrix = Matrix(64, 32, 64 if group == -1 else group, 4)
    matrix.zeros[0][3] = 0
    bits, size, version = names
    config = AWQ | {"version": version}
    config[bits], config[size] = config.pop("bits"), config.pop("group_size") and group
    checkpoint = write(awq(matrix), config)
    for dtype in DTYPES:
        assert torch.equal(dequantized(checkpoint, MODULE, dtype), matrix.weight(dtype))


def test_the_two_layouts_are_not_each_other(write):
    matrix = Matrix(64, 64, 16, 4)
    read = dequantized(write(awq(matrix), AWQ), MODULE, torch.float16)
    matrix.codes = [
        [row[start + place] for start in range(0, 64, 8) for place in range(8)] for row in matrix.codes
    ]
    parts = awq(matrix)
    parts["qweight"] = words(matrix.codes, 4)
    assert not torch.equal(dequantized(write(parts, AWQ), MODULE, torch.float16), read)


def test_modules_that_are_stored_dense_are_dense(write):
    dense = {"lm_head.weight": torch.ones(4, 8), "model.layers.0.mlp.gate.weight": torch.ones(4, 8)}
    checkpoint = write(gptq(Matrix(64, 32, 16, 4)), GPTQ, dense)
    for module in ("lm_head", "model.layers.0.mlp.gate"):
        assert torch.equal(linear_of(checkpoint, module, torch.float32), torch.ones(4, 8))
    source = ServedTensors.of(checkpoint, torch.float16)
    assert source.names == {f"{MODULE}.weight", *dense}
    assert source.tensor(f"{MODULE}.weight").shape == source.shape(f"{MODULE}.weight") == (32, 64)
    source = ServedTensors.of(write(awq(Matrix(64, 32, 16, 4)), AWQ), torch.float16)
    assert source.tensor(f"{MODULE}.weight").shape == source.shape(f"{MODULE}.weight") == (32, 64)


def test_a_module_that_was_not_to_be_converted_but_is_quantized_is_refused(write):
    for part in (MODULE, "mlp.up_proj", "up_proj", "model.layers.0"):
        checkpoint = write(awq(Matrix(64, 32, 16, 4)), AWQ | {"modules_to_not_convert": [part]})
        with pytest.raises(ModelCorruptError, match="declared dense but stored quantized"):
            linear_of(checkpoint, MODULE, torch.float32)


def test_without_a_declaration_packed_tensors_are_refused(write):
    checkpoint = write(gptq(Matrix(64, 32, 16, 4)), None)
    for attempt in (
        lambda: linear_of(checkpoint, MODULE, torch.float32),
        lambda: ServedTensors.of(checkpoint, torch.float32),
    ):
        with pytest.raises(ModelCorruptError, match="declared dense but stored quantized"):
            attempt()


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 3},
        {"bits": 4.0},
        {"checkpoint_format": "marlin"},
        {"pack_dtype": "int64"},
        {"dynamic": {"-:.*mlp": {}}},
        {"is_marlin_format": True},
        {"surprise": 1},
        {"quant_method": "hqq"},
        {"quant_method": None},
        {"quant_method": ["gptq"]},
    ],
)
def test_gptq_that_is_not_implemented_is_refused(write, change):
    checkpoint = write(gptq(Matrix(64, 32, 16, 4)), GPTQ | change)
    with pytest.raises(ModelUnsupportedError, match=r"config\.json: quantization_config: not implemented"):
        linear_of(checkpoint, MODULE, torch.float32)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "gemv"},
        {"zero_point": False},
        {"bits": 8},
        {"backend": "llm-awq"},
        {"sym": True},
        {"do_fuse": True},
    ],
)
def test_awq_that_is_not_implemented_is_refused(write, change):
    checkpoint = write(awq(Matrix(64, 32, 16, 4)), AWQ | change)
    with pytest.raises(ModelUnsupportedError, match=r"config\.json: quantization_config: not implemented"):
        linear_of(checkpoint, MODULE, torch.float32)


@pytest.mark.parametrize(
    "change",
    [
        {"group_size": 0},
        {"group_size": "16"},
        {"sym": 1},
        {"desc_act": None},
        {"w_bit": 4},
        {"lm_head": "no"},
        {"format": "gptq_v2"},
    ],
)
def test_settings_that_make_no_sense_are_refused(write, change):
    method = AWQ if "w_bit" in change else GPTQ
    checkpoint = write(gptq(Matrix(64, 32, 16, 4)), method | change)
    with pytest.raises(ModelCorruptError, match=r"config\.json: quantization_config"):
        linear_of(checkpoint, MODULE, torch.float32)


def test_a_zero_point_that_the_first_format_cannot_hold_is_refused(write):
    """0 less one: kernels read it back as 0 or as 16."""
    matrix = Matrix(64, 32, 16, 4)
    matrix.zeros[1][5] = 0
    with pytest.raises(ModelUnsupportedError, match="zero point"):
        dequantized(write(gptq(matrix), GPTQ), MODULE, torch.float16)
    second = write(gptq(matrix, less=0), GPTQ | {"checkpoint_format": "gptq_v2"})
    assert torch.equal(dequantized(second, MODULE, torch.float16), matrix.weight(torch.float16))


def test_symmetric_weights_with_other_zero_points_are_refused(write):
    """vLLM would ignore them, GPTQModel would not."""
    with pytest.raises(ModelCorruptError, match="qzeros are not 8 throughout"):
        dequantized(write(gptq(Matrix(64, 32, 16, 4)), GPTQ | {"sym": True}), MODULE, torch.float16)


def wrong(**tensors):
    return lambda parts: parts.update(tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: parts.pop("scales"), "scales is missing"),
        (lambda parts: parts.pop("qzeros"), "qzeros is missing"),
        (wrong(qweight=torch.zeros(8, 32)), "is torch.float32, not torch.int32"),
        (wrong(qweight=torch.zeros(7, 32, dtype=torch.int32)), "not "),
        (wrong(qweight=torch.zeros(8, dtype=torch.int32)), "not matrices"),
        (wrong(qzeros=torch.zeros(4, 3, dtype=torch.int32)), r"qzeros is \[4, 3\], not \[4, 4\]"),
        (wrong(scales=torch.ones(5, 32)), r"scales is \[5, 32\], not \[4, 32\]"),
        (wrong(scales=torch.full((4, 32), float("nan"))), "NaN, infinity or negative"),
        (wrong(scales=torch.full((4, 32), -1.0)), "NaN, infinity or negative"),
        (wrong(g_idx=torch.zeros(63, dtype=torch.int32)), r"g_idx is \[63\]"),
        (wrong(g_idx=torch.arange(64, dtype=torch.int32) % 4), "reorders columns, which is not declared"),
    ],
)
def test_tensors_that_contradict_each_other_are_refused(write, change, message):
    parts = gptq(Matrix(64, 32, 16, 4))
    change(parts)
    with pytest.raises(ModelCorruptError, match=message):
        dequantized(write(parts, GPTQ), MODULE, torch.float16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: parts.pop("g_idx"), "g_idx is missing, but columns are declared reordered"),
        (wrong(g_idx=torch.full((64,), 4, dtype=torch.int32)), "names a group outside 0 to 3"),
        (wrong(g_idx=torch.full((64,), -1, dtype=torch.int32)), "names a group outside 0 to 3"),
    ],
)
def test_an_order_that_is_none_is_refused(write, change, message):
    parts = gptq(Matrix(64, 32, 16, 4))
    change(parts)
    with pytest.raises(ModelCorruptError, match=message):
        dequantized(write(parts, GPTQ | {"desc_act": True}), MODULE, torch.float16)


def test_tensors_of_another_layout_are_refused(write):
    parts = awq(Matrix(64, 32, 16, 4)) | {"g_idx": torch.arange(64, dtype=torch.int32) // 16}
    with pytest.raises(ModelUnsupportedError, match="g_idx with the layout awq"):
        dequantized(write(parts, AWQ), MODULE, torch.float16)
