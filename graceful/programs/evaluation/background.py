"""Measurements for people that the gate does not read: all pairs, slices, reference runs. Runs in the driver."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from graceful.chain import Predecessor
from graceful.metrics.compatibility import Searches
from graceful.metrics.inputs import VersionOutputs
from graceful.programs.evaluation.reference_runs import ReferenceRuns
from graceful.programs.evaluation.slices import most_flipped
from graceful.programs.outputs.model_outputs import Evaluated, run_versions
from graceful.programs.outputs.pairs import flipped_share, pairs, wrong_share
from graceful.spec import RefreshSpec

CELLS = 250_000_000
"""Queries x gallery items x pairs of versions that a refresh compares for the picture: a minute of one core."""
WIDEST = 12
"""Versions that a page has room for."""


def background(
    spec: RefreshSpec,
    outputs: Sequence[VersionOutputs],
    samples: Evaluated,
    *,
    references: Mapping[str, ReferenceRuns],
    chain: Sequence[Predecessor],
    searches: Searches,
) -> dict[str, Any]:
    """Return the background as JSON values; `constraints.json` holds them.

    Args:
        spec: For draws, seed, batch size.
        outputs: What the versions said, newest first.
        samples: What they were asked about.
        references: Version name -> its unconstrained runs.
        chain: The new version and all ancestors, newest first, those too that cannot be run.
        searches: Those of the report.

    Returns:
        `matrix`, see `pairs.pairs`, of the newest versions, with `left_out`, how many older ones are not in it,
        `unconstrained`, by version where its independent cell comes from, and `lost`, by version why it cannot be run;
        `slices`, most flipped first, for each predecessor; `unconstrained`, see `_unconstrained`; `compat_slice`, how
        many leading components of the new embeddings stand for each predecessor's, empty where retrieval is not
        measured.
    """
    names = [version.name for version in chain[: _newest_count(samples)]]
    in_matrix = [version for version in outputs if version.name in names]
    new, *others = outputs
    with_references = names if samples.query is not None else [new.name]
    reference_outputs = {
        name: _reference_outputs(references[name], outputs, samples, batch_size=spec.evaluate.batch_size)
        for name in with_references
        if name in references
    }
    draws, seed = spec.evaluate.bootstrap, spec.train.seed
    matrix = pairs(in_matrix[::-1], names=names[::-1], references=reference_outputs, searches=searches)
    matrix["left_out"] = len(chain) - len(names)
    matrix["unconstrained"] = reasons(names, references)
    matrix["lost"] = {
        version.name: version.unrunnable_reason
        for version in chain
        if version.unrunnable_reason and version.name in names
    }
    slices = [
        most_flipped(new.predictions, old.predictions, against=old.name, draws=draws, seed=seed) for old in others
    ]
    return {
        "matrix": matrix,
        "slices": [asdict(item) for item in itertools.chain.from_iterable(slices)],
        "compat_slice": {old.name: old.queries.size for old in others if old.queries is not None},
        "unconstrained": _unconstrained(
            new, reference_outputs.get(new.name, []), others, references=references.get(new.name)
        ),
    }


def reasons(names: Sequence[str], references: Mapping[str, ReferenceRuns]) -> dict[str, str]:
    """Return, by version, where its independent cell comes from, or why it has none."""
    return {name: references[name].reason if name in references else "not looked for" for name in sorted(names)}


def _newest_count(samples: Evaluated) -> int:
    if samples.query is None or samples.gallery is None:
        return WIDEST
    cells = max(1, len(samples.query) * len(samples.gallery))
    return min(WIDEST, max(2, math.isqrt(CELLS // cells)))


def _reference_outputs(
    references: ReferenceRuns, outputs: Sequence[VersionOutputs], samples: Evaluated, *, batch_size: int
) -> list[VersionOutputs]:
    """Return the outputs of the unconstrained runs; those of a version that is its own are known already."""
    by_name = {version.name: version for version in outputs}
    unmeasured = [run for run in references.runs if run.name not in by_name]
    return [by_name[run.name] for run in references.runs if run.name in by_name] + run_versions(
        unmeasured, samples, batch_size=batch_size
    )


def _unconstrained(
    new: VersionOutputs,
    runs: Sequence[VersionOutputs],
    others: Sequence[VersionOutputs],
    *,
    references: ReferenceRuns | None,
) -> dict[str, Any]:
    """Return the new version's recipe without predecessors, on test data.

    Returns:
        `runs`, how many; `error`, their mean; `nfr`, by predecessor, what would have flipped without constraints;
        `seed_floor`, what flips between two of them that differ in the seed alone, None below two; `reason`.
    """
    reference_outputs = [run for run in runs if run.name != new.name]
    reason = "not looked for" if references is None else references.reason
    floors = [
        flipped_share(first.predictions, second.predictions)
        for first, second in itertools.permutations(reference_outputs, 2)
    ]
    flips = {
        old.name: _mean([flipped_share(run.predictions, old.predictions) for run in reference_outputs])
        for old in others
        if reference_outputs
    }
    return {
        "runs": len(reference_outputs),
        "error": _mean([wrong_share(run.predictions) for run in reference_outputs]),
        "nfr": flips,
        "seed_floor": _mean(floors),
        "reason": reason
        if len(reference_outputs) != 1
        else f"{reason}; the seed floor needs two, compatibility.reference.runs: 2",
    }


def _mean(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return math.fsum(measured) / len(measured) if measured else None
