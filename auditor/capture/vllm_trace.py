"""A request served by vLLM, as one line of `auditor.trace/v1`."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from auditor.capture.final_states import recorded_entry
from auditor.capture.rows import Served
from auditor.capture.vllm_engine import RecordedEngine
from auditor.capture.vllm_sampling import AUDIT_ID, sampling_of_params
from auditor.trace import SCHEMA
from auditor.trace_format import trace_from_object, trace_to_line

if TYPE_CHECKING:
    from auditor.fingerprints.activation_difr import FingerprintKind


def trace_line(
    served: Served,
    reason: str | None,
    engine: RecordedEngine,
    now: float,
    kind: FingerprintKind | None = None,
) -> bytes:
    """Make the line. The text is left out: the engine's front end makes it, elsewhere.

    With a `kind` it carries a fingerprint of the output's states, all of which must have been seen.

    Every trace has a fresh id; the client's own, sent as `audit_id`, is kept under that name, since one
    request with `n` outputs is several traces.

    Raises:
        TraceFieldError, TraceSyntaxError: a value which no trace may hold (an infinite penalty).
        FingerprintValueError: states that are not finite.
    """
    sampling = sampling_of_params(served.params, engine.grammars)
    seed = served.params.seed
    greedy = sampling["temperature"] == 0.0
    noise = "greedy" if greedy else engine.noise
    value: dict[str, Any] = {
        "schema": SCHEMA,
        "id": f"vllm-{secrets.token_hex(8)}",
        "created": _time(served.received),
        "provider": "vllm",
        "model": engine.model,
        "model_digest": engine.model_digest,
        "tokenizer_digest": engine.tokenizer_digest,
        "template_digest": engine.template_digest,
        "prompt_token_ids": None if served.prompt is None else list(served.prompt),
        "sampling": sampling,
        "seed": seed,
        "noise": noise if greedy or (seed is not None and not served.continues) else None,
        "output_token_ids": list(served.output),
        "finish_reason": reason,
        "usage": {"prompt_tokens": len(served.prompt or ()), "completion_tokens": len(served.output)},
        "timing": {"received": _time(served.received), "finished": _time(now)},
        "engine": dict(engine.engine),
    }
    audit_id = (served.params.extra_args or {}).get(AUDIT_ID)
    if audit_id is not None:
        value[AUDIT_ID] = str(audit_id)
    if kind is not None:
        states = [served.states[t] for t in range(len(served.output))]
        value["fingerprints"] = [
            recorded_entry(states, kind, prompt=served.prompt or (), output=served.output, seed=seed)
        ]
    return trace_to_line(trace_from_object(value, file="capture", line=0, raw_digest=""))


def has_states(served: Served) -> bool:
    """Whether the hidden state of every output token was seen, under ids that an auditor has."""
    return served.prompt is not None and all(t in served.states for t in range(len(served.output)))


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
