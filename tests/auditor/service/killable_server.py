"""The service's server as a process for kill tests: `audit serve` without its command line, and signing often."""

from __future__ import annotations

from pathlib import Path

from auditor.api import serving
from auditor.reference.demo.prompts import TARGET
from auditor.service.egress import Egress


def run(told, url, blobs, listen):
    """Be the server; says "up" when it listens."""
    serving.PLACE_SECONDS = 0.1
    serving.serve_all(
        url=url,
        folder=Path(blobs),
        listen=listen,
        workers=0,
        worker_options=[],
        new_key=False,
        model=TARGET,
        blob_store=None,
        issuer=None,
        egress=Egress(),
        on_start=lambda _address, _key: told.send("up"),
    )
