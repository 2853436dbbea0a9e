"""The main program: a spec goes in, a measured, judged and registered version comes out. Runs in the driver."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graceful import gate, tasks
from graceful.chain import Kept
from graceful.errors import DataError, RegistryError, SpecError, StorageError, TrainingError
from graceful.lineage import LineageRecord, Registration, Store
from graceful.models import bundle, bundle_files
from graceful.programs import ancestry, exclusive, home_of, notifications, pages, recorded_predictions, run_dir_of
from graceful.programs.ancestry import Link
from graceful.programs.constraint_checks import require_judgeable
from graceful.programs.constraint_report import FILE as CONSTRAINTS
from graceful.programs.evaluate import Evaluation, evaluate
from graceful.programs.flipped import thumbnails
from graceful.programs.matrix import chosen, matrix
from graceful.programs.novelty import ingredients
from graceful.programs.reference_runs import unconstrained
from graceful.programs.train import Progress, Trained, silent, train
from graceful.programs.weight_mixing import note
from graceful.report import Report
from graceful.spec import RefreshSpec
from graceful.storage import Mirror, write_text
from graceful.training import trace
from graceful.training.job import NOT_MIRRORED
from graceful.training.job import SPEC as JOB


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


def refresh(spec: RefreshSpec, *, progress: Progress = silent) -> tuple[Refreshed, Report]:
    """Train, evaluate, judge, register and, if passed, promote. Each finished step is a file and is not repeated.

    The chain is read from the registry until the run begins to train and kept in `chain.json`: a resumed run has the
    same predecessors, and promotion is refused if someone moved the champion meanwhile.

    Raises:
        SpecError, DataError: Nothing was registered.
        RegistryError, IntegrityError: The registry is unreachable or an ancestor was altered; nothing was registered.
        TrainingError: Training failed; the champion stays.
    """
    home, run_dir = home_of(spec), run_dir_of(spec)
    with exclusive(run_dir), _mirrored(home, run_dir) as mirror:
        _require_own(spec, run_dir)
        notices = notifications.of_refresh(spec)
        notices.again()
        store = Store(spec.registry.uri, home)
        finished = _finished(spec, run_dir)
        if finished:
            _require_registered(store, finished, run_dir)
            return finished, Report.from_json(
                (run_dir / "report.json").read_text(encoding="utf-8"), where=finished.report
            )
        tracking = store.begin(spec.recorded(), run_id=spec.run_id)
        with _abandoned(store, tracking, run_dir):
            links = ancestry.read(store, spec, run_dir, begun=_begun(run_dir))
            progress({"stage": "chain", "ancestors": [link.name for link in links], "registry": store.display_uri})
            require_judgeable(spec, [link.name for link in links])
            ancestors = _fetch(store, links)
            trained = train(spec, run_dir=run_dir, home=home, ancestors=ancestors, progress=progress)
        progress({"stage": "evaluate"})
        found, verdict = measure(spec, trained.folder, links, ancestors, notes=trained.notes)
        pages.write(run_dir, found, verdict)
        mirror.save(run_dir, but=NOT_MIRRORED)
        progress({"stage": "register"})
        store.log_history(tracking, trained.result.history)
        record = store.register(
            _registration(
                spec, run_dir=run_dir, trained=trained, links=links, found=found, verdict=verdict, tracking=tracking
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
        notifications.tell(notices, store, record, champion=champion)
        write_text(run_dir / "result.json", json.dumps(asdict(result), indent=2) + "\n")
    mirror.forget_folder(run_dir / "ray")
    return result, found.report


def train_only(spec: RefreshSpec, *, progress: Progress = silent) -> Trained:
    """Train a version against the champion's chain and leave its bundle in the run's folder; register nothing."""
    home, run_dir = home_of(spec), run_dir_of(spec)
    with exclusive(run_dir), _mirrored(home, run_dir):
        _require_own(spec, run_dir)
        store = Store(spec.registry.uri, home)
        ancestors = _fetch(store, ancestry.read(store, spec, run_dir, begun=_begun(run_dir)))
        return train(spec, run_dir=run_dir, home=home, ancestors=ancestors, progress=progress)


def evaluate_only(spec: RefreshSpec, *, progress: Progress = silent) -> tuple[Report, gate.Verdict]:
    """Measure the bundle that an earlier `train` or `refresh` left in the run's folder; register nothing.

    Raises:
        SpecError: The run has no bundle yet.
    """
    home, run_dir = home_of(spec), run_dir_of(spec)
    with exclusive(run_dir), _mirrored(home, run_dir):
        _require_own(spec, run_dir)
        folder = run_dir / "model"
        if not (folder / "arch.json").exists():
            raise SpecError(
                f"run {spec.run_id}: no trained version in {folder}; run `graceful train` or `refresh` first"
            )
        store = Store(spec.registry.uri, home)
        links = ancestry.read(store, spec, run_dir)
        ancestors = _fetch(store, links)
        progress({"stage": "evaluate"})
        notes = note(spec.compatibility.interpolation, links[0].name) if links else ()
        found, verdict = measure(spec, folder, links, ancestors, notes=notes)
        pages.write(run_dir, found, verdict)
    return found.report, verdict


def _begun(run_dir: Path) -> bool:
    """Whether a job was trained here, or began to be: what it owes to whom no longer changes."""
    return any((run_dir / name).exists() for name in (JOB, "model"))


def _require_own(spec: RefreshSpec, run_dir: Path) -> None:
    """Refuse the folder of another run, before anything in it is read as this one's.

    The same run id has more than one reading: model a-b, name c and model a, name b-c.

    Raises:
        SpecError: It holds another version.
    """
    for path in (run_dir / JOB, run_dir / "model" / "arch.json"):
        if not path.exists():
            continue
        with ancestry.written_here(path):
            document = dict(json.loads(path.read_text(encoding="utf-8")))
            held = (document.get("model"), document.get("name"))
        if None not in held and held != (spec.model, spec.name):
            raise SpecError(
                f"name: run {spec.run_id} holds {held[0]} {held[1]}, not {spec.model} {spec.name}: both have this run"
                f" id; choose another name ({run_dir})"
            )


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


def matrix_of(spec: RefreshSpec, *, names: Sequence[str] = (), progress: Progress = silent) -> dict[str, Any]:
    """Every version of the chain against every other, the run's own included where it is trained; see `matrix`.

    Writes `matrix.json` and `matrix.html` into the run's folder, and does not settle the ancestors of a run that has
    no version yet: those are the champion's chain as it is now.

    Args:
        spec: Whose chain and data.
        names: Only these versions; empty: all.
        progress: Called when the versions are known.

    Raises:
        SpecError: No version at all, a name that the chain has not, or the folder holds another version.
    """
    home, run_dir = home_of(spec), run_dir_of(spec)
    with exclusive(run_dir), _mirrored(home, run_dir):
        store = Store(spec.registry.uri, home)
        folders = [path for path in (run_dir / "model",) if (path / "arch.json").exists()]
        _require_own(spec, run_dir)
        links = ancestry.read(store, spec, run_dir, begun=bool(folders), keep=False)
        folders += _fetch(store, links)
        if not folders:
            raise SpecError(f"run {spec.run_id}: no version and no ancestor; run `graceful refresh` first")
        left = [
            bundle.load(one, augment_like=spec.task, trusted=spec.trust.code_digests, at_least=Kept.NOTHING)
            for one in reversed(folders)
        ]
        versions = chosen(left, names)
        lost = [f"{version.name}: {version.lost}" for version in versions if version.lost]
        progress({"stage": "matrix", "versions": len(versions), **({"lost": lost} if lost else {})})
        free = unconstrained(home, versions[::-1], like=spec.task, trusted=spec.trust.code_digests)
        found = matrix(spec, tasks.build(spec.task), versions, free=free)
        pages.write_matrix(run_dir, found, model=spec.model)
    return found


def ancestors_of(spec: RefreshSpec, folder: Path, *, begun: bool) -> list[Path]:
    """Bundles of the chain, latest first: once begun as recorded in `chain.json` of this folder, else as it is now."""
    store = Store(spec.registry.uri, home_of(spec))
    return _fetch(store, ancestry.read(store, spec, folder, begun=begun))


def _fetch(store: Store, links: Sequence[Link]) -> list[Path]:
    """Bring the chain's bundles here, every digest checked; weights that the registry has no more are missing."""
    return [store.fetch(store.record(link.model_id), removable=bundle_files.REMOVABLE) for link in links]


def measure(
    spec: RefreshSpec, folder: Path, links: Sequence[Link], ancestors: Sequence[Path], *, notes: Sequence[str] = ()
) -> tuple[Evaluation, gate.Verdict]:
    """Evaluate a bundle against its ancestors' bundles and judge the report."""
    chain = [
        bundle.load(
            ancestor,
            expected_digest=link.digest,
            model_id=link.model_id,
            augment_like=spec.task,
            trusted=spec.trust.code_digests,
            at_least=Kept.NOTHING,
        )
        for link, ancestor in zip(links, ancestors, strict=True)
    ]
    new = bundle.load(folder, augment_like=spec.task, trusted=spec.trust.code_digests)
    free = unconstrained(home_of(spec), [new, *chain], like=spec.task, trusted=spec.trust.code_digests)
    found = evaluate(spec, new, chain, notes=notes, free=free)
    constraints = [item.constraint() for item in spec.gate.constraints]
    return found, gate.judge(found.report, constraints, family=spec.gate.family)


def _finished(spec: RefreshSpec, run_dir: Path) -> Refreshed | None:
    path = run_dir / "result.json"
    if not path.exists():
        return None
    with ancestry.written_here(path):
        raw = json.loads(path.read_text(encoding="utf-8"))
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
def _abandoned(store: Store, tracking: str, run_dir: Path) -> Iterator[None]:
    """Mark the run in the registry when training fails, or ends before it claimed its folder; resuming it takes it up
    again, and of what claimed nothing another spec may take the name."""
    try:
        yield
    except BaseException as e:
        if isinstance(e, SpecError | DataError | TrainingError) or not _begun(run_dir):
            with suppress(RegistryError):  # why training failed is what people must read
                store.abandon(tracking)
        raise


def _registration(
    spec: RefreshSpec,
    *,
    run_dir: Path,
    trained: Trained,
    links: Sequence[Link],
    found: Evaluation,
    verdict: gate.Verdict,
    tracking: str,
) -> Registration:
    return Registration(
        spec=spec.recorded(),
        model=spec.model,
        name=spec.name,
        run_id=spec.run_id,
        tracking_run=tracking,
        bundle=trained.folder,
        digest=trained.digest,
        parents=ancestry.parents(links),
        report=found.report,
        verdict=verdict,
        attachments=(
            run_dir / "report.html",
            run_dir / "flips.json",
            run_dir / recorded_predictions.FILE,
            run_dir / CONSTRAINTS,
        ),
        flips=tuple(asdict(flip) for flip in found.flips),
        thumbnails=thumbnails([flip.id for flip in found.flips[: pages.SHOWN]], found.test),
        training=ingredients(spec.task, data=trained.data),
    )


def _promote(
    store: Store, spec: RefreshSpec, record: LineageRecord, verdict: gate.Verdict, links: Sequence[Link]
) -> int | None:
    """Move the champion to a passed version, if it still is what this run started from."""
    expected = ancestry.champion(links)
    if verdict.outcome != gate.Outcome.PASSED:
        return expected
    store.promote(
        spec.model, record.version, expected=expected, reason=f"{spec.run_id} passed the gate", actor="graceful refresh"
    )
    return record.version
