"""Providers that decode by themselves, and the caches and formats beside them: limits in which each is the honest one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from auditor.reference.decode import generate
from auditor.reference.deviations import CATALOGUE, Prompt, Serving
from auditor.reference.deviations.acceptance.multi_draft import KSeq
from auditor.reference.deviations.acceptance.play import play
from auditor.reference.deviations.acceptance.rules import RULES, At
from auditor.reference.deviations.accounting import INFLATIONS
from auditor.reference.deviations.caches import fused, quantized
from auditor.reference.deviations.formats import q4_0, q4_1, q8_0
from auditor.reference.deviations.searching import beam, likelihoods
from auditor.reference.model import Model
from auditor.reference.noise import SCHEMES
from auditor.reference.policies.selection import everything
from auditor.reference.quantizer import between, integers
from auditor.reference.request import Request
from auditor.reference.runner import Runner
from auditor.reference.running import Ask
from auditor.reference.sampling import SamplingSpec
from auditor.reference.tokenizer import Tokenizer

DEMO = Path(__file__).parents[2] / "reference" / "demo"


@pytest.fixture(scope="module")
def models():
    return Model.load(DEMO / "target"), Model.load(DEMO / "draft")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(DEMO / "target")


def ask(tokenizer, text="What does json do?", tokens=24, **spec):
    prompt = tuple(tokenizer.encode_chat(({"role": "user", "content": text},)))
    own = SamplingSpec(max_tokens=tokens, ignore_eos=True, **spec)
    return Ask(prompt, len(prompt), own, 5, SCHEMES["gumbel-pos-v1"], tokens, frozenset(), tokenizer)


def missed(model, asked, output):
    request = Request(asked.prompt, output, asked.spec, asked.seed, asked.scheme)
    return int((~next(Runner(model).score([request])).matched).sum())


def test_the_exact_rule_under_penalties_is_plain_sampling(models, tokenizer):
    asked = ask(tokenizer, repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.3)
    assert play(*models, asked, RULES["exact"]).output == next(iter(generate(models[0], [asked])))
    counted = play(*models, asked, RULES["exact"], bug="penalised-drafts").output
    assert missed(models[0], asked, counted) > 0


def test_a_step_that_reads_only_what_is_new_reads_the_same(models, tokenizer):
    """Rows of a text do not hang on what was read before it."""
    from auditor.reference.deviations.acceptance.play import _Reader

    reader, text = _Reader(models[0]), list(ask(tokenizer).prompt)
    for other in ([*text, 7, 8, 9], [*text, 7, 11], [*text[:-1], 40, 41, 42], [*text, 7, 8, 9, 10]):
        afresh = _Reader(models[0]).rows(other, 2)
        assert torch.equal(reader.rows(other, 2), afresh)


def test_k_seq_as_a_rule_is_lossless():
    p, q = np.array([0.5, 0.25, 0.15, 0.1]), np.array([0.2, 0.4, 0.1, 0.3])
    generator, found = np.random.default_rng(3), np.zeros(4)
    for _ in range(8_000):
        found[KSeq().instead(p, q, 0, At(-np.log(-np.log(generator.random(4)))))] += 1
    assert np.abs(found / 8_000 - p).max() < 0.028  # five standard errors


def test_one_beam_is_greedy_and_more_are_likelier(models, tokenizer):
    asked = ask(tokenizer)
    greedy = next(iter(generate(models[0], [replace(asked, spec=replace(asked.spec, temperature=0.0))])))
    assert beam(models[0], asked, 1) == greedy
    wide = beam(models[0], asked, 4)
    own, other = likelihoods(models[0], asked, [wide, greedy])
    assert own >= other - 1e-6


def test_injected_text_changes_nothing_before_it(models, tokenizer):
    asked = ask(tokenizer, tokens=80)
    honest = next(iter(generate(models[0], [asked])))
    injected = CATALOGUE["prompt/injected-at-64"].serves(Serving(*models, [asked]))[0]
    assert injected[:64] == honest[:64]
    assert injected != honest
    assert len(injected) == 80


@pytest.mark.parametrize("name", INFLATIONS)
def test_padding_is_seen_where_it_stands_and_not_before(models, tokenizer, name):
    asked = [ask(tokenizer), ask(tokenizer, "Explain csv.")]
    honest = list(generate(models[0], asked))
    for own, padded in zip(honest, CATALOGUE[name].serves(Serving(*models, asked)), strict=True):
        if CATALOGUE[name].unseen:
            assert padded == own
            continue
        assert len(padded) > len(own)
        if name not in ("accounting/tail-garbage", "accounting/splits"):  # those change what stands before
            assert padded[: len(own) // 2] == own[: len(own) // 2]


def test_what_follows_a_filler_is_the_models_own(models, tokenizer):
    """Only the filler leaves the seed's tokens: the answer was drawn after it, at its own places."""
    asked = ask(tokenizer)
    padded = CATALOGUE["accounting/shuffled-own"].serves(Serving(*models, [asked]))[0]
    request = Request(asked.prompt, padded, asked.spec, asked.seed, asked.scheme)
    matched = next(Runner(models[0]).score([request])).matched
    assert matched[:12].all()
    assert matched[18:].all()
    assert not matched[12:18].all()


def test_a_dropped_mask_returns_what_the_declared_one_forbids(models, tokenizer):
    cause = CATALOGUE["filter/mask-dropped"]
    asked = ask(tokenizer, "Explain every module of Python. " * 3, tokens=120)
    asked = replace(asked, spec=cause.declares(asked.spec))
    output = cause.serves(Serving(*models, [asked]))[0]
    assert set(output) - set(asked.spec.allowed_token_ids or ())
    assert set(next(iter(generate(models[0], [asked])))) <= set(asked.spec.allowed_token_ids or ())


@pytest.mark.parametrize(
    "hook",
    [lambda a: quantized(a, bits=16, residual=8), lambda a: fused(a, size=500)],
    ids=["rounded", "fused"],
)
def test_fine_rounding_and_groups_that_never_fill_are_the_models_own_attention(models, tokenizer, hook):
    ids = torch.tensor(ask(tokenizer).prompt)
    states = [m.prefill([ids]) for m in (models[0], models[0].replace(attention=hook))]
    assert torch.allclose(*states, atol=1e-4)
    assert torch.allclose(models[0].replace(attention=everything).prefill([ids]), states[0], atol=1e-4)


def test_rounding_between_extremes_keeps_them_and_has_so_many_values():
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(1)) + 3
    near = between(x, bits=2, group=64)
    assert torch.allclose(near.amax(1), x.amax(1))
    assert torch.allclose(near.amin(1), x.amin(1))
    assert all(len(row.unique()) <= 4 for row in near)
    assert ((near - x).abs() <= (x.amax(1) - x.amin(1))[:, None] / 6 * 1.001).all()


def test_steps_to_the_largest_entry_are_the_callers():
    x = torch.tensor([[7.5, -7.5, 1.0, 0.4]])
    assert integers(x, bits=4, group=4, steps=7.5).tolist() == [[7.0, -8.0, 1.0, 0.0]]
    assert integers(x, bits=4, group=4).abs().amax() == 7.5


@pytest.mark.parametrize(("rounds", "share"), [(q4_0, 1 / 8), (q4_1, 1 / 15), (q8_0, 1.13 / 254)])
def test_formats_of_llama_cpp_err_by_so_much_of_a_blocks_largest(rounds, share):
    weight = torch.randn(5, 128, generator=torch.Generator().manual_seed(2))
    size = weight.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True)
    error = (rounds(weight) - weight).unflatten(1, (-1, 32)).abs()
    assert (
        error <= size * share * 1.002
    ).all()  # scales are half precision: q8_0's may be off by a sixteenth of a step
    assert torch.equal(rounds(torch.zeros(2, 64)), torch.zeros(2, 64))


def test_prompt_edits_leave_what_they_should(tokenizer):
    messages = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One. Two. Three. Four."},
    )
    declared = Prompt(tuple(tokenizer.encode_chat(messages)), messages, tokenizer)
    said = {
        name: tokenizer.decode(list(CATALOGUE[f"prompt/{name}"].prompt(declared)))
        for name in ("smaller-vocabulary", "system-dropped", "compacted")
    }
    assert said["smaller-vocabulary"] == tokenizer.decode(list(declared.token_ids))
    assert "Be brief" not in said["system-dropped"]
    assert "Four" in said["system-dropped"]
    assert "One. Three." in said["compacted"]
    assert "Be brief" in said["compacted"]
