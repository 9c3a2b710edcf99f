"""Checkpoints that the compressed-tensors package itself compresses: read to the same bits, or refused."""

from __future__ import annotations

import copy

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.errors import ModelCorruptError, ModelUnsupportedError
from auditor.reference.checkpoint.compressed_tensors import read_compressed_tensors
from auditor.reference.checkpoint.declared import Activations, Scheme, is_safe_pattern
from auditor.reference.checkpoint.files import Checkpoint
from auditor.reference.checkpoint.products import QuantizedLinear
from auditor.reference.checkpoint.quantized import ServedTensors, dequantized, linear_of, scheme_of
from auditor.reference.checkpoint.settings import Settings

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.3.mlp.down_proj", "model.layers.4.mlp.up_proj")
INT8, FLOAT8 = {"num_bits": 8, "type": "int"}, {"num_bits": 8, "type": "float"}
TOKEN = {"dynamic": True, "strategy": "token", "observer": None}
TENSOR = {"dynamic": False, "strategy": "tensor"}
PACKED = [
    {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "group" if size else "channel",
        "group_size": size,
    }
    for bits in (4, 8)
    for symmetric in (True, False)
    for size in (None, 32, 128)
]
CODES = {
    "int8 weights by channel": ("int-quantized", INT8 | {"strategy": "channel"}, None),
    "int8 weights by group, asymmetric": (
        "naive-quantized",
        INT8 | {"strategy": "group", "group_size": 64, "symmetric": False},
        None,
    ),
    "int8 weights by tensor": ("int-quantized", INT8 | {"strategy": "tensor"}, None),
    "float8 weights by channel": ("naive-quantized", FLOAT8 | {"strategy": "channel"}, None),
    "float8 weights by block": (
        "float-quantized",
        FLOAT8 | {"strategy": "block", "block_structure": [128, 128]},
        None,
    ),
    "W8A8 int8 by channel and token": ("int-quantized", INT8 | {"strategy": "channel"}, INT8 | TOKEN),
    "W8A8 int8 by tensor, static": ("int-quantized", INT8 | {"strategy": "tensor"}, INT8 | TENSOR),
    "W8A8 float8 by channel and token": ("float-quantized", FLOAT8 | {"strategy": "channel"}, FLOAT8 | TOKEN),
    "W8A8 float8 by tensor, static": ("float-quantized", FLOAT8 | {"strategy": "tensor"}, FLOAT8 | TENSOR),
    "W8A8 float8 by block and group": (
        "float-quantized",
        FLOAT8 | {"strategy": "block", "block_structure": [128, 128]},
        FLOAT8 | {"dynamic": True, "strategy": "group", "group_size": 128, "observer": None},
    ),
}


def compress(config, scale_dtype):
    """What the library's own compressor makes of one weight under the configuration's only group."""
    group = config["config_groups"]["group_0"]
    scheme = QuantizationScheme.model_validate(copy.deepcopy(group))
    compressor = BaseCompressor.get_value_from_registry(group["format"])

    def one(weight):
        scale, zero = calculate_qparams(*extremes(weight.float(), scheme.weights), scheme.weights)
        state = {"weight": weight.float(), "weight_scale": scale.to(scale_dtype), "weight_zero_point": zero}
        state = compressor.compress(state, scheme)
        if scheme.input_activations is not None and not scheme.input_activations.dynamic:
            state["input_scale"] = torch.tensor([0.05])
        return state

    def undo(state):
        return compressor.decompress({name: tensor.clone() for name, tensor in state.items()}, scheme)[
            "weight"
        ]

    return one, undo


def extremes(weight, args):
    rows, columns = weight.shape
    high, wide = {
        "tensor": (rows, columns),
        "channel": (1, columns),
        "group": (1, args.group_size),
        "block": tuple(args.block_structure or ()),
    }[args.strategy]
    blocks = weight.view(rows // high, high, columns // wide, wide)
    shape = () if args.strategy == "tensor" else (rows // high, columns // wide)
    return blocks.amin((1, 3)).reshape(shape), blocks.amax((1, 3)).reshape(shape)


def compare(directory, undo, dtypes):
    checkpoint = Checkpoint.open(directory)
    for module in MODULES:
        stored = {
            name.rpartition(".")[2]: checkpoint.tensor(name)
            for name in checkpoint.names
            if name.startswith(f"{module}.")
        }
        theirs = undo(stored)
        for dtype in dtypes:
            ours = dequantized(checkpoint, module, dtype)
            assert ours.dtype == dtype
            assert torch.equal(ours, theirs.to(dtype)), module


@pytest.mark.parametrize("weights", PACKED, ids=str)
@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float16], ids=str)
def test_packed_weights_are_decompressed_as_the_library_does(quantize_demo, ct_config, weights, scale_dtype):
    config = ct_config("pack-quantized", weights)
    one, undo = compress(config, scale_dtype)
    directory = quantize_demo(one, config)
    compare(directory, undo, [scale_dtype])
    assert isinstance(linear_of(Checkpoint.open(directory), MODULES[0], scale_dtype), torch.Tensor)


@pytest.mark.parametrize("case", CODES)
@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float32], ids=str)
def test_stored_codes_are_decompressed_as_the_library_does(quantize_demo, ct_config, case, scale_dtype):
    form, weights, inputs = CODES[case]
    config = ct_config(form, weights, inputs)
    one, undo = compress(config, scale_dtype)
    directory = quantize_demo(one, config)
    compare(directory, undo, [scale_dtype] if scale_dtype == torch.bfloat16 else [torch.float32])
    linear = linear_of(Checkpoint.open(directory), MODULES[1], torch.bfloat16)
    assert isinstance(linear, torch.Tensor if inputs is None else QuantizedLinear)


def test_scales_are_rounded_to_the_compute_dtype_before_they_multiply_packed_codes(quantize_demo, ct_config):
    """float16 scales in a bfloat16 model: vLLM's parameters are of the model's dtype."""
    config = ct_config("pack-quantized", PACKED[2])
    one, _ = compress(config, torch.float16)
    checkpoint = Checkpoint.open(quantize_demo(one, config))
    module = MODULES[0]
    scale = checkpoint.tensor(f"{module}.weight_scale").bfloat16().float().repeat_interleave(128, 1)
    words = checkpoint.tensor(f"{module}.weight_packed")
    codes = torch.stack([(words >> 4 * place) & 15 for place in range(8)], 2).flatten(1) - 8
    assert torch.equal(dequantized(checkpoint, module, torch.bfloat16), (codes * scale).bfloat16())


def test_a_model_reads_dense_names_and_products(quantize_demo, ct_config, demo_tensors):
    config = ct_config("pack-quantized", PACKED[2])
    one, _ = compress(config, torch.bfloat16)
    source = ServedTensors.of(Checkpoint.open(quantize_demo(one, config)), torch.bfloat16)
    assert source.names == demo_tensors.keys()
    for name, tensor in demo_tensors.items():
        read = source.tensor(name)
        assert read.shape == source.shape(name) == tensor.shape
        assert read.dtype == source.dtype(name) == torch.bfloat16
        assert torch.equal(read, tensor) != name.endswith("_proj.weight")
    assert source.product(MODULES[0], torch.bfloat16) is None
    config = ct_config(*CODES["W8A8 int8 by channel and token"])
    one, _ = compress(config, torch.bfloat16)
    source = ServedTensors.of(Checkpoint.open(quantize_demo(one, config, "w8a8")), torch.bfloat16)
    product = source.product(MODULES[0], torch.bfloat16)
    assert product.codes.shape == demo_tensors[f"{MODULES[0]}.weight"].shape
    assert source.parts(MODULES[0]) == {f"{MODULES[0]}.weight", f"{MODULES[0]}.weight_scale"} < source.names
    assert source.dtype(f"{MODULES[0]}.weight") == torch.int8
    assert torch.equal(source.tensor("model.norm.weight"), demo_tensors["model.norm.weight"])


def read(config, where="config.json"):
    settings = Settings(config, "quantization_config", where)
    settings.take("quant_method")
    return read_compressed_tensors(settings)


def test_declared_schemes(ct_config):
    def scheme(case):
        return read(ct_config(*CODES[case])).groups[0][1]

    assert scheme("W8A8 int8 by channel and token") == Scheme(
        "codes", "int8", 8, True, (1, 0), Activations("int8")
    )
    assert scheme("W8A8 float8 by tensor, static") == Scheme(
        "codes", "float8", 8, True, (0, 0), Activations("float8", static=True)
    )
    assert scheme("W8A8 float8 by block and group") == Scheme(
        "codes", "float8", 8, True, (128, 128), Activations("float8", group=128)
    )
    packed = read(ct_config("pack-quantized", PACKED[5])).groups[0][1]
    assert packed == Scheme("packed", "int8", 4, False, (1, 128))


def test_strategies_that_are_not_written_follow_from_the_group_size(ct_config):
    for size, block in ((None, (0, 0)), (-1, (1, 0)), (64, (1, 64))):
        form = "int-quantized"
        assert (
            read(ct_config(form, INT8 | {"strategy": None, "group_size": size})).groups[0][1].block == block
        )


UNSUPPORTED = {
    "a format": lambda c: c.update(format="marlin-24"),
    "a group's format": lambda c: c["config_groups"]["group_0"].update(format="nvfp4-pack-quantized"),
    "weights that are not compressed yet": lambda c: c.update(quantization_status="frozen"),
    "sparsity": lambda c: c.update(sparsity_config={"format": "sparse-24-bitmask"}),
    "transforms": lambda c: c.update(transform_config={"config_groups": {"v": {}}}),
    "an unknown field": lambda c: c.update(surprise=1),
    "rounded outputs": lambda c: c["config_groups"]["group_0"].update(output_activations=INT8),
    "dynamic weights": lambda c: weights_of(c).update(dynamic=True),
    "reordered columns": lambda c: weights_of(c).update(actorder="group"),
    "asymmetric weights under rounded inputs": lambda c: weights_of(c).update(symmetric=False),
    "weights by group under rounded inputs": lambda c: weights_of(c).update(strategy="group", group_size=128),
    "weights by token": lambda c: weights_of(c).update(strategy="token"),
    "four bits, not packed": lambda c: weights_of(c).update(num_bits=4),
    "two bits": lambda c: weights_of(c).update(num_bits=2),
    "asymmetric inputs": lambda c: inputs_of(c).update(symmetric=False),
    "inputs of another type": lambda c: inputs_of(c).update(type="float"),
    "inputs of four bits": lambda c: inputs_of(c).update(num_bits=4),
    "one dynamic scale for a batch": lambda c: inputs_of(c).update(strategy="tensor"),
    "inputs by group": lambda c: inputs_of(c).update(strategy="group", group_size=128),
    "a rounded scale of inputs": lambda c: inputs_of(c).update(scale_dtype="torch.float8_e4m3fn"),
    "packed weights under rounded inputs": lambda c: c["config_groups"]["group_0"].update(
        format="pack-quantized"
    ),
    "a pattern that never ends": lambda c: c.update(ignore=["re:(a+)+$"]),
    "integer keys and values": lambda c: c.update(kv_cache_scheme=weights_of(c) | {"strategy": "tensor"}),
    "dynamic keys and values": lambda c: c.update(
        kv_cache_scheme=weights_of(c) | {"strategy": "tensor", "type": "float", "dynamic": True}
    ),
}
CORRUPT = {
    "no groups": lambda c: c.pop("config_groups"),
    "a list of groups": lambda c: c.update(config_groups=[]),
    "a preset's name": lambda c: c.update(config_groups={"W8A8": ["Linear"]}),
    "no targets but a number": lambda c: c["config_groups"]["group_0"].update(targets=7),
    "no weights": lambda c: c["config_groups"]["group_0"].update(weights=None),
    "symmetric by half": lambda c: weights_of(c).update(symmetric=0.5),
    "a group of a list": lambda c: weights_of(c).update(group_size=[]),
    "a group of no size": lambda c: weights_of(c).update(strategy="group", group_size=0),
    "a group by channel": lambda c: weights_of(c).update(group_size=128),
    "a block by channel": lambda c: weights_of(c).update(block_structure=[128, 128]),
    "a block of one side": lambda c: weights_of(c).update(strategy="block", block_structure=[128]),
    "a block of no side": lambda c: weights_of(c).update(strategy="block", block_structure=[128, 0]),
    "names that are numbers": lambda c: c.update(ignore=[1]),
}


def weights_of(config):
    return config["config_groups"]["group_0"]["weights"]


def inputs_of(config):
    return config["config_groups"]["group_0"]["input_activations"]


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_not_implemented_is_refused(ct_config, case):
    config = ct_config(*CODES["W8A8 int8 by channel and token"])
    UNSUPPORTED[case](config)
    with pytest.raises(
        ModelUnsupportedError, match=r"config\.json: quantization_config.*: not implemented: .+"
    ):
        read(config)


@pytest.mark.parametrize("case", CORRUPT)
def test_what_makes_no_sense_is_refused(ct_config, case):
    config = ct_config(*CODES["W8A8 int8 by channel and token"])
    CORRUPT[case](config)
    with pytest.raises(ModelCorruptError, match=r"config\.json: quantization_config"):
        read(config)


def test_float8_refuses_what_only_integers_can(ct_config):
    config = ct_config(*CODES["W8A8 float8 by block and group"])
    inputs_of(config).update(group_size=64)
    with pytest.raises(ModelUnsupportedError, match="activations by group with weights by block"):
        read(config)
    config = ct_config("float-quantized", FLOAT8 | {"strategy": "channel", "symmetric": False})
    with pytest.raises(ModelUnsupportedError, match="asymmetric float"):
        read(config)
    with pytest.raises(ModelUnsupportedError, match="packed float"):
        read(ct_config("pack-quantized", FLOAT8 | {"strategy": "channel"}))


def two_groups(ct_config, first, second, ignore=()):
    config = ct_config("mixed-precision", INT8 | {"strategy": "channel"}, ignore=list(ignore))
    group = config["config_groups"].pop("group_0") | {"format": "int-quantized"}
    other = copy.deepcopy(group) | {"format": "pack-quantized"}
    other["weights"] |= {"num_bits": 4}
    config["config_groups"] = {"a": group | {"targets": first}, "b": other | {"targets": second}}
    return read(config)


def test_names_win_over_patterns_and_patterns_over_classes(ct_config):
    module = "model.layers.0.mlp.up_proj"
    named = two_groups(ct_config, ["re:.*mlp"], [module])
    assert [scheme.bits for scheme in named.schemes(module)] == [4]
    assert [scheme.bits for scheme in named.schemes("model.layers.1.mlp.up_proj")] == [8]
    assert named.schemes("model.layers.1.self_attn.q_proj") == []
    classes = two_groups(ct_config, ["Linear"], [r"re:.*\.up_proj$"])
    assert [scheme.bits for scheme in classes.schemes(module)] == [4]
    assert [scheme.bits for scheme in classes.schemes("model.layers.1.mlp.down_proj")] == [8]
    assert classes.schemes("model.embed_tokens") == []


def test_ignored_modules_are_dense_whatever_targets_them(ct_config):
    module = "model.layers.0.mlp.up_proj"
    for ignore in ([module], [r"re:.*mlp"], ["Linear"]):
        assert two_groups(ct_config, ["Linear"], [module], ignore).schemes(module) == []


def test_two_schemes_for_one_module_are_refused(ct_config, write_checkpoint, demo_tensors):
    config = ct_config("mixed-precision", INT8 | {"strategy": "channel"})
    group = config["config_groups"].pop("group_0") | {"format": "int-quantized"}
    other = copy.deepcopy(group)
    other["weights"]["strategy"] = "tensor"
    config["config_groups"] = {"a": group, "b": other}
    checkpoint = Checkpoint.open(write_checkpoint(demo_tensors, config))
    with pytest.raises(ModelUnsupportedError, match="two schemes are declared for model"):
        scheme_of(checkpoint, MODULES[0], read(config))


@pytest.mark.parametrize(
    ("pattern", "safe"),
    [
        (r".*self_attn\.(q|k|v)_proj$", True),
        (r"model\.layers\.[0-9]+\.mlp\..*", True),
        (r"(a+)+$", False),
        (r"(a|a)*b", False),
        (r"(?:a?){30}a", False),
        (r".*.*.*.*.*b", False),
        (r"(", False),
        ("a" * 501, False),
    ],
)
def test_patterns_that_may_never_end_are_told_from_others(pattern, safe):
    assert is_safe_pattern(pattern) == safe


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.sampled_from(["int", "float", "token", "group", "re:(", ""]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["weights", "format"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_configuration_crashes_the_reader(ct_config, data):
    """Whatever stands in a field, reading ends with a declaration or with an error that names the file."""
    config = ct_config(*CODES[data.draw(st.sampled_from(sorted(CODES)))])
    place = config
    while True:
        field = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[field], dict) or not place[field] or data.draw(st.booleans()):
            break
        place = place[field]
    place[field] = data.draw(VALUES)
    try:
        read(config)
    except (ModelUnsupportedError, ModelCorruptError) as error:
        assert "\n" not in str(error)
        assert error.where == "config.json"
