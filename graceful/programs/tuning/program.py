"""Search the weights: the lowest worst negative flip rate over the chain at an error rate to keep. In the driver."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from graceful import tasks
from graceful.chain.ancestor import Ancestor
from graceful.errors import IntegrityError, SpecError
from graceful.losses.search import Point
from graceful.programs import exclusive, home_of
from graceful.programs.fitting.readiness import require_ready
from graceful.programs.runs import ancestry
from graceful.programs.runs.run import Progress, Run, silent
from graceful.programs.tuning import final, result, space, splits, teacher
from graceful.programs.tuning.bench import Bench, of_trials
from graceful.programs.tuning.pictures import write_pictures
from graceful.programs.tuning.scoring import Score
from graceful.programs.tuning.search import located, search
from graceful.programs.tuning.study import Study, Tried
from graceful.spec import RefreshSpec
from graceful.spec.search_counts import tune_of
from graceful.storage import Mirror, sha256_json, write_bytes, write_json, write_text
from graceful.training.start import require_start

RESULT, SPEC, JOURNAL, IDENTITY = "tune.json", "spec.yaml", "journal-{}.jsonl", "search.json"
JUDGED = {"error", "tolerance", "confidence"}
"""Keys of the tune section by which trials are judged; with another limit they are judged again, in another journal."""
GROWS = {"trials", "max_concurrent", "final", *JUDGED}
"""Keys that may change from one invocation to the next."""
ENDED = "ended"
OTHERS = ("lock", "fits")
"""Files of a search's folder that are not copied with it: each fit is copied when it is done."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Receiver of the trials.

    Attributes:
        trial: Called when a trial is asked and when it ended.
        result: Called once with the result and the files that belong to it.
    """

    trial: Callable[[Tried], None]
    result: Callable[[dict[str, Any], Sequence[Path]], None]


def folder_of(spec: RefreshSpec) -> Path:
    """Return the folder of a search: journal, fits, result."""
    return home_of(spec) / "tunes" / spec.run_id


def run_of(spec: RefreshSpec) -> Run:
    """Return the search of a spec as a run, with or without a `tune` section.

    Raises:
        SpecError: Its method is not searched.
    """
    if spec.train.method.kind == "combination":
        raise SpecError(
            "train.method: a combination trains nothing that could be searched; `graceful combine --dry-run` predicts"
            " mixes of two versions"
        )
    if spec.train.method.kind == "pruned":
        raise SpecError(
            "train.method: the weights of a pruned network are there already, so none of the losses can be searched;"
            " leave train.method out to train the network from scratch"
        )
    return Run.of(spec.model_copy(update={"tune": tune_of(spec)}), folder=folder_of(spec))


def tune(
    run: Run, *, progress: Progress = silent, watch: Callable[[Sequence[Tried]], Watch] | None = None
) -> dict[str, Any]:
    """Search, choose, test. Each finished trial is kept: the same call continues, a finished search is repeated.

    Args:
        run: The run of the search, see `run_of`.
        progress: Called with rows of progress.
        watch: Called with what was tried before, once the search is open.

    Returns:
        The result as JSON values; see `result.as_document`.

    Raises:
        SpecError: No predecessor, or the folder belongs to another search.
        DataError: Too few ids, or an ancestor that cannot be run.
        TrainingError: The recipe does not even train without constraints.
    """
    spec, folder, mirror = run.spec, run.folder, run.mirror
    with exclusive(folder):
        _restore(mirror, folder)
        links = ancestry.read(run.store, spec, folder, begun=(folder / IDENTITY).exists())
        ancestors = ancestry.fetch(run, links)
        if not ancestors:
            raise SpecError(f"model: {spec.model} has no champion yet, nothing to flip; `graceful refresh` a first one")
        bench = None
        if not (folder / IDENTITY).exists():
            require_runnable(ancestors)
            bench = _bench(run, ancestors)
            _require_ready(bench)
        _claim(run)
        finished_result = _finished(spec, folder)
        if finished_result is not None:
            mirror.save(folder, exclude=(*OTHERS, RESULT))
            mirror.save(folder, only=(RESULT,))
            return finished_result
        return _searched(run, bench or _bench(run, ancestors), progress=progress, watch=watch)


def require_runnable(ancestors: Sequence[Ancestor]) -> None:
    """Refuse a search over ancestors that cannot be run, before anything is trained or claimed.

    Raises:
        DataError, IntegrityError: Its weights are gone or damaged, or its code is not trusted.
    """
    for ancestor in ancestors:
        ancestor.stored.whole()


def _require_ready(bench: Bench) -> None:
    """Refuse what every trial would meet, or only the end of the search, before the folder is claimed.

    Raises:
        SpecError, DataError: The spec does not fit the data, the machine or the predecessor; too few ids.
    """
    for name in ("search",) if bench.tune.objectives == "front" else get_args(splits.Part):
        splits.part(bench.task, bench.spec, name)
    require_start(bench.spec, bench.ancestors[0].stored, task=bench.task)
    require_ready(of_trials(bench.spec), bench.task, run_dir=bench.folder)


def _searched(
    run: Run, bench: Bench, *, progress: Progress, watch: Callable[[Sequence[Tried]], Watch] | None
) -> dict[str, Any]:
    """Run the trials, the final selection and the test; the result is written last."""
    spec, folder, mirror, parameters = run.spec, run.folder, run.mirror, space.parameters(run.spec)
    journal = folder / JOURNAL.format(sha256_json(bench.tune.model_dump(mode="json", include=JUDGED))[:8])
    before = _tried_before(spec, journal)
    study = Study(journal, tune=bench.tune, space=parameters, seed=spec.train.seed)
    progress({"stage": "search", "trials": bench.tune.trials, "known": study.ended(), **_descriptions(bench)})
    watching = watch(_tried(study)) if watch else None
    mirror.save(folder, exclude=OTHERS)

    def listener(tried: Tried) -> None:
        mirror.save(folder, only=(journal.name,))
        if watching:
            watching.trial(tried)

    def first() -> Sequence[Point]:
        """Return the points that are tried first; random search has some only where a teacher gives them."""
        if spec.compatibility.blend is not None:
            return teacher.known_points(bench)
        return space.known_points(spec, parameters) if bench.tune.sampler != "random" else ()

    search(bench, study, listener=listener, progress=progress, before=before, first=first)
    document = {**_concluded(bench, study, progress), "folder": mirror.display_path(folder)}
    files = _write(folder, spec, document, _tried(study))
    if watching:
        watching.result(document, files)
    mirror.save(folder, exclude=OTHERS)
    write_json(folder / RESULT, {**document, ENDED: _wanted(spec)})  # last, here and there: it says that all is there
    mirror.save(folder, only=(RESULT,))
    return document


def _restore(mirror: Mirror, folder: Path) -> None:
    """Go on where this or another machine ended; journals only grow, so the longer of two is the newer.

    Raises:
        SpecError: Two machines went on from the same journal, each its own way.
    """
    mirror.restore(folder, exclude=OTHERS)
    for journal in folder.glob(JOURNAL.format("*")):
        copied = mirror.read_if_changed(journal, None)
        local, copy = journal.read_bytes(), b"" if copied is None else copied[0]
        complete = local[: local.rfind(b"\n") + 1]
        if copy.startswith(complete):
            write_bytes(journal, copy)
        elif not complete.startswith(copy):
            raise SpecError(
                f"{journal}: this machine and {mirror.display_path(journal)} went on from the same search differently;"
                " delete the one that is not to count"
            )


def _tried(study: Study) -> list[Tried]:
    return [located(trial) for trial in study.trials()]


def _tried_before(spec: RefreshSpec, journal: Path) -> list[Tried]:
    """Return the trials of this search under other limits, with which this one begins."""
    assert spec.tune is not None
    trials = []
    for other in sorted({*journal.parent.glob(JOURNAL.format("*"))} - {journal}):
        study = Study(other, tune=spec.tune, space=space.parameters(spec), seed=0)
        trials += [trial for trial in study.trials() if trial.state in ("complete", "failed")]
    return trials


def _descriptions(bench: Bench) -> dict[str, str]:
    descriptions = splits.described(bench.task, bench.spec)
    return {name: text.replace(" ", "_") for name, text in descriptions.items()}


def _bench(run: Run, ancestors: Sequence[Ancestor]) -> Bench:
    spec = run.spec
    assert spec.tune is not None
    return Bench(
        spec=spec,
        task=tasks.build(spec.task),
        folder=run.folder / "fits",
        home=run.home,
        ancestors=tuple(ancestors),
        tune=spec.tune,
        references=space.most_runs(space.parameters(spec)),
    )


def _claim(run: Run) -> None:
    """Refuse to continue a search that was begun with something else."""
    spec = run.spec
    assert spec.tune is not None
    document = {
        "spec": spec.digest(),
        "tune": sha256_json(spec.tune.model_dump(mode="json", exclude=GROWS)),
    }
    path = run.folder / IDENTITY
    if not path.exists():
        write_json(path, document)
        return
    claimed = _written(path, remedy="delete it if the spec is still the one of that search")
    for key, remedy in (
        ("spec", "restore it"),
        ("tune", "restore tune (only the limit, trials, final and max_concurrent may change)"),
    ):
        if claimed.get(key) != document[key]:
            where = run.mirror.display_path(run.folder)
            raise SpecError(f"name: search {spec.run_id} was begun with another {key}; {remedy}, or delete {where}")


def _written(path: Path, *, remedy: str) -> dict[str, Any]:
    """Read a file of the search's folder.

    Raises:
        IntegrityError: It is not what a search wrote.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise IntegrityError(f"{path}: damaged, not JSON ({e}); {remedy}") from e
    if not isinstance(document, dict):
        raise IntegrityError(f"{path}: damaged, not a JSON object; {remedy}")
    return document


def _wanted(spec: RefreshSpec) -> dict[str, Any]:
    assert spec.tune is not None
    return spec.tune.model_dump(mode="json", include={"trials", "final", *JUDGED})


def _finished(spec: RefreshSpec, folder: Path) -> dict[str, Any] | None:
    """Return the result of this search, if it ended with as many trials and the same final selection."""
    path = folder / RESULT
    if not path.exists():
        return None
    document = _written(path, remedy="delete it, the search concludes again from its journal")
    return document if document.pop(ENDED, None) == _wanted(spec) else None


def _concluded(bench: Bench, study: Study, progress: Progress) -> dict[str, Any]:
    """Select and test the final points, where a trial keeps the error rate; with several objectives the front is the
    result."""
    trials, chosen, tested = _tried(study), None, None
    candidates: list[final.Candidate] = []
    if bench.tune.objectives == "single":
        count = bench.tune.final.candidates
        candidates, chosen = final.select(
            trials, count, lambda chosen_trials: final.retrain(bench, chosen_trials, progress)
        )
        tested = _tested(bench, chosen, progress)
    return result.as_document(
        bench.spec,
        trials=trials,
        candidates=candidates,
        chosen=chosen,
        tested=tested,
        importances=study.importances(),
    )


def _tested(bench: Bench, chosen: final.Candidate | None, progress: Progress) -> Score | None:
    feasible = chosen is not None and chosen.held_back is not None and chosen.held_back.feasible
    return final.on_test(bench, chosen, progress) if feasible and chosen is not None else None


def _write(folder: Path, spec: RefreshSpec, document: dict[str, Any], trials: Sequence[Tried]) -> list[Path]:
    files = write_pictures(folder, document, trials)
    if document["outcome"] == result.MET:
        about = f"weights found by `graceful tune` in {document['trials']} trials; refresh with this file"
        files.append(write_text(folder / SPEC, result.spec_text(spec, document["best"]["point"], about=about)))
    elif document["outcome"] == result.FRONT:
        for row in document["front"]:
            about = f"trial {row['number']} of the front"
            text = result.spec_text(spec, row["point"], about=about)
            files.append(write_text(folder / f"spec-{row['number']}.yaml", text))
    return files
