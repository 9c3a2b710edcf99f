"""`audit seed`: seeds from a committed key."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from auditor.commands import options

if TYPE_CHECKING:
    from auditor.trace_files import InputFormat

KEY = click.Path(path_type=Path)


@click.group()
def seed() -> None:
    """Derive per-request seeds from a committed key, and check logs against it.

    Publish the commitment before the run, the key after it: then nobody, provider or auditor, can have chosen
    a seed after the fact. No two requests of a key share a seed.

    \b
    Examples:
      audit seed new run.key --engine vllm-cpu
      audit record --upstream http://127.0.0.1:8000 --seed-key run.key --out log.jsonl
      audit seed check run.key log.jsonl --commitment sha256:...
    """


@seed.command()
@click.argument("key_file", type=KEY, metavar="KEY")
@click.option(
    "--engine",
    default=None,
    metavar="NAME",
    help="Engine that will read the seeds: sets their width. "
    "vllm-cpu, vllm, sglang, tgi, transformers, llama.cpp, openvino, auditor, int32.",
)
@click.option("--bits", type=int, default=None, help="Width of a seed instead: 31, 32, 53, 63 or 64.")
@click.option("--run", default="", metavar="NAME", help="Name of the run, part of the commitment.")
@options.format_option
def new(key_file: Path, engine: str | None, bits: int | None, run: str, output_format: str) -> None:
    """Make a key file (readable by you only) and print its commitment."""
    from auditor.errors import OptionError  # noqa: PLC0415
    from auditor.seed_files import write_key  # noqa: PLC0415
    from auditor.seeds import ENGINE_BITS, SECRET_BYTES, SeedKey  # noqa: PLC0415

    if (engine is None) == (bits is None):
        raise OptionError("give either --engine or --bits")
    if engine is not None and engine not in ENGINE_BITS:
        raise OptionError(
            f"{engine!r} is unknown", where="--engine", fix=f"known: {', '.join(ENGINE_BITS)}; or --bits"
        )
    key = SeedKey(secrets.token_bytes(SECRET_BYTES), ENGINE_BITS[engine] if engine else bits or 0, run)
    write_key(key_file, key)
    if output_format == "json":
        click.echo(json.dumps({"commitment": key.commitment, "bits": key.bits, "run": key.run}))
    else:
        click.echo(key.commitment)
        click.echo(f"{key_file}: seeds of {key.bits} bits; keep it secret until the run is over", err=True)


@seed.command()
@click.argument("key_file", type=KEY, metavar="KEY")
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, help="How many.")
@click.option(
    "--start",
    type=click.IntRange(min=0),
    default=None,
    metavar="N",
    help="Print the seeds of requests N, N+1, ... again. [default: the next ones, which are then used up]",
)
@options.format_option
def derive(key_file: Path, count: int, start: int | None, output_format: str) -> None:
    """Print seeds: number of the request and seed, one a line."""
    from auditor.seed_files import SeedDispenser, read_key  # noqa: PLC0415

    if start is not None:
        key = read_key(key_file)
        pairs = [(start + i, key.seed(start + i)) for i in range(count)]
    else:
        with SeedDispenser(key_file) as dispenser:
            pairs = [dispenser.take() for _ in range(count)]
    for counter, value in pairs:
        if output_format == "json":
            click.echo(json.dumps({"request": counter, "seed": value}))
        else:
            click.echo(f"{counter}\t{value}")


@seed.command()
@click.argument("key_file", type=KEY, metavar="KEY")
def commitment(key_file: Path) -> None:
    """Print the commitment of a key, which gives nothing of it away."""
    from auditor.seed_files import read_key  # noqa: PLC0415

    click.echo(read_key(key_file).commitment)


@seed.command()
@click.argument("key_file", type=KEY, metavar="KEY")
def reveal(key_file: Path) -> None:
    """Print the key for publication. From then on anybody can compute every seed of the run."""
    from auditor.seed_files import read_key  # noqa: PLC0415
    from auditor.seeds import key_to_json  # noqa: PLC0415

    click.echo(key_to_json(read_key(key_file)), nl=False)


@seed.command()
@click.argument("key_file", type=KEY, metavar="KEY")
@click.argument("traces", nargs=-1, required=True, metavar="TRACES...")
@click.option("--commitment", "committed", required=True, metavar="SHA256", help="What was published.")
@click.option(
    "--requests",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="How many requests the run had at most. [default: 1024, or four times the lines of the log]",
)
@options.input_format_option
@options.format_option
@click.pass_context
def check(
    context: click.Context,
    key_file: Path,
    traces: tuple[str, ...],
    committed: str,
    requests: int | None,
    input_format: InputFormat,
    output_format: str,
) -> None:
    """Check that the seeds in TRACES come from the revealed KEY, each once.

    Exit status: 0 all do, 1 one does not or the key is not the committed one, 3 some request has no seed,
    2 unusable input.
    """
    from auditor.commands import print_error  # noqa: PLC0415
    from auditor.errors import AuditError  # noqa: PLC0415
    from auditor.seed_files import read_key  # noqa: PLC0415
    from auditor.seeds import check_seeds  # noqa: PLC0415
    from auditor.trace_files import read_traces  # noqa: PLC0415

    key = read_key(key_file)
    items = [item for path in traces for item in read_traces(path, input_format=input_format)]
    bound = requests or max(1024, 4 * len(items))
    found: Counter[str] = Counter()
    for finding in check_seeds(key, items, requests=bound):
        if isinstance(finding.item, AuditError):
            print_error(finding.item)
            found["unreadable"] += 1
            continue
        found[finding.problem or "good"] += 1
        if output_format == "json":
            line = {"where": finding.item.where, "id": finding.item.id, "seed": finding.item.seed}
            click.echo(json.dumps(line | {"request": finding.counter, "problem": finding.problem}))
        elif finding.problem:
            click.echo(
                f"{finding.item.where}\t{finding.item.id}\tseed {finding.item.seed}: {finding.problem}"
            )
    if committed != key.commitment:
        click.echo(f"the key's commitment is {key.commitment}, published was {committed}", err=True)
    counts = ", ".join(f"{count:,} {name}" for name, count in found.items())
    chance = bound / 2**key.bits
    click.echo(
        f"{len(items):,} requests: {counts or 'none'}; a foreign seed passes with chance {chance:.2g}",
        err=True,
    )
    context.exit(_status(found, committed_key=committed == key.commitment))


def _status(found: Counter[str], *, committed_key: bool) -> int:
    if not committed_key or found["not of this key"] or found["used before"]:
        return 1
    if found["unreadable"]:
        return 2
    return 3 if found["none logged"] else 0
