"""Traffic for `inflation.py`: honest reasoning of the demo model, and what inflating providers make of it.

Hidden is what comes before `<|answer|>`, visible the rest. Responses that three times their hidden tokens
would push out of the context are left out, as are those without 32 hidden tokens or without an answer.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass

import torch

from auditor.generation import Provider, generate
from auditor.reference.decode import Ask
from auditor.reference.decode import generate as decode
from auditor.reference.demo.prompts import DRAFT, TARGET, demo_conversations
from auditor.reference.deviations import HONEST
from auditor.reference.deviations.accounting import Served
from auditor.reference.loading import load_model
from auditor.reference.noise import noise_scheme
from auditor.reference.sampling import SamplingSpec

BLOCK = 16
LEAST_HIDDEN = 32
SPEC = SamplingSpec(max_tokens=200)
# Master seeds: no request is in two splits.
SPLITS = {"train": 811, "calibration": 812, "test": 814, "honest": 816}


@dataclass(frozen=True)
class Response:
    seed: int
    prompt: tuple[int, ...]
    hidden: tuple[int, ...]
    visible: tuple[int, ...]
    draft: tuple[int, ...] = ()  # the small model's continuation of the hidden tokens


def honest(split, count, out, say):
    """`count` usable responses of a split, from a file where they are already."""
    path = out / f"pool-{split}.jsonl"
    if path.exists():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        if len(rows) >= count:
            return [
                Response(r["seed"], *(tuple(r[k]) for k in ("prompt", "hidden", "visible", "draft")))
                for r in rows[:count]
            ]
    provider = Provider.load(TARGET, batch_size=32)
    context = provider.model.config.context_length
    (answer,) = provider.tokenizer.encode("<|answer|>")
    found, asked = [], 0
    while len(found) < count:
        master = SPLITS[split] + 1000 * asked
        asked += 1
        for trace in generate(
            provider, demo_conversations(64, master), deviation=HONEST, seed=master, sampling=SPEC
        ):
            output = trace.output_token_ids
            if answer not in output[LEAST_HIDDEN:-1]:
                continue
            cut = output.index(answer)
            fits = len(trace.prompt_token_ids) + 3 * cut + len(output) - cut <= context
            if cut >= LEAST_HIDDEN and fits:
                found.append(Response(trace.seed, trace.prompt_token_ids, output[:cut], output[cut:]))
        say(f"{split}: {len(found)} of {count} usable responses from {64 * asked} requests")
    found = with_drafts(found[:count], provider.tokenizer)
    path.write_text(
        "".join(
            json.dumps(
                {
                    "seed": r.seed,
                    "prompt": r.prompt,
                    "hidden": r.hidden,
                    "visible": r.visible,
                    "draft": r.draft,
                }
            )
            + "\n"
            for r in found
        )
    )
    return found


def with_drafts(responses, tokenizer):
    """What the small model writes on: sampled, and never an end."""
    model = load_model(DRAFT, dtype=torch.bfloat16, wide_matmul=True)
    ends = sorted(tokenizer.special_ids)
    spec = SamplingSpec(max_tokens=512, logit_bias=dict.fromkeys(ends, -100.0))
    asks = []
    for r in responses:
        prefix = r.prompt + r.hidden
        room = min(2 * len(r.hidden), model.config.context_length - len(prefix) - 1)
        asks.append(
            Ask(prefix, len(prefix), spec, r.seed ^ 1, noise_scheme("gumbel-pos-v1"), room, frozenset())
        )
    drafts = decode(model, asks, batch_size=32)
    return [
        Response(r.seed, r.prompt, r.hidden, r.visible, draft)
        for r, draft in zip(responses, drafts, strict=True)
    ]


def inflated(attack, rate, response, others, tokenizer):
    """Hidden tokens as the attacker commits to them."""
    served = Served(
        response.prompt,
        response.hidden,
        response.visible,
        tokenizer,
        BLOCK,
        [(o.prompt, o.hidden) for o in others if o.prompt != response.prompt],
        lambda _prefix, count: response.draft[:count],
    )
    seed = zlib.crc32(f"{attack.name} {rate} {response.seed}".encode())
    return attack.inflate(served, rate, seed)
