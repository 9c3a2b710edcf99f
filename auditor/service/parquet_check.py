"""Whether a Parquet log can be read in bounded memory: tried in a process of its own, which may die of it.

A few bytes of a dictionary and a run length stand for a batch of gigabytes, and nothing in a file's footer
says so. So the file is read as a worker will read it, batch by batch, under limits of memory and processor
time; whoever exceeds them is refused. Run as a program it is that process: the file is its standard input.
"""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from auditor.service.errors import CompressionBombError, RequestInvalidError

MOST_BATCH_BYTES = 64 << 20
MOST_MEMORY_BYTES = 1 << 30
MOST_CPU_SECONDS = 60
MOST_COLUMNS = 1000
_BOMB, _BROKEN = 3, 4


def check_parquet(source: bytes | Path) -> None:
    """Read a Parquet file and throw it away.

    Args:
        source: its bytes, or where they are.

    Raises:
        RequestInvalidError: no Parquet, or damaged.
        CompressionBombError: more columns, memory or time than a log needs.
    """
    command = [sys.executable, "-m", __name__]
    environment = {"PATH": os.environ.get("PATH", ""), "ARROW_DEFAULT_MEMORY_POOL": "system"}
    # A folder that stands beside this one, where Python is told of it this way.
    environment |= {name: os.environ[name] for name in ("PYTHONPATH", "VIRTUAL_ENV") if name in os.environ}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with ExitStack() as stack:
        given = None if isinstance(source, bytes) else stack.enter_context(source.open("rb"))
        done = subprocess.run(  # noqa: S603  # our own module
            command,
            stdin=given,
            input=source if isinstance(source, bytes) else None,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            check=False,
        )
    if done.returncode == _BROKEN:
        raise RequestInvalidError("is no readable Parquet", where="body")
    if done.returncode:
        raise CompressionBombError("takes more memory or time to read than a log may", where="body")


def _read() -> None:
    # Before the library is loaded: its threads and pools count too.
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU_SECONDS, MOST_CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    from auditor.service.containers import FREE_BYTES, MOST_RATIO  # noqa: PLC0415
    from auditor.trace_parquet import BATCH_ROWS  # noqa: PLC0415

    raw = sys.stdin.buffer
    stream = raw if raw.seekable() else io.BytesIO(raw.read())
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))
    came = 0
    try:
        parquet = pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)
        if parquet.metadata.num_columns > MOST_COLUMNS:
            sys.exit(_BOMB)
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            came += batch.nbytes
            if batch.nbytes > MOST_BATCH_BYTES or came > max(FREE_BYTES, MOST_RATIO * size):
                sys.exit(_BOMB)
    except (MemoryError, pa.ArrowMemoryError):
        sys.exit(_BOMB)
    except (pa.ArrowException, OSError, ValueError):
        sys.exit(_BROKEN)


if __name__ == "__main__":
    _read()
