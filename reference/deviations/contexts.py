"""The right model on less, more or other text than the client sent."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from auditor.reference.deviations.accounting import halves
from auditor.reference.deviations.base import Deviation, Prompt

_EVIDENCE = " Note: values over one hundred are rare."


def _cut_middle(share: float) -> Callable[[Prompt], Sequence[int]]:
    """A share of the prompt's tokens is left out of its middle."""

    def change(prompt: Prompt) -> Sequence[int]:
        ids, count = prompt.token_ids, round(share * len(prompt.token_ids))
        start = (len(ids) - count) // 2
        return (*ids[:start], *ids[start + count :])

    return change


def _injected(prompt: Prompt) -> Sequence[int]:
    """Retrieved text spliced in before the last token."""
    return (*prompt.token_ids[:-1], *prompt.tokenizer.encode(_EVIDENCE), *prompt.token_ids[-1:])


def _without_first(prompt: Prompt) -> Sequence[int]:
    return prompt.token_ids[1:]


def _first_twice(prompt: Prompt) -> Sequence[int]:
    return (prompt.token_ids[0], *prompt.token_ids)


def _last_words(count: int) -> Callable[[Prompt], Sequence[int]]:
    """Only the last tokens, behind the first: history compacted to nothing."""
    return lambda prompt: (*prompt.token_ids[:1], *prompt.token_ids[1:][-count:])


def _split_pieces(prompt: Prompt) -> Sequence[int]:
    """Every fourth token that can be is written as its characters' tokens: the same text, other ids."""
    out: list[int] = []
    for place, token in enumerate(prompt.token_ids):
        text = prompt.tokenizer.decode((token,))
        pieces = [piece for letter in text for piece in prompt.tokenizer.encode(letter)]
        same = len(text) > 1 and prompt.tokenizer.decode(tuple(pieces)) == text
        out.extend(pieces if place % 4 == 1 and same else [token])
    return out


def _spaced(prompt: Prompt) -> Sequence[int]:
    """A space that a template or a client library adds."""
    return (*prompt.token_ids[:-1], *prompt.tokenizer.encode(" "), *prompt.token_ids[-1:])


def _smaller_vocabulary(prompt: Prompt) -> Sequence[int]:
    """The same text by the older half of the tokenizer's pieces: those of half as large a vocabulary."""
    limit, special = prompt.tokenizer.vocab_size // 2, prompt.tokenizer.special_ids
    out: list[int] = []
    waiting = list(reversed(prompt.token_ids))
    while waiting:
        token = waiting.pop()
        parts = halves(prompt.tokenizer, token) if token >= limit and token not in special else None
        if parts is None:
            out.append(token)
        else:
            waiting += reversed(parts)
    return out


def _system_dropped(prompt: Prompt) -> Sequence[int]:
    """The system turn is left out; a request without one gets what it asked for."""
    if prompt.messages is None or prompt.tokenizer.template is None:
        return prompt.token_ids
    rest = [m for m in prompt.messages if m.get("role") != "system"]
    return prompt.tokenizer.encode_chat(rest or list(prompt.messages))


def _compacted(prompt: Prompt) -> Sequence[int]:
    """Rhea's shape: instructions verbatim, and of each user turn every other sentence."""
    if prompt.messages is None or prompt.tokenizer.template is None:
        return _cut_middle(0.5)(prompt)
    messages = [dict(m) for m in prompt.messages]
    for message in messages:
        sentences = re.split(r"(?<=[.?!,]) ", str(message["content"]))
        if message.get("role") != "system":
            message["content"] = " ".join(sentences[::2])
    return prompt.tokenizer.encode_chat(messages)


def _padded(prompt: Prompt) -> Sequence[int]:
    """The last token of the prompt stands there twice: an off-by-one of a cache of prefixes."""
    return (*prompt.token_ids, prompt.token_ids[-1])


def _entry(name: str, gain: str, source: str, prompt: Callable[[Prompt], Sequence[int]]) -> Deviation:
    return Deviation(f"prompt/{name}", gain, source, prompt=prompt)


_RHEA = "Rhea, arXiv 2512.06869; context compaction"
DEVIATIONS = (
    _entry("middle-cut-10%", "a shorter prompt to compute", _RHEA, _cut_middle(0.1)),
    _entry("middle-cut-50%", "half the prompt to compute", _RHEA, _cut_middle(0.5)),
    _entry("last-16-tokens", "no history to compute", _RHEA, _last_words(16)),
    _entry("injected", "better answers under another's name", "Eigen-1, arXiv 2509.21193", _injected),
    _entry(
        "without-bos",
        "none: a tokenizer setting",
        "a chat template that already had it, or not",
        _without_first,
    ),
    _entry("bos-twice", "none: a tokenizer setting", "template and tokenizer both add it", _first_twice),
    _entry(
        "non-canonical", "none: another tokenizer's cuts", "coin.md (canonical tokenization)", _split_pieces
    ),
    _entry(
        "smaller-vocabulary",
        "none: another release's tokenizer",
        "a tokenizer swapped for one of half the pieces; TokenAdapt, arXiv 2505.09738",
        _smaller_vocabulary,
    ),
    _entry("system-dropped", "a shorter prompt to compute", "system prompt edits", _system_dropped),
    _entry("compacted", "half the history to compute", _RHEA, _compacted),
    _entry("last-token-twice", "none: a cache of prefixes", "engines' prefix caches, off by one", _padded),
    _entry("extra-space", "none: a template's white space", "engines.md (templates)", _spaced),
)
