"""Two processes with a part of a model each give what one process gives: by layers to the bit, by tensors nearly.

The file is its own second program: pytest starts it once a rank, and each rank leaves what it computed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import distributed

from auditor.errors import AuditError, OptionError
from auditor.reference.batch import Span, extend
from auditor.reference.decode import Ask, generate
from auditor.reference.demo.prompts import TARGET
from auditor.reference.head import RowStats
from auditor.reference.model import Model
from auditor.reference.noise import noise_scheme
from auditor.reference.parallel import ParallelModel
from auditor.reference.request import Request
from auditor.reference.runner import Runner
from auditor.reference.sampling import SamplingSpec
from auditor.reference.slots import Sequence

SCHEME = noise_scheme("gumbel-pos-v1")
# Largest and median difference of the demo model's logits, which go up to 15: about twice what was measured.
FLOAT32_BOUND, FLOAT32_MEDIAN = 5e-5, 3e-6
BFLOAT16_BOUND, BFLOAT16_MEDIAN, WIDE_MEDIAN = 0.75, 0.032, 0.004
# Share of the largest logit, of random models whose logits are far apart.
FAMILY_BOUND = 1e-5
SECONDS = 120

SMALL = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 84,
    "num_hidden_layers": 3,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "head_dim": 8,
    "max_position_embeddings": 160,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
CAPS = {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 10}
DIVISIBLE = {
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"sliding_window": 20}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma2": ("gemma2", CAPS | {"sliding_window": 20, "attention_bias": True}),
    "gemma3": ("gemma3_text", {"sliding_window": 20, "query_pre_attn_scalar": 10}),
    "phi3": ("phi3", {"sliding_window": 30}),
    "olmo2": ("olmo2", {}),
}
SIZES = ("intermediate_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings")
LATENT = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 10}
EXPERTS = {"moe_intermediate_size": 24, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
DEEPSEEK = LATENT | EXPERTS | {"num_key_value_heads": 12, "num_experts_per_tok": 2, "q_lora_rank": None}
MAMBA = dict.fromkeys(SIZES, ...) | {"num_heads": 12, "state_size": 16, "n_groups": 2}
INDIVISIBLE = {
    "mixtral": ("mixtral", {"num_local_experts": 4}, "layers with Experts are not divided"),
    "deepseek": ("deepseek_v3", DEEPSEEK, "layers with LatentAttention are not divided"),
    "mamba2": ("mamba2", MAMBA, "layers with Mamba2 are not divided"),
    "one-head": ("llama", {"num_key_value_heads": 1}, "1 key/value heads do not divide among 2 ranks"),
    "odd-width": ("qwen3", {"intermediate_size": 75}, "75 rows of a feed-forward part do not divide"),
}


def sequences(lengths=(40, 5, 150, 1), vocabulary=128):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, vocabulary, (length,), generator=generator) for length in lengths]


def requests():
    """Some with a long common beginning, one longer than the runner's budget."""
    ids = [tokens.tolist() for tokens in sequences((70, 4, 260, 33, 90), 4096)]
    prompts = [[*ids[0], *ids[1]], ids[2], [*ids[0], *ids[3]], ids[1]]
    return [
        Request(tuple(prompt), tuple(ids[4][: 20 + n]), SamplingSpec(top_p=0.9), n, SCHEME)
        for n, prompt in enumerate(prompts)
    ]


def scores(model):
    stats = RowStats.concatenate(list(Runner(model, token_budget=200).score(requests())))
    return {name: getattr(stats, name) for name in RowStats.__slots__}


def generated(model):
    spec, prompts = SamplingSpec(max_tokens=12), [request.prompt for request in requests()]
    return list(generate(model, [Ask(ids, len(ids), spec, 3, SCHEME, 12, frozenset()) for ids in prompts]))


def logits(model, vocabulary=128):
    """Of the later rows of each sequence."""
    spans = [Span(tokens, wanted=len(tokens) // 3) for tokens in sequences(vocabulary=vocabulary)]
    return model.logits(model.forward(spans))


def in_pieces(model):
    """A sequence in company and cut, which must not change it."""
    tokens, other = sequences((90, 31), 4096)
    cache, sequence, rows = model.new_cache(), Sequence(), []
    for part in tokens.split(40):
        spans = [Span(other), extend(cache, sequence, part)]
        rows.append(model.forward(spans, cache)[len(other) :])
        sequence.length += len(part)
    return model.prefill([tokens]), torch.cat(rows)


def by_rows(name, tensor):
    """What only a whole matrix shows: each row's largest entry, over all its inputs."""
    return tensor / tensor.abs().amax(1, keepdim=True) / 16 if name.endswith("proj.weight") else tensor


def by_heads(layer, keys, values):
    """What only all heads show."""
    return keys - keys.mean(1, keepdim=True) / 2, values.flip(1) if layer == 1 else values


CHANGES = {
    "weights": {"weights": by_rows},
    "key_value": {"key_value": by_heads},
    "skip_layers": {"skip_layers": frozenset({1, 4})},
    "last_rank_idle": {"skip_layers": frozenset({2, 3, 4})},
}


def error_of(action):
    try:
        action()
    except AuditError as error:
        return f"{type(error).__name__}: {error}"
    return None


# ---- what each rank runs


def on_rank(rank, count, folder):
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{count}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    found = on_three(folder) if count == 3 else on_two(rank, folder) | refusals(rank, folder)
    torch.save(found, folder / f"{rank}-of-{count}.pt")
    distributed.destroy_process_group()


def on_three(folder):
    by_tensors = [logits(ParallelModel.load(folder / "qwen3", by="tensors")) for _ in range(2)]
    by_layers = logits(ParallelModel.load(TARGET, by="layers"), 4096)
    return {"tensors": by_tensors[0], "again": by_tensors[1], "layers": by_layers}


def on_two(rank, folder):
    found = {}
    for by in ("layers", "tensors"):
        model = ParallelModel.load(TARGET, by=by)
        found[by, "scores"] = scores(model)
        found[by, "generated"] = generated(model)
        found[by, "logits"] = logits(model, 4096)
        found[by, "again"] = logits(ParallelModel.load(TARGET, by=by), 4096)
        found[by, "pieces"] = in_pieces(model)
        found[by, "kept"] = model.new_cache().layout
        found[by, "identity"] = model.digest, model.directory, model.config
        for name, change in CHANGES.items():
            found[by, name] = logits(model.replace(**change), 4096)
        twice = model.replace(weights=by_rows).replace(weights=lambda _, tensor: tensor * 0.9)
        found[by, "twice"] = logits(twice, 4096)
        for wide in (False, True):
            half = ParallelModel.load(TARGET, by=by, dtype=torch.bfloat16, wide_matmul=wide)
            found[by, "bfloat16", wide] = logits(half, 4096)
        found[by, "other rows"] = error_of(lambda: model.prefill([torch.tensor([7 + rank])]))  # noqa: B023
        found[by, "bad row"] = error_of(lambda: model.prefill([torch.tensor([4096])]))  # noqa: B023
        for name in DIVISIBLE:
            found[by, name] = logits(ParallelModel.load(folder / name, by=by))
    return found


def refusals(rank, folder):
    def load(directory, **options):
        return error_of(lambda: ParallelModel.load(directory, **options))

    found = {("tensors", name): load(folder / name, by="tensors") for name in INDIVISIBLE}
    found |= {
        ("layers", name): logits(ParallelModel.load(folder / name, by="layers")) for name in INDIVISIBLE
    }
    adapted = {"adapter": folder / "adapter"}
    found["tensors", "adapter"] = load(TARGET, by="tensors", **adapted)
    found["layers", "adapter"] = logits(ParallelModel.load(TARGET, by="layers", **adapted), 4096)
    found["one layer"] = load(folder / "one-layer", by="layers")
    found["other division"] = load(TARGET, by="rows")
    found["other dtype"] = load(TARGET, by="tensors", dtype=(torch.float32, torch.bfloat16)[rank])
    found["other model"] = load(folder / ("qwen2", "qwen3")[rank], by="layers")
    found["one fails"] = load((TARGET, folder / "nowhere")[rank], by="layers")
    return found


# ---- and what they are compared with


def _save(directory, model_type, **fields):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(7)
    values = {name: value for name, value in (SMALL | fields).items() if value is not ...}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values))
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.dim() == 1:
                tensor.add_(torch.randn_like(tensor) * 0.3)
    model.save_pretrained(directory)


def _save_adapter(directory):
    directory.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["o_proj"], "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    generator, tensors = torch.Generator().manual_seed(5), {}
    for layer in range(5):
        module = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        tensors[f"{module}.lora_A.weight"] = torch.randn(2, 256, generator=generator) / 16
        tensors[f"{module}.lora_B.weight"] = torch.randn(256, 2, generator=generator) / 16
    save_file(tensors, directory / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    for name, (model_type, fields, *_) in (DIVISIBLE | INDIVISIBLE).items():
        _save(folder / name, model_type, **fields)
    _save(folder / "one-layer", "llama", num_hidden_layers=1)
    _save_adapter(folder / "adapter")
    return folder


def joined(count, folder):
    """What each of so many ranks found."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    running = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(count), str(folder)], env=environment)
        for rank in range(count)
    ]
    try:
        codes = [process.wait(SECONDS) for process in running]
    finally:
        for process in running:
            process.kill()
    assert codes == [0] * count
    return [torch.load(folder / f"{rank}-of-{count}.pt", weights_only=False) for rank in range(count)]


@pytest.fixture(scope="module")
def ranks(folder):
    return joined(2, folder)


@pytest.fixture(scope="module")
def model():
    return Model.load(TARGET)


def apart(ours, theirs):
    difference = (ours - theirs).abs()
    return float(difference.max()), float(difference.median())


def test_every_rank_and_every_run_has_the_same_bits(ranks):
    first, second = ranks
    for key in [key for key, value in first.items() if isinstance(value, torch.Tensor)]:
        assert torch.equal(first[key], second[key]), key
    for by in ("layers", "tensors"):
        assert torch.equal(first[by, "again"], first[by, "logits"])
        assert first[by, "generated"] == second[by, "generated"]
        assert all(
            np.array_equal(values, second[by, "scores"][name]) for name, values in first[by, "scores"].items()
        )


def test_scores_by_layers_are_those_of_one_process(ranks, model):
    alone = scores(model)
    for found in ranks:
        assert all(np.array_equal(values, alone[name]) for name, values in found["layers", "scores"].items())
        assert found["layers", "generated"] == generated(model)


def test_scores_by_tensors_are_nearly_those_of_one_process(ranks, model):
    alone, found = scores(model), ranks[0]["tensors", "scores"]
    for name in ("claimed", "winner", "rank", "outside", "filtered", "top_ids"):
        assert np.array_equal(found[name], alone[name]), name
    for name in ("margin", "slack", "edge", "log_probability", "top_logits"):
        np.testing.assert_allclose(found[name], alone[name], rtol=0, atol=2 * FLOAT32_BOUND, err_msg=name)
    assert ranks[0]["tensors", "generated"] == generated(model)


def test_logits_by_tensors_stay_within_the_measured_bound(ranks, model):
    largest, median = apart(ranks[0]["tensors", "logits"], logits(model, 4096))
    assert 0 < largest < FLOAT32_BOUND
    assert median < FLOAT32_MEDIAN


@pytest.mark.parametrize("wide", [False, True])
def test_bfloat16_by_tensors_errs_as_one_process_does(ranks, model, wide):
    truth = logits(model, 4096)
    half = logits(Model.load(TARGET, dtype=torch.bfloat16, wide_matmul=wide), 4096)
    assert torch.equal(ranks[0]["layers", "bfloat16", wide], half)
    ours = ranks[0]["tensors", "bfloat16", wide]
    largest, median = apart(ours, half)
    assert largest < BFLOAT16_BOUND
    assert median < (WIDE_MEDIAN if wide else BFLOAT16_MEDIAN)
    assert 0.8 < apart(ours, truth)[1] / apart(half, truth)[1] < 1.25


@pytest.mark.parametrize("name", DIVISIBLE)
def test_every_dense_family_is_divided(ranks, folder, name):
    alone = logits(Model.load(folder / name))
    assert torch.equal(ranks[0]["layers", name], alone)
    assert apart(ranks[0]["tensors", name], alone)[0] < FAMILY_BOUND * float(alone.abs().max())


def test_three_ranks_have_one_order(folder, model):
    first, *others = joined(3, folder)
    assert all(torch.equal(other[key], first[key]) for other in others for key in first)
    assert torch.equal(first["again"], first["tensors"])
    assert torch.equal(first["layers"], logits(model, 4096))
    alone = logits(Model.load(folder / "qwen3"))
    assert apart(first["tensors"], alone)[0] < FAMILY_BOUND * float(alone.abs().max())


@pytest.mark.parametrize("by", ["layers", "tensors"])
def test_cutting_and_company_do_not_change_a_bit(ranks, by):
    whole, pieces = ranks[0][by, "pieces"]
    assert torch.equal(whole, pieces)


@pytest.mark.parametrize("name", [*CHANGES, "twice"])
def test_hooks_see_whole_tensors_and_all_heads(ranks, model, name):
    if name == "twice":
        changed = model.replace(weights=by_rows).replace(weights=lambda _, tensor: tensor * 0.9)
    else:
        changed = model.replace(**CHANGES[name])
    alone = logits(changed, 4096)
    assert apart(alone, logits(model, 4096))[0] > 0.1
    assert torch.equal(ranks[0]["layers", name], alone)
    assert apart(ranks[0]["tensors", name], alone)[0] < FLOAT32_BOUND


def test_a_divided_model_says_it_is_the_whole_one_and_keeps_its_own_heads(ranks, model):
    for found in ranks:
        for by, heads in (("layers", 2), ("tensors", 1)):
            assert found[by, "identity"] == (model.digest, model.directory, model.config)
            assert found[by, "kept"] == ((heads, 64, 64),) * 5


@pytest.mark.parametrize("name", INDIVISIBLE)
def test_what_cannot_be_divided_by_tensors_is_refused_and_runs_by_layers(ranks, folder, name):
    for found in ranks:
        assert found["tensors", name].startswith("OptionError")
        assert INDIVISIBLE[name][2] in found["tensors", name]
    assert torch.equal(ranks[0]["layers", name], logits(Model.load(folder / name)))


def test_an_adapter_beside_the_weights_goes_by_layers_only(ranks, folder):
    assert "o_proj has rounded inputs or an adapter" in ranks[0]["tensors", "adapter"]
    alone = logits(Model.load(TARGET, adapter=folder / "adapter"), 4096)
    assert torch.equal(ranks[0]["layers", "adapter"], alone)


def test_other_divisions_are_refused(ranks):
    assert all("1 layers do not go round 2 ranks" in found["one layer"] for found in ranks)
    assert all("choose tensors or layers" in found["other division"] for found in ranks)


def test_ranks_that_differ_stop_together(ranks):
    for by in ("layers", "tensors"):
        assert all("given different rows" in found[by, "other rows"] for found in ranks)
        assert all(found[by, "bad row"].startswith("TokenOutOfRangeError") for found in ranks)
    for name in ("other dtype", "other model"):
        assert all("another rank has not" in found[name] for found in ranks)
    assert "another rank has not" in ranks[0]["one fails"]
    assert ranks[1]["one fails"].startswith("ModelNotFoundError")


def test_without_other_processes_there_is_nothing_to_divide():
    with pytest.raises(OptionError, match="no other processes are joined"):
        ParallelModel.load(TARGET, by="layers")


if __name__ == "__main__":
    on_rank(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
