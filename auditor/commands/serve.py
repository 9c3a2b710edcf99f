"""`audit serve` and `audit worker`: the service and those who work for it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from auditor.commands import options
from auditor.commands.extras import service_extra
from auditor.service.logs import LogFormat, log_to_standard_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from auditor.schedules.mail import MailServer
    from auditor.service.ray_crew import RayCrew
    from auditor.service.worker import Worker

LOWER_PRIORITY = 10
"""What is added to the niceness of workers that `serve` starts."""

database_option = click.option(
    "--database",
    default=None,
    metavar="URL",
    help="sqlite:////folder/file.sqlite3 or postgresql://user@host/database. "
    "[default: AUDITOR_DATABASE_URL, else a file in the user's data folder]",
)
blobs_option = click.option(
    "--blobs",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    metavar="DIR",
    help="Where logs are kept; API and workers share it. [default: beside the SQLite file]",
)
blob_store_option = click.option(
    "--blob-store",
    default=None,
    metavar="s3://BUCKET/PREFIX",
    help="Keep logs in S3-compatible storage; --blobs then holds copies and unfinished uploads. "
    "[default: AUDITOR_BLOB_STORE, else --blobs]",
)
log_format_option = click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Form of the service's own log on standard error; it holds no prompts.",
)
traces_option = click.option(
    "--traces",
    default=None,
    metavar="URL",
    help="Send OpenTelemetry traces to this OTLP/HTTP collector; they hold no prompts, outputs or names. "
    "[default: as the OTEL_* variables say, else none]",
)
lease_option = click.option(
    "--lease",
    type=click.FloatRange(min=0.5),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a silent worker keeps its job; the same for all workers of a database.",
)
profile_option = click.option(
    "--profile",
    "profiles",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Calibration profile; may be repeated. [default: the store, then the shipped ones]",
)


def mail_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where alerts by e-mail are handed over."""
    for option in (
        click.option(
            "--smtp-ca",
            type=click.Path(path_type=Path, dir_okay=False),
            default=None,
            metavar="FILE",
            help="Certificates of authorities that the mail server may have. [default: the system's]",
        ),
        click.option("--mail-from", default=None, metavar="ADDRESS", help="Sender of alerts by e-mail."),
        click.option(
            "--smtp",
            default=None,
            metavar="URL",
            help="Mail server for alerts: smtps://user@host:465, or smtp://user@host:587 (STARTTLS); its "
            "password in AUDITOR_SMTP_PASSWORD. [default: letters wait]",
        ),
    ):
        command = option(command)
    return command


@click.command()
@database_option
@blobs_option
@blob_store_option
@click.option("--listen", default="127.0.0.1:8321", show_default=True, metavar="HOST:PORT")
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Worker processes on this machine; 0 where they run elsewhere.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that answer requests, on one address; one that dies is started again.",
)
@click.option(
    "--oidc-issuer",
    default=None,
    metavar="URL",
    help="Take bearer tokens of this OpenID Connect issuer too; the claim auditor_tenant names the tenant.",
)
@click.option(
    "--oidc-audience", default=None, metavar="TEXT", help="With --oidc-issuer: the tokens' audience."
)
@click.option("--new-key", is_flag=True, help="Make and print another key of the first tenant.")
@click.option(
    "--webhook-allow",
    multiple=True,
    metavar="NETWORK",
    help="A network of your own that webhooks may be sent to; may be repeated. [default: none]",
)
@click.option("--webhook-proxy", default=None, metavar="URL", help="Send webhooks through this egress proxy.")
@click.option(
    "--webhook-ca",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    metavar="FILE",
    help="Certificates of authorities that webhooks' receivers may have. [default: the system's]",
)
@lease_option
@log_format_option
@traces_option
@mail_options
@options.model_option
@options.adapter_option
@options.replay_options
@options.draft_model_option
@profile_option
@options.threads_option
def serve(
    database: str | None,
    blobs: Path | None,
    blob_store: str | None,
    listen: str,
    workers: int,
    processes: int,
    oidc_issuer: str | None,
    oidc_audience: str | None,
    new_key: bool,
    webhook_allow: tuple[str, ...],
    webhook_proxy: str | None,
    webhook_ca: Path | None,
    lease: float,
    log_format: LogFormat,
    traces: str | None,
    smtp: str | None,
    mail_from: str | None,
    smtp_ca: Path | None,
    model_directory: Path | None,
    adapter: Path | None,
    device: str,
    replay_dtype: str,
    draft_model: Path | None,
    profiles: tuple[Path, ...],
    threads: int | None,
) -> None:
    """Run the service: the HTTP API and its workers, over SQLite or PostgreSQL.

    Alone on a fresh machine it makes a SQLite file, audits against the demo model, and prints its address and
    a first API key. The API is described at /v1/openapi.json. Ctrl-C stops it: jobs in hand go back to the
    queue.

    \b
    Examples:
      audit serve
      audit serve --database postgresql://auditor@db/auditor --blobs /srv/blobs --workers 0 --processes 4
    """
    from auditor.service import tracing  # noqa: PLC0415
    from auditor.service.places import blob_folder  # noqa: PLC0415

    log_to_standard_error(log_format)
    tracing.start("serve", traces)  # for the workers that are started here, too
    with service_extra("serve"):
        # The room above this one: nothing here may import it, and somebody has to start it.
        serving = import_module("auditor.api.serving")
        from auditor.service.egress import Egress  # noqa: PLC0415

        issuer = None
        if oidc_issuer is not None:
            from auditor.service.oidc import Issuer  # noqa: PLC0415

            issuer = Issuer(oidc_issuer, oidc_audience or "")
    _mail_server(smtp, mail_from, smtp_ca)  # refused here rather than by every worker
    given: dict[str, object] = {
        "--lease": lease,
        "--model": model_directory,
        "--adapter": adapter,
        "--device": device,
        "--replay-dtype": replay_dtype,
        "--draft-model": draft_model,
        "--threads": threads,
        "--smtp": smtp,
        "--mail-from": mail_from,
        "--smtp-ca": smtp_ca,
        "--log-format": log_format,
    }
    passed = [text for name, value in given.items() if value is not None for text in (name, str(value))]
    passed += [text for file in profiles for text in ("--profile", str(file))]
    serving.serve_all(
        url=database,
        folder=blob_folder(database, blobs),
        blob_store=blob_store,
        listen=listen,
        workers=workers,
        model=model_directory or options.demo_model(),
        worker_options=passed,
        new_key=new_key,
        issuer=issuer,
        egress=Egress.of_options(webhook_allow, webhook_proxy, webhook_ca),
        on_start=_print_start,
        processes=processes,
        log_format=log_format,
    )
    tracing.stop()


def _print_start(address: str, key: str | None) -> None:
    click.echo(f"export AUDITOR_URL={address}")
    if key is not None:
        click.echo(f"export AUDITOR_API_KEY={key}")
    said = "the key is shown this once" if key else "make another key with --new-key"
    click.echo(f"serving on {address}; {said}", err=True)


@click.command()
@database_option
@blobs_option
@blob_store_option
@lease_option
@log_format_option
@traces_option
@mail_options
@options.model_option
@options.adapter_option
@options.replay_options
@options.draft_model_option
@profile_option
@click.option(
    "--ray",
    "ray_address",
    default=None,
    metavar="ADDRESS",
    help="Score on the actors of this Ray cluster: HOST:PORT, `auto`, or `local` to start one here.",
)
@click.option(
    "--actors",
    type=click.IntRange(min=1),
    default=None,
    help="With --ray: how many. [default: as many as the cluster has devices]",
)
@click.option("--with-parent", is_flag=True, hidden=True, help="End when standard input does.")
@options.threads_option
def worker(
    database: str | None,
    blobs: Path | None,
    blob_store: str | None,
    lease: float,
    log_format: LogFormat,
    traces: str | None,
    smtp: str | None,
    mail_from: str | None,
    smtp_ca: Path | None,
    model_directory: Path | None,
    adapter: Path | None,
    device: str,
    replay_dtype: str,
    draft_model: Path | None,
    profiles: tuple[Path, ...],
    ray_address: str | None,
    actors: int | None,
    with_parent: bool,
    threads: int | None,
) -> None:
    """Work for a service: claim audits, replay them, record verdicts; keep the timetable of schedules.

    One process for each device; start each with that device visible only. A worker that dies is no loss:
    another takes its job after the lease, at the step where it stopped. SIGTERM hands the job in hand back.

    \b
    Examples:
      audit worker --database postgresql://auditor@db/auditor --blobs /srv/blobs
      CUDA_VISIBLE_DEVICES=1 audit worker --model models/llama --device cuda
      audit worker --database postgresql://auditor@db/auditor --blobs /srv/blobs --ray head:6379
    """
    from auditor.profiles import profile_finder, shipped_profiles  # noqa: PLC0415
    from auditor.replay import Reference  # noqa: PLC0415
    from auditor.schedules.keeper import Keeper  # noqa: PLC0415
    from auditor.schedules.period_work import PeriodWork  # noqa: PLC0415
    from auditor.service import tracing  # noqa: PLC0415
    from auditor.service.audit_work import AuditWork  # noqa: PLC0415
    from auditor.service.places import blob_folder, open_logs  # noqa: PLC0415
    from auditor.service.queue import Terms  # noqa: PLC0415
    from auditor.service.worker import Worker  # noqa: PLC0415
    from auditor.store import Store  # noqa: PLC0415

    if with_parent:  # beside the API on one machine: answers come first
        os.nice(LOWER_PRIORITY)
    log_to_standard_error(log_format)
    tracing.start("worker", traces)
    server = _mail_server(smtp, mail_from, smtp_ca)
    options.set_threads(threads)
    place, on = model_directory or options.demo_model(), options.replay_on(device, replay_dtype)
    reference = Reference.load(place, adapter=adapter, draft=draft_model, **on)
    with Store.open(database) as store:
        # Of this service's own database, whatever AUDITOR_DATABASE_URL says.
        kept = lambda key: store.find_profile(key) or shipped_profiles().get(key)  # noqa: E731
        finder = profile_finder(profiles) if profiles else kept
        logs = open_logs(store, blob_folder(database, blobs), blob_store)
        terms = Terms(lease_seconds=lease)
        crew = _crew(ray_address, (place, adapter, device, replay_dtype), actors)
        hand = Worker(store, AuditWork(logs, reference, finder, crew), terms=terms)
        keeper = Keeper(store, PeriodWork(logs, reference, finder), terms=terms, server=server)
        _stop_when_told(hand, with_parent=with_parent)
        with keeper.beside():
            hand.run()
    tracing.stop()


def _crew(
    address: str | None, replay: tuple[Path, Path | None, str, str], actors: int | None
) -> RayCrew | None:
    if address is None:
        return None
    from auditor.service.ray_crew import RayCrew  # noqa: PLC0415

    crew = RayCrew(address, *replay, actors=actors)
    logging.getLogger("auditor.ray").info("actors are processes %s", crew.processes())
    return crew


def _mail_server(smtp: str | None, sender: str | None, authority: Path | None) -> MailServer | None:
    from auditor.schedules.mail import MailServer  # noqa: PLC0415

    return None if smtp is None else MailServer.of_url(smtp, sender, authority)


def _stop_when_told(hand: Worker, *, with_parent: bool) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: hand.stop())

    def wait() -> None:
        sys.stdin.buffer.read()
        hand.stop()

    if with_parent:
        threading.Thread(target=wait, name="parent", daemon=True).start()
