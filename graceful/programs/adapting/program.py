"""Fit an adapter between two registered versions, measure it, judge it, register it. Driver."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graceful import adapters, gate, spec, tasks
from graceful.errors import IntegrityError, RegistryError, SpecError
from graceful.gate import Verdict
from graceful.lineage import LineageRecord, Registration, Store
from graceful.programs import exclusive
from graceful.programs.adapting import material as materials
from graceful.programs.adapting.fitting import Judged, Plan, fitted, summary, write
from graceful.programs.adapting.material import Material
from graceful.programs.outputs.kept_outputs import KeptOutputs
from graceful.programs.runs import ancestry, version_spec
from graceful.programs.runs.novelty import ingredients
from graceful.programs.runs.run import Progress, Run, silent
from graceful.spec import RefreshSpec
from graceful.storage import write_json

RESULT = "result.json"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the command line asks for.

    Attributes:
        old: The version whose gallery is there: MODEL, MODEL:NUMBER, MODEL:NAME or MODEL@ALIAS.
        new: The version whose queries come.
        side: Which side is mapped.
        kinds: The kinds of the maps that are tried.
        interpolate: Also try points between old and mapped query.
        pairs: Samples to fit on, at most.
        seed: The seed of networks, and of the bootstrap.
        name: The name of the adapter; None: `<old>-<new>`, for the gallery with `-gallery`.
        bounds: Metric -> bound, for the gate.
        spec: Whose task has the samples; None: the recorded one of the new version.
    """

    old: str
    new: str
    side: adapters.Side = "queries"
    kinds: Sequence[adapters.Kind] = adapters.KINDS
    interpolate: bool = False
    pairs: int = 20_000
    seed: int = 0
    name: str | None = None
    bounds: Mapping[str, float]
    spec: Mapping[str, Any] | None = None


def adapt(wanted: Wanted, home: Path, *, progress: Progress = silent) -> dict[str, Any]:
    """Fit, measure, judge and register an adapter; its family's champion moves only if it passed.

    Returns:
        The result, as `result.json` in the run's folder; the same again where the run is finished.

    Raises:
        SpecError: No such version, or the name is taken by another adapter.
        IntegrityError, RegistryError: As `Store.fetch`.
    """
    store = Store(None, home)
    old, new = (store.record(ancestry.find(store, text).model_id) for text in (wanted.old, wanted.new))
    section = _spec_of(store, wanted, old, new)
    run = Run.of(section, home=home)
    with exclusive(run.folder):
        finished = _finished(run)
        if finished is not None:
            return finished
        tracking = store.begin(section.recorded(), run_id=section.run_id)
        begin = time.perf_counter()
        judged = fitted(_plan(run), _material(run, old, new, progress), against=old.name, progress=progress)
        seconds = time.perf_counter() - begin
        write(run.folder, judged)
        progress({"stage": "register"})
        record = store.register(_registration(run, judged, (new.model_id, old.model_id), tracking))
        champion = _promoted(run, record, judged.verdict)
        result = {
            "run_id": section.run_id,
            "outcome": str(judged.verdict.outcome),
            "reasons": [finding.reason for finding in judged.verdict.findings],
            "version": record.version,
            "model_id": record.model_id,
            "champion": champion,
            "spec_digest": section.digest(),
            **summary(judged, run.model),
            "report": str(run.folder / "report.json"),
            "seconds": round(seconds, 1),
        }
        write_json(run.folder / RESULT, result)
    return result


# --- the run ----------------------------------------------------------------------------------------------------------


def _spec_of(store: Store, wanted: Wanted, old: LineageRecord, new: LineageRecord) -> RefreshSpec:
    """Return the spec that the adapter is registered with: the new version's task, and what was asked."""
    if old.model_id == new.model_id:
        raise SpecError(f"adapt {wanted.old} {wanted.new}: are one version; name two")
    if wanted.interpolate and wanted.side == "gallery":
        raise SpecError("--interpolate is for --side queries: it lies between two vectors of a query; leave one out")
    theirs = version_spec.of(store, new, wanted.spec, what=f"adapt {wanted.old} {wanted.new}")
    names = (old.name, new.name) if old.name != new.name else (old.refresh_id, new.refresh_id)
    suffix = "-gallery" if wanted.side == "gallery" else ""
    document = {
        "model": f"{new.model}-adapter",
        "name": wanted.name or f"{'-'.join(names)}{suffix}",
        "description": f"{wanted.side} between {old.model} {old.name} and {new.model} {new.name}",
        "task": theirs.task.model_dump(mode="json"),
        "evaluate": theirs.evaluate.model_dump(mode="json"),
        "train": {"seed": wanted.seed, "num_workers": 0},
        "gate": {"constraints": [{"metric": metric, "bound": bound} for metric, bound in wanted.bounds.items()]},
        "trust": theirs.trust.model_dump(mode="json"),
        "parents": [f"{new.model}:{new.name}", f"{old.model}:{old.name}"],
        "adapter": {
            "old": f"{old.model}:{old.name}",
            "new": f"{new.model}:{new.name}",
            "side": wanted.side,
            "kinds": list(wanted.kinds),
            "interpolate": wanted.interpolate,
            "pairs": wanted.pairs,
        },
    }
    return spec.parse(document, where="graceful adapt")


def _plan(run: Run) -> Plan:
    section = run.spec.adapter
    assert section is not None, "the spec of an adapter"
    return Plan(
        folder=run.model,
        model=run.spec.model,
        name=run.spec.name,
        kinds=section.kinds,
        interpolate=section.interpolate,
        constraints=[item.constraint() for item in run.spec.gate.constraints],
        family=run.spec.gate.family,
        draws=run.spec.evaluate.bootstrap,
        seed=run.spec.train.seed,
    )


def _material(run: Run, old: LineageRecord, new: LineageRecord, progress: Progress) -> Material:
    versions = []
    for record in (old, new):
        progress({"stage": "vectors", "version": f"{record.model}:{record.name}"})
        versions.append(run.version(run.store.fetch(record)).whole())
        if versions[-1].digest != record.digest:
            raise IntegrityError(
                f"{record.label}: its files have the digest {versions[-1].digest[:12]}..., recorded is"
                f" {record.digest[:12]}...; fetch the version again"
            )
    return materials.of_versions(
        run.spec,
        tasks.build(run.spec.task),
        old=replace(versions[0], model_id=old.model_id),
        new=replace(versions[1], model_id=new.model_id),
        kept=KeptOutputs.of(run.home, run.mirror),
        names=(f"{old.model}:{old.name}", f"{new.model}:{new.name}"),
    )


def _registration(run: Run, judged: Judged, parents: tuple[str, ...], tracking: str) -> Registration:
    section = run.spec
    return Registration(
        spec=section.recorded(),
        model=section.model,
        name=section.name,
        run_id=section.run_id,
        tracking_run=tracking,
        bundle=run.model,
        digest=judged.adapter.digest,
        parents=parents,
        report=judged.report,
        verdict=judged.verdict,
        attachments=(run.folder / "report.html", run.folder / "tried.json"),
        training=ingredients(section.task, data=judged.report.data["train"]),
    )


def _promoted(run: Run, record: LineageRecord, verdict: Verdict) -> int | None:
    """Return the champion of the adapters after this one was judged."""
    model = run.spec.model
    champion = next((listed.version for listed in run.store.versions(model) if "champion" in listed.aliases), None)
    if verdict.outcome != gate.Outcome.PASSED or champion == record.version:
        return champion
    reason = f"{run.spec.run_id} passed the gate"
    run.store.promote(model, record.version, expected=champion, reason=reason, actor="graceful adapt")
    return record.version


def _finished(run: Run) -> dict[str, Any] | None:
    """Return the result of a run that is done and registered."""
    path = run.folder / RESULT
    if not path.exists():
        return None
    with ancestry.written_here(path):
        result: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
        digest, model_id = result["spec_digest"], result["model_id"]
    if digest != run.spec.digest():
        raise SpecError(
            f"--name: {run.spec.name} of {run.spec.model} was fitted with other options ({run.folder}); write another"
            " --name"
        )
    try:
        run.store.record(model_id)
    except RegistryError as e:
        raise RegistryError(
            f"{run.spec.run_id} is finished, but {e.message}; or delete {run.folder} to fit again"
        ) from e
    return result
