"""`graceful schedule apply`: a spec and a cron expression become a schedule, here or on a cluster. Client."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
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
from graceful.launch.kuberay import backend as kuberay
from graceful.launch.kuberay import cronjob
from graceful.launch.kuberay import schedule as cluster
from graceful.launch.kuberay.profile import KubeRay
from graceful.schedules import cron as crontab
from graceful.schedules.timetable import Entry, Timetable

NAME = re.compile(spec.NAME)
MINUTES = "00000000"
"""In place of a firing's, where its name must be known before it fires."""


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
    if not NAME.fullmatch(name) or len(name) > cronjob.LONGEST:
        raise SpecError(
            f"schedule {name!r}: must be lower case letters, digits and inner hyphens, at most {cronjob.LONGEST}"
        )
    next_firing = crontab.read(cron, time_zone).after(datetime.now(UTC))
    resolved = programs.resolve(path, [*sets, f"if_new_data={'false' if always else 'true'}"], location.home)
    if location.here:
        entry = Entry(name=name, cron=cron, time_zone=time_zone, document=resolved.dump(), since=datetime.now(UTC))
        changes = _apply_here(location.timetable, entry, dry_run=dry_run)
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
    return _applied(name, location, changes, next_firing=next_firing, dry_run=dry_run, output=output)


def _apply_here(timetable: Timetable, entry: Entry, *, dry_run: bool) -> tuple[Difference, ...]:
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
    """Plan the first firing too: what would be refused at three in the morning is refused now."""
    target_profile = location.profile()
    if target_profile is None:
        raise SpecError("schedule apply: pods need a profile; name one with --on")
    kube = location.kube()
    sample = resolved.model_copy(update={"name": f"{name}-{MINUTES}"})
    job = planning.job_of(sample, target_profile)
    planned = kuberay.KubeRayBackend(profile=target_profile, connect=lambda: kube).plan(job)
    for finding in planned.findings:
        out.talk(redact.message(f"{finding.severity}: {finding.line()}"))
    backend.refuse(planned)
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
        account=account or _account(target_profile),
    )
    changes = cluster.compare(kube, schedule, target_profile)
    if not dry_run and any(difference.change is not Change.NONE for difference in changes):
        code_upload.send(resolved, job)
        cluster.apply(kube, schedule, target_profile)
    return changes


def _account(target_profile: KubeRay) -> str:
    """Return the account that submits: charts name accounts PREFIX-ray, which may do nothing, and PREFIX-submitter."""
    ray = target_profile.service_account or ""
    if not ray.endswith("-ray"):
        raise SpecError("schedule apply: which account may submit is not known; name it with --service-account")
    return f"{ray.removesuffix('-ray')}-submitter"


def _applied(
    name: str,
    location: ScheduleLocation,
    changes: Sequence[Difference],
    *,
    next_firing: datetime,
    dry_run: bool,
    output: str,
) -> int:
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
