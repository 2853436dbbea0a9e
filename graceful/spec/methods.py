"""What kind of optimisation makes a version: gradient descent, or a quadratic that is solved. Runs in every process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from graceful import paths
from graceful.sections import NAME, Count, Positive, Section

if TYPE_CHECKING:
    from graceful.spec.compatibility import Compatibility
    from graceful.spec.training import Train


class Descent(Section):
    """Steps of an optimiser on batches: all weights, from any start."""

    kind: Literal["descent"] = "descent"


class Protect(Section):
    """Training samples that the version must answer right, as constraints of the quadratic; needs the exact solver."""

    ids: Annotated[tuple[str, ...], Field(min_length=1)]
    """Of training samples."""
    margin: Positive = 1.0
    """By which the right class leads every other one there; the target of the right class is `amplitude`."""


class Memory(Section):
    """The quadratic of a version's data, stored with it, so that later versions need new data alone.

    A version whose predecessor is linearised at the same weights and has a memory adds it to its own data.
    """

    kind: Literal["kfac", "low_rank"] = "kfac"
    """kfac: Kronecker factors; low_rank: the largest eigenvectors, nearer to the data and as sensitive as they are."""
    rank: Count = 100
    """Eigenvectors of low_rank; each is as large as delta."""
    multiplier: Annotated[float, Field(gt=0.0, le=1000.0)] = 1.0
    """Of the predecessor's memory; with kfac, which is an approximation, 10 to 30 has kept more."""


class Lqf(Section):
    """Linear-quadratic fine-tuning: the network is linearised at its starting weights and solved for squared error.

    Of the section `train` it reads num_workers, batch_size (samples in one pass), checkpoint_every (iterations), start,
    class_weights, seed (of a random head) and limits; epochs, optimizer, schedule and engine count for the solver
    sgd_kfac alone.
    """

    kind: Literal["lqf"] = "lqf"
    scope: tuple[str, ...] = ()
    """Parameters or modules that are linearised, by name or pattern, e.g. [body.encoder.layer.5, head]; the others stay
    at the starting weights. Empty: all that are trained."""
    head: Literal["auto", "start", "random"] = "auto"
    """Head of the starting weights. start: the predecessor's, refused where it was trained on these samples; random:
    initialised; auto: the predecessor's where it has the same classes and saw none of these samples, else random."""
    amplitude: Annotated[float, Field(gt=0.0, le=1000.0)] = 15.0
    """Target of the right class; the others have 0."""
    penalty: Positive | None = None
    """Weight of the squared length of delta. None: the one with the smallest leave-one-out error, or the smallest
    error on the validation split where the starting weights have seen the training samples."""
    penalty_factor: Annotated[Positive, Field(exclude_if=lambda factor: factor == 1.0)] = 1.0
    """Of a penalty that is chosen; `graceful tune` searches it."""
    slope: Annotated[float, Field(ge=0.0, le=0.5)] = 0.01
    """Of the modules ReLU and ReLU6 where they are off, since a derivative of zero stays zero; 0: left as they are."""
    refresh_norms: bool = False
    """Measure statistics of batch normalisation on the training samples before the network is linearised."""
    solver: Literal["auto", "exact", "pcg", "sgd_kfac"] = "auto"
    """exact: factorise samples x classes; pcg: conjugate gradients; auto: exact up to 2,000 rows that fit in memory;
    sgd_kfac: preconditioned steps of `optimizer` on batches, with any engine up to ZeRO 2."""
    tolerance: Annotated[float, Field(gt=0.0, le=0.1)] = 5e-4
    """Of pcg: norm of the gradient as a share of the first one. Above 0.001 no version is called order-independent."""
    iterations: Count = 500
    """Of pcg, at most."""
    memory_gib: Annotated[float, Field(gt=0.0, le=4096.0)] = 2.0
    """That the exact solver may take; more is refused before it is allocated."""
    memory: Annotated[Memory | None, Field(exclude_if=lambda memory: memory is None)] = None
    """Refreshes without the old data; null: the training data are all that count, and nothing is stored."""
    protect: Annotated[Protect | None, Field(exclude_if=lambda protect: protect is None)] = None
    """Samples that must not flip; null: none. Where they contradict each other, those that do are named."""
    drift: Annotated[Positive | None, Field(exclude_if=lambda drift: drift is None)] = None
    """Largest root mean squared distance from the latest predecessor's outputs on the training samples, on the scale of
    `amplitude`: weights of the losses are multiplied by the smallest factor that keeps it. Needs the exact solver."""

    @model_validator(mode="after")
    def _exact_limits(self) -> Lqf:
        if self.memory is not None and self.solver in ("exact", "sgd_kfac"):
            raise ValueError(f"memory needs conjugate gradients, got solver {self.solver}; write solver: pcg")
        for key in ("protect", "drift"):
            if getattr(self, key) is not None and self.memory is not None:
                raise ValueError(f"{key} needs the exact solver, and memory conjugate gradients; leave one of them out")
            if getattr(self, key) is not None and self.solver in ("pcg", "sgd_kfac"):
                raise ValueError(f"{key} needs the exact solver, got {self.solver}; write solver: exact")
        return self


class Combination(Section):
    """Versions that were linearised at the same weights, added up: nothing is trained.

    The result is f0 + sum of factor x (f - f0) over the versions, which must be ancestors: 1 of one of them is that
    version again, 0.5 of two is their mean.
    """

    kind: Literal["combination"] = "combination"
    versions: Annotated[
        dict[Annotated[str, Field(pattern=NAME)], Annotated[float, Field(ge=-100.0, le=100.0)]], Field(min_length=1)
    ]
    """Name of an ancestor -> its factor."""
    folded: bool = False
    """true: the network at w0 + delta as an ordinary version, which answers faster and is another model."""


class Pruned(Section):
    """Weights that `graceful search-architecture` left for one capacity of a pruned network: nothing is trained."""

    kind: Literal["pruned"] = "pruned"
    file: Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(paths.checked)]
    """Of weights, as it wrote it beside the spec."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of that file."""


Method = Annotated[Descent | Lqf | Combination | Pruned, Field(discriminator="kind")]


def require_quadratic(method: Lqf, compatibility: Compatibility, train: Train) -> None:
    """Refuse what a quadratic objective cannot hold.

    Raises:
        ValueError: Which key, and what to write.
    """
    if train.precision != "fp32":
        raise ValueError(f"train.precision must be fp32 with train.method lqf, got {train.precision}")
    if method.solver == "sgd_kfac" and (train.engine.kind == "fsdp2" or getattr(train.engine, "zero_stage", 0) == 3):
        raise ValueError("train.engine must keep parameters whole with solver sgd_kfac; write zero_stage: 2, or torch")
    if train.start == "head":
        raise ValueError("train.start must be random or latest with train.method lqf, got head")
    if method.drift is not None and not compatibility.losses:
        raise ValueError(
            "train.method.drift multiplies weights of compatibility.losses, and there are none; write"
            " {kind: focal_distillation, form: lm} there"
        )
    if method.solver == "sgd_kfac" and compatibility.losses:
        raise ValueError("compatibility.losses have no part in solver sgd_kfac; leave them out, or write solver: pcg")
    for position, loss in enumerate(compatibility.losses):
        if getattr(loss, "form", None) != "lm" or loss.follows_new_model:
            raise ValueError(
                f"compatibility.losses.{position}: {loss.kind} is not quadratic for train.method lqf; write"
                " {kind: focal_distillation, form: lm} with focus all or old_correct"
            )
    for key, given in (
        ("reference", compatibility.reference is not None),
        ("blend", compatibility.blend is not None),
        ("weighting: adaptive", compatibility.weighting.kind == "adaptive"),
        ("interpolation", compatibility.interpolation != 0.0),
    ):
        if given:
            raise ValueError(f"compatibility.{key} has no part in train.method lqf; leave it out")


def require_nothing_trained(compatibility: Compatibility) -> None:
    """Refuse what a combination of versions, which trains nothing, has no use for.

    Raises:
        ValueError: Which key, and what to write.
    """
    given = [
        *(["losses"] if compatibility.losses else []),
        *(["reference"] if compatibility.reference is not None else []),
        *(["blend"] if compatibility.blend is not None else []),
        *(["interpolation"] if compatibility.interpolation else []),
    ]
    if given:
        raise ValueError(f"compatibility.{given[0]} has no part in train.method combination; leave it out")
