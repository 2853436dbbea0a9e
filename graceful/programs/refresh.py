"""The main program: a spec goes in, a measured, judged and registered version comes out. Runs in the driver."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from graceful import gate, tasks
from graceful.chain.ancestor import Ancestor, Link
from graceful.errors import DataError, RegistryError, SpecError, StorageError, TrainingError
from graceful.lineage import LineageRecord, Registration, Store
from graceful.lineage.flips_table import MOST as LISTED
from graceful.models import bundle_files
from graceful.programs import exclusive, ray_gauges
from graceful.programs.evaluation import pages
from graceful.programs.evaluation.constraint_report import FILE as CONSTRAINTS
from graceful.programs.evaluation.evaluate import Evaluation, evaluate
from graceful.programs.evaluation.live_pairs import live_pairs
from graceful.programs.evaluation.matrix import chosen, matrix
from graceful.programs.evaluation.reference_runs import reference_runs_of
from graceful.programs.fitting import blend
from graceful.programs.fitting.finishing import Trained
from graceful.programs.fitting.train import train
from graceful.programs.fitting.weight_mixing import note
from graceful.programs.messages import notifications
from graceful.programs.outputs import recorded_predictions
from graceful.programs.outputs.flipped import excerpts, thumbnails
from graceful.programs.outputs.galleries import FleetVersions, fleet_of
from graceful.programs.outputs.kept_outputs import KeptOutputs
from graceful.programs.preparation.constraint_checks import require_judgeable
from graceful.programs.runs import ancestry
from graceful.programs.runs.novelty import ingredients
from graceful.programs.runs.run import Progress, Run, silent
from graceful.report import Report
from graceful.spec import RefreshSpec
from graceful.storage import write_text
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


def refresh(run: Run, *, progress: Progress = silent) -> tuple[Refreshed, Report]:
    """Train, evaluate, judge, register and, if passed, promote. Each finished step is a file and is not repeated.

    The chain is read from the registry until the run begins to train and kept in `chain.json`: a resumed run has the
    same predecessors, and promotion is refused if someone moved the champion meanwhile.

    Raises:
        SpecError, DataError: Nothing was registered.
        RegistryError, IntegrityError: The registry is unreachable or an ancestor was altered; nothing was registered.
        TrainingError: Training failed; the champion stays.
    """
    spec, run_dir, mirror = run.spec, run.folder, run.mirror
    with _own(run):
        notices = notifications.of_refresh(run)
        notices.again()
        finished = _finished(run)
        if finished:
            report = (run_dir / "report.json").read_text(encoding="utf-8")
            return finished, Report.from_json(report, where=finished.report)
        store = run.store
        tracking = store.begin(spec.recorded(), run_id=spec.run_id)
        with _abandoned(store, tracking, run_dir):
            links = ancestry.read(store, spec, run_dir, begun=_begun(run_dir))
            lineal = [link.name for link in links if link.is_ancestor]
            progress({"stage": "chain", "ancestors": lineal, **fleet_of(links), "registry": store.display_uri})
            require_judgeable(spec, [link.name for link in links])
            ancestors = ancestry.fetch(run, links)
            trained = train(run, ancestors=ancestors, progress=progress)
        progress({"stage": "evaluate"})
        evaluation, verdict = measure(run, ancestors, notes=trained.notes)
        ray_gauges.judged(evaluation.report, passed=verdict.outcome == gate.Outcome.PASSED)
        pages.write(run_dir, evaluation, verdict)
        mirror.save(run_dir, exclude=NOT_MIRRORED)
        progress({"stage": "register"})
        store.log_history(tracking, trained.result.history)
        record = store.register(_registration(run, trained, links, evaluation, verdict, tracking=tracking))
        champion = _promote(run, record, verdict, links)
        result = _result(run, record, verdict, champion=champion, seconds=trained.result.seconds)
        notifications.tell(notices, store, record, champion=champion)
        write_text(run_dir / "result.json", json.dumps(asdict(result), indent=2) + "\n")
    mirror.delete_folder(run_dir / "ray")
    return result, evaluation.report


def _result(
    run: Run, record: LineageRecord, verdict: gate.Verdict, *, champion: int | None, seconds: float
) -> Refreshed:
    return Refreshed(
        run_id=run.spec.run_id,
        outcome=verdict.outcome,
        reasons=tuple(finding.reason for finding in verdict.findings),
        version=record.version,
        model_id=record.model_id,
        champion=champion,
        spec_digest=run.spec.digest(),
        report=run.mirror.display_path(run.folder / "report.json"),
        seconds=seconds,
    )


def train_only(run: Run, *, progress: Progress = silent) -> Trained:
    """Train a version against the champion's chain and leave its bundle in the run's folder; register nothing."""
    with _own(run):
        links = ancestry.read(run.store, run.spec, run.folder, begun=_begun(run.folder))
        return train(run, ancestors=ancestry.fetch(run, links), progress=progress)


def evaluate_only(run: Run, *, progress: Progress = silent) -> tuple[Report, gate.Verdict]:
    """Measure the bundle that an earlier `train` or `refresh` left in the run's folder; register nothing.

    Raises:
        SpecError: The run has no bundle yet.
    """
    with _own(run):
        if not _trained(run):
            raise SpecError(
                f"run {run.spec.run_id}: no trained version in {run.model}; run `graceful train` or `refresh` first"
            )
        links = ancestry.read(run.store, run.spec, run.folder)
        ancestors = ancestry.fetch(run, links)
        progress({"stage": "evaluate"})
        lineal = [link.name for link in links if link.is_ancestor]
        notes = note(run.spec.compatibility.interpolation, lineal[0]) if lineal else ()
        evaluation, verdict = measure(run, ancestors, notes=(*blend.recorded(run.folder), *notes))
        pages.write(run.folder, evaluation, verdict)
    return evaluation.report, verdict


def _trained(run: Run) -> bool:
    return (run.model / bundle_files.DESCRIPTION).exists()


def _begun(run_dir: Path) -> bool:
    """Return whether training of a job began in this home; its constraints do not change after that."""
    return any((run_dir / name).exists() for name in (JOB, "model"))


def _require_own(spec: RefreshSpec, run_dir: Path) -> None:
    """Refuse the folder of another run, before anything in it is read as this one's.

    The same run id has more than one reading: model a-b, name c and model a, name b-c.

    Raises:
        SpecError: It holds another version.
    """
    for path in (run_dir / JOB, run_dir / "model" / bundle_files.DESCRIPTION):
        if not path.exists():
            continue
        with ancestry.written_here(path):
            document = dict(json.loads(path.read_text(encoding="utf-8")))
            recorded = (document.get("model"), document.get("name"))
        if None not in recorded and recorded != (spec.model, spec.name):
            raise SpecError(
                f"name: run {spec.run_id} holds {recorded[0]} {recorded[1]}, not {spec.model} {spec.name}: both have"
                f" this run id; choose another name ({run_dir})"
            )


@contextmanager
def _own(run: Run) -> Iterator[None]:
    """Work on the folder alone: continue what this run left in the bucket, and leave there what it did.

    Raises:
        SpecError: Another process works on it, or it holds another version.
    """
    with exclusive(run.folder):
        run.mirror.restore(run.folder, exclude=NOT_MIRRORED)
        try:
            _require_own(run.spec, run.folder)
            yield
        except BaseException:
            with suppress(StorageError):  # why the run ended is what people must read
                run.mirror.save(run.folder, exclude=(*NOT_MIRRORED, trace.FILE))
            raise
        run.mirror.save(run.folder, exclude=NOT_MIRRORED)


def matrix_of(run: Run, *, names: Sequence[str] = (), progress: Progress = silent) -> dict[str, Any]:
    """Return every version of the chain against every other, the run's own included where it is trained; see `matrix`.

    Writes `matrix.json` and `matrix.html` into the run's folder, and does not settle the ancestors of a run that has
    no version yet: those are the champion's chain as it is now.

    Args:
        run: Whose chain and data.
        names: Only these versions; empty: all.
        progress: Called when the versions are known.

    Raises:
        SpecError: No version at all, a name that the chain has not, or the folder holds another version.
    """
    spec = run.spec
    with _own(run):
        links = ancestry.read(run.store, spec, run.folder, begun=_trained(run), keep=False)
        stored = [ancestor.stored for ancestor in ancestry.fetch(run, links) if ancestor.is_ancestor]
        stored = [run.version(run.model), *stored] if _trained(run) else stored
        if not stored:
            raise SpecError(f"run {spec.run_id}: no version and no ancestor; run `graceful refresh` first")
        versions = chosen([version.open() for version in reversed(stored)], names)
        unrunnable = [
            f"{version.name}: {version.unrunnable_reason}" for version in versions if version.unrunnable_reason
        ]
        progress({"stage": "matrix", "versions": len(versions), **({"lost": unrunnable} if unrunnable else {})})
        references = reference_runs_of(run, versions[::-1])
        kept, task = KeptOutputs.of(run.home, run.mirror), tasks.build(spec.task)
        document = matrix(spec, task, versions, references=references, kept=kept) | live_pairs(run, task)
        pages.write_matrix(run.folder, document, model=spec.model)
    return document


def measure(run: Run, ancestors: Sequence[Ancestor], *, notes: Sequence[str] = ()) -> tuple[Evaluation, gate.Verdict]:
    """Evaluate the run's version against its ancestors and judge the report."""
    spec, chain = run.spec, [ancestor.stored.open() for ancestor in ancestors if ancestor.is_ancestor]
    new = run.version(run.model).whole()
    references, kept = reference_runs_of(run, [new, *chain]), KeptOutputs.of(run.home, run.mirror)
    fleet = FleetVersions.of(ancestors)
    evaluation = evaluate(spec, new, chain, notes=notes, references=references, kept=kept, fleet=fleet)
    linearised = run.version(run.model).description.linearised
    if linearised is not None:
        evaluation = replace(evaluation, report=replace(evaluation.report, certificate=linearised.certificate))
    constraints = [item.constraint() for item in spec.gate.constraints]
    return evaluation, gate.judge(evaluation.report, constraints, family=spec.gate.family)


def _finished(run: Run) -> Refreshed | None:
    """Return the result of a run that is done and registered.

    Raises:
        RegistryError: Its registry was lost; or it would be called passed, and the next version have no ancestors.
        SpecError: It was done under another spec.
    """
    path = run.folder / "result.json"
    if not path.exists():
        return None
    with ancestry.written_here(path):
        raw = json.loads(path.read_text(encoding="utf-8"))
        result = Refreshed(**{**raw, "reasons": tuple(raw["reasons"])})
    if result.spec_digest != run.spec.digest():
        raise SpecError(
            f"name: run {run.spec.run_id} is finished under another spec ({run.folder}); choose another name"
        )
    try:
        run.store.record(result.model_id)
    except RegistryError as e:
        raise RegistryError(
            f"run {result.run_id} is finished, but {e.message}; or delete {run.folder} to refresh again"
        ) from e
    return result


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
    run: Run, trained: Trained, links: Sequence[Link], evaluation: Evaluation, verdict: gate.Verdict, *, tracking: str
) -> Registration:
    spec, attached = run.spec, ("report.html", "flips.json", recorded_predictions.FILE, CONSTRAINTS)
    texts = excerpts([flip.id for flip in evaluation.flips[:LISTED]], evaluation.test)
    return Registration(
        spec=spec.recorded(),
        model=spec.model,
        name=spec.name,
        run_id=spec.run_id,
        tracking_run=tracking,
        bundle=trained.folder,
        digest=trained.digest,
        parents=ancestry.parents(links),
        report=evaluation.report,
        verdict=verdict,
        attachments=tuple(run.folder / name for name in attached),
        flips=tuple(
            {**({"text": texts.get(flip.id, "")} if texts else {}), **asdict(flip)} for flip in evaluation.flips
        ),
        thumbnails=thumbnails([flip.id for flip in evaluation.flips[: pages.SHOWN]], evaluation.test),
        training=ingredients(spec.task, data=trained.data),
    )


def _promote(run: Run, record: LineageRecord, verdict: gate.Verdict, links: Sequence[Link]) -> int | None:
    """Move the champion to a passed version, if it still is what this run started from."""
    expected = ancestry.champion(links)
    if verdict.outcome != gate.Outcome.PASSED:
        return expected
    reason = f"{run.spec.run_id} passed the gate"
    run.store.promote(run.spec.model, record.version, expected=expected, reason=reason, actor="graceful refresh")
    return record.version
