"""A Llama checkpoint with a byte-level BPE tokenizer, as a GGUF file for llama.cpp.

llama.cpp pairs the rotary halves of a head by interleaving, so the rows of q and k are permuted: each head's rows
are split into two halves, which alternate. Source: `gguf` 0.19.0 and llama.cpp's converter.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleaved(weight, heads):
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(source: Path, target: Path, dtype: str) -> None:
    """Write `target` with matrices in float32 or float16; norms are always float32."""
    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(str(target), "llama")
    writer.add_name("demo")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(0 if dtype == "f32" else 1)
    add_tokenizer(writer, source, config)
    for name, values in bfloat16_tensors(source / "model.safetensors"):
        short, weight = renamed(name), values
        if ".attn_q." in short or ".attn_k." in short:
            heads = config["num_attention_heads" if "attn_q" in short else "num_key_value_heads"]
            weight = interleaved(weight, heads)
        wide = weight.ndim == 1 or dtype == "f32"
        writer.add_tensor(short, np.ascontiguousarray(weight if wide else weight.astype(np.float16)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def bfloat16_tensors(path):
    """Names and float32 values; numpy has no bfloat16, which is the upper half of a float32."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    for name, entry in json.loads(raw[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "BF16", (name, entry["dtype"])
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        halves = np.frombuffer(raw[start:end], np.uint16)
        yield name, (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


def renamed(name):
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in fixed:
        return fixed[name]
    if name == "lm_head.weight":
        return "output.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def add_tokenizer(writer, source, config):
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    by_id = {number: text for text, number in tokenizer["model"]["vocab"].items()}
    special = {entry["id"]: entry["content"] for entry in tokenizer["added_tokens"]}
    by_id |= special
    tokens = [by_id.get(i, f"<unused{i}>") for i in range(config["vocab_size"])]
    control, normal, unused = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL, gguf.TokenType.UNUSED
    types = [control if i in special else normal if i in by_id else unused for i in range(len(tokens))]
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)
