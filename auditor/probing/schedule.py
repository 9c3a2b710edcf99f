"""What is asked, in which order and with which gaps: a function of plan, prompts and key. Pure.

The same key gives the same schedule, so an interrupted run goes on where it stopped; nobody without the key
can tell a probe's seed or place from chance.
"""

from __future__ import annotations

import hmac
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from auditor.probing.plan import Plan, SamplingChoice
from auditor.reference.sampling import SamplingSpec
from auditor.seeds import SeedKey


@dataclass(frozen=True, slots=True)
class AskedPrompt:
    """One prompt, as chat messages, text or token ids, and the parameters it was logged with, if it was."""

    content: tuple[Mapping[str, Any], ...] | str | tuple[int, ...]
    logged: SamplingSpec | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """One request.

    Attributes:
        index: its number in the schedule, which is also its counter under the seed key.
        body: the request's JSON, without what is only asked for the log.
        max_tokens: most output tokens it can cost.
        gap_seconds: pause before it, at a mean pace of one request a second.
    """

    index: int
    body: bytes
    max_tokens: int
    gap_seconds: float


def schedule(plan: Plan, prompts: Sequence[AskedPrompt], key: SeedKey) -> list[Probe]:
    """All requests of a run in their order.

    Each prompt is used once before any comes again. Gaps have mean 1: `jitter` 1 makes them exponential, as
    arrivals of independent users are.
    """
    draw = random.Random(hmac.digest(key.secret, b"auditor/probe-schedule/v1", "sha256"))  # noqa: S311
    order: list[AskedPrompt] = []
    while len(order) < plan.requests:
        batch = list(prompts)
        draw.shuffle(batch)
        order.extend(batch)
    probes = []
    for index, prompt in enumerate(order[: plan.requests]):
        parameters = _parameters(plan, prompt, draw)
        name = "messages" if plan.api == "chat" else "prompt"
        body: dict[str, Any] = {"model": plan.model, name: prompt.content, **parameters}
        if plan.logprobs:
            chat = {"logprobs": True, "top_logprobs": plan.logprobs}
            body |= chat if plan.api == "chat" else {"logprobs": plan.logprobs}
        if draw.random() < plan.stream:
            body["stream"] = True
        gap = (1 - plan.pace.jitter) + plan.pace.jitter * draw.expovariate(1.0)
        body["seed"] = key.seed(index)
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        probes.append(Probe(index, text.encode("utf-8"), parameters["max_tokens"], gap))
    return probes


def _parameters(plan: Plan, prompt: AskedPrompt, draw: random.Random) -> dict[str, Any]:
    """Parameters of one request: drawn from the plan, else the logged ones. All are sent, defaults too.

    A server fills in what is not sent from files that the log does not name (engines.md section 4.2).
    """
    if plan.sampling:
        choice = draw.choices(plan.sampling, [c.weight for c in plan.sampling])[0]
    else:
        spec = prompt.logged or SamplingSpec()
        choice = SamplingChoice(
            temperature=spec.temperature,
            top_k=spec.top_k,
            top_p=spec.top_p,
            min_p=spec.min_p,
            max_tokens=spec.max_tokens or 200,
        )
    most = choice.max_tokens
    sent: dict[str, Any] = {
        "temperature": choice.temperature,
        "top_p": choice.top_p,
        "max_tokens": most if isinstance(most, int) else draw.randint(*most),
    }
    # Not part of OpenAI's own API: sent only where they are on.
    further = {"top_k": choice.top_k, "min_p": choice.min_p}
    return sent | {name: value for name, value in further.items() if value}
