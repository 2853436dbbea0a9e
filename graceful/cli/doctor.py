"""`graceful doctor`: what a refresh needs, checked one by one, with a remedy for what is missing. Runs on the client.

Heavy packages are imported in processes of their own (`graceful.programs.probe`), a few at a time.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from packaging.requirements import Requirement

from graceful import __version__, addresses, databases, homes
from graceful.cli import output as out
from graceful.cli.checks import probe
from graceful.cli.registry_address import registry_uri
from graceful.environment import REGISTRY_VARIABLE, STORAGE_VARIABLE
from graceful.errors import EXIT_INFRASTRUCTURE
from graceful.launch.checks import Check, State, fail

DISTRIBUTION = "graceful-ai"
OLDEST_PYTHON = (3, 11)
GIB = 2**30
DISK_LOW, DISK_TOO_LOW = 5 * GIB, GIB // 2
"""A refresh of the shipped examples writes some megabytes; checkpoints of larger models fill gigabytes."""
SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_LOW = GIB // 2
"""Ray keeps objects there and falls back to the disk below it."""


def report(*, home: Path | None, output: str, on: str | None = None) -> int:
    """Run every check, of this machine or of a backend, print them, and return 0, or 4 if one failed."""
    folder = homes.folder(home)
    checks = gather(folder) if on is None else of_profile(on, folder)
    if output == "table":
        rows = [(check.state, check.name, check.found, check.remedy) for check in checks]
        out.table(("", "check", "found", "remedy"), rows)
    else:
        out.document([asdict(check) for check in checks], output)
    return EXIT_INFRASTRUCTURE if any(check.state == "fail" for check in checks) else 0


def of_profile(on: str, home: Path) -> list[Check]:
    """Return the checks of the backend that a profile describes.

    Raises:
        SpecError: No such profile, or no such context.
    """
    from graceful.launch import profile

    target_profile = profile.load(on)
    if target_profile.is_here:
        return gather(home)
    from graceful.cli.checks_services import Services

    return list(target_profile.checks(Services(home=home)))


def gather(home: Path) -> list[Check]:
    """Return all checks in the order in which they are shown."""
    checks: list[Callable[[], Check]] = [
        python,
        packages,
        *(partial(probe, name, home=home, remedy=remedy) for name, remedy in PROBES.items()),
        partial(disk, home),
        shared_memory,
        partial(registry, home),
        *([partial(storage, home)] if os.environ.get(STORAGE_VARIABLE) else []),
    ]
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        results = list(pool.map(lambda check: check(), checks))
    return [*results, *tracking_server()]


def tracking_server() -> list[Check]:
    """Check the server that $MLFLOW_TRACKING_URI names: release, allowed hosts, access; nothing where it names none."""
    uri = os.environ.get(REGISTRY_VARIABLE, "")
    if not uri.lower().startswith(("http://", "https://")):
        return []
    from graceful.cli import checks_services

    parts = urlsplit(uri)
    public_uri = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # credentials must not be printed
    return checks_services.mlflow(public_uri)


PROBES: Mapping[str, str] = {
    "torch": "install torch for this machine first, see TORCH in the Makefile",
    "deepspeed": "install it again, or train with train.engine.kind=torch",
    "ray": "install it again, or train with train.num_workers=0",
    "mlflow": "install it again; nothing can be registered without it",
    "glyphs": "install graceful-ai again; other tasks work without it",
}


def storage(home: Path) -> Check:
    """Check the bucket in which runs are kept: written, read and cleaned."""
    uri = os.environ[STORAGE_VARIABLE]
    try:
        uri = addresses.normalised(uri)
    except ValueError as e:
        return fail("storage", f"{STORAGE_VARIABLE}={uri}: {e}", "write s3://bucket/prefix, or unset it")
    return probe("storage", uri, home=home, remedy=f"check {STORAGE_VARIABLE}, the bucket and the AWS_ variables")


def python() -> Check:
    """Check the interpreter's version."""
    finding = f"{platform.python_version()}, graceful {__version__}"
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return Check(name="python", state="fail", found=finding, remedy=f"use Python {oldest} or newer")
    return Check(name="python", state="ok", found=finding)


def packages() -> Check:
    """Check every requirement of this distribution against what is installed."""
    problems = unmet(importlib.metadata.requires(DISTRIBUTION) or ())
    if problems:
        return Check(name="packages", state="fail", found="; ".join(problems), remedy="make venv")
    return Check(name="packages", state="ok", found="all requirements are met")


def unmet(requirements: Sequence[str]) -> list[str]:
    """Return the requirements that the installed versions do not meet; extras are left out."""
    problems = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name} {version} is not {requirement.specifier}")
    return problems


def disk(home: Path) -> Check:
    """Check the free space where runs and caches are kept."""
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    if not existing.is_dir():
        return Check(name="home", state="fail", found=f"{existing} is a file", remedy="give another --home")
    if not os.access(existing, os.W_OK):
        return Check(name="home", state="fail", found=f"{home} is not writable", remedy="give another --home")
    free_bytes = shutil.disk_usage(existing).free
    finding = f"{home}, {free_bytes / GIB:.1f} GiB free"
    if free_bytes < DISK_LOW:
        state: State = "fail" if free_bytes < DISK_TOO_LOW else "warn"
        return Check(name="home", state=state, found=finding, remedy="free some space or give another --home")
    return Check(name="home", state="ok", found=finding)


def shared_memory() -> Check:
    """Check the room for Ray's objects."""
    if not SHARED_MEMORY.exists():
        return Check(name="shared memory", state="ok", found="none on this system, Ray uses files")
    size = shutil.disk_usage(SHARED_MEMORY).total
    finding = f"{size / GIB:.1f} GiB at {SHARED_MEMORY}"
    if size < SHARED_MEMORY_LOW:
        return Check(
            name="shared memory", state="warn", found=finding, remedy="give the container more, e.g. --shm-size=2g"
        )
    return Check(name="shared memory", state="ok", found=finding)


def registry(home: Path) -> Check:
    """Check whether versions can be recorded; a registry that does not exist yet is fine."""
    file = databases.file(registry_uri(home))
    if file is not None and not file.exists():
        return Check(name="registry", state="ok", found=f"none at {file} yet, the first refresh creates it")
    return probe("registry", home=home, remedy="check registry.uri, $MLFLOW_TRACKING_URI and the server")
