"""Prune the network of a spec to several capacities in one training, and write each as spec and weights. Driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from graceful import tasks
from graceful.architectures import channels, costs
from graceful.architectures.held_out import SupernetTask, sides_of, some
from graceful.architectures.measuring import Evaluator, images_of, some_batches
from graceful.architectures.nested import NestedNet
from graceful.architectures.space import path_of
from graceful.chain.ancestor import Ancestor
from graceful.errors import SpecError, TrainingError
from graceful.models.staged import StagedNet
from graceful.models.weights import load_own, own_state, portable
from graceful.programs.architectures import training
from graceful.programs.architectures.bench import Bench
from graceful.programs.architectures.budgets import measured_latency
from graceful.programs.architectures.program import IDENTITY, RESULT, opened, spec_text
from graceful.programs.fitting.readiness import require_ready
from graceful.programs.fitting.train import prepared
from graceful.programs.outputs.model_outputs import run_on_split
from graceful.programs.runs.run import Progress, Run, silent
from graceful.spec import RefreshSpec
from graceful.spec.architectures import Architectures, Pruning, percent, require_searchable
from graceful.spec.methods import Pruned
from graceful.spec.stages import StagedNetwork
from graceful.storage import sha256_file, write_json, write_text
from graceful.tasks.base import Task
from graceful.training.driver import train as run_training
from graceful.training.job import NOT_MIRRORED, Together, write_weights

WHOLE, NESTED = "whole", "nested"
"""Folders of the two trainings."""
State = dict[str, Tensor]


def prune(run: Run, *, progress: Progress = silent) -> dict[str, Any]:
    """Train the whole network, order its channels, train all capacities together, write each as spec and weights.

    An interrupted call continues.

    Args:
        run: See `program.run_of`.
        progress: Called with rows of progress.

    Returns:
        The result as JSON values: `front`, a row for each capacity, the whole network last, and files.

    Raises:
        SpecError: There is no such gallery model, or the fewest channels are more than a capacity.
        DataError: Too few samples.
        TrainingError: It did not train.
    """
    with opened(run) as ancestors:
        return conclude(run, ancestors=ancestors, progress=progress)


def conclude(run: Run, *, ancestors: Sequence[Ancestor], progress: Progress = silent) -> dict[str, Any]:
    """Do what `prune` does, with ancestors that are known; the gallery model is one of them."""
    bench = Bench.of(run, ancestors)
    require_capacities(_pruning(bench.section), bench.network, bench.input_shape)
    progress({"stage": "prune", "capacities": list(_pruning(bench.section).capacities), "gallery": bench.gallery.name})
    whole_spec = training.alone(run.spec)
    if not (run.folder / IDENTITY).exists():
        require_ready(whole_spec, bench.task, run_dir=run.folder)
        write_json(run.folder / IDENTITY, {"digest": training.digest(run.spec)})
    nesting = _ordered(bench, _trained(bench, whole_spec, bench.task, folder=WHOLE, progress=progress))
    epochs = bench.section.epochs or run.spec.train.epochs
    together = training.alone(run.spec, start="random", epochs=epochs)
    nested_task = SupernetTask(bench.task, nesting.network, held_out=())
    state = _trained(bench, together, nested_task, folder=NESTED, progress=progress)
    network = nesting.network(len(bench.task.classes))
    load_own(network, state)
    document = _written(bench, network)
    write_json(run.folder / RESULT, document)
    run.mirror.save(run.folder, exclude=NOT_MIRRORED)
    return document


@dataclass(frozen=True, kw_only=True)
class Nesting:
    """The whole network, its channels in order, and the widths of its capacities.

    Attributes:
        task: Makes the whole network.
        state: Of it.
        capacities: Itself, then the narrower ones.
    """

    task: Task
    state: State
    capacities: tuple[StagedNetwork, ...]

    def network(self, classes: int) -> NestedNet:
        """Return the network that all capacities are trained in."""
        assert classes == len(self.task.classes)
        whole = cast(StagedNet, self.task.network(self.task.classes))
        load_own(whole, self.state)
        return NestedNet(whole, self.capacities)


def require_capacities(section: Pruning, network: StagedNetwork, input_shape: tuple[int, int, int]) -> None:
    """Refuse a capacity that the fewest channels exceed.

    Raises:
        SpecError: The capacity, and what they cost.
    """
    whole = costs.of(network, input_shape).macs
    for capacity in section.capacities:
        widths = channels.fewest(network, capacity)
        least = costs.of(channels.narrowed(network, widths), input_shape).macs
        if least > capacity * whole:
            raise SpecError(
                f"architectures.pruning.capacities: {capacity:g} of {whole:,} multiply-accumulates is"
                f" {capacity * whole:,.0f}, but the fewest channels, {', '.join(map(str, widths))}, cost {least:,};"
                f" write at least {least / whole + 0.0005:.3f}"
            )


def _pruning(section: Architectures) -> Pruning:
    assert section.pruning is not None, "the caller has asked"
    return section.pruning


def _trained(bench: Bench, spec: RefreshSpec, task: Task, *, folder: str, progress: Progress) -> State:
    """Return the weights of one of the two trainings; an interrupted one resumes, a finished one is read."""
    own = replace(bench.run, spec=spec, folder=bench.run.folder / folder)
    job, _, _ = prepared(own, task, task.samples("train"), ancestors=bench.ancestors, progress=progress)
    project = _pruning(bench.section).project
    together: Together | None = None if folder == WHOLE else ("projected" if project else "added")
    result = run_training(replace(job, task=task, together=together), progress=progress)
    state: State = load_file(result.weights)
    return state


def _ordered(bench: Bench, state: State) -> Nesting:
    """Order the channels by importance on some training samples, and choose the widths."""
    section, train = bench.section, bench.task.samples("train")
    whole = cast(StagedNet, bench.task.network(bench.task.classes))
    load_own(whole, state)
    parts = some_batches(len(train), batches=section.recalibration, batch_size=bench.run.spec.train.batch_size)
    version, size = bench.gallery.stored.whole(), bench.run.spec.evaluate.batch_size
    batches = (
        (
            images_of(bench.task, train, rows),
            torch.from_numpy(run_on_split(version, some(train, rows, what=["ordering"]), size).embeddings),
        )
        for rows in parts
    )
    values = channels.importance(whole, bench.network, batches)
    orders = channels.by_importance(values)
    channels.reorder(whole, bench.network, orders)
    widths = channels.nested_widths(
        bench.network,
        [value[order].tolist() for value, order in zip(values, orders, strict=True)],
        _pruning(section).capacities,
        input_shape=bench.input_shape,
    )
    narrow = (channels.narrowed(bench.network, each) for each in widths)
    return Nesting(task=bench.task, state=portable(own_state(whole)), capacities=(bench.network, *narrow))


def _written(bench: Bench, network: NestedNet) -> dict[str, Any]:
    """Measure each capacity, write its weights and its spec, and return the result."""
    run, section = bench.run, bench.section
    sides, train = sides_of(bench.task, (), images=section.images), bench.task.samples("train")
    evaluator = Evaluator(
        network,
        bench.task,
        train=train,
        sides=sides,
        index=bench.index(sides),
        batches=section.recalibration,
        batch_size=run.spec.train.batch_size,
    )
    rows = []
    for number, capacity in enumerate((1.0, *_pruning(section).capacities)):
        narrow, share = evaluator.recalibrated(number), percent(capacity)
        try:
            scores = evaluator.scores(narrow)
        except ValueError as e:
            raise TrainingError(
                f"architectures.pruning: capacity {capacity:g} failed ({e}); lower train.optimizer.lr"
            ) from e
        rows.append(
            {
                "capacity": capacity,
                **_facts(bench, network.capacities[number]),
                **scores,
                **_files(bench, network.capacities[number], narrow, share),
            }
        )
    return {
        "run_id": run.spec.run_id,
        "gallery": bench.gallery.name,
        "method": "pruning",
        "front": rows[::-1],
        "written": None,
        "folder": run.mirror.display_path(run.folder),
    }


def _facts(bench: Bench, network: StagedNetwork) -> dict[str, Any]:
    latency = measured_latency(network, bench.input_shape)
    measured = {"p50_ms": latency.p50_ms, "p95_ms": latency.p95_ms}
    return {"path": path_of(network), **costs.of(network, bench.input_shape).document(), **measured}


def _files(bench: Bench, section: StagedNetwork, network: nn.Module, share: int) -> dict[str, str]:
    """Write weights and spec of a capacity, and return their names."""
    run, names = bench.run, {"weights": f"weights-{share}.safetensors", "spec": f"spec-{share}.yaml"}
    path = run.folder / names["weights"]
    write_weights(path, portable(own_state(network)))
    method = Pruned(file=str(path.resolve()), sha256=sha256_file(path))
    name = f"{run.spec.name[:50]}-{share}"
    write_text(
        run.folder / names["spec"],
        spec_text(run.spec, bench.network, path_of(section), name=name, method=method),
    )
    return names


def dry_run(spec: RefreshSpec) -> dict[str, Any]:
    """Return what would be trained; trains nothing and asks no registry.

    Raises:
        SpecError: It cannot be pruned, or a capacity is too small.
    """
    section, task = require_searchable(spec), tasks.build(spec.task)
    network, shape = getattr(spec.task, "network", None), task.network(task.classes).input_shape
    assert isinstance(network, StagedNetwork)
    require_capacities(_pruning(section), network, shape)  # type: ignore[arg-type]
    cost = costs.of(network, shape)  # type: ignore[arg-type]
    sides = sides_of(task, (), images=section.images)
    return {
        "network": {**path_of(network), **cost.document()},
        "multiply-accumulates": [round(capacity * cost.macs) for capacity in (1.0, *_pruning(section).capacities)],
        "gallery": spec.gallery.version if spec.gallery else None,
        "epochs of the whole network": spec.train.epochs,
        "epochs of all capacities": section.epochs or spec.train.epochs,
        "queries": len(sides.query),
        "gallery samples": len(sides.gallery),
    }
