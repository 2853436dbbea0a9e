"""What a search found, as JSON values, and the spec that `graceful refresh` takes. In the driver."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from graceful import documents
from graceful.losses.search import Point
from graceful.programs.tuning import space
from graceful.programs.tuning.final import Candidate, closest
from graceful.programs.tuning.scoring import Score, front, hypervolume
from graceful.programs.tuning.study import Tried
from graceful.spec import RefreshSpec, Tune

MET, UNMET, FRONT = "met", "unmet", "front"
LEFT_OUT = ("home", "tune", "if_new_data")
Document = dict[str, Any]


def trial_rows(trials: Sequence[Tried]) -> list[Document]:
    """Return one row for each trial that ended: number, state, point, score."""
    score_keys = ("error", "limit", "excess", "excess_upper", "violation", "feasible", "nfr", "nfr_lower", "nfr_upper")
    other_keys = ("reference_nfr", "against", "retrieval", "seconds", "failed", "digest")
    return [
        {
            "number": trial.number,
            "state": trial.state,
            "point": trial.point,
            **{key: trial.record[key] for key in (*score_keys, *other_keys) if trial.record.get(key) is not None},
        }
        for trial in trials
        if trial.state in ("complete", "failed")
    ]


def front_of(trials: Sequence[Tried], tune: Tune) -> list[Document]:
    """Return the best compromises between error and worst negative flip rate (and retrieval, if it is an objective)."""
    completed = [trial for trial in trials if trial.state == "complete"]
    retrieval = tune.objectives == "front"
    values = [
        (
            trial.record["error"],
            trial.record["nfr"],
            *((-float(trial.record.get("retrieval") or 0.0),) if retrieval else ()),
        )
        for trial in completed
    ]
    front_numbers = {completed[index].number for index in front(values)}
    return sorted((row for row in trial_rows(trials) if row["number"] in front_numbers), key=lambda row: row["error"])


def volumes(trials: Sequence[Tried]) -> list[float]:
    """Return hyper-volumes after each complete trial, as a share of the rectangle up to twice the reference rates."""
    completed = [trial.record for trial in trials if trial.state == "complete"]
    if not completed:
        return []
    corner = (2.0 * max(completed[0]["limit"], 1e-9), max(completed[0]["reference_nfr"], 1e-9))
    points = [(record["error"], record["nfr"]) for record in completed]
    area = corner[0] * corner[1]
    return [hypervolume(points[: end + 1], corner) / area for end in range(len(points))]


def as_document(
    spec: RefreshSpec,
    *,
    trials: Sequence[Tried],
    candidates: Sequence[Candidate],
    chosen: Candidate | None,
    tested: Score | None,
    importances: dict[str, float],
) -> Document:
    """Return the whole result as JSON values."""
    tune = spec.tune or Tune()
    met = chosen is not None and chosen.held_back is not None and chosen.held_back.feasible
    document: Document = {
        "run_id": spec.run_id,
        "outcome": FRONT if tune.objectives == "front" else MET if met else UNMET,
        "asked": {"error": tune.error, "tolerance": tune.tolerance, "confidence": tune.confidence, "far": tune.far},
        "trials": len(trial_rows(trials)),
        "feasible": sum(item.feasible for item in trials),
        "failed": sum(item.state == "failed" for item in trials),
        "best": None if chosen is None else _best(spec, chosen, tested),
        "candidates": [_candidate(item) for item in candidates],
        "front": front_of(trials, tune),
        "importances": importances,
        "hypervolume": volumes(trials),
    }
    if document["outcome"] == UNMET:
        document["closest"], document["relax"] = _closest(trials, chosen)
    return document


def _best(spec: RefreshSpec, chosen: Candidate, tested: Score | None) -> Document:
    return {
        "trial": chosen.number,
        "point": chosen.point,
        "compatibility": space.compatibility(spec, chosen.point).model_dump(mode="json"),
        "promised": chosen.promised,
        "held_back": chosen.held_back.document() if chosen.held_back else None,
        "test": tested.document() if tested else None,
    }


def _candidate(candidate: Candidate) -> Document:
    promised = {key: candidate.promised.get(key) for key in ("error", "nfr", "limit")}
    held_back = candidate.held_back.document() if candidate.held_back else None
    return {
        "trial": candidate.number,
        "point": candidate.point,
        "promised": promised,
        "held_back": held_back,
        "failed": candidate.failed,
    }


def _closest(trials: Sequence[Tried], chosen: Candidate | None) -> tuple[Document | None, list[str]]:
    """Return the point nearest to the error rate, and what would admit it."""
    if chosen is not None and chosen.held_back is not None:
        number, point, score = chosen.number, chosen.point, chosen.held_back.document()
    else:
        trial = closest(trials)
        if trial is None:
            return None, ["every trial failed: look at why, then lower the weights in tune.space"]
        number, point, score = trial.number, trial.point, dict(trial.record)
    needed = math.ceil(1000 * float(score["excess_upper"]) / max(float(score["limit"]), 1e-9)) / 1000
    advice = [f"write tune.tolerance: {needed:g}, which admits it"]
    if float(score["excess"]) <= 0.0:
        advice.append("its measured error is within the rate, the evidence is short: more ids or tune.final.seeds")
    advice.append("more reference runs in tune.space.runs, or smaller weights in tune.space")
    advice.append("more trials: the search continues where it is")
    return {"trial": number, "point": point, **score}, advice


def spec_text(spec: RefreshSpec, point: Point, *, about: str) -> str:
    """Return a spec with the weights of a point, as a file for `graceful refresh`."""
    train = spec.train.model_copy(update={"method": space.method(spec, point)})
    chosen = spec.model_copy(update={"train": train, "compatibility": space.compatibility(spec, point), "tune": None})
    document = {key: value for key, value in chosen.recorded().items() if key not in LEFT_OUT}
    return f"# {about}\n" + documents.dump(document)
