"""Noise schemes: frozen vectors, the engines' own generators, and refusal of what is unknown."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.errors import NoiseUnknownError
from auditor.kernels.splitmix import bits53, gumbel
from auditor.reference.noise import SCHEMES, Draws, check_engine, noise_scheme

POSITION = SCHEMES["gumbel-pos-v1"]
VLLM = SCHEMES["vllm-cpu-0.32/splitmix64"]
TORCH = SCHEMES["torch-cpu-multinomial"]
LLAMA = SCHEMES["llama.cpp/mt19937-u64-icdf"]
FROZEN = json.loads((Path(__file__).parents[1] / "vectors" / "gumbel-pos-v1.json").read_text())
SEEDS = [0, 1, 42, 2**31, 2**32 - 1, 2**32, 2**40 + 77, 2**63 - 1, -1, -3, -(2**63)]
GOLDEN = 0x9E3779B97F4A7C15


def mix_by_hand(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def mt19937_by_hand(seed, count):
    """`init_genrand` and `genrand_int32` of Matsumoto and Nishimura, in Python integers."""
    state = [seed % 2**32]
    for i in range(1, 624):
        state.append((1812433253 * (state[-1] ^ (state[-1] >> 30)) + i) % 2**32)
    words = []
    while len(words) < count:
        for i in range(624):
            y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7FFFFFFF)
            state[i] = state[(i + 397) % 624] ^ (y >> 1) ^ (0x9908B0DF if y & 1 else 0)
        for y in state:
            w = y ^ (y >> 11)
            w ^= (w << 7) & 0x9D2C5680
            w ^= (w << 15) & 0xEFC60000
            words.append(w ^ (w >> 18))
    return words[:count]


def torch_generator(seed):
    return torch.Generator().manual_seed(seed)


def seed_id(seed):
    return f"seed {seed}"


@pytest.mark.parametrize(
    "vector", FROZEN["vectors"], ids=lambda v: f"{v['seed']}-{v['position']}-{v['token']}"
)
def test_position_noise_is_the_frozen_one(vector):
    seed, position, token = vector["seed"], vector["position"], vector["token"]
    # By hand, from the text of the scheme.
    domain = int.from_bytes(hashlib.sha256(b"gumbel-pos-v1/noise").digest()[:8], "big")
    base = mix_by_hand((seed % 2**64) ^ domain)
    key = mix_by_hand((base + (position + 1) * GOLDEN) % 2**64)
    bits = mix_by_hand((key + (token + 1) * GOLDEN) % 2**64) >> 11
    u = (bits + 0.5) * 2.0**-53
    assert (f"{domain:016x}", f"{GOLDEN:016x}") == (FROZEN["domain"], FROZEN["golden"])
    assert (f"{key:016x}", f"{bits:014x}", u.hex()) == (vector["key"], vector["bits"], vector["u"])
    assert -math.log(-math.log1p(-u)) == pytest.approx(vector["g"], rel=1e-14)
    # By the scheme.
    ours = POSITION.row_keys(seed, position, 0, 1)
    drawn = bits53(ours, np.array([[token]]))
    assert (f"{int(ours[0]):016x}", f"{int(drawn[0, 0]):014x}") == (vector["key"], vector["bits"])
    assert gumbel(drawn, tail_safe=bool(POSITION.noise))[0, 0] == pytest.approx(vector["g"], rel=1e-14)


def test_the_frozen_vectors_reach_the_ends_of_the_seed_range():
    seeds = {v["seed"] for v in FROZEN["vectors"]}
    assert {0, 2**63 - 1, -1, -(2**63)} <= seeds
    assert len(FROZEN["vectors"]) >= 12


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 5000), st.integers(1, 50))
@settings(deadline=None)
def test_position_noise_depends_on_the_absolute_position_only(seed, prompt, moved):
    later = POSITION.row_keys(seed, prompt, moved, moved + 3)
    assert later.tolist() == POSITION.row_keys(seed, prompt + moved, 0, 3).tolist()


def test_position_noise_uses_all_64_bits_of_the_seed():
    low, high = POSITION.row_keys(7, 0, 0, 8), POSITION.row_keys(7 + 2**32, 0, 0, 8)
    assert set(low.tolist()).isdisjoint(high.tolist())


@pytest.mark.parametrize("seed", SEEDS, ids=seed_id)
def test_vllm_keys_come_from_torchs_randint(seed):
    generator = torch_generator(seed)
    drawn = [int(torch.randint(0, 2**31, (1,), generator=generator)) for _ in range(40)]
    assert VLLM.row_keys(seed, 9, 0, 40).tolist() == [mix_by_hand(s) for s in drawn]


@pytest.mark.parametrize(
    ("seed", "draws"),
    [(0, (398764591, 1478610112, 1537364731)), (1000, (882709079, 474091200, 44058974))],
)
def test_vllm_step_seeds_are_the_published_ones(seed, draws):
    assert VLLM.row_keys(seed, 0, 0, 3).tolist() == [mix_by_hand(s) for s in draws]


def test_vllm_keys_do_not_depend_on_the_prompt():
    assert VLLM.row_keys(5, 1, 3, 9).tolist() == VLLM.row_keys(5, 400, 3, 9).tolist()


@pytest.mark.parametrize("scheme", [VLLM, TORCH, LLAMA], ids=lambda s: s.name)
@pytest.mark.parametrize("seed", [3, 2**31 + 9])
def test_mersenne_seeds_congruent_modulo_2_to_the_32_draw_alike(scheme, seed):
    for other in (seed + 2**32, seed + 5 * 2**40, seed - 2**32):
        ours, theirs = (Draws(scheme, s, 4, 33).take(6) for s in (seed, other))
        assert ours.tolist() == theirs.tolist()
    assert Draws(scheme, seed, 4, 33).take(6).tolist() != Draws(scheme, seed + 1, 4, 33).take(6).tolist()


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, -3], ids=seed_id)
def test_torch_rows_are_the_generators_exponentials(seed):
    vocabulary, rows = 129, 5
    ours = Draws(TORCH, seed, 4, vocabulary).take(rows)
    generator = torch_generator(seed)
    theirs = torch.stack(
        [torch.empty(1, vocabulary).exponential_(generator=generator)[0] for _ in range(rows)]
    )
    assert np.exp(-ours) == pytest.approx(theirs.double().numpy(), rel=1e-12)
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("seed", [7, 2**31])
def test_torch_rows_can_be_had_without_torch(seed):
    """Two words an element, 53 bits, -log1p(-u) in float64, cast to float32."""
    vocabulary, rows = 64, 3
    words = np.array(mt19937_by_hand(seed, 2 * vocabulary * rows), np.uint64)
    u = ((words[::2] * np.uint64(2**32) + words[1::2]) & np.uint64(2**53 - 1)).astype(np.float64) * 2.0**-53
    exponentials = (-np.log1p(-u)).astype(np.float32).reshape(rows, vocabulary)
    ours = Draws(TORCH, seed, 4, vocabulary).take(rows)
    np.testing.assert_allclose(ours, -np.log(exponentials.astype(np.float64)), rtol=1e-6, atol=1e-7)
    if seed == 7:
        assert exponentials[0, :3] == pytest.approx([0.32764393, 0.31978348, 1.98117542], rel=1e-7)


@pytest.mark.parametrize("seed", [0, 5, 2**32 - 2], ids=seed_id)
def test_torch_rows_elect_what_multinomial_elects(seed):
    p = torch.softmax(torch.randn(6, 77, generator=torch_generator(1)), dim=1)
    generator = torch_generator(seed)
    theirs = [int(torch.multinomial(row[None], 1, generator=generator)) for row in p]
    ours = (p.double().log().numpy() + Draws(TORCH, seed, 0, 77).take(6)).argmax(axis=1)
    assert ours.tolist() == theirs


@pytest.mark.parametrize("seed", [0, 1234, 2**32 - 2, -7, 2**40 + 3], ids=seed_id)
def test_llama_cpp_uniforms_are_two_words_a_token(seed):
    words = mt19937_by_hand(seed, 1400)  # past the first refill of the twister's state
    theirs = [
        min((a + b * 2**32) / 2**64, 1 - 2.0**-53) for a, b in zip(words[::2], words[1::2], strict=True)
    ]
    assert LLAMA.uniforms(seed, 0, 700) == pytest.approx(theirs, rel=1e-15)
    assert LLAMA.uniforms(seed, 650, 700).tolist() == LLAMA.uniforms(seed, 0, 700)[650:].tolist()


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda s: s.name)
@pytest.mark.parametrize("pieces", [(1,) * 12, (5, 7), (1, 10, 1), (11, 1)])
def test_noise_taken_in_pieces_is_noise_taken_at_once(scheme, pieces):
    whole = Draws(scheme, 2**35 + 5, 17, 40).take(12)
    reader = Draws(scheme, 2**35 + 5, 17, 40)
    parts = [reader.take(n) for n in pieces]
    if scheme.name == "greedy":
        assert whole is None
        assert parts == [None] * len(pieces)
    else:
        assert np.concatenate(parts).tolist() == whole.tolist()


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda s: s.name)
def test_a_request_without_seed_draws_nothing(scheme):
    assert Draws(scheme, None, 17, 40).take(3) is None


def test_reading_noise_leaves_the_global_generators_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    for scheme in SCHEMES.values():
        Draws(scheme, 3, 2, 50).take(4)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


@pytest.mark.parametrize(
    "name", ["", "gumbel", "gumbel-pos-v2", "GUMBEL-POS-V1", "vllm-cpu-0.31/splitmix64", " greedy"]
)
def test_an_unknown_scheme_is_refused_not_guessed(name):
    with pytest.raises(NoiseUnknownError) as refusal:
        noise_scheme(name, where="line 3")
    assert "line 3" in str(refusal.value)


@pytest.mark.parametrize("name", SCHEMES)
def test_every_registered_scheme_answers_to_its_own_name(name):
    assert noise_scheme(name).name == name


@pytest.mark.parametrize(
    ("scheme", "engine", "version"),
    [
        (VLLM, "vllm", "0.31.0"),
        (VLLM, "vllm", "0.33.0"),
        (VLLM, "vllm", "0.320.0"),
        (VLLM, "vllm", "1.0.32.0"),
        (VLLM, "sglang", "0.32.0"),
        (VLLM, "transformers", None),
        (VLLM, None, "0.32.0"),
        (TORCH, "transformers", "4.57.0"),
        (TORCH, "vllm", "0.32.0"),
        (LLAMA, "llama.cpp", "llama-cpp-python 0.3.35"),
        (LLAMA, "ollama", None),
        (LLAMA, "llama.cpp", "b1234"),
    ],
)
def test_another_engine_or_release_is_refused(scheme, engine, version):
    with pytest.raises(NoiseUnknownError):
        check_engine(scheme, engine, version)


@pytest.mark.parametrize(
    ("scheme", "engine", "version"),
    [
        (VLLM, "vllm", "0.32.0"),
        (VLLM, "vllm", None),
        (VLLM, None, None),
        (TORCH, "transformers", "5.19.0"),
        (LLAMA, "llama.cpp", "llama-cpp-python 0.3.36"),
        (POSITION, "anything", "at all"),
        (SCHEMES["greedy"], "anything", None),
    ],
)
def test_the_confirmed_engine_and_schemes_of_no_engine_are_accepted(scheme, engine, version):
    check_engine(scheme, engine, version)
