"""A model sold with a LoRA adapter is audited with it; without it the same log is another model's."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from auditor.commands import cli
from auditor.errors import ModelNotFoundError, ModelUnsupportedError
from auditor.reference.demo.prompts import TARGET
from auditor.reference.deviations import undeclared_adapter
from auditor.reference.model import Model

MODULES = [f"model.layers.{index}.self_attn.{name}_proj" for index in range(5) for name in ("q", "v")]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A rank-4 adapter of visible size, as PEFT writes it."""
    folder = tmp_path_factory.mktemp("adapter")
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for module in MODULES:
        outputs = 256 if ".q_proj" in module else 128
        name = f"base_model.model.{module}"
        tensors[f"{name}.lora_A.weight"] = torch.randn(4, 256, generator=generator) * 0.1
        tensors[f"{name}.lora_B.weight"] = torch.randn(outputs, 4, generator=generator) * 0.1
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 4, "bias": "none"}
    config |= {"target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "demo"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def audit(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_an_adapter_is_the_low_rank_change_of_each_product(adapter):
    plain, adapted = Model.load(TARGET), Model.load(TARGET, adapter=adapter)
    assert adapted.digest != plain.digest
    tokens = [torch.arange(5, 50)]
    parts = load_file(adapter / "adapter_model.safetensors")

    def merged(name, tensor):
        module = name.removesuffix(".weight")
        if module not in MODULES:
            return tensor
        prefix = f"base_model.model.{module}"
        return tensor + parts[f"{prefix}.lora_B.weight"] @ parts[f"{prefix}.lora_A.weight"]

    by_hand = plain.replace(weights=merged).prefill(tokens)
    assert (adapted.prefill(tokens) - by_hand).abs().max() < 1e-4
    assert (adapted.prefill(tokens) - plain.prefill(tokens)).abs().max() > 1e-2


def test_an_undeclared_adapter_is_a_provider_that_serves_the_adapted_model(adapter):
    plain, adapted = Model.load(TARGET), Model.load(TARGET, adapter=adapter)
    deviant = undeclared_adapter(adapter).model(plain, None)
    tokens = [torch.arange(5, 40)]
    served, sold = deviant.prefill(tokens), plain.prefill(tokens)
    torch.testing.assert_close(served, adapted.prefill(tokens), atol=2e-3, rtol=2e-3)
    assert (served - sold).norm() > 0.05 * sold.norm()


def test_a_log_served_with_an_adapter_is_replayed_with_it(adapter, tmp_path):
    log = tmp_path / "log.jsonl"
    made = audit("generate", "--adapter", adapter, "--dtype", "float32", "--requests", 6, "--out", log)
    assert made.exit_code == 0, made.output
    with_it = json.loads(audit("verify", log, "--adapter", adapter, "--format", "json").stdout)
    assert with_it["tokens"]["matched"] == with_it["tokens"]["audited"] > 100
    without = audit("verify", log, "--format", "json")
    assert without.exit_code == 3
    assert "declares model" in without.stdout


def test_a_broken_adapter_is_refused_before_anything_is_scored(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(ModelUnsupportedError, match="peft_type"):
        Model.load(TARGET, adapter=tmp_path)
    with pytest.raises(ModelNotFoundError):
        Model.load(TARGET, adapter=tmp_path / "none")
