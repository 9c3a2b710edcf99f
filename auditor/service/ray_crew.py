"""A crew on a Ray cluster: actors that have loaded the model once, and Ray Data for bulk Parquet.

Ray places work and tells of deaths; nothing durable is in it. An actor that dies is restarted by Ray,
elsewhere if its node is gone, and its shards are sent again. A shard that is lost `MOST_LOSSES` times with
its process is given up: the job fails, is retried, and ends up dead with that reason, where everybody can
see it.

Nodes need this package, the model folder and, for Parquet, the blob folder under the same paths.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auditor.errors import AuditError, OptionError
from auditor.service.fan_out import FanOutError, Shard, needs_scores, score_shard, score_traces
from auditor.trace import Trace

if TYPE_CHECKING:
    import pyarrow as pa

    from auditor.replay import Reference

logger = logging.getLogger("auditor.ray")

MOST_LOSSES = 10
"""A shard is given up after so many; Ray counts an actor that is still being restarted as one more."""
IN_FLIGHT = 2
"""Shards sent to an actor ahead, so that it never waits for the next."""
BATCH_ROWS = 64
LOCAL = "local"
_OBJECT_STORE_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class Replay:
    """How an actor loads the reference.

    Attributes:
        model, adapter: folders. device: as `compute_device` takes it. dtype: what the replay computes in.
    """

    model: str
    adapter: str | None
    device: str
    dtype: str

    def load(self) -> Reference:
        """Load it, in the actor.

        Raises:
            OptionError: there is no such device there.
        """
        import torch  # noqa: PLC0415  # in the actor only

        from auditor.generation import DTYPES  # noqa: PLC0415
        from auditor.reference.device import compute_device  # noqa: PLC0415
        from auditor.replay import Reference  # noqa: PLC0415

        torch.set_num_threads(1)
        dtype, device = DTYPES[self.dtype], compute_device(self.device)
        return Reference.load(self.model, adapter=self.adapter, dtype=dtype, device=device)


class ShardActor:
    """One process of the crew."""

    def __init__(self, replay: Replay) -> None:
        self._reference = replay.load()

    def process(self) -> int:
        """Its process id; answered once the model is loaded."""
        return os.getpid()

    def score(self, traces: tuple[tuple[str, bytes], ...]) -> list[bytes]:
        """Journal lines of a shard."""
        return score_shard(Shard(traces), self._reference)


class ParquetScorer:
    """What Ray Data maps over batches of rows."""

    def __init__(self, replay: Replay, recipe: tuple[str, str | None] | None, known: frozenset[str]) -> None:
        self._reference = replay.load()
        self._recipe, self._known = recipe, known

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows of a trace file to journal lines."""
        import pyarrow as pa  # noqa: PLC0415

        lines = score_traces(self._traces(table), self._reference)
        return pa.table({"line": pa.array(lines, pa.binary())})

    def _traces(self, table: pa.Table) -> Iterator[Trace]:
        from auditor.trace_parquet import traces_of_batch  # noqa: PLC0415
        from auditor.trace_recipe import assert_recipe  # noqa: PLC0415

        for batch in table.to_batches():
            for found in traces_of_batch(batch, file="", first=1):
                if isinstance(found, AuditError):
                    continue  # the lease holder reads the file too, and reports it
                trace = found if self._recipe is None else assert_recipe(found, *self._recipe)
                if needs_scores(trace, self._known):
                    yield trace


class RayCrew:
    """Actors on a cluster, one for each device of the kind that is asked for.

    Args:
        address: of the cluster, `auto` for the one of this machine, or `local` to start one here.
        model, adapter: folders that every node can read. device, dtype: as `Replay` has them; each actor sees
            the one device that Ray gives it.
        actors: how many; as many as the cluster has devices when None.

    Raises:
        OptionError: Ray is not installed.
        FanOutError: there is no such cluster.
    """

    def __init__(
        self,
        address: str,
        model: Path,
        adapter: Path | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        *,
        actors: int | None = None,
    ) -> None:
        self._ray = _connected(address, actors)
        resources = self._ray.cluster_resources()
        own = "CPU" if device == "cpu" else "GPU"
        self._device = f"num_{own.lower()}s"
        devices = int(resources.get(own) or 1)
        places = str(model.absolute()), None if adapter is None else str(adapter.absolute())
        self._replay = Replay(*places, device, dtype)
        self._count = actors or devices
        self._hired: Any = self._ray.remote(ShardActor).options(
            max_restarts=-1, max_task_retries=MOST_LOSSES - 1, **{self._device: 1}
        )
        self._actors: list[Any] = []

    def processes(self) -> list[int]:
        """Process ids of the actors, once all have loaded the model."""
        self._hire()
        return list(self._ray.get([actor.process.remote() for actor in self._actors]))

    def _hire(self) -> None:
        missing = self._count - len(self._actors)
        self._actors += [self._hired.remote(self._replay) for _ in range(missing)]

    def close(self) -> None:
        """Let the actors go; a local cluster ends with it."""
        self._ray.shutdown()

    def score(self, shards: Iterator[Shard], waiting: Callable[[], None]) -> Iterator[list[bytes]]:
        """See `Crew`."""
        self._hire()
        errors = self._ray.exceptions
        lost = (errors.RayActorError, errors.WorkerCrashedError, errors.ObjectLostError)
        work = _Flights(self._actors, enumerate(shards))
        try:
            while references := work.sent():
                done, _ = self._ray.wait(references, timeout=0.5)
                waiting()
                for reference in done:
                    try:
                        lines = self._ray.get(reference)
                    except lost as error:
                        logger.warning("a shard was lost with its actor: %s", type(error).__name__)
                        work.lost(reference)
                    else:
                        if work.came(reference):
                            yield lines
        finally:
            for reference in work.under_way():
                with suppress(Exception):  # the cluster may be gone
                    self._ray.cancel(reference)

    def score_parquet(
        self,
        path: Path,
        recipe: tuple[str, str | None] | None,
        known: Collection[str],
        waiting: Callable[[], None],
    ) -> Iterator[list[bytes]]:
        """See `Crew`. Ray Data restarts its own actors."""
        import ray.data  # noqa: PLC0415

        for actor in self._actors:  # their devices are needed
            self._ray.kill(actor)
        self._actors = []
        named = path.absolute().with_name(f"{path.name}.{os.urandom(4).hex()}.parquet")
        named.hardlink_to(path)  # blobs have no extension, which Ray Data insists on
        try:
            yield from self._mapped(ray.data.read_parquet(str(named)), recipe, known, waiting)
        finally:
            named.unlink()

    def _mapped(
        self,
        rows: Any,
        recipe: tuple[str, str | None] | None,
        known: Collection[str],
        waiting: Callable[[], None],
    ) -> Iterator[list[bytes]]:
        import ray.data  # noqa: PLC0415

        # Small blocks, or one actor would get a whole row group.
        lines = rows.repartition(target_num_rows_per_block=BATCH_ROWS).map_batches(
            ParquetScorer,
            fn_constructor_args=(self._replay, recipe, frozenset(known)),
            batch_size=BATCH_ROWS,
            batch_format="pyarrow",
            # Growing from one, so that there is a device left for reading.
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=self._count),
            **{self._device: 1},
        )
        for batch in lines.iter_batches(batch_size=None, batch_format="pyarrow"):
            waiting()
            yield batch.column("line").to_pylist()


class _Flights:
    """Which shard is with which actors.

    Ray sends a shard again to its own actor once that is restarted (`max_task_retries`). Where that takes
    long, or forever, because no node has room for it, actors that have nothing to do are sent the same
    shards: whichever answer comes first counts, as both are the same bytes.
    """

    def __init__(self, actors: list[Any], shards: Iterator[tuple[int, Shard]]) -> None:
        self._actors, self._shards = actors, shards
        self._open: dict[int, Shard] = {}
        self._flights: dict[Any, tuple[int, int]] = {}  # reference -> (actor, number of the shard)

    def sent(self) -> list[Any]:
        """References under way, after sending what can be sent; empty when all shards came back."""
        loads = [0] * len(self._actors)
        for actor, _ in self._flights.values():
            loads[actor] += 1
        for actor in sorted(range(len(loads)), key=loads.__getitem__):
            for _ in range(IN_FLIGHT - loads[actor]):
                self._send_next(actor, idle=loads[actor] == 0)
        return list(self._flights) if self._open else []

    def _send_next(self, actor: int, *, idle: bool) -> None:
        fresh = next(self._shards, None)
        if fresh is not None:
            number, self._open[fresh[0]] = fresh
        elif idle:
            alone = [n for n in self._open if sum(n == other for _, other in self._flights.values()) < 2]
            holders = {n: a for a, n in self._flights.values()}
            found = next((n for n in alone if holders.get(n) != actor), None)
            if found is None:
                return
            number = found
        else:
            return
        reference = self._actors[actor].score.remote(self._open[number].traces)
        self._flights[reference] = (actor, number)

    def under_way(self) -> list[Any]:
        """References of everything sent that did not come back, what was sent twice among it."""
        return list(self._flights)

    def came(self, reference: Any) -> bool:
        """Note an answer; whether it is the first for its shard."""
        _, number = self._flights.pop(reference)
        return self._open.pop(number, None) is not None

    def lost(self, reference: Any) -> None:
        """Note a shard that ended its actor, and the processes that took its place.

        Raises:
            FanOutError: nobody else has it either.
        """
        _, number = self._flights.pop(reference)
        if number in self._open and all(other != number for _, other in self._flights.values()):
            raise FanOutError(f"a shard was lost {MOST_LOSSES} times with its process", where="--ray")


def _connected(address: str, actors: int | None) -> Any:
    # No statistics leave the machine, and no dashboard listens.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray  # noqa: PLC0415
        import ray.exceptions  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise OptionError(
            f"`--ray` needs {error.name}", fix="pip install 'verifiable-inference-auditor[ray]'"
        ) from None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address == LOCAL:
        # Ray starts workers at niceness 15: on a machine that does other things too they would starve.
        os.environ.setdefault("RAY_worker_niceness", "0")
        count = actors or os.cpu_count() or 1
        options |= {
            "num_cpus": count,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise FanOutError(f"no Ray cluster at {address}: {str(error)[:200]}", where="--ray") from None
    return ray
