"""What a training step reads: batch, labels, outputs of predecessors; prepared ahead. Runs in workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graceful import targets
from graceful.chain import OldOutputs
from graceful.chain.merging import Merged
from graceful.errors import DataError, IntegrityError, SpecError
from graceful.learners import Batch, Learner, learner_of, run
from graceful.learners.batch import described, finite_rows, to_device
from graceful.losses.base import OUTPUTS
from graceful.models import bases
from graceful.models.base import CODE_FAULTS, Outputs, answers
from graceful.tasks import view_numbers
from graceful.tasks.base import Samples, Task
from graceful.training.job import TrainingJob
from graceful.training.merging import Group, unmerged
from graceful.training.objective import OldVersion, needs
from graceful.training.prefetch import AHEAD, PIECE, Transfer, ahead
from graceful.training.sampler import Order
from graceful.training.stream_reader import StreamReader, StreamRows
from graceful.training.versions import MergedTerm, Opened, grouped, merged_term, old_side, opened
from graceful.training.weights import SampleWeights, sample_weights

_NO_IDS = np.zeros(0, dtype=np.str_)


class Slice(NamedTuple):
    """One rank's part of one slice of a batch, on the rank's device."""

    positions: NDArray[np.int64]
    batch: Batch
    labels: Tensor
    old: tuple[OldOutputs | None, ...]
    reference: OldOutputs | None
    merged: Mapping[str, Merged]
    weights: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Materials:
    """Everything a run reads.

    Attributes:
        task: Model and data.
        learner: Makes batches and outputs.
        train: The training split.
        validation: The split that tells how training goes.
        chain: The predecessors: what the objective must know of each, and where its outputs come from.
        merged: Terms that are merged, and their targets; `remix` before the first slice.
        reference: Mean of the reference runs, or the teacher of a blend.
        views: Epochs cycle through so many views; None: every epoch has its own.
        seed: The seed of the views.
        weights: What each sample counts in the task's loss; None: all the same.
        stream: Reads the training rows where they are a stream; None: `train` has all of them.
        device: Where slices go.
    """

    task: Task
    learner: Learner
    train: Samples
    validation: Samples
    chain: tuple[Opened, ...]
    merged: tuple[MergedTerm, ...]
    reference: targets.Source | None
    views: int | None
    seed: int
    device: torch.device
    weights: SampleWeights | None = None
    stream: StreamReader | None = None

    @property
    def versions(self) -> tuple[OldVersion, ...]:
        """Return what the objective must know of each predecessor."""
        return tuple(opened_version.version for opened_version in self.chain)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Return which terms are merged."""
        return tuple(term.group for term in self.merged)

    def slice(self, positions: NDArray[np.int64], *, epoch: int) -> Slice:
        """Read and transform some training samples as they look in an epoch."""
        index = epoch % self.views if self.views else epoch
        ids, labels, items = self._rows(positions, epoch=epoch)
        views = view_numbers(ids, self.seed, index) if self.task.augments else None
        reference = self.reference.fetch(positions, items, views, index) if self.reference else None
        weights = self.weights
        return Slice(
            positions=positions,
            batch=to_device(self.learner.collate(items, views), self.device),
            labels=torch.from_numpy(labels).to(self.device),
            old=tuple(
                predecessor.outputs.fetch(positions, items, views, index) if predecessor.read else None
                for predecessor in self.chain
            ),
            reference=reference,
            merged={term.group.key: term.mixture.fetch(positions, views, index) for term in self.merged},
            weights=None if weights is None else weights.of(positions, labels).to(self.device),
        )

    def again(self, positions: NDArray[np.int64], *, epoch: int) -> Slice | None:
        """Return training samples that were read some steps ago; None: a stream is past them."""
        return None if self.stream is not None else self.slice(positions, epoch=epoch)

    def name(self, position: int, *, epoch: int) -> str:
        """Return the id of a training sample that was read a short while ago."""
        return str(self.train.ids[position]) if self.stream is None else self.stream.name(position, epoch=epoch)

    def _rows(self, positions: NDArray[np.int64], *, epoch: int) -> StreamRows:
        if self.stream is not None:
            return self.stream.read(positions, epoch=epoch)
        ids = self.train.ids[positions] if self.task.augments else _NO_IDS
        return StreamRows(ids, self.train.labels[positions], self.train.read(positions))

    def remix(self, strengths: Mapping[str, float]) -> None:
        """Mix the targets of all groups with the strengths of the versions; between epochs, not within one."""
        for term in self.merged:
            term.mixture.remix(strengths)

    def conflicts(self) -> dict[str, float]:
        """Return how much the predecessors of each group disagree on average, in units of its loss."""
        return {term.group.key: term.mixture.conflict for term in self.merged}

    def slices(self, order: Order, *, epoch: int) -> Iterator[list[Slice]]:
        """Yield the slices of each step; the next ones are prepared in a thread meanwhile."""
        transfer = Transfer(self.device)

        def prepare(index: int) -> tuple[Slice, torch.cuda.Event | None]:
            return transfer.sent(lambda: self.slice(order[index], epoch=epoch))

        step_slices: list[Slice] = []
        most = PIECE if self.stream is None else 1  # of a stream few batches are kept
        for prepared in ahead(prepare, len(order), depth=AHEAD, most=most):
            step_slices.append(transfer.arrived(*prepared))
            if len(step_slices) == order.accumulation:
                yield step_slices
                step_slices = []


def gather(job: TrainingJob, task: Task, *, device: torch.device) -> Materials:
    """Open the data, the predecessors and their outputs.

    Raises:
        DataError, IntegrityError, SpecError: Something does not fit or is damaged.
    """
    train, compatibility = task.samples("train"), job.compatibility
    if job.data not in (None, train.digest):
        raise DataError(
            f"{job.run_dir}: the training data are not those this run began with (SHA-256 {train.digest[:12]}..., then"
            f" {str(job.data)[:12]}...); restore them, or give the version another name"
        )
    base = None if job.base is None else bases.digest_of(job.spec.task)
    if base != job.base:
        raise IntegrityError(
            f"task.network.checkpoint: its weights have SHA-256 {str(base)[:12]}... here, {str(job.base)[:12]}... where"
            " the run was started; give all machines the same checkpoint"
        )
    needed = needs(compatibility)
    ancestors = job.predecessors if compatibility.sees_predecessors else ()
    chain = [opened(ancestor, task=task, train=train, wanted=needed, device=device) for ancestor in ancestors]
    groups = grouped(compatibility, task.classes, chain)
    read_indices = unmerged(compatibility, groups, len(chain)) if needed & OUTPUTS else frozenset()
    references = [targets.Cache.open(folder).aligned(train.ids, device=device) for folder in job.references]
    cached = any(ancestor.cache for ancestor in ancestors) or bool(references)
    keyed = cached and targets.plan_views(compatibility.targets, augments=task.augments) == "keyed"
    return Materials(
        task=task,
        learner=learner_of(task),
        train=train,
        validation=task.samples("validation"),
        chain=tuple(replace(predecessor, read=index in read_indices) for index, predecessor in enumerate(chain)),
        merged=tuple(merged_term(group, chain, classes=task.classes, train=train, device=device) for group in groups),
        reference=_reference(job, references, chain, classes=task.classes, device=device),
        views=compatibility.targets.views if keyed else None,
        seed=job.effective_seed,
        device=device,
        weights=sample_weights(train, job.spec.train.class_weights),
        stream=_stream_reader(train, batch_size=job.spec.train.batch_size),
    )


def _reference(
    job: TrainingJob,
    references: Sequence[targets.Cache],
    chain: Sequence[Opened],
    *,
    classes: Sequence[str],
    device: torch.device,
) -> targets.Source | None:
    """Return what the second target of a step is: the teacher of a blend, the mean of the reference runs, or
    nothing."""
    if job.compatibility.blend is not None and job.shares is not None and references:
        blend, scratch = job.compatibility.blend, references[0].folder.parent
        old = [old_side(predecessor, classes=classes) for predecessor in chain]
        return targets.Teacher(
            references, old, shares=job.shares, temperature=blend.temperature, device=device, scratch=scratch
        )
    return targets.Mean(sources=tuple(references)) if references and job.compatibility.reference else None


def _stream_reader(train: Samples, *, batch_size: int) -> StreamReader | None:
    if train.stream is None:
        return None
    return StreamReader(train.stream, batch_size=batch_size, steps_per_epoch=train.training_rows // batch_size)


def try_out(task: Task, network: nn.Module, samples: Samples) -> None:
    """Run an untrained network on one sample, so that one that does not fit is refused before it is trained.

    Raises:
        SpecError: It does not take what the transform gives, or does not give an embedding and a logit for each class.
    """
    learner = learner_of(task)
    batch = learner.collate(samples.read(np.zeros(1, dtype=np.int64)), None)
    given = described(batch)
    network.eval()
    try:
        with torch.no_grad():
            outputs = run(learner, network, batch)
    except CODE_FAULTS as e:
        reason = " ".join(str(e).split()) or type(e).__name__
        raise SpecError(f"task: the network fails on {given}: {reason}; correct network() or transform()") from e
    require_outputs(outputs, rows=1, classes=len(task.classes), given=given)


def require_outputs(outputs: Outputs, *, rows: int, classes: int, given: str) -> None:
    """Refuse outputs of another shape than graceful needs.

    Args:
        outputs: The outputs of a network.
        rows: Samples that it was given.
        classes: The classes of its version.
        given: The samples, for the message.

    Raises:
        SpecError: They are not [rows, d] and [rows, classes], or the mask is not [rows] bool.
    """
    for name, value in outputs._asdict().items():
        if not isinstance(value, Tensor) and not (name == "mask" and value is None):
            raise SpecError(
                f"task: the network makes a {type(value).__name__} as {name} of {given}; must be one tensor"
            )
    expected, shape = [rows, classes], list(outputs.logits.shape)
    if shape != expected or outputs.embedding.shape[:-1] != (rows,):
        raise SpecError(
            f"task: the network makes an embedding {list(outputs.embedding.shape)} and logits {shape} of {given};"
            f" must be [{rows}, d] and {expected}, one logit for each class"
        )
    mask = outputs.mask
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (rows,)):
        raise SpecError(
            f"task: the network makes a mask {list(mask.shape)} {str(mask.dtype).removeprefix('torch.')} of {given};"
            f" must be [{rows}] bool, True where the sample counts"
        )


def first_not_finite(batch_slice: Slice) -> int:
    """Return the position of the first sample of a slice whose input holds NaN or infinity; -1 where there is none."""
    bad = (~finite_rows(batch_slice.batch)).nonzero().flatten().tolist()
    return int(batch_slice.positions[bad[0]]) if bad else -1


def evaluate(
    task: Task, samples: Samples, batches: Sequence[NDArray[np.int64]], *, forward: Any, device: torch.device
) -> tuple[int, int]:
    """Count right answers on the clean view; a sample whose logits are not finite is wrong.

    Args:
        task: For its learner.
        samples: The split.
        batches: Positions; an empty batch still runs a forward pass, see `sampler.shard`.
        forward: Batch -> Outputs.
        device: Where batches go.

    Returns:
        Right answers and samples, of this rank.
    """
    right = total = 0
    for _, hits in answered(task, samples, batches, forward=forward, device=device):
        right += int(hits.sum())
        total += len(hits)
    return right, total


def answered(
    task: Task, samples: Samples, batches: Sequence[NDArray[np.int64]], *, forward: Any, device: torch.device
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Yield positions and whether each is right, bool on the CPU, batch by batch; arguments as of `evaluate`."""
    learner = learner_of(task)
    for positions in batches:
        read_positions = positions if len(positions) else np.zeros(1, dtype=np.int64)
        logits = answers(forward(to_device(learner.collate(samples.read(read_positions), None), device))).logits
        hits = (logits.argmax(1).cpu() == torch.from_numpy(samples.labels[read_positions])) & logits.isfinite().all(
            1
        ).cpu()
        yield positions, hits[: len(positions)]
