"""What a search found in words: the conclusion, and a point in one line. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graceful.losses.search import Point
from graceful.programs.tuning import space
from graceful.spec import RefreshSpec, Tune


def point_text(point: Point) -> str:
    """A point as `name=value` pairs."""
    return " ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in point.items()
    )


def conclusion(document: Mapping[str, Any]) -> list[str]:
    """The result in a few lines."""
    lines = [f"{document['trials']} trials, {document['feasible']} keep the error rate, {document['failed']} failed"]
    if document["outcome"] == "front":
        return [*lines, f"{len(document['front'])} of them are best compromises"]
    if document["outcome"] == "met":
        return [*lines, *_kept(document["best"])]
    near = document["closest"]
    if near is not None:
        lines.append(
            f"the error rate is not met; closest is trial {near['trial']}: error {_percent(near['error'])} where"
            f" {_percent(near['limit'])} is asked, upper bound of the excess {100 * near['excess_upper']:+.2f} points,"
            f" NFR {_percent(near['nfr'])}: {point_text(near['point'])}"
        )
    return [*lines, *(f"to relax: {advice}" for advice in document["relax"])]


def _kept(best: Mapping[str, Any]) -> list[str]:
    promised, held = best["promised"], best["held_back"]
    lines = [f"weights: trial {best['trial']}, {point_text(best['point'])}", _line("promised by the search", promised)]
    lines.append(_line("kept on held-back ids, fresh seeds", held))
    if best["test"] is not None:
        lines.append(_line("kept on the test split", best["test"]))
    lines.append(f"of the fall in negative flips that the search promised, {_share(promised, held)} was kept")
    return lines


def _line(what: str, score: Mapping[str, Any]) -> str:
    return (
        f"{what}: NFR {_percent(score['nfr'])} [{_percent(score['nfr_lower'])}, {_percent(score['nfr_upper'])}],"
        f" untreated {_percent(score['reference_nfr'])}; error {_percent(score['error'])}, limit"
        f" {_percent(score['limit'])}, excess at most {100 * score['excess_upper']:+.2f} points"
    )


def _share(promised: Mapping[str, Any], held: Mapping[str, Any]) -> str:
    before, after = (
        1.0 - one["nfr"] / one["reference_nfr"] if one["reference_nfr"] else 0.0 for one in (promised, held)
    )
    return f"{100 * after / before:.0f} % ({100 * before:.0f} -> {100 * after:.0f} %)" if before > 0.0 else "-"


def _percent(rate: float) -> str:
    return f"{100 * rate:.2f} %"


def dry_run(spec: RefreshSpec) -> dict[str, Any]:
    """What would be searched: the parameters with their values, the points tried first, and how many trainings."""
    tune, parameters = spec.tune or Tune(), space.parameters(spec)
    references = space.most_runs(parameters)
    candidates = 0 if tune.objectives == "front" else tune.final.candidates
    seeds = tune.final.seeds if candidates else 0
    shares = ", ".join(f"{share:g}" for share in space.shares(spec))
    first = [] if tune.sampler == "random" else space.known_points(spec, parameters)
    return {
        "space": {
            one.name: f"{one.domain}" + (f" where {one.given[0]} is {_either(one.given[1])}" if one.given else "")
            for one in parameters
        }
        | ({space.INTERPOLATION: f"{shares} of every training"} if shares else {}),
        "first": [point_text(point) for point in first],
        "trials": tune.trials,
        "reference_runs": references * (1 + seeds),
        "final_fits": candidates * seeds,
        "trainings": tune.trials + references * (1 + seeds) + candidates * seeds,
    }


def _either(values: tuple[Any, ...]) -> str:
    return " or ".join(map(str, values))
