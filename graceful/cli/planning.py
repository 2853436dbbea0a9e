"""`graceful plan` and `graceful submit`: a spec and a cluster profile become a plan, and the plan a job. Client."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from graceful import __version__, addresses, homes, redact, startup
from graceful.cli import code_upload, gpu_memory, programs
from graceful.cli import output as out
from graceful.errors import EXIT_INFRASTRUCTURE, EXIT_USAGE, SpecError
from graceful.launch import backend, plan, profile
from graceful.launch.backend import Backend, Change, Finding, Handle, Plan, Severity
from graceful.launch.base import Profile
from graceful.launch.job import JobSpec, Resources
from graceful.launch.resources import cores, written
from graceful.spec import ImageFolderTask, RefreshSpec, ShardsTask, TableTask, Tune, credentials
from graceful.spec.search_counts import trainings, tune_of

COMMAND = ("python", "-m", "graceful.programs")
REFRESH = "refresh"
TASK_FILE = "task.py"
GIT_SECONDS = 2.0


def show(path: Path, sets: Sequence[str], *, on: str, offline: bool, output: str, program: str = REFRESH) -> int:
    """Print what would run where; change nothing.

    Returns:
        0; 2 if the job or the profile is wrong; 4 if the backend refused or did not answer.
    """
    _, planned = make(programs.resolve(path, sets, None), on=on, offline=offline, program=program)
    present(planned, output)
    if not planned.errors:
        return 0
    return (
        EXIT_INFRASTRUCTURE
        if all(finding.rule in backend.INFRASTRUCTURE_RULES for finding in planned.errors)
        else EXIT_USAGE
    )


def submit(path: Path, sets: Sequence[str], *, on: str, yes: bool, output: str, program: str = REFRESH) -> int:
    """Print the plan, ask, send it, print the handle and what to do next.

    Raises:
        SpecError: The plan has errors, no person can be asked, or the run id belongs to another spec.
        InfrastructureError: Unreachable or forbidden.
    """
    resolved = programs.resolve(path, sets, None)
    target, planned = make(resolved, on=on, offline=False, program=program)
    return send(target, planned, on=on, yes=yes, output=output, prepare=lambda: code_upload.send(resolved, planned.job))


def send(
    target: Backend, planned: Plan, *, on: str, yes: bool, output: str, prepare: Callable[[], None] = lambda: None
) -> int:
    """Print a plan, ask, send it, print the handle and what to do next.

    Args:
        target: That made the plan.
        planned: What is sent.
        on: Profile, as people named it.
        yes: Do not ask.
        output: Form of the result.
        prepare: Called before the job is sent, once it is agreed.

    Raises:
        SpecError: The plan has errors, no person can be asked, or the run id belongs to something else.
        InfrastructureError: Unreachable or forbidden.
    """
    if output == "table":
        _people(planned, out.talk)
    backend.refuse(planned)
    if not (yes or _agreed(planned)):
        out.talk("not sent")
        return 0
    prepare()
    handle = target.submit(planned)
    if output == "table":
        out.line(str(handle))
        if planned.differences[-1].change in (Change.NONE, Change.UPDATE):
            out.talk(
                "it was there already and is left as it is; if it has failed or was stopped, `graceful resume"
                f" {planned.job.run_id} --on {on}` sends it again, with the present profile"
            )
        _follow_up(handle, on)
    else:
        out.document({"handle": str(handle), "run_id": planned.job.run_id, "where": planned.where}, output)
    return 0


def make(resolved: RefreshSpec, *, on: str, offline: bool, program: str = REFRESH) -> tuple[Backend, Plan]:
    """Load the profile and plan.

    Raises:
        SpecError: It is wrong, or the spec's code cannot travel there.
    """
    target_profile = profile.load(on)
    target = target_profile.build(home=homes.folder(None), offline=offline)
    planned = target.plan(job_of(resolved, target_profile, program=program))
    address = planned.job.labels.get(code_upload.FACT)
    code = (f"code: a submission uploads it to {address}, unless it is there",) if address else ()
    needed = gpu_memory.estimate(resolved)
    memory = () if needed is None else (gpu_memory.note(needed),)
    small = () if needed is None else gpu_memory.finding(needed, planned.documents)
    findings = (*planned.findings, *_warnings(resolved, target_profile), *small)
    search = (_trainings(resolved),) if program != REFRESH else ()
    elastic = () if resolved.train.min_workers is None else (programs.workers(resolved.train),)
    unchecked = f"not checked here: bucket, registry, rights; `graceful doctor --on {on}` does"
    rest = () if target_profile.is_here else (unchecked,)
    return target, replace(planned, findings=findings, notes=(*elastic, *search, *planned.notes, *memory, *code, *rest))


def _trainings(resolved: RefreshSpec) -> str:
    """Return how many models a search trains, for people."""
    counts = trainings(tune_of(resolved), resolved.compatibility)
    return (
        f"{counts.total} trainings: {counts.trials} trials, {counts.reference_runs} reference runs without constraints,"
        f" {counts.final_fits} of the best trials again with fresh seeds"
    )


def job_of(resolved: RefreshSpec, target_profile: Profile, *, program: str = REFRESH) -> JobSpec:
    """Return the job that refreshes a spec, or that searches its weights.

    A search is a run beside that of the version; with more trials it is a new run that continues the search.

    This machine has its own folders, interpreter and task files. Elsewhere a task file travels with the job, a folder
    through the bucket (`code_upload.send`), and where runs are kept is up to the backend, so `home` is left out.

    Args:
        resolved: What to do.
        target_profile: Where.
        program: refresh or tune.

    Raises:
        SpecError: The task file cannot be read, or cannot travel to that backend.
    """
    document, files, code = travelling(resolved, target_profile)
    tune_section = (
        (resolved.tune or Tune()).model_dump(mode="json") if program != REFRESH else {}
    )  # the digest of a spec leaves it out
    run_id = f"{resolved.run_id}-{program}-{tune_section['trials']}" if tune_section else resolved.run_id
    content = code.content + (json.dumps(tune_section, sort_keys=True) if tune_section else "")
    digest = hashlib.sha256((resolved.digest() + content).encode()).hexdigest() if content else resolved.digest()
    more = {code_upload.FACT: code.address} if code.address else {}
    command, env = start_of(program, target_profile)
    return JobSpec(
        name=f"{program} {resolved.run_id}",
        run_id=run_id,
        command=command,
        env=env,
        document=json.dumps(document, indent=1),
        files=files,
        workers=resolved.train.num_workers,
        resources=Resources(gpu=1 if resolved.train.use_gpu else None),
        labels=facts(digest, engine=resolved.train.engine.kind, model=resolved.model) | more,
    )


def start_of(program: str, target_profile: Profile) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the command that starts a program with a profile, and the variables that it needs."""
    if not target_profile.is_here:
        return (*COMMAND, program), {}
    variables = {**os.environ, **target_profile.variables}
    return startup.python("graceful.programs", program), programs.environment(variables)


def travelling(
    resolved: RefreshSpec, target_profile: Profile
) -> tuple[dict[str, Any], dict[str, str], code_upload.Code]:
    """Return a spec as a job of that backend reads it, the files beside it, and how its code travels.

    Raises:
        SpecError: The task file cannot be read, or something in it cannot travel to that backend.
    """
    document, code = resolved.dump(), code_upload.code_of(resolved, target_profile)
    files = {} if code.text is None or target_profile.is_here else {TASK_FILE: code.text}
    if not target_profile.is_here:
        document["home"] = None
        credentials.refuse_travelling(
            resolved, to=f"{target_profile.readers} see it", variable=target_profile.secret_source
        )
    if files:
        document["task"] = {**document["task"], "file": f"{target_profile.files_folder}/{TASK_FILE}"}
    if code.address:
        document["task"] = {**document["task"], "file": code.address}
    return document, files, code


def facts(digest: str, **more: str) -> dict[str, str]:
    """Return what is recorded with a job: who submitted which content from which commit."""
    found = {"config-hash": digest, **more, "client": __version__, "git-sha": _commit(), "user": _user()}
    return {key: value for key, value in found.items() if value}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""


def _commit() -> str:
    """Return the commit that the working directory is at; empty outside a repository."""
    try:
        process = subprocess.run(
            ("git", "rev-parse", "HEAD"), capture_output=True, text=True, check=False, timeout=GIT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return process.stdout.strip() if process.returncode == 0 else ""


def _warnings(resolved: RefreshSpec, target_profile: Profile) -> tuple[Finding, ...]:
    """Return warnings about what the spec names and a cluster may not have."""
    if target_profile.is_here:
        return ()
    warnings: list[tuple[str, str, str, str]] = []
    for key, path in _local_paths(resolved):
        problem = f"{path} is a path of this machine; pods have it only if the image or a volume does"
        elsewhere = "s3://bucket/prefix/"
        if key == "task.network.checkpoint" and hasattr(getattr(resolved.task, "network", None), "revision"):
            elsewhere += " or a hub id with its revision"
        warnings.append(("local-path", key, problem, f"use {elsewhere}, or a path under storage.path"))
    if target_profile.registry is None and resolved.registry.uri is None:
        risk = "not set: the registry is a sqlite file on the volume, for one run at a time on one node"
        warnings.append(("registry-on-volume", "profile.mlflow.uri", risk, "name an MLflow server"))
    return tuple(
        Finding(rule=rule, severity=Severity.WARNING, where=where, message=message, remedy=remedy)
        for rule, where, message, remedy in warnings
    )


def _local_paths(resolved: RefreshSpec) -> list[tuple[str, str]]:
    """Return the keys of data and checkpoints that lie on this machine, with their paths."""
    task = resolved.task
    paths = [("task.root", task.root)] if isinstance(task, ImageFolderTask) else []
    if isinstance(task, TableTask | ShardsTask):
        files = task.files.values() if isinstance(task.files, dict) else [task.files]
        paths = [("task.files", name) for names in files for name in names]
    if isinstance(task, TableTask) and task.judgments is not None:
        paths += [("task.judgments.files", name) for name in task.judgments.files]
    network = getattr(task, "network", None)
    checkpoint = getattr(network, "checkpoint", None)
    if checkpoint is not None and getattr(network, "revision", None) is None:
        paths.append(("task.network.checkpoint", checkpoint))
    return [(key, path) for key, path in paths if not addresses.is_remote(path)]


def present(planned: Plan, output: str) -> None:
    """Print a plan: for people, as manifests (yaml), or whole (json). Secrets are hidden in all of them."""
    if output == "yaml":
        sys.stdout.write(plan.as_yaml(*planned.documents))
        for finding in planned.findings:
            out.talk(redact.message(f"{finding.severity}: {finding.line()}"))
    elif output == "json":
        out.document(document(planned), "json")
    else:
        _people(planned, out.line)


def document(planned: Plan) -> dict[str, Any]:
    """Return the plan as JSON values, secrets hidden."""
    redacted: dict[str, Any] = redact.hidden(
        {
            "handle": str(planned.handle),
            "run_id": planned.job.run_id,
            "where": planned.where,
            "command": list(planned.job.command),
            "parts": [asdict(part) for part in planned.parts],
            "gpus": planned.gpus,
            "price_per_hour": planned.price,
            "currency": planned.currency,
            "notes": list(planned.notes),
            "findings": [asdict(finding) for finding in planned.findings],
            "differences": [{**asdict(item), "lines": list(item.lines)} for item in planned.differences],
            "documents": list(planned.documents),
        }
    )
    return redacted


def _people(planned: Plan, say: Any) -> None:
    """Print the plan as lines for people; `say` prints one."""
    say(f"{planned.job.name} -> {planned.handle}   ({planned.where})")
    say(f"command: {' '.join(planned.job.command)}")
    if planned.image:
        say(f"image:   {planned.image}")
    say("")
    for row in _rows(planned):
        say("  ".join(row).rstrip())
    say("")
    for note in planned.notes:
        say(note)
    for finding in planned.findings:
        say(redact.message(f"{finding.severity}: {finding.line()}"))
    say("")
    for difference in planned.differences:
        say(f"{difference.change}: {difference.document}")
        for line in difference.lines:
            say(f"  {redact.shown(line)}")


def _rows(planned: Plan) -> list[tuple[str, ...]]:
    """Return the machines as aligned columns, without rich, whose import takes longer than the rest of a plan."""
    has_price = planned.price is not None
    heading = ("part", "count", "cpu", "memory", "gpu", f"{planned.currency} per hour" if has_price else "")
    rows = [
        (
            part.role,
            str(part.count),
            cores(part.cpu),
            written(part.memory) if part.memory else "no limit",
            str(part.gpu),
            f"{part.price:.2f}" if part.price is not None else "",
        )
        for part in planned.parts
    ]
    total = ("in all", str(sum(part.count for part in planned.parts)), "", "", str(planned.gpus))
    rows.append((*total, f"{planned.price:.2f}" if planned.price is not None else ""))
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    return [tuple(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (heading, *rows)]


def _agreed(planned: Plan) -> bool:
    if not sys.stdin.isatty():
        raise SpecError("submit: stdin is not a terminal, so no person can confirm; add --yes")
    import click

    cost = "" if planned.price is None else f", {planned.price:.2f} {planned.currency} per hour"
    return click.confirm(f"submit {planned.job.run_id} to {planned.where}{cost}?", err=True)


def _follow_up(handle: Handle, on: str) -> None:
    for command in ("status", "logs -f", "stop"):
        out.talk(f"  graceful {command} {handle} --on {on}")
