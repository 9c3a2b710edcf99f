"""Providers with block verification: acquitted with their drafts, tested or left alone without, never framed."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from transformers import Mamba2Config, Mamba2ForCausalLM

from auditor.calibration import calibrate
from auditor.commands.generate import generate as generate_command
from auditor.generation import Drafting, Provider, generate
from auditor.reference.decode import Ask
from auditor.reference.decode import generate as decode
from auditor.reference.demo.prompts import DRAFT, TARGET, demo_conversations
from auditor.reference.deviations import HONEST, deviation
from auditor.reference.drafters import ModelDrafter
from auditor.reference.loading import load_model
from auditor.reference.noise import noise_scheme
from auditor.reference.sampling import SamplingSpec
from auditor.reference.speculation import find_rule
from auditor.replay import Reference, replay
from auditor.trace import Engine, Speculation
from auditor.trace_files import read_traces
from auditor.trace_format import parse_trace, trace_to_line
from auditor.verdict import judge

ALPHA = 0.01
MURMUR = noise_scheme("vllm-gpu-v2/murmur32")
VLLM = Engine("vllm", "0.32.0", "bfloat16", "cuda/h100-sxm", "vllm-0.32.0/v2")


@pytest.fixture(scope="module")
def reference():
    return Reference.load(TARGET)


@pytest.fixture(scope="module")
def drafter():
    return load_model(DRAFT, dtype=torch.bfloat16, wide_matmul=True)


@pytest.fixture(scope="module")
def serve(drafter):
    @functools.cache
    def run(seed, requests, cause="honest", rule="block", dtype="bfloat16", sampling=None):
        provider = Provider.load(TARGET, dtype=dtype, batch_size=64)
        proposer = drafter if dtype == "bfloat16" else load_model(DRAFT)
        return list(
            generate(
                provider,
                demo_conversations(requests, seed),
                deviation=HONEST if cause == "honest" else deviation(cause),
                seed=seed,
                sampling=sampling,
                drafting=Drafting(rule, ModelDrafter(proposer, noise_aware=False)),
                other_model=drafter,
            )
        )

    return run


@pytest.fixture(scope="module")
def profile(serve, reference):
    return calibrate(serve(51_000, 40), reference, shadow_tokens=1500)


def verdict_of(traces, profile, reference):
    return judge(list(replay(traces, reference)), profile, alpha=ALPHA)


def share(scored):
    return sum(s.scores.matched for s in scored) / sum(s.scores.evidence for s in scored)


def test_an_honest_log_is_acquitted_with_small_margins(serve, profile, reference):
    verdict = verdict_of(serve(50_000, 48), profile, reference)
    assert verdict.outcome == "consistent"
    assert {t.scored.mode for t in verdict.traces} == {"drafted-block"}
    scored = [t.scored for t in verdict.traces]
    assert share(scored) > 0.98
    assert max(margin for s in scored for _, margin, _ in s.scores.misses) < 0.25


def test_at_the_references_precision_every_token_matches(serve, reference):
    filtered = SamplingSpec(temperature=0.8, top_p=0.9, repetition_penalty=1.1, max_tokens=60)
    for spec in (None, filtered):
        assert share(list(replay(serve(52_000, 6, dtype="float32", sampling=spec), reference))) == 1.0


@pytest.mark.parametrize("cause", ["seed/wrong", "weights/int4", "model/substituted", "depth/skip-layer"])
def test_block_verification_hides_no_cheat(serve, profile, reference, cause):
    assert verdict_of(serve(53_000, 24, cause), profile, reference).outcome == "inconsistent"


def tampered(trace):
    """Every eighth step's own token replaced by a neighbour in the vocabulary; lengths of steps stay."""
    output, at = list(trace.output_token_ids), 0
    for number, drafts in enumerate(trace.speculation.draft_token_ids):
        kept = 0
        while kept < len(drafts) and at + kept < len(output) and output[at + kept] == drafts[kept]:
            kept += 1
        at += kept
        if at < len(output) and number % 8 == 4:
            output[at] = next(
                t for t in range(500, 510) if t != output[at] and t not in drafts[kept : kept + 1]
            )
        at += 1
    return replace(trace, output_token_ids=tuple(output))


def test_tampered_tokens_are_never_acquitted(serve, profile, reference):
    traces = [tampered(t) for t in serve(50_000, 48)]
    assert verdict_of(traces, profile, reference).outcome == "inconsistent"


def test_a_provider_that_keeps_every_draft_is_convicted(serve, profile, reference):
    """Each step claims all its drafts and a token of its own, as nobody who verified would have."""
    traces = []
    for t in serve(50_000, 48):
        steps = t.speculation.draft_token_ids[:16]
        output = tuple(token for step in steps for token in (*step, 700))
        traces.append(replace(t, output_token_ids=output, speculation=Speculation("block", steps)))
    assert verdict_of(traces, profile, reference).outcome == "inconsistent"


def test_a_log_of_standard_acceptance_is_no_block_log(serve, profile, reference):
    """What is declared is what is judged, and a profile of one rule does not acquit the other."""
    standard = serve(54_000, 32, rule="standard")
    assert verdict_of(standard, profile, reference).outcome == "inconclusive"
    lied = [replace(t, speculation=replace(t.speculation, rule="block")) for t in standard]
    assert verdict_of(lied, profile, reference).outcome == "inconsistent"


def test_drafts_survive_the_file(serve):
    trace = serve(50_000, 48)[0]
    assert parse_trace(trace_to_line(trace), file="log", line=1).speculation == trace.speculation


def changed(trace, drafts):
    return replace(trace, speculation=Speculation("block", drafts))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda t: changed(t, t.speculation.draft_token_ids[:-2]), "trace-field"),
        (lambda t: changed(t, (*t.speculation.draft_token_ids, (5,))), "trace-field"),
        (lambda t: changed(t, ((), (*t.speculation.draft_token_ids[1], 5_000_000))), "token-out-of-range"),
        (lambda t: changed(t, ((), (7,) * 65)), "sampling-unsupported"),
        (lambda t: replace(t, prompt_token_ids=(5,) * 2045), "context-length"),
        (
            lambda t: replace(t, sampling=replace(t.sampling, grammar={"kind": "regex", "pattern": "a"})),
            "sampling-unsupported",
        ),
    ],
)
def test_what_cannot_be_judged_is_named(serve, reference, change, code):
    trace = serve(50_000, 48)[0]
    if code in ("token-out-of-range", "sampling-unsupported", "context-length"):
        trace = replace(trace, output_token_ids=trace.output_token_ids[:2])
        trace = changed(trace, ((), (trace.output_token_ids[1] + 1, 9, 9, 9)))
    scored = next(replay([change(trace)], reference))
    assert scored.problem is not None
    assert scored.problem.code == code


def test_a_model_that_keeps_no_state_by_position_is_refused(serve, reference, tmp_path):
    config = Mamba2Config(
        vocab_size=reference.model.config.vocab_size,
        hidden_size=48,
        num_hidden_layers=1,
        state_size=16,
        num_heads=12,
        head_dim=8,
        n_groups=1,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    Mamba2ForCausalLM(config).save_pretrained(tmp_path)
    recurrent = replace(reference, model=load_model(tmp_path))
    trace = replace(serve(50_000, 48)[0], model_digest=None)
    scored = next(replay([trace], recurrent))
    assert scored.problem.code == "sampling-unsupported"
    assert "by position" in str(scored.problem)


def by_vllm(trace, **changes):
    return replace(trace, noise=MURMUR.name, engine=VLLM, **changes)


def test_vllms_block_verification_is_replayed_from_its_drafts(serve, reference, drafter):
    """The reference plays runner V2: its noise and its coins, at the positions of the rows."""
    rule = find_rule("block", MURMUR, "0.32.0")
    traces = serve(50_000, 48)[:6]
    asks = [
        Ask(
            t.prompt_token_ids,
            len(t.prompt_token_ids),
            t.sampling,
            t.seed,
            MURMUR,
            60,
            frozenset(),
            speculation=rule,
        )
        for t in traces
    ]
    steps = []
    outputs = list(
        decode(reference.model, asks, drafter=ModelDrafter(drafter, noise_aware=False), on_steps=steps.append)
    )
    logged = [
        by_vllm(trace, output_token_ids=output, speculation=Speculation("block", taken))
        for trace, output, taken in zip(traces, outputs, steps, strict=True)
    ]
    scored = list(replay(logged, reference))
    assert share(scored) == 1.0
    ours = [replace(t, noise="gumbel-pos-v1", engine=serve(50_000, 48)[0].engine) for t in logged]
    assert share(list(replay(ours, reference))) < 0.9


def test_without_drafts_our_own_is_tested_by_its_distribution_and_vllms_is_not(serve, profile, reference):
    """vLLM's tokens after a rejection are not distributed as the model says (`speculation/rules.py`)."""
    dark = [replace(t, speculation=Speculation("block")) for t in serve(50_000, 48)[:16]]
    verdict = verdict_of(dark, profile, reference)
    assert verdict.outcome == "inconclusive"
    assert "seed-free-rank" in {e.name for e in verdict.evidence}
    other = [replace(t, speculation=Speculation("block")) for t in serve(53_000, 24, "model/substituted")]
    assert verdict_of(other, profile, reference).outcome == "inconsistent"
    for trace in (
        by_vllm(dark[0]),
        by_vllm(dark[0], seed=None),
        replace(dark[0], noise=None, engine=Engine()),
    ):
        scored = next(replay([trace], reference))
        assert scored.problem is not None
        assert scored.seed_free is None


def test_releases_whose_coins_nobody_has_read_are_not_guessed_at(serve, reference):
    trace = by_vllm(serve(50_000, 48)[0])
    scored = next(replay([replace(trace, engine=replace(VLLM, version="0.24.0"))], reference))
    assert scored.problem.code == "noise-unknown"
    assert scored.seed_free is None


@pytest.mark.parametrize("logged", [True, False])
def test_audit_generate_plays_it(reference, tmp_path, logged):
    out = tmp_path / "log.jsonl"
    flag = "--log-drafts" if logged else "--no-log-drafts"
    arguments = ["--out", str(out), "--requests", "2", "--speculation", "block", "--max-tokens", "24", flag]
    result = CliRunner().invoke(generate_command, [*arguments, "--dtype", "float32"])
    assert result.exit_code == 0, result.output
    scored = list(replay(read_traces(out), reference))
    assert [s.problem is None for s in scored] == [logged, logged]
    assert not logged or share(scored) == 1.0
