"""Hidden states inside vLLM: the row that each sampled token's logits were made from, shown to the recorder.

vLLM hands no hidden states to plug-ins. But its runner calls the model's `compute_logits` once a step with
one row for each request in the batch, in the batch's order, and those rows are the states after the final
norm. So the loaded model's `compute_logits` is wrapped: rows pass through untouched.

Calls that are none of a step (profiling, prompt log-likelihoods, which follow the step's own) are told apart
by the recorder, which looks at the first call after the batch was reported and at no other.

Self-test, before the first request: `compute_logits` of a few made-up rows must be their product with the
checkpoint's own output matrix, row for row. Else its input is not the state that an auditor compares, or its
rows are not the batch's, and recording refuses to start.

Sources: `vllm/v1/worker/gpu_model_runner.py` and `cpu_model_runner.py` (0.32).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from auditor.errors import AuditError, CaptureError

_ROWS = 3
# Of the largest logit: products of half precision, and tensor-parallel sums in another order.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}


def watch_states(
    runners: Iterable[type], directory: Path, on_rows: Callable[[torch.Tensor], None]
) -> Callable[[], None]:
    """Wrap `load_model` of vLLM's runner classes, so that models loaded from now on show their rows.

    Args:
        directory: of the checkpoint that is about to be loaded.
        on_rows: shown [rows, hidden] at each call of `compute_logits`; it must not change them.

    Returns:
        A function that puts the classes back; models that were loaded stay wrapped.
    """
    saved = [(runner, runner.__dict__["load_model"]) for runner in runners if "load_model" in runner.__dict__]

    def wrapped(load_model: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(load_model)
        def load(self: Any, *arguments: Any, **options: Any) -> Any:
            result = load_model(self, *arguments, **options)
            model = self.get_model()
            if not hasattr(model.compute_logits, "shows_rows"):
                check_rows_are_states(model.compute_logits, directory, model_dtype(model))
                model.compute_logits = _showing(model.compute_logits, on_rows)
            return result

        return load

    def put_back() -> None:
        for runner, load_model in saved:
            runner.load_model = load_model  # type: ignore[attr-defined]

    for runner, load_model in saved:
        runner.load_model = wrapped(load_model)  # type: ignore[attr-defined]
    return put_back


def _showing(
    compute_logits: Callable[..., Any], on_rows: Callable[[torch.Tensor], None]
) -> Callable[..., Any]:
    @functools.wraps(compute_logits)
    def compute(hidden: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        on_rows(hidden)
        return compute_logits(hidden, *arguments, **options)

    compute.shows_rows = True  # type: ignore[attr-defined]
    return compute


def model_dtype(model: Any) -> torch.dtype:
    """What a loaded model computes in."""
    found: torch.dtype = next(p.dtype for p in model.parameters() if p.dtype in _TOLERANCE)
    return found


def check_rows_are_states(
    compute_logits: Callable[[torch.Tensor], torch.Tensor | None], directory: Path, dtype: torch.dtype
) -> None:
    """The self-test.

    Raises:
        CaptureError: the logits are not the product with the output matrix, or there is none to compare with.
    """
    fix = "unset AUDITOR_CAPTURE_FINGERPRINTS, and record tokens only"
    try:
        head = _output_matrix(directory)
    except AuditError as error:
        raise CaptureError(f"no output matrix to test hidden states with: {error}", fix=fix) from error
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(_ROWS, head.shape[1], generator=generator).to(dtype)
    with torch.no_grad():
        logits = compute_logits(rows)
    expected = rows.float() @ head.to(dtype).float().T
    if logits is None or logits.shape[0] != _ROWS or logits.shape[1] < expected.shape[1]:
        raise CaptureError("this vLLM's compute_logits does not answer row for row", fix=fix)
    worst = float((logits[:, : expected.shape[1]].float() - expected).abs().max() / expected.abs().max())
    if not worst <= _TOLERANCE[dtype]:
        raise CaptureError(
            "this model's logits are not the product of its states with the output matrix (off by "
            f"{worst:.2g} of the largest): what would be fingerprinted is not what an auditor compares",
            fix=fix,
        )


def _output_matrix(directory: Path) -> torch.Tensor:
    from auditor.reference.checkpoint.files import Checkpoint  # noqa: PLC0415  # only where states are recorded
    from auditor.reference.config import read_config  # noqa: PLC0415

    config, checkpoint = read_config(directory), Checkpoint.open(directory)
    return checkpoint.tensor(config.embedding if config.tie_word_embeddings else config.head)
