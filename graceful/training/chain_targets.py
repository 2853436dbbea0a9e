"""Targets of a linearised version: labels, and the chain of its predecessors as a change of them. Runs in workers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from graceful import targets
from graceful.chain import OldOutputs, label_map
from graceful.chain.ancestor import Ancestor
from graceful.losses.base import Loss
from graceful.losses.ops import focus
from graceful.lqf.targets import Pull, label_targets, relabelled, scaled
from graceful.training.batches import Materials
from graceful.training.fixed_batches import FixedBatches
from graceful.training.job import TrainingJob
from graceful.training.versions import Opened


@dataclass(frozen=True, kw_only=True)
class ChainTargets:
    """What is fitted, for all training samples in the order of the fixed batches; float64.

    Attributes:
        labels: [N] of the new version.
        of_labels: [N, C] targets of the labels alone.
        targets: [N, C] of labels and predecessors.
        weights: [N, C].
        silent: `<loss>/<version>` of what never weighed a sample.
        base: [N] weights of the labels alone.
        pulls: The pulls of predecessors, the latest first; empty for some of the samples.
    """

    labels: Tensor
    of_labels: Tensor
    targets: Tensor
    weights: Tensor
    silent: tuple[str, ...]
    base: Tensor
    pulls: tuple[Pull, ...] = ()

    def take(self, rows: Tensor) -> ChainTargets:
        """Return the targets of some samples."""
        names = ("labels", "of_labels", "targets", "weights", "base")
        return replace(self, **{name: getattr(self, name)[rows] for name in names}, pulls=())

    def times(self, factor: float) -> ChainTargets:
        """Return the targets where all predecessors pull so much more strongly."""
        pulls = tuple(replace(pull, strength=factor * pull.strength) for pull in self.pulls)
        aims, weights = relabelled(self.of_labels, self.base, pulls)
        return replace(self, targets=aims, weights=weights, pulls=pulls)

    def drift(self, outputs: Tensor) -> float:
        """Return the root mean squared distance of outputs [N, C] from those of the latest predecessor."""
        latest = self.pulls[0]
        known = torch.ones_like(latest.strength, dtype=torch.bool) if latest.known is None else latest.known
        counts = known.any(1).sum().clamp(min=1)
        squares = torch.where(known, outputs - latest.outputs, 0.0).square().sum()
        return float((squares / counts).sqrt())


def chain_targets(
    job: TrainingJob, materials: Materials, batches: FixedBatches, *, amplitude: float, strengths: dict[str, float]
) -> ChainTargets:
    """Return targets and weights of all training samples.

    Args:
        job: Its losses say how strongly predecessors pull.
        materials: Data and predecessors.
        batches: All of them.
        amplitude: Target of the right class.
        strengths: The strengths of predecessors, by name.
    """
    rows, device = batches.rows, materials.device
    labels = torch.from_numpy(np.asarray(materials.train.labels[rows])).to(device)
    classes = len(materials.task.classes)
    own = label_targets(labels, classes=classes, amplitude=amplitude)
    weights = torch.ones(len(rows), dtype=torch.float64, device=device)
    if materials.weights is not None:
        weights = materials.weights.of(rows, materials.train.labels[rows]).double().to(device)
    pulls, silent = [], []
    for opened, ancestor in zip(materials.chain, job.predecessors, strict=True):
        old = _outputs(opened, batches)
        for loss in job.compatibility.losses:
            pull = _pull(
                loss,
                opened,
                ancestor,
                old=old,
                labels=labels,
                classes=materials.task.classes,
                amplitude=amplitude,
            )
            pull = replace(pull, strength=strengths[opened.version.name] * loss.weight * pull.strength)
            if not bool(pull.strength.any()):
                silent.append(f"{loss.kind}/{opened.version.name}")
            pulls.append(pull)
    aims, total = relabelled(own, weights, pulls)
    return ChainTargets(
        labels=labels,
        of_labels=own,
        targets=aims,
        weights=total,
        silent=tuple(silent),
        base=weights,
        pulls=tuple(pulls),
    )


def _outputs(opened: Opened, batches: FixedBatches) -> OldOutputs:
    """Return a predecessor's outputs of all samples on their clean view, in order of the batches."""
    live = isinstance(opened.source, targets.Live)
    parts = [
        opened.source.fetch(positions, batches.samples.read(positions) if live else None, None, 0)
        for positions in batches.positions
    ]
    logits, embeddings, present = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("logits", "embedding", "present")
    )
    return OldOutputs(logits, embeddings, present)


@dataclass(frozen=True, kw_only=True)
class _Right:
    """Where a predecessor is right: what the weights of samples depend on."""

    old_correct: Tensor
    near_chance: bool

    @property
    def new_correct(self) -> Tensor:
        raise AssertionError("a focus on the new version is not quadratic, and was refused")


def _pull(
    loss: Loss,
    opened: Opened,
    ancestor: Ancestor,
    *,
    old: OldOutputs,
    labels: Tensor,
    classes: tuple[str, ...],
    amplitude: float,
) -> Pull:
    """Return what one loss against one predecessor adds, before its weight; the samples that count have a mean focus of
    1."""
    version, known = opened.version, label_map(classes, opened.version.classes).to(labels.device)
    columns = (known >= 0).nonzero().flatten()
    counts = old.present & (known[labels] >= 0)
    logits = torch.where(counts[:, None], old.logits.double(), 0.0)
    right = _Right(old_correct=counts & (logits.argmax(1) == known[labels]), near_chance=version.near_chance)
    weights = loss.sample_weights(right)
    if weights is not None:
        mean = loss.mean_weight(correct_share=version.correct_share or 0.0, near_chance=version.near_chance)
        weights = focus.normalise(weights, mean=mean).double()
    factor = counts.double() if weights is None else weights * counts
    shared_logits = logits[:, known[columns]]
    described = ancestor.stored.description.linearised
    if described is not None:
        on_scale = shared_logits * (described.temperature * amplitude / described.amplitude)
    else:
        truth = torch.nn.functional.one_hot(labels, len(classes)).double()[:, columns]
        on_scale = scaled(shared_logits, truth, rows=counts, amplitude=amplitude)
    outputs = torch.zeros(len(labels), len(classes), dtype=torch.float64, device=labels.device)
    strength = torch.zeros_like(outputs)
    outputs[:, columns], strength[:, columns] = on_scale, factor[:, None].expand(-1, len(columns))
    known = counts[:, None] & torch.isin(torch.arange(len(classes), device=labels.device), columns)
    return Pull(outputs=outputs, strength=strength, known=known)
