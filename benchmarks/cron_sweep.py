"""Firings around every change of clocks from 2024 to 2035, against a search minute by minute.

    python -m benchmarks.cron_sweep            # ten minutes, writes benchmarks/results/cron_sweep.json
    python -m benchmarks.cron_sweep --quick    # the first five zones, prints only

For each zone of the IANA database whose clocks change in these years, the days around each change are searched minute
by minute: what do the clocks of the zone show, and do the fields allow it? The search shares no code with
`graceful.schedules.cron` but the values that the fields were read into. A check is one expression around one change; it
differs if one firing does.
"""

from __future__ import annotations

import argparse
import time
import zoneinfo
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from benchmarks import results
from graceful.schedules import cron

FIRST, LAST = datetime(2024, 1, 1, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC)
AROUND = timedelta(days=8)
"""Before and after a change: a week and a day, so that weekly schedules fire."""
EXPRESSIONS = (
    "0 0 * * *",
    "0 0 * * 1",
    "0 0 * * 0",
    "30 0 * * *",
    "0 1 * * *",
    "30 1 * * *",
    "0 2 * * *",
    "30 2 * * *",
    "0 3 * * *",
    "59 23 * * *",
    "*/20 0-3 * * 0",
    "15 * * * *",
    "0 1,2,3 1,8,25-31 * 6",
    "0 12 * * 1-5",
)


@dataclass(kw_only=True)
class Row:
    """What one expression was checked for, over all zones."""

    cron: str
    zones: int = 0
    checks: int = 0
    firings: int = 0
    differing: int = 0


def changes(zone: zoneinfo.ZoneInfo) -> Iterator[datetime]:
    """Yield the days, in UTC, in the course of which the clocks of a zone change."""
    day, offset = FIRST, FIRST.astimezone(zone).utcoffset()
    while day < LAST:
        following = day + timedelta(days=1)
        later = following.astimezone(zone).utcoffset()
        if later != offset:
            yield day
        day, offset = following, later


def searched(read: cron.Cron, shown: list[tuple[datetime, datetime]]) -> tuple[datetime, ...]:
    """Return the minutes at which the clocks show what the fields allow."""
    minutes, hours, days, months, weekdays = map(set, read.values)
    firings = []
    for moment, clock in shown:
        if clock.minute in minutes and clock.hour in hours and clock.month in months:
            matches = (clock.day in days, clock.isoweekday() % 7 in weekdays)
            if any(matches) if read.either_day else all(matches):
                firings.append(moment)
    return tuple(firings)


def sweep(names: list[str]) -> list[Row]:
    """Check every expression around every change of some zones."""
    rows = {text: Row(cron=text) for text in EXPRESSIONS}
    for name in names:
        zone = zoneinfo.ZoneInfo(name)
        days = list(changes(zone))
        for day in days:
            start, end = day - AROUND, day + AROUND
            moments = [start + timedelta(minutes=minute) for minute in range(1, 2 * AROUND.days * 24 * 60 + 1)]
            shown = [(moment, moment.astimezone(zone)) for moment in moments]
            for text, row in rows.items():
                read = cron.read(text, name)
                expected = searched(read, shown)
                row.checks += 1
                row.firings += len(expected)
                row.differing += read.between(start, end, most=len(moments)) != expected
        for row in rows.values():
            row.zones += bool(days)
    return list(rows.values())


def main() -> None:
    """Sweep, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    began = time.monotonic()
    changing = [name for name in sorted(zoneinfo.available_timezones()) if any(changes(zoneinfo.ZoneInfo(name)))]
    rows = sweep(changing[:5] if quick else changing)
    print("| cron | zones | checks | firings | differing |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(map(str, asdict(row).values()))} |")
    if not quick:
        print(results.write("cron_sweep", [asdict(row) for row in rows], time.monotonic() - began))


if __name__ == "__main__":
    main()
