"""Other people's implementations of the same tricks on the same model: logits at logged prefixes, a file a row.

Runs in an environment of its own (tests/proofs/outside-constraints.txt), which has none of this project:

    python tests/proofs/outside.py TASK.json FOLDER

TASK has `model`, `draft` and `adapter` (directories) and `requests` (`messages`, `prompt`, `output`). Writes
FOLDER/NAME.npy for every row that could be made, float32 [output tokens, V] (logits, or for the rows of `LAWS` the
logarithms of what would be drawn from; other shapes where `OTHERS` says so), and `outside.json`: the release that made
each, or why there is none.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache
from transformers.utils import logging


def loaded(directory, **options):
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True, **options
    )


def projections(model):
    return [m for name, m in model.named_modules() if name.endswith("_proj")]


@torch.no_grad()
def whole(model, asked):
    """Logits of output tokens, a sequence at a time."""
    rows = []
    for request in asked:
        ids = torch.tensor([[*request["prompt"], *request["output"][:-1]]])
        rows.append(model(ids, use_cache=False).logits[0, len(request["prompt"]) - 1 :].float())
    return torch.cat(rows)


@torch.no_grad()
def cached(model, asked, cache_of=DynamicCache, press_of=lambda _request: None):
    """The same with the prompt in one call and the output a token at a time, under a press if there is one."""
    rows = []
    for request in asked:
        cache, press = cache_of(), press_of(request)
        inside = press(model) if press is not None else torch.no_grad()
        with inside:
            prompt = torch.tensor([request["prompt"]])
            out = model(prompt, past_key_values=cache, use_cache=True)
            rows.append(out.logits[0, -1:].float())
            for n, token in enumerate(request["output"][:-1]):
                at = torch.tensor([len(request["prompt"]) + n])
                out = model(
                    torch.tensor([[token]]),
                    past_key_values=cache,
                    use_cache=True,
                    position_ids=at[None],
                    cache_position=at,
                )
                rows.append(out.logits[0, -1:].float())
    return torch.cat(rows)


def torchao_integers(bits, group):
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    def make(task):
        model = loaded(task.model)
        size = PerAxis(0) if group is None else PerGroup(group)
        config = IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=size)
        quantize_(model, config, filter_fn=lambda _module, name: name.endswith("_proj"))
        return whole(model, task.requests)

    return "torchao", make


def torchao_float8(task):
    from torchao.quantization import Float8WeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerRow

    model = loaded(task.model)
    config = Float8WeightOnlyConfig(granularity=PerRow())
    quantize_(model, config, filter_fn=lambda _module, name: name.endswith("_proj"))
    return whole(model, task.requests)


def bitsandbytes_nf4(task):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    model = loaded(task.model)
    for module in projections(model):
        packed, state = quantize_4bit(module.weight.data, blocksize=64, quant_type="nf4")
        module.weight.data = dequantize_4bit(packed, state)
    return whole(model, task.requests)


def pruned(task):
    from torch.nn.utils import prune

    model = loaded(task.model)
    for module in projections(model):
        prune.l1_unstructured(module, "weight", amount=0.5)
    return whole(model, task.requests)


def without_layer(place):
    def make(task):
        model = loaded(task.model)
        layers = model.model.layers
        del layers[place % len(layers)]
        return whole(model, task.requests)

    return "transformers", make


def prefill_press(name, budget, **options):
    def make(task):
        import kvpress

        model = loaded(task.model, attn_implementation="eager")

        def press_of(request):
            length = len(request["prompt"])
            # A hair less than the exact ratio: the package rounds what it keeps down.
            ratio = max(0.0, 1 - (budget + 0.5) / length)
            return getattr(kvpress, name)(compression_ratio=ratio, **options)

        return cached(model, task.requests, press_of=press_of)

    return "kvpress", make


def decoding_press(name, budget):
    def make(task):
        import kvpress

        model = loaded(task.model, attn_implementation="eager")
        base = getattr(kvpress, name)
        return cached(
            model,
            task.requests,
            press_of=lambda _request: kvpress.DecodingPress(
                base_press=base(), compression_interval=1, target_size=budget
            ),
        )

    return "kvpress", make


def gguf_weights(kind):
    def make(task):
        from gguf import GGMLQuantizationType, quants

        model, own = loaded(task.model), getattr(GGMLQuantizationType, kind)
        for module in projections(model):
            coded = quants.quantize(module.weight.detach().numpy(), own)
            module.weight.data = torch.from_numpy(quants.dequantize(coded, own))
        return whole(model, task.requests)

    return "gguf", make


def quantized_cache(backend, package, bits):
    def make(task):
        from transformers.cache_utils import QuantizedCache

        model = loaded(task.model)
        axis = {"axis_key": 1, "axis_value": 1} if backend == "hqq" else {}
        return cached(
            model,
            task.requests,
            lambda: QuantizedCache(
                backend, model.config, nbits=bits, q_group_size=64, residual_length=32, **axis
            ),
        )

    return package, make


def head_press(task):
    import kvpress

    model = loaded(task.model, attn_implementation="sdpa")

    def press_of(request):
        ratio = max(0.0, 1 - (32 + 0.5) / len(request["prompt"]))
        base = kvpress.SnapKVPress(compression_ratio=ratio, window_size=8, kernel_size=5)
        return kvpress.AdaKVPress(base, alpha_safeguard=0.0)

    return cached(model, task.requests, press_of=press_of)


def adapter(task):
    from peft import PeftModel

    return whole(PeftModel.from_pretrained(loaded(task.model), task.adapter), task.requests)


def other_rope(**changes):
    def make(task):
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(task.model)
        config.rope_parameters = {**config.rope_parameters, **changes}
        return whole(loaded(task.model, config=config), task.requests)

    return "transformers", make


def system_turn(task):
    """The chat template's own words for a conversation with the hidden instruction."""
    from transformers import AutoTokenizer

    tokenizer, asked = AutoTokenizer.from_pretrained(task.model), []
    for request in task.requests:
        turns = request["messages"]
        told = [turn["content"] for turn in turns if turn["role"] == "system"]
        system = " ".join(["Think out loud in a friendly tone.", *told])
        turns = [{"role": "system", "content": system}, *(t for t in turns if t["role"] != "system")]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        asked.append({**request, "prompt": list(ids)})
    return whole(loaded(task.model), asked)


def processed(*makers):
    """Logarithms of what is left of the model's law behind logits processors."""

    def make(task):
        chain, rows = [maker() for maker in makers], []
        logits = torch.split(
            whole(loaded(task.model), task.requests), [len(r["output"]) for r in task.requests]
        )
        for request, own in zip(task.requests, logits, strict=True):
            for n, row in enumerate(own):
                ids, scores = torch.tensor([[*request["prompt"], *request["output"][:n]]]), row[None]
                for processor in chain:
                    scores = processor(ids, scores)
                rows.append(scores[0].log_softmax(-1))
        return torch.stack(rows)

    return "transformers", make


def speculative(task):
    """How often transformers' assisted generation keeps a draft, and what it returns: [rows, 1 + V] of shares."""
    from transformers.generation.utils import _speculative_sampling

    torch.manual_seed(0)
    p, q = (whole(loaded(d), task.requests)[:: task.every] for d in (task.model, task.draft))
    found = torch.zeros(len(p), 1 + p.shape[1])
    for n in range(len(p)):
        drafts = q[n].softmax(-1).multinomial(task.draws, replacement=True)
        both = torch.stack([p[n], p[n]])[None]
        for draft in drafts:
            text, kept = _speculative_sampling(draft[None, None], q[n][None, None], 1, both, False)
            found[n, 0] += float(kept)
            found[n, 1 + int(text[0, 0])] += 1
    return found / task.draws


def beams(task):
    """What four beams return, ids padded with -1."""
    model, longest = loaded(task.model), len(task.requests[0]["output"])
    out = torch.full((len(task.requests), longest), -1.0)
    for n, request in enumerate(task.requests):
        prompt = torch.tensor([request["prompt"]])
        ids = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            num_beams=4,
            do_sample=False,
            max_new_tokens=longest,
        )
        own = ids[0, prompt.shape[1] :]
        out[n, : len(own)] = own.float()
    return out


def from_transformers(name, *arguments, **options):
    import transformers

    return lambda: getattr(transformers, name)(*arguments, **options)


ROWS = {
    "honest": ("transformers", lambda task: whole(loaded(task.model), task.requests)),
    "honest-cached": ("transformers", lambda task: cached(loaded(task.model), task.requests)),
    "weights/int8": torchao_integers(8, None),
    "weights/int4": torchao_integers(4, 64),
    "weights/int3-g64": torchao_integers(3, 64),
    "weights/int2-g64": torchao_integers(2, 64),
    "weights/fp8": ("torchao", torchao_float8),
    "weights/nf4": ("bitsandbytes", bitsandbytes_nf4),
    "weights/gguf-q4_0": gguf_weights("Q4_0"),
    "weights/gguf-q4_1": gguf_weights("Q4_1"),
    "weights/gguf-q8_0": gguf_weights("Q8_0"),
    "weights/pruned-50%": ("torch", pruned),
    "depth/skip-last": without_layer(-1),
    "depth/skip-second": without_layer(1),
    "kv/snapkv-32": prefill_press("SnapKVPress", 32, window_size=8, kernel_size=5),
    "kv/streaming-32": decoding_press("StreamingLLMPress", 32),
    "kv/tova-32": decoding_press("TOVAPress", 32),
    "kv/shared-budget-32": ("kvpress", head_press),
    "kv/quantized-int4": quantized_cache("quanto", "optimum-quanto", 4),
    "kv/quantized-int2": quantized_cache("quanto", "optimum-quanto", 2),
    "kv/quantized-int4 (hqq)": quantized_cache("hqq", "hqq", 4),
    "adapter/lora": ("peft", adapter),
    "position/theta-doubled": other_rope(rope_theta=20000.0),
    "position/stretched-2x": other_rope(rope_type="linear", factor=2.0),
    "prompt/system": ("transformers", system_turn),
}
LAWS = {
    "temperature/+0.1": processed(from_transformers("TemperatureLogitsWarper", 1.1)),
    "filter/top-k-50-undeclared": processed(from_transformers("TopKLogitsWarper", 50)),
    "filter/top-p-0.9-undeclared": processed(from_transformers("TopPLogitsWarper", 0.9)),
    "filter/min-p-0.05-undeclared": processed(from_transformers("MinPLogitsWarper", 0.05)),
    "penalty/repetition-1.05-undeclared": processed(
        from_transformers("RepetitionPenaltyLogitsProcessor", 1.05)
    ),
    "sampler/watermark-2": processed(
        from_transformers("WatermarkLogitsProcessor", 4096, "cpu", greenlist_ratio=0.5, bias=2.0)
    ),
}
OTHERS = {
    "acceptance/ratio": ("transformers", speculative),
    "sampler/beam-4": ("transformers", beams),
}


def main():
    logging.disable_progress_bar()
    task = SimpleNamespace(**json.loads(Path(sys.argv[1]).read_text()))
    folder = Path(sys.argv[2])
    said = {}
    for name, (package, make) in {**ROWS, **LAWS, **OTHERS}.items():
        try:
            logits = make(task)
        except Exception as error:  # another package's refusal is a row of the table
            said[name] = {"package": package, "refused": f"{type(error).__name__}: {str(error)[:200]}"}
            continue
        np.save(folder / f"{name.replace('/', '--')}.npy", logits.numpy())
        kind = "laws" if name in LAWS else "models"
        said[name] = {"package": f"{package} {importlib.metadata.version(package)}", "kind": kind}
    (folder / "outside.json").write_text(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()
