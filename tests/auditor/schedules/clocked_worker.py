"""A real worker process whose service clock a file shifts: `audit worker`, but for the clock.

python -m tests.auditor.schedules.clocked_worker URL BLOBS SHIFT_FILE LEASE_SECONDS
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import torch

from auditor.profiles import shipped_profiles
from auditor.reference.demo.prompts import TARGET
from auditor.replay import Reference
from auditor.schedules.keeper import Keeper
from auditor.schedules.period_work import PeriodWork
from auditor.service import clock
from auditor.service.audit_work import AuditWork
from auditor.service.blobs import BlobFolder
from auditor.service.queue import Terms
from auditor.service.worker import Worker
from auditor.store import Store


def main():
    url, blobs, shift_file, lease = sys.argv[1:]
    torch.set_num_threads(1)
    clock.unsafe_shift(lambda: int(Path(shift_file).read_text()))
    reference, find = Reference.load(TARGET), shipped_profiles().get
    folder, terms = BlobFolder(Path(blobs)), Terms(lease_seconds=float(lease), most_lost_leases=10)
    with Store.open(url) as store:
        worker = Worker(store, AuditWork(folder, reference, find), terms=terms, poll_seconds=0.1)
        work = PeriodWork(folder, reference, find)
        keeper = Keeper(store, work, terms=terms, poll_seconds=0.1)
        signal.signal(signal.SIGTERM, lambda *_: worker.stop())
        print("ready", flush=True)
        with keeper.beside():
            worker.run()


if __name__ == "__main__":
    main()
