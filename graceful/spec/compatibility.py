"""How the new version stays compatible while it trains: losses, reference runs, targets. Runs in every process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from graceful.losses import registry
from graceful.losses.base import FLAT_TEMPERATURE
from graceful.sections import Positive, Section, Weight

if TYPE_CHECKING:
    from graceful.losses.base import Loss
else:
    Loss = registry.union()


class Reference(Section):
    """Also distil from reference runs of the same recipe, which make up for the accuracy that the old model costs."""

    runs: Annotated[int, Field(ge=1, le=16)] = 1
    """Unconstrained runs with other seeds; their mean logits are the second target."""
    weight: Weight = 1.0
    """Factor of this loss beside the task's."""
    temperature: Annotated[float, Field(gt=0.0, le=1000.0)] = 2.0
    """Softens both outputs before they are compared."""


OneShare = Annotated[float, Field(ge=0.0, lt=1.0)]


class Blend(Section):
    """Distil from one teacher, a blend of reference runs and old versions: fewer negative flips at no higher error.

    The teacher q = (1 - w) softmax(z_ref / T) + w softmax(z_old / T) is built once from cached outputs, z_ref the mean
    logits of the reference runs, w the share of the old version and T the temperature. The new version's loss is
    scale / (1 + weight) x (task's loss + weight x T^2 KL(q || p)), to which `losses` are added. A class that an old
    version does not know has the probability that the reference runs give it; the old version divides the rest.
    """

    runs: Annotated[int, Field(ge=1, le=16)] = 3
    """Reference runs, trained without constraints and with other seeds; their mean logits are one side of the blend."""
    share: Literal["auto"] | OneShare | dict[str, OneShare] = "auto"
    """Share of the old versions in the teacher. auto: chosen before training from outputs on held-out samples, so that
    the teacher's largest negative flip rate is lowest while `margin` is kept; a number: of all old versions together,
    in the strengths of `weighting`; a mapping: of each old version, by name."""
    length: Annotated[float, Field(ge=1.0, le=100.0)] = 2.0
    """Epochs of the new version as a multiple of `train.epochs`; reference runs have those. Who learns from a teacher
    gains from more passes than who learns from labels."""
    margin: Annotated[float, Field(ge=-1.0, lt=1.0)] = 0.07
    """For auto: the teacher's error must be lower than that of a reference run by this part of it; the new version does
    not reach its teacher."""
    temperature: Annotated[float, Field(gt=0.0, le=FLAT_TEMPERATURE)] = 2.0
    """Softens the outputs that are blended, and those that are compared with the blend."""
    weight: Positive = 20.0
    """Factor of the distance from the teacher beside the task's loss; both are divided by 1 + weight."""
    scale: Positive = 4.0
    """Factor of both together. It multiplies gradients, so that it raises the effective learning rate of SGD."""

    @model_validator(mode="after")
    def _leaves_room(self) -> Blend:
        if isinstance(self.share, dict) and sum(self.share.values()) >= 1.0:
            raise ValueError(
                f"share: must add up to less than 1, got {sum(self.share.values()):g}; the rest is the reference runs'"
            )
        return self


class Targets(Section):
    """How predecessors' outputs on the training data are obtained."""

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
    """All predecessors have the same strength; the strengths add up to 1."""

    kind: Literal["equal"] = "equal"


class Decay(Section):
    """Older predecessors have less strength; the strengths add up to 1."""

    kind: Literal["decay"] = "decay"
    factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Strength of a predecessor as a share of the next newer one's."""


class Adaptive(Section):
    """Every predecessor has a budget of negative flips, and a multiplier that grows until the budget is met.

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
    """How the new version stays compatible with its predecessors while it trains."""

    against: Literal["latest", "all"] | Annotated[tuple[str, ...], Field(min_length=1)] = "latest"
    """Which predecessors the losses see (a list: these names); the evaluation always covers every ancestor."""
    losses: tuple[Loss, ...] = ()
    """Terms added to the task's loss; empty: train freely and only measure."""
    weighting: Weighting = Equal()
    """How strongly each of several predecessors pulls: a kind alone, or a section of keys; without `kind`: equal. A
    loss that weighs the task's samples averages over all of them alike, whatever this says."""
    near_chance: Positive | None = 2.0
    """Predecessors with more than so many times the latest one's error on the constraint split pull only where they are
    right, in losses with a focus; null: everywhere."""
    reference: Reference | None = None
    """Second target that keeps accuracy; null: none."""
    blend: Annotated[Blend | None, Field(exclude_if=lambda blend: blend is None)] = None
    """One teacher of reference runs and old versions, in place of `reference` and of losses that compare outputs; a
    section of keys, `{}` for the defaults; null: none."""
    targets: Targets = Targets()
    interpolation: Annotated[float, Field(ge=0.0, lt=1.0, exclude_if=lambda share: share == 0.0)] = 0.0
    """Share of the latest predecessor's weights in the finished version's, mixed in after training; for
    `train.start: latest` only. Training, budgets and the validation error know nothing of it."""

    @model_validator(mode="after")
    def _pulls(self) -> Compatibility:
        if self.weighting.kind == "adaptive" and not any(loss.adds_term for loss in self.losses):
            first = next(iter(registry.kinds()))
            raise ValueError(f"weighting: adaptive needs a loss that it can strengthen; add {first} to losses")
        return self

    @model_validator(mode="after")
    def _one_teacher(self) -> Compatibility:
        if self.blend is None:
            return self
        if self.reference is not None:
            raise ValueError("blend: has reference runs of its own; leave reference out, and write blend.runs")
        for loss in self.losses:
            if loss.compares_outputs:
                raise ValueError(f"blend: distils from the old versions already; leave {loss.kind} out of losses")
        return self

    @property
    def sees_predecessors(self) -> bool:
        """Return whether training reads anything of predecessors: losses or a blend are written."""
        return bool(self.losses) or self.blend is not None

    @property
    def reference_runs(self) -> int:
        """Return how many reference runs training distils from."""
        section = self.reference or self.blend
        return 0 if section is None else section.runs

    @model_validator(mode="after")
    def _keeps_enough(self) -> Compatibility:
        top = self.targets.top
        if top is not None and self.reference is not None and self.reference.temperature > FLAT_TEMPERATURE:
            raise ValueError(
                f"targets.top: {top} logits are not what reference reads at temperature {self.reference.temperature:g};"
                f" leave top out, or write reference.temperature at most {FLAT_TEMPERATURE:g}"
            )
        for loss in self.losses if top is not None else ():
            remedy = loss.too_few_logits(top or 0)
            if remedy is not None:
                raise ValueError(
                    f"targets.top: {top} logits are not what {loss.kind} reads, which weighs all; leave top out,"
                    f" or write {remedy}"
                )
        return self


ROOM = {"targets": {"limit_gb"}}
"""How much disk may be used: does not change what comes out, so no digest covers it."""
