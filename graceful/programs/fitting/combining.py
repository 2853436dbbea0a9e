"""Add up versions that were linearised at the same weights: f0 + sum of factor x (f - f0). Runs in the driver.

Outputs are affine in delta, so the error of every combination on held-out samples is known from the versions' own
outputs there, before anything is made.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from graceful.chain import Predecessor
from graceful.chain.ancestor import Ancestor
from graceful.errors import SpecError
from graceful.lqf.contributions import NAMES, TENSORS, Contributions
from graceful.lqf.network import Linearised
from graceful.models.bundle_files import LinearisedDescription, read_beside
from graceful.models.stored import StoredVersion
from graceful.models.weights import difference, load_own, own_state, portable
from graceful.programs.fitting.blend import HeldOut
from graceful.programs.fitting.finishing import Trained, finish
from graceful.programs.preparation.data_checks import require_sound
from graceful.programs.runs.run import Progress, Run, silent
from graceful.spec.methods import Combination
from graceful.storage import sha256_file, write_bytes
from graceful.tasks.base import Task, notes_of
from graceful.training.job import WEIGHTS, TrainingJob, claim, finished, record, write_weights
from graceful.training.linear_measures import temperature_of


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Versions that may be added up.

    Attributes:
        stored: By name.
        descriptions: How each was linearised.
    """

    stored: Mapping[str, StoredVersion]
    descriptions: Mapping[str, LinearisedDescription]

    @classmethod
    def of(cls, names: Sequence[str], ancestors: Mapping[str, StoredVersion], *, classes: tuple[str, ...]) -> Parts:
        """Open them.

        Raises:
            SpecError: One is not an ancestor or not linearised, or two have other starting weights, classes or targets.
        """
        descriptions: dict[str, LinearisedDescription] = {}
        for name in names:
            if name not in ancestors:
                raise SpecError(
                    f"train.method.versions: {name} is not an ancestor here"
                    f" ({', '.join(ancestors) or 'there is none'});"
                    " name ancestors, or add its model and number to parents"
                )
            described = ancestors[name].description.linearised
            if described is None:
                raise SpecError(
                    f"train.method.versions: {name} was not trained with train.method lqf, so it has no delta to add;"
                    " leave it out"
                )
            first = descriptions.setdefault(names[0], described)
            if described.start_sha256 != first.start_sha256:
                raise SpecError(
                    f"train.method.versions: {names[0]} and {name} are linearised at different weights"
                    f" ({first.start_sha256[:12]}, {described.start_sha256[:12]}), so their deltas belong to different"
                    " networks; combine versions of one start"
                )
            if described.amplitude != first.amplitude or ancestors[name].description.classes != classes:
                raise SpecError(
                    f"train.method.versions: {names[0]} and {name} must have the classes of this task and the same"
                    " train.method.amplitude; leave one of them out"
                )
            descriptions[name] = described
        return cls(stored={name: ancestors[name] for name in names}, descriptions=descriptions)

    def version(self, name: str) -> Predecessor:
        """Return one of them, opened."""
        return self.stored[name].whole()

    def network(self, name: str) -> Linearised:
        """Return its network."""
        network = self.version(name).network
        assert isinstance(network, Linearised)
        return network

    def outputs(self, held_out: HeldOut, *, batch_size: int) -> dict[str, Tensor]:
        """Return [N, C] float64 of each version on the scale of the targets, and of w0 under the empty name."""
        found = {}
        for name in self.stored:
            version, temperature = self.version(name), self.descriptions[name].temperature
            found[name] = held_out.logits(version, batch_size=batch_size).double() * temperature
        first = next(iter(self.stored))
        start = copy.deepcopy(self.network(first))
        start.put({name: torch.zeros_like(delta) for name, delta in start.deltas().items()})
        at_start = replace(self.version(first), network=start)
        found[""] = held_out.logits(at_start, batch_size=batch_size).double() * start.temperature
        return found


def mixed(outputs: Mapping[str, Tensor], factors: Mapping[str, float]) -> Tensor:
    """Return the outputs of a combination, [N, C], from those of `Parts.outputs`."""
    total = outputs[""].clone()
    for name, factor in factors.items():
        total += factor * (outputs[name] - outputs[""])
    return total


def error_of(outputs: Tensor, labels: Tensor) -> float:
    """Return the share of wrong answers."""
    return float((outputs.argmax(1) != labels).double().mean()) if len(labels) else 0.0


def combined(run: Run, task: Task, ancestors: Sequence[Ancestor], *, progress: Progress = silent) -> Trained:
    """Write the version that a spec with `train.method: combination` describes.

    Args:
        run: Whose spec and folder.
        task: Built.
        ancestors: The chain.
        progress: Told of the predicted error.

    Raises:
        SpecError, DataError: The versions do not combine, or the data are unsound.
    """
    spec, method, samples = run.spec, run.spec.train.method, task.samples("train")
    assert isinstance(method, Combination)
    require_sound(task, samples, retrieval=spec.evaluate.retrieval)
    stored = {ancestor.name: ancestor.stored for ancestor in ancestors if ancestor.is_ancestor}
    parts = Parts.of(list(method.versions), stored, classes=tuple(task.classes))
    chosen = tuple(ancestor for ancestor in ancestors if ancestor.name in method.versions)
    job = TrainingJob(spec=spec, run_dir=run.folder, predecessors=chosen, data=samples.digest, mirror=run.mirror)
    claim(job)
    result, notes = finished(job), list(notes_of(task))
    held_out = HeldOut.of_task(task)
    if result is None:
        begun, outputs = time.monotonic(), parts.outputs(held_out, batch_size=spec.evaluate.batch_size)
        expected = mixed(outputs, method.versions)
        predicted = error_of(expected, held_out.labels)
        progress({"stage": "combine", "predicted_error": predicted, "validation_samples": len(expected)})
        outcome = _written(run, task, parts, method, expected=expected, labels=held_out.labels, predicted=predicted)
        result = record(job, outcome, seconds=time.monotonic() - begun)
    digest, weight_notes = finish(spec, task, weights=result.weights, folder=run.model, linearised=result.linearised)
    new = run.version(run.model).whole()
    measured = error_of(held_out.logits(new, batch_size=spec.evaluate.batch_size), held_out.labels)
    notes.append(f"error on {len(held_out.labels)} validation samples: {100.0 * measured:.2f} % measured")
    return Trained(
        folder=run.model,
        digest=digest,
        result=result,
        data=samples.digest,
        notes=(*notes, *result.notes, *weight_notes),
    )


def _written(
    run: Run,
    task: Task,
    parts: Parts,
    method: Combination,
    *,
    expected: Tensor,
    labels: Tensor,
    predicted: float,
) -> dict[str, object]:
    """Write weights and files into the run's folder; returns the outcome as training has one."""
    network, names = _added(parts, method.versions)
    told = " + ".join(f"{factor:g} x {name}" for name, factor in method.versions.items())
    note = f"combination {told}: error {100.0 * predicted:.2f} % predicted on {len(labels)} validation samples"
    path = run.folder / WEIGHTS
    outcome: dict[str, object] = {"steps": 0, "validation_error": predicted, "resumed_from": None, "silent": []}
    if method.folded:
        folded = _folded(network, task)
        write_weights(path, portable(own_state(folded)))
        note += "; its weights are folded into those it was linearised at, which is another model"
        return {**outcome, "weights_sha256": sha256_file(path), "notes": [note]}
    write_weights(path, portable(own_state(network)))
    first = parts.descriptions[next(iter(method.versions))]
    files = _contributions(parts, method.versions)
    for name, content in files.items():
        write_bytes(run.folder / name, content)
    description = first.model_copy(
        update={
            "names": names,
            "temperature": temperature_of(expected, labels, first.amplitude),
            "certificate": _certificate(parts, method.versions, predicted),
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        }
    )
    linearised = description.model_dump(mode="json")
    return {**outcome, "weights_sha256": sha256_file(path), "linearised": linearised, "notes": [note]}


def _added(parts: Parts, factors: Mapping[str, float]) -> tuple[Linearised, tuple[str, ...]]:
    """Return the linearised network with the sum of the deltas, and the names of its parameters that have one."""
    first = parts.network(next(iter(factors)))
    moved = {name for version in factors for name in parts.network(version).names}
    names = tuple(name for name, _ in first.network.named_parameters() if name in moved)
    network = Linearised(copy.deepcopy(first.network), names, slope=first.slope)
    total = {name: torch.zeros_like(delta, dtype=torch.float64) for name, delta in network.deltas().items()}
    for version, factor in factors.items():
        for name, delta in parts.network(version).deltas().items():
            total[name] += factor * delta.double()
    network.put({name: delta.to(network.delta.get(name)) for name, delta in total.items()})
    return network, names


def _folded(network: Linearised, task: Task) -> nn.Module:
    """Return a network of the task with the weights w0 + delta."""
    base, deltas = network.network, network.deltas()
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if name in deltas:
                parameter.add_(deltas[name])
    with torch.random.fork_rng(devices=[]):
        fresh = task.network(task.classes)
    problem = difference(own_state(fresh), own_state(base))
    if problem:
        raise SpecError(f"task: its network is not the one that was linearised: {problem}; use the versions' own task")
    load_own(fresh, own_state(base))
    return fresh


def _certificate(parts: Parts, factors: Mapping[str, float], predicted: float) -> dict[str, object]:
    certificates = [parts.descriptions[name].certificate for name in factors]
    return {
        "solver": "combination",
        "versions": dict(factors),
        "relative_gradient": max(float(each.get("relative_gradient", 1.0)) for each in certificates),
        "start": parts.descriptions[next(iter(factors))].start_sha256,
        "predicted_error": predicted,
        "order_independent": all(bool(each.get("order_independent")) for each in certificates),
    }


def _contributions(parts: Parts, factors: Mapping[str, float]) -> dict[str, bytes]:
    """Return the sum of the contributions of all samples; nothing where a version keeps none."""
    total: dict[str, Tensor] = {}
    for name, factor in factors.items():
        described = parts.descriptions[name]
        files = {key: described.files[key] for key in (TENSORS, NAMES) if key in described.files}
        if not files:
            return {}
        own = Contributions.parse(read_beside(parts.stored[name].folder, files), where=name)
        for sample, values in zip(own.ids, factor * own.values, strict=True):
            total[sample] = total[sample] + values if sample in total else values
    ids = list(np.sort(np.asarray(list(total), dtype=np.str_)).tolist())
    return Contributions(ids=ids, values=torch.stack([total[sample] for sample in ids])).files()
