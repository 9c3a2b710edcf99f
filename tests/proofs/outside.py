"""Other people's implementations of the same tricks on the same model: logits at logged prefixes, a file a row.

Runs in an environment of its own (tests/proofs/outside-constraints.txt), which has none of this project:

    python tests/proofs/outside.py MODEL REQUESTS.json FOLDER

Writes FOLDER/NAME.npy, float32 [output tokens, V], for every row that could be made, and `outside.json`: the release
that made each, or why there is none.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

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

    def make(directory, asked):
        model = loaded(directory)
        size = PerAxis(0) if group is None else PerGroup(group)
        config = IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=size)
        quantize_(model, config, filter_fn=lambda _module, name: name.endswith("_proj"))
        return whole(model, asked)

    return "torchao", make


def torchao_float8(directory, asked):
    from torchao.quantization import Float8WeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerRow

    model = loaded(directory)
    config = Float8WeightOnlyConfig(granularity=PerRow())
    quantize_(model, config, filter_fn=lambda _module, name: name.endswith("_proj"))
    return whole(model, asked)


def bitsandbytes_nf4(directory, asked):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    model = loaded(directory)
    for module in projections(model):
        packed, state = quantize_4bit(module.weight.data, blocksize=64, quant_type="nf4")
        module.weight.data = dequantize_4bit(packed, state)
    return whole(model, asked)


def pruned(directory, asked):
    from torch.nn.utils import prune

    model = loaded(directory)
    for module in projections(model):
        prune.l1_unstructured(module, "weight", amount=0.5)
    return whole(model, asked)


def without_layer(place):
    def make(directory, asked):
        model = loaded(directory)
        layers = model.model.layers
        del layers[place % len(layers)]
        return whole(model, asked)

    return "transformers", make


def prefill_press(name, budget, **options):
    def make(directory, asked):
        import kvpress

        model = loaded(directory, attn_implementation="eager")

        def press_of(request):
            length = len(request["prompt"])
            # A hair less than the exact ratio: the package rounds what it keeps down.
            ratio = max(0.0, 1 - (budget + 0.5) / length)
            return getattr(kvpress, name)(compression_ratio=ratio, **options)

        return cached(model, asked, press_of=press_of)

    return "kvpress", make


def decoding_press(name, budget):
    def make(directory, asked):
        import kvpress

        model = loaded(directory, attn_implementation="eager")
        base = getattr(kvpress, name)
        return cached(
            model,
            asked,
            press_of=lambda _request: kvpress.DecodingPress(
                base_press=base(), compression_interval=1, target_size=budget
            ),
        )

    return "kvpress", make


ROWS = {
    "honest": ("transformers", lambda directory, asked: whole(loaded(directory), asked)),
    "honest-cached": ("transformers", lambda directory, asked: cached(loaded(directory), asked)),
    "weights/int8": torchao_integers(8, None),
    "weights/int4": torchao_integers(4, 64),
    "weights/int3-g64": torchao_integers(3, 64),
    "weights/int2-g64": torchao_integers(2, 64),
    "weights/fp8": ("torchao", torchao_float8),
    "weights/nf4": ("bitsandbytes", bitsandbytes_nf4),
    "weights/pruned-50%": ("torch", pruned),
    "depth/skip-last": without_layer(-1),
    "depth/skip-second": without_layer(1),
    "kv/snapkv-32": prefill_press("SnapKVPress", 32, window_size=8, kernel_size=5),
    "kv/streaming-32": decoding_press("StreamingLLMPress", 32),
    "kv/tova-32": decoding_press("TOVAPress", 32),
}


def main():
    logging.disable_progress_bar()
    directory, requests, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    asked = json.loads(requests.read_text())
    said = {}
    for name, (package, make) in ROWS.items():
        try:
            logits = make(directory, asked)
        except Exception as error:  # another package's refusal is a row of the table
            said[name] = {"package": package, "refused": f"{type(error).__name__}: {str(error)[:200]}"}
            continue
        np.save(folder / f"{name.replace('/', '--')}.npy", logits.numpy())
        said[name] = {"package": f"{package} {importlib.metadata.version(package)}"}
    (folder / "outside.json").write_text(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()
