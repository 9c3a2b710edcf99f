"""A LoRA adapter of rank 4 for the demo model, trained as adapters are: query and value projections, a new manner.

It learns to greet before it answers, on answers of the demo model itself. Half a minute on one core; the seed
fixes it for one version of torch.
"""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import LlamaForCausalLM

from auditor.generation import Provider, derived_seed
from auditor.reference.decode import Ask, generate
from auditor.reference.demo.prompts import TARGET, demo_conversations
from auditor.reference.noise import noise_scheme
from auditor.reference.sampling import SamplingSpec

RANK, ALPHA, STEPS, BATCH, SEED = 4, 8, 40, 8, 7_000
GREETING = "Happy to help! "


def train(folder):
    """Train it and save it as PEFT does; returns the last loss, and the change's size over the weights'."""
    texts = _texts(Provider.load(TARGET, dtype="float32"))
    model = LlamaForCausalLM.from_pretrained(TARGET, dtype=torch.float32).requires_grad_(requires_grad=False)
    pairs = _attach(model)
    optimizer = torch.optim.AdamW([p for pair in pairs.values() for p in pair], lr=5e-4)
    loss = torch.tensor(0.0)
    for step in range(STEPS):
        rows = [texts[(step * BATCH + i) % len(texts)] for i in range(BATCH)]
        longest = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids, labels = torch.zeros(BATCH, longest, dtype=torch.int64), torch.full((BATCH, longest), -100)
        for i, (prompt, answer) in enumerate(rows):
            ids[i, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
            labels[i, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
        logits = model(input_ids=ids, use_cache=False).logits
        loss = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    _save(pairs, folder)
    sizes = [
        float((b.detach() @ a.detach()).norm() * ALPHA / RANK / model.get_submodule(name).weight.norm())
        for name, (a, b) in pairs.items()
    ]
    return float(loss), sum(sizes) / len(sizes)


def _texts(provider):
    """(prompt ids, ids of the greeting and the model's own answer) of 64 conversations."""
    prompts = [tuple(provider.tokenizer.encode_chat(c)) for c in demo_conversations(64, SEED)]
    spec = SamplingSpec(max_tokens=40)
    asks = [
        Ask(p, len(p), spec, derived_seed(SEED, i), noise_scheme("gumbel-pos-v1"), 40, frozenset())
        for i, p in enumerate(prompts)
    ]
    greeting = provider.tokenizer.encode(GREETING)
    answers = generate(provider.model, asks)
    return [(prompt, (*greeting, *answer)) for prompt, answer in zip(prompts, answers, strict=True)]


def _attach(model):
    """Compute a change beside every query and value projection; its matrices by module."""
    generator, pairs = torch.Generator().manual_seed(SEED), {}
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "v_proj")):
            down = torch.randn(RANK, module.in_features, generator=generator) / module.in_features**0.5
            pair = (down.requires_grad_(), torch.zeros(module.out_features, RANK, requires_grad=True))
            pairs[name] = pair
            module.register_forward_hook(
                lambda _m, inputs, out, pair=pair: out + inputs[0] @ pair[0].T @ pair[1].T * (ALPHA / RANK)
            )
    return pairs


def _save(pairs, folder):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, (a, b) in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.detach().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.detach().contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "bias": "none"}
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "target_modules": ["q_proj", "v_proj"]})
    )
