"""`graceful schedule apply`: a spec and a cron expression become a schedule, here or on a cluster. Client."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from graceful import redact, spec
from graceful.cli import code_upload, planning, programs
from graceful.cli import output as out
from graceful.cli.scheduling import ScheduleLocation
from graceful.errors import SpecError, StorageError
from graceful.launch import backend, plan
from graceful.launch.backend import Change, Difference
from graceful.launch.job import JobSpec
from graceful.launch.kuberay import backend as kuberay
from graceful.launch.kuberay import cronjob
from graceful.launch.kuberay import schedule as cluster
from graceful.launch.kuberay.profile import KubeRay
from graceful.schedules import cron as crontab
from graceful.schedules.timetable import Entry, Timetable

NAME = re.compile(spec.NAME)
MINUTES = "00000000"
"""Stands in for the minutes of a firing where its name must be known before it fires."""


def apply(
    name: str,
    path: Path,
    *,
    cron: str,
    time_zone: str,
    sets: Sequence[str],
    always: bool,
    service_account: str | None,
    dry_run: bool,
    output: str,
    **location_options: Any,
) -> int:
    """Make or change a schedule; say what changed.

    Raises:
        SpecError: Name, cron expression, time zone, spec or profile are wrong; nothing was sent or written.
        ApiError: The cluster refused.
    """
    location = ScheduleLocation(**location_options)
    next_firing = first_firing(name, cron, time_zone)
    resolved = programs.resolve(path, [*sets, f"if_new_data={'false' if always else 'true'}"], location.home)
    if location.here:
        entry = Entry(name=name, cron=cron, time_zone=time_zone, document=resolved.dump(), since=datetime.now(UTC))
        changes = apply_here(location.timetable, entry, dry_run=dry_run)
    else:
        changes = _apply_there(
            location,
            name=name,
            cron=cron,
            time_zone=time_zone,
            resolved=resolved,
            account=service_account,
            dry_run=dry_run,
        )
    return report(name, location, changes, next_firing=next_firing, dry_run=dry_run, output=output)


def first_firing(name: str, cron: str, time_zone: str) -> datetime:
    """Return when a schedule would fire next.

    Raises:
        SpecError: Its name, the cron expression or the time zone is wrong.
    """
    if not NAME.fullmatch(name) or len(name) > cronjob.LONGEST:
        raise SpecError(
            f"schedule {name!r}: must be lower case letters, digits and inner hyphens, at most {cronjob.LONGEST}"
        )
    return crontab.read(cron, time_zone).after(datetime.now(UTC))


def apply_here(timetable: Timetable, entry: Entry, *, dry_run: bool) -> tuple[Difference, ...]:
    """Write a schedule of this machine, and return what changed."""
    try:
        current = timetable.peek(entry.name)
    except StorageError:  # applying replaces a damaged file
        current = None
    title = f"schedule {entry.name}"
    if current is None:
        changes = Difference(document=title, change=Change.CREATE)
    else:
        entry = replace(entry, paused=current.paused)
        lines = plan.diff(_content(current), _content(entry))
        changed = _content(current) != _content(entry)  # the lines hide secrets, so they do not show that one changed
        changes = Difference(document=title, change=Change.UPDATE if changed else Change.NONE, lines=lines)
    if changes.change is not Change.NONE and not dry_run:
        timetable.put(entry)
    return (changes,)


def _content(entry: Entry) -> dict[str, Any]:
    return {"cron": entry.cron, "time_zone": entry.time_zone, "spec": entry.document}


def _apply_there(
    location: ScheduleLocation,
    *,
    name: str,
    cron: str,
    time_zone: str,
    resolved: spec.RefreshSpec,
    account: str | None,
    dry_run: bool,
) -> tuple[Difference, ...]:
    target_profile = cluster_profile(location)
    job = planning.job_of(resolved.model_copy(update={"name": f"{name}-{MINUTES}"}), target_profile)
    document = json.loads(job.document or "{}")
    document["name"] = resolved.name
    if job.files:
        document["task"]["file"] = f"{cronjob.FOLDER}/{planning.TASK_FILE}"
    schedule = cronjob.Schedule(
        name=name,
        cron=cron,
        time_zone=time_zone,
        model=resolved.model,
        document=document,
        files=job.files,
        account=account or account_of(target_profile),
    )
    return apply_there(
        location, target_profile, job, schedule, dry_run=dry_run, prepare=lambda: code_upload.send(resolved, job)
    )


def cluster_profile(location: ScheduleLocation) -> KubeRay:
    """Return the profile of the cluster of a schedule.

    Raises:
        SpecError: None is named, or one without schedules.
    """
    target_profile = location.profile()
    if target_profile is None:
        raise SpecError("schedule apply: pods need a profile; name one with --on")
    return target_profile


def apply_there(
    location: ScheduleLocation,
    target_profile: KubeRay,
    job: JobSpec,
    schedule: cronjob.Schedule,
    *,
    dry_run: bool,
    prepare: Callable[[], None],
) -> tuple[Difference, ...]:
    """Send a schedule to a cluster, and return what changed.

    The first firing is planned too: what would be refused at three in the morning is refused now.

    Args:
        location: Which cluster.
        target_profile: Its profile.
        job: The job of the first firing.
        schedule: What is sent.
        dry_run: Only say what would change.
        prepare: Called before the schedule is sent.
    """
    kube = location.kube()
    planned = kuberay.KubeRayBackend(profile=target_profile, connect=lambda: kube).plan(job)
    for finding in planned.findings:
        out.talk(redact.message(f"{finding.severity}: {finding.line()}"))
    backend.refuse(planned)
    changes = cluster.compare(kube, schedule, target_profile)
    if not dry_run and any(difference.change is not Change.NONE for difference in changes):
        prepare()
        cluster.apply(kube, schedule, target_profile)
    return changes


def account_of(target_profile: KubeRay) -> str:
    """Return the account that submits: charts name accounts PREFIX-ray, which may do nothing, and PREFIX-submitter."""
    ray = target_profile.service_account or ""
    if not ray.endswith("-ray"):
        raise SpecError("schedule apply: which account may submit is not known; name it with --service-account")
    return f"{ray.removesuffix('-ray')}-submitter"


def report(
    name: str,
    location: ScheduleLocation,
    changes: Sequence[Difference],
    *,
    next_firing: datetime,
    dry_run: bool,
    output: str,
) -> int:
    """Print what an apply changed and when the schedule fires next; returns 0."""
    changed = any(difference.change is not Change.NONE for difference in changes)
    if output != "table":
        documents = [
            {"document": difference.document, "change": difference.change.value, "lines": list(difference.lines)}
            for difference in changes
        ]
        facts = {"schedule": name, "changed": changed, "dry_run": dry_run, "next": next_firing.isoformat()}
        out.document({**facts, "changes": documents}, output)
        return 0
    for difference in changes if changed else ():
        out.line(f"{difference.change}: {difference.document}")
        for line in difference.lines:
            out.line(f"  {redact.shown(line)}")
    if not changed:
        out.line(f"schedule {name}: unchanged")
    elif dry_run:
        out.talk("not applied: --dry-run")
    out.talk(f"next firing {next_firing:%Y-%m-%d %H:%M} UTC, unless it is paused")
    if location.here and not location.timetable.is_working():
        out.talk(f"no scheduler is at work: start one with `graceful schedule run{location.options()}`")
    return 0
