"""The training samples with most influence on an output of a linearised version, in closed form. In the driver.

Of two classes a and b the margin f_a - f_b at a sample x is that at the starting weights plus one term for each
training sample, see `lqf.contributions`: one derivative at x, and one product with it for each training sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graceful import learners, tasks
from graceful.chain import Predecessor
from graceful.errors import SpecError
from graceful.lineage import LineageRecord, Store
from graceful.lqf.contributions import NAMES, TENSORS, Contributions
from graceful.lqf.network import Linearised
from graceful.lqf.tangent import Tangent
from graceful.models.bundle_files import LinearisedDescription, read_beside
from graceful.models.stored import StoredVersion
from graceful.programs.outputs.flipped import excerpts
from graceful.programs.runs import ancestry, version_spec
from graceful.programs.runs.run import Progress, Run, silent
from graceful.spec import RefreshSpec
from graceful.tasks.base import Samples, Task
from graceful.tasks.names import positions_of
from graceful.tasks.portions import portion

Split = Literal["test", "validation", "train"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the command line asks for.

    Attributes:
        version: MODEL, MODEL:NUMBER, MODEL:NAME or MODEL@ALIAS.
        sample: Its id.
        against: Another version; None: none.
        split: That has the sample; None: the first that has it.
        top: Training samples that are listed.
        spec: Whose task has the data; None: the recorded one of the version.
    """

    version: str
    sample: str
    against: str | None = None
    split: Split | None = None
    top: int = 10
    spec: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Pull:
    """One training sample's term of the margin.

    Attributes:
        id: The id of the sample.
        label: Its class.
        term: What it adds, on the scale of the targets.
        before: What it adds in the other version; None: that has no such terms, or not of this sample.
        text: The beginning of its text.
    """

    id: str
    label: str
    term: float
    before: float | None = None
    text: str = ""

    @property
    def change(self) -> float:
        """Return the difference from the other version to this one."""
        return self.term - (self.before or 0.0)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a version answers as it does.

    Attributes:
        version, against: Names of the versions.
        sample, split, label: The sample and its class.
        answer: The answer of the version.
        other_answer: The answer of the other version; None: none was given.
        towards, away: The classes whose margin is explained.
        margin, at_start: Of the version and of its starting weights, on the scale of the targets.
        other_margin: The margin of the other version, where its terms are known.
        terms: Sum over the training samples; that of changes where `other_margin` is known.
        counted, missing: Training samples with a term, and those that the data have no more.
        amplitude: Target of the right class.
        pulls: The largest first.
    """

    version: str
    against: str | None
    sample: str
    split: str
    label: str
    answer: str
    other_answer: str | None
    towards: str
    away: str
    margin: float
    at_start: float
    other_margin: float | None
    terms: float
    counted: int
    missing: int
    amplitude: float
    pulls: tuple[Pull, ...]

    @property
    def unexplained(self) -> float:
        """Return what the terms leave over: rounding and the certificate's gradient, and samples that are missing."""
        return self.margin - (self.at_start if self.other_margin is None else self.other_margin) - self.terms

    def document(self) -> dict[str, Any]:
        """Return it as JSON values."""
        pulls = [{**asdict(pull), "change": pull.change} for pull in self.pulls]
        return {**asdict(self), "unexplained": self.unexplained, "pulls": pulls}


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A version with its data."""

    record: LineageRecord
    spec: RefreshSpec
    task: Task
    stored: StoredVersion

    @property
    def version(self) -> Predecessor:
        return self.stored.whole()

    @property
    def linearised(self) -> LinearisedDescription | None:
        return self.stored.description.linearised

    def tangent(self) -> Tangent:
        network = self.version.network
        assert isinstance(network, Linearised)
        return Tangent(network.network, partial(learners.run, self.version.learner), network.names)

    def contributions(self) -> Contributions:
        assert self.linearised is not None
        where = f"{self.record.model} {self.record.name}"
        files = {name: self.linearised.files[name] for name in (TENSORS, NAMES) if name in self.linearised.files}
        if not files:
            raise SpecError(
                f"explain: {where} keeps no contributions of its training samples, because it is older than this"
                " command, or has too many samples x classes; name another version"
            )
        return Contributions.parse(read_beside(self.stored.folder, files), where=where)


def explain(wanted: Wanted, home: Path, *, progress: Progress = silent) -> Explanation:
    """Return which training samples pull an answer.

    Raises:
        SpecError: There is no such version or sample, or the version is not linearised.
        RegistryError, IntegrityError: The registry is unreachable, or what it holds was altered.
    """
    store = Store(None, home)
    new = _opened(store, home, wanted.version, wanted.spec)
    if new.linearised is None:
        raise SpecError(
            f"explain {wanted.version}: {new.record.name} was not trained with train.method lqf, so no closed form says"
            " what pulls its answers; name a version that was"
        )
    contributions = new.contributions()
    split, place = _place(new.task, wanted)
    samples = new.task.samples(split)
    items, label = samples.read(np.asarray([place])), samples.classes[int(samples.labels[place])]
    other = None if wanted.against is None else _opened(store, home, wanted.against, None)
    told = None if other is None else _answer(other.version, items)
    tangent, batch = new.tangent(), new.version.learner.collate(items, None)
    classes = list(new.version.classes)
    moved, start = _logits(new, batch)
    answer = classes[int(moved.argmax())]
    away = _opponent(moved, classes, answer, preferred=(told, label))
    direction = torch.zeros(1, len(classes))
    direction[0, classes.index(answer)], direction[0, classes.index(away)] = 1.0, -1.0
    row = tangent.pull(batch, direction.to(moved.dtype))
    terms, missing = _terms(new, contributions, row, progress)
    comparable = other is not None and _comparable(new, other)
    before: dict[str, float] = {}
    if other is not None and comparable:
        before, missed = _terms(other, other.contributions(), row, progress)
        missing += missed
    margins = [float((values.double() * direction[0]).sum()) for values in (moved, start)]
    pulls = _pulls(terms, before if comparable else None, new.task.samples("train"))
    shown = pulls[: wanted.top]
    texts = excerpts([pull.id for pull in shown], new.task.samples("train"))
    return Explanation(
        version=new.record.name,
        against=None if other is None else other.record.name,
        sample=wanted.sample,
        split=split,
        label=label,
        answer=answer,
        other_answer=told,
        towards=answer,
        away=away,
        margin=margins[0],
        at_start=margins[1],
        other_margin=float((_logits(other, batch)[0].double() * direction[0]).sum()) if other and comparable else None,
        terms=sum(pull.change for pull in pulls),
        counted=len(terms),
        missing=missing,
        amplitude=new.linearised.amplitude,
        pulls=tuple(replace(pull, text=texts.get(pull.id, "")) for pull in shown),
    )


def _opened(store: Store, home: Path, version: str, given: Mapping[str, Any] | None) -> _Opened:
    record = store.record(ancestry.find(store, version).model_id)
    section = version_spec.own(store, record, given, what=f"explain {version}")
    run = Run.of(section, home=home)
    return _Opened(record=record, spec=section, task=tasks.build(section.task), stored=run.version(store.fetch(record)))


def _place(task: Task, wanted: Wanted) -> tuple[Split, int]:
    """Return the split that has the sample, and where."""
    for split in (wanted.split,) if wanted.split else get_args(Split):
        samples = task.samples(split)
        if samples.stream is not None:
            continue
        place = int(positions_of(np.asarray([wanted.sample]), samples.ids)[0])
        if place >= 0:
            return split, place
    where = wanted.split or "test, validation or train"
    raise SpecError(
        f"explain {wanted.version}: {where} has no sample {wanted.sample!r:.80}; `graceful diff` lists ids of"
        " samples that flipped"
    )


def _logits(version: _Opened, batch: learners.Batch) -> tuple[Tensor, Tensor]:
    """Return the logits [C] of a sample by the version and by its starting weights, on the scale of the targets."""
    network, tangent = version.version.network, version.tangent()
    assert isinstance(network, Linearised)
    at, along = tangent.push(batch, network.deltas())
    return (at.logits + along.logits)[0], at.logits[0]


def _answer(version: Predecessor, items: Any) -> str:
    return version.classes[int(version(items).logits[0].argmax())]


def _opponent(logits: Tensor, classes: list[str], answer: str, *, preferred: tuple[str | None, ...]) -> str:
    """Return the class that the answer is set against: the other version's answer, the true one, else the next best."""
    for name in preferred:
        if name is not None and name != answer and name in classes:
            return name
    order: list[int] = logits.argsort(descending=True).tolist()
    return next((classes[index] for index in order if classes[index] != answer), answer)


def _comparable(new: _Opened, other: _Opened) -> bool:
    """Return whether terms of both versions are terms of the same sum: same starting weights, same classes, terms
    kept."""
    assert new.linearised is not None
    return (
        other.linearised is not None
        and other.linearised.start_sha256 == new.linearised.start_sha256
        and other.version.classes == new.version.classes
        and TENSORS in other.linearised.files
    )


def _terms(
    version: _Opened, contributions: Contributions, row: Mapping[str, Tensor], progress: Progress
) -> tuple[dict[str, float], int]:
    """Return each training sample's term by id, and how many samples the data have no more."""
    samples, learner, tangent = version.task.samples("train"), version.version.learner, version.tangent()
    places = positions_of(np.asarray(contributions.ids, dtype=np.str_), samples.ids)
    known = np.flatnonzero(places >= 0)
    size = portion(samples, learner.collate, most=version.spec.train.batch_size)
    terms: dict[str, float] = {}
    for start in range(0, len(known), size):
        chosen = known[start : start + size]
        batch = learner.collate(samples.read(places[chosen]), None)
        along = tangent.push(batch, row)[1].logits.double()
        each = (along * contributions.values[torch.from_numpy(chosen)].double()).sum(1).tolist()
        terms |= dict(zip((contributions.ids[index] for index in chosen), each, strict=True))
        progress({"stage": f"training samples of {version.record.name}", "step": len(terms), "steps": len(known)})
    return terms, len(places) - len(known)


def _pulls(terms: Mapping[str, float], before: Mapping[str, float] | None, train: Samples) -> list[Pull]:
    """Return all terms, those that change most first."""
    ids = list(dict.fromkeys([*terms, *(before or {})]))
    places: NDArray[np.int64] = positions_of(np.asarray(ids, dtype=np.str_), train.ids)
    labels = train.labels[np.maximum(places, 0)]
    pulls = [
        Pull(
            id=name,
            label=train.classes[int(label)] if place >= 0 else "",
            term=terms.get(name, 0.0),
            before=None if before is None else before.get(name, 0.0),
        )
        for name, place, label in zip(ids, places.tolist(), labels.tolist(), strict=True)
    ]
    return sorted(pulls, key=lambda pull: (-abs(pull.change), pull.id))
