"""Conversations for the demo model, drawn from the families it was trained on."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

from auditor.reference.demo.recipe import corpus

TARGET = Path(__file__).parent / "target"
DRAFT = Path(__file__).parent / "draft"

_DOCUMENTATION_SHARE = 0.2  # flat text: the tokens that carry most evidence


def demo_conversations(count: int, seed: int) -> list[tuple[dict[str, Any], ...]]:
    """`count` conversations: problems of every family, one in five a question about Python's documentation.

    The same seed gives the same conversations. The recipe keeps one generator for the whole module, so
    calls must not overlap.
    """
    corpus.R.seed(seed)
    chooser = random.Random(seed)  # noqa: S311  # reproducible, not secret
    modules = sorted(name for name in sys.stdlib_module_names if not name.startswith("_"))
    conversations: list[tuple[dict[str, Any], ...]] = []
    while len(conversations) < count:
        messages: list[dict[str, Any]] = []
        tone = chooser.choice(["none", *corpus.SYSTEMS])
        if tone != "none":
            messages.append({"role": "system", "content": chooser.choice(corpus.SYSTEMS[tone])})
        if chooser.random() < _DOCUMENTATION_SHARE:
            question = chooser.choice(["What does {} do?", "Explain {}.", "Tell me about {} in Python."])
            question = question.format(chooser.choice(modules))
        elif chooser.random() < 0.2:
            question = corpus.pair()[0]
        else:
            question = chooser.choice(corpus.TASKS)()[0]
        messages.append({"role": "user", "content": question})
        conversations.append(tuple(messages))
    return conversations
