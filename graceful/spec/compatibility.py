"""What the new version owes its predecessors while it trains: losses, reference, targets. Runs in every process."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from graceful.spec.base import Count, Positive, Section, Weight

Focus = Literal["all", "old_correct", "new_incorrect", "negative_flip"]


class FocalDistillation(Section):
    """Match the old model's outputs, most of all where it was right (positive-congruent training)."""

    kind: Literal["focal_distillation"] = "focal_distillation"
    form: Literal["kl", "lm"] = "kl"
    """kl: tempered divergence times temperature squared; lm: centred squared logit distance, its limit."""
    weight: Weight = 0.3
    """Factor of this loss beside the task's."""
    temperature: Annotated[float, Field(gt=0.0, le=1000.0)] = 100.0
    """Below 20 only with `allow_low_temperature`."""
    allow_low_temperature: bool = False
    """Permit temperatures that have made training collapse."""
    alpha: Annotated[float, Field(ge=0.0)] = 1.0
    """Base weight of every sample."""
    beta: Annotated[float, Field(ge=0.0)] = 5.0
    """Additional weight of the samples in focus; at most 10 x alpha."""
    focus: Focus = "old_correct"
    """`all` is plain (uniform) distillation."""

    @model_validator(mode="after")
    def _stable(self) -> FocalDistillation:
        if self.alpha <= 0.0:
            raise ValueError("alpha must be above 0: with focus alone, training from scratch collapses; write 1")
        if self.beta > 10.0 * self.alpha:
            raise ValueError(f"beta must be at most 10 x alpha = {10 * self.alpha:g}, got {self.beta:g}; write 5")
        if self.form == "kl" and self.temperature < 20.0 and not self.allow_low_temperature:
            raise ValueError(
                f"temperature must be at least 20, got {self.temperature:g};"
                " write 100, or add allow_low_temperature: true"
            )
        return self


class LogitDisplacement(Section):
    """Penalise logits that move further than a margin from the old model's (LDI)."""

    kind: Literal["logit_displacement"] = "logit_displacement"
    weight: Weight = 1.0
    """Factor of this loss beside the task's."""
    margin: Annotated[float, Field(ge=0.0)] = 0.5
    """Displacement that costs nothing."""
    power: Annotated[float, Field(ge=1.0, le=4.0)] = 2.0
    """Exponent of what exceeds the margin."""
    top_k: Count | None = None
    """Only the k largest old logits of each sample; None: all classes."""
    exclude_label: bool = False
    """Leave the true class free to move."""


class Influence(Section):
    """Classify new embeddings with the frozen old head (backward-compatible training)."""

    kind: Literal["influence"] = "influence"
    weight: Weight = 1.0
    """Factor of this loss beside the task's."""
    prototypes: bool = True
    """Synthesise old prototypes for classes the old head does not know."""
    scale: Positive = 16.0
    """Scale of the prototypes' cosine logits."""


class EmbeddingRegression(Section):
    """Pull new embeddings to the old ones, sample by sample."""

    kind: Literal["embedding_regression"] = "embedding_regression"
    weight: Weight = 5.0
    """Factor of this loss beside the task's."""
    distance: Literal["cosine", "l2"] = "cosine"
    """cosine: direction only; l2: squared distance."""


class Reweighting(Section):
    """Naive baseline: up-weight the samples the old model got right. Not reliable; kept for comparison."""

    kind: Literal["reweighting"] = "reweighting"
    weight: Weight = 1.0
    """Factor of this loss beside the task's."""


Loss = Annotated[
    FocalDistillation | LogitDisplacement | Influence | EmbeddingRegression | Reweighting, Field(discriminator="kind")
]


class Reference(Section):
    """Also distil from unconstrained runs of the same recipe: they pay the accuracy the old model costs."""

    runs: Annotated[int, Field(ge=1, le=16)] = 1
    """Unconstrained runs with other seeds; their mean logits are the second target."""
    weight: Weight = 1.0
    """Factor of this loss beside the task's."""
    temperature: Annotated[float, Field(gt=0.0, le=1000.0)] = 2.0
    """Softens both outputs before they are compared."""


TOP_TEMPERATURE = 10.0
"""Above it distillation reads all logits alike: with the top 32 of 1,000 64 % of its gradient at 100 was wrong."""


class Targets(Section):
    """How predecessors' outputs on the training data are had."""

    mode: Literal["auto", "clean", "keyed", "live"] = "auto"
    """clean: one un-augmented view, cached; keyed: `views` seeded views, cached; live: the old model runs in every
    step; auto: clean without augmentation, keyed with it."""
    views: Annotated[int, Field(ge=1, le=64)] = 4
    """Distinct augmented views per sample in keyed mode; epochs cycle through them."""
    top: Annotated[int, Field(ge=2)] | None = None
    """Keep only so many of each sample's largest logits and the mean of the others, about 4 bytes each instead of 2 for
    every class; None: all. For hundreds of classes and more; distils at temperatures up to 10 only."""
    limit_gb: Positive | None = None
    """Caches under `home` may take so many GB together: the least recently used go first; None: no limit."""
    allow_stale: bool = False
    """Permit `clean` under augmentation. Loses over half of the effect."""


class Equal(Section):
    """Every predecessor pulls alike; together as strongly as one."""

    kind: Literal["equal"] = "equal"


class Decay(Section):
    """Older predecessors pull less; together as strongly as one."""

    kind: Literal["decay"] = "decay"
    factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Strength of a predecessor as a share of the next newer one's."""


class Adaptive(Section):
    """Every predecessor has a budget of negative flips, and pulls as strongly as it takes to keep it.

    The defaults were chosen on validation families of glyphs, together with three reference runs of weight 3; without
    `reference` the budgets cost more error.
    """

    kind: Literal["adaptive"] = "adaptive"
    relative: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """Budget as a share of the flips that independent errors would make, (1 - error of old) x unconstrained error."""
    growth: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    """What `relative` gains with each further release, as a share of itself; 0: the same for all."""
    bounds: dict[str, Annotated[float, Field(gt=0.0, le=1.0)]] = Field(default_factory=dict)
    """Budgets on the negative flip rate by version name, in place of the relative ones."""
    infeasible: Literal["refuse", "skip"] = "refuse"
    """What to do with a budget that no model of this error can meet: end before training, or train without it."""
    reference_error: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Error of the same recipe without constraints; None: train that run, once for all versions of a recipe."""
    start: Weight = 3.0
    """Multiplier of the nearest predecessor at the start, a factor of the losses' weights."""
    step: Positive = 1.0
    """Largest change of a multiplier in one epoch."""
    largest_total: Positive = 10.0
    """The multipliers add up to no more."""
    error_margin: Annotated[float, Field(ge=0.0)] = 0.06
    """Share by which the error may exceed the unconstrained one before all multipliers shrink."""


Weighting = Annotated[Equal | Decay | Adaptive, Field(discriminator="kind")]


class Compatibility(Section):
    """What the new version owes its predecessors while it trains."""

    against: Literal["latest", "all"] | Annotated[tuple[str, ...], Field(min_length=1)] = "latest"
    """Which predecessors the losses see (a list: these names); the evaluation always covers every ancestor."""
    losses: tuple[Loss, ...] = ()
    """Terms added to the task's loss; empty: train freely and only measure."""
    weighting: Weighting = Equal()
    """How strongly each of several predecessors pulls: a kind alone, or a section of keys; without `kind`: equal. The
    loss `reweighting` averages over all of them alike, whatever this says."""
    near_chance: Positive | None = 2.0
    """Predecessors with more than so many times the latest one's error on the constraint split pull only where they are
    right, in losses with a focus; null: everywhere."""
    reference: Reference | None = None
    """Second target that keeps accuracy; null: none."""
    targets: Targets = Targets()
    interpolation: Annotated[float, Field(ge=0.0, lt=1.0, exclude_if=lambda share: share == 0.0)] = 0.0
    """Share of the latest predecessor's weights in the finished version's, mixed in after training; for
    `train.start: latest` only. Training, budgets and the validation error know nothing of it."""

    @model_validator(mode="after")
    def _pulls(self) -> Compatibility:
        pulling = [loss for loss in self.losses if not isinstance(loss, Reweighting)]
        if self.weighting.kind == "adaptive" and not pulling:
            raise ValueError(
                "weighting: adaptive needs a loss that it can strengthen; add focal_distillation to losses"
            )
        return self

    @model_validator(mode="after")
    def _keeps_enough(self) -> Compatibility:
        top = self.targets.top
        if top is not None and self.reference is not None and self.reference.temperature > TOP_TEMPERATURE:
            raise ValueError(
                f"targets.top: {top} logits are not what reference reads at temperature {self.reference.temperature:g};"
                f" leave top out, or write reference.temperature at most {TOP_TEMPERATURE:g}"
            )
        for loss in self.losses if top is not None else ():
            flat = isinstance(loss, FocalDistillation) and (loss.form == "lm" or loss.temperature > TOP_TEMPERATURE)
            wide = isinstance(loss, LogitDisplacement) and (loss.top_k is None or loss.top_k > (top or 0))
            if flat or wide:
                remedy = f"temperature at most {TOP_TEMPERATURE:g}" if flat else f"top_k at most {top}"
                raise ValueError(
                    f"targets.top: {top} logits are not what {loss.kind} reads, which weighs all; leave top out,"
                    f" or write {remedy}"
                )
        return self


ROOM = {"targets": {"limit_gb"}}
"""How much disk may be used: does not change what comes out, so no digest covers it."""
