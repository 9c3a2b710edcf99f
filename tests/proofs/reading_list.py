"""What stands between a folder of weights and a log's scores: the functions that ran, by file, as first called.

    make reading-list      docs/reading.md again

The demo model scores requests that share a beginning. Compiled loops are run by the interpreter, or they would
not show (`NUMBA_DISABLE_JIT=1`).
"""

from __future__ import annotations

import ast
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numba
import numpy as np

from auditor.kernels import register_block
from auditor.reference.demo.prompts import TARGET
from auditor.reference.model import Model
from auditor.reference.noise import noise_scheme
from auditor.reference.request import Request
from auditor.reference.runner import Runner
from auditor.reference.sampling import SamplingSpec

ROOT = Path(__file__).parents[2]
LOADING = ("checkpoint", "config.py", "streaming.py")
# A family is a declaration; noise and sampling are the provider's engine, written down.
DECLARED = ("families", "noise", "sampling.py")
# Builds what compiled loops run in the place of `set_product` and `add_product`, when they are compiled.
EMITTED = [
    block.__code__ for block in (register_block._product, register_block._rows, register_block._loaded)
]
PARTS = {
    "core": "From weights in memory and token ids to scores: engine, layers, keys and values, head",
    "kernels": "Compiled loops it calls",
    "loading": "From files to weights in memory",
    "declared": "What is declared: the model's family, the engine's noise and sampling",
}


@dataclass(eq=False)
class FileRead:
    """One file's part of the list.

    Attributes:
        name: below the top level. code: what ran, in the order of first calls.
    """

    name: str
    code: list[CodeType] = field(default_factory=list)

    @cached_property
    def lines(self) -> set[int]:
        """Numbers of the lines to read."""
        tree = ast.parse((ROOT / self.name).read_text())
        found, firsts = _docstring(tree), {one.co_firstlineno for one in self.code}
        for function, owners in _definitions(tree):
            if _first_line(function) in firsts:
                found |= _lines(function).union(*map(_without_methods, owners))
        return found

    @property
    def part(self) -> str:
        """Which of `PARTS` it belongs to."""
        room, below = Path(self.name).parts[:2]
        if room == "kernels":
            return "kernels"
        return "loading" if below in LOADING else "declared" if below in DECLARED else "core"


def called(work: Callable[[], Any]) -> list[CodeType]:
    """Code of the reference runner and its kernels that `work` runs, by first call."""
    found: dict[CodeType, None] = {}
    rooms = tuple(f"{ROOT / room}/" for room in ("reference", "kernels"))

    def note(frame: FrameType, _event: str, _arg: object) -> None:
        if frame.f_code.co_filename.startswith(rooms):
            found.setdefault(frame.f_code)

    threading.settrace(note)
    sys.settrace(note)
    try:
        work()
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
    return list(found)


def reading(code: Sequence[CodeType]) -> list[FileRead]:
    """The files of these functions, by first call."""
    files: dict[str, FileRead] = {}
    for one in code:
        name = str(Path(one.co_filename).relative_to(ROOT))
        files.setdefault(name, FileRead(name)).code.append(one)
    return list(files.values())


def _definitions(
    node: ast.AST, owners: tuple[ast.ClassDef, ...] = ()
) -> Iterator[tuple[ast.FunctionDef, tuple[ast.ClassDef, ...]]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield child, owners
        yield from _definitions(child, (*owners, child) if isinstance(child, ast.ClassDef) else owners)


def _first_line(node: ast.FunctionDef | ast.ClassDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _lines(node: ast.FunctionDef | ast.ClassDef) -> set[int]:
    return set(range(_first_line(node), (node.end_lineno or 0) + 1))


def _without_methods(owner: ast.ClassDef) -> set[int]:
    return _lines(owner).difference(*(_lines(method) for method, _ in _definitions(owner)))


def _docstring(tree: ast.Module) -> set[int]:
    first = tree.body[0]
    if ast.get_docstring(tree) is None:
        return set()
    return set(range(first.lineno, (first.end_lineno or 0) + 1))


def score_a_log() -> list[FileRead]:
    """Load the demo model, score three requests, and say what ran.

    Raises:
        SystemExit: compiled loops would not show.
    """
    if not numba.config.DISABLE_JIT:
        raise SystemExit("set NUMBA_DISABLE_JIT=1, or compiled loops do not show")
    scheme, spec = noise_scheme("vllm-cpu-0.32/splitmix64"), SamplingSpec(ignore_eos=True)
    common, *own = (np.random.default_rng(n).integers(5, 4096, 64).tolist() for n in range(4))
    requests = [Request((*common, *ids[:9]), tuple(ids[9:12]), spec, 0, scheme) for ids in own]
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # integers that are meant to wrap
        return reading([*called(lambda: list(Runner(Model.load(TARGET)).score(requests))), *EMITTED])


def total(files: Sequence[FileRead], part: str) -> int:
    """Lines of a part."""
    return sum(len(read.lines) for read in files if read.part == part)


def document(files: Sequence[FileRead]) -> str:
    """The list as Markdown."""
    lines = [INTRODUCTION.format(core=total(files, "core"), all=sum(len(read.lines) for read in files))]
    for part, title in PARTS.items():
        own = [read for read in files if read.part == part]
        lines += [
            f"## {title}: {total(files, part):,} lines",
            "",
            "| file | lines | functions |",
            "| --- | ---: | --- |",
        ]
        for read in own:
            names = ", ".join(f"`{one.co_qualname}`" for one in read.code if "<" not in one.co_qualname)
            lines.append(f"| [{read.name}](../{read.name}) | {len(read.lines)} | {names} |")
        lines.append("")
    return "\n".join(lines)


INTRODUCTION = """\
# What to read before you believe a score

Made by `make reading-list`: the functions that ran between a folder of weights and the scores of a log (a model of
Llama's family, dense weights, keyed Gumbel noise, no filter, requests with a common beginning, on a CPU), by file, in
the order in which they were first called. The core is {core:,} lines, everything together {all:,}. A function counts
with its docstring and comments, a class of which anything ran with its docstring and fields, a file with its opening
docstring; imports do not count.

Other code runs only where it is asked for: other layers and families, quantized weights, filters and rules of sampling,
decoding and drafters, several processes, policies of caches, simulated deviations.
"""

if __name__ == "__main__":
    print(document(score_a_log()))
