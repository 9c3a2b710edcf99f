"""The service's server as a process for kill tests: `audit serve` without its command line, and signing often.

python -m tests.auditor.service.killable_server URL BLOBS LISTEN    # prints its address
"""

from __future__ import annotations

import sys
from pathlib import Path

from auditor.api import serving
from auditor.reference.demo.prompts import TARGET
from auditor.service.egress import Egress


def serve(url, blobs, listen, on_start):
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
        on_start=on_start,
    )


def run(told, url, blobs, listen):
    """Be the server, in a process that was forked for it; says "up" when it listens."""
    serve(url, blobs, listen, lambda _address, _key: told.send("up"))


def main():
    url, blobs, listen = sys.argv[1:]
    serve(url, blobs, listen, lambda address, _key: print(address, flush=True))


if __name__ == "__main__":
    main()
