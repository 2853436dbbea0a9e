"""What people write: one YAML file, one typed value. pydantic at the edge; imports no torch. Runs on the client first.

Precedence: defaults <- file <- `--set a.b=c`. A misspelt key is refused at every depth with its path. `None` means
"derive it", and the docstring of the field says how. Each attribute docstring becomes `graceful schema`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from graceful.constraints import ALL, LATEST, SELF, Constraint, Direction
from graceful.errors import SpecError

NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen part of a spec that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


# --- task -------------------------------------------------------------------------------------------------------------


class Network(Section):
    """One of graceful's own small networks."""

    size: Literal["xs", "s2", "m"] = "xs"
    """xs: two convolutions of 6 and 12 channels; s2: 12 and 24; m: 24 and 48."""
    embedding: Annotated[int, Field(ge=2, le=4096)] = 64
    """Length of the embedding that galleries store."""
    head: Literal["linear", "cosine"] = "linear"
    """linear: weights and bias; cosine: normalised weights times `scale`, for retrieval."""
    scale: Positive = 16.0
    """Scale of the cosine head; unused by the linear one."""


class GlyphsTask(Section):
    """Characters of real typefaces, 28x28; split by design family."""

    kind: Literal["glyphs"] = "glyphs"
    fonts: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the training families this version may learn from, in a fixed order: growing data."""
    classes: Annotated[int, Field(ge=2)] | None = None
    """Number of closed-set classes this version knows, in a fixed order; None: all of them."""
    shift: Annotated[int, Field(ge=0, le=6)] = 0
    """Random translation in training, in pixels; 0: no augmentation."""
    split: Annotated[int, Field(ge=0)] = 0
    """Seed of the split into train, validation, constraint and test families."""
    open_set: bool = True
    """Measure retrieval on characters no version was trained on (query and gallery from disjoint typefaces)."""
    network: Network = Network()


class DigitsTask(Section):
    """scikit-learn's 8x8 digits: mechanics only, half a second a run."""

    kind: Literal["digits"] = "digits"
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the training ids."""
    classes: Annotated[int, Field(ge=2, le=10)] = 10
    """The first so many digits."""
    shift: Annotated[int, Field(ge=0, le=2)] = 0
    split: Annotated[int, Field(ge=0)] = 0
    network: Network = Network()


class ImageFolderTask(Section):
    """Ordinary images in one folder per class: `root/<class>/<image>`, or `root/<split>/<class>/<image>`."""

    kind: Literal["image_folder"] = "image_folder"
    root: str
    """A local folder or s3://bucket/prefix. Without split folders, ids are split by their hash."""
    size: Annotated[int, Field(ge=8, le=1024)] = 64
    """Images are resized to fit and centre-cropped to size x size."""
    channels: Literal[1, 3] = 3
    shift: Annotated[int, Field(ge=0)] = 0
    """Random translation in training, in pixels."""
    flip: bool = False
    """Random horizontal flips in training."""
    classes: tuple[str, ...] | None = None
    """Class folders to use; None: all, sorted by name."""
    network: Network = Network(size="s2")


class PythonTask(Section):
    """A task of your own: a Python file that defines `task(**options)`."""

    kind: Literal["python"] = "python"
    file: str
    """Path of the file, relative to the spec."""
    options: dict[str, Any] = {}
    """Keyword arguments of `task`; a name it does not take is refused."""


Task = Annotated[GlyphsTask | DigitsTask | ImageFolderTask | PythonTask, Field(discriminator="kind")]


# --- training ---------------------------------------------------------------------------------------------------------


class Sgd(Section):
    """Stochastic gradient descent."""

    kind: Literal["sgd"] = "sgd"
    lr: Positive = 0.05
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0.0)] = 5e-4


class AdamW(Section):
    """Adam with decoupled weight decay."""

    kind: Literal["adamw"] = "adamw"
    lr: Positive = 1e-3
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    eps: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01


Optimizer = Annotated[Sgd | AdamW, Field(discriminator="kind")]


class DeepSpeedEngine(Section):
    """DeepSpeed; the JSON it reads is derived from this spec."""

    kind: Literal["deepspeed"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = 2
    """0: plain data parallel; 1: shard optimiser state; 2: and gradients; 3: and parameters."""


class TorchEngine(Section):
    """Plain torch, DistributedDataParallel when there is more than one worker."""

    kind: Literal["torch"] = "torch"


Engine = Annotated[DeepSpeedEngine | TorchEngine, Field(discriminator="kind")]


class Train(Section):
    """How the network is optimised."""

    epochs: Count = 4
    batch_size: Count = 128
    """Samples per optimiser step over all workers."""
    accumulation: Count = 1
    """Micro-batches per optimiser step; batch_size must divide by workers x accumulation."""
    optimizer: Optimizer = Sgd()
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: cosine to zero, or constant."""
    warmup: Fraction = 0.1
    """Share of all steps with linearly rising learning rate."""
    clip: Annotated[float, Field(ge=0.0)] = 5.0
    """Largest gradient norm; 0 switches clipping off (training has collapsed without it)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    engine: Engine = DeepSpeedEngine()
    num_workers: Annotated[int, Field(ge=0)] = 2
    """Ray Train workers; 0 trains in this process without Ray (plain torch or DeepSpeed alike)."""
    use_gpu: bool | None = None
    """None: when this machine or cluster has one per worker."""
    checkpoint_every: Count | None = None
    """Optimiser steps between checkpoints; None: once per epoch."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often a failed worker group is restarted from the last checkpoint."""
    timeout: Positive = 86_400.0
    """Seconds after which training is stopped with exit code 5."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


# --- compatibility ----------------------------------------------------------------------------------------------------

Focus = Literal["all", "old_correct", "new_incorrect", "negative_flip"]


class FocalDistillation(Section):
    """Match the old model's outputs, most of all where it was right (positive-congruent training)."""

    kind: Literal["focal_distillation"] = "focal_distillation"
    form: Literal["kl", "lm"] = "kl"
    """kl: tempered divergence times temperature squared; lm: centred squared logit distance, its limit."""
    weight: Weight = 0.3
    temperature: Annotated[float, Field(gt=0.0, le=1000.0)] = 100.0
    """Below 20 only with `allow_low_temperature`."""
    allow_low_temperature: bool = False
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
                f"temperature must be at least 20, got {self.temperature:g}; write 100, or add allow_low_temperature: true"
            )
        return self


class LogitDisplacement(Section):
    """Penalise logits that move further than a margin from the old model's (LDI)."""

    kind: Literal["logit_displacement"] = "logit_displacement"
    weight: Weight = 1.0
    margin: Annotated[float, Field(ge=0.0)] = 0.5
    power: Annotated[float, Field(ge=1.0, le=4.0)] = 2.0
    top_k: Count | None = None
    """Only the k largest old logits of each sample; None: all classes."""
    exclude_label: bool = False


class Influence(Section):
    """Classify new embeddings with the frozen old head (backward-compatible training)."""

    kind: Literal["influence"] = "influence"
    weight: Weight = 1.0
    prototypes: bool = True
    """Synthesise old prototypes for classes the old head does not know."""
    scale: Positive = 16.0
    """Scale of the prototypes' cosine logits."""


class EmbeddingRegression(Section):
    """Pull new embeddings to the old ones, sample by sample."""

    kind: Literal["embedding_regression"] = "embedding_regression"
    weight: Weight = 5.0
    distance: Literal["cosine", "l2"] = "cosine"


class Reweighting(Section):
    """Naive baseline: up-weight the samples the old model got right. Not reliable; kept for comparison."""

    kind: Literal["reweighting"] = "reweighting"
    weight: Weight = 1.0


Loss = Annotated[
    FocalDistillation | LogitDisplacement | Influence | EmbeddingRegression | Reweighting, Field(discriminator="kind")
]


class Reference(Section):
    """Also distil from unconstrained runs of the same recipe: they pay the accuracy the old model costs."""

    runs: Annotated[int, Field(ge=1, le=16)] = 1
    """Unconstrained runs with other seeds; their mean logits are the second target."""
    weight: Weight = 3.0
    temperature: Annotated[float, Field(gt=0.0, le=1000.0)] = 100.0


class Targets(Section):
    """How predecessors' outputs on the training data are had."""

    mode: Literal["auto", "clean", "keyed", "live"] = "auto"
    """clean: one un-augmented view, cached; keyed: `views` seeded views, cached; live: the old model runs in every
    step; auto: clean without augmentation, keyed with it."""
    views: Annotated[int, Field(ge=1, le=64)] = 4
    """Distinct augmented views per sample in keyed mode; epochs cycle through them."""
    allow_stale: bool = False
    """Permit `clean` under augmentation. Loses over half of the effect."""


class Compatibility(Section):
    """What the new version owes its predecessors while it trains."""

    against: Literal["latest", "all"] | tuple[str, ...] = "latest"
    """Which predecessors the losses see; the evaluation always covers every ancestor."""
    losses: tuple[Loss, ...] = ()
    """Empty: train freely and only measure."""
    reference: Reference | None = None
    targets: Targets = Targets()


# --- gate, evaluation, registry ---------------------------------------------------------------------------------------


class GateConstraint(Section):
    """A bound the report must show; see `graceful.constraints.Constraint`."""

    metric: str
    """Name of a measurement, e.g. negative_flip_rate, error_rate, cross_test_gain_recall_at_1."""
    direction: Direction = Direction.AT_MOST
    bound: float
    """A fraction for rates: 0.02 for two percent."""
    against: str = ALL
    """self, latest, all, or one ancestor's name."""

    @model_validator(mode="after")
    def _rate(self) -> GateConstraint:
        rate = self.metric.endswith(("_rate", "_trust", "relative_nfr"))
        if rate and not 0.0 <= self.bound <= 1.0:
            raise ValueError(
                f"bound must be in [0, 1], got {self.bound:g}; write {self.bound / 100:g} for {self.bound:g} percent"
            )
        return self

    def constraint(self) -> Constraint:
        """The floats-only value the gate judges."""
        return Constraint(metric=self.metric, direction=self.direction, bound=self.bound, against=self.against)


class Gate(Section):
    """What decides between passed and held."""

    constraints: tuple[GateConstraint, ...] = (GateConstraint(metric="negative_flip_rate", bound=0.05),)
    family: Literal["none", "bonferroni"] = "none"
    """bonferroni: widen each of the K intervals so that all hold jointly at 95 %."""


class Evaluate(Section):
    """What is measured, and on how much."""

    retrieval: bool = True
    """Also measure new-query/old-gallery retrieval."""
    batch_size: Count = 1024
    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = 1000
    """Draws behind the intervals of ratios and of retrieval."""


class Registry(Section):
    """Where versions and their lineage are recorded."""

    uri: str | None = None
    """MLflow tracking URI; None: $MLFLOW_TRACKING_URI, else sqlite and files under `home`."""


class RefreshSpec(Section):
    """Train, evaluate, gate, register, promote: one new version of one model family."""

    kind: Literal["refresh"] = "refresh"
    model: Annotated[str, Field(pattern=NAME)]
    """Model family; the registered model's name."""
    name: Annotated[str, Field(pattern=NAME)]
    """Name of this version, e.g. v2. `model-name` is the run id: the same id resumes, a changed spec is refused."""
    description: str = ""
    task: Task
    train: Train = Train()
    compatibility: Compatibility = Compatibility()
    evaluate: Evaluate = Evaluate()
    gate: Gate = Gate()
    registry: Registry = Registry()
    home: str | None = None
    """Folder of runs, caches and the default registry; None: $GRACEFUL_HOME, else .graceful here."""

    @model_validator(mode="after")
    def _batch(self) -> RefreshSpec:
        parts = max(self.train.num_workers, 1) * self.train.accumulation
        if self.train.batch_size % parts:
            raise ValueError(
                f"train.batch_size must divide by workers x accumulation = {parts}, got {self.train.batch_size};"
                f" write {max(self.train.batch_size // parts, 1) * parts}"
            )
        if self.name in (SELF, LATEST, ALL):
            raise ValueError(f"name must not be one of self, latest, all, got {self.name!r}")
        return self

    @property
    def run_id(self) -> str:
        """Stable identity of the run: the same id resumes."""
        return f"{self.model}-{self.name}"

    def dump(self) -> dict[str, Any]:
        """The resolved spec as JSON values; `load` reads it back unchanged."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """SHA-256 of what determines the result: everything but where it is kept and how it is described."""
        document = self.model_dump(mode="json", exclude={"home", "registry", "description"})
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def load(path: str | Path, overrides: Sequence[str] = ()) -> RefreshSpec:
    """Read a spec file, apply `a.b=c` overrides, validate.

    Relative paths inside the spec (a Python task's file, an image folder) are resolved against the file's folder.

    Raises:
        SpecError: One line for the first problem (and how many more there are): key path, file, value, bound, remedy.
    """
    where = Path(path)
    try:
        document = yaml.safe_load(where.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise SpecError(f"{where}: no such spec file; check the path") from e
    except (OSError, UnicodeDecodeError) as e:
        raise SpecError(f"{where}: cannot be read ({e}); give a YAML file") from e
    except yaml.YAMLError as e:
        raise SpecError(f"{where}: not valid YAML ({_one_line(e)})") from e
    if not isinstance(document, dict):
        raise SpecError(f"{where}: must be a mapping of keys, got {type(document).__name__}; see `graceful schema`")
    for override in overrides:
        _apply(document, override)
    return parse(document, where=str(where))


def parse(document: Mapping[str, Any], *, where: str = "spec") -> RefreshSpec:
    """Validate an already loaded document.

    Raises:
        SpecError: As `load`.
    """
    try:
        spec = RefreshSpec.model_validate(_anchored(document, Path(where).parent))
    except ValidationError as e:
        raise SpecError(_explain(e, where)) from e
    return spec


def _anchored(document: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Make the paths that a spec names absolute, so that the resolved spec runs from anywhere."""
    resolved = dict(document)
    task = resolved.get("task")
    if isinstance(task, Mapping):
        task = dict(task)
        for key in ("file", "root"):
            value = task.get(key)
            if isinstance(value, str) and "://" not in value:
                task[key] = str((folder / Path(value).expanduser()).resolve())
        resolved["task"] = task
    return resolved


def _apply(document: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise SpecError(f"--set {override}: must look like a.b=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise SpecError(f"--set {override}: the value is not valid YAML ({_one_line(e)})") from e
    *parents, last = key.split(".")
    node: Any = document
    for depth, part in enumerate([*parents, last]):
        final = depth == len(parents)
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise SpecError(
                    f"--set {override}: {'.'.join(key.split('.')[:depth])} has {len(node)} items, no {part!r}"
                )
            if final:
                node[int(part)] = value
            else:
                node = node[int(part)]
        elif isinstance(node, dict):
            if final:
                node[part] = value
            else:
                node = node.setdefault(part, {})
        else:
            raise SpecError(f"--set {override}: {'.'.join(key.split('.')[:depth])} is a value, not a section")


def _explain(error: ValidationError, where: str) -> str:
    problems = error.errors(include_url=False)
    first = problems[0]
    path = ".".join(str(part) for part in first["loc"] if not _is_tag(part))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{path} in {where}: unknown key{_suggest(path)}{more}; see `graceful schema`"
    if first["type"] == "missing":
        return f"{path} in {where}: required and missing{more}; see `graceful schema`"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] == "value_error" else f", got {first['input']!r}"
    return f"{path or 'spec'} in {where}: {message[0].lower()}{message[1:]}{got}{more}"


_TAGS = {
    "glyphs", "digits", "image_folder", "python", "sgd", "adamw", "deepspeed", "torch",
    "focal_distillation", "logit_displacement", "influence", "embedding_regression", "reweighting",
}  # fmt: skip


def _is_tag(part: int | str) -> bool:
    return isinstance(part, str) and (part in _TAGS or part.startswith(("literal[", "tuple[")))


def _suggest(path: str) -> str:
    import difflib

    known = {name for section in _sections(RefreshSpec) for name in section.model_fields}
    close = difflib.get_close_matches(path.rsplit(".", 1)[-1], known, n=1)
    return f", did you mean {close[0]}?" if close else ""


def _sections(root: type[Section]) -> list[type[Section]]:
    found: list[type[Section]] = []
    queue: list[type[Section]] = [Section]
    while queue:
        for child in queue.pop().__subclasses__():
            found.append(child)
            queue.append(child)
    return found if root in found else [root]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
