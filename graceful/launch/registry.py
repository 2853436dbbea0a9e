"""All kinds of backends: graceful's own, and those of other packages through the entry-point group `graceful.backends`.

An entry point's name is the kind, its value the class of the profile, e.g. in another package's pyproject.toml:

    [project.entry-points."graceful.backends"]
    slurm = "my_package.slurm:Slurm"

A class is imported when a profile of its kind is read; entry points are looked up when a kind is not graceful's own.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Mapping
from typing import get_args

from graceful import plugins
from graceful.launch.base import Profile

GROUP = "graceful.backends"
OWN: Mapping[str, str] = {
    "local": "graceful.launch.local.profile:Local",
    "rayjobs": "graceful.launch.ray_jobs.profile:RayJobs",
    "kuberay": "graceful.launch.kuberay.profile:KubeRay",
}
"""Kind -> module and class of its profile: the line that a new backend of graceful's own adds."""


def kinds() -> tuple[str, ...]:
    """Return all kinds that can be used, graceful's own first."""
    return (*OWN, *_others()[0])


def find(kind: str) -> type[Profile] | None:
    """Return the class of a kind's profiles; None: no such kind can be used."""
    if kind not in OWN:
        return _others()[0].get(kind)
    module, _, name = OWN[kind].partition(":")
    own: type[Profile] = getattr(importlib.import_module(module), name)
    return own


def unavailable() -> Mapping[str, str]:
    """Return why a kind cannot be used, for the kinds of other packages that failed."""
    return _others()[1]


@functools.cache
def _others() -> tuple[dict[str, type[Profile]], dict[str, str]]:
    return plugins.collected(GROUP, "backend", owner=lambda kind: "graceful" if kind in OWN else None, fault=fault)


def fault(profile: object, kind: str) -> str | None:
    """Return what is wrong with what another package offers as the profile of a kind; None: nothing."""
    if not (inspect.isclass(profile) and issubclass(profile, Profile)):
        return "which is not a class derived from graceful.launch.base.Profile"
    if get_args(profile.model_fields["kind"].annotation) != (kind,):
        return f'whose kind is another one; write kind: Literal["{kind}"], the name of the entry point'
    if profile.build is Profile.build:
        return "which has no method build; define it"
    return None
