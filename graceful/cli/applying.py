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
from graceful.cli.scheduling import Where
from graceful.errors import SpecError, StorageError
from graceful.launch import backend, cronjob, kuberay, plan, profile
from graceful.launch import cron as crontab
from graceful.launch import schedule as cluster
from graceful.launch.backend import Change, Difference
from graceful.launch.timetable import Entry, Timetable

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
    **where: Any,
) -> int:
    """Make or change a schedule; say what changed.

    Raises:
        SpecError: Name, cron expression, time zone, spec or profile are wrong; nothing was sent or written.
        ApiError: The cluster refused.
    """
    place = Where(**where)
    if not NAME.fullmatch(name) or len(name) > cronjob.LONGEST:
        raise SpecError(
            f"schedule {name!r}: must be lower case letters, digits and inner hyphens, at most {cronjob.LONGEST}"
        )
    following = crontab.read(cron, time_zone).after(datetime.now(UTC))
    resolved = programs.resolve(path, [*sets, f"if_new_data={'false' if always else 'true'}"], place.home)
    if place.here:
        entry = Entry(name=name, cron=cron, time_zone=time_zone, document=resolved.dump(), since=datetime.now(UTC))
        changes = _apply_here(place.timetable, entry, dry_run=dry_run)
    else:
        changes = _apply_there(
            place,
            name=name,
            cron=cron,
            time_zone=time_zone,
            resolved=resolved,
            account=service_account,
            dry_run=dry_run,
        )
    return _applied(name, place, changes, following=following, dry_run=dry_run, output=output)


def _apply_here(timetable: Timetable, entry: Entry, *, dry_run: bool) -> tuple[Difference, ...]:
    try:
        before = timetable.peek(entry.name)
    except StorageError:  # a damaged file: applying mends it
        before = None
    title = f"schedule {entry.name}"
    if before is None:
        changes = Difference(document=title, change=Change.CREATE)
    else:
        entry = replace(entry, paused=before.paused)
        lines = plan.diff(_content(before), _content(entry))
        changed = _content(before) != _content(entry)  # the lines hide secrets, and with them that one changed
        changes = Difference(document=title, change=Change.UPDATE if changed else Change.NONE, lines=lines)
    if changes.change is not Change.NONE and not dry_run:
        timetable.put(entry)
    return (changes,)


def _content(entry: Entry) -> dict[str, Any]:
    return {"cron": entry.cron, "time_zone": entry.time_zone, "spec": entry.document}


def _apply_there(
    place: Where,
    *,
    name: str,
    cron: str,
    time_zone: str,
    resolved: spec.RefreshSpec,
    account: str | None,
    dry_run: bool,
) -> tuple[Difference, ...]:
    """Plan the first firing too: what would be refused at three in the morning is refused now."""
    chosen = place.profile()
    if chosen is None:
        raise SpecError("schedule apply: pods need a profile; name one with --on")
    kube = place.kube()
    sample = resolved.model_copy(update={"name": f"{name}-{MINUTES}"})
    job = planning.job_of(sample, chosen)
    planned = kuberay.KubeRayBackend(profile=chosen, connect=lambda: kube).plan(job)
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
        account=account or _account(chosen),
    )
    changes = cluster.compare(kube, schedule, chosen)
    if not dry_run and any(item.change is not Change.NONE for item in changes):
        code_upload.send(resolved, job)
        cluster.apply(kube, schedule, chosen)
    return changes


def _account(chosen: profile.KubeRay) -> str:
    """The chart names them PREFIX-ray, which may do nothing, and PREFIX-submitter."""
    ray = chosen.service_account or ""
    if not ray.endswith("-ray"):
        raise SpecError("schedule apply: which account may submit is not known; name it with --service-account")
    return f"{ray.removesuffix('-ray')}-submitter"


def _applied(
    name: str, place: Where, changes: Sequence[Difference], *, following: datetime, dry_run: bool, output: str
) -> int:
    changed = any(item.change is not Change.NONE for item in changes)
    if output != "table":
        documents = [
            {"document": item.document, "change": item.change.value, "lines": list(item.lines)} for item in changes
        ]
        facts = {"schedule": name, "changed": changed, "dry_run": dry_run, "next": following.isoformat()}
        out.document({**facts, "changes": documents}, output)
        return 0
    for item in changes if changed else ():
        out.line(f"{item.change}: {item.document}")
        for line in item.lines:
            out.line(f"  {redact.shown(line)}")
    if not changed:
        out.line(f"schedule {name}: unchanged")
    elif dry_run:
        out.talk("not applied: --dry-run")
    out.talk(f"next firing {following:%Y-%m-%d %H:%M} UTC, unless it is paused")
    if place.here and not place.timetable.is_working():
        out.talk(f"no scheduler is at work: start one with `graceful schedule run{place.options()}`")
    return 0
