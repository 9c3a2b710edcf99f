"""The recorder inside vLLM: an entry point of the group `vllm.logits_processors` that changes no logit.

Inactive, at no cost but an empty call a step, unless `AUDITOR_CAPTURE` names a file ending in .jsonl.

What vLLM does that a recorder must survive (0.28 and 0.32):

* It loads this class under both model runners, and V2 aborts its start over a class of the V1 interface. So
  the class has both interfaces; under V2 it stays inactive, and refuses to start when it should record.
* Under speculative decoding it leaves plug-ins out without a word. But the front end calls `validate_params`
  of each request in any case: there, requests are refused while `AUDITOR_CAPTURE` is set and no engine on
  this machine records to that file (`append_log.is_recorded`).
* `AUDITOR_CAPTURE_FINGERPRINTS=int8:16` adds an activation fingerprint to each trace (`vllm_states.py`). The
  projection is drawn here, so the provider knows it: the weaker mode, and the auditor's report says so.
* Each tensor-parallel worker samples the same tokens: rank 0 records.
* A request that ends is written at the engine's next step, which comes even when nothing else is to be done.
  A server that is told to stop kills its workers at once: what is in flight then is lost, unless it is given
  time (`--shutdown-timeout 30`). Processes that end by themselves write the rest in a finalizer of
  multiprocessing, for they end without `atexit`.

A request that cannot be written is counted and named on standard error; it does not stop the engine. A file
that cannot be written ends the recording, and with it, by the second point, the serving.

Sources: `vllm/v1/sample/logits_processor/`, `vllm/v1/worker/gpu/sample/logits_processor/`,
`vllm/v1/engine/input_processor.py`, `vllm/v1/worker/gpu_input_batch.py`.
"""

from __future__ import annotations

import os
import sys
import time
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import vllm
from vllm.platforms import current_platform
from vllm.v1.sample.logits_processor import BatchUpdateBuilder, LogitsProcessor, MoveDirectionality

from auditor.capture.append_log import AppendLog, is_recorded
from auditor.capture.final_states import recorded_kind
from auditor.capture.rows import Rows, Served
from auditor.capture.vllm_engine import RecordedEngine, recorded_engine
from auditor.capture.vllm_selftest import DRAWS, check_noise, check_rows
from auditor.capture.vllm_states import watch_states
from auditor.capture.vllm_trace import has_states, trace_line
from auditor.errors import AuditError, CaptureError

if TYPE_CHECKING:
    from auditor.fingerprints.activation_difr import FingerprintKind

try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as LogitsProcessorV2
except ImportError:  # releases before it had a V2 interface
    LogitsProcessorV2 = object

VARIABLE = "AUDITOR_CAPTURE"
FINGERPRINTS = "AUDITOR_CAPTURE_FINGERPRINTS"
_V1_ARGUMENTS = 2


def capture_file() -> Path | None:
    """The file to record to, None when recording is off."""
    named = os.environ.get(VARIABLE)
    return Path(named).absolute() if named else None


def fingerprint_kind() -> FingerprintKind | None:
    """The kind of fingerprint that traces are to carry, None when they carry none.

    Raises:
        CaptureError: the variable names no kind, or states that are not seen here.
    """
    text = os.environ.get(FINGERPRINTS)
    return recorded_kind(text, where=FINGERPRINTS) if text else None


class TraceRecorder(LogitsProcessor, LogitsProcessorV2):  # type: ignore[misc]  # vllm is not installed here
    """vLLM's view: V1 constructs it with (config, device, pin_memory), V2 with (config, state)."""

    def __init__(self, vllm_config: Any, *rest: Any) -> None:
        self._recording: Recording | None = None
        path = capture_file()
        if path is None:
            return
        if len(rest) != _V1_ARGUMENTS:
            raise CaptureError(
                "recording works under the V1 model runner only",
                where=VARIABLE,
                fix="set VLLM_USE_V2_MODEL_RUNNER=0, or unset AUDITOR_CAPTURE",
            )
        if vllm_config.parallel_config.rank % vllm_config.parallel_config.tensor_parallel_size == 0:
            self._recording = Recording(vllm_config, path)
            Finalize(self, self._recording.close, exitpriority=100)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse a request that nobody would record; vLLM calls this in its front end, for every request."""
        del sampling_params
        path = capture_file()
        if path is not None and not is_recorded(path):
            raise ValueError(
                f"{VARIABLE} is set, but this engine does not record to {path}: speculative decoding leaves "
                "the recorder out, and a full disk ends it"
            )

    def is_argmax_invariant(self) -> bool:
        """Logits are never touched."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """V1: the rows of the batch before a step."""
        if self._recording is not None:
            self._recording.update(batch_update)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """V2: this processor wants no request."""
        del req_idx, sampling_params
        return False

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Hand the logits back."""
        del ctx
        return logits


class Recording:
    """One engine's recording: rows in, lines out."""

    def __init__(self, vllm_config: Any, path: Path) -> None:
        release = vllm.__version__.split("+")[0]
        self._engine: RecordedEngine = recorded_engine(vllm_config, release, current_platform.device_type)
        check_rows(BatchUpdateBuilder, MoveDirectionality.UNIDIRECTIONAL, MoveDirectionality.SWAP)
        if self._engine.noise is not None:
            check_noise(self._engine.noise, _engine_choices)
        self._log: AppendLog | None = AppendLog(path)
        self._rows = Rows(
            self._write,
            context_length=self._engine.context_length,
            is_swap=lambda direction: direction == MoveDirectionality.SWAP,
            clock=time.time,
        )
        self._written = self._empty = self._lost = self._unseen = 0
        self._kind, self._step_begins = fingerprint_kind(), False
        if self._kind is not None:
            watch_states(_runners(), Path(vllm_config.model_config.model), self._see)
        _say(f"recording to {path}; noise {self._engine.noise or 'of a scheme that is not replayed'}")

    def update(self, change: Any) -> None:
        """Take in what changed in the batch before a step."""
        if self._log is not None:
            self._rows.update(change)
            self._step_begins = True

    def _see(self, states: torch.Tensor) -> None:
        """The first rows after the batch was reported are the step's; others are not of sampled positions."""
        if self._step_begins and self._log is not None:
            self._rows.see(states)
        self._step_begins = False

    def _write(self, served: Served, reason: str | None) -> None:
        if not served.output:
            self._empty += 1  # nothing was generated, so nothing can be claimed or billed
            return
        if self._log is None:
            self._lost += 1
            return
        try:
            kind = self._kind if has_states(served) else None
            self._unseen += kind is not self._kind
            self._log.write(trace_line(served, reason, self._engine, time.time(), kind))
        except CaptureError as error:
            self._log = None
            self._lost += 1
            _say(f"recording ends, and new requests are refused: {error}")
        except (AuditError, ValueError, TypeError) as error:
            self._lost += 1
            _say(f"a request could not be recorded: {error}")
        else:
            self._written += 1

    def close(self) -> None:
        """Write what is still in the batch, and say how much was recorded."""
        self._rows.close()
        if self._log is not None:
            self._log.close()
            self._log = None
        _say(
            f"{self._written} requests recorded, {self._empty} ended without output, "
            f"{self._lost + self._rows.sessions_cut} lost"
            + ("" if self._kind is None else f", {self._unseen} without a fingerprint")
        )


def _runners() -> list[type]:
    from vllm.v1.worker import cpu_model_runner, gpu_model_runner  # noqa: PLC0415  # pulls in the engine

    return [cpu_model_runner.CPUModelRunner, gpu_model_runner.GPUModelRunner]


def _engine_choices(logits: Any, seeds: list[int]) -> Any:
    """Let the engine's own sampler choose, `DRAWS` times, from one seeded generator a row."""
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler  # noqa: PLC0415  # pulls in kernels

    sampler = TopKTopPSampler()
    generators = {row: torch.Generator().manual_seed(seed) for row, seed in enumerate(seeds)}
    rows = [sampler(torch.from_numpy(logits.copy()), generators, None, None)[0] for _ in range(DRAWS)]
    return torch.stack(rows).numpy()


def _say(text: str) -> None:
    print(f"auditor capture: {text}", file=sys.stderr, flush=True)  # noqa: T201  # vLLM's log is not ours
