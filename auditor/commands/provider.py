"""`audit provider`: an OpenAI-compatible server on the reference engine."""

from __future__ import annotations

from pathlib import Path

import click

from auditor.commands import options
from auditor.commands.extras import service_extra


@click.command()
@options.model_option
@click.option(
    "--listen", default="127.0.0.1:8000", show_default=True, metavar="HOST:PORT", help="Where it listens."
)
@click.option(
    "--deviation",
    default="honest",
    show_default=True,
    metavar="NAME",
    help="What is run instead; `audit generate --list` names them.",
)
@options.dtype_option
@options.batch_size_option
@click.option("--name", default=None, help="Model name that clients ask for. [default: the directory's]")
@options.other_model_option
@options.threads_option
def provider(
    model_directory: Path | None,
    listen: str,
    deviation: str,
    dtype: str,
    batch_size: int,
    name: str | None,
    other_model: Path | None,
    threads: int | None,
) -> None:
    """Play a provider: serve a model over an OpenAI-compatible API, honest or with one deviation.

    For trying out `audit record`, `audit probe` and the verdict on them. Seeds are replayed exactly; the
    recipe to assert is printed at the start. Stop with Ctrl-C.

    \b
    Examples:
      audit provider --listen 127.0.0.1:8000
      audit provider --deviation weights/int4
    """
    with service_extra("provider"):
        from auditor.demo_provider import DemoProvider  # noqa: PLC0415
        from auditor.listening import address_of, bound_socket, serve  # noqa: PLC0415
    from auditor.generation import Provider  # noqa: PLC0415
    from auditor.profiles import companion_model  # noqa: PLC0415
    from auditor.reference.deviations import deviation as named  # noqa: PLC0415
    from auditor.reference.loading import load_model  # noqa: PLC0415

    options.set_threads(threads)
    wanted = named(deviation)
    loaded = Provider.load(model_directory or options.demo_model(), dtype=dtype, batch_size=batch_size)
    other = other_model or (companion_model(loaded.model.digest) if wanted.needs_other_model else None)
    served = DemoProvider(
        loaded,
        wanted,
        other_model=load_model(other, dtype=loaded.model.dtype) if other is not None else None,
        name=name,
    )
    with bound_socket(listen) as listener:
        click.echo(f"{served.name} on {address_of(listener)}, recipe {loaded.recipe}", err=True)
        serve(served.application(), listener)
