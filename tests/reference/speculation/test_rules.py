"""Rules of speculation: coins to the bit, drafts read off the log, and nothing guessed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.errors import NoiseUnknownError, TraceFieldError
from auditor.reference.noise import noise_scheme
from auditor.reference.noise.scheme import positions
from auditor.reference.speculation import NO_DRAFT, drafts_of_steps, find_rule

COINS = json.loads((Path(__file__).parents[2] / "vectors" / "gumbel-pos-v1.json").read_text())["coins"]
MURMUR = noise_scheme("vllm-gpu-v2/murmur32")


@pytest.mark.parametrize("vector", COINS["vectors"])
def test_own_coins_are_the_published_ones(vector):
    rule = find_rule("standard", noise_scheme("gumbel-pos-v1"), None)
    consumed = positions(vector["position"] - 1, 0, 1)
    assert rule.coins(vector["seed"], consumed)[0].hex() == vector["u"]


def test_coins_and_noise_of_one_position_have_nothing_to_do_with_each_other():
    scheme = noise_scheme("gumbel-pos-v1")
    rule = find_rule("standard", scheme, None)
    coins = rule.coins(3, positions(9, 0, 4000))
    keys = scheme.row_keys(3, 10, 0, 4000)
    lead = keys.astype(np.float64) / 2.0**64
    assert abs(np.corrcoef(coins, lead)[0, 1]) < 0.06
    assert abs(coins.mean() - 0.5) < 0.03


def philox_words(seed, offset):
    """Philox-4x32-10 as in Salmon et al., SC 2011, in plain integers."""
    c, k, low = [offset & 0xFFFFFFFF, offset >> 32, 0, 0], [seed & 0xFFFFFFFF, seed >> 32], 0xFFFFFFFF
    for _ in range(10):
        left, right = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(right >> 32) ^ c[1] ^ k[0], right & low, (left >> 32) ^ c[3] ^ k[1], left & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return c


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**20))
def test_vllm_coins_are_tritons_uniforms_at_the_token_consumed_last(seed, position):
    """As `tl_rand32` and `tl_rand64` of the releases named are written."""
    low, high, _, _ = philox_words(seed, position)
    signed = low - 2**32 if low >= 2**31 else low
    single = np.float32(-signed - 1 if signed < 0 else signed) * np.float32(4.6566127342e-10)
    consumed = positions(position, 0, 1)
    newer = find_rule("standard", MURMUR, "0.32.0").coins(seed, consumed)[0]
    older = find_rule("standard", noise_scheme("vllm-gpu-v2/philox32"), "0.24.0").coins(seed, consumed)[0]
    assert newer == max(single, np.float32(4.6566127342e-10))
    assert older == pytest.approx(((high << 32) | low) * 2.0**-64, rel=1e-15)


@pytest.mark.parametrize(
    ("name", "scheme", "version"),
    [
        ("standard", "vllm-cpu-0.32/splitmix64", "0.32.0"),
        ("standard", "vllm-gpu-v2/murmur32", "0.33.0"),
        ("standard", "vllm-gpu-v2/murmur32", None),
        ("standard", "llama.cpp/mt19937-u64-icdf", "0.3.36"),
        ("block", "vllm-gpu-v2/philox32", "0.24.0"),
        ("k-seq", "gumbel-pos-v1", None),
    ],
)
def test_coins_that_nobody_has_read_are_refused(name, scheme, version):
    with pytest.raises(NoiseUnknownError, match="coins"):
        find_rule(name, noise_scheme(scheme), version)


STEPS = st.lists(st.lists(st.integers(0, 30), max_size=4), min_size=1, max_size=12)


@given(STEPS, st.data())
def test_drafts_are_those_that_the_engine_judged(steps, data):
    """Accept some of each step's drafts, end with a token that is not the draft turned down; read it back."""
    output, judged = [], []
    for step in steps:
        kept = data.draw(st.integers(0, len(step)))
        output += step[:kept]
        judged += step[:kept]
        turned_down = step[kept] if kept < len(step) else NO_DRAFT
        output.append(data.draw(st.integers(0, 31).filter(lambda t, d=turned_down: t != d)))
        judged.append(turned_down)
    # An output may end amid its last step, but not before it.
    cut = data.draw(st.integers(max(len(output) - kept, 1), len(output)))
    assert drafts_of_steps(steps, output[:cut]).tolist() == judged[:cut]


@pytest.mark.parametrize(
    ("steps", "output"), [([[]], [1, 2]), ([[], [5]], [1]), ([[], [5], []], [1, 5, 6]), ([], [1])]
)
def test_drafts_that_do_not_add_up_to_the_output_are_an_error(steps, output):
    with pytest.raises(TraceFieldError, match="draft_token_ids"):
        drafts_of_steps(steps, output)
