"""Schedules on a cluster: apply, list, pause, run now, delete their CronJobs. Runs on the client.

`list` shows the chart's too; what the chart made is changed in its values alone. Pausing is `suspend`; it is not a part
of what is applied, so that an apply keeps it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from graceful.environment import FIRING_VARIABLE
from graceful.errors import EXIT_HELD, EXIT_INFRASTRUCTURE, EXIT_TRAINING, EXIT_USAGE, GracefulError, SpecError
from graceful.launch import names, plan
from graceful.launch.backend import Change, Difference, Document, Finding, Severity
from graceful.launch.kuberay import preflight, runs
from graceful.launch.kuberay.cronjob import SCHEDULE, Schedule, config_of, render
from graceful.launch.kuberay.profile import KubeRay
from graceful.launch.kubernetes.kube import Kube
from graceful.launch.outcome import SKIPPED
from graceful.launch.refusals import ConflictError, NotFoundError
from graceful.schedules import cron

_EXIT_CODE = re.compile(r"exit code (\d+)")
OUTCOMES = {
    EXIT_USAGE: "refused",
    EXIT_HELD: "held",
    EXIT_INFRASTRUCTURE: "no infrastructure",
    EXIT_TRAINING: "training failed",
}
"""Outcome of a firing by the exit code of its pod."""


@dataclass(frozen=True, kw_only=True)
class Firing:
    """One firing, past or running.

    Attributes:
        name: The name of the Job and of the version.
        at: When it started.
        outcome: running, passed, held, skipped (no new data), or why it failed.
        reason: One line for people; empty if there is nothing to say.
    """

    name: str
    at: datetime
    outcome: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class ScheduleStatus:
    """The present state of a schedule.

    Attributes:
        name: The name of the schedule.
        cronjob: Of its CronJob.
        cron: As it is written there.
        time_zone: The time zone of the cron expression.
        paused: Fires only on demand.
        next: When it fires next; None: paused, or the expression is not one that we read.
        last: Its newest firing; None: none is known.
        chart: Release of the chart that made it; empty: we did.
    """

    name: str
    cronjob: str
    cron: str
    time_zone: str
    paused: bool
    next: datetime | None
    last: Firing | None
    chart: str = ""


def compare(kube: Kube, schedule: Schedule, profile: KubeRay) -> tuple[Difference, Difference]:
    """Return what applying would change: the documents that pods read, and the CronJob. Changes nothing.

    Raises:
        SpecError: The name belongs to another object.
        ApiError: The server refuses the CronJob, or a permission is missing.
    """
    config, cronjob = render(schedule, profile)
    _require_admitted(kube, cronjob)
    try:
        live = kube.get("CronJob", schedule.name, namespace=profile.namespace)
    except NotFoundError:
        _require_unused_name(kube, schedule.name)
        kube.create(cronjob, dry_run=True)
        return _new(config), _new(cronjob)
    _require_ours(live)
    current_data = _documents(kube, live)
    lines = () if current_data is None else plan.diff({"data": current_data}, {"data": config["data"]})
    change = Change.CREATE if current_data is None else Change.UPDATE if lines else Change.NONE
    config_difference = Difference(document=plan.title(config), change=change, lines=lines)
    return config_difference, plan.difference(cronjob, live, kube.apply(cronjob, dry_run=True, force=True))


def apply(kube: Kube, schedule: Schedule, profile: KubeRay) -> None:
    """Send what `compare` showed; the same again changes nothing. Documents that are no longer read are deleted.

    Raises:
        ApiError: As `compare`.
    """
    config, cronjob = render(schedule, profile)
    with contextlib.suppress(ConflictError):  # the name is a digest of the content, so an existing one is the same
        kube.create(config)
    live = kube.apply(cronjob, force=True)
    owner = _owner(live)
    kube.patch("ConfigMap", config["metadata"]["name"], {"metadata": {"ownerReferences": [owner]}})
    _tidy(kube, schedule.name, keep=config["metadata"]["name"])


def find(kube: Kube, name: str) -> Document:
    """Return the CronJob of a schedule, ours or the chart's, by the schedule's name or the CronJob's own.

    Raises:
        SpecError: There is none, or several.
    """
    cronjobs = kube.list("CronJob", selector=SCHEDULE).items
    exact = [item for item in cronjobs if item["metadata"]["name"] == name]
    matches = exact or [item for item in cronjobs if item["metadata"]["labels"][SCHEDULE] == name]
    if not matches:
        raise SpecError(f"no schedule {name!r} in namespace {kube.namespace}; `graceful schedule list` shows them")
    if len(matches) > 1:
        all_names = ", ".join(item["metadata"]["name"] for item in matches)
        raise SpecError(f"schedule {name!r}: several have this name; use the CronJob's: {all_names}")
    return matches[0]


def listing(kube: Kube, *, now: datetime) -> list[ScheduleStatus]:
    """Return every schedule of the namespace, by name."""
    cronjobs = kube.list("CronJob", selector=SCHEDULE).items
    all_jobs = kube.list("Job", selector=SCHEDULE).items if cronjobs else ()
    return sorted(
        (_schedule_status(kube, item, all_jobs, now) for item in cronjobs),
        key=lambda schedule_status: (schedule_status.name, schedule_status.cronjob),
    )


def _schedule_status(kube: Kube, cronjob: Document, all_jobs: Sequence[Document], now: datetime) -> ScheduleStatus:
    meta, spec = cronjob["metadata"], cronjob["spec"]
    zone, paused = spec.get("timeZone") or "Etc/UTC", bool(spec.get("suspend"))
    fired = _oldest_first(job for job in all_jobs if owned_by(job, meta["uid"]))
    next_firing = None
    with contextlib.suppress(SpecError):  # Kubernetes accepts more than we parse, such as @every
        next_firing = None if paused else cron.read(spec["schedule"], zone).after(now)
    labels = meta["labels"]
    return ScheduleStatus(
        name=labels[SCHEDULE],
        cronjob=meta["name"],
        cron=spec["schedule"],
        time_zone=zone,
        paused=paused,
        next=next_firing,
        last=_firing(kube, fired[-1]) if fired else None,
        chart="" if _is_ours(cronjob) else labels.get("app.kubernetes.io/instance", ""),
    )


def _firing(kube: Kube, job: Document) -> Firing:
    name = job["metadata"]["name"]
    outcome, reason = _ended(kube, job)
    fired_at = datetime.fromisoformat(job["metadata"]["creationTimestamp"])
    return Firing(name=name, at=fired_at, outcome=outcome, reason=reason)


def _ended(kube: Kube, job: Document) -> tuple[str, str]:
    """Return outcome and reason: a Job knows only the exit code; its run says whether it was skipped."""
    conditions = {item["type"]: item for item in (job.get("status") or {}).get("conditions") or ()}
    failed = conditions.get("Failed")
    if is_active(job):
        return "running", ""
    if failed is not None and failed["status"] == "True":
        message = " ".join(str(failed.get("message") or failed.get("reason") or "").split())
        code = _EXIT_CODE.search(message)
        outcome = OUTCOMES.get(int(code[1]), "failed") if code else "failed"
        return outcome, "" if outcome == "held" else message
    run = _run_of(job)
    with contextlib.suppress(GracefulError):  # the run is gone, or may not be read
        cause = runs.status(kube, names.job_name(run)).cause if run else ""
        return ("skipped", cause) if cause.startswith(SKIPPED) else ("passed", "")
    return "ended", ""


def _run_of(job: Document) -> str:
    """Run id that a firing waits for; empty where the pod refreshes by itself."""
    for container in job["spec"]["template"]["spec"]["containers"]:
        command, *arguments = container.get("args") or ("",)
        if command == "status" and arguments:
            return str(arguments[0]).replace(f"$({FIRING_VARIABLE})", job["metadata"]["name"])
    return ""


def suspend(kube: Kube, name: str, *, paused: bool) -> bool:
    """Pause or go on; a running firing is left alone.

    Returns:
        Whether that changed anything.
    """
    live = find(kube, name)
    if bool(live["spec"].get("suspend")) == paused:
        return False
    kube.patch("CronJob", live["metadata"]["name"], {"spec": {"suspend": paused}})
    return True


def run_now(kube: Kube, name: str, *, now: datetime) -> str:
    """Start one firing now, paused or not; twice within a minute is one.

    Returns:
        The Job's name; the version has the same.

    Raises:
        SpecError: A firing is running.
    """
    live = find(kube, name)
    cronjob = live["metadata"]["name"]
    firing = cron.firing_name(cronjob, now)
    running = [job["metadata"]["name"] for job in jobs(kube, live) if is_active(job)]
    if running:
        raise SpecError(f"schedule {cronjob}: {running[0]} is running, two firings never overlap; wait for it")
    template = live["spec"]["jobTemplate"]
    labels = template.get("metadata", {}).get("labels") or {}
    meta = {"name": firing, "namespace": live["metadata"]["namespace"], "labels": labels}
    meta |= {"annotations": {"cronjob.kubernetes.io/instantiate": "manual"}, "ownerReferences": [_owner(live)]}
    with contextlib.suppress(ConflictError):  # another run-now created it first
        kube.create({"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": template["spec"]})
    return firing


def run_id(kube: Kube, firing: str) -> str:
    """Run that a firing computes; empty where its pod refreshes by itself."""
    return _run_of(kube.get("Job", firing))


def delete(kube: Kube, name: str) -> tuple[str, ...]:
    """Delete the CronJob, its finished Jobs and its documents; a firing that is running goes on with what it reads.

    Returns:
        Names of the Jobs that are still running.

    Raises:
        SpecError: There is none, or it is the chart's.
    """
    live = find(kube, name)
    _require_ours(live)
    firings = jobs(kube, live)
    meta = live["metadata"]
    kube.delete("CronJob", meta["name"], propagation="Orphan", uid=meta["uid"])
    for job in (job for job in firings if not is_active(job)):
        with contextlib.suppress(NotFoundError):
            kube.delete("Job", job["metadata"]["name"], uid=job["metadata"]["uid"])
    _tidy(kube, meta["labels"][SCHEDULE])
    return tuple(job["metadata"]["name"] for job in firings if is_active(job))


def jobs(kube: Kube, cronjob: Document) -> list[Document]:
    """Return the firings of a schedule, oldest first."""
    name, uid = cronjob["metadata"]["labels"][SCHEDULE], cronjob["metadata"]["uid"]
    return _oldest_first(job for job in kube.list("Job", selector=f"{SCHEDULE}={name}").items if owned_by(job, uid))


def _oldest_first(jobs: Iterable[Document]) -> list[Document]:
    return sorted(jobs, key=lambda job: (job["metadata"]["creationTimestamp"], job["metadata"]["name"]))


def owned_by(job: Document, uid: str) -> bool:
    """Return whether a CronJob made this Job."""
    return any(owner["uid"] == uid for owner in job["metadata"].get("ownerReferences") or ())


def is_active(job: Document) -> bool:
    """Return whether a Job is neither complete nor failed."""
    conditions = (job.get("status") or {}).get("conditions") or ()
    return not any(item["type"] in ("Complete", "Failed") and item["status"] == "True" for item in conditions)


def _tidy(kube: Kube, name: str, *, keep: str = "") -> None:
    """Delete the documents of a schedule that neither its CronJob nor a running firing reads."""
    key, value = names.MANAGED_BY
    config_maps = kube.list("ConfigMap", selector=f"{SCHEDULE}={name},{key}={value}").items
    active = [job for job in kube.list("Job", selector=f"{SCHEDULE}={name}").items if is_active(job)]
    readers = {config_of(job["spec"]["template"]): job for job in active}
    for item in (item["metadata"] for item in config_maps if item["metadata"]["name"] != keep):
        reader = readers.get(item["name"])
        if reader is None:
            with contextlib.suppress(NotFoundError, ConflictError):
                kube.delete("ConfigMap", item["name"], uid=item["uid"])
        else:  # Kubernetes deletes it together with the Job that reads it
            kube.patch("ConfigMap", item["name"], {"metadata": {"ownerReferences": [_owner(reader, kind="Job")]}})


def _documents(kube: Kube, live: Document) -> Mapping[str, str] | None:
    """Return what the pods of a CronJob read now; None if it is gone."""
    try:
        config_map = kube.get("ConfigMap", config_of(live["spec"]["jobTemplate"]["spec"]["template"]))
    except NotFoundError:
        return None
    data: Mapping[str, str] = config_map.get("data") or {}
    return data


def _require_admitted(kube: Kube, cronjob: Document) -> None:
    """Refuse a schedule whose pods the cluster would refuse: a CronJob is accepted with any template."""
    template = cronjob["spec"]["jobTemplate"]["spec"]["template"]
    for finding in preflight.try_pod(kube, "schedule", template):
        if isinstance(finding, Finding) and finding.severity is Severity.ERROR:
            raise SpecError(finding.line())


def _require_unused_name(kube: Kube, name: str) -> None:
    for item in kube.list("CronJob", selector=f"{SCHEDULE}={name}").items:
        _require_ours(item)


def _require_ours(live: Document) -> None:
    if _is_ours(live):
        return
    meta = live["metadata"]
    labels = meta.get("labels") or {}
    release = labels.get("app.kubernetes.io/instance")
    whose = f"of the Helm release {release}; change its values" if release else "not graceful's; choose another name"
    raise SpecError(f"schedule {labels.get(SCHEDULE, meta['name'])}: CronJob {meta['name']} is {whose}")


def _is_ours(live: Document) -> bool:
    labels = live["metadata"].get("labels") or {}
    key, value = names.MANAGED_BY
    return labels.get(key) == value and SCHEDULE in labels


def _owner(live: Document, *, kind: str = "CronJob") -> dict[str, Any]:
    """Return an owner reference; items of a list do not have their own kind."""
    meta = live["metadata"]
    return {"apiVersion": "batch/v1", "kind": kind, "name": meta["name"], "uid": meta["uid"]}


def _new(document: Document) -> Difference:
    return Difference(document=plan.title(document), change=Change.CREATE)
