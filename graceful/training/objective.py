"""Bind the compatibility section of a spec to losses: one batch in, one total with its parts out. Runs in workers.

    L = CE + sum over losses, versions k of weight * s_k * mean_i(F_i D_i) + weight_ref * mean_i(tau^2 KL(ref || new))

With a blend (`spec.Blend`), one teacher takes the place of the reference, and of losses that compare outputs:

    L = scale / (1 + nu) (CE + nu * mean_i(T^2 KL(teacher || new))) + the losses against predecessors

The strengths s_k are 1 / V by default, V the number of versions the losses see, so that the total weight does not grow
with the chain. Terms of cached versions merge where they can (`merging`). A loss that adds no term changes the weights
of CE. Everything is computed in fp32, whatever autocast or the engine use. Samples whose class a
version does not know, or about which nothing is known (`present`), have weight 0; embedding regression needs no class.
Samples that the new version's own outputs leave out (`Outputs.mask`) have weight 0 in every part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from graceful import spec
from graceful.chain import OldOutputs, label_map
from graceful.chain.merging import Merged
from graceful.errors import SpecError
from graceful.learners.classifier import cross_entropy
from graceful.losses.base import Reading
from graceful.losses.ops import focus, label_space
from graceful.losses.ops.pair import OldVersion, Pair
from graceful.losses.ops.reduction import accurate, weighted_mean
from graceful.losses.ops.reference import reference_divergence
from graceful.models.base import Outputs, filled
from graceful.training.merging import Group, named_losses, unmerged
from graceful.training.terms import Term, blamed, value

__all__ = ["Objective", "ObjectiveValue", "OldVersion", "needs"]


TaskLoss = Callable[[Outputs, Any, Tensor], Tensor]
V = TypeVar("V")


@dataclass(frozen=True, kw_only=True)
class ObjectiveValue:
    """The loss of one batch.

    Attributes:
        total: Scalar with gradient.
        parts: Detached scalars before their weights: `task`, `reference` or `blend`, and `<kind>/<version>` for each
            term (a second loss of the same kind is `<kind>-2/<version>`), or `<kind>/chain` for a group of merged
            terms, whose strengths are inside and whose conflict is left out. `total` is their sum weighted by
            `Objective.weights`.
        correct: int64 scalar, right predictions of the new version in the batch; a masked sample is none.
    """

    total: Tensor
    parts: dict[str, Tensor]
    correct: Tensor


def needs(compatibility: spec.Compatibility) -> frozenset[Reading]:
    """Return which facts about predecessors the losses read.

    Returns:
        A subset of: `logits` and `embedding` (of `OldOutputs`, hence a cache or a live network), `correctness`
        (`OldVersion.correct_share`), `prototypes` and `head` (of `OldVersion`). Empty: predecessors are not asked.
    """
    blend: frozenset[Reading] = frozenset() if compatibility.blend is None else frozenset({"logits"})
    return blend | frozenset(reading for loss in compatibility.losses for reading in loss.reads)


@dataclass(frozen=True, kw_only=True)
class _Known:
    """One version and how its classes are those of the new one.

    Attributes:
        version: The version.
        labels: What `label_map` gave.
        space: What `label_space.build` made of it.
    """

    version: OldVersion
    labels: Tensor
    space: label_space.LabelSpace


class Objective:
    """The loss of a refresh. Call it on training batches only: dynamic focus updates its running means.

    Args:
        compatibility: The section of the spec.
        classes: Class names of the new version, in the order of its logits.
        versions: The predecessors that the losses see, already selected; may be empty.
        device: Where outputs, labels and old outputs will be.
        sum_over_workers: Adds a tensor up over workers; called once a batch if a focus is dynamic, and not otherwise.
            None: the default process group of torch where there is one.
        groups: Which terms are merged, see `merging.plan`; their strengths are in the merged weights.
        strengths: Factor of each version's own terms, by name; None: equal, adding up to 1.
        task_loss: Outputs, batch and labels -> the task's own loss [B]: a learner's; None: cross-entropy.
        task_weight: Factor of the task's loss; 0: labels are not learned.

    Raises:
        ValueError: A version lacks what a loss needs.
    """

    def __init__(
        self,
        compatibility: spec.Compatibility,
        classes: tuple[str, ...],
        versions: Sequence[OldVersion],
        device: torch.device | str = "cpu",
        *,
        sum_over_workers: Callable[[Tensor], Tensor] | None = None,
        groups: Sequence[Group] = (),
        strengths: Mapping[str, float] | None = None,
        task_loss: TaskLoss | None = None,
        task_weight: float = 1.0,
    ) -> None:
        self._compatibility = compatibility
        self._device = torch.device(device)
        self._versions = tuple(self._known(version, classes) for version in versions)
        self._sum_over_workers = sum_over_workers or _sum_over_workers
        self._groups = tuple((group, group.some_columns(len(classes), self._device)) for group in groups)
        self._task_loss, self._task_weight = task_loss or cross_entropy, task_weight
        count = len(self._versions)
        equal = {version.name: 1.0 / count for version in versions}
        self.strengths = equal if strengths is None else dict(strengths)
        self._reads_old = bool(unmerged(compatibility, tuple(groups), count))
        self._terms = tuple(self._bind())
        self._used = sorted({term.index for term in self._terms} | (set(range(count)) if self._reweights else set()))
        self._dynamic = tuple(term for term in self._terms if term.loss.follows_new_model)
        self._moments = torch.zeros(len(self._dynamic), 2, device=self._device)

    def _known(self, version: OldVersion, classes: tuple[str, ...]) -> _Known:
        share = version.correct_share
        if "correctness" in needs(self._compatibility) and (share is None or not 0.0 <= share <= 1.0):
            raise ValueError(f"correct_share of {version.name} must be in [0, 1], got {share}")
        labels = label_map(classes, version.classes)
        space = label_space.build(labels, old_size=len(version.classes), device=self._device)
        return _Known(version=version, labels=labels, space=space)

    @property
    def weights(self) -> dict[str, float]:
        """Return the factor of each part in the total: `total = sum of weights[key] * parts[key]`."""
        reference, blend = self._compatibility.reference, self._compatibility.blend
        extra = {} if reference is None else {"reference": reference.weight}
        task = self._task_weight
        if blend is not None:
            task *= blend.scale / (1.0 + blend.weight)
            extra = {"blend": task * blend.weight}
        names = [known.version.name for known in self._versions]
        own = {term.key: term.loss.weight * self.strengths[names[term.index]] for term in self._terms}
        return {"task": task, **own, **{group.key: group.loss.weight for group, _ in self._groups}, **extra}

    @property
    def silent(self) -> list[str]:
        """Return `<loss>/<version>` of the constraints that never weighed a sample; of dynamic focuses as far as was
        seen."""
        never_counted = [
            f"{key}/{known.version.name}"
            for key, loss in named_losses(self._compatibility.losses)
            for known in self._versions
            if loss.never_counts(known.version)
        ]
        weighed = self._by_term((self._moments[:, 0] > 0.0).tolist())
        return sorted({*never_counted, *(key for key, weighs in weighed.items() if not weighs)})

    def __call__(
        self,
        outputs: Outputs,
        labels: Tensor,
        old: Sequence[OldOutputs | None] = (),
        reference: OldOutputs | None = None,
        merged: Mapping[str, Merged] | None = None,
        *,
        batch: Any = None,
        weights: Tensor | None = None,
    ) -> ObjectiveValue:
        """Compute the loss of one batch; no value leaves the device.

        Args:
            outputs: Of the new version, any float dtype: embedding [B, d], logits [B, C]; `mask` as in `Outputs`.
            labels: [B] int64 in [0, C).
            old: One per version, in the same order, None where `merging.unmerged` says that no term reads it; may be
                empty where none is read.
            reference: Mean logits of the reference runs, or the blend's teacher, [B, C] in the new version's class
                order.
            merged: One per group, by its key.
            batch: What the outputs were made of, for the task's loss.
            weights: [B] what each sample counts in the task's loss; None: all the same.

        Raises:
            ValueError: `old`, `merged` or `reference` is missing or was not asked for.
        """
        merged = merged or {}
        self._check(old, reference, merged)
        exact = Outputs(accurate(outputs.embedding), accurate(outputs.logits), outputs.mask)
        outputs, mask = filled(exact, 0.0), outputs.mask
        losses = self._task_loss(outputs, batch, labels)
        values = self._values(losses, self._pairs(outputs, labels, old), mask=mask, weights=weights)
        for group, columns in self._groups:
            values[group.key] = group.value(outputs, merged[group.key], columns=columns)
        if self._teacher is not None and reference is not None:
            distances = reference_divergence(outputs.logits, reference.logits, temperature=self._teacher.temperature)
            present = reference.present if mask is None else reference.present & mask
            name = "reference" if self._compatibility.blend is None else "blend"
            values[name] = weighted_mean(distances, participates=present)
        total = _total(values, self.weights)
        hits = outputs.logits.detach().argmax(-1) == labels
        correct = (hits if mask is None else hits & mask).sum()
        return ObjectiveValue(
            total=total, parts={key: value.detach() for key, value in values.items()}, correct=correct
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the running focus means as JSON values; they are the same on all workers."""
        rows = self._moments.tolist()
        return {"schema": 1, "focus": self._by_term(rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume the running focus means.

        Raises:
            SpecError: The state belongs to other losses or versions.
        """
        keys, expected = set(state.get("focus", {})), {term.key for term in self._dynamic}
        if keys != expected:
            raise SpecError(
                f"compatibility: the checkpoint keeps focus means for {sorted(keys)}, this spec needs "
                f"{sorted(expected)}; resume with the spec of that run"
            )
        rows = [state["focus"][term.key] for term in self._dynamic]
        self._moments = torch.tensor(rows, dtype=torch.float32, device=self._device).reshape(len(rows), 2)

    def _bind(self) -> list[Term]:
        terms = []
        merged = {(group.loss_index, index) for group, _ in self._groups for index in group.versions}
        for position, (key, loss) in enumerate(named_losses(self._compatibility.losses)):
            if not loss.adds_term:
                continue
            for index, known in enumerate(self._versions):
                if (position, index) in merged:
                    continue
                version = known.version
                with blamed(loss, version.name):
                    constants = tuple(constant.to(self._device) for constant in loss.constants(version, known.labels))
                terms.append(Term(key=f"{key}/{version.name}", loss=loss, index=index, constants=constants))
        return terms

    @property
    def _teacher(self) -> spec.Reference | spec.Blend | None:
        """Return the section whose temperature the distance from a batch's reference outputs has."""
        return self._compatibility.blend or self._compatibility.reference

    @property
    def _reweights(self) -> bool:
        return any(not loss.adds_term for loss in self._compatibility.losses)

    def _check(
        self, old: Sequence[OldOutputs | None], reference: OldOutputs | None, merged: Mapping[str, Merged]
    ) -> None:
        allowed = {len(self._versions)} if self._reads_old else {len(self._versions), 0}
        if len(old) not in allowed:
            raise ValueError(f"old must have one entry for each of {len(self._versions)} versions, got {len(old)}")
        keys = {group.key for group, _ in self._groups}
        if set(merged) != keys:
            raise ValueError(f"merged must have one entry for each of {sorted(keys)}, got {sorted(merged)}")
        if reference is None and self._teacher is not None:
            raise ValueError("compatibility.reference or blend is set, but the batch has no reference logits")
        if reference is not None and self._teacher is None:
            raise ValueError("the batch has reference logits, but compatibility.reference or blend is not set")

    def _pairs(self, outputs: Outputs, labels: Tensor, old: Sequence[OldOutputs | None]) -> dict[int, Pair]:
        old_outputs = old or [None] * len(self._versions)
        return {
            index: Pair(known.version, space=known.space, outputs=outputs, labels=labels, old=old_outputs[index])
            for index, known in enumerate(self._versions)
            if index in self._used
        }

    def _values(
        self, losses: Tensor, pairs: Mapping[int, Pair], *, mask: Tensor | None, weights: Tensor | None
    ) -> dict[str, Tensor]:
        emphasis = self._task_weights(pairs)
        both = weights if emphasis is None or weights is None else emphasis * weights
        values = {"task": weighted_mean(losses, weights=emphasis if both is None else both, participates=mask)}
        means = self._focus_means(pairs)
        for term in self._terms:
            values[term.key] = value(term, pairs[term.index], mean=means.get(term.key))
        return values

    def _task_weights(self, pairs: Mapping[int, Pair]) -> Tensor | None:
        weighing = [loss for loss in self._compatibility.losses if not loss.adds_term]
        if not weighing or not pairs:
            return None
        emphases, means = zip(*(loss.emphasis(tuple(pairs.values())) for loss in weighing), strict=True)
        weights: Tensor = (1.0 + sum(emphases[1:], emphases[0])) / (1.0 + math.fsum(means))
        return weights

    def _focus_means(self, pairs: Mapping[int, Pair]) -> dict[str, Tensor]:
        """Bring the running moments up to date with this batch: one sum over workers for all of them."""
        moments = []
        for term in self._dynamic:
            pair = pairs[term.index]
            weights = term.loss.sample_weights(pair)
            assert weights is not None, f"{term.loss.kind} follows the new model but gives no sample weights"
            moments.append(focus.batch_moments(weights, participates=pair.participates))
        if not moments:
            return {}
        self._moments = focus.advance(self._moments, batch=self._sum_over_workers(torch.stack(moments)))
        return self._by_term(focus.mean_of(self._moments))

    def _by_term(self, rows: Iterable[V]) -> dict[str, V]:
        """Return the rows of the terms whose focus follows the new model, by the key of the term."""
        return dict(zip((term.key for term in self._dynamic), rows, strict=True))


def _total(values: Mapping[str, Tensor], factors: Mapping[str, float]) -> Tensor:
    """Return the weighted sum of the parts; of one part with factor 1 that is the part itself, to the bit."""
    if len(values) == 1 and all(factors[key] == 1.0 for key in values):
        return next(iter(values.values()))
    return torch.stack([factors[key] * value for key, value in values.items()]).sum()


def _sum_over_workers(values: Tensor) -> Tensor:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(values)
    return values
