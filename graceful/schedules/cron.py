"""Cron expressions with a time zone: when they fire, read as Kubernetes reads them. Pure functions. Client.

Minute, hour, day of month, month, day of week (0 is Sunday); lists, ranges, steps, English names, and @daily and its
like. Where both kinds of day are given, either will do. A schedule fires at every minute at which the clocks of its
zone show what the fields allow, as robfig/cron does, on which Kubernetes' CronJobs rest: a time that the change to
summer time leaves out does not fire on that day, and one that the change back repeats fires twice.
"""

from __future__ import annotations

import difflib
import zoneinfo
from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile

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
_LONGEST_NUMBER = 6
_YEARS = 12
"""Two leap days are at most eight years apart."""


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
    """A parsed cron expression in a time zone.

    Attributes:
        text: As it was written.
        zone: The zone of its fields.
        values: What each of the five fields allows.
        either_day: Both kinds of day are restricted, so that either of them fires.
    """

    text: str
    zone: zoneinfo.ZoneInfo
    values: tuple[tuple[int, ...], ...]
    either_day: bool

    def after(self, moment: datetime) -> datetime:
        """Return the first firing later than a moment, in UTC."""
        for firing in self._firings(moment):
            return firing
        raise SpecError(f"cron {self.text!r}: does not fire within {_YEARS} years; choose other days")

    def between(self, start: datetime, end: datetime, *, most: int = 1000) -> tuple[datetime, ...]:
        """Return the firings later than `start` and not later than `end`, in UTC; the first `most` of them."""
        return tuple(islice(takewhile(lambda firing: firing <= end, self._firings(start)), most))

    def _firings(self, moment: datetime) -> Iterator[datetime]:
        """Yield every later minute at which the clocks of the zone show what the fields allow.

        Time that cannot match is passed over at once, but only where the clocks do not change meanwhile.
        """
        minute = moment.astimezone(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
        last_year = minute.year + _YEARS
        while minute.year <= last_year:
            clock = minute.astimezone(self.zone)
            minutes = self._minutes_to_pass(clock)
            if minutes == 0:
                yield minute
            candidate = minute + timedelta(minutes=max(1, minutes))
            if candidate.astimezone(self.zone).utcoffset() != clock.utcoffset():
                candidate = minute + timedelta(minutes=1)
            minute = candidate

    def _minutes_to_pass(self, clock: datetime) -> int:
        """Return 0 if the fields match a local time, else the minutes up to the next local time that may match."""
        minutes, hours, days, months, weekdays = self.values
        matches = (clock.day in days, clock.isoweekday() % 7 in weekdays)
        if clock.month not in months or not (any(matches) if self.either_day else all(matches)):
            return 24 * 60 - clock.hour * 60 - clock.minute
        if clock.hour not in hours:
            return 60 - clock.minute
        return next((minute for minute in minutes if minute >= clock.minute), 60) - clock.minute


def read(text: str, zone: str) -> Cron:
    """Parse a cron expression.

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
    values = tuple(_allowed_values(word, field, text) for word, field in zip(words, _FIELDS, strict=True))
    either_day = not any(_is_any(word) for word in (words[2], words[4]))
    if _is_any(words[4]) and min(values[2]) > max(monthrange(_LEAP, month)[1] for month in values[3]):
        raise SpecError(f"cron {text!r}: never fires, no chosen month has a day {min(values[2])}")
    return Cron(text=text, zone=_zone(zone), values=values, either_day=either_day)


def _is_any(word: str) -> bool:
    return any(part.removesuffix("/1") in ("*", "?") for part in word.split(","))


def _allowed_values(word: str, field: _Field, text: str) -> tuple[int, ...]:
    values: set[int] = set()
    for part in word.split(","):
        try:
            values |= set(_part(part.lower(), field))
        except ValueError as e:
            raise SpecError(f"cron {text!r}: {field.title} {part!r}: {e}") from e
    return tuple(sorted(values))


def _part(part: str, field: _Field) -> range:
    """Return the numbers of `*`, `5`, `1-5`, `*/15`, `2-20/3` or `5/10` (from 5 to the end)."""
    span, slash, step = part.partition("/")
    low, dash, high = span.partition("-")
    first, last = (
        (field.low, field.high) if low in ("*", "?") else (_number(low, field), _number(high if dash else low, field))
    )
    if slash and not dash:
        last = field.high
    if slash and (not _is_number(step) or int(step) == 0):
        raise ValueError(f"the step must be a number of at least 1, got {step!r}")
    if first > last:
        raise ValueError(f"the range ends before it starts; write {last}-{first}, or two ranges")
    return range(first, last + 1, int(step or 1))


def _number(word: str, field: _Field) -> int:
    if word in field.names:
        return field.names.index(word) + field.low
    if not _is_number(word):
        names = f" or one of {', '.join(field.names)}" if field.names else ""
        raise ValueError(f"must be a number from {field.low} to {field.high}{names}, got {word!r}")
    number = int(word)
    if not field.low <= number <= field.high:
        remedy = "; 0 is Sunday" if field.names is _WEEK else ""
        raise ValueError(f"must be from {field.low} to {field.high}, got {number}{remedy}")
    return number


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdecimal() and len(word) < _LONGEST_NUMBER


def _zone(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as e:
        zones = {zone.casefold(): zone for zone in zoneinfo.available_timezones()}
        if not zones:
            raise SpecError(f"time zone {name!r}: this machine has no list of time zones; install tzdata") from e
        matches = difflib.get_close_matches(name.casefold(), zones, n=1)
        remedy = f"did you mean {zones[matches[0]]}?" if matches else "write one such as Europe/Berlin or Etc/UTC"
        raise SpecError(f"time zone {name!r}: not known; {remedy}") from e


def firing_name(name: str, moment: datetime) -> str:
    """Return the name of a firing as Kubernetes makes it: the schedule's and the minutes since 1970."""
    return f"{name}-{int(moment.astimezone(UTC).timestamp() // 60)}"
