"""Text without token ids: the reference's tokenizer splits it, and what follows accuses nobody. Pure.

An engine samples ids, and the ids of a text are not unique: a model may return `wor` + `ld` where the
tokenizer would have written `world`. Such an output, split anew, looks improbable, although the provider is
honest. Of 192 recorded honest requests at temperature 1 three came back otherwise than they were sampled;
how often it happens elsewhere depends on the model, the language and the temperature, and no bound on it
holds for all. So the tests of `seed_free.py` have no valid null here: they are computed and shown, as a
reason to look closer. What can convict a log of texts is the two-sample test (`comparison.py`), which needs
no ids.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from auditor.trace import Trace

if TYPE_CHECKING:
    from auditor.reference.tokenizer import Tokenizer

SPLIT_ANEW = "token ids were not logged: those that the reference's tokenizer makes of the text are assumed"


def is_text_only(trace: Trace) -> bool:
    """Whether the log holds what was said, but not the ids that were sampled."""
    return not trace.output_token_ids and bool(trace.text)


def split_anew(trace: Trace, tokenizer: Tokenizer) -> Trace | None:
    """The trace with ids that are assumed to be those sampled; None where its text is not all that was.

    The end-of-sequence id is added where nothing but it can have stopped the output. The provider's own count
    of tokens, where it is logged, must be that of the ids.
    """
    if not is_text_only(trace) or trace.text is None:
        return None
    ids = tuple(tokenizer.encode(trace.text))
    by_end = trace.finish_reason == "stop" and not trace.sampling.stop and not trace.sampling.stop_token_ids
    if by_end and tokenizer.end_id is not None:
        ids = (*ids, tokenizer.end_id)
    billed = trace.usage.completion_tokens
    if not ids or (billed is not None and billed not in (len(ids), len(ids) - by_end)):
        return None
    return replace(trace, output_token_ids=ids)
