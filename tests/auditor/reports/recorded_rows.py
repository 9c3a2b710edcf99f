"""Databases that hold what the real worker wrote (`record_rows.py`), and the reports of two weeks."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import insert, select

from auditor.merkle.keys import Algorithm, SeedSigner
from auditor.profiles import shipped_profiles
from auditor.reports import Policy, make_report
from auditor.reports.packing import Logs
from auditor.service.blobs import BlobFolder
from auditor.service.log_placing import ServiceLog, place
from auditor.store import Store
from auditor.store_schema import metadata
from auditor.transparency_log import TransparencyLog

HERE = Path(__file__).parent
TRACES = HERE.parent.parent / "traces"
WEEK = 7 * 86_400_000_000
MONDAY = 1_793_577_600_000_000  # 2026-11-02 00:00 UTC
SALT = bytes(range(32))


@dataclass
class Recorded:
    """A store with the recorded rows; `tenant` is who most of them are of, `other` has one audit."""

    store: Store
    tenant: str
    other: str

    def week(self, number, *, provider="", policy=None, tenant=None):
        start = MONDAY + number * WEEK
        return make_report(
            self.store, tenant or self.tenant, provider, start, start + WEEK, policy or Policy()
        )

    def both_weeks(self, **options):
        return self.week(0, **options), self.week(1, **options)


def load(url):
    """A database with the recorded rows; tenants' salts are given, since fresh ones are random."""
    store = Store.open(url)
    lines = gzip.decompress((HERE / "rows.jsonl.gz").read_bytes()).splitlines()
    with store.transaction(writes=True) as connection:
        for line in lines:
            name, values = json.loads(line)
            row = {k: v["text"].encode() if isinstance(v, dict) else v for k, v in values.items()}
            if name in ("job", "log_entry"):
                del row["number"]  # the database counts these itself
            connection.execute(insert(metadata.tables[name]).values(row))
        tenants = metadata.tables["tenant"]
        ids = dict(connection.execute(select(tenants.c.name, tenants.c.id)).all())
        for number, name in enumerate(sorted(ids)):
            salt = bytes([number]) + SALT[1:]
            connection.execute(insert(metadata.tables["tenant_salt"]).values(tenant_id=ids[name], salt=salt))
    return Recorded(store, ids["tenant"], ids["other"])


def kept_logs(folder):
    """The logs that the rows are about, as a service keeps them."""
    blobs = BlobFolder(folder)
    lines = gzip.decompress((HERE / "rows.jsonl.gz").read_bytes()).splitlines()
    for name, values in map(json.loads, lines):
        if name == "trace_log":
            blobs.put((TRACES / values["name"]).read_bytes())
    profiles = {profile.id: profile for profile in shipped_profiles().values()}
    return Logs(blobs, profiles.get)


def signed_log(store, folder, seed=b"log"):
    """The transparency log of a store, with everything in it that was committed; returns (log, key)."""
    signer = key_of("example.com/log", seed)
    if not (folder / ".log").exists():
        TransparencyLog.create(folder, signer.public.name)
    place(store, ServiceLog(folder, signer, folder.with_name(folder.name + ".head")))
    return TransparencyLog(folder), signer.public


def key_of(name, seed=b"report"):
    return SeedSigner(name, Algorithm.ED25519, seed.ljust(32, b"."))
