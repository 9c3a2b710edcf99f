"""When a schedule fires: five-field cron in a time zone. Pure; moments are microseconds since 1970 (UTC).

Daylight saving, as Debian's cron has it (`cronsim` follows it):

* a time of day that the clock skips fires once, when the skipped hour ends: no day is left out;
* a time of day that comes twice fires once, the first time;
* a schedule with `*` in its hours or minutes goes by elapsed time, whatever the clock does.

Slots are kept in UTC, so each is one moment. With the zone `UTC` none of this matters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from auditor.errors import OptionError

SECOND = 1_000_000
MOST_MISSED = 1000
"""Missed slots are counted up to here."""

_FIELDS = 5
_MOST_CHARACTERS = 200
_LOOK_BACK = (timedelta(days=2), timedelta(days=63), timedelta(days=800), timedelta(days=365 * 51))
_EXAMPLE = 'minute, hour, day of month, month, day of week: "0 6 * * 1" is Mondays at 6'


@dataclass(frozen=True, slots=True)
class Timetable:
    """A cron expression in a time zone.

    Raises:
        OptionError: not five fields of cron, never due, or no such zone.
    """

    cron: str
    zone: str = "UTC"

    def __post_init__(self) -> None:
        if len(self.cron) > _MOST_CHARACTERS or len(self.cron.split()) != _FIELDS:
            raise OptionError(f"{self.cron[:80]!r} has not five fields", where="--cron", fix=_EXAMPLE)
        try:
            next(CronSim(self.cron, datetime(2026, 1, 1, tzinfo=self._zone())))
        except CronSimError as error:
            raise OptionError(f"{self.cron!r}: {error}", where="--cron", fix=_EXAMPLE) from None
        except StopIteration:
            raise OptionError(f"{self.cron!r} is never due", where="--cron", fix=_EXAMPLE) from None

    def next_after(self, moment: int) -> int:
        """The first slot after a moment."""
        return next(self._after(moment))

    def due(self, since: int, now: int) -> tuple[int, int] | None:
        """The newest slot in [since, now] and how many before it were missed, up to `MOST_MISSED`.

        None when there is none.
        """
        early = list(islice(self._after(since - 1), MOST_MISSED + 1))
        reached = [slot for slot in early if slot <= now]
        if not reached:
            return None
        if len(reached) <= MOST_MISSED:
            return reached[-1], len(reached) - 1
        return self._newest_until(now), MOST_MISSED

    def _newest_until(self, now: int) -> int:
        for back in _LOOK_BACK:
            newest = None
            for slot in self._after(now - back // timedelta(microseconds=1)):
                if slot > now:
                    break
                newest = slot
            if newest is not None:
                return newest
        raise AssertionError

    def _after(self, moment: int) -> Iterator[int]:
        local = datetime.fromtimestamp(moment / SECOND, UTC).astimezone(self._zone())
        # A fraction of a second would be carried into every slot.
        for slot in CronSim(self.cron, local.replace(microsecond=0)):
            at = int(slot.timestamp()) * SECOND
            if at > moment:
                yield at

    def _zone(self) -> ZoneInfo:
        try:
            return ZoneInfo(self.zone)
        except (ValueError, OSError, KeyError):  # a KeyError is what an unknown name raises
            raise OptionError(
                f"no time zone {self.zone[:80]!r}", where="--zone", fix="for instance Europe/Berlin, or UTC"
            ) from None
