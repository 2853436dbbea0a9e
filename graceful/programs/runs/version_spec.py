"""The spec with which a registered version is run: a given one, or the one recorded with it. Runs in the driver."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graceful import documents, spec
from graceful.errors import SpecError
from graceful.lineage import LineageRecord, Store
from graceful.spec import RefreshSpec


def of(store: Store, record: LineageRecord, given: Mapping[str, Any] | None, *, what: str) -> RefreshSpec:
    """Return the given spec, else what was recorded, unless that names code.

    Args:
        store: The registry.
        record: The record of the version.
        given: Resolved, as the command line sends it.
        what: Is done with the version, for messages.

    Raises:
        SpecError: The version's task is code, and no spec is given.
    """
    if given is not None:
        return spec.parse(given, where="--spec")
    with tempfile.TemporaryDirectory() as scratch:
        section = spec.parse(documents.read(store.evidence(record, "spec.yaml", Path(scratch))))
    if section.task.kind == "python":
        raise SpecError(
            f"{what}: its task is code of your own, which a registry is not trusted with; give --spec with the spec of"
            " the version"
        )
    return section


def own(store: Store, record: LineageRecord, given: Mapping[str, Any] | None, *, what: str) -> RefreshSpec:
    """Return the same, and refuse the spec of another version; arguments and errors as of `of`."""
    section = of(store, record, given, what=what)
    if (section.model, section.name) != (record.model, record.name):
        raise SpecError(
            f"--spec: must be that of {record.model} {record.name}, got {section.model} {section.name}; name its own"
        )
    return section
