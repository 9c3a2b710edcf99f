"""Checkpoints of the demo model, quantized as providers quantize theirs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

TARGET = Path(__file__).parents[3] / "reference" / "demo" / "target"


@pytest.fixture(scope="session")
def demo_tensors():
    return load_file(TARGET / "model.safetensors")


@pytest.fixture
def write_checkpoint(tmp_path):
    """`write(tensors, quantization_config)` makes a model directory, the rest of it the demo model's."""

    def write(tensors, quantization=None, folder="model"):
        directory = tmp_path / folder
        shutil.copytree(TARGET, directory)
        config = json.loads((directory / "config.json").read_text())
        if quantization is not None:
            config["quantization_config"] = quantization
        (directory / "config.json").write_text(json.dumps(config))
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors"
        )
        return directory

    return write


@pytest.fixture
def quantize_demo(demo_tensors, write_checkpoint):
    """`quantize(one, quantization_config)` writes the demo model, each projection as `one` makes it.

    `one(weight)` gives the tensors of a module under their last names.
    """

    def quantize(one, quantization, folder="model"):
        tensors = {}
        for name, tensor in demo_tensors.items():
            module, _, part = name.rpartition(".")
            if module.endswith("_proj") and part == "weight":
                tensors |= {f"{module}.{own}": value for own, value in one(tensor).items()}
            else:
                tensors[name] = tensor
        return write_checkpoint(tensors, quantization, folder)

    return quantize


def declared(form, weights, inputs=None, **more):
    """A `quantization_config` of compressed-tensors as llm-compressor writes it, every field spelt out."""
    common = {
        "actorder": None,
        "block_structure": None,
        "dynamic": False,
        "group_size": None,
        "observer_kwargs": {},
    }
    common |= {"observer": "minmax", "scale_dtype": None, "zp_dtype": None, "symmetric": True, "num_bits": 8}
    return {
        "config_groups": {
            "group_0": {
                "format": form,
                "input_activations": None if inputs is None else common | inputs,
                "output_activations": None,
                "targets": ["Linear"],
                "weights": common | weights,
            }
        },
        "format": form,
        "global_compression_ratio": None,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.17.0",
    } | more


@pytest.fixture(scope="session")
def ct_config():
    return declared
