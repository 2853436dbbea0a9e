"""A linearised version in the making: certificate, temperature, errors, files. Runs in workers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from graceful.lqf import contributions
from graceful.lqf.contributions import Contributions
from graceful.lqf.network import Linearised
from graceful.lqf.operators import unflat
from graceful.lqf.solution import Certificate
from graceful.models.bundle_files import LinearisedDescription
from graceful.models.weights import own_state, portable
from graceful.storage import sha256_file, write_bytes
from graceful.training.job import WEIGHTS, write_weights
from graceful.training.linear_measures import error_of, locality
from graceful.training.linear_problem import LinearProblem
from graceful.training.linear_solution import Solution
from graceful.training.penalties import Penalty
from graceful.training.reporting import Reporter


def certificate_of(linear: LinearProblem, solution: Solution, penalty: Penalty, *, solver: str) -> Certificate:
    """Return what certifies a solution; every rank must ask."""
    return Certificate(
        solver=solver,
        relative_gradient=solution.relative,
        iterations=solution.iterations,
        penalty=penalty.ridge / linear.samples,
        penalty_from=penalty.source,
        amplitude=linear.method.amplitude,
        samples=linear.samples,
        parameters=linear.parameters,
        data=linear.data_digest(),
        start=linear.start.digest,
    )


def write_version(
    linear: LinearProblem,
    solution: Solution,
    certificate: Certificate,
    *,
    notes: Sequence[str],
    files: Mapping[str, bytes],
    reporter: Reporter,
    seconds: float,
) -> dict[str, Any]:
    """Measure a solution and write its weights and files; every rank must ask, rank 0 writes.

    Args:
        linear: What was solved.
        solution: The minimum.
        certificate: Of it.
        notes: The notes of the penalty and of limits, for the report.
        files: What is kept beside the weights, by name.
        reporter: Gets the row of the epoch.
        seconds: Of the solution.

    Returns:
        The outcome as `loop.run` gives it, without `resumed_from`; empty but on rank 0.
    """
    context, method, size = linear.context, linear.method, max(linear.all.sizes)
    tangent = linear.tangent()
    network = Linearised(linear.start.network, linear.start.names, slope=method.slope)
    network.put(unflat(solution.delta, tangent.start))
    temperature = linear.held_out().temperature(network, method.amplitude)
    train_error, validation_error = (
        error_of(network, linear.materials, samples, size=size, context=context)
        for samples in (linear.materials.train, linear.materials.validation)
    )
    far = locality(linear.tangent(), network, linear.all[0])
    reporter.write(
        event="epoch",
        step=max(certificate.iterations, 1),
        epoch=1,
        train_error=train_error,
        validation_error=validation_error,
        relative_gradient=certificate.relative_gradient,
        penalty=certificate.penalty,
        seconds=round(seconds, 3),
    )
    if context.rank != 0:
        return {}
    path = linear.job.run_dir / WEIGHTS
    write_weights(path, portable(own_state(network)))
    description = _described(linear, solution, certificate, temperature=temperature, files=files)
    return {
        "steps": certificate.iterations or 1,
        "validation_error": validation_error,
        "weights_sha256": sha256_file(path),
        "silent": list(linear.targets.silent),
        "linearised": description.model_dump(mode="json"),
        "notes": [*linear.start.notes, *notes, *far, certificate.sentence()],
    }


def _described(
    linear: LinearProblem,
    solution: Solution,
    certificate: Certificate,
    *,
    temperature: float,
    files: Mapping[str, bytes],
) -> LinearisedDescription:
    """Write the files that are kept beside the weights, and return the description that names them."""
    return LinearisedDescription(
        names=linear.start.names,
        slope=linear.method.slope,
        temperature=temperature,
        amplitude=linear.method.amplitude,
        start_sha256=linear.start.digest,
        start_from=linear.start.source,
        unseen=linear.start.unseen,
        certificate=certificate.document(),
        files=_keep(linear, {**files, **_contributions(linear, solution)}),
    )


def _contributions(linear: LinearProblem, solution: Solution) -> dict[str, bytes]:
    """Return the file that later explains which samples pull an answer; nothing where it is too large."""
    if contributions.too_large(linear.samples, linear.classes):
        return {}
    ids = [str(name) for name in linear.all.samples.ids[linear.all.rows]]
    return Contributions(ids=ids, values=solution.contributions.reshape(-1, linear.classes)).files()


def _keep(linear: LinearProblem, files: Mapping[str, bytes]) -> dict[str, str]:
    """Write files into the run's folder, and return their digests."""
    for name, content in files.items():
        write_bytes(linear.job.run_dir / name, content)
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
