"""Prompts of a probe run: the demo model's, or those of the user's own logs."""

from __future__ import annotations

from dataclasses import replace

from auditor.errors import TraceFileError
from auditor.probing.plan import Plan
from auditor.probing.schedule import AskedPrompt
from auditor.reference.demo.prompts import demo_conversations
from auditor.token_counts.lengthening import lengthened
from auditor.trace import Trace
from auditor.trace_files import read_traces


def prompts_of(plan: Plan, seed: int) -> list[AskedPrompt]:
    """The prompts a plan names, each once, or once plainly and once lengthened.

    Args:
        seed: chooses the demo conversations.

    Raises:
        TraceFileError: a log cannot be read, or holds no prompt of the plan's kind.
        OptionError: a prompt without words is to be lengthened.
    """
    asked = _plain_prompts(plan, seed)
    if not plan.lengthen:
        return asked
    asked = asked[: max(1, plan.requests // 2)]
    return asked + [replace(p, content=lengthened(p.content)) for p in asked]  # type: ignore[arg-type]


def _plain_prompts(plan: Plan, seed: int) -> list[AskedPrompt]:
    if plan.prompts == "demo":
        conversations = demo_conversations(plan.requests, seed)
        if plan.api == "chat":
            return [AskedPrompt(messages) for messages in conversations]
        return [AskedPrompt(str(messages[-1]["content"])) for messages in conversations]
    found: dict[str, AskedPrompt] = {}
    for path in plan.prompts:
        for item in read_traces(path):
            if isinstance(item, Trace) and (prompt := _prompt_of(item, plan.api)) is not None:
                found.setdefault(repr(prompt.content), prompt)
    if not found:
        kind = "messages" if plan.api == "chat" else "text or token ids"
        raise TraceFileError(f"no prompt in the form of {kind}", where=", ".join(plan.prompts))
    return list(found.values())


def _prompt_of(trace: Trace, api: str) -> AskedPrompt | None:
    if api == "chat":
        return AskedPrompt(trace.messages, trace.sampling) if trace.messages else None
    content = trace.prompt_text or trace.prompt_token_ids
    return AskedPrompt(content, trace.sampling) if content else None
