"""Who serves what in `fingerprint_power`: pools of requests, each with its own master seed, reduced to scores.

A pool is made once: states are computed, every scheme's scores at every T are stored, and the states are dropped.
Honest pools decode (or prefill) the demo model; dishonest ones are forced over the honest text of `deviants`, as
calibration does it, so what shows is the states and not the drift of the text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch

from auditor.generation import Provider, derived_seed
from auditor.reference.batch import Span
from auditor.reference.decode import Ask, generate
from auditor.reference.demo.prompts import TARGET, demo_conversations
from auditor.reference.deviations import DEVIATIONS, Prompt, undeclared_adapter
from auditor.reference.model import Model
from auditor.reference.noise import noise_scheme
from auditor.reference.sampling import SamplingSpec
from tests.proofs.fingerprint_schemes import MIDDLE, SCHEMES, States
from tests.proofs.rank4_adapter import train

OUT = Path("out/fingerprints")
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""T: output tokens of a request."""
CAUSES = (
    *("weights/int4", "weights/fp8", "weights/int8", "kv/fp8", "kv/int4"),
    *("depth/skip-layer", "adapter/lora", "prompt/system"),
)


@dataclass(frozen=True)
class Pool:
    """One provider on one kind of traffic.

    Attributes:
        forced: compute the states by prefill over that text, by the model that this names; decoded if None.
    """

    name: str
    seed: int
    requests: int
    tokens: int = 32
    temperature: float = 1.0
    documentation: bool = False
    batch: int = 32
    dtype: str = "bfloat16"
    forced: str | None = None


POOLS = [
    Pool("calibration", 1101, 400),
    Pool("checked", 1202, 400),
    Pool("prefill", 1202, 400, forced="bfloat16"),
    Pool("prefill, narrow products", 1202, 400, forced="bfloat16-narrow"),
    Pool("prefill in fp16", 1202, 400, forced="float16"),
    Pool("first tokens", 1203, 2_000, tokens=4),
    Pool("temperature 1.1", 1404, 400, temperature=1.1),
    Pool("temperature 0.6", 1505, 320, temperature=0.6),
    Pool("greedy", 1506, 320, temperature=0.0),
    Pool("documentation", 1507, 400, documentation=True),
    Pool("batch of 4", 1508, 320, batch=4),
    Pool("batch of 128", 1509, 320, batch=128),
    Pool("decode in fp32", 1510, 320, dtype="float32"),
    *(Pool(cause, 1303, 300, forced=cause) for cause in CAUSES),
]


@cache
def served(dtype):
    """A provider in a dtype; `-narrow` multiplies in it, the others in float32 with one rounding."""
    name, _, narrow = dtype.partition("-")
    provider = Provider.load(TARGET, dtype=name)
    return replace(provider, model=Model.load(TARGET, dtype=provider.model.dtype)) if narrow else provider


@cache
def reference():
    """The reference in float32, showing what the schemes want."""
    model = Model.load(TARGET)
    return model.showing((MIDDLE, model.config.num_hidden_layers - 1))


@cache
def adapter():
    """The trained adapter's folder; made once."""
    folder = OUT / "adapter"
    if not (folder / "adapter_config.json").exists():
        loss, size = train(folder)
        (folder / "trained.json").write_text(json.dumps({"loss": loss, "relative_size": size}))
    return folder


def deviation_of(cause):
    return undeclared_adapter(adapter()) if cause == "adapter/lora" else DEVIATIONS[cause]


def prompts_of(pool):
    conversations = demo_conversations(pool.requests * (12 if pool.documentation else 1), pool.seed)
    if pool.documentation:
        about = ("What does ", "Explain ", "Tell me about ")
        conversations = [c for c in conversations if c[-1]["content"].startswith(about)][: pool.requests]
    tokenizer = served("bfloat16").tokenizer
    return [Prompt(tuple(tokenizer.encode_chat(c)), tuple(c), tokenizer) for c in conversations]


@lru_cache(maxsize=1)
def written(pool):
    """Prompts, outputs and the decoder's states (final and middle) of a pool's text."""
    prompts = prompts_of(pool)
    spec = SamplingSpec(max_tokens=pool.tokens, ignore_eos=True, temperature=pool.temperature)
    scheme = noise_scheme("gumbel-pos-v1")
    asks = [
        Ask(
            p.token_ids,
            len(p.token_ids),
            spec,
            derived_seed(pool.seed, i),
            scheme,
            pool.tokens,
            frozenset(),
        )
        for i, p in enumerate(prompts)
    ]
    states = []
    model = served(pool.dtype).model.showing((MIDDLE,))
    outputs = list(generate(model, asks, batch_size=pool.batch, on_hidden=states.append))
    return prompts, outputs, states


def forced(model, prompts, outputs):
    """States of a text by prefill, whatever the model shows, a tensor a request."""
    spans = [
        Span(torch.tensor([*p, *o[:-1]]), wanted=len(p) - 1) for p, o in zip(prompts, outputs, strict=True)
    ]
    packed = [model.forward(spans[start : start + 20]) for start in range(0, len(spans), 20)]
    return list(torch.cat(packed).split(len(outputs[0])))


@lru_cache(maxsize=1)
def truths(text):
    """The reference's states of a pool's text: float32, and how far a pass in half precision is from them."""
    prompts, outputs, _ = written(text)
    ids = [p.token_ids for p in prompts]
    half = forced(served("bfloat16").model, ids, outputs)
    found = []
    for right, rounded in zip(forced(reference(), ids, outputs), half, strict=True):
        final, middle, before_norm = right.chunk(3, dim=1)
        noise = (rounded.double() - final.double()).square().mean(dim=1).numpy()
        found.append(States(final, middle, before_norm, noise))
    return found


def states_of(pool):
    """(provider's states, reference's states) of each request."""
    text = replace(pool, name="", forced=None)
    prompts, outputs, own = written(text)
    if pool.forced in CAUSES:
        change = deviation_of(pool.forced)
        model = change.model(served("bfloat16").model, None).showing((MIDDLE,))
        own = forced(model, [tuple(change.prompt(p)) for p in prompts], outputs)
    elif pool.forced is not None:
        own = forced(served(pool.forced).model.showing((MIDDLE,)), [p.token_ids for p in prompts], outputs)
    for given, truth in zip(own, truths(text), strict=True):
        final, middle = given.float().chunk(2, dim=1)
        yield States(final, middle, final), truth


def scores_of(pool, tick=lambda: None):
    """Every scheme's score of every request at every T (NaN where none is complete): name -> [requests, T's].

    Read from disk when it was made before.
    """
    path = OUT / f"{pool.name.replace('/', '-').replace(' ', '_')}.npz"
    if not path.exists():
        found = {scheme.name: [] for scheme in SCHEMES if scheme.window <= pool.tokens}
        for index, (own, truth) in enumerate(states_of(pool)):
            for scheme in SCHEMES:
                if scheme.name in found:
                    each = scheme.scores(own, truth, pool.seed, index)
                    found[scheme.name].append([_mean(each, t, scheme.window, pool.tokens) for t in COUNTS])
            tick()
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{name: np.array(rows) for name, rows in found.items()})
    with np.load(path) as stored:
        return dict(stored)


def _mean(each, tokens, window, most):
    complete = tokens // window
    return float(np.mean(each[:complete])) if complete and tokens <= most else np.nan
