"""Reading `quantization_config`: one reader for each `quant_method`.

Invariant: what is read is what vLLM 0.32 and transformers 5.19 both compute; where they or their kernels
disagree on a setting's meaning, it is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from auditor.reference.checkpoint.compressed_tensors import read_compressed_tensors
from auditor.reference.checkpoint.declared import Activations, Declaration, Scheme, check_block
from auditor.reference.checkpoint.settings import Settings

LINEAR = ("Linear",)
# How the weights were found; nothing of it changes what is computed with them.
_GPTQ_MEANINGLESS = {
    "act_group_aware",
    "backend",
    "batch_size",
    "block_name_to_quantize",
    "cache_block_outputs",
    "damp_auto_increment",
    "damp_percent",
    "dataset",
    "disable_exllama",
    "exllama_config",
    "max_input_length",
    "meta",
    "model_file_base_name",
    "model_name_or_path",
    "model_seqlen",
    "module_name_preceding_first_block",
    "modules_in_block_to_quantize",
    "mse",
    "pad_token_id",
    "quantizer",
    "static_groups",
    "tokenizer",
    "true_sequential",
    "use_cuda_fp16",
    "use_exllama",
}
_AWQ_MEANINGLESS = {"exllama_config", "fuse_max_seq_len", "meta", "model_name_or_path"}


def read_declaration(raw: dict[str, Any], where: str) -> Declaration:
    """Read `quantization_config`.

    Raises:
        ModelCorruptError: a field that is missing or of an impossible value.
        ModelUnsupportedError: a method or setting that the reference does not implement exactly.
    """
    method = raw.get("quant_method")
    settings = Settings(raw, "quantization_config", where)
    if not isinstance(method, str) or method not in _READERS:
        settings.unsupported(f"quant_method {method!r:.60}", f"supported: {', '.join(_READERS)}")
    settings.take("quant_method")
    return _READERS[method](settings)


def _read_fp8(settings: Settings) -> Declaration:
    """Plain float8: DeepSeek-V3's blocks, or one scale a matrix.

    Activations are rounded by row (by group of a row for blocks), as vLLM does where CUTLASS is; elsewhere it
    takes one scale for whatever tokens happen to be computed together, which nobody can replay.
    """
    static = settings.choice("activation_scheme", "static", "dynamic") == "static"
    settings.choice("fmt", "e4m3", None, default=None)
    settings.choice("scale_fmt", "float", None, default=None)
    raw_block = settings.take("weight_block_size", None)
    ignored = settings.names("ignored_layers") + settings.names("modules_to_not_convert")
    settings.finish()
    block = (0, 0)
    if raw_block is not None:
        checked = check_block(raw_block)
        if checked is None:
            settings.corrupt("weight_block_size must be two sizes")
        if static:
            settings.unsupported("weight_block_size with static activations")
        block = checked
    activations = Activations("float8", static, block[1])
    scheme = Scheme("codes", "float8", 8, symmetric=True, block=block, activations=activations)
    return Declaration("fp8", ((LINEAR, scheme),), ignored_parts=ignored)


def _read_gptq(settings: Settings) -> Declaration:
    """GPTQ; `checkpoint_format` gptq stores zero points less one, gptq_v2 as they are.

    `desc_act` says that columns were quantized in another order; `g_idx` then says which group each is in.
    """
    bits, group = settings.choice("bits", 4, 8), _group_size(settings)
    symmetric, reordered = settings.flag("sym"), settings.flag("desc_act", default=False)
    spellings = ("checkpoint_format", "format")
    formats = {settings.choice(field, "gptq", "gptq_v2", None, default=None) for field in spellings} - {None}
    if len(formats) > 1:
        settings.corrupt("checkpoint_format and format disagree")
    settings.choice("pack_dtype", "int32", default="int32")
    settings.flag("lm_head", default=False)
    settings.finish(_GPTQ_MEANINGLESS)
    offset = 0 if "gptq_v2" in formats else 1
    block = (1, group)
    scheme = Scheme("gptq", "int8", bits, symmetric, block, zero_offset=offset, reordered=reordered)
    return Declaration("gptq", ((LINEAR, scheme),), tensors_decide=True)


def _read_awq(settings: Settings) -> Declaration:
    """AWQ in AutoAWQ's GEMM layout: 4 bits, with zero points."""
    for old, new in (("w_bit", "bits"), ("q_group_size", "group_size")):
        settings.rename(old, new)
    settings.choice("bits", 4)
    group = _group_size(settings)
    settings.choice("zero_point", True)  # noqa: FBT003  an allowed value
    settings.choice("version", "gemm", "GEMM", default="gemm")
    settings.choice("backend", "autoawq", "auto", None, default=None)
    ignored = settings.names("modules_to_not_convert")
    settings.finish(_AWQ_MEANINGLESS)
    scheme = Scheme("awq", "int8", 4, symmetric=False, block=(1, group))
    return Declaration("awq", ((LINEAR, scheme),), ignored_parts=ignored, tensors_decide=True)


def _group_size(settings: Settings) -> int:
    """How many inputs share a scale; 0, written -1, for all of them."""
    group = settings.integer("group_size", least=-1)
    if group == 0:
        settings.corrupt("group_size must be positive, or -1 for one group")
    return max(group, 0)


_READERS: dict[str, Callable[[Settings], Declaration]] = {
    "compressed-tensors": read_compressed_tensors,
    "fp8": _read_fp8,
    "gptq": _read_gptq,
    "awq": _read_awq,
}
