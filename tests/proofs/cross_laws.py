"""Rows of docs/cross_checks.md that are no logits of a model: samplers' laws, speculation's coins, beams.

A law is what a position's token is drawn from. The size of a deviation is then the mean total variation distance of
its law from the declared one: a filter's KL divergence is infinite.
"""

from __future__ import annotations

import numpy as np
import torch

from auditor.reference.deviations import CATALOGUE
from auditor.reference.deviations.acceptance.play import distribution, penalised
from auditor.reference.deviations.acceptance.rules import At, Ratio
from auditor.reference.deviations.base import Served
from auditor.reference.deviations.searching import beam, likelihoods
from auditor.reference.running import Ask

EVERY, DRAWS = 48, 2_000
# Logits that agree to single precision leave laws this close; another reading of a filter does not.
SAME_LAW = 1e-4


def law(logits, cause, trace):
    """What a provider draws from at each output position, float64 [n, V]."""
    spec, output = cause.sampling(trace.sampling), trace.output_token_ids
    if cause.logits is not None:
        before = np.array([trace.prompt_token_ids[-1], *output[:-1]], np.int64)
        served = Served(0, trace.seed, np.arange(len(output)), before, logits.float())
        logits = cause.logits(logits.float(), served)
    rows = (penalised(row, spec, trace.prompt_token_ids, output[:n]) for n, row in enumerate(logits))
    return torch.from_numpy(np.stack([distribution(row.float(), spec) for row in rows]))


def distance(one, other):
    """Total variation of each row."""
    return (one - other).abs().sum(-1) / 2


def compared_laws(name, honest, traces, theirs):
    """A row of the second table."""
    own = [law(logits, CATALOGUE[name], trace) for logits, trace in zip(honest, traces, strict=True)]
    plain = [logits.softmax(-1) for logits in honest]
    other = [rows.double().exp() for rows in theirs]
    mine, others, apart = (
        torch.cat([distance(a, b) for a, b in zip(*pair, strict=True)])
        for pair in ((own, plain), (other, plain), (own, other))
    )
    return {
        "ours": float(mine.mean()),
        "theirs": float(others.mean()),
        "ratio": float(mine.mean() / others.mean()),
        "apart": (float(apart.mean()), float(apart.max())),
    }


def compared_acceptance(target, draft, theirs):
    """Shares of drafts kept and laws returned by the ratio rule, each side by its own coins.

    The bar for the law is the distance of two such samples of p itself.
    """
    generator = np.random.default_rng(1)
    p, q = (torch.cat(rows)[::EVERY].softmax(-1).numpy() for rows in (target, draft))
    rule, found = Ratio(), np.zeros((len(p), 1 + p.shape[1]))
    twin = np.zeros_like(p)
    for n in range(len(p)):
        for guess in generator.choice(p.shape[1], size=DRAWS, p=q[n]):
            noise = -np.log(-np.log(generator.random(p.shape[1])))
            at = At(noise)
            stands = rule.accept(p[n], q[n], int(guess), generator.random(), at)
            found[n, 0] += stands
            found[n, 1 + (int(guess) if stands else rule.instead(p[n], q[n], int(guess), at))] += 1
        twin[n] = generator.multinomial(DRAWS, p[n])
    found, twin, other = found / DRAWS, twin / DRAWS, torch.as_tensor(theirs).numpy()
    kept = float(np.minimum(p, q).sum(1).mean())
    return {
        "positions": len(p),
        "kept": (kept, float(found[:, 0].mean()), float(other[:, 0].mean())),
        "apart": tuple(
            float(np.abs(side - p).sum(1).mean() / 2) for side in (found[:, 1:], other[:, 1:], twin)
        ),
    }


def compared_beams(model, traces, scheme, theirs):
    """How many requests give the same text, and how likely each side's texts are to the model, nats a token."""
    same, nats = 0, []
    for trace, padded in zip(traces, torch.as_tensor(theirs).long().tolist(), strict=True):
        other = tuple(token for token in padded if token >= 0)
        prompt = tuple(trace.prompt_token_ids)
        ends = frozenset({2})
        ask = Ask(prompt, len(prompt), trace.sampling, trace.seed, scheme, trace.sampling.max_tokens, ends)
        own = beam(model, ask, 4)
        same += own == other
        nats.append(likelihoods(model, ask, [own, other]))
    own, other = np.mean(nats, axis=0)
    return {"same": same, "of": len(traces), "nats": (float(own), float(other))}
