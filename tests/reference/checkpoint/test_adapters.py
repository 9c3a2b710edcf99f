"""LoRA adapters that PEFT saves, applied as PEFT and as vLLM apply them; and those that are refused."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from auditor.errors import ModelCorruptError, ModelNotFoundError, ModelUnsafeError, ModelUnsupportedError
from auditor.reference.checkpoint.adapters import AdaptedLinear, AdaptedTensors, Adapter, Delta, merged
from auditor.reference.checkpoint.digests import adapter_digest
from auditor.reference.checkpoint.files import Checkpoint
from auditor.reference.checkpoint.quantized import ServedTensors
from auditor.reference.layers.linear import Linear
from auditor.reference.layers.parameters import TensorSource

TARGET = Path(__file__).parents[3] / "reference" / "demo" / "target"
QUERY, DOWN = "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"
SETTINGS = {
    "plain": {},
    "rslora": {"use_rslora": True, "r": 6},
    "ranks": {
        "rank_pattern": {"down_proj": 2, r"layers\.1\.self_attn\.q_proj": 3},
        "alpha_pattern": {"mlp.down_proj": 5},
    },
    "a pattern": {"target_modules": r".*layers\.[13]\..*\.(q|down)_proj"},
    "gaussian": {"init_lora_weights": "gaussian"},
}


@pytest.fixture(scope="module")
def base():
    return AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`saved(name)` is an adapter's directory as PEFT writes it, with random tensors."""

    def save(name):
        directory = tmp_path_factory.mktemp("adapter")
        torch.manual_seed(5)
        config = {
            "r": 4,
            "lora_alpha": 6,
            "target_modules": ["q_proj", "down_proj"],
            "task_type": "CAUSAL_LM",
        }
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32),
            LoraConfig(**config | SETTINGS[name]),
        )
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.05)
        model.save_pretrained(directory)
        return directory

    return {name: save(name) for name in SETTINGS}


@pytest.mark.parametrize("name", SETTINGS)
def test_merged_weights_are_pefts(saved, name):
    adapter = Adapter.open(saved[name])
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32), saved[name]
    )
    theirs = model.merge_and_unload().state_dict()
    ours = AdaptedTensors.of(ServedTensors.of(Checkpoint.open(TARGET), torch.float32), adapter, merge=True)
    stored = Checkpoint.open(TARGET)
    changed = set()
    for tensor_name in ours.names:
        delta = adapter.deltas(tensor_name.removesuffix(".weight"))
        before = stored.tensor(tensor_name).float()
        after = before if delta is None else merged(before, delta)
        assert torch.allclose(after, theirs[tensor_name], rtol=0, atol=1e-7)
        assert torch.equal(ours.tensor(tensor_name), after.bfloat16()) or delta is None
        changed |= {tensor_name} if not torch.equal(before, after) else set()
    assert changed == {f"{module}.weight" for module in adapter.modules}
    assert len(changed) == (4 if name == "a pattern" else 10)


@pytest.mark.parametrize("name", SETTINGS)
def test_beside_the_weight_it_is_pefts_forward(saved, base, name):
    adapter = Adapter.open(saved[name])
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32), saved[name]
    )
    source = AdaptedTensors.of(ServedTensors.of(Checkpoint.open(TARGET), torch.float32), adapter, merge=False)
    for module in (QUERY, DOWN):
        theirs = model.base_model.model.get_submodule(module)
        x = torch.randn(5, theirs.in_features, generator=torch.Generator().manual_seed(1))
        ours = source.product(module, torch.float32)(x)
        assert torch.allclose(ours, theirs(x), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(ours, base.get_submodule(module)(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "query", "down", "ranks"),
    [
        ("plain", 6 / 4, 6 / 4, (4, 4)),
        ("rslora", 6 / math.sqrt(6), 6 / math.sqrt(6), (6, 6)),
        ("ranks", 6 / 3, 5 / 2, (3, 2)),
    ],
)
def test_scales_follow_rank_and_alpha(saved, name, query, down, ranks):
    adapter = Adapter.open(saved[name])
    assert (adapter.deltas(QUERY).scale, adapter.deltas(DOWN).scale) == pytest.approx((query, down))
    assert (len(adapter.deltas(QUERY).a), len(adapter.deltas(DOWN).a)) == ranks


def test_beside_the_weight_every_product_is_rounded_as_in_vllm(saved):
    """y + (x A')(scale B)': scale B rounded once, and both products, to bfloat16."""
    delta = Adapter.open(saved["rslora"]).deltas(QUERY)
    weight = Checkpoint.open(TARGET).tensor(f"{QUERY}.weight")
    x = torch.randn(7, 256).bfloat16()

    def product(x, matrix):
        return (x.double() @ matrix.double().T).float().bfloat16()

    scaled = (delta.b.bfloat16().float() * delta.scale).bfloat16()
    expected = product(x, weight) + product(product(x, delta.a.bfloat16()), scaled)
    found = AdaptedLinear.of(Linear(weight), delta, torch.bfloat16)(x)
    assert found.dtype == torch.bfloat16
    assert float((found != expected).float().mean()) < 0.02  # sums in another order, rounded the other way


def test_a_rows_bits_do_not_depend_on_its_company(saved):
    delta = Adapter.open(saved["plain"]).deltas(QUERY)
    linear = AdaptedLinear.of(
        Linear(Checkpoint.open(TARGET).tensor(f"{QUERY}.weight")), delta, torch.bfloat16
    )
    x = torch.randn(40, 256).bfloat16()
    assert torch.equal(linear(x[3:4]), linear(x)[3:4])


def test_a_merged_weight_is_rounded_once():
    delta = Delta(torch.tensor([[1.0]]), torch.tensor([[2**-9]]), 1.5)
    weight = torch.tensor([[1.0]]).bfloat16()
    assert merged(weight, delta).item() == 1.0
    assert merged(weight, delta._replace(scale=3.0)).item() == 1.0078125
    with pytest.raises(ModelCorruptError, match=r"an adapter of \[1, 1\] for a weight of \[2, 1\]"):
        merged(torch.ones(2, 1), delta)


def test_modules_that_are_not_changed_are_the_bases(saved):
    source = ServedTensors.of(Checkpoint.open(TARGET), torch.float32)
    for merge in (True, False):
        adapted = AdaptedTensors.of(source, Adapter.open(saved["plain"]), merge=merge)
        as_source: TensorSource = adapted
        assert as_source.product("model.layers.0.self_attn.k_proj", torch.float32) is None
        assert torch.equal(as_source.tensor("model.norm.weight"), source.tensor("model.norm.weight"))
    assert torch.equal(adapted.tensor(f"{QUERY}.weight"), source.tensor(f"{QUERY}.weight"))


class Codes:
    """A base whose every module multiplies codes."""

    names = frozenset({f"{QUERY}.weight", f"{DOWN}.weight"})

    def tensor(self, name):
        raise AssertionError(name)

    def product(self, _module, _dtype):
        return lambda x: x[:, :256] * 2


def test_on_codes_an_adapter_stands_beside_and_is_never_merged(saved, tmp_path):
    tensors = load_file(saved["plain"] / "adapter_model.safetensors")
    save_file(
        {name: t for name, t in tensors.items() if ".layers.1." in name},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_bytes((saved["plain"] / "adapter_config.json").read_bytes())
    adapter = Adapter.open(tmp_path)
    x = torch.randn(3, 256)
    delta = adapter.deltas(QUERY)
    found = AdaptedTensors.of(Codes(), adapter, merge=False).product(QUERY, torch.float32)(x)
    assert torch.allclose(found, x * 2 + x @ delta.a.T @ delta.b.T * delta.scale, atol=1e-5)
    with pytest.raises(ModelCorruptError, match="multiplies codes"):
        AdaptedTensors.of(Codes(), adapter, merge=True).product(QUERY, torch.float32)


def test_an_adapter_of_another_model_is_refused(saved):
    class Other(Codes):
        names = frozenset({f"{QUERY}.weight"})

    with pytest.raises(ModelCorruptError, match="which the model does not have"):
        AdaptedTensors.of(Other(), Adapter.open(saved["plain"]), merge=True)


def test_the_digest_is_of_settings_and_tensors(saved, tmp_path):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((saved["plain"] / name).read_bytes())
    text = "".join(
        f"{name} {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}\n"
        for name in ("adapter_config.json", "adapter_model.safetensors")
    )
    assert adapter_digest(tmp_path) == f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    (tmp_path / "adapter_config.json").write_text("{}")
    assert adapter_digest(tmp_path) != adapter_digest(saved["plain"])
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(ModelNotFoundError):
        adapter_digest(tmp_path)


@pytest.fixture
def tampered(saved, tmp_path):
    def opened(settings=None, tensors=None):
        config = json.loads((saved["plain"] / "adapter_config.json").read_text())
        own = load_file(saved["plain"] / "adapter_model.safetensors")
        if tensors is not None:
            tensors(own)
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | (settings or {})))
        save_file(own, tmp_path / "adapter_model.safetensors")
        return Adapter.open(tmp_path)

    return opened


@pytest.mark.parametrize(
    "settings",
    [
        {"peft_type": "LOHA"},
        {"task_type": "SEQ_CLS"},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"use_dora": True},
        {"lora_bias": True},
        {"fan_in_fan_out": True},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "loftq"},
        {"layer_replication": [[0, 2]]},
        {"layers_to_transform": [1]},
        {"exclude_modules": ["q_proj"]},
        {"trainable_token_indices": [1]},
        {"alora_invocation_tokens": [1]},
        {"target_parameters": ["x"]},
        {"use_qalora": True},
        {"surprise": 1},
        {"target_modules": "(a+)+"},
        {"rank_pattern": {"(a+)+": 4}},
    ],
    ids=str,
)
def test_adapters_that_do_more_are_refused(tampered, settings):
    with pytest.raises(ModelUnsupportedError, match=r"adapter_config\.json: adapter.*: not implemented: .+"):
        tampered(settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 0},
        {"r": 4.5},
        {"lora_alpha": 0},
        {"lora_alpha": "6"},
        {"use_rslora": "yes"},
        {"target_modules": None},
        {"target_modules": [1]},
        {"rank_pattern": ["q_proj"]},
        {"rank_pattern": {"q_proj": 2.5}},
        {"alpha_pattern": {"q_proj": -1}},
        {"rank_pattern": {"q_proj": 5}},
        {"target_modules": ["q_proj"]},
        {"target_modules": "model.*q_proj"},
        {"r": 5},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_or_contradict_the_tensors_are_refused(tampered, settings):
    with pytest.raises(ModelCorruptError, match=r"adapter_config\.json: adapter"):
        tampered(settings)


A = f"base_model.model.{QUERY}.lora_A.weight"
B = f"base_model.model.{QUERY}.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.pop(A), ModelCorruptError, "has lora_B only"),
        (lambda t: t.update({A: t[A][:3].clone()}), ModelCorruptError, "has rank 3 and 4, not 4"),
        (lambda t: t.update({A: t[A][0].clone()}), ModelCorruptError, "is no matrix of floats"),
        (lambda t: t.update({A: t[A].to(torch.int8)}), ModelCorruptError, "is no matrix of floats"),
        (lambda t: t.clear(), ModelCorruptError, "changes nothing"),
        (
            lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(2, 2)}),
            ModelUnsupportedError,
            "lm_head",
        ),
        (
            lambda t: t.update({f"{QUERY}.lora_A.weight": t[A].clone()}),
            ModelUnsupportedError,
            "only lora_A and lora_B",
        ),
        (
            lambda t: t.update({A.replace("lora_A", "lora_magnitude_vector"): t[A].clone()}),
            ModelUnsupportedError,
            "magnitude",
        ),
    ],
)
def test_tensors_that_are_no_low_rank_changes_are_refused(tampered, change, error, message):
    with pytest.raises(error, match=message):
        tampered(tensors=change)


def test_nan_is_refused_when_it_is_read(tampered):
    adapter = tampered(tensors=lambda tensors: tensors[B].fill_(float("nan")))
    with pytest.raises(ModelCorruptError, match=r"lora_B of model\.layers\.1\.self_attn\.q_proj holds NaN"):
        adapter.deltas(QUERY)


def test_missing_files_and_pickles(saved, tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such adapter directory"):
        Adapter.open(tmp_path / "absent")
    with pytest.raises(ModelNotFoundError, match=r"adapter_config\.json"):
        Adapter.open(tmp_path)
    (tmp_path / "adapter_config.json").write_bytes((saved["plain"] / "adapter_config.json").read_bytes())
    with pytest.raises(ModelNotFoundError, match=r"adapter_model\.safetensors"):
        Adapter.open(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(ModelUnsafeError, match="pickle"):
        Adapter.open(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(ModelUnsafeError, match="pickle"):
        Adapter.open(tmp_path)
