"""One file a family of models: what its `config.json` means, as an `architecture.ModelConfig`.

A family holds no arithmetic that another has; parts live in `layers/`. Sources are transformers 5.19's
`configuration_*.py` (defaults, precedence of old and new fields) and `modeling_*.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from auditor.reference.architecture import ModelConfig
from auditor.reference.config import Fields
from auditor.reference.families import (
    deepseek_v3,
    gemma2,
    gemma3_text,
    gpt_oss,
    granitemoehybrid,
    llama,
    mamba2,
    mistral,
    mixtral,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
)

_MODULES = (
    deepseek_v3,
    gemma2,
    gemma3_text,
    gpt_oss,
    granitemoehybrid,
    llama,
    mamba2,
    mistral,
    mixtral,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
)
# By `model_type`, which each module is named after.
FAMILIES: dict[str, Callable[[Fields], ModelConfig]] = {
    module.__name__.rpartition(".")[2]: module.describe for module in _MODULES
}
