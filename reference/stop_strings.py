"""Where a stop string is complete: the token after which an engine ends the output.

Engines look at the text after every token, and only at what that token added: a string that was complete
before `min_tokens` does not end the output later. Bytes of an unfinished character are no text yet.
Source: vLLM 0.32 `v1/engine/detokenizer.py` (`update`, `check_stop_strings`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from auditor.reference.tokenizer import Tokenizer

_UNFINISHED = "\ufffd"


def stop_string_place(
    tokenizer: Tokenizer,
    output: Sequence[int],
    stops: Sequence[str],
    *,
    min_tokens: int = 0,
    skip_special: bool = True,
) -> int | None:
    """Index of the output token that completes the first stop string, None when none is complete.

    Args:
        min_tokens: strings complete within so many tokens do not count.
        skip_special: whether special tokens are left out of the text (the engines' default).
    """

    def text_of(tokens: int) -> str:
        return tokenizer.decode(output[:tokens], skip_special=skip_special).rstrip(_UNFINISHED)

    whole = text_of(len(output))
    places = []
    for stop in stops:
        begin = whole.find(stop) if stop else -1
        while begin >= 0:
            place = _first_token_with(text_of, begin + len(stop), len(output))
            if place >= min_tokens:
                places.append(place)
                break
            begin = whole.find(stop, begin + 1)
    return min(places, default=None)


def _first_token_with(text_of: Callable[[int], str], characters: int, tokens: int) -> int:
    """Index of the token after which the text has so many characters; text never shrinks."""
    low, high = 1, tokens
    while low < high:
        middle = (low + high) // 2
        if len(text_of(middle)) >= characters:
            high = middle
        else:
            low = middle + 1
    return low - 1
