"""What this machine can do, and what share of it the reference core reaches: the figures of `audit bench`.

A rate alone says nothing: each is printed beside the limit it could reach here, measured in the same run.
Every figure is the best of several repetitions: other work on a machine only ever makes a figure worse.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch

from auditor.reference.batch import Span
from auditor.reference.decode import Ask, generate
from auditor.reference.device import CPU, on_gpu
from auditor.reference.head import score_rows
from auditor.reference.layers.linear import Linear
from auditor.reference.model import Model
from auditor.reference.noise import Draws, noise_scheme
from auditor.reference.sampling import SamplingSpec
from auditor.reference.side_by_side import side_by_side
from auditor.reference.support import backend_of

PACK = 2048
ROWS = 64
_COPY_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Measurement:
    """One line of the table.

    Attributes:
        value: in `unit`. limit: what this machine could reach in the same unit, None without one.
    """

    name: str
    value: float
    unit: Literal["GFLOP/s", "GB/s", "tokens/s", "us/row", "%"]
    limit: float | None = None


def best_seconds(work: Callable[[], object], repetitions: int = 5, *, device: torch.device = CPU) -> float:
    """The quickest of several runs after one to warm up, each to the end of what it started on a device."""

    def finish() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    finish()
    quickest = float("inf")
    for _ in range(repetitions):
        start = time.perf_counter()
        finish()
        quickest = min(quickest, time.perf_counter() - start)
    return quickest


def matmul_peak(dtype: torch.dtype, device: torch.device = CPU) -> float:
    """GFLOP/s of the best product of square matrices that torch offers here."""
    size = 8192 if on_gpu(device) else 2048
    x, weight = (torch.randn(size, size).to(device, dtype) for _ in range(2))
    ways: list[Callable[[], object]] = [lambda: torch.matmul(x, weight), lambda: Linear(weight)(x)]
    return 2 * size**3 / min(best_seconds(way, 8, device=device) for way in ways) / 1e9


def copy_bandwidth(device: torch.device = CPU) -> float:
    """GB/s read plus written by a copy that no cache holds."""
    source = torch.zeros(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / best_seconds(lambda: target.copy_(source), device=device) / 1e9


def products_flops(model: Model, rows: int, head_rows: int) -> int:
    """Floating-point operations of the matrix products of so many rows, without attention and norms."""
    config = model.config
    embeddings = {config.embedding, config.head}
    matrices = sum(
        t.numel() for name, t in model.parameters.items() if t.dim() == 2 and name not in embeddings
    )
    return 2 * (rows * matrices + head_rows * config.vocab_size * config.hidden_size)


def measure(model: Model) -> list[Measurement]:
    """Machine, prefill, head, scoring and decoding of one model, in its dtype."""
    peak = matmul_peak(model.dtype, model.device)
    found = [
        Measurement(f"matmul, {str(model.dtype).removeprefix('torch.')}", peak, "GFLOP/s"),
        Measurement("memory copy", copy_bandwidth(model.device), "GB/s"),
    ]
    found += _prefill(model, peak)
    found += _scoring(model, peak)
    found += [_decoding(model, batch) for batch in (1, 8, 32)]
    return found


def _prefill(model: Model, peak: float) -> list[Measurement]:
    length = min(256, model.config.context_length)
    generator = torch.Generator().manual_seed(0)
    spans = [
        Span(torch.randint(0, model.config.vocab_size, (length,), generator=generator))
        for _ in range((model.pack_tokens if on_gpu(model.device) else PACK) // length)
    ]
    lanes = model.calls_at_once
    packs = [spans] * (2 * lanes if lanes > 1 else 1)
    rows = length * len(spans) * len(packs)
    seconds = best_seconds(lambda: list(side_by_side(model.forward, packs, lanes)), 3, device=model.device)
    rate = products_flops(model, rows, 0) / seconds / 1e9
    return [
        Measurement(f"prefill, {len(packs)} x {len(spans)} x {length}", rows / seconds, "tokens/s"),
        Measurement("prefill, products", rate, "GFLOP/s", peak),
    ]


def _scoring(model: Model, peak: float) -> list[Measurement]:
    """Microseconds a row of the head and of noise and scores, and what these add to a token's whole cost."""
    generator = torch.Generator().manual_seed(0)
    device = model.device
    hidden = torch.randn(ROWS, model.config.hidden_size, generator=generator).to(device, model.dtype)
    head = best_seconds(lambda: model.logits(hidden, fetch=False), device=device)
    forward = products_flops(model, ROWS, 0) / peak / 1e9  # at the machine's limit: the harder comparison
    logits = model.logits(hidden, fetch=False)
    logits *= 3 / logits.std()
    backend = backend_of(logits)
    scheme = noise_scheme("gumbel-pos-v1")
    found = [Measurement("head product", head / ROWS * 1e6, "us/row")]
    for name, spec in (
        ("no filter", SamplingSpec()),
        ("top-k 50, top-p 0.95", SamplingSpec(top_k=50, top_p=0.95)),
    ):
        draws = Draws(scheme, 1, 0, model.config.vocab_size).take(ROWS)
        score = partial(score_rows, logits, spec=spec, scheme=scheme, draws=draws, backend=backend)
        claimed = score(claimed=np.zeros(ROWS, np.int64)).winner
        seconds = best_seconds(partial(score, claimed=claimed), device=device)
        found.append(Measurement(f"noise and scores, {name}", seconds / ROWS * 1e6, "us/row"))
        share = 100 * seconds / (forward + head)
        found.append(Measurement(f"... added to forward and head, {name}", share, "%", 10.0))
    return found


def _decoding(model: Model, batch: int) -> Measurement:
    scheme, tokens = noise_scheme("gumbel-pos-v1"), 16
    prompt = tuple(range(min(32, model.config.context_length - tokens)))
    spec = SamplingSpec(ignore_eos=True)
    asks = [Ask(prompt, len(prompt), spec, seed, scheme, tokens, frozenset()) for seed in range(batch)]
    seconds = best_seconds(lambda: list(generate(model, asks, batch_size=batch)), 2)
    return Measurement(f"decode, batch {batch}", batch * tokens / seconds, "tokens/s")
