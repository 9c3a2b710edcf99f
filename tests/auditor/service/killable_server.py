"""The service's server as a process for kill tests: `audit serve` without its command line, and signing often.

python -m tests.auditor.service.killable_server URL BLOBS LISTEN
"""

from __future__ import annotations

import sys
from pathlib import Path

from auditor.api import serving
from auditor.reference.demo.prompts import TARGET
from auditor.service.egress import Egress


def main():
    url, blobs, listen = sys.argv[1:]
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
        on_start=lambda address, _key: print(address, flush=True),
    )


if __name__ == "__main__":
    main()
