"""`Model`: equal to transformers, the same by prefill and by decoding, and changed only as asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from auditor.errors import (
    ContextLengthError,
    OptionError,
    TokenOutOfRangeError,
    TraceFieldError,
)
from auditor.reference.batch import extend
from auditor.reference.layers.rotary import frequencies
from auditor.reference.model import Model
from auditor.reference.slots import Sequence

TARGET = Path(__file__).parents[2] / "reference" / "demo" / "target"
SMALL = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}
ARCHITECTURES = {
    "llama3-rope-biases-untied": lambda: LlamaForCausalLM(
        LlamaConfig(**SMALL, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True)
    ),
    "llama-linear-rope-wide-heads": lambda: LlamaForCausalLM(
        LlamaConfig(**SMALL, rope_parameters=LINEAR, head_dim=16, tie_word_embeddings=True)
    ),
    "mistral-sliding-window": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=7)),
    "qwen2-tied": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, tie_word_embeddings=True)),
    "qwen2-some-layers-slide": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=5, max_window_layers=1)
    ),
    "qwen3-norms": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=8)),
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # two that wait for each other on busy cores take many times as long
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def target():
    return Model.load(TARGET)


@pytest.fixture(params=ARCHITECTURES)
def checkpoint(request, tmp_path):
    return save(tmp_path, request.param)


def save(directory, architecture, **options):
    torch.manual_seed(7)
    model = ARCHITECTURES[architecture]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "norm.weight")):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(directory, **options)
    return directory


def random_sequences(lengths, vocab_size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocab_size, (length,), generator=generator) for length in lengths]


@torch.no_grad()
def transformers_logits(directory, sequences, dtype):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    return torch.cat([model(tokens[None]).logits[0].float() for tokens in sequences])


def our_logits(model, sequences):
    return model.logits(model.prefill(sequences))


def prefilled(model, sequences):
    """A cache that holds the given tokens of every sequence."""
    cache, held = model.new_cache(), [Sequence() for _ in sequences]
    spans = [extend(cache, own, tokens) for own, tokens in zip(held, sequences, strict=True)]
    model.forward(spans, cache)
    for own, tokens in zip(held, sequences, strict=True):
        own.length += len(tokens)
    return cache, held


def decoded(model, cache, held, tokens):
    """Hidden states [sequences, hidden] after one more token each."""
    spans = [extend(cache, own, token[None]) for own, token in zip(held, tokens, strict=True)]
    hidden = model.forward(spans, cache, exact=False)
    for own in held:
        own.length += 1
    return hidden


def by_decoding(model, sequences, prompt):
    """Hidden states of positions `prompt`.. of every sequence, one step at a time; finished rows leave."""
    cache, held = prefilled(model, [tokens[:prompt] for tokens in sequences])
    steps = [[] for _ in sequences]
    for position in range(prompt, max(len(tokens) for tokens in sequences)):
        alive = [row for row, tokens in enumerate(sequences) if len(tokens) > position]
        tokens = [sequences[row][position] for row in alive]
        for row, state in zip(
            alive, decoded(model, cache, [held[row] for row in alive], tokens), strict=True
        ):
            steps[row].append(state)
    return [torch.stack(states) for states in steps]


def worst(ours, theirs):
    """Largest difference as a share of the largest entry."""
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())


def test_demo_model_in_float32_is_transformers(target):
    sequences = random_sequences([57, 200, 3, 1, 128], 4096)
    assert worst(our_logits(target, sequences), transformers_logits(TARGET, sequences, torch.float32)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide_matmul", [False, True])
def test_demo_model_in_16_bits_errs_as_transformers_does(target, dtype, wide_matmul):
    sequences = random_sequences([57, 90, 3], 4096)
    truth = our_logits(target, sequences)
    ours = our_logits(Model.load(TARGET, dtype=dtype, wide_matmul=wide_matmul), sequences)
    theirs = transformers_logits(TARGET, sequences, dtype)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, ours.to(dtype).float())  # rounded before the cast, as engines do
    assert 0.8 < float((ours - truth).std() / (theirs - truth).std()) < 1.25
    assert float((ours - theirs).std()) < 1.2 * float((theirs - truth).std())


def test_every_architecture_is_transformers(checkpoint):
    sequences = random_sequences([40, 5, 90, 1], 128)
    ours = our_logits(Model.load(checkpoint), sequences)
    assert worst(ours, transformers_logits(checkpoint, sequences, torch.float32)) < 1e-5


def test_every_architecture_in_bfloat16_errs_as_transformers_does(checkpoint):
    sequences = random_sequences([40, 5, 90], 128)
    truth = our_logits(Model.load(checkpoint), sequences)
    ours = our_logits(Model.load(checkpoint, dtype=torch.bfloat16), sequences)
    theirs = transformers_logits(checkpoint, sequences, torch.bfloat16)
    assert 0.8 < float((ours - truth).std() / (theirs - truth).std()) < 1.25


def test_frequencies_are_transformers_to_the_bit(checkpoint):
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint).model.rotary_emb.inv_freq
    rope = Model.load(checkpoint).config.layers[0].mixer.rope
    assert torch.equal(frequencies(rope, 2 * len(theirs)), theirs)


@pytest.mark.parametrize("architecture", ["llama3-rope-biases-untied", "qwen2-tied"])
def test_a_sharded_checkpoint_is_the_same_model(tmp_path, architecture):
    whole = Model.load(save(tmp_path / "whole", architecture))
    split = Model.load(save(tmp_path / "split", architecture, max_shard_size="40KB"))
    assert len(list((tmp_path / "split").glob("*.safetensors"))) > 2
    assert whole.digest != split.digest
    assert whole.parameters.keys() == split.parameters.keys()
    assert all(torch.equal(whole.parameters[name], split.parameters[name]) for name in whole.parameters)


def test_parameters_are_the_files_tensors_under_their_names(target):
    stored = load_file(TARGET / "model.safetensors")
    assert target.parameters.keys() == stored.keys()
    assert all(torch.equal(target.parameters[name], stored[name].float()) for name in stored)


@pytest.mark.parametrize(
    ("dtype", "wide_matmul", "bound"),
    [(torch.float32, False, 1e-5), (torch.bfloat16, False, 0.02), (torch.bfloat16, True, 0.02)],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_company_does_not_change_a_sequence(dtype, wide_matmul, bound, threads):
    torch.set_num_threads(threads)
    model = Model.load(TARGET, dtype=dtype, wide_matmul=wide_matmul)
    lengths = [1, 2, 3, 5, 9, 17, 64, 100]
    sequences = random_sequences(lengths, 4096)
    packed = model.prefill(sequences).split(lengths)
    reversed_order = model.prefill(sequences[::-1]).split(lengths[::-1])[::-1]
    for tokens, one, other in zip(sequences, packed, reversed_order, strict=True):
        assert worst(model.prefill([tokens]), one) <= bound
        assert worst(other, one) <= bound


def test_decoding_in_float32_is_prefill(checkpoint):
    model = Model.load(checkpoint)
    sequences = random_sequences([40, 12, 90, 25], 128)
    for tokens, states in zip(sequences, by_decoding(model, sequences, prompt=4), strict=True):
        assert worst(states, model.prefill([tokens])[4:]) < 1e-5


@pytest.mark.parametrize("wide_matmul", [False, True])
def test_decoding_in_bfloat16_differs_from_prefill_by_rounding_only(target, wide_matmul):
    model = Model.load(TARGET, dtype=torch.bfloat16, wide_matmul=wide_matmul)
    (tokens,) = random_sequences([40], 4096)
    (states,) = by_decoding(model, [tokens], prompt=4)
    truth, prefilled = target.prefill([tokens])[4:], model.prefill([tokens])[4:]
    assert float((states - prefilled).float().std()) < 1.5 * float((prefilled - truth).std())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_a_ragged_batch_is_decoding_one_by_one(dtype):
    model = Model.load(TARGET, dtype=dtype, wide_matmul=True)
    sequences = random_sequences([30, 9, 17], 4096)
    together = by_decoding(model, sequences, prompt=4)
    for tokens, states in zip(sequences, together, strict=True):
        (alone,) = by_decoding(model, [tokens], prompt=4)
        assert worst(states, alone) < (1e-5 if dtype is torch.float32 else 0.02)


def test_decoding_may_start_from_nothing(target):
    (tokens,) = random_sequences([6], 4096)
    cache, held = target.new_cache(), [Sequence()]
    states = torch.cat([decoded(target, cache, held, [token]) for token in tokens])
    assert held[0].length == 6
    assert worst(states, target.prefill([tokens])) < 1e-5


def test_released_slots_can_take_a_new_prompt(target):
    long, short = random_sequences([30, 8], 4096)
    cache, (held,) = prefilled(target, [long])
    capacity = cache.capacity
    cache.release(held)
    target.forward([extend(cache, held, short[:7])], cache)
    held.length = 7
    assert cache.capacity == capacity
    assert worst(decoded(target, cache, [held], short[7:]), target.prefill([short])[7:]) < 1e-5


def test_results_are_ordinary_tensors(target):
    logits = our_logits(target, random_sequences([3], 4096))
    logits /= 0.7  # callers apply temperatures in place
    assert logits.shape == (3, 4096)


def test_nothing_in_gives_nothing_out(target):
    assert target.prefill([]).shape == (0, 256)
    assert target.logits(target.prefill([])).shape == (0, 4096)


@pytest.mark.parametrize("wide_matmul", [False, True])
def test_replaced_weights_are_those_of_a_checkpoint_saved_so(tmp_path, wide_matmul):
    directory = save(tmp_path, "llama3-rope-biases-untied")
    model = Model.load(directory, dtype=torch.bfloat16, wide_matmul=wide_matmul)
    sequences = random_sequences([20], 128)
    before = our_logits(model, sequences)
    seen = {}

    def coarser(name, tensor):
        seen[name] = tensor.dtype
        return (tensor * 8).round() / 8

    changed = model.replace(weights=coarser)
    stored = load_file(directory / "model.safetensors")
    assert seen == dict.fromkeys(stored, torch.bfloat16)
    save_file(
        {name: coarser(name, tensor.bfloat16()) for name, tensor in stored.items()},
        directory / "model.safetensors",
    )
    rewritten = Model.load(directory, dtype=torch.bfloat16, wide_matmul=wide_matmul)
    assert torch.equal(our_logits(changed, sequences), our_logits(rewritten, sequences))
    assert torch.equal(our_logits(model, sequences), before)
    assert changed.digest == model.digest != rewritten.digest


def test_the_key_value_hook_sees_every_token_once(target):
    calls = []

    def record(layer, keys, values):
        calls.append((layer, keys.shape, values.shape))
        return keys, values

    watched = target.replace(key_value=record)
    sequences = random_sequences([5, 7], 4096)
    cache, held = prefilled(watched, sequences)
    assert calls == [(layer, (12, 2, 64), (12, 2, 64)) for layer in range(5)]
    calls.clear()
    decoded(watched, cache, held, torch.tensor([9, 9]))
    assert calls == [(layer, (2, 2, 64), (2, 2, 64)) for layer in range(5)]


def test_hooked_keys_and_values_are_stored_and_attended(target):
    def coarser(_layer, keys, values):
        return (keys * 2).round() / 2, (values * 2).round() / 2

    model = target.replace(key_value=coarser)
    (tokens,) = random_sequences([12], 4096)
    cache, held = prefilled(model, [tokens[:11]])
    assert all(torch.equal(keys, (keys * 2).round() / 2) for keys in cache.keys)
    truth = model.prefill([tokens])[11:]
    assert worst(decoded(model, cache, held, tokens[11:]), truth) < 1e-5
    assert worst(truth, target.prefill([tokens])[11:]) > 1e-3
    plain = model.replace(key_value=lambda _layer, keys, values: (keys, values))
    assert torch.equal(plain.prefill([tokens]), target.prefill([tokens]))


def test_a_skipped_layer_is_a_layer_that_adds_nothing(target):
    def silence(name, tensor):
        silent = name.startswith("model.layers.2.") and "norm" not in name
        return torch.zeros_like(tensor) if silent else tensor

    sequences = random_sequences([30], 4096)
    skipped = target.replace(skip_layers=frozenset({2}))
    assert torch.equal(skipped.prefill(sequences), target.replace(weights=silence).prefill(sequences))
    both = skipped.replace(skip_layers=frozenset({4}))
    together = target.replace(skip_layers=frozenset({2, 4}))
    assert torch.equal(both.prefill(sequences), together.prefill(sequences))
    (states,) = by_decoding(both, sequences, prompt=4)
    assert worst(states, both.prefill(sequences)[4:]) < 1e-5
    assert torch.equal(both.replace(weights=lambda _, t: t).prefill(sequences), both.prefill(sequences))
    with pytest.raises(OptionError):
        target.replace(skip_layers=frozenset({5}))


def test_bad_tokens_are_refused(target):
    good = torch.tensor([1, 2])
    for bad, error in (
        (torch.tensor([4096]), TokenOutOfRangeError),
        (torch.tensor([-1]), TokenOutOfRangeError),
        (torch.tensor([], dtype=torch.int64), TraceFieldError),
        (torch.tensor([[1]]), TraceFieldError),
        (torch.tensor([1], dtype=torch.int32), OptionError),
        (torch.ones(513, dtype=torch.int64), ContextLengthError),
    ):
        with pytest.raises(error, match="sequence 1"):
            target.prefill([good, bad])


def test_decoding_past_the_context_is_refused(tmp_path):
    model = Model.load(save(tmp_path, "qwen2-tied"))
    cache, held = prefilled(model, random_sequences([96], 128))
    with pytest.raises(ContextLengthError):
        decoded(model, cache, held, torch.tensor([1]))
    assert held[0].length == 96


def test_other_dtypes_are_refused():
    with pytest.raises(OptionError):
        Model.load(TARGET, dtype=torch.float64)
