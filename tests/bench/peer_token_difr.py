"""Time the scoring functions of token-difr 0.1.2 on hidden states that our own scorer gets too.

Run by the peer's own interpreter, `.venv-peer/bin/python`; prints one JSON object. The work file (.npz or
.safetensors) holds `hidden` [n, d], `head` [V, d], `claimed` [n] and optionally `seed`, `temperature`,
`top_k` (0: off), `top_p`, `threads` and `lengths` (tokens of each sequence, in order; without it all rows are
one sequence).

What runs is the released code, fed as its `local.verify_outputs` feeds it, one sequence at a time:

* without top-k the rows are the dense logits: nothing is charged for turning vLLM's answer into a tensor;
* with top-k they are what `prompt_logprobs=top_k` returns, the k largest logits and the claimed token's, made
  dense by `local._prompt_logprobs_to_tensor`; that step is timed apart (`rows_seconds`).

`verify_outputs` always passes top-k and top-p tensors, so it sorts every row twice even when both are off.
`--kind` passes None instead where a filter is off, which the functions accept: the fastest use they allow.

The exponential noise is drawn by `_verify_vllm_gumbel_max` itself; its generator follows the logits' device,
here the CPU. Claims made with another noise scheme cost the same to score; `--honest` claims the tokens that
the peer's own noise picks, so that a match rate of 1 shows that the functions are driven as meant.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Self

import numpy as np
import torch
from resident_memory import peak_of
from token_difr.common import TokenMetrics, _get_probs, _verify_vllm_gumbel_max, compute_metrics_summary
from token_difr.local import _prompt_logprobs_to_tensor

SCALARS = {"seed": int, "temperature": float, "top_k": int, "top_p": float, "threads": int}


@dataclass(frozen=True)
class Work:
    """The rows to score."""

    hidden: torch.Tensor
    head: torch.Tensor
    claimed: torch.Tensor
    seed: int = 42
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    threads: int = 1
    lengths: tuple[int, ...] = ()
    kind: bool = False

    def filters(self, n: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The top-k and top-p tensors for n tokens."""
        top_k = torch.full((n,), self.top_k or self.head.shape[0])
        top_p = torch.full((n,), self.top_p)
        return (
            None if self.kind and not self.top_k else top_k,
            None if self.kind and self.top_p == 1 else top_p,
        )


@dataclass(frozen=True)
class Logprob:
    """The one field of vLLM's Logprob that the peer reads."""

    logprob: float


def load(path: Path) -> Work:
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        arrays = load_file(path)
    else:
        with np.load(path) as archive:
            arrays = dict(archive)
    lengths = [int(n) for n in np.atleast_1d(arrays.pop("lengths", len(arrays["claimed"])))]
    if sum(lengths) != len(arrays["claimed"]) or len(arrays["hidden"]) != len(arrays["claimed"]):
        raise SystemExit(f"{path}: hidden, claimed and lengths disagree about the number of tokens")
    scalars = {name: kind(arrays[name].item()) for name, kind in SCALARS.items() if name in arrays}
    return Work(
        hidden=torch.from_numpy(np.asarray(arrays["hidden"], np.float32)),
        head=torch.from_numpy(np.asarray(arrays["head"], np.float32)),
        claimed=torch.from_numpy(np.asarray(arrays["claimed"], np.int64)),
        lengths=tuple(lengths),
        **scalars,
    )


def example(n: int, width: int, vocabulary: int, threads: int) -> Work:
    """Random rows whose logits have a standard deviation of 3."""
    rng = torch.Generator().manual_seed(0)
    return Work(
        hidden=torch.randn(n, width, generator=rng),
        head=torch.randn(vocabulary, width, generator=rng) * (3 / width**0.5),
        claimed=torch.randint(vocabulary, (n,), generator=rng),
        threads=threads,
        lengths=(n,),
    )


def vllm_rows(logits: torch.Tensor, claimed: torch.Tensor, k: int) -> list[dict[int, Logprob] | None]:
    """Emulate `prompt_logprobs=k` in raw-logits mode: the claimed token first, then the k largest."""
    values, ids = logits.topk(min(k, logits.shape[1]), dim=1)
    own = logits.gather(1, claimed[:, None]).squeeze(1)
    return [
        {y: Logprob(z), **{i: Logprob(v) for i, v in zip(row_ids, row_values, strict=True)}}
        for y, z, row_ids, row_values in zip(
            claimed.tolist(), own.tolist(), ids.tolist(), values.tolist(), strict=True
        )
    ]


@dataclass
class Clock:
    """Wall and processor seconds of one part."""

    wall: float = 0.0
    cpu: float = 0.0

    def __enter__(self) -> Self:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._wall
        self.cpu += time.process_time() - self._cpu


@dataclass
class Pass:
    """One scoring of all sequences."""

    rows: Clock
    score: Clock
    rest: Clock
    metrics: list[list[TokenMetrics]]


@torch.inference_mode()
def score(work: Work, sequences: list[tuple[object, torch.Tensor]]) -> Pass:
    """The body of `verify_outputs`' loop; `sequences` are (dense logits or vLLM rows, claimed ids)."""
    done = Pass(Clock(), Clock(), Clock(), [])
    vocabulary = work.head.shape[0]
    for given, claimed in sequences:
        n = len(claimed)
        logits = given
        if not isinstance(given, torch.Tensor):
            with done.rows:
                logits = _prompt_logprobs_to_tensor(
                    given, start_idx=0, n_tokens=n, device=torch.device("cpu"), vocab_size=vocabulary
                )
        top_k, top_p = work.filters(n)
        with done.score:
            probs = _get_probs(logits, work.temperature, top_k, top_p)
            picked, gumbel_ranks, margins = _verify_vllm_gumbel_max(
                temperature=work.temperature,
                seed=work.seed,
                logits_JV=logits,
                probs_JV=probs,
                gold_col_idx_J=claimed,
                top_k_tensor_J=top_k,
                top_p_tensor_J=top_p,
            )
        with done.rest:  # what verify_outputs does in line: ranks, and one object a token
            own = logits[torch.arange(n), claimed]
            ranks = (logits > own.unsqueeze(1)).sum(dim=1).float()
            own_probs = probs.gather(1, claimed.view(-1, 1)).squeeze(1)
            done.metrics.append(
                [
                    TokenMetrics(
                        exact_match=bool(int(picked[j]) == int(claimed[j])),
                        prob=float(own_probs[j].item()),
                        margin=float(margins[j].item()),
                        logit_rank=float(ranks[j].item()),
                        gumbel_rank=float(gumbel_ranks[j].item()),
                    )
                    for j in range(n)
                ]
            )
    return done


@torch.inference_mode()
def honest(work: Work, logits: torch.Tensor) -> torch.Tensor:
    """The tokens that the peer's noise picks."""
    n = len(logits)
    top_k, top_p = work.filters(n)
    probs = _get_probs(logits, work.temperature, top_k, top_p)
    picked, _, _ = _verify_vllm_gumbel_max(
        work.temperature, work.seed, logits, probs, torch.zeros(n, dtype=torch.long), top_k, top_p
    )
    return picked


def run(work: Work, repeats: int, *, own_claims: bool = False) -> dict[str, object]:
    torch.set_num_threads(work.threads)
    n, vocabulary = len(work.claimed), work.head.shape[0]
    matmul = []
    for _ in range(repeats + 1):
        with torch.inference_mode(), Clock() as clock:
            logits = work.hidden @ work.head.T
        matmul.append(clock.wall)
    rows = list(logits.split(work.lengths))
    claims = [honest(work, part) for part in rows] if own_claims else list(work.claimed.split(work.lengths))
    if work.top_k:
        rows = [vllm_rows(part, own, work.top_k) for part, own in zip(rows, claims, strict=True)]
        del logits
    sequences = list(zip(rows, claims, strict=True))

    head = [(rows[0][:4], claims[0][:4])]
    score(work, head)  # loads what is loaded lazily, so that the peak is the scoring's own
    peak = peak_of(lambda: score(work, sequences))
    passes = [score(work, sequences) for _ in range(repeats)]
    torch.set_num_threads(1)
    single = passes if work.threads == 1 else [score(work, sequences) for _ in range(repeats)]
    summary = compute_metrics_summary(passes[-1].metrics)
    score_cpu = statistics.median(p.score.cpu for p in single)
    return {
        "peer": f"token-difr {version('token-difr')}",
        "functions": (
            ["local._prompt_logprobs_to_tensor"] * bool(work.top_k)
            + ["common._get_probs", "common._verify_vllm_gumbel_max"]
        ),
        "filters": ["none" if given is None else "tensor" for given in work.filters(1)],
        "tokens": n,
        "sequences": len(work.lengths),
        "vocab": vocabulary,
        "width": work.head.shape[1],
        "temperature": work.temperature,
        "top_k": work.top_k,
        "top_p": work.top_p,
        "threads": work.threads,
        "repeats": repeats,
        "matmul_seconds": statistics.median(matmul[1:]),
        "rows_seconds": statistics.median(p.rows.wall for p in passes),
        "score_seconds": statistics.median(p.score.wall for p in passes),
        "score_cpu_seconds": score_cpu,
        "rest_seconds": statistics.median(p.rest.wall for p in passes),
        "tokens_per_second_per_core": n / score_cpu,
        "peak_bytes": peak,
        "logits_bytes": 4 * vocabulary * max(work.lengths),
        "match_rate": summary["exact_match_rate"],
        "avg_margin": summary["avg_margin"] if summary["infinite_margin_rate"] < 1 else None,
        "infinite_margin_rate": summary["infinite_margin_rate"],
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("work", nargs="?", type=Path, help="work file, .npz or .safetensors")
    source.add_argument("--example", nargs=3, type=int, metavar=("ROWS", "WIDTH", "VOCAB"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--honest", action="store_true", help="claim the tokens which the peer's noise picks")
    parser.add_argument("--kind", action="store_true", help="no tensors for filters that are off")
    for name, kind in SCALARS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="overrides the work file")
    options = parser.parse_args()
    work = load(options.work) if options.work else example(*options.example, threads=1)
    changes = {name: value for name in SCALARS if (value := getattr(options, name)) is not None}
    changes["kind"] = options.kind
    work = Work(**{**work.__dict__, **changes})
    print(json.dumps(run(work, options.repeats, own_claims=options.honest)))


if __name__ == "__main__":
    main()
