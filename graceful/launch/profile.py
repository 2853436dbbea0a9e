"""Read a cluster profile: where jobs run, as people write it in cluster/NAME.yaml. Runs on the client.

A profile says what differs between backends: addresses, images, machines, queues, prices. What differs between runs is
in the spec. Unknown keys are refused at every depth. `graceful.launch.base` says what all kinds have in common.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from graceful import documents, section_errors
from graceful.errors import SpecError
from graceful.launch import registry
from graceful.launch.base import PATTERNS, Profile

FOLDER = Path("cluster")
HERE = "local"
"""The profile that needs no file: this machine."""


def load(name: str, *, folder: Path | None = None) -> Profile:
    """Read the profile that `--on` names.

    Args:
        name: A path that ends in .yaml, else the name of a file in `folder` without its ending.
        folder: Default: `cluster` in the working directory.

    Raises:
        SpecError: No such profile (the nearest name is proposed), or a key is wrong (with its path).
    """
    if name == HERE and not (folder or FOLDER).joinpath("local.yaml").exists():
        return parse({"kind": HERE})
    path = Path(name) if name.endswith((".yaml", ".yml")) else (folder or FOLDER) / f"{name}.yaml"
    try:
        document = documents.read(path, where=f"--on {name}: {path}")
    except FileNotFoundError as e:
        raise SpecError(f"--on {name}: no profile {path}{_known_profiles(name, path.parent)}") from e
    return parse(document, where=str(path))


def parse(document: object, *, where: str = "profile") -> Profile:
    """Validate an already loaded document.

    Raises:
        SpecError: One line: key path, file, what is wrong, remedy.
    """
    kind = document.get("kind") if isinstance(document, Mapping) else None
    profile_class = registry.find(kind) if isinstance(kind, str) else None
    if profile_class is None:
        raise SpecError(f"kind in {where}: {_no_kind(kind)}")
    try:
        return profile_class.model_validate(document)
    except ValidationError as e:
        document_format = section_errors.Document(root=profile_class, name="profile", patterns=PATTERNS)
        raise SpecError(section_errors.explain(e, document_format, where)) from e


def _no_kind(kind: object) -> str:
    """Return why there is no such kind, and which one may have been meant."""
    if isinstance(kind, str) and kind in registry.unavailable():
        return registry.unavailable()[kind]
    kinds = registry.kinds()
    matches = difflib.get_close_matches(str(kind), kinds, n=1)
    return f"must be one of {', '.join(kinds)}, got {kind!r}{f'; did you mean {matches[0]}?' if matches else ''}"


def _known_profiles(name: str, folder: Path) -> str:
    profiles = sorted(path.stem for path in folder.glob("*.yaml"))
    matches = difflib.get_close_matches(name, profiles, n=1)
    if matches:
        return f"; did you mean {matches[0]}?"
    return f"; there is {', '.join(profiles)}" if profiles else "; write one, or give a path that ends in .yaml"
