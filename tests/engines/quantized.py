"""A 4-bit copy of a checkpoint, as compressed-tensors' `pack-quantized` (W4A16, group 128, rounded to nearest).

Written by hand so that nothing but safetensors is needed: every `*_proj.weight` becomes `weight_packed` (eight
columns an int32, column 8j+k in bits 4k..4k+3), `weight_scale` (max|w|/7 of a group) and `weight_shape`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

GROUP = 128


def pack(weight):
    """bfloat16 [rows, columns] -> packed int32 [rows, columns / 8], scales bfloat16 [rows, columns / 128]."""
    rows, columns = weight.shape
    groups = weight.float().reshape(rows, columns // GROUP, GROUP)
    scales = (groups.abs().amax(-1, keepdim=True) / 7).clamp(min=1e-8).to(torch.bfloat16)
    steps = (groups / scales.float()).round().clamp(-8, 7).to(torch.int64) + 8
    nibbles = steps.reshape(rows, columns // 8, 8) << torch.arange(0, 32, 4)
    packed = nibbles.sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32), scales.squeeze(-1)


def rounded(weight):
    """The weight that `pack` holds, back in bfloat16."""
    packed, scales = pack(weight)
    steps = (packed.to(torch.int64)[..., None] >> torch.arange(0, 32, 4)) & 15
    groups = (steps - 8).reshape(weight.shape[0], -1, GROUP).float() * scales.float()[..., None]
    return groups.reshape(weight.shape).to(torch.bfloat16)


def write_rounded(source: Path, target: Path) -> None:
    """The same weights stored in bfloat16, for engines without a 4-bit product; `target` must not exist."""
    shutil.copytree(source, target)
    tensors = {
        name: rounded(tensor) if name.endswith("_proj.weight") else tensor
        for name, tensor in load_file(source / "model.safetensors").items()
    }
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def write_w4a16(source: Path, target: Path) -> None:
    """Write the packed copy; `target` must not exist."""
    shutil.copytree(source, target)
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = tensor
            continue
        packed, scales = pack(tensor)
        stem = name.removesuffix("weight")
        tensors |= {
            f"{stem}weight_packed": packed,
            f"{stem}weight_scale": scales,
            f"{stem}weight_shape": torch.tensor(tensor.shape),
        }
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": GROUP,
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
            }
        },
    }
    (target / "config.json").write_text(json.dumps(config, indent=2))
