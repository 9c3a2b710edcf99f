"""Providers that decode by themselves: several tries, a beam, text put in on the way, another mask of ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from auditor.reference.batch import extend
from auditor.reference.decode import generate
from auditor.reference.deviations.base import Deviation, Ids, Serving
from auditor.reference.loading import ReferenceModel
from auditor.reference.running import Ask
from auditor.reference.sampling import SamplingSpec
from auditor.reference.slots import Sequence as Slots

_EVIDENCE = " Note: values over one hundred are rare."


def likelihoods(model: ReferenceModel, ask: Ask, outputs: Sequence[Ids]) -> list[float]:
    """Mean log-likelihood of each output, nats a token."""
    found = []
    for output in outputs:
        rows = model.prefill([torch.tensor([*ask.prompt, *output[:-1]])])[len(ask.prompt) - 1 :]
        likely = model.logits(rows).float().log_softmax(-1)
        found.append(float(likely.gather(1, torch.tensor(output)[:, None]).mean()))
    return found


def _best_of(count: int) -> Callable[[Serving], Sequence[Ids]]:
    """Of `count` answers, the first by the declared seed, the likeliest is returned."""

    def serves(serving: Serving) -> list[Ids]:
        tries = [
            list(
                generate(serving.target, [replace(ask, seed=(ask.seed + n) % 2**63) for ask in serving.asks])
            )
            for n in range(count)
        ]
        best = []
        for ask, outputs in zip(serving.asks, zip(*tries, strict=True), strict=True):
            likely = likelihoods(serving.target, ask, outputs)
            best.append(outputs[likely.index(max(likely))])
        return best

    return serves


def beam(model: ReferenceModel, ask: Ask, width: int) -> Ids:
    """The likeliest text that `width` beams find, by log-likelihood over length (transformers' default)."""
    cache = model.new_cache()
    first = Slots()
    span = extend(cache, first, torch.tensor(ask.prompt), wanted=len(ask.prompt) - 1)
    rows = model.logits(model.forward([span], cache)).float().log_softmax(-1)
    first.length = len(ask.prompt)
    beams: list[tuple[float, Ids, Slots]] = [(0.0, (), first)]
    ended: list[tuple[float, Ids]] = []
    for _ in range(ask.max_tokens):
        totals = torch.tensor([score for score, _, _ in beams])[:, None] + rows
        best = totals.flatten().topk(2 * width)
        going: list[tuple[float, Ids, Slots]] = []
        for rank, (score, place) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            parent, token = divmod(place, rows.shape[1])
            output = (*beams[parent][1], token)
            if token in ask.stop_ids:
                if rank < width:
                    ended.append((score / len(output), output))
            elif len(going) < width:
                going.append((score, output, cache.fork(beams[parent][2])))
        for _, _, slots in beams:
            cache.release(slots)
        beams = going
        ended = sorted(ended, reverse=True)[:width]
        if len(ended) == width and ended[-1][0] >= beams[0][0] / len(beams[0][1]):
            break
        spans = [extend(cache, slots, torch.tensor(output[-1:])) for _, output, slots in beams]
        rows = model.logits(model.forward(spans, cache)).float().log_softmax(-1)
        for _, _, slots in beams:
            slots.length += 1
    ended += [(score / len(output), output) for score, output, _ in beams]
    return max(ended)[1]


def _injected(after: int) -> Callable[[Serving], Sequence[Ids]]:
    """Retrieved text is read, and not shown, after so many output tokens."""

    def serves(serving: Serving) -> list[Ids]:
        heads = list(
            generate(serving.target, [replace(a, max_tokens=min(after, a.max_tokens)) for a in serving.asks])
        )
        rest = {
            n: continued(ask, head, read=evidence)
            for n, (ask, head) in enumerate(zip(serving.asks, heads, strict=True))
            if head[-1] not in ask.stop_ids and len(head) < ask.max_tokens
            for evidence in [ask.tokenizer.encode(_EVIDENCE) if ask.tokenizer else []]
        }
        tails = dict(zip(rest, generate(serving.target, list(rest.values())), strict=True))
        return [(*head, *tails.get(n, ())) for n, head in enumerate(heads)]

    return serves


def continued(ask: Ask, head: Ids, *, read: Sequence[int] = ()) -> Ask:
    """The rest of an answer that began so, under the noise of its positions; `read` stands before it."""
    prompt = (*ask.prompt, *head, *read)
    return replace(
        ask,
        prompt=prompt,
        noise_prompt_tokens=ask.noise_prompt_tokens + len(head),
        max_tokens=ask.max_tokens - len(head),
    )


def _without(*left_out: int) -> Callable[[SamplingSpec], SamplingSpec]:
    """A mask of ids, as a grammar is one at each position; of every 16 ids these may not be sampled."""
    mask = tuple(token for token in range(4_096) if token % 16 not in left_out)
    return lambda spec: replace(spec, allowed_token_ids=mask)


def _under(change: Callable[[SamplingSpec], SamplingSpec]) -> Callable[[Serving], Sequence[Ids]]:
    return lambda serving: list(
        generate(serving.target, [replace(ask, spec=change(ask.spec)) for ask in serving.asks])
    )


def _dropped(spec: SamplingSpec) -> SamplingSpec:
    return replace(spec, allowed_token_ids=None)


_MASKS = "SynCode, arXiv 2403.01632; xgrammar, arXiv 2411.15100 (masks of ids)"
DEVIATIONS = (
    Deviation("sampler/best-of-4", "better answers under a seed that was not used", "best-of-n by likelihood",
              serves=_best_of(4), decodes=False, needs_noise=True),
    Deviation("sampler/beam-4", "likelier text than was asked for", "beam search; transformers num_beams=4",
              serves=lambda serving: [beam(serving.target, ask, 4) for ask in serving.asks], decodes=False,
              needs_noise=True),
    Deviation("prompt/injected-at-64", "better answers under another's name",
              "Eigen-1, arXiv 2509.21193 (evidence spliced into the reasoning)", serves=_injected(64),
              timing="after-trigger", decodes=False),
    Deviation("filter/mask-dropped", "no masks to compute", _MASKS, serves=_under(_dropped),
              declares=_without(7), timing="periodic", decodes=False),
    Deviation("filter/mask-changed", "none: another release's grammar", _MASKS, serves=_under(_without(8)),
              declares=_without(7), timing="periodic", decodes=False),
)  # fmt: skip
