"""A model on another device than the CPU: nothing meets across, and scores are those of the CPU.

No GPU is needed: `separate_device.py` keeps two devices apart on one processor. What only a GPU can show (its kernels'
rounding, its speed) is `make bench-gpu`'s.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from auditor.errors import OptionError
from auditor.reference.batch import Span
from auditor.reference.checkpoint.key_value import Float8KeyValue
from auditor.reference.demo.prompts import TARGET
from auditor.reference.device import compute_device
from auditor.reference.model import Model
from auditor.reference.noise import noise_scheme
from auditor.reference.policies import Policy
from auditor.reference.request import Request
from auditor.reference.runner import Runner
from auditor.reference.sampling import SamplingSpec
from tests.reference.separate_device import OnSeparateDevice, separate_device
from tests.reference.test_policies import LINES

SCHEME = noise_scheme("gumbel-pos-v1")


@pytest.fixture(scope="module")
def requests():
    generator = np.random.default_rng(5)
    common = generator.integers(5, 4096, 60).tolist()
    made = []
    for n in range(6):
        ids = [*common, *generator.integers(5, 4096, 10 + 7 * n).tolist()]
        spec = SamplingSpec(ignore_eos=True, top_p=0.9 if n % 2 else 1.0)
        made.append(Request(tuple(ids[:64]), tuple(ids[64:]), spec, n, SCHEME))
    return made


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 2e-4), (torch.bfloat16, 0.3)])
@pytest.mark.parametrize("prefix_bytes", [0, 1 << 24])
def test_scores_are_those_of_the_cpu(requests, dtype, apart, prefix_bytes):
    expected = list(Runner(Model.load(TARGET, dtype=dtype)).score(requests))
    with OnSeparateDevice() as device:
        model = Model.load(TARGET, dtype=dtype, device=separate_device())
        assert all(tensor.device == separate_device() for tensor in model.parameters.values())
        runner = Runner(model, prefix_bytes=prefix_bytes)
        got = list(runner.score(requests))
    for one, other in zip(got, expected, strict=True):
        assert np.abs(one.margin - other.margin).max() < apart
    assert bool(runner.prefixes.found) == bool(prefix_bytes)
    flash = device.calls.get("torch_attn._varlen_attn.default", 0)
    assert bool(flash) == (dtype == torch.bfloat16)


@pytest.mark.parametrize("line", LINES)
def test_a_policy_is_the_same_on_a_device_of_its_own(line):
    tokens = torch.from_numpy(np.random.default_rng(1).integers(10, 400, 90))
    policy, span = Policy.parse(line), Span(tokens, wanted=40)
    expected = policy.applied(Model.load(TARGET)).forward([span])
    with OnSeparateDevice():
        model = policy.applied(Model.load(TARGET, device=separate_device()))
        got = model.forward([span]).cpu()
    # Codes of a rounded cache are a step apart where a last bit is.
    assert float((got - expected).abs().max() / expected.abs().max()) < 2e-3


@pytest.mark.parametrize("heads", [0, 2])
def test_a_float8_cache_has_its_scales_where_its_keys_are(heads):
    keys, values = torch.randn(2, 7, 2, 16, generator=torch.Generator().manual_seed(1))
    scales = torch.rand(1, heads or 1)[: 1 if heads else 0] + 0.01
    hook = Float8KeyValue(scales, scales)
    expected = hook(0, keys, values)
    with OnSeparateDevice():
        got = hook(0, keys.to(separate_device()), values.to(separate_device()))
        assert all(torch.equal(one.cpu(), other) for one, other in zip(got, expected, strict=True))


def test_a_gpu_that_is_not_there_is_one_clear_line():
    with pytest.raises(OptionError, match=r"device cuda:99: torch .* sees"):
        compute_device("cuda:99")
    with pytest.raises(OptionError, match="device tpu"):
        compute_device("tpu")
    assert compute_device("cpu").type == "cpu"
