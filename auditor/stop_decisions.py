"""Why an output ended, or did not: checked against what the request declares. Pure.

An end is a sampled decision like any token, and the log says how it was taken. A finding is a sentence with
a stable beginning, one for each kind; the position in it counts output tokens from 0:

* `goes on after`: an end token, stop token or stop string stood there, and the output goes on. Only the
  model's own `eos_token` counts as an end token here: servers may be told to pass over the others of
  `generation_config.json`. A stop string counts only where the text has it with special tokens and without.
* `is longer than`: more tokens than `max_tokens`.
* `unexplained stop`: finish_reason is stop, and nothing that ends an output is there.
* `unexplained length`: finish_reason is length, though neither `max_tokens` nor the context is reached.

An honest serving may have habits that look like this (end tokens left out of the log, a shorter context than
the model's): the verdict therefore compares their rate with that of the calibration, and one such trace
accuses nobody.
"""

from __future__ import annotations

from collections.abc import Iterator

from auditor.reference.stop_strings import stop_string_place
from auditor.reference.tokenizer import Tokenizer
from auditor.trace import Trace


def stop_findings(trace: Trace, prompt_tokens: int, tokenizer: Tokenizer, context: int) -> tuple[str, ...]:
    """What contradicts the request in how the output ended, in stable wording; empty when all is explained.

    Args:
        prompt_tokens: length of the prompt that was run.
        context: positions of the model.
    """
    if not trace.output_token_ids:
        return ()
    return tuple(_findings(trace, trace.output_token_ids, prompt_tokens, tokenizer, context))


def _findings(
    trace: Trace, output: tuple[int, ...], prompt_tokens: int, tokenizer: Tokenizer, context: int
) -> Iterator[str]:
    spec, tokens = trace.sampling, len(output)
    end = None if spec.ignore_eos else tokenizer.end_id
    for place, token in enumerate(output[:-1]):
        if token == end or token in spec.stop_token_ids:
            what = "end token" if token == end else "stop token"
            yield f"goes on after {what} {token} at output token {place}"
            break
    strings = [
        stop_string_place(tokenizer, output, spec.stop, min_tokens=spec.min_tokens, skip_special=skips)
        for skips in (True, False)
        if spec.stop
    ]
    complete = (
        None if None in strings else max((place for place in strings if place is not None), default=None)
    )
    if complete is not None and complete < tokens - 1:
        yield f"goes on after a stop string complete at output token {complete}"
    if spec.max_tokens is not None and tokens > spec.max_tokens:
        yield f"is longer than max_tokens: {tokens} tokens, {spec.max_tokens} asked"
    ends = {*tokenizer.eos_ids, *(() if tokenizer.end_id is None else (tokenizer.end_id,))}
    stopped = (
        output[-1] in spec.stop_token_ids
        or (output[-1] in ends and not spec.ignore_eos)
        or any(place is not None for place in strings)
    )
    if trace.finish_reason == "stop" and not stopped:
        yield f"unexplained stop: token {output[-1]} at output token {tokens - 1} does not end an output"
    asked = 0 if spec.max_tokens is None else spec.max_tokens
    if trace.finish_reason == "length" and tokens < asked and prompt_tokens + tokens < context:
        yield f"unexplained length: {tokens} tokens, {asked} asked"
