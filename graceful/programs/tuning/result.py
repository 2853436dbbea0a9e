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
    """One row for each trial that ended: number, state, point, score."""
    kept = ("error", "limit", "excess", "excess_upper", "violation", "feasible", "nfr", "nfr_lower", "nfr_upper")
    more = ("reference_nfr", "against", "retrieval", "seconds", "failed", "digest")
    return [
        {
            "number": one.number,
            "state": one.state,
            "point": one.point,
            **{key: one.record[key] for key in (*kept, *more) if one.record.get(key) is not None},
        }
        for one in trials
        if one.state in ("complete", "failed")
    ]


def front_of(trials: Sequence[Tried], tune: Tune) -> list[Document]:
    """The best compromises between error and worst negative flip rate (and retrieval, where it is an objective)."""
    done = [one for one in trials if one.state == "complete"]
    retrieval = tune.objectives == "front"
    values = [
        (
            one.record["error"],
            one.record["nfr"],
            *((-float(one.record.get("retrieval") or 0.0),) if retrieval else ()),
        )
        for one in done
    ]
    kept = {done[index].number for index in front(values)}
    return sorted((row for row in trial_rows(trials) if row["number"] in kept), key=lambda row: row["error"])


def volumes(trials: Sequence[Tried]) -> list[float]:
    """Hyper-volume after each complete trial, as a share of the rectangle up to twice the untreated rates."""
    done = [one.record for one in trials if one.state == "complete"]
    if not done:
        return []
    corner = (2.0 * max(done[0]["limit"], 1e-9), max(done[0]["reference_nfr"], 1e-9))
    points = [(record["error"], record["nfr"]) for record in done]
    area = corner[0] * corner[1]
    return [hypervolume(points[: end + 1], corner) / area for end in range(len(points))]


def found(
    spec: RefreshSpec,
    *,
    trials: Sequence[Tried],
    candidates: Sequence[Candidate],
    chosen: Candidate | None,
    tested: Score | None,
    importances: dict[str, float],
) -> Document:
    """The whole result as JSON values."""
    tune = spec.tune or Tune()
    met = chosen is not None and chosen.held_back is not None and chosen.held_back.feasible
    document: Document = {
        "run_id": spec.run_id,
        "outcome": FRONT if tune.objectives == "front" else MET if met else UNMET,
        "asked": {"error": tune.error, "tolerance": tune.tolerance, "confidence": tune.confidence, "far": tune.far},
        "trials": len(trial_rows(trials)),
        "feasible": sum(one.feasible for one in trials),
        "failed": sum(one.state == "failed" for one in trials),
        "best": None if chosen is None else _best(spec, chosen, tested),
        "candidates": [_candidate(one) for one in candidates],
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


def _candidate(one: Candidate) -> Document:
    promised = {key: one.promised.get(key) for key in ("error", "nfr", "limit")}
    kept = one.held_back.document() if one.held_back else None
    return {"trial": one.number, "point": one.point, "promised": promised, "held_back": kept, "failed": one.failed}


def _closest(trials: Sequence[Tried], chosen: Candidate | None) -> tuple[Document | None, list[str]]:
    """The point nearest to the error rate, and what would admit it."""
    if chosen is not None and chosen.held_back is not None:
        number, point, score = chosen.number, chosen.point, chosen.held_back.document()
    else:
        near = closest(trials)
        if near is None:
            return None, ["every trial failed: look at why, then lower the weights in tune.space"]
        number, point, score = near.number, near.point, dict(near.record)
    needed = math.ceil(1000 * float(score["excess_upper"]) / max(float(score["limit"]), 1e-9)) / 1000
    advice = [f"write tune.tolerance: {needed:g}, which admits it"]
    if float(score["excess"]) <= 0.0:
        advice.append("its measured error is within the rate, the evidence is short: more ids or tune.final.seeds")
    advice.append("more reference runs in tune.space.runs, or smaller weights in tune.space")
    advice.append("more trials: the search continues where it is")
    return {"trial": number, "point": point, **score}, advice


def spec_text(spec: RefreshSpec, point: Point, *, about: str) -> str:
    """A spec with the weights of a point, as a file for `graceful refresh`."""
    chosen = spec.model_copy(update={"compatibility": space.compatibility(spec, point), "tune": None})
    document = {key: value for key, value in chosen.recorded().items() if key not in LEFT_OUT}
    return f"# {about}\n" + documents.dump(document)
