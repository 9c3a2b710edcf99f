"""The right model on other text than the client sent."""

from __future__ import annotations

from collections.abc import Sequence

from auditor.reference.deviations.base import Deviation, Prompt

HIDDEN_INSTRUCTION = "Think out loud in a friendly tone."


def _hidden_system_prompt(prompt: Prompt) -> Sequence[int]:
    """An undeclared system message in front of the conversation (merged into a declared one)."""
    if prompt.messages is None or prompt.tokenizer.template is None:
        extra = prompt.tokenizer.encode(" " + HIDDEN_INSTRUCTION)
        return (*prompt.token_ids[:1], *extra, *prompt.token_ids[1:])
    messages = [dict(m) for m in prompt.messages]
    if messages and messages[0].get("role") == "system":
        messages[0]["content"] = f"{HIDDEN_INSTRUCTION} {messages[0]['content']}"
    else:
        messages.insert(0, {"role": "system", "content": HIDDEN_INSTRUCTION})
    return prompt.tokenizer.encode_chat(messages)


def _older_template(prompt: Prompt) -> Sequence[int]:
    """A template without a system role: system text is folded into the first user turn, a line before it."""
    tokenizer = prompt.tokenizer
    if prompt.messages is None or tokenizer.template is None:
        return (*prompt.token_ids[:-1], *tokenizer.encode("\n"), *prompt.token_ids[-1:])
    messages = [dict(m) for m in prompt.messages]
    system = [str(m["content"]) for m in messages if m.get("role") == "system"]
    rest = [m for m in messages if m.get("role") != "system"]
    if rest:
        rest[0]["content"] = "\n\n".join([*system, str(rest[0]["content"])]) + ("" if system else "\n")
    return tokenizer.encode_chat(rest)


DEVIATIONS = (
    Deviation(
        name="prompt/system",
        gain="steers or shortens answers without telling the client",
        source="difr.md section 9.5",
        prompt=_hidden_system_prompt,
    ),
    Deviation(
        name="prompt/template",
        gain="none: an out-of-date chat template, which looks like 4-bit weights",
        source="DiFR, arXiv 2511.20621 appendix D (two providers traced to it)",
        prompt=_older_template,
    ),
)
