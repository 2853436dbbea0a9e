"""Copies of the checkpoints that versions with adapters were trained on, one for each family and checkpoint. Driver,
serving processes.

A copy is an MLflow run of the family's experiment whose tag says which weights it holds; the tag is written last.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graceful.errors import DataError, IntegrityError, StorageError
from graceful.lineage import schema
from graceful.lineage.registry import Registry

if TYPE_CHECKING:
    from graceful.models.bases import Base

FOLDER = "base"


def keep(registry: Registry, spec: Mapping[str, Any], bundle: Path) -> None:
    """Copy what a version names as its base to the bucket and to the registry, each once.

    Args:
        registry: Where.
        spec: The spec of the version as JSON values.
        bundle: Folder of the version.

    Raises:
        IntegrityError, DataError: The checkpoint is not the one that the version was trained on any more.
        StorageError: The bucket cannot be reached.
    """
    base = _base_of(bundle)
    if base is None or not spec.get("registry", {}).get("copy_bases", True):
        return
    from graceful.models import bases

    bases.keep(base)
    experiment, client = registry.experiment(spec["model"]), registry.client
    if _run(registry, experiment, base) is not None:
        return
    place, name = bases.find(base), f"base-{base.digest}"
    begun = client.search_runs([experiment], f"attributes.run_name = '{name}'", max_results=1)  # and broken off
    tags = {schema.TAG_KIND: schema.KIND_BASE, schema.TAG_FAMILY: spec["model"]}
    run = (begun[0] if begun else client.create_run(experiment, run_name=name, tags=tags)).info.run_id
    for file in base.files:
        client.log_artifact(run, str(place / file), FOLDER)
    client.set_tag(run, "mlflow.note.content", f"Weights of {base.checkpoint}, which versions with adapters name.")
    client.set_tag(run, schema.TAG_DIGEST, base.digest)
    client.set_terminated(run, status="FINISHED")


def bring(registry: Registry, bundle: Path, *, experiment: Callable[[], str | None]) -> None:
    """Make sure that what a version names as its base is on this machine, if the registry has a copy of it.

    The registry is asked only where a base is named and not here.

    Args:
        registry: Where.
        bundle: Folder of the version; one without adapters, or without weights, needs nothing.
        experiment: Returns that of the version's family; None: there is none.

    Raises:
        IntegrityError: The copy has other bytes than the version was trained on.
        RegistryError: Unreachable.
        StorageError: The disk is full.
    """
    base = _base_of(bundle)
    if base is None or _is_here(base):
        return
    from graceful.models import bases

    with registry.client_for("fetch the base of a version") as client, tempfile.TemporaryDirectory() as scratch:
        family = experiment()
        run = None if family is None else _run(registry, family, base)
        if run is None:
            return  # running the version reports what is missing
        paths = [Path(client.download_artifacts(run, f"{FOLDER}/{name}", scratch)) for name in base.files]
        bases.put(base, paths[0].parent)


def bring_served(bundle: Path) -> None:
    """Do what `bring` does, for a version that MLflow has brought to a serving process.

    Raises:
        RegistryError: The base is not here, and MLflow cannot be reached.
    """
    import mlflow
    import yaml

    base = _base_of(bundle)
    if base is None or _is_here(base):
        return
    from graceful import homes

    described = yaml.safe_load((bundle / "MLmodel").read_text(encoding="utf-8"))
    registry = Registry(mlflow.get_tracking_uri(), homes.folder())
    with registry.client_for("fetch the base of a version") as client:
        family = str(client.get_run(str(described["run_id"])).info.experiment_id)
    bring(registry, bundle, experiment=lambda: family)


def _is_here(base: Base) -> bool:
    """Return whether a base is found without the registry; one that is damaged or has other bytes is not."""
    from graceful.models import bases

    try:
        bases.find(base)
    except (DataError, IntegrityError, StorageError):
        return False
    return True


def _run(registry: Registry, experiment: str, base: Base) -> str | None:
    """Return the MLflow run that holds a base; None where none does."""
    query = f"tags.{schema.TAG_KIND} = '{schema.KIND_BASE}' and tags.{schema.TAG_DIGEST} = '{base.digest}'"
    runs = registry.client.search_runs([experiment], query, max_results=1)
    return str(runs[0].info.run_id) if runs else None


def _base_of(bundle: Path) -> Base | None:
    """Return what a version names as its base; None for most versions, which is seen without importing torch."""
    if not (bundle / "assets" / "base.json").is_file():
        return None
    from graceful.models import bundle as bundles

    return bundles.base_of(bundle)
