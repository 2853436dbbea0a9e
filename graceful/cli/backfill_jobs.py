"""`graceful backfill run --on NAME`: a backfill as a job of the backend of a profile. Client.

The job runs the program that the command runs on this machine, so it goes on where the index is, and does nothing when
all is done. Its run id is a digest of what was asked, so that the same command finds the same job.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from graceful import addresses, homes, spec
from graceful.cli import code_upload, planning
from graceful.cli import output as out
from graceful.errors import SpecError
from graceful.launch import profile
from graceful.launch.backend import Change
from graceful.launch.base import Profile
from graceful.launch.job import JobSpec

PROGRAM = "backfill"
DIGITS = 12
"""Digits of the digest in a run id."""
WHY = ("reason", "author")
"""What the history of an index records of a backfill, and what does not make it another one."""


def submit(
    document: dict[str, Any], *, on: str, name: str | None, yes: bool, output: str, home: Path | None = None
) -> int:
    """Print the plan of a backfill, ask, send it, and print its handle and what to do next.

    Args:
        document: What `graceful.programs backfill` reads.
        on: Profile.
        name: Run id after `backfill-`; None: a digest of the document.
        yes: Do not ask.
        output: Form of the result.
        home: Of jobs that run on this machine.

    Raises:
        SpecError: Something in it is a file of this machine alone, or the job or profile is wrong.
        InfrastructureError: Unreachable or forbidden.
    """
    target_profile = profile.load(on)
    section = document.get("source", {}).get("spec")
    resolved = None if section is None else spec.parse(section, where="--spec")
    target = target_profile.build(home=homes.folder(home))
    planned = target.plan(job_of(document, target_profile, name=name))

    def prepare() -> None:
        if resolved is not None:
            code_upload.send(resolved, planned.job)

    code = planning.send(target, planned, on=on, yes=yes, output=output, prepare=prepare)
    if output == "table" and planned.differences[-1].change in (Change.NONE, Change.UPDATE):
        out.talk("a backfill that has ended well is not sent again; --name NAME sends it as another job")
    return code


def require_whole(document: dict[str, Any], *, name: str | None = None) -> None:
    """Refuse before it is sent what a backfill would refuse when it starts.

    Raises:
        SpecError: The new model, or what an order needs, is missing, or a name is none.
    """
    source = document.get("source", {})
    if not (source.get("version") or source.get("vectors")):
        raise SpecError("give the new model: either --version (with --spec) or --vectors FILE (with --space)")
    if document.get("order") == "traffic" and not document.get("traffic"):
        raise SpecError("--order traffic: needs how often each id was found; write --traffic FILE")
    if name is not None and not re.fullmatch(spec.NAME, name):
        raise SpecError(f"--name {name!a}: must be lower case letters, digits and inner hyphens")


def job_of(document: dict[str, Any], target_profile: Profile, *, name: str | None = None) -> JobSpec:
    """Return the job that does a backfill.

    Args:
        document: What `graceful.programs backfill` reads.
        target_profile: Where.
        name: Run id after `backfill-`; None: a digest of the document.

    Raises:
        SpecError: Something in it is a file of this machine alone, or missing.
    """
    require_whole(document, name=name)
    made = located(document, target_profile)
    files: dict[str, str] = {}
    labels: dict[str, str] = {}
    content = ""
    if made["source"].get("spec") is not None:
        resolved = spec.parse(made["source"]["spec"], where="--spec")
        section, files, code = planning.travelling(resolved, target_profile)
        made["source"]["spec"], content = section, code.content
        labels = {code_upload.FACT: code.address} if code.address else {}
    asked = {key: value for key, value in made.items() if key not in WHY}
    digest = hashlib.sha256((json.dumps(asked, sort_keys=True) + content).encode()).hexdigest()
    run_id = f"{PROGRAM}-{name or digest[:DIGITS]}"
    command, env = planning.start_of(PROGRAM, target_profile)
    return JobSpec(
        name=f"{PROGRAM} of {made['index']}",
        run_id=run_id,
        command=command,
        env=env,
        document=json.dumps({**made, "run_id": run_id}, indent=1),
        files=files,
        labels=planning.facts(digest) | labels,
    )


def located(document: dict[str, Any], target_profile: Profile | None) -> dict[str, Any]:
    """Return the document of a backfill with addresses that it can read where it runs.

    Args:
        document: What `graceful.programs backfill` reads.
        target_profile: Where it runs; None: on this machine.

    Raises:
        SpecError: Something in it is a file of this machine alone.
    """
    source = dict(document.get("source", {}))
    if source.get("vectors"):
        source["vectors"] = _located("--vectors", source["vectors"], target_profile)
    index = _located("INDEX", document["index"], target_profile)
    traffic = _located("--traffic", document.get("traffic"), target_profile)
    return {**document, "index": index, "traffic": traffic, "source": source}


def _located(option: str, path: str | None, target_profile: Profile | None) -> str | None:
    if path is None or addresses.is_remote(path):
        return path
    if target_profile is None or target_profile.is_here:
        return str(Path(path).absolute())
    what = "an index" if option == "INDEX" else "a file"
    raise SpecError(
        f"{option} {path}: is on this machine, and jobs of kind {target_profile.kind} see {what} in a bucket alone;"
        " write s3://bucket/prefix"
    )
