"""Repetition, presence and frequency penalties over a tile of one request's positions.

Row r of a tile predicts output token `start + r`; what it penalises is a function of the logged prefix.
Engines differ in what counts as having appeared, and in the arithmetic (all of it float32):

| engine | repetition looks at | the other two look at | arithmetic |
|---|---|---|---|
| `vllm` | prompt and output | output | z > 0: times 1/r, else times r; minus f * count, minus p |
| `transformers` | prompt and output | not offered | z < 0: times r, else divided by r |
| `llama.cpp` | last 64 output tokens | the same | z <= 0: times r, else divided by r; minus (count * f + p) |

Sources: vLLM 0.32 `apply_penalties` and `apply_repetition_penalties_torch`; transformers 5.19
`RepetitionPenaltyLogitsProcessor`; llama.cpp `llama_sampler_penalties_apply`. llama-cpp-python never shows
the prompt to its sampler, so there the window holds output only (no recorded trace confirms it yet).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from auditor.errors import SamplingUnsupportedError
from auditor.reference.noise import FilterOrder

I64 = npt.NDArray[np.int64]

LLAMA_CPP_WINDOW = 64
"""llama.cpp's `penalty_last_n` (and llama-cpp-python's `last_n_tokens_size`) unless set otherwise."""


@dataclass(frozen=True, slots=True)
class Penalties:
    """The three penalties of one request, and whose arithmetic applies them."""

    repetition: float
    presence: float
    frequency: float
    order: FilterOrder

    def check(self) -> None:
        """Refuse what the engine does not offer.

        Raises:
            SamplingUnsupportedError: presence or frequency for transformers, or an engine not in the table.
        """
        if self.order not in ("vllm", "transformers", "llama.cpp"):
            raise SamplingUnsupportedError(f"penalties of a {self.order} sampler cannot be replayed yet")
        if self.order == "transformers" and (self.presence, self.frequency) != (0.0, 0.0):
            raise SamplingUnsupportedError("transformers has no presence or frequency penalty to replay")


def penalise_reference(logits: Tensor, penalties: Penalties, prompt: I64, output: I64, start: int) -> Tensor:
    """As `penalise`, a position at a time over the whole vocabulary."""
    rows, vocabulary = logits.shape
    penalised = logits.clone()
    for row in range(rows):
        before = output[: start + row]
        if penalties.order == "llama.cpp":
            before = before[max(0, len(before) - LLAMA_CPP_WINDOW) :]
        count = torch.from_numpy(np.bincount(before, minlength=vocabulary))
        seen = count > 0
        if penalties.order != "llama.cpp":
            seen = seen | torch.from_numpy(np.bincount(prompt, minlength=vocabulary) > 0)
        penalised[row] = _penalised(penalised[row], count, seen, penalties)
    return penalised


def penalise(logits: Tensor, penalties: Penalties, prompt: I64, output: I64, start: int) -> Tensor:
    """Penalise a tile: only the columns of tokens that appeared are touched, counts grow row by row.

    Args:
        logits: float32 [R, V] on the CPU.
        prompt: int64 [P].
        output: int64, at least the `start + R - 1` output tokens before the last row.
        start: output index of the first row.

    Returns:
        float32 [R, V], a copy.
    """
    window = LLAMA_CPP_WINDOW if penalties.order == "llama.cpp" else None
    looks_at_prompt = window is None and penalties.repetition != 1.0
    first = 0 if window is None else max(0, start - window)
    before = output[first : start + len(logits) - 1]
    ids = np.unique(np.concatenate([prompt, before]) if looks_at_prompt else before)
    penalised = logits.clone()
    if not len(ids):
        return penalised
    count = torch.from_numpy(_counts(before, ids, start - first, len(logits), window))
    seen = count > 0
    if looks_at_prompt:
        seen = seen | torch.from_numpy(np.isin(ids, prompt))
    columns = torch.from_numpy(ids)
    penalised[:, columns] = _penalised(penalised[:, columns], count, seen, penalties)
    return penalised


def _counts(before: I64, ids: I64, start: int, rows: int, window: int | None) -> npt.NDArray[np.int32]:
    """How often each of `ids` stands in (the last `window` of) `before[: start + r]`, int32 [rows, ids]."""
    column = np.searchsorted(ids, before)
    if window is None:
        count = np.zeros((rows, len(ids)), np.int32)
        count[0] = np.bincount(column[:start], minlength=len(ids))
        count[np.arange(1, rows), column[start : start + rows - 1]] = 1
        return np.asarray(count.cumsum(axis=0, dtype=np.int32))
    upto = np.zeros((len(before) + 1, len(ids)), np.int32)  # row n: in the first n tokens
    upto[np.arange(1, len(before) + 1), column] = 1
    upto = upto.cumsum(axis=0, dtype=np.int32)
    end = start + np.arange(rows)
    return np.asarray(upto[end] - upto[np.maximum(end - window, 0)])


def _penalised(z: Tensor, count: Tensor, seen: Tensor, penalties: Penalties) -> Tensor:
    """The engine's float32 arithmetic, element by element; tensors of one shape."""
    repetition = torch.tensor(penalties.repetition, dtype=torch.float32)
    frequency = torch.tensor(penalties.frequency, dtype=torch.float32)
    presence = torch.tensor(penalties.presence, dtype=torch.float32)
    if penalties.order == "vllm":
        scaled = z * torch.where(z > 0, 1.0 / repetition, repetition)
        z = torch.where(seen, scaled, z)
        z = z - frequency * count
        return z - presence * (count > 0)
    upwards = z < 0 if penalties.order == "transformers" else z <= 0
    z = torch.where(seen, torch.where(upwards, z * repetition, z / repetition), z)
    if penalties.order == "transformers":
        return z
    return torch.where(seen, z - (count * frequency + presence), z)
