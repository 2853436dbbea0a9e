"""Resolve a spec and start a program with it as a process of its own. Runs on the client.

The program reads the resolved spec as JSON from its standard input, prints its result on stdout and talks on stderr;
its exit code is ours.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graceful import addresses, homes, sections, startup
from graceful.cli import output as out
from graceful.environment import (
    CPU_SETTINGS,
    HOME_VARIABLE,
    LOG_LEVEL_VARIABLE,
    MLFLOW_SETTINGS,
    PROFILE_VARIABLE,
    REGISTRY_VARIABLE,
)
from graceful.errors import SpecError
from graceful.launch import foreground
from graceful.launch.job import JobSpec
from graceful.spec import RefreshSpec, Train, load
from graceful.spec.addresses import webhook_of

GPU = Path("/dev/nvidia0")
REFERENCE = re.compile(sections.REFERENCE)
LEVELS = ("WARNING", "INFO", "DEBUG")


def resolve(path: Path, sets: Sequence[str], home: Path | None) -> RefreshSpec:
    """Load a spec file with the overrides of the command line.

    Raises:
        SpecError: As `graceful.spec.load`.
    """
    home_override = [] if home is None else [f"home={json.dumps(str(homes.folder(home)))}"]
    return load(path, [*sets, *home_override])


def start(
    program: str,
    *,
    resolved: RefreshSpec | None = None,
    document: Mapping[str, Any] | None = None,
    arguments: Sequence[str] = (),
    home: Path | None = None,
    output: str = "table",
    quiet: bool = False,
    verbose: int = 0,
    profile: bool = False,
) -> int:
    """Run `python -m graceful.programs PROGRAM` here and return its exit code.

    Raises:
        InfrastructureError: It could not be started, or a signal ended it.
    """
    flags = ["--output", output, *(["--quiet"] if quiet else [])]
    content = document if resolved is None else resolved.dump()
    job = JobSpec(
        name=f"{program} {resolved.run_id if resolved else ' '.join(arguments)}",
        command=startup.python("graceful.programs", program, *arguments, *flags),
        env=environment(os.environ, home=home, verbose=verbose) | ({PROFILE_VARIABLE: "1"} if profile else {}),
        document=None if content is None else json.dumps(content),
    )
    return foreground.run(job, deferred=True)


def environment(variables: Mapping[str, str], *, home: Path | None = None, verbose: int = 0) -> dict[str, str]:
    """Return the variables that a program on one machine needs; what the user has set stays.

    Raises:
        SpecError: A variable that the user has set holds what no program could use.
    """
    require_usable(variables)
    env = {
        "OMP_NUM_THREADS": "1",  # workers share the cores; by default torch uses all cores in each of them
        **MLFLOW_SETTINGS,
    }
    if not GPU.exists():
        env |= CPU_SETTINGS
    if verbose:
        env[LOG_LEVEL_VARIABLE] = LEVELS[min(verbose, len(LEVELS) - 1)]
    defaults = {name: value for name, value in env.items() if name not in variables}
    defaults |= startup.search_path(variables)
    return defaults if home is None else {**defaults, HOME_VARIABLE: str(homes.folder(home))}


def require_usable(environment: Mapping[str, str]) -> None:
    """Refuse variables that every program would refuse, before one is started.

    Raises:
        SpecError: One line for the first.
    """
    startup.log_level(environment)
    if environment.get(HOME_VARIABLE):
        homes.expanded(environment[HOME_VARIABLE], what=HOME_VARIABLE)
    problem = addresses.registry_problem(environment.get(REGISTRY_VARIABLE, ""))
    if problem is not None:
        raise SpecError(f"{REGISTRY_VARIABLE}: {problem}; what it holds is not shown, it may be secret")
    webhook_of(environment)


def require_reference(text: str) -> None:
    """Refuse what cannot name a version, before a program is started to look it up.

    Raises:
        SpecError: It is not of the form of a reference.
    """
    if not REFERENCE.fullmatch(text):
        raise SpecError(f"version {text!r}: must be MODEL, MODEL:NUMBER, MODEL:NAME or MODEL@ALIAS, e.g. glyphs:3")
    try:
        sections.unreserved(text)
    except ValueError as e:
        raise SpecError(f"version {text}: {e}") from e


def preview(resolved: RefreshSpec, output: str) -> int:
    """Print the resolved spec on stdout and, for people, the steps on stderr."""
    out.document(resolved.recorded(), "yaml" if output == "table" else output)
    for number, step in enumerate(steps(resolved), start=1):
        out.talk(f"{number} {step}")
    return 0


def steps(resolved: RefreshSpec) -> tuple[str, ...]:
    """Return what a refresh of this spec would do, one line each."""
    compatibility, train = resolved.compatibility, resolved.train
    names = ["blend"] if compatibility.blend is not None else []
    losses = ", ".join([*names, *(loss.kind for loss in compatibility.losses)])
    against = compatibility.against if isinstance(compatibility.against, str) else ", ".join(compatibility.against)
    bounds = ", ".join(
        f"{bound.metric} {bound.direction} {bound.bound:g} ({bound.against})"
        for bound in (item.constraint() for item in resolved.gate.constraints)
    )
    targets = f"cache outputs of the predecessors ({against}), {compatibility.targets.mode}"
    return (
        f"chain: read champion and ancestors of {resolved.model} from the registry",
        f"targets: {targets if losses else 'none, no compatibility losses'}",
        f"train: {train.epochs} epochs of {resolved.task.kind}, {train.engine.kind}, {workers(train)};"
        f" losses: task{', ' + losses if losses else ''}",
        "evaluate: the new version against every ancestor",
        f"gate: {bounds or 'no constraints'}",
        f"register: {resolved.model} {resolved.name}, whatever the verdict",
        "promote: champion moves only if passed",
    )


def workers(train: Train) -> str:
    """Return what trains: this process, or how many workers."""
    if train.min_workers is None:
        return f"{train.num_workers} Ray workers" if train.num_workers else "this process"
    counts = ", ".join(map(str, train.worker_counts))
    return f"{train.min_workers} to {train.num_workers} Ray workers, as there is room ({counts} divide a batch)"
