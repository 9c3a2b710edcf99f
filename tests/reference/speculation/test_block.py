"""Block verification: the paper's rule to the letter, costs that no smaller movement undercuts, and its laws.

The paper's rule stands here by itself, in plain numpy over whole rows.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from auditor.kernels.keyed_noise import keyed_noise
from auditor.reference.block_replay import BlockSampler
from auditor.reference.decode import Ask, generate
from auditor.reference.drafters import ModelDrafter
from auditor.reference.model import Model
from auditor.reference.noise import noise_scheme
from auditor.reference.noise.scheme import positions
from auditor.reference.sampling import SamplingSpec
from auditor.reference.speculation import NO_DRAFT, Step, find_rule, steps_of
from auditor.reference.speculation.block import DraftOdds, ends_of, kept_of, threshold
from auditor.reference.speculation.race_rows import race_rows
from tests.reference.speculation.by_the_book import SPECS, kept_by

OWN = noise_scheme("gumbel-pos-v1")
MURMUR = noise_scheme("vllm-gpu-v2/murmur32")
RULE = find_rule("block", OWN, None)
VLLM = find_rule("block", MURMUR, "0.32.0")
COINS = json.loads((Path(__file__).parents[2] / "vectors" / "gumbel-pos-v1.json").read_text())["block_coins"]
VOCABULARY = 10
PROMPT = 7


def thresholds(z, spec, drafts):
    """h_1..h_k of a step: arXiv 2403.10444, equation 4 with one-hot drafts."""
    p = [kept_by(row, spec)[draft] for row, draft in zip(z, drafts, strict=False)]
    w = np.cumprod(p)
    h = []
    for i in range(len(drafts) - 1):
        residue = w[i] * (1.0 - p[i + 1])
        rest = residue + 1.0 - w[i]
        h.append(residue / rest if rest > 0 else 1.0)
    return [*h, *w[-1:]]


def block_step(z, spec, noise, coins, drafts):
    """(drafts kept, own token) of one step.

    Args:
        z: float32 [drafts + 1, V], logits after each of the drafts. noise: float64 [drafts + 1, V], Gumbel.
    """
    kept = 0
    for i, (u, h) in enumerate(zip(coins, thresholds(z, spec, drafts), strict=True), start=1):
        if u <= h:
            kept = i
    with np.errstate(divide="ignore"):
        race = np.log(kept_by(z[kept], spec)) + noise[kept]
    if kept < len(drafts):
        race[drafts[kept]] = -np.inf
    return kept, int(race.argmax())


def sampler_of(spec, seed, rule=RULE, scheme=OWN):
    return BlockSampler(rule, spec, scheme, seed, PROMPT)


def step_of(seed, drafts):
    """Logits of a step's rows, its drafts (some likely, some not) and the output before it."""
    generator = np.random.default_rng(seed)
    z = generator.normal(size=(drafts + 1, VOCABULARY)).astype(np.float32) * 2.0
    likely = z[:drafts].argmax(axis=1)
    chosen = np.where(
        generator.uniform(size=drafts) < 0.7, likely, generator.integers(VOCABULARY, size=drafts)
    )
    before = generator.integers(VOCABULARY, size=int(generator.integers(1, 5)))
    return z, tuple(chosen.tolist()), before.astype(np.int64)


def noise_of(seed, first, rows):
    keys = OWN.row_keys(seed, PROMPT, first, first + rows)
    return np.stack([keyed_noise(OWN.noise, key[None], np.arange(VOCABULARY)[None])[0] for key in keys])


def expected(z, spec, seed, drafts, before):
    coins = RULE.step_coins(seed, PROMPT, len(before), len(drafts))
    return block_step(z, spec, noise_of(seed, len(before), len(z)), coins, drafts)


def edges_apart(z, spec):
    """Whether no filter's edge is so near that two ways of adding up may differ."""
    ramp = np.linspace(-1e-4, 1e-4, z.shape[1]).astype(np.float32)
    return all(((kept_by(row, spec) > 0) == (kept_by(row + ramp, spec) > 0)).all() for row in z)


SEEDS = st.integers(0, 2**32)
STEPS = st.tuples(SEEDS, st.integers(0, 5), st.sampled_from(list(SPECS)))


def scored(z, spec, seed, before, claim, own, rule=RULE, scheme=OWN):
    return sampler_of(spec, seed, rule, scheme).score(torch.from_numpy(z), before, claim, own)


@given(STEPS)
def test_a_step_is_the_papers(case):
    seed, count, name = case
    z, drafts, before = step_of(seed, count)
    spec = SPECS[name]
    assume(edges_apart(z, spec))
    drawn = sampler_of(spec, seed).draw(torch.from_numpy(z), before, drafts)
    assert drawn == expected(z, spec, seed, drafts, before)


@given(STEPS)
def test_of_all_claims_on_a_step_just_the_papers_costs_nothing(case):
    seed, count, name = case
    z, drafts, before = step_of(seed, count)
    spec = SPECS[name]
    assume(edges_apart(z, spec))
    legal = expected(z, spec, seed, drafts, before)
    free = []
    for kept, own in product(range(count + 1), range(VOCABULARY)):
        if kept < count and own == drafts[kept]:
            continue  # that would be a longer step
        claim = Step(len(before), drafts, kept)
        stats = scored(z, spec, seed, before, claim, own)
        assert (stats.matched == (stats.margin == 0.0)).all()
        if stats.matched.all():
            free.append((kept, own))
        if kept != legal[0]:
            # One token shows it: the first that is not the paper's.
            apart = min(kept, legal[0])
            paper = (*drafts[: legal[0]], legal[1])
            assert not stats.matched[apart]
            assert stats.winner[apart] == paper[apart]
            assert stats.matched[:apart].all()
            assert stats.forced[apart + 1 : kept][~stats.outside[apart + 1 : kept]].all()
    assert free == [legal]


@given(STEPS)
def test_an_output_that_ends_amid_its_drafts_claims_that_at_least_these_were_kept(case):
    seed, count, name = case
    z, drafts, before = step_of(seed, count)
    spec = SPECS[name]
    assume(count > 0 and edges_apart(z, spec))
    legal, _ = expected(z, spec, seed, drafts, before)
    for kept in range(1, count + 1):
        stats = scored(z[:count], spec, seed, before, Step(len(before), drafts, kept, ended=False), None)
        assert len(stats.margin) == kept
        assert stats.matched.all() == (legal >= kept)


def odds_of(z, spec, seed, before, drafts):
    keys = OWN.row_keys(seed, PROMPT, len(before), len(before) + len(drafts))
    logits = torch.from_numpy(np.asarray(z[: len(drafts)], np.float32))
    rows = race_rows(logits, np.array(drafts, np.int64), spec, OWN, keys)
    return [DraftOdds.at(row, draft) for row, draft in zip(rows, drafts, strict=True)]


@given(SEEDS, st.integers(1, 5), st.sampled_from(["plain", "cold"]))
def test_a_movement_of_the_cost_turns_the_coin_and_none_much_smaller_does(seed, count, name):
    z, drafts, before = step_of(seed, count)
    spec = SPECS[name]
    coins = RULE.step_coins(seed, PROMPT, len(before), count)
    ends = ends_of(odds_of(z, spec, seed, before, drafts), coins)
    for i in range(1, count + 1):
        for cost, direction in ((ends.accepting[i], 1.0), (ends.turning[i], -1.0)):
            if cost in (0.0, 100.0):
                continue
            for share, turned in ((1.001, True), (0.999, False)):
                moved = z.astype(np.float64)
                for r, draft in enumerate(drafts[: i + 1]):
                    moved[r, draft] += direction * cost * share * (1.0 if r < i else -1.0)
                h = thresholds(moved, spec, drafts)[i - 1]
                assert (coins[i - 1] <= h) == (turned == (direction > 0))


@given(SEEDS, st.integers(1, 5), st.sampled_from(list(SPECS)), SEEDS)
def test_numeric_noise_below_half_the_slack_changes_no_token(seed, count, name, shake):
    """Under filters too: what noise puts in or out of them is part of the slack."""
    z, drafts, before = step_of(seed, count)
    spec = SPECS[name]
    assume(edges_apart(z, spec))
    kept, own = expected(z, spec, seed, drafts, before)
    slack = scored(z, spec, seed, before, Step(len(before), drafts, kept), own).slack.min()
    noise = np.random.default_rng(shake).choice([-1.0, 1.0], size=z.shape) * min(slack, 50.0) * 0.499
    shaken = (z + noise).astype(np.float32)
    assert expected(shaken, spec, seed, drafts, before) == (kept, own)


@given(SEEDS, st.integers(1, 4), st.sampled_from(list(SPECS)), st.floats(0.001, 0.2), SEEDS)
def test_an_honest_providers_rounding_explains_all_its_misses(seed, count, name, scale, shake):
    """Whatever a provider whose logits are off by at most x samples, no margin is more than 2x."""
    z, drafts, before = step_of(seed, count)
    spec = SPECS[name]
    noise = np.random.default_rng(shake).choice([-1.0, 0.0, 1.0], size=z.shape) * scale
    shaken = (z + noise).astype(np.float32)
    assume(edges_apart(z, spec) and edges_apart(shaken, spec))
    kept, own = expected(shaken, spec, seed, drafts, before)
    stats = scored(z, spec, seed, before, Step(len(before), drafts, kept), own)
    assert stats.margin.max() <= 2.0 * scale + 1e-5


def engines_threshold(ratio, following):
    """h in the float32 arithmetic of vLLM's kernel, from w and p(next); above 1 it is as good as 1."""
    if following is None:
        return ratio
    residue = ratio * (np.float32(1.0) - following)
    rest = residue + np.float32(1.0) - ratio
    return min(residue / rest, np.float32(1.0)) if rest > 0 else np.float32(1.0)


@given(st.lists(st.floats(-3.0, 18.0), min_size=1, max_size=6), st.floats(-3.0, 18.0) | st.none(), SEEDS)
def test_the_doubt_covers_float32_thresholds(odds, following, seed):
    """Drafts that are all but certain leave 1 - w to rounding, and h with it."""
    off = np.random.default_rng(seed).uniform(-1.0, 1.0, size=len(odds) + 1) * 2.0**-20
    likelihoods = [-np.log1p(np.exp(-o)) + e for o, e in zip(odds, off, strict=False)]
    log_p = np.float32(0.0)
    for value in likelihoods:
        log_p = min(log_p + np.float32(value), np.float32(0.0))
    behind = None
    if following is not None:
        behind = np.exp(np.float32(min(-np.log1p(np.exp(-following)) + off[-1], 0.0)))
    h = float(engines_threshold(np.exp(log_p), behind))
    assert threshold(odds, following, -VLLM.doubt) <= h <= threshold(odds, following, VLLM.doubt)


def test_vllms_own_rounding_turns_down_drafts_that_are_certain_and_is_admitted():
    """w rounds to 1 and p(next) to 1 - 3 * 2^-24: the kernel computes h = 0.75, where exactly it is near 1."""
    assert engines_threshold(np.float32(1.0), np.float32(1.0 - 3 * 2.0**-24)) == 0.75
    certain = DraftOdds(40.0, np.inf, 1.0, [], [0.0], [], [0.0])
    likely = DraftOdds(float(-np.log(3 * 2.0**-24)), np.inf, 1.0, [], [0.0], [], [0.0])
    ends = ends_of([certain, likely, certain], [0.9, 0.5, 0.5], VLLM.doubt)
    assert ends.accepting[1] == ends.turning[1] == 0.0


TABLE = np.random.default_rng(12).normal(size=(4, 4)).astype(np.float32)


def two_tokens(sampler, drafts_after):
    """The first two tokens of a provider whose target is a table of the last token."""
    output = [0]
    while len(output) < 3:
        drafts = drafts_after(output)
        z = torch.from_numpy(TABLE[[output[-1], *drafts]])
        kept, own = sampler.draw(z, np.array(output[1:], np.int64), tuple(drafts))
        output += [*drafts[:kept], own]
    return output[1:3]


def likeliest_after(output):
    drafts = [int(TABLE[output[-1]].argmax())]
    for _ in range(2):
        drafts.append(int(TABLE[drafts[-1]].argmax()))
    return drafts


def statistic_of(rule, scheme, spec, runs=3_000):
    """Chi-square of pairs of tokens against plain sampling."""
    p = np.stack([kept_by(row, spec) for row in TABLE])
    wanted = (p[0][:, None] * p) * runs
    seen = np.zeros((4, 4))
    for seed in range(runs):
        first, second = two_tokens(sampler_of(spec, seed, rule, scheme), likeliest_after)
        seen[first, second] += 1
    assert seen[wanted == 0].sum() == 0
    rare = wanted < 10  # counted together
    seen, wanted = (np.append(x[~rare], x[rare].sum()) for x in (seen, wanted))
    return float(((seen - wanted) ** 2 / np.maximum(wanted, 1.0)).sum())


@pytest.mark.parametrize("name", ["plain", "cold", "top-p"])
def test_tokens_follow_the_models_distribution_across_steps(name):
    assert statistic_of(RULE, OWN, SPECS[name]) < 45.0  # at most 16 degrees of freedom: 1.4e-4


def test_vllms_do_not_for_the_next_step_looks_at_a_steps_coins_again():
    """Why a `block` log of vLLM is never tested by its distribution."""
    assert statistic_of(VLLM, MURMUR, SPECS["plain"], runs=2_000) > 80.0


@pytest.mark.parametrize("seed", range(4))
def test_as_many_drafts_are_kept_as_by_standard_acceptance(seed):
    """On average; one-hot drafts leave nothing to gain: P(at least i kept) is w_i in both."""
    z, drafts, before = step_of(seed, 4)
    odds = odds_of(z, SPECS["plain"], seed, before, drafts)
    p = [kept_by(row, SPECS["plain"])[draft] for row, draft in zip(z, drafts, strict=False)]
    by_standard = np.cumprod(p)
    coins = np.random.default_rng(seed).uniform(size=(6_000, 4))
    kept = np.array([kept_of(odds, row) for row in coins])
    shares = np.array([(kept >= i).mean() for i in range(1, 5)])
    assert np.abs(shares - by_standard).max() < 4.0 * 0.5 / np.sqrt(6_000)
    assert kept.mean() >= by_standard.sum() - 4.0 * kept.std() / np.sqrt(6_000)


@pytest.mark.parametrize("vector", COINS["vectors"])
def test_own_coins_are_the_published_ones(vector):
    coins = RULE.step_coins(vector["seed"], vector["position"], 0, len(vector["u"]))
    assert [u.hex() for u in coins] == vector["u"]


def test_vllms_coins_are_those_of_the_rows_positions():
    standard = find_rule("standard", MURMUR, "0.32.0")
    assert (VLLM.step_coins(5, 9, 3, 4) == standard.coins(5, positions(9 - 1, 3, 7))).all()


VECTORS = Path(__file__).parents[2] / "vectors"
RUN = json.loads((VECTORS / "block-verification.json").read_text())["cases"]


def vllms_case(number):
    """As `tests/vectors/block_verification.py` lays it out, which needs Triton's interpreter."""
    generator = np.random.default_rng(number)
    count = int(generator.integers(0, 6))
    z = (generator.normal(size=(count + 1, 50)) * 1.5).astype(np.float32)
    likely = z[:count].argmax(axis=1)
    z[np.arange(count), likely] += generator.uniform(0.0, 6.0, size=count).astype(np.float32)
    other = generator.integers(50, size=count)
    drafts = np.where(generator.uniform(size=count) < 0.85, likely, other)
    return int(generator.integers(2**40)), int(generator.integers(4000)), z, tuple(drafts.tolist())


@pytest.mark.parametrize("run", RUN, ids=lambda run: run["release"])
def test_steps_end_as_vllms_own_kernels_ended_them(run):
    """The released wheels' rejection kernels, run in Triton's interpreter."""
    scheme = noise_scheme(run["scheme"])
    rule = find_rule("block", scheme, run["release"])
    lengths = set()
    for number, (kept, own) in enumerate(run["steps"]):
        seed, consumed, z, drafts = vllms_case(number)
        sampler = BlockSampler(rule, SamplingSpec(), scheme, seed, consumed + 1)
        none = np.empty(0, np.int64)
        assert sampler.draw(torch.from_numpy(z), none, drafts) == (kept, own)
        assert sampler.score(torch.from_numpy(z), none, Step(0, drafts, kept), own).matched.all()
        lengths.add((len(drafts), kept))
    assert len(lengths) > 12


LOGS = st.lists(st.lists(st.integers(-1, 12), max_size=4), min_size=1, max_size=10)


@given(LOGS, st.data())
def test_steps_are_read_off_the_output(proposed, data):
    output, made = [], []
    for drafts in proposed:
        judged = drafts[: drafts.index(-1)] if -1 in drafts else drafts
        kept = data.draw(st.integers(0, len(judged)))
        turned_down = judged[kept] if kept < len(judged) else NO_DRAFT
        own = data.draw(st.integers(0, 12).filter(lambda t, d=turned_down: t != d))
        made.append(Step(len(output), tuple(judged), kept))
        output += [*judged[:kept], own]
    assert steps_of(proposed, output) == tuple(made)
    if made[-1].kept:
        cut = steps_of(proposed, output[:-1])
        assert cut[-1] == Step(made[-1].first, made[-1].drafts, made[-1].kept, ended=False)
        assert sum(step.tokens for step in cut) == len(output) - 1


DEMO = Path(__file__).parents[3] / "reference" / "demo"


def plain_loop(target, drafter, prompt, seed, spec, tokens):
    """Tokens and drafts of each step; every row is computed afresh from whole sequences."""

    def rows(model, text, first):
        hidden = model.prefill([torch.tensor(text)])
        return model.logits(hidden[first:])

    output, steps = [], []
    while len(output) < tokens:
        drafts = []
        for _ in range(min(4, tokens - len(output) - 1) if output else 0):
            drafts.append(int(rows(drafter, [*prompt, *output, *drafts], -1)[-1].argmax()))
        z = rows(target, [*prompt, *output, *drafts], len(prompt) + len(output) - 1).numpy()
        keys = OWN.row_keys(seed, len(prompt), len(output), len(output) + len(z))
        everything = np.arange(z.shape[1])[None]
        noise = np.stack([keyed_noise(OWN.noise, key[None], everything)[0] for key in keys])
        coins = RULE.step_coins(seed, len(prompt), len(output), len(drafts))
        kept, own = block_step(z, spec, noise, coins, drafts)
        output += [*drafts[:kept], own]
        steps.append(tuple(drafts))
    return tuple(output), tuple(steps)


@pytest.mark.parametrize("name", ["plain", "top-p"])
def test_a_provider_plays_what_a_plain_loop_makes_of_whole_sequences(name):
    target, drafter = (Model.load(DEMO / part) for part in ("target", "draft"))
    prompts = [(1, 300, 41, 77), (1, 512, 9, 1000, 1001, 2222, 48), (1, 17)]
    asks = [
        Ask(p, len(p), SPECS[name], 60 + n, OWN, 30 - 9 * n, frozenset(), speculation=RULE)
        for n, p in enumerate(prompts)
    ]
    steps = []
    outputs = list(
        generate(target, asks, drafter=ModelDrafter(drafter, noise_aware=False), on_steps=steps.append)
    )
    for ask, output, taken in zip(asks, outputs, steps, strict=True):
        assert len(output) == ask.max_tokens
        assert (output, taken) == plain_loop(target, drafter, ask.prompt, ask.seed, ask.spec, ask.max_tokens)
    assert max(len(o) / len(s) for o, s in zip(outputs, steps, strict=True)) > 1.2
