"""`graceful schedule list`, `pause`, `resume`, `run-now` and `delete`, on a cluster and on this machine. Client."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from graceful import homes
from graceful.cli import output as out
from graceful.errors import SpecError
from graceful.launch import profile
from graceful.launch.kuberay import schedule as cluster
from graceful.launch.kuberay.profile import KubeRay
from graceful.launch.kubernetes.kube import Kube
from graceful.schedules.history import Event
from graceful.schedules.timetable import LATE, Timetable

COLUMNS = ("schedule", "cron", "zone", "next", "last", "outcome", "state")
POLICIES = {"missed_after_seconds": int(LATE.total_seconds())}


@dataclass(frozen=True, kw_only=True)
class ScheduleLocation:
    """A cluster, or this machine.

    Attributes:
        on: Profile; None or local: this machine, unless a context or a namespace is named.
        context: The context of the kubeconfig; wins over the profile's.
        namespace: Wins over the profile's.
        home: Folder of this machine's schedules.
    """

    on: str | None = None
    context: str | None = None
    namespace: str | None = None
    home: Path | None = None

    @property
    def here(self) -> bool:
        """Return whether this machine is meant."""
        return self.on in (None, profile.HERE) and not (self.context or self.namespace)

    @property
    def timetable(self) -> Timetable:
        """Return the schedules of this machine."""
        return Timetable(homes.folder(self.home) / "schedules")

    def profile(self) -> KubeRay | None:
        """Return the cluster's profile; None: only a context or namespace was named.

        Raises:
            SpecError: No such profile, or one without schedules.
        """
        if self.on is None:
            return None
        target_profile = profile.load(self.on)
        kubernetes = target_profile.kubernetes
        if kubernetes is None:
            remedy = "name one of kind kuberay, or leave --on out and run `graceful schedule run` on this machine"
            raise SpecError(f"--on {self.on}: kind {target_profile.kind} has no schedules; {remedy}")
        namespace = self.namespace or kubernetes.namespace
        return kubernetes.model_copy(update={"context": self.context or kubernetes.context, "namespace": namespace})

    def kube(self) -> Kube:
        """Return the client of the API server; nothing is sent yet."""
        target_profile = self.profile()
        if target_profile is None:
            return Kube.connect(context=self.context, namespace=self.namespace)
        return Kube.connect(context=target_profile.context, namespace=target_profile.namespace)

    def options(self) -> str:
        """Return the options as people type them, for messages."""
        options = {"--on": self.on, "--context": self.context, "-n": self.namespace, "--home": self.home}
        return "".join(f" {flag} {value}" for flag, value in options.items() if value)


def listing(location: ScheduleLocation, *, output: str) -> int:
    """Print every schedule with its next and last firing."""
    rows = _rows_here(location.timetable) if location.here else _rows_there(location.kube())
    if output != "table":
        out.document(rows, output)
        return 0
    if not rows:
        out.talk("no schedules; `graceful schedule apply` makes one")
        return 0
    lines = [COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    for line in lines:
        out.line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    out.talk(f"overlapping firings: {rows[0]['overlapping']}; missed ones: run once if less than an hour late")
    if location.here and not location.timetable.is_working():
        out.talk(f"no scheduler is at work: start one with `graceful schedule run{location.options()}`")
    return 0


def _rows_here(timetable: Timetable) -> list[dict[str, Any]]:
    history = timetable.history()
    rows = []
    for entry in timetable.entries():
        events = [event for event in history if event.schedule == entry.name]
        if timetable.is_firing(entry.name):  # skipped firings in between do not count
            events = [event for event in events if event.outcome == "running"]
            outcome = "running"
        else:
            outcome = (
                "interrupted" if events and events[-1].outcome == "running" else events[-1].outcome if events else ""
            )
        last = events[-1] if events else None
        rows.append(
            {
                "schedule": entry.name,
                "cron": entry.cron,
                "time_zone": entry.time_zone,
                "paused": entry.paused,
                "next": None if entry.paused else entry.times().after(datetime.now(UTC)).isoformat(),
                "last": _last(last, outcome),
                "overlapping": "skipped",
                **POLICIES,
            }
        )
    return rows


def _last(event: Event | None, outcome: str) -> dict[str, Any] | None:
    if event is None:
        return None
    due = event.due.isoformat()
    return {"firing": event.firing, "at": due, "outcome": outcome, "reason": event.reason, "exit_code": event.exit_code}


def _rows_there(kube: Kube) -> list[dict[str, Any]]:
    return [
        {
            "schedule": schedule.name,
            "cronjob": schedule.cronjob,
            "cron": schedule.cron,
            "time_zone": schedule.time_zone,
            "paused": schedule.paused,
            "next": None if schedule.next is None else schedule.next.isoformat(),
            "last": None
            if schedule.last is None
            else {
                "firing": schedule.last.name,
                "at": schedule.last.at.isoformat(),
                "outcome": schedule.last.outcome,
                "reason": schedule.last.reason,
            },
            "overlapping": "forbidden, started afterwards",
            **POLICIES,
            "chart": schedule.chart,
        }
        for schedule in cluster.listing(kube, now=datetime.now(UTC))
    ]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    last = row["last"] or {"at": None, "outcome": "", "reason": ""}
    reason = last["reason"].removeprefix(f"{last['outcome']}: ")
    ended = f"{last['outcome']}{f': {reason}' if reason else ''}"
    state = "paused" if row["paused"] else "active"
    chart = f" (chart {row['chart']})" if row.get("chart") else ""
    moments = (_minute_text(row["next"]), _minute_text(last["at"]))
    return (row["schedule"], row["cron"], row["time_zone"], *moments, ended, f"{state}{chart}")


def _minute_text(moment: str | None) -> str:
    return "" if moment is None else f"{datetime.fromisoformat(moment).astimezone(UTC):%Y-%m-%d %H:%M}Z"


def pause(name: str, location: ScheduleLocation, *, paused: bool) -> int:
    """Pause a schedule or let it go on."""
    if location.here:
        changed = location.timetable.pause(name, paused=paused, now=datetime.now(UTC))
    else:
        changed = cluster.suspend(location.kube(), name, paused=paused)
    state = "paused" if paused else "active"
    out.line(f"schedule {name}: {state}{'' if changed else ', as before'}")
    return 0


def delete(name: str, location: ScheduleLocation) -> int:
    """Delete a schedule; what runs goes on."""
    if location.here:
        location.timetable.remove(name)
        running: tuple[str, ...] = (name,) if location.timetable.is_firing(name) else ()
    else:
        running = cluster.delete(location.kube(), name)
    out.line(f"schedule {name}: deleted")
    for firing in running:
        out.talk(f"a firing of {firing} still runs and is left alone")
    return 0


def run_now(name: str, location: ScheduleLocation, *, output: str) -> int:
    """Fire once: send it to the cluster, or refresh here in the foreground.

    Returns:
        0, or here the exit code of the refresh.

    Raises:
        SpecError: No such schedule, or a firing of it is running.
    """
    if location.here:
        from graceful.cli import schedule_runs as machine

        return machine.run_now(name, location.timetable, home=location.home, output=output)
    kube = location.kube()
    firing = cluster.run_now(kube, name, now=datetime.now(UTC))
    run = cluster.run_id(kube, firing)
    if output == "table":
        out.line(f"Job {firing}")
        if run:
            out.talk(f"  graceful status {run}{location.options()} --wait")
    else:
        out.document({"schedule": name, "firing": firing, "run_id": run or None}, output)
    return 0
