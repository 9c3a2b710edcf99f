"""A device that is not the CPU, computed on the CPU: what is on it meets only what is on it, as on a GPU.

Every operation is the CPU's own on the tensors inside, so values can be compared; a tensor of the CPU beside one of
the device, or its data read without `.cpu()`, is an error. FlashAttention's call stands for itself: it is worked out
here from what `torch.nn.attention.varlen` documents.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.nn.attention import varlen  # noqa: F401  registers the operator
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NAME = "separate"
_COPIES = {torch.ops.aten.copy_.default}
_FLASH = torch.ops.torch_attn._varlen_attn.default


class _Hook(backend_registration._DummyPrivateUse1Hook):
    """Other tests of the process, and the libraries they use, are to see no accelerator."""

    def is_available(self):
        return False


class _Module(backend_registration._DummyBackendModule):
    def is_available(self):
        return False


@cache
def separate_device() -> torch.device:
    """The device; its name is registered once a process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module(), _Hook())
    return torch.device(NAME, 0)


class Separate(torch.Tensor):
    """A tensor on the device; `inner` is its value."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=separate_device(),
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"Separate({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class OnSeparateDevice(TorchDispatchMode):
    """While it is entered, tensors can be made on the device and moved to it; `calls` counts operators."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[str(function)] = self.calls.get(str(function), 0) + 1
        return _run(function, args, kwargs or {})


def _run(function, args, kwargs):
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, Separate)]
    here = [x for x in tensors if not isinstance(x, Separate) and x.dim()]
    if there and here and function not in _COPIES:
        raise RuntimeError(f"{function}: tensors of two devices")
    asked = kwargs.get("device")
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = (tree_map(lambda x: x.inner if isinstance(x, Separate) else x, x) for x in (args, kwargs))
    out = _flash(*args, **kwargs) if function is _FLASH else function(*args, **kwargs)
    if function._schema.is_mutable and there and isinstance(out, torch.Tensor):
        return next(x for x in tensors if (x.inner if isinstance(x, Separate) else x) is out)
    if torch.device(asked).type == "cpu" if asked is not None else not there:
        return out
    return tree_map(lambda x: Separate(x) if isinstance(x, torch.Tensor) else x, out)


def _flash(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *rest, **options):
    """Causal from the last query and key back, `window_size` (left, 0), grouped heads."""
    names = ("is_causal", "scale", "window_size", "enable_gqa", "seqused_k", "block_table", "num_splits")
    given = {**dict(zip(names, rest, strict=False)), **options}
    left, right = given["window_size"]
    assert right == 0
    assert given["enable_gqa"]
    assert given["num_splits"] == 1, "split keys make a sequence's bits depend on the longest one"
    assert query.dtype in (torch.float16, torch.bfloat16)
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert int(cu_seq_q[-1]) == len(query)
    assert int(cu_seq_k[-1]) == len(key)
    assert max_q == int(cu_seq_q.diff().max())
    assert max_k == int(cu_seq_k.diff().max())
    out = torch.empty_like(query)
    group = query.shape[1] // key.shape[1]
    for q0, q1, k0, k1 in zip(cu_seq_q, cu_seq_q[1:], cu_seq_k, cu_seq_k[1:], strict=False):
        q, k, v = (x.double().transpose(0, 1) for x in (query[q0:q1], key[k0:k1], value[k0:k1]))
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        age = torch.arange(int(k1 - k0) - int(q1 - q0), int(k1 - k0))[:, None] - torch.arange(int(k1 - k0))
        seen = (age >= 0) & (age <= left) if left >= 0 else age >= 0
        scores = (q @ k.transpose(1, 2) * given["scale"]).masked_fill(~seen, -torch.inf)
        out[q0:q1] = (scores.softmax(-1) @ v).transpose(0, 1).to(out.dtype)
    lse = torch.empty(query.shape[1], len(query))
    return out, lse, torch.empty(2)
