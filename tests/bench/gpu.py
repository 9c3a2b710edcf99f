"""The reference core on a GPU: beside the GPU's own limit, transformers' forward, and the CPU's scores.

    make bench-gpu      or      .venv/bin/python tests/bench/gpu.py --shape small --device cpu    (a look at the script)

A randomly initialised model (8B: 32 layers, 4,096 wide, 128,256 tokens, bfloat16) is written once and loaded as any
checkpoint is. Forward: the same sequences packed by us, and padded in batches of eight by transformers with sdpa.
Head: logits, noise and scores by our kernels, and step by step in torch. Scores: the demo model on the CPU and on the
GPU, in float32 and in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import machine
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from auditor.benchmark import best_seconds, matmul_peak, products_flops
from auditor.reference.batch import Span
from auditor.reference.demo.prompts import TARGET
from auditor.reference.device import CPU, compute_device
from auditor.reference.head import score_rows
from auditor.reference.model import Model
from auditor.reference.noise import Draws, noise_scheme
from auditor.reference.request import Request
from auditor.reference.runner import Runner
from auditor.reference.sampling import SamplingSpec
from auditor.reference.support import backend_of

SHAPES = {
    "8b": {"layers": 32, "hidden": 4_096, "inner": 14_336, "heads": 32, "kv": 8, "vocab": 128_256},
    "small": {"layers": 2, "hidden": 256, "inner": 640, "heads": 4, "kv": 2, "vocab": 4_096},
}
LENGTHS = (1_024, 512, 768, 1_536, 256, 2_048, 896, 1_152)
HEAD_ROWS, CHUNK = 512, 256
SCHEME = noise_scheme("gumbel-pos-v1")


def write_model(folder: Path, shape: dict[str, int]) -> None:
    """A Llama of random weights, a file a layer."""
    folder.mkdir(parents=True, exist_ok=True)
    hidden, inner, dim = shape["hidden"], shape["inner"], shape["hidden"] // shape["heads"]
    generator = torch.Generator().manual_seed(0)

    def matrix(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).mul_(0.02).bfloat16()

    index: dict[str, str] = {}

    def save(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, f"{name}.safetensors"))

    ones = torch.ones(hidden).bfloat16()
    ends = {name: matrix(shape["vocab"], hidden) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    save("ends", ends | {"model.norm.weight": ones})
    sizes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (shape["kv"] * dim, hidden),
        "self_attn.v_proj": (shape["kv"] * dim, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    for number in range(shape["layers"]):
        own = {part: matrix(*size) for part, size in sizes.items()}
        own |= {norm: ones.clone() for norm in ("input_layernorm", "post_attention_layernorm")}
        save(f"layer-{number}", {f"model.layers.{number}.{part}.weight": t for part, t in own.items()})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape["vocab"],
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv"],
        "max_position_embeddings": 8_192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))


def dtype_on(device: torch.device) -> torch.dtype:
    """Half precision, but on a CPU that may have no instructions for it."""
    return torch.float32 if device == CPU else torch.bfloat16


@torch.no_grad()
def our_forward(model: Model, sequences: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Tokens a second, and the share of the best matrix product."""
    device = model.device
    rows = sum(map(len, sequences))
    seconds = best_seconds(lambda: model.forward([Span(tokens) for tokens in sequences]), device=device)
    share = products_flops(model, rows, 0) / seconds / 1e9 / matmul_peak(model.dtype, device)
    return {"what": "forward, ours", "tokens/s": rows / seconds, "of matmul peak": share}


@torch.no_grad()
def their_forward(folder: Path, device: torch.device, sequences: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Tokens a second of transformers' layers on the same rows, padded."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype_on(device), attn_implementation="sdpa")
    layers = model.to(device).eval().model
    padded = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True).to(device)
    lengths = torch.tensor([len(tokens) for tokens in sequences])
    mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long().to(device)
    run = lambda: layers(input_ids=padded, attention_mask=mask, use_cache=False)  # noqa: E731
    return {
        "what": "forward, transformers",
        "tokens/s": int(lengths.sum()) / best_seconds(run, device=device),
    }


def forwards(model: Model, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Both, on the same sequences."""
    generator = torch.Generator().manual_seed(1)
    sequences = [
        torch.randint(0, model.config.vocab_size, (length,), generator=generator) for length in lengths
    ]
    ours, theirs = our_forward(model, sequences), their_forward(model.directory, model.device, sequences)
    return [ours, theirs | {"ours over it": ours["tokens/s"] / theirs["tokens/s"]}]


@torch.no_grad()
def heads(model: Model) -> list[dict[str, Any]]:
    """Microseconds a row from hidden states to scores: our kernels, and torch step by step."""
    device, vocabulary, width = model.device, model.config.vocab_size, model.config.hidden_size
    hidden = torch.randn(HEAD_ROWS, width, generator=torch.Generator().manual_seed(2))
    hidden = hidden.to(device, model.dtype)
    spec, nobody = SamplingSpec(), np.zeros(HEAD_ROWS, np.int64)
    keys = Draws(SCHEME, 1, 0, vocabulary).take(HEAD_ROWS)

    def product() -> torch.Tensor:
        return model.logits(hidden, fetch=False)

    def ours() -> object:
        logits = product()
        return score_rows(logits, nobody, spec, SCHEME, keys, backend=backend_of(logits))

    def plainly() -> object:
        scores = []
        for start in range(0, HEAD_ROWS, CHUNK):
            logits = model.logits(hidden[start : start + CHUNK], fetch=False)
            uniform = torch.rand(logits.shape, device=device, dtype=torch.float32)
            raced = logits - torch.log(-torch.log(uniform))
            first = raced.topk(2).values
            scores.append((first[:, 0] - raced[:, 0], torch.logsumexp(logits, 1), first[:, 0] - first[:, 1]))
        return scores

    alone, fused, steps = (best_seconds(work, device=device) for work in (product, ours, plainly))
    return [
        {"what": "head's product", "us/row": alone / HEAD_ROWS * 1e6},
        {"what": "with noise and scores, ours", "us/row": fused / HEAD_ROWS * 1e6},
        {
            "what": "with noise and scores, in torch",
            "us/row": steps / HEAD_ROWS * 1e6,
            "ours over it": steps / fused,
        },
    ]


def agreement(device: torch.device) -> list[dict[str, Any]]:
    """How far the demo model's scores on the device are from the CPU's, in float32."""
    generator = np.random.default_rng(3)
    made = [generator.integers(5, 4096, 200).tolist() for _ in range(24)]
    specs = (SamplingSpec(ignore_eos=True), SamplingSpec(ignore_eos=True, top_k=50, top_p=0.95))
    requests = [
        Request(tuple(ids[:80]), tuple(ids[80:]), specs[n % 2], n, SCHEME) for n, ids in enumerate(made)
    ]
    expected = list(Runner(Model.load(TARGET)).score(requests))
    found = []
    for dtype in (torch.float32, dtype_on(device)):
        got = list(Runner(Model.load(TARGET, dtype=dtype, device=device)).score(requests))
        apart = max(float(np.abs(a.margin - b.margin).max()) for a, b in zip(got, expected, strict=True))
        same = np.mean([np.mean(a.winner == b.winner) for a, b in zip(got, expected, strict=True)])
        name = f"scores beside the CPU's float32, {str(dtype).removeprefix('torch.')}"
        found.append({"what": name, "margins apart": apart, "same winner": float(same)})
    return found


def report(rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*columns, title="the reference core on a GPU")
    for row in rows:
        cells = (row.get(name, "") for name in columns)
        table.add_row(*(cell if isinstance(cell, str) else f"{cell:,.4g}" for cell in cells))
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=list(SHAPES), default="8b")
    parser.add_argument("--json", type=Path, help="store the numbers there")
    options = parser.parse_args()
    device = compute_device(options.device)
    lengths = [length // 32 for length in LENGTHS] if device == CPU else LENGTHS
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, options.shape)
        write_model(folder, SHAPES[options.shape])
        model = Model.load(folder, dtype=dtype_on(device), device=device)
        rows = [*agreement(device), *forwards(model, lengths), *heads(model)]
    report(rows)
    named = "CPU" if device == CPU else torch.cuda.get_device_name(device)
    print(f"{named}; torch {torch.__version__}; shape {options.shape}")
    if options.json:
        options.json.write_text(json.dumps({**machine(), "device": named, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
