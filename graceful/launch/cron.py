"""When a schedule fires: five fields of cron and a time zone, read as Kubernetes reads them. Pure functions. Client.

Minute, hour, day of month, month, day of week (0 is Sunday); lists, ranges, steps, English names, and @daily and its
like. Where both kinds of day are given, either will do. A time that the change to summer time leaves out does not
fire; one that the change back repeats fires twice.
"""

from __future__ import annotations

import difflib
import zoneinfo
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from graceful.errors import SpecError

MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_WEEK = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_YEAR = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_LEAP = 2028


@dataclass(frozen=True)
class _Field:
    title: str
    low: int
    high: int
    names: tuple[str, ...] = ()


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, _YEAR),
    _Field("day of week", 0, 6, _WEEK),
)


@dataclass(frozen=True, kw_only=True)
class Cron:
    """A cron expression that was understood, in a time zone.

    Attributes:
        text: As it was written.
        zone: Of its fields.
        values: What each of the five fields allows.
        either_day: Both kinds of day are restricted, so that either of them fires.
    """

    text: str
    zone: zoneinfo.ZoneInfo
    values: tuple[tuple[int, ...], ...]
    either_day: bool

    def after(self, moment: datetime) -> datetime:
        """The first firing later than a moment, in UTC."""
        found = moment
        while True:
            found = self._next(found.astimezone(UTC) + timedelta(microseconds=1))
            if self._exists(found):
                return found

    def between(self, start: datetime, end: datetime, *, most: int = 1000) -> tuple[datetime, ...]:
        """Firings later than `start` and not later than `end`, in UTC; the first `most` of them."""
        found: list[datetime] = []
        moment = self.after(start)
        while moment <= end and len(found) < most:
            found.append(moment)
            moment = self.after(moment)
        return tuple(found)

    @cached_property
    def trigger(self) -> Any:
        """As APScheduler takes it: its own reading of cron differs (0 is Monday, days must both match)."""
        from apscheduler.triggers.combining import OrTrigger
        from apscheduler.triggers.cron import CronTrigger

        minute, hour, day, month = (",".join(map(str, allowed)) for allowed in self.values[:4])
        days = {"day": day, "day_of_week": ",".join(_WEEK[number] for number in self.values[4])}
        every = {"minute": minute, "hour": hour, "month": month, "timezone": self.zone}
        if self.either_day:
            return OrTrigger([CronTrigger(**every, **{name: allowed}) for name, allowed in days.items()])
        return CronTrigger(**every, **days)

    def _next(self, moment: datetime) -> datetime:
        found: datetime = self.trigger.get_next_fire_time(None, moment)
        return found.astimezone(UTC)

    def _exists(self, moment: datetime) -> bool:
        local = moment.astimezone(self.zone)
        return local.hour in self.values[1] and local.minute in self.values[0]


def read(text: str, zone: str) -> Cron:
    """Understand a cron expression.

    Args:
        text: Five fields, or @daily and its like.
        zone: Name in the IANA database, e.g. Europe/Berlin.

    Raises:
        SpecError: One line: which field, what is wrong with it, what to write.
    """
    words = MACROS.get(text.strip(), text).split()
    if text.strip().startswith("@") and text.strip() not in MACROS:
        raise SpecError(f"cron {text!r}: not known; write five fields such as '0 3 * * *', or {', '.join(MACROS)}")
    if len(words) != len(_FIELDS):
        titles = ", ".join(field.title for field in _FIELDS)
        raise SpecError(f"cron {text!r}: {len(words)} fields, must be five ({titles}), e.g. '0 3 * * *'")
    values = tuple(_allowed(word, field, text) for word, field in zip(words, _FIELDS, strict=True))
    either_day = not any(_is_any(word) for word in (words[2], words[4]))
    if _is_any(words[4]) and min(values[2]) > max(monthrange(_LEAP, month)[1] for month in values[3]):
        raise SpecError(f"cron {text!r}: never fires, no chosen month has a day {min(values[2])}")
    return Cron(text=text, zone=_zone(zone), values=values, either_day=either_day)


def _is_any(word: str) -> bool:
    return any(part.removesuffix("/1") in ("*", "?") for part in word.split(","))


def _allowed(word: str, field: _Field, text: str) -> tuple[int, ...]:
    found: set[int] = set()
    for part in word.split(","):
        try:
            found |= set(_part(part.lower(), field))
        except ValueError as e:
            raise SpecError(f"cron {text!r}: {field.title} {part!r}: {e}") from e
    return tuple(sorted(found))


def _part(part: str, field: _Field) -> range:
    """`*`, `5`, `1-5`, `*/15`, `2-20/3`, `5/10` (from 5 to the end)."""
    span, slash, step = part.partition("/")
    low, dash, high = span.partition("-")
    first, last = (
        (field.low, field.high) if low in ("*", "?") else (_number(low, field), _number(high if dash else low, field))
    )
    if slash and not dash:
        last = field.high
    if slash and (not step.isdecimal() or int(step) == 0):
        raise ValueError(f"the step must be a number of at least 1, got {step!r}")
    if first > last:
        raise ValueError(f"the range ends before it starts; write {last}-{first}, or two ranges")
    return range(first, last + 1, int(step or 1))


def _number(word: str, field: _Field) -> int:
    if word in field.names:
        return field.names.index(word) + field.low
    if not word.isdecimal():
        names = f" or one of {', '.join(field.names)}" if field.names else ""
        raise ValueError(f"must be a number from {field.low} to {field.high}{names}, got {word!r}")
    number = int(word)
    if not field.low <= number <= field.high:
        remedy = "; 0 is Sunday" if field.names is _WEEK else ""
        raise ValueError(f"must be from {field.low} to {field.high}, got {number}{remedy}")
    return number


def _zone(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as e:
        known = {zone.casefold(): zone for zone in zoneinfo.available_timezones()}
        near = difflib.get_close_matches(name.casefold(), known, n=1)
        remedy = f"did you mean {known[near[0]]}?" if near else "write one such as Europe/Berlin or Etc/UTC"
        raise SpecError(f"time zone {name!r}: not known; {remedy}") from e
