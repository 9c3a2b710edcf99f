"""What every drafter is held to: the tokens of a plain loop, and the invariants of the cache after each step."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from auditor.reference.batch import Span, extend
from auditor.reference.drafters import (
    BlendDrafter,
    DraftTree,
    ModelDrafter,
    NgramDrafter,
    RecyclingDrafter,
    SuffixDrafter,
    TraceDrafter,
)
from auditor.reference.engine import Engine
from auditor.reference.head import draw_rows, effective_sampling
from auditor.reference.model import Model
from auditor.reference.noise import Draws, noise_scheme
from auditor.reference.prefix_rules import RuledRequest, resolve_for
from auditor.reference.running import Ask
from auditor.reference.sampling import SamplingSpec
from auditor.reference.slots import Sequence

TARGET = Path(__file__).parents[3] / "reference" / "demo" / "target"
DRAFT = TARGET.with_name("draft")
SPECS = [
    *(SamplingSpec(temperature=t, top_p=p) for t in (0.0, 0.7, 1.0) for p in (1.0, 0.9)),
    SamplingSpec(temperature=0.8, top_k=20, min_p=0.02),
    SamplingSpec(repetition_penalty=1.3, frequency_penalty=0.2),
    SamplingSpec(temperature=0.0, presence_penalty=0.5),
]
SCHEMES = ["gumbel-pos-v1", "torch-cpu-multinomial", "llama.cpp/mt19937-u64-icdf"]


def write_random_model(folder):
    """Two layers of random weights whose next tokens are as certain as a trained model's."""
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=160,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.3)
        model.lm_head.weight.normal_(0, 0.6)
    model.save_pretrained(folder)


def plain_loop(model, ask):
    """Decoding as one would explain it: read everything, take the last row, draw, append."""
    spec = effective_sampling(ask.spec, ask.scheme)
    draws = Draws(ask.scheme, ask.seed, ask.noise_prompt_tokens, model.config.vocab_size, spec)
    rules = resolve_for(spec, ask.scheme, ask.tokenizer, model.config.vocab_size)
    ruled = None if rules is None else RuledRequest(rules, ask.prompt)
    output = []
    while len(output) < ask.max_tokens:
        text = torch.tensor([*ask.prompt, *output])
        logits = model.logits(model.forward([Span(text)])[-1:])
        if ruled is not None:
            logits = ruled.apply(logits, np.array(output, np.int64), len(output)).logits
        output.append(int(draw_rows(logits, spec, ask.scheme, draws.take(1))[0]))
        if output[-1] in ask.stop_ids:
            break
    return tuple(output)


@lru_cache(maxsize=4)
def pool(folder, count, longest, most):
    """Requests of every sampler, with the tokens of the plain loop."""
    model = Model.load(folder)
    chooser = random.Random(11)
    asks = []
    for n in range(count):
        vocabulary = model.config.vocab_size
        # Prompts that repeat themselves, so that counts have something to find.
        piece = [chooser.randrange(1, vocabulary) for _ in range(chooser.randint(1, longest // 2))]
        prompt = tuple((piece * 3)[: chooser.randint(1, longest)])
        spec = SPECS[n % len(SPECS)]
        scheme = SCHEMES[0 if spec.ruled else n // len(SPECS) % len(SCHEMES)]
        stops = frozenset(chooser.sample(range(vocabulary), 2)) if n % 4 == 3 else frozenset()
        asks.append(Ask(prompt, len(prompt), spec, n, noise_scheme(scheme), chooser.randint(1, most), stops))
    return model, tuple(asks), tuple(plain_loop(model, ask) for ask in asks)


class GarbageDrafter:
    """Random trees of random ids, in and out of the vocabulary."""

    top = 3

    def __init__(self, seed, vocabulary):
        self._random, self._vocabulary = random.Random(seed), vocabulary

    def propose(self, context, budget, noise):
        tokens, parents, seen = [], [], set()
        for node in range(self._random.randint(0, 12)):
            token = self._random.choice([self._random.randrange(self._vocabulary), -3, 10**9])
            parent = self._random.randrange(-1, node)
            if (token, parent) not in seen:
                seen.add((token, parent))
                tokens.append(token)
                parents.append(parent if parent < len(tokens) - 1 else -1)
        pairs = list(dict.fromkeys(zip(tokens, parents, strict=True)))
        if len(pairs) != len(tokens):
            return DraftTree()
        return DraftTree(tuple(tokens), tuple(parents))

    def observe(self, context, emitted, verified):
        assert verified is None or len(verified.tokens) == len(verified.top_ids)

    def forget(self, context):
        pass


class TruthAmongLies(GarbageDrafter):
    """The true continuation, some way ahead, hidden among wrong branches in any order of siblings."""

    def __init__(self, seed, vocabulary, truth):
        super().__init__(seed, vocabulary)
        self._truth = truth

    def propose(self, context, budget, noise):
        ask = context.request.ask
        done = len(context.tokens) - context.prompt_tokens
        ahead = self._truth[ask.prompt, ask.seed][done:][: self._random.randint(0, 7)]
        tokens, parents, tip = [], [], -1
        for true in ahead:
            lies = self._random.sample(range(self._vocabulary), self._random.randint(0, 2))
            children = list(dict.fromkeys([*lies, true]))
            self._random.shuffle(children)
            for token in children:
                tokens.append(token)
                parents.append(tip)
            tip = len(tokens) - len(children) + children.index(true)
        return DraftTree(tuple(tokens), tuple(parents))


@lru_cache(maxsize=1)
def _draft():
    return Model.load(DRAFT)


def drafters_of(model, folder, truth, seed):
    """By name, a maker of every drafter."""
    vocabulary = model.config.vocab_size
    other = model.replace(skip_layers=frozenset({model.config.num_hidden_layers - 1}))
    draft = _draft() if Path(folder) == TARGET else other
    return {
        "none": lambda: None,
        "garbage": lambda: GarbageDrafter(seed, vocabulary),
        "truth among lies": lambda: TruthAmongLies(seed, vocabulary, truth),
        "ngram": NgramDrafter,
        "ngram by count": lambda: NgramDrafter(noise_aware=False),
        "recycling": RecyclingDrafter,
        "suffix": lambda: SuffixDrafter(most=60),
        "draft model": lambda: ModelDrafter(draft),
        "draft tree": lambda: ModelDrafter(draft, width=3),
        "layers skipped": lambda: ModelDrafter(other, width=2, noise_aware=False),
        "trace": lambda: TraceDrafter(truth),
        "blend": lambda: BlendDrafter(
            SuffixDrafter(recycling=True), RecyclingDrafter(), GarbageDrafter(seed, vocabulary)
        ),
    }


DRAFTERS = [
    "none",
    "garbage",
    "truth among lies",
    "ngram",
    "ngram by count",
    "recycling",
    "suffix",
    "draft model",
    "draft tree",
    "layers skipped",
    "trace",
    "blend",
]


def check_invariants(engine, *, deep):
    """I1 and I5 by the tables; with `deep` I2 and I3 by what the slots hold."""
    engine.cache.check([live.sequence for live in engine.live])
    for live in engine.live:
        tokens, length = live.context.tokens, live.sequence.length
        assert tokens == [*live.request.ask.prompt, *live.request.output]
        assert live.missing >= 1
        if not deep or not length:
            continue
        fresh, sequence = engine.model.new_cache(), Sequence()
        engine.model.forward([extend(fresh, sequence, torch.tensor(tokens[:length]))], fresh)
        for layer in range(engine.model.config.num_hidden_layers):
            # Keys of a deeper layer are functions of all that its rows saw below.
            for held, true in zip(
                engine.cache.read(layer, live.sequence.slots),
                fresh.read(layer, sequence.table[:length]),
                strict=True,
            ):
                assert (held - true).abs().max() < 1e-3, "a slot holds what another prefix gave"


def decode(model, asks, *, drafter, batch, slots, budget, nodes, deep_every):
    engine = Engine(model, drafter=drafter, batch_size=batch, slots=slots, token_budget=budget, nodes=nodes)
    running = [engine.add(ask) for ask in asks]
    while not all(request.finished for request in running):
        before = {request: len(request.output) for request in running}
        engine.step()
        for live in engine.live:  # I4
            assert len(live.request.output) == before[live.request] or live.missing == 1
        check_invariants(engine, deep=deep_every and engine.steps % deep_every == 0)
        assert engine.steps < 10_000
    engine.cache.check([])
    return [tuple(request.output) for request in running]


def same_as_plain(folder, name, seed, *, count, longest, most, requests, deep_every=0):
    """One case: some requests in some order, a drafter, a batch, a cache and a budget."""
    model, asks, outputs = pool(folder, count, longest, most)
    chooser = random.Random(seed)
    chosen = chooser.sample(range(len(asks)), chooser.randint(1, requests))
    truth = {(ask.prompt, ask.seed): output for ask, output in zip(asks, outputs, strict=True)}
    drafter = drafters_of(model, folder, truth, seed)[name]()
    largest = max(len(asks[n].prompt) + asks[n].max_tokens for n in chosen)
    got = decode(
        model,
        [replace(asks[n], tenant=str(n % 2)) for n in chosen],
        drafter=drafter,
        batch=chooser.choice([1, 3, 8]),
        slots=chooser.choice([None, largest + 8, 2 * largest]),
        budget=chooser.choice([None, 16, 40]),
        nodes=chooser.choice([3, 12, 64]),
        deep_every=deep_every,
    )
    assert got == [outputs[n] for n in chosen], name
