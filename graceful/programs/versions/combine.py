"""Combine registered versions into a new one: predict, make, evaluate, judge, register. Runs in the driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graceful import spec, tasks
from graceful.errors import SpecError
from graceful.lineage import Store
from graceful.programs.fitting.blend import HeldOut
from graceful.programs.fitting.combining import Parts, error_of, mixed
from graceful.programs.runs import ancestry, version_spec
from graceful.programs.runs.run import Run
from graceful.spec import Compatibility, RefreshSpec
from graceful.spec.methods import Combination

STEPS = 10
"""Steps of a mix of two versions that a preview shows."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the command line asks for.

    Attributes:
        model: Model family.
        versions: Name of a version -> its factor.
        name: The name of the new version.
        folded: As an ordinary network.
        dry_run: Only predict.
        spec: The spec of the newest of the versions; None: the recorded one.
    """

    model: str
    versions: Mapping[str, float]
    name: str
    folded: bool = False
    dry_run: bool = False
    spec: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What a combination would do on validation samples.

    Attributes:
        factors: The factors of the versions.
        error: Error rate.
        flips: Negative flip rate against each version.
        samples: How many.
    """

    factors: Mapping[str, float]
    error: float
    flips: Mapping[str, float]
    samples: int


def spec_of(wanted: Wanted, home: Path) -> RefreshSpec:
    """Return the spec of the new version: that of the newest of the versions, with nothing trained.

    Raises:
        SpecError: There is no such version, or its task is code and no spec is given.
        RegistryError: The registry is unreachable.
    """
    store = Store(None, home)
    listed = {name: ancestry.find(store, f"{wanted.model}:{name}") for name in wanted.versions}
    newest = max(listed.values(), key=lambda version: version.version)
    asked = f"combine {wanted.model}"
    section = version_spec.own(store, store.record(newest.model_id), wanted.spec, what=asked)
    chain = {record.model_id for record in store.chain(wanted.model)}
    further_parents = [f"{wanted.model}:{found.version}" for found in listed.values() if found.model_id not in chain]
    method = Combination(versions=dict(wanted.versions), folded=wanted.folded)
    changed = section.model_copy(
        update={
            "name": wanted.name,
            "train": section.train.model_copy(update={"method": method}),
            "compatibility": Compatibility(),
            "parents": tuple(further_parents),
            "description": f"combination of {', '.join(wanted.versions)}",
            "tune": None,
        }
    )
    return spec.parse(changed.dump(), where=asked)


def preview(section: RefreshSpec, home: Path) -> list[Predicted]:
    """Return what the combination would do; of two versions also mixes from one to the other.

    Raises:
        SpecError: The versions do not combine.
    """
    method, run = section.train.method, Run.of(section, home=home)
    assert isinstance(method, Combination)
    links = ancestry.read(run.store, section, run.folder, keep=False)
    stored = {ancestor.name: ancestor.stored for ancestor in ancestry.fetch(run, links) if ancestor.is_ancestor}
    task = tasks.build(section.task)
    parts = Parts.of(list(method.versions), stored, classes=tuple(task.classes))
    held_out = HeldOut.of_task(task)
    if not len(held_out.labels):
        raise SpecError("combine: the validation split is empty, so nothing can be predicted; leave --dry-run out")
    outputs, labels = parts.outputs(held_out, batch_size=section.evaluate.batch_size), held_out.labels
    wanted = [dict(method.versions)]
    if len(method.versions) == 2:
        first, second = method.versions
        wanted += [{first: 1.0 - step / STEPS, second: step / STEPS} for step in range(STEPS + 1)]
    rows = []
    for factors in wanted:
        right = mixed(outputs, factors).argmax(1) == labels
        flips = {
            name: float(((outputs[name].argmax(1) == labels) & ~right).double().mean()) for name in method.versions
        }
        error = error_of(mixed(outputs, factors), labels)
        rows.append(Predicted(factors=factors, error=error, flips=flips, samples=len(labels)))
    return rows
