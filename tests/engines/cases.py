"""What every engine is asked to do: one list of cases, prompts and seeds that no recorded trace uses.

A driver gets a run (how to start the engine) with the cases to serve under it, as JSON. Sampling parameters
have vLLM's names; a driver that cannot express one leaves the case out by name, never by dropping a parameter.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from auditor.generation import derived_seed
from auditor.reference.demo.prompts import TARGET, demo_conversations
from auditor.reference.tokenizer import Tokenizer

MASTER_SEED = 2026_11_24
MAX_TOKENS = 160

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "count", "tags"],
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "count": {"type": "integer", "minimum": 0, "maximum": 99999},
        "tags": {"type": "array", "maxItems": 3, "items": {"enum": ["red", "green", "blue"]}},
    },
}


@dataclass(frozen=True)
class Case:
    """One way of sampling, and how many requests of it.

    Attributes:
        repeat_prompts: every prompt comes twice, with two seeds, the second time after all of the first.
    """

    name: str
    sampling: dict[str, Any] = field(default_factory=dict)
    requests: int = 24
    repeat_prompts: bool = False


PLAIN = Case("plain", {}, 32)
CALIBRATION = Case("calibration", {}, 64)
FILTERS = (
    Case("top-p 0.9", {"top_p": 0.9}),
    Case("top-k 20", {"top_k": 20}),
    Case("T 0.7, top-k 40, top-p 0.9", {"temperature": 0.7, "top_k": 40, "top_p": 0.9}),
    Case("min-p 0.1", {"min_p": 0.1}),
    Case("T 1.3", {"temperature": 1.3}),
    Case("greedy", {"temperature": 0.0}),
)
TYPICAL = Case("typical-p 0.9", {"typical_p": 0.9})
SIGMA = Case("top-n-sigma 1", {"top_n_sigma": 1.0})
XTC = Case("XTC 0.5, 0.1", {"xtc_probability": 0.5, "xtc_threshold": 0.1})
REPETITION = Case("repetition penalty 1.15", {"repetition_penalty": 1.15})
PENALTIES = Case("penalties", {"repetition_penalty": 1.1, "presence_penalty": 0.3, "frequency_penalty": 0.2})
BIAS = Case("logit bias, min tokens", {"logit_bias": {"20": -2.0, "227": 1.5}, "min_tokens": 60})
GRAMMAR = Case("JSON schema", {"grammar": SCHEMA, "max_tokens": 80})
PREFIX = Case("prefix cached", {}, 16, repeat_prompts=True)


@dataclass(frozen=True)
class Run:
    """One start of an engine and what is served under it.

    Attributes:
        expect_failure: a defect or refusal that this run is there to show.
    """

    name: str
    options: dict[str, Any]
    cases: tuple[Case, ...]
    expect_failure: str | None = None


_tokenizer = None


def requests_of(run_name: str, case: Case) -> list[dict[str, Any]]:
    """The case's requests, the same for every engine but for their order of seeds."""
    global _tokenizer  # noqa: PLW0603
    _tokenizer = _tokenizer or Tokenizer.load(TARGET)
    first = derived_seed(MASTER_SEED, sum(map(ord, run_name + case.name))) % 2**40
    conversations = demo_conversations(case.requests, first)
    sampling = {"temperature": 1.0, "max_tokens": MAX_TOKENS} | case.sampling
    asked = [
        {
            "id": f"{case.name}/{i}",
            "messages": list(messages),
            "prompt": _tokenizer.encode_chat(messages),
            # Below 2**32 and neither 0 nor its largest value: what every engine takes as it is.
            "seed": derived_seed(first, i) % (2**32 - 2) + 1,
            "sampling": sampling,
        }
        for i, messages in enumerate(conversations)
    ]
    if case.repeat_prompts:
        asked += [
            request | {"id": f"{case.name}/{len(asked) + i}", "seed": request["seed"] ^ 0x55AA}
            for i, request in enumerate(asked)
        ]
    return asked


def job_of(run: Run, model: str) -> dict[str, Any]:
    """What a driver reads."""
    return {
        "model": model,
        "options": run.options,
        "cases": [asdict(replace(case)) | {"requests": requests_of(run.name, case)} for case in run.cases],
    }
