"""Keys and values through a float8 cache, and the scales that checkpoints store for it."""

from __future__ import annotations

import pytest
import torch

from auditor.errors import ModelCorruptError
from auditor.reference.checkpoint.files import Checkpoint
from auditor.reference.checkpoint.key_value import Float8KeyValue
from auditor.reference.checkpoint.quantized import ServedTensors, key_value_of

FLOAT8 = torch.float8_e4m3fn
SCHEME = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
LAYERS = 5


def code_values():
    """Every finite number of float8, rising, without the second zero."""
    values = torch.arange(256, dtype=torch.uint8).view(FLOAT8).float()
    return values[torch.isfinite(values)].unique()


@pytest.mark.parametrize("toward_zero", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_numbers_come_back_as_the_nearest_code_or_the_next_towards_zero(toward_zero, dtype):
    keys = (torch.randn(64, 2, 16, generator=torch.Generator().manual_seed(3)) * 100).to(dtype)
    keys[0, 0] = torch.linspace(-2.0, 2.0, 16).to(dtype) * 2**-9
    back, _ = Float8KeyValue.unscaled(toward_zero=toward_zero)(0, keys, keys)
    grid = code_values()
    wide, found = keys.float().flatten(), back.float().flatten()
    assert back.dtype == dtype
    assert bool(torch.isin(found, grid).all())
    if toward_zero:
        below = torch.searchsorted(grid, wide.abs(), right=True) - 1
        assert torch.equal(found.abs(), grid[below])
    else:
        assert torch.equal((found - wide).abs(), (grid[:, None] - wide).abs().amin(0))


@pytest.mark.parametrize("toward_zero", [False, True])
def test_what_is_too_large_becomes_the_largest_and_codes_stay(toward_zero):
    hook = Float8KeyValue.unscaled(toward_zero=toward_zero)
    large = torch.tensor([500.0, -1e30, float("inf"), 448.0]).view(1, 1, 4)
    assert hook(0, large, large)[0].flatten().tolist() == [448.0, -448.0, 448.0, 448.0]
    grid = code_values().view(1, 1, -1)
    assert torch.equal(hook(0, grid, grid)[1], grid)


def test_each_layer_and_head_has_its_own_scale():
    keys = torch.tensor([1.0, 3.0]).view(1, 2, 1)
    hook = Float8KeyValue(torch.tensor([[1.0, 1.0], [1.5, 1.1]]), torch.tensor([[2.0], [1.1]]))
    expected = (keys.flatten() / torch.tensor([1.5, 1.1])).to(FLOAT8).float() * torch.tensor([1.5, 1.1])
    assert torch.equal(hook(1, keys, keys)[0].flatten(), expected)
    assert torch.equal(hook(0, keys, keys)[0], keys)
    assert hook(1, keys, keys)[1].flatten().tolist() == pytest.approx([0.9375 * 1.1, 2.75 * 1.1], rel=1e-6)


@pytest.fixture
def served(write_checkpoint, demo_tensors, ct_config):
    def write(scales, scheme=SCHEME, folder="model"):
        config = ct_config("int-quantized", {"type": "int", "strategy": "channel"}, kv_cache_scheme=scheme)
        config["config_groups"] = {}
        return Checkpoint.open(write_checkpoint(demo_tensors | scales, config, folder))

    return write


def scales(place, value=0.5):
    return {
        f"model.layers.{layer}.self_attn.{place.format(x=x)}": torch.tensor(value + layer)
        for layer in range(LAYERS)
        for x in ("k", "v")
    }


@pytest.mark.parametrize(
    "place", ["{x}_scale", "{x}_proj.output_scale", "attn.{x}_scale", "{x}_proj.{x}_scale"]
)
def test_stored_scales_are_found_where_tools_put_them(served, demo_tensors, place):
    checkpoint = served(scales(place))
    hook = key_value_of(checkpoint, LAYERS)
    assert hook.key_scales.tolist() == [[0.5 + layer] for layer in range(LAYERS)]
    assert torch.equal(hook.key_scales, hook.value_scales)
    assert ServedTensors.of(checkpoint, torch.float32).names == demo_tensors.keys()


def test_without_scales_they_are_one(served):
    hook = key_value_of(served({}), LAYERS, toward_zero=True)
    assert hook.toward_zero
    keys = torch.full((1, 1, 1), 1.1875)
    assert hook(4, keys, keys)[0].item() == 1.125


def test_a_checkpoint_that_declares_no_cache_has_none(served):
    assert key_value_of(served({}, None), LAYERS) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.popitem(), "for every layer alike"),
        (
            lambda found: found.update({"model.layers.0.self_attn.k_scale": torch.ones(2)}),
            "for every layer alike",
        ),
        (
            lambda found: found.update({"model.layers.0.self_attn.k_scale": torch.tensor(0.0)}),
            "no positive scale",
        ),
        (
            lambda found: found.update({"model.layers.0.self_attn.k_scale": torch.tensor(float("nan"))}),
            "no positive",
        ),
        (lambda found: found.update({"model.layers.0.self_attn.k_scale": torch.ones(0)}), "no positive"),
        (lambda found: found.update({"model.layers.0.self_attn.attn.k_scale": torch.tensor(1.0)}), "both"),
    ],
)
def test_scales_that_are_incomplete_or_no_scales_are_refused(served, change, message):
    stored = scales("{x}_scale")
    change(stored)
    with pytest.raises(ModelCorruptError, match=message):
        key_value_of(served(stored), LAYERS)
