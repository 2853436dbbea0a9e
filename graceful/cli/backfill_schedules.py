"""`graceful backfill schedule`: a backfill and a cron expression become a schedule, here or on a cluster. Client.

Its firings are what `graceful backfill run` does. `graceful schedule list`, `pause`, `resume`, `run-now` and `delete`
treat it like any other.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from graceful import spec
from graceful.cli import applying, backfill_jobs, code_upload, planning
from graceful.cli.index_documents import SETTINGS
from graceful.cli.scheduling import ScheduleLocation
from graceful.launch.backend import Difference
from graceful.launch.kuberay import cronjob
from graceful.schedules.timetable import BACKFILL, Entry


def apply(
    document: dict[str, Any],
    *,
    name: str,
    cron: str,
    time_zone: str,
    service_account: str | None,
    dry_run: bool,
    output: str,
    **location_options: Any,
) -> int:
    """Make or change the schedule of a backfill; say what changed.

    Args:
        document: What `graceful.programs backfill` reads.
        name: The name of the schedule.
        cron: When.
        time_zone: The time zone of the cron expression.
        service_account: That submits on a cluster; None: that of the profile's chart.
        dry_run: Only say what would change.
        output: Form of the result.
        location_options: As of `ScheduleLocation`.

    Raises:
        SpecError: Name, cron expression, time zone, a file or the profile is wrong; nothing was sent or written.
        ApiError: The cluster refused.
    """
    location = ScheduleLocation(**location_options)
    next_firing = applying.first_firing(name, cron, time_zone)
    if location.here:
        backfill_jobs.require_whole(document)
        made = {BACKFILL: json.loads(json.dumps(backfill_jobs.located(document, None)))}  # as it is read back
        entry = Entry(name=name, cron=cron, time_zone=time_zone, document=made, since=datetime.now(UTC))
        changes = applying.apply_here(location.timetable, entry, dry_run=dry_run)
    else:
        account = service_account
        changes = _apply_there(document, location, name, cron=(cron, time_zone), account=account, dry_run=dry_run)
    return applying.report(name, location, changes, next_firing=next_firing, dry_run=dry_run, output=output)


def _apply_there(
    document: dict[str, Any],
    location: ScheduleLocation,
    name: str,
    *,
    cron: tuple[str, str],
    account: str | None,
    dry_run: bool,
) -> tuple[Difference, ...]:
    target_profile = applying.cluster_profile(location)
    job = backfill_jobs.job_of(document, target_profile, name=f"{name}-{applying.MINUTES}")
    section = document.get("source", {}).get("spec")
    resolved = None if section is None else spec.parse(section, where="--spec")
    travelling = {} if resolved is None else planning.travelling(resolved, target_profile)[0]
    if job.files:
        travelling["task"]["file"] = f"{cronjob.FOLDER}/{planning.TASK_FILE}"
    schedule = cronjob.Schedule(
        name=name,
        cron=cron[0],
        time_zone=cron[1],
        model=backfill_jobs.PROGRAM,
        document=travelling,
        files=job.files,
        account=account or applying.account_of(target_profile),
        command=words(document),
    )

    def prepare() -> None:
        if resolved is not None:
            code_upload.send(resolved, job)

    return applying.apply_there(location, target_profile, job, schedule, dry_run=dry_run, prepare=prepare)


def words(document: dict[str, Any]) -> tuple[str, ...]:
    """Return the command that a pod of a schedule runs to send a backfill, without profile and name."""
    source = dict(document.get("source", {}))
    if source.get("spec") is not None:
        source["spec"] = f"{cronjob.FOLDER}/{cronjob.SPEC_FILE}"
    first, workers = document["shard"]
    settings = {key.replace("_", "-"): document[key] for key in SETTINGS} | {"shard": f"{first + 1}/{workers}"}
    more = {key: document.get(key) for key in ("traffic", *backfill_jobs.WHY)}
    given = {**source, **settings, **more}
    return (
        "backfill",
        "run",
        document["index"],
        *(f"--{key}={value}" for key, value in given.items() if value not in (None, "")),
    )
