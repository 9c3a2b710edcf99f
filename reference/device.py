"""Where a model computes: on the CPU, to the same bits in any company, or on a GPU, without that promise.

A model's weights, hidden states, keys and values, and its logits until they are scored, lie on its device.
Token ids, tables of slots and everything that is sampled or stored are the CPU's.
"""

from __future__ import annotations

import re

import torch

from auditor.errors import OptionError

CPU = torch.device("cpu")


def on_gpu(device: torch.device) -> bool:
    """Whether a device is not the CPU."""
    return device.type != "cpu"


def compute_device(name: str) -> torch.device:
    """The device that a user names: `cpu`, `cuda` (the first GPU) or `cuda:N`.

    Raises:
        OptionError: another name, or a GPU that is not there.
    """
    if name == "cpu":
        return CPU
    if not re.fullmatch(r"cuda(:\d{1,3})?", name):
        raise OptionError(f"device {name}", fix="choose cpu, cuda or cuda:N")
    device = torch.device(name)
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        seen = f"torch {torch.__version__} sees {count} GPU{'' if count == 1 else 's'}"
        raise OptionError(f"device {name}: {seen}", fix="choose cpu, or install torch for your GPU")
    return device
