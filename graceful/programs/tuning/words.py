"""What a search found in words: the conclusion, and a point in one line. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graceful.losses.search import Point
from graceful.programs.tuning import space
from graceful.spec import RefreshSpec
from graceful.spec.search_counts import trainings, tune_of


def point_text(point: Point) -> str:
    """Return a point as `name=value` pairs."""
    return " ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in point.items()
    )


def conclusion(document: Mapping[str, Any]) -> list[str]:
    """Return the result in a few lines."""
    lines = [f"{document['trials']} trials, {document['feasible']} keep the error rate, {document['failed']} failed"]
    if document["outcome"] == "front":
        return [*lines, f"{len(document['front'])} of them are best compromises"]
    if document["outcome"] == "met":
        return [*lines, *_kept_lines(document["best"])]
    trial = document["closest"]
    if trial is not None:
        lines.append(
            f"the error rate is not met; closest is trial {trial['trial']}: error {_percent(trial['error'])} where"
            f" {_percent(trial['limit'])} is asked, upper bound of the excess {100 * trial['excess_upper']:+.2f}"
            f" points, NFR {_percent(trial['nfr'])}: {point_text(trial['point'])}"
        )
    return [*lines, *(f"to relax: {advice}" for advice in document["relax"])]


def _kept_lines(best: Mapping[str, Any]) -> list[str]:
    promised, held_back = best["promised"], best["held_back"]
    lines = [f"weights: trial {best['trial']}, {point_text(best['point'])}", _line("promised by the search", promised)]
    lines.append(_line("kept on held-back ids, fresh seeds", held_back))
    if best["test"] is not None:
        lines.append(_line("kept on the test split", best["test"]))
    lines.append(f"of the fall in negative flips that the search promised, {_share(promised, held_back)} was kept")
    return lines


def _line(what: str, score: Mapping[str, Any]) -> str:
    return (
        f"{what}: NFR {_percent(score['nfr'])} [{_percent(score['nfr_lower'])}, {_percent(score['nfr_upper'])}],"
        f" reference runs {_percent(score['reference_nfr'])}; error {_percent(score['error'])}, limit"
        f" {_percent(score['limit'])}, excess at most {100 * score['excess_upper']:+.2f} points"
    )


def _share(promised: Mapping[str, Any], held_back: Mapping[str, Any]) -> str:
    before, after = (
        1.0 - score["nfr"] / score["reference_nfr"] if score["reference_nfr"] else 0.0
        for score in (promised, held_back)
    )
    return f"{100 * after / before:.0f} % ({100 * before:.0f} -> {100 * after:.0f} %)" if before > 0.0 else "-"


def _percent(rate: float) -> str:
    return f"{100 * rate:.2f} %"


def dry_run(spec: RefreshSpec) -> dict[str, Any]:
    """Return what would be searched: parameters with their values, first points, and the number of trainings."""
    tune = tune_of(spec)
    spec = spec.model_copy(update={"tune": tune})
    parameters = space.parameters(spec)
    counts = trainings(tune, spec.compatibility)
    shares = ", ".join(f"{share:g}" for share in space.shares(spec))
    known_later = tune.sampler == "random" or spec.compatibility.blend is not None
    first = [] if known_later else space.known_points(spec, parameters)
    return {
        "space": {
            parameter.name: f"{parameter.domain}"
            + (f" where {parameter.given[0]} is {_either(parameter.given[1])}" if parameter.given else "")
            for parameter in parameters
        }
        | ({space.INTERPOLATION: f"{shares} of every training"} if shares else {}),
        "first": [point_text(point) for point in first],
        "trials": counts.trials,
        "reference_runs": counts.reference_runs,
        "final_fits": counts.final_fits,
        "trainings": counts.total,
    }


def _either(values: tuple[Any, ...]) -> str:
    return " or ".join(map(str, values))
