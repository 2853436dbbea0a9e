"""One loss against one predecessor on one batch: what the objective adds up. Runs in workers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graceful import spec
from graceful.chain import OldOutputs
from graceful.losses import focus
from graceful.losses.alignment import align
from graceful.losses.embedding_regression import embedding_regression
from graceful.losses.focal_distillation import kl_divergence, logit_matching
from graceful.losses.influence import influence
from graceful.losses.label_space import LabelSpace
from graceful.losses.logit_displacement import logit_displacement
from graceful.losses.reduction import accurate, weighted_mean
from graceful.models.base import Outputs


@dataclass(frozen=True, kw_only=True)
class OldVersion:
    """What the objective needs of one predecessor; `objective.needs` says which parts a spec asks for.

    Attributes:
        name: Unique among the versions.
        classes: Class names in the order of its logits.
        embedding_size: d_old.
        head: Its classifier, [B, d_old] -> [B, C_old], frozen, on the device of the objective; None where it is lost.
        correct_share: Share of the training ids whose class it knows that it gets right, in [0, 1]: over cached views,
            as training meets them, or on the clean view of a live predecessor. None only where `needs` asks not for it.
        known_share: Share of all training ids whose class it knows, in [0, 1]; only reweighting reads it.
        near_chance: Its error is far above the latest predecessor's: it pulls only where it is right.
        prototypes: [C_new, d_old] of unit length for new classes that its head does not know, NaN rows where there is
            none or none is needed. None: no prototypes at all.
    """

    name: str
    classes: tuple[str, ...]
    embedding_size: int
    head: Callable[[Tensor], Tensor] | None = None
    correct_share: float | None = None
    known_share: float = 1.0
    near_chance: bool = False
    prototypes: Tensor | None = None

    def base_weight(self, loss: spec.FocalDistillation) -> float:
        """Its alpha in a loss."""
        return focus.base_weight(loss.focus, alpha=loss.alpha, near_chance=self.near_chance)

    def silent(self, loss: spec.Loss) -> bool:
        """Whether a loss never weighs a sample of it: nothing is known, or a focus without a base never fires."""
        if not isinstance(loss, spec.FocalDistillation | spec.LogitDisplacement):
            return False
        if self.known_share == 0.0 or isinstance(loss, spec.LogitDisplacement) or focus.is_dynamic(loss.focus):
            return self.known_share == 0.0
        share = self.correct_share or 0.0
        alpha = self.base_weight(loss)
        return focus.static_mean(loss.focus, alpha=alpha, beta=loss.beta, old_correct_share=share) == 0.0


@dataclass(frozen=True, kw_only=True)
class Term:
    """One loss bound to one version.

    Attributes:
        key: `<kind>/<version>`, the name of its value in logs.
        loss: Its section of the spec.
        index: Position of the version.
        weight: Factor in the total, before the strength of the version.
        slots: [C_new] label -> output of the old classifier, -1: none.
        prototypes: [U, d_old] behind the outputs of the old head; None: none.
    """

    key: str
    loss: spec.Loss
    index: int
    weight: float
    slots: Tensor
    prototypes: Tensor | None

    @property
    def is_dynamic(self) -> bool:
        """Whether its focus follows the new model."""
        return isinstance(self.loss, spec.FocalDistillation) and focus.is_dynamic(self.loss.focus)


class Pair:
    """One batch of the new version beside one old version; what several losses share is computed once.

    Args:
        version: The old version.
        space: Classes that both know.
        outputs: Of the new version, fp32 at least.
        labels: [B] new labels.
        old: None where no loss reads old outputs; then everything counts as present.
    """

    def __init__(
        self, version: OldVersion, *, space: LabelSpace, outputs: Outputs, labels: Tensor, old: OldOutputs | None
    ) -> None:
        self.version, self.space, self.outputs, self.labels = version, space, outputs, labels
        self.present = torch.ones_like(labels, dtype=torch.bool) if old is None else old.present
        self._old = old

    def _known(self, name: str) -> Tensor:
        """Old values [B, n], zeros where nothing is known about the sample, so that garbage reaches no gradient."""
        if self._old is None:
            raise ValueError(f"the losses read {name} of {self.version.name}, but no old outputs were given")
        values: Tensor = getattr(self._old, name)
        return torch.where(self.present.unsqueeze(1), accurate(values), 0.0)

    @functools.cached_property
    def participates(self) -> Tensor:
        """[B] bool: something is known about the sample, and the old version knows its class."""
        return self.present & (self.space.old_labels(self.labels) >= 0)

    @functools.cached_property
    def _all_old_logits(self) -> Tensor:
        return self._known("logits")

    @functools.cached_property
    def old_embedding(self) -> Tensor:
        """[B, d_old]"""
        return self._known("embedding")

    @functools.cached_property
    def old_logits(self) -> Tensor:
        """[B, S] in the shared space."""
        return self.space.old(self._all_old_logits)

    @functools.cached_property
    def new_logits(self) -> Tensor:
        """[B, S] in the shared space."""
        return self.space.new(self.outputs.logits)

    @functools.cached_property
    def old_correct(self) -> Tensor:
        """[B] bool over all classes of the old version; False where it does not know the sample or its class."""
        return self.participates & (self._all_old_logits.argmax(-1) == self.space.old_labels(self.labels))

    @functools.cached_property
    def new_correct(self) -> Tensor:
        """[B] bool over all classes of the new version."""
        return self.outputs.logits.detach().argmax(-1) == self.labels

    def raw_weights(self, loss: spec.FocalDistillation) -> Tensor:
        """[B] focus weights before normalisation; near chance and with a focus, 0 where the version is wrong."""
        weights = focus.raw_weights(
            loss.focus,
            alpha=self.version.base_weight(loss),
            beta=loss.beta,
            old_correct=self.old_correct,
            new_correct=self.new_correct,
        )
        return weights * self.old_correct if self.version.near_chance and loss.focus != "all" else weights


def value(term: Term, pair: Pair, *, mean: Tensor | None) -> Tensor:
    """Compute `mean_i(F_i D_i)` of one term, before its weight.

    Args:
        term: The loss.
        pair: The batch beside the term's version.
        mean: Running mean of a dynamic focus; None: the focus is static, or there is none.
    """
    match term.loss:
        case spec.FocalDistillation():
            return _distillation(term.loss, pair, mean=mean)
        case spec.LogitDisplacement():
            return _displacement(term.loss, pair)
        case spec.EmbeddingRegression() as loss:
            distances = embedding_regression(pair.outputs.embedding, pair.old_embedding, distance=loss.distance)
            return weighted_mean(distances, participates=pair.present)
        case spec.Influence() as loss:
            aligned = align(pair.outputs.embedding, size=pair.version.embedding_size)
            slots = term.slots[pair.labels]
            distances = influence(aligned, slots, head=pair.version.head, prototypes=term.prototypes, scale=loss.scale)
            return weighted_mean(distances, participates=pair.present & (slots >= 0))
        case spec.Reweighting():
            raise ValueError("reweighting changes the task loss and is no term of its own")


def _distillation(loss: spec.FocalDistillation, pair: Pair, *, mean: Tensor | None) -> Tensor:
    if loss.form == "kl":
        distances = kl_divergence(pair.new_logits, pair.old_logits, temperature=loss.temperature)
    else:
        distances = logit_matching(pair.new_logits, pair.old_logits)
    share = pair.version.correct_share or 0.0
    divisor: float | Tensor | None = mean
    if divisor is None:
        alpha = pair.version.base_weight(loss)
        divisor = focus.static_mean(loss.focus, alpha=alpha, beta=loss.beta, old_correct_share=share)
    weights = focus.normalise(pair.raw_weights(loss), mean=divisor)
    return weighted_mean(distances, weights=weights, participates=pair.participates)


def _displacement(loss: spec.LogitDisplacement, pair: Pair) -> Tensor:
    excluded = pair.space.shared_labels(pair.labels) if loss.exclude_label else None
    distances = logit_displacement(
        pair.new_logits,
        pair.old_logits,
        margin=loss.margin,
        power=loss.power,
        top_k=loss.top_k,
        exclude_labels=excluded,
    )
    return weighted_mean(distances, participates=pair.participates)


def old_classifier(version: OldVersion, *, known: Tensor, use_prototypes: bool) -> tuple[Tensor, Tensor | None]:
    """Put prototypes behind the outputs of the old head.

    Args:
        version: The old version; its prototypes are read only for classes that its head does not know.
        known: [C_new] label map, on the CPU.
        use_prototypes: Whether the spec wants them.

    Returns:
        [C_new] label -> output, -1: none; prototypes [U, d_old] on the CPU, or None.

    Raises:
        ValueError: The head is not frozen, nothing can classify, or prototypes are missing or have another shape.
    """
    if isinstance(version.head, nn.Module) and any(one.requires_grad for one in version.head.parameters()):
        raise ValueError(f"the head of {version.name} must be frozen; call chain.freeze on its network first")
    slots = known.clone() if version.head is not None else torch.full_like(known, -1)
    unseen = int((slots < 0).sum())
    if version.head is None and not use_prototypes:
        raise ValueError(f"{version.name} has no head; influence needs the head or prototypes")
    if not use_prototypes or (version.prototypes is None and not unseen):
        return slots, None
    if version.prototypes is None:
        raise ValueError(
            f"{version.name} does not know {unseen} classes and has no prototypes for them; "
            "give OldVersion.prototypes or set influence.prototypes to false"
        )
    expected = (len(slots), version.embedding_size)
    if version.prototypes.shape != expected:
        found = tuple(version.prototypes.shape)
        raise ValueError(f"prototypes of {version.name} must have shape {expected}, got {found}")
    rows = version.prototypes.detach().cpu().float()
    chosen = (slots < 0) & rows.isfinite().all(1)
    first = len(version.classes) if version.head is not None else 0
    slots[chosen] = first + torch.arange(int(chosen.sum()))
    return slots, rows[chosen]
