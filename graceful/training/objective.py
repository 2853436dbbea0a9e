"""Bind the compatibility section of a spec to losses: one batch in, one total with its parts out. Runs in workers.

    L = CE + sum over losses, versions of (weight / V) * mean_i(F_i D_i) + weight_ref * mean_i(tau^2 KL(ref || new))

V is the number of versions the losses see, so the total weight does not grow with the chain. Reweighting adds no term: it
changes the weights of CE. Everything is computed in fp32, whatever autocast or the engine use. Samples whose class a version
does not know, or about which nothing is known (`present`), have weight 0; embedding regression needs no class.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graceful import spec
from graceful.chain import OldOutputs, label_map
from graceful.errors import SpecError
from graceful.losses import focus, label_space
from graceful.losses.alignment import align
from graceful.losses.embedding_regression import embedding_regression
from graceful.losses.focal_distillation import kl_divergence, logit_matching
from graceful.losses.influence import influence, prototypes
from graceful.losses.logit_displacement import logit_displacement
from graceful.losses.reduction import accurate, weighted_mean
from graceful.losses.reference import reference_divergence
from graceful.losses.reweighting import reweighting
from graceful.models.base import Outputs

__all__ = ["Objective", "ObjectiveValue", "OldVersion", "needs", "prototypes"]


@dataclass(frozen=True, kw_only=True)
class OldVersion:
    """What the objective needs of one predecessor; `needs` says which parts a spec asks for.

    Attributes:
        name: Unique among the versions.
        classes: Class names in the order of its logits.
        embedding_size: d_old.
        head: Its classifier, [B, d_old] -> [B, C_old], frozen, on the device of the objective; None where it is lost.
        correct_share: Share of the training ids whose class it knows that it gets right on the clean view, in [0, 1].
        known_share: Share of all training ids whose class it knows, in [0, 1]; only reweighting reads it.
        prototypes: [C_new, d_old] of unit length, for new classes that its head does not know; NaN rows where there is
            none, or none is needed. None: no prototypes at all.
    """

    name: str
    classes: tuple[str, ...]
    embedding_size: int
    head: Callable[[Tensor], Tensor] | None = None
    correct_share: float = 0.0
    known_share: float = 1.0
    prototypes: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class ObjectiveValue:
    """The loss of one batch.

    Attributes:
        total: Scalar with gradient.
        parts: Detached scalars before their weights: `task`, `reference`, and `<kind>/<version>` for each term (a second
            loss of the same kind is `<kind>-2/<version>`). `total` is their sum weighted by `Objective.weights`.
        correct: int64 scalar, right predictions of the new version in the batch.
    """

    total: Tensor
    parts: dict[str, Tensor]
    correct: Tensor


def needs(compatibility: spec.Compatibility) -> frozenset[str]:
    """Which facts about predecessors the losses read.

    Returns:
        A subset of: `logits` and `embedding` (of `OldOutputs`, hence a cache or a live network), `correctness`
        (`OldVersion.correct_share`), `prototypes` and `head` (of `OldVersion`). Empty: no predecessor is asked anything.
    """
    found: set[str] = set()
    for loss in compatibility.losses:
        match loss:
            case spec.FocalDistillation():
                found |= {"logits", "correctness"} if loss.focus == "old_correct" else {"logits"}
            case spec.LogitDisplacement():
                found |= {"logits"}
            case spec.Reweighting():
                found |= {"logits", "correctness"}
            case spec.EmbeddingRegression():
                found |= {"embedding"}
            case spec.Influence():
                found |= {"head", "prototypes"} if loss.prototypes else {"head"}
    return frozenset(found)


@dataclass(frozen=True, kw_only=True)
class _Term:
    """One loss against one version."""

    key: str
    loss: spec.Loss
    index: int
    weight: float
    slots: Tensor
    rows: Tensor | None


class _Pair:
    """One batch seen beside one version; shared logits are formed once however many losses read them."""

    def __init__(
        self,
        version: OldVersion,
        space: label_space.LabelSpace,
        outputs: Outputs,
        labels: Tensor,
        old: OldOutputs | None,
    ) -> None:
        self.version, self.space, self.outputs, self.labels = version, space, outputs, labels
        self.present = torch.ones_like(labels, dtype=torch.bool) if old is None else old.present
        self._old = old

    def _rows(self, values: Tensor) -> Tensor:
        """Old values [B, n] with zeros where nothing is known, so that garbage reaches no gradient."""
        return torch.where(self.present.unsqueeze(1), accurate(values), 0.0)

    @functools.cached_property
    def old(self) -> OldOutputs:
        if self._old is None:
            raise ValueError(
                f"the losses read outputs of {self.version.name}, but none were given; see objective.needs"
            )
        return self._old

    @functools.cached_property
    def participates(self) -> Tensor:
        return self.present & (self.space.old_labels(self.labels) >= 0)

    @functools.cached_property
    def old_logits(self) -> Tensor:
        return self.space.old(self._rows(self.old.logits))

    @functools.cached_property
    def new_logits(self) -> Tensor:
        return self.space.new(self.outputs.logits)

    @functools.cached_property
    def old_correct(self) -> Tensor:
        """[B] bool over all classes of the old version; False where it does not know the class."""
        right = self.old.logits.argmax(-1) == self.space.old_labels(self.labels)
        return right & self.present

    @functools.cached_property
    def new_correct(self) -> Tensor:
        return self.outputs.logits.detach().argmax(-1) == self.labels


def _sum_over_workers(values: Tensor) -> Tensor:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(values)
    return values


class Objective:
    """The loss of a refresh. Call it on training batches only: dynamic focus updates its running means.

    Args:
        compatibility: The section of the spec.
        classes: Class names of the new version, in the order of its logits.
        versions: The predecessors that the losses see, already selected; may be empty.
        device: Where outputs, labels and old outputs will be.
        sum_over_workers: Adds a tensor up over workers; called once a batch if a focus is dynamic, and not otherwise.
            None: the default process group of torch where there is one.

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
    ) -> None:
        self._device = torch.device(device)
        self._versions = tuple(versions)
        self._reference = compatibility.reference
        self._sum_over_workers = sum_over_workers or _sum_over_workers
        self._reweighting = [loss for loss in compatibility.losses if isinstance(loss, spec.Reweighting)]
        self._needs_outputs = bool(needs(compatibility) & {"logits", "embedding"})
        maps = [label_map(classes, version.classes) for version in self._versions]
        self._spaces = [
            label_space.build(one, old_size=len(version.classes), device=self._device)
            for one, version in zip(maps, self._versions, strict=True)
        ]
        self._terms = tuple(self._bind(compatibility.losses))
        self._dynamic = [term for term in self._terms if _dynamic(term.loss)]
        self._moments = torch.zeros(len(self._dynamic), 2, device=self._device)

    @property
    def weights(self) -> dict[str, float]:
        """Factor of each part in the total: `total = sum of weights[key] * parts[key]`."""
        reference = {} if self._reference is None else {"reference": self._reference.weight}
        return {"task": 1.0, **{term.key: term.weight for term in self._terms}, **reference}

    def __call__(
        self, outputs: Outputs, labels: Tensor, old: Sequence[OldOutputs] = (), reference: Tensor | None = None
    ) -> ObjectiveValue:
        """Compute the loss of one batch; no value leaves the device.

        Args:
            outputs: Of the new version, any float dtype: embedding [B, d], logits [B, C].
            labels: [B] int64 in [0, C).
            old: One per version, in the same order; may be empty where `needs` asks neither logits nor embedding.
            reference: [B, C] mean logits of the reference runs.

        Raises:
            ValueError: `old` or `reference` is missing or has another length.
        """
        self._check(old, reference)
        with torch.autocast(self._device.type, enabled=False):
            outputs = Outputs(accurate(outputs.embedding), accurate(outputs.logits))
            each: Sequence[OldOutputs | None] = old or [None] * len(self._versions)
            pairs = [
                _Pair(version, space, outputs, labels, one)
                for version, space, one in zip(self._versions, self._spaces, each, strict=True)
            ]
            values = {"task": self._task(outputs, labels, pairs)}
            means = self._focus_means(pairs)
            for term in self._terms:
                values[term.key] = _value(term, pairs[term.index], mean=means.get(term.key))
            if self._reference is not None and reference is not None:
                values["reference"] = reference_divergence(
                    outputs.logits, reference, temperature=self._reference.temperature
                ).mean()
            factors = self.weights
            total = torch.stack([factors[key] * value for key, value in values.items()]).sum()
        correct = (outputs.logits.detach().argmax(-1) == labels).sum()
        return ObjectiveValue(total=total, parts={key: one.detach() for key, one in values.items()}, correct=correct)

    def state_dict(self) -> dict[str, Any]:
        """Running focus means, JSON-serialisable; the same on all workers."""
        rows = self._moments.tolist()
        return {"schema": 1, "focus": {term.key: row for term, row in zip(self._dynamic, rows, strict=True)}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume the running focus means.

        Raises:
            SpecError: The state belongs to other losses or versions.
        """
        found, expected = set(state.get("focus", {})), {term.key for term in self._dynamic}
        if found != expected:
            raise SpecError(
                f"compatibility: the checkpoint keeps focus means for {sorted(found)}, this spec needs {sorted(expected)}; "
                "resume with the spec of that run"
            )
        rows = [state["focus"][term.key] for term in self._dynamic]
        self._moments = torch.tensor(rows, dtype=torch.float32, device=self._device).reshape(len(rows), 2)

    def _bind(self, losses: Sequence[spec.Loss]) -> list[_Term]:
        terms = []
        seen: dict[str, int] = {}
        for loss in losses:
            if isinstance(loss, spec.Reweighting):
                continue
            seen[loss.kind] = seen.get(loss.kind, 0) + 1
            kind = loss.kind if seen[loss.kind] == 1 else f"{loss.kind}-{seen[loss.kind]}"
            for index, version in enumerate(self._versions):
                slots, rows = self._spaces[index].label_map, None
                if isinstance(loss, spec.Influence):
                    slots, rows = _old_classifier(version, slots, use_prototypes=loss.prototypes)
                terms.append(
                    _Term(
                        key=f"{kind}/{version.name}",
                        loss=loss,
                        index=index,
                        weight=loss.weight / len(self._versions),
                        slots=slots.to(self._device),
                        rows=None if rows is None else rows.to(self._device),
                    )
                )
        return terms

    def _check(self, old: Sequence[OldOutputs], reference: Tensor | None) -> None:
        allowed = {len(self._versions)} if self._needs_outputs else {len(self._versions), 0}
        if len(old) not in allowed:
            raise ValueError(f"old must have one entry for each of {len(self._versions)} versions, got {len(old)}")
        if (reference is None) != (self._reference is None):
            wanted = "are configured" if reference is None else "are not configured"
            raise ValueError(f"reference runs {wanted}, but reference is {'missing' if reference is None else 'given'}")

    def _task(self, outputs: Outputs, labels: Tensor, pairs: Sequence[_Pair]) -> Tensor:
        losses = F.cross_entropy(outputs.logits, labels, reduction="none")
        if not self._reweighting or not pairs:
            return weighted_mean(losses)
        right = torch.stack([pair.old_correct for pair in pairs]).float().mean(0)
        share = math.fsum(pair.version.correct_share * pair.version.known_share for pair in pairs) / len(pairs)
        weight = math.fsum(loss.weight for loss in self._reweighting)
        return weighted_mean(losses, weights=reweighting(right, weight=weight, mean_share=share))

    def _focus_means(self, pairs: Sequence[_Pair]) -> dict[str, Tensor]:
        """Bring the running moments up to date with this batch, one sum over workers for all of them."""
        if not self._dynamic:
            return {}
        moments = []
        for term in self._dynamic:
            pair = pairs[term.index]
            moments.append(focus.batch_moments(_raw_weights(term.loss, pair), participates=pair.participates))
        self._moments = focus.advance(self._moments, batch=self._sum_over_workers(torch.stack(moments)))
        return {term.key: mean for term, mean in zip(self._dynamic, focus.mean_of(self._moments), strict=True)}


def _dynamic(loss: spec.Loss) -> bool:
    return isinstance(loss, spec.FocalDistillation) and focus.is_dynamic(loss.focus)


def _raw_weights(loss: spec.Loss, pair: _Pair) -> Tensor:
    assert isinstance(loss, spec.FocalDistillation)
    return focus.raw_weights(
        loss.focus, alpha=loss.alpha, beta=loss.beta, old_correct=pair.old_correct, new_correct=pair.new_correct
    )


def _value(term: _Term, pair: _Pair, *, mean: Tensor | None) -> Tensor:
    """`mean_i(F_i D_i)` of one term, before its weight."""
    match term.loss:
        case spec.FocalDistillation():
            return _distillation(term.loss, pair, mean=mean)
        case spec.LogitDisplacement() as loss:
            distances = logit_displacement(
                pair.new_logits,
                pair.old_logits,
                margin=loss.margin,
                power=loss.power,
                top_k=loss.top_k,
                exclude_labels=pair.space.shared_labels(pair.labels) if loss.exclude_label else None,
            )
            return weighted_mean(distances, participates=pair.participates)
        case spec.EmbeddingRegression() as loss:
            old = pair._rows(pair.old.embedding)
            distances = embedding_regression(pair.outputs.embedding, old, distance=loss.distance)
            return weighted_mean(distances, participates=pair.present)
        case spec.Influence() as loss:
            aligned = align(pair.outputs.embedding, size=pair.version.embedding_size)
            slots = term.slots[pair.labels]
            distances = influence(aligned, slots, head=pair.version.head, prototypes=term.rows, scale=loss.scale)
            return weighted_mean(distances, participates=pair.present & (slots >= 0))
        case spec.Reweighting():
            raise ValueError("reweighting changes the task loss and is no term of its own")


def _distillation(loss: spec.FocalDistillation, pair: _Pair, *, mean: Tensor | None) -> Tensor:
    if loss.form == "kl":
        distances = kl_divergence(pair.new_logits, pair.old_logits, temperature=loss.temperature)
    else:
        distances = logit_matching(pair.new_logits, pair.old_logits)
    divisor = (
        mean
        if mean is not None
        else focus.static_mean(
            loss.focus, alpha=loss.alpha, beta=loss.beta, old_correct_share=pair.version.correct_share
        )
    )
    weights = focus.normalise(_raw_weights(loss, pair), mean=divisor)
    return weighted_mean(distances, weights=weights, participates=pair.participates)


def _old_classifier(version: OldVersion, known: Tensor, *, use_prototypes: bool) -> tuple[Tensor, Tensor | None]:
    """Label -> output of the old classifier [C_new] (-1: none), and the prototypes [U, d_old] behind the head's outputs."""
    if isinstance(version.head, nn.Module) and any(one.requires_grad for one in version.head.parameters()):
        raise ValueError(f"the head of {version.name} must be frozen; call chain.freeze on its network first")
    offset = len(version.classes) if version.head is not None else 0
    slots = known.cpu().clone() if version.head is not None else torch.full_like(known.cpu(), -1)
    unseen = slots < 0
    if not use_prototypes:
        if version.head is None:
            raise ValueError(f"{version.name} has no head; influence needs the head or prototypes")
        return slots, None
    if version.prototypes is None:
        if bool(unseen.any()):
            raise ValueError(
                f"{version.name} does not know {int(unseen.sum())} classes and has no prototypes for them; "
                "give OldVersion.prototypes or set influence.prototypes to false"
            )
        return slots, None
    if version.prototypes.shape != (len(slots), version.embedding_size):
        raise ValueError(
            f"prototypes of {version.name} must have shape {[len(slots), version.embedding_size]}, "
            f"got {list(version.prototypes.shape)}"
        )
    candidates = version.prototypes.detach().cpu().float()
    chosen = unseen & candidates.isfinite().all(1)
    slots[chosen] = offset + torch.arange(int(chosen.sum()))
    return slots, candidates[chosen]
