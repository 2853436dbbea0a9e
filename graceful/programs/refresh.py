"""The main program: a spec goes in, a measured, judged and registered version comes out. Runs in the driver."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graceful import gate, tasks
from graceful.constraints import ALL, LATEST, SELF
from graceful.errors import DataError, IntegrityError, RegistryError, SpecError, StorageError, TrainingError
from graceful.lineage import LineageRecord, Registration, Store
from graceful.models import bundle
from graceful.programs import exclusive, home_of, run_dir_of
from graceful.programs.constraint_report import FILE as CONSTRAINTS
from graceful.programs.constraint_report import build as build_constraints
from graceful.programs.evaluate import Evaluation, evaluate
from graceful.programs.flipped import pictures
from graceful.programs.html import render_html
from graceful.programs.matrix import matrix
from graceful.programs.novelty import ingredients
from graceful.programs.train import Progress, Trained, silent, train
from graceful.report import Report
from graceful.spec import RefreshSpec
from graceful.storage import Mirror, write_json, write_text
from graceful.training import trace
from graceful.training.job import NOT_MIRRORED

RETRIEVAL = ("self_test_", "cross_test_", "old_old_", "retrieval_")
"""How the names of measurements begin that `evaluate.retrieval` switches off."""
SHOWN = 48
"""Negative flips against the latest ancestor that the HTML report shows."""


@dataclass(frozen=True, kw_only=True)
class Refreshed:
    """How a refresh ended, as JSON values.

    Attributes:
        run_id: `model-name`.
        outcome: passed or held.
        reasons: One sentence per constraint.
        version: Number in the registry.
        model_id: Identity in the registry.
        champion: Number of the version that serves after this refresh.
        spec_digest: SHA-256 of the spec.
        report: Path of report.json; verdict.json, report.html and spec.yaml lie beside it.
        seconds: Seconds spent training.
    """

    run_id: str
    outcome: str
    reasons: tuple[str, ...]
    version: int
    model_id: str
    champion: int | None
    spec_digest: str
    report: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Link:
    """One ancestor as this run found it when it first started."""

    name: str
    model_id: str
    version: int
    digest: str


def refresh(spec: RefreshSpec, *, progress: Progress = silent) -> tuple[Refreshed, Report]:
    """Train, evaluate, judge, register and, if passed, promote. Each finished step is a file and is not repeated.

    The chain is read from the registry when the run first starts and kept in `chain.json`: a resumed run has the same
    predecessors, and promotion is refused if someone moved the champion meanwhile.

    Raises:
        SpecError, DataError: Nothing was registered.
        RegistryError, IntegrityError: The registry is unreachable or an ancestor was altered; nothing was registered.
        TrainingError: Training failed; the champion stays.
    """
    home, run_dir = home_of(spec), run_dir_of(spec)
    with exclusive(run_dir), _mirrored(home, run_dir) as mirror:
        store = Store(spec.registry.uri, home)
        finished = _finished(spec, run_dir)
        if finished:
            _require_registered(store, finished, run_dir)
            return finished, Report.from_json((run_dir / "report.json").read_text(), where=finished.report)
        tracking = store.begin(spec.dump(), run_id=spec.run_id)
        links = _chain(store, spec, run_dir)
        progress({"stage": "chain", "ancestors": [link.name for link in links], "registry": store.display_uri})
        _check_gate(spec, links)
        ancestors = _fetch(store, links)
        with _abandoned(store, tracking):
            trained = train(spec, run_dir=run_dir, home=home, ancestors=ancestors, progress=progress)
        progress({"stage": "evaluate"})
        found, verdict = measure(spec, trained.folder, links, ancestors, notes=trained.notes)
        _write(run_dir, found, verdict)
        mirror.save(run_dir, but=NOT_MIRRORED)
        progress({"stage": "register"})
        store.log_history(tracking, trained.result.history)
        record = store.register(
            _registration(
                spec,
                run_dir=run_dir,
                trained=trained,
                links=links,
                report=found.report,
                verdict=verdict,
                tracking=tracking,
            )
        )
        champion = _promote(store, spec, record, verdict, links)
        result = Refreshed(
            run_id=spec.run_id,
            outcome=verdict.outcome,
            reasons=tuple(finding.reason for finding in verdict.findings),
            version=record.version,
            model_id=record.model_id,
            champion=champion,
            spec_digest=spec.digest(),
            report=mirror.shown(run_dir / "report.json"),
            seconds=trained.result.seconds,
        )
        write_text(run_dir / "result.json", json.dumps(asdict(result), indent=2) + "\n")
    mirror.forget_folder(run_dir / "ray")
    return result, found.report


def train_only(spec: RefreshSpec, *, progress: Progress = silent) -> Trained:
    """Train a version against the champion's chain and leave its bundle in the run's folder; register nothing."""
    home, run_dir = home_of(spec), run_dir_of(spec)
    with exclusive(run_dir), _mirrored(home, run_dir):
        store = Store(spec.registry.uri, home)
        ancestors = _fetch(store, _chain(store, spec, run_dir))
        return train(spec, run_dir=run_dir, home=home, ancestors=ancestors, progress=progress)


def evaluate_only(spec: RefreshSpec, *, progress: Progress = silent) -> tuple[Report, gate.Verdict]:
    """Measure the bundle that an earlier `train` or `refresh` left in the run's folder; register nothing.

    Raises:
        SpecError: The run has no bundle yet.
    """
    home, run_dir = home_of(spec), run_dir_of(spec)
    with exclusive(run_dir), _mirrored(home, run_dir):
        folder = run_dir / "model"
        if not (folder / "arch.json").exists():
            raise SpecError(
                f"run {spec.run_id}: no trained version in {folder}; run `graceful train` or `refresh` first"
            )
        _require_own(spec, folder)
        store = Store(spec.registry.uri, home)
        links = _chain(store, spec, run_dir)
        ancestors = _fetch(store, links)
        progress({"stage": "evaluate"})
        found, verdict = measure(spec, folder, links, ancestors)
        _write(run_dir, found, verdict)
    return found.report, verdict


def _require_own(spec: RefreshSpec, folder: Path) -> None:
    """The same run id has more than one reading: model a-b, name c and model a, name b-c."""
    path = folder / "arch.json"
    with _written_here(path):
        held = json.loads(path.read_text())
        found = (held["model"], held["name"])
    if found != (spec.model, spec.name):
        held_by = " ".join(found)
        raise SpecError(f"name: run {spec.run_id} holds {held_by}, not {spec.model} {spec.name}; choose another")


@contextmanager
def _mirrored(home: Path, run_dir: Path) -> Iterator[Mirror]:
    """Continue what this run left in the bucket, and leave there what it did; without a bucket nothing happens."""
    mirror = Mirror.of(home)
    mirror.restore(run_dir, but=NOT_MIRRORED)
    try:
        yield mirror
    except BaseException:
        with suppress(StorageError):  # why the run ended is what people must read
            mirror.save(run_dir, but=(*NOT_MIRRORED, trace.FILE))
        raise
    mirror.save(run_dir, but=NOT_MIRRORED)


def matrix_of(spec: RefreshSpec, *, progress: Progress = silent) -> dict[str, Any]:
    """Every version of the chain against every other, the run's own included where it is trained; see `matrix`."""
    home, run_dir = home_of(spec), run_dir_of(spec)
    with exclusive(run_dir), _mirrored(home, run_dir):
        store = Store(spec.registry.uri, home)
        folders = [path for path in (run_dir / "model",) if (path / "arch.json").exists()]
        folders += _fetch(store, _chain(store, spec, run_dir))
        if not folders:
            raise SpecError(f"run {spec.run_id}: no version and no ancestor; run `graceful refresh` first")
        progress({"stage": "matrix", "versions": len(folders)})
        versions = [bundle.load(folder, augment_like=spec.task) for folder in reversed(folders)]
        found = matrix(spec, tasks.build(spec.task), versions)
        write_json(run_dir / "matrix.json", found)
    return found


def _check_gate(spec: RefreshSpec, links: Sequence[Link]) -> None:
    """Refuse what the gate could not judge before hours of training, not after."""
    known = {SELF, LATEST, ALL, *(link.name for link in links)}
    for index, item in enumerate(spec.gate.constraints):
        if item.against is not None and item.against not in known:
            names = ", ".join(link.name for link in links) or "no versions yet"
            raise SpecError(f"gate.constraints.{index}.against: {item.against!r} is no ancestor; the chain has {names}")
        if item.metric.startswith(RETRIEVAL) and not spec.evaluate.retrieval:
            raise SpecError(
                f"gate.constraints.{index}.metric: {item.metric} is not measured with evaluate.retrieval: false;"
                " write true, or leave the constraint out"
            )


def ancestors_of(spec: RefreshSpec, run_dir: Path) -> list[Path]:
    """Bundles of the chain, latest first: as recorded in `chain.json` of this folder, else as it is now."""
    store = Store(spec.registry.uri, home_of(spec))
    return _fetch(store, _chain(store, spec, run_dir))


def _fetch(store: Store, links: Sequence[Link]) -> list[Path]:
    """Bring the chain's bundles here, every digest checked."""
    return [store.fetch(store.record(link.model_id)) for link in links]


def measure(
    spec: RefreshSpec, folder: Path, links: Sequence[Link], ancestors: Sequence[Path], *, notes: Sequence[str] = ()
) -> tuple[Evaluation, gate.Verdict]:
    """Evaluate a bundle against its ancestors' bundles and judge the report."""
    chain = [
        bundle.load(ancestor, expected_digest=link.digest, model_id=link.model_id, augment_like=spec.task)
        for link, ancestor in zip(links, ancestors, strict=True)
    ]
    found = evaluate(spec, bundle.load(folder, augment_like=spec.task), chain, notes=notes)
    constraints = [item.constraint() for item in spec.gate.constraints]
    return found, gate.judge(found.report, constraints, family=spec.gate.family)


def _finished(spec: RefreshSpec, run_dir: Path) -> Refreshed | None:
    path = run_dir / "result.json"
    if not path.exists():
        return None
    with _written_here(path):
        raw = json.loads(path.read_text())
        result = Refreshed(**{**raw, "reasons": tuple(raw["reasons"])})
    if result.spec_digest != spec.digest():
        raise SpecError(f"name: run {spec.run_id} is finished under another spec ({run_dir}); choose another name")
    return result


def _require_registered(store: Store, result: Refreshed, run_dir: Path) -> None:
    """Or a run whose registry was lost would be called passed, and the next version would have no ancestors."""
    try:
        store.record(result.model_id)
    except RegistryError as e:
        raise RegistryError(
            f"run {result.run_id} is finished, but {e.message}; or delete {run_dir} to refresh again"
        ) from e


@contextmanager
def _abandoned(store: Store, tracking: str) -> Iterator[None]:
    """Mark the run in the registry when training fails; resuming it takes it up again."""
    try:
        yield
    except (SpecError, DataError, TrainingError):
        with suppress(RegistryError):  # why training failed is what people must read
            store.abandon(tracking)
        raise


@contextmanager
def _written_here(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError) as e:
        raise IntegrityError(
            f"{path}: not what a refresh wrote ({type(e).__name__}: {e}); delete {path.parent} to refresh again"
        ) from e


def _chain(store: Store, spec: RefreshSpec, run_dir: Path) -> list[Link]:
    """The ancestors of this run, latest first: as recorded, else the champion and its ancestors now."""
    path = run_dir / "chain.json"
    if path.exists():
        with _written_here(path):
            return [Link(**raw) for raw in json.loads(path.read_text())]
    links = [
        Link(name=record.name, model_id=record.model_id, version=record.version, digest=record.digest)
        for record in store.chain(spec.model)
    ]
    if any(link.name == spec.name for link in links):
        raise SpecError(
            f"name: {spec.name} is already an ancestor in model {spec.model}; give the new version another name"
        )
    write_text(path, json.dumps([asdict(link) for link in links], indent=2) + "\n")
    return links


def _write(run_dir: Path, found: Evaluation, verdict: gate.Verdict) -> None:
    write_text(run_dir / "report.json", found.report.to_json())
    write_text(run_dir / "verdict.json", verdict.to_json())
    write_json(run_dir / "flips.json", [asdict(flip) for flip in found.flips])
    constraints = build_constraints(found.report, run_dir)
    write_json(run_dir / CONSTRAINTS, constraints)
    nearest = next((item.against for item in found.report.comparisons), None)
    latest = [flip for flip in found.flips if flip.against == nearest][:SHOWN]
    page = render_html(
        found.report, verdict, flips=latest, pictures=pictures(latest, found.test), constraints=constraints
    )
    write_text(run_dir / "report.html", page)


def _registration(
    spec: RefreshSpec,
    *,
    run_dir: Path,
    trained: Trained,
    links: Sequence[Link],
    report: Report,
    verdict: gate.Verdict,
    tracking: str,
) -> Registration:
    return Registration(
        spec=spec.dump(),
        model=spec.model,
        name=spec.name,
        run_id=spec.run_id,
        tracking_run=tracking,
        bundle=trained.folder,
        digest=trained.digest,
        parents=tuple(link.model_id for link in links[:1]),
        report=report,
        verdict=verdict,
        attachments=(run_dir / "report.html", run_dir / "flips.json"),
        training=ingredients(spec.task, data=trained.data),
    )


def _promote(
    store: Store, spec: RefreshSpec, record: LineageRecord, verdict: gate.Verdict, links: Sequence[Link]
) -> int | None:
    """Move the champion to a passed version, if it still is what this run started from."""
    expected = links[0].version if links else None
    if verdict.outcome != gate.Outcome.PASSED:
        return expected
    store.promote(
        spec.model, record.version, expected=expected, reason=f"{spec.run_id} passed the gate", actor="graceful refresh"
    )
    return record.version
