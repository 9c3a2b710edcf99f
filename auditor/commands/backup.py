"""`audit backup` and `audit restore`: of a service's database, log and blobs."""

from __future__ import annotations

from pathlib import Path

import click

from auditor.commands.serve import blob_store_option, blobs_option, database_option


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@database_option
@blobs_option
@blob_store_option
@click.option("--no-blobs", is_flag=True, help="Leave out the logs' bytes, which are kept some other way.")
def backup(
    folder: Path, database: str | None, blobs: Path | None, blob_store: str | None, no_blobs: bool
) -> None:
    """Write a service's database, transparency log and blobs to a new FOLDER, while it runs.

    The same folder restores into SQLite or PostgreSQL. Keys are not in it: keep them apart.

    \b
    Example:
      audit backup /backups/2026-11-29 --database postgresql://auditor@db/auditor --blobs /srv/blobs
    """
    from auditor.service.backup import backup as run  # noqa: PLC0415
    from auditor.service.places import blob_folder, open_blobs  # noqa: PLC0415
    from auditor.store import Store  # noqa: PLC0415

    place = blob_folder(database, blobs)
    with Store.open(database) as store:
        said = run(store, place.parent / "log", folder, None if no_blobs else open_blobs(place, blob_store))
    rows = sum(table["rows"] for table in said["tables"].values())
    click.echo(f"{folder}: {rows} rows, {said['placed']} entries of the log", err=True)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@database_option
@blobs_option
@blob_store_option
def restore(folder: Path, database: str | None, blobs: Path | None, blob_store: str | None) -> None:
    """Fill an empty database from the backup in FOLDER.

    Refused where the transparency log, or what its signer remembers, has entries that the backup lacks: going
    on from there would fork the log.

    \b
    Example:
      audit restore /backups/2026-11-29 --database postgresql://auditor@db/auditor --blobs /srv/blobs
    """
    from auditor.service.backup import restore as run  # noqa: PLC0415
    from auditor.service.places import blob_folder, open_blobs  # noqa: PLC0415
    from auditor.store import Store  # noqa: PLC0415

    place = blob_folder(database, blobs)
    Store.upgrade(database)
    with Store.open(database) as store:
        key = place.parent / "log.key"
        said = run(store, folder, place.parent / "log", key, open_blobs(place, blob_store))
    rows = sum(table["rows"] for table in said["tables"].values())
    click.echo(f"restored {rows} rows, {said['placed']} entries of the log", err=True)
