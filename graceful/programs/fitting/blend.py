"""Plan a blend: choose the shares of old versions and reference runs from their outputs, and predict its error.

Nothing is trained for it. Held out are the validation and constraint splits, which none of the versions has learnt
from; training data would not do, because the old versions know what they were trained on. Runs in the driver.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graceful import spec
from graceful.chain import Predecessor, blending, label_map, shares
from graceful.chain.multipliers import strengths
from graceful.chain.shares import Evidence, OldAnswers, Predicted
from graceful.errors import DataError, SpecError, one_line
from graceful.storage import read_bytes, write_json
from graceful.tasks.base import Samples, Task
from graceful.tasks.portions import portion

FILE = "blend.json"
MOST = 20_000
"""Held-out samples that are looked at; the error rate of so many is known to a fifth of a percent."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Blended:
    """A blend as it was planned.

    Attributes:
        shares: The shares of the old versions in the teacher, by name.
        evidence: Outputs of versions on the held-out samples; None: some cannot be run, and the shares were given.
        held_out: These samples.
        teacher: What is predicted for it.
        front: What was predicted for other shares, where they were searched.
        chosen: Why these shares: one sentence.
    """

    shares: Mapping[str, float]
    evidence: Evidence | None
    held_out: HeldOut
    teacher: Predicted | None
    front: tuple[Predicted, ...] = field(default=(), repr=False)
    chosen: str


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Samples that shares are chosen on.

    Attributes:
        parts: Splits, and which positions of each.
    """

    parts: tuple[tuple[Samples, NDArray[np.int64]], ...]

    @classmethod
    def of(cls, splits: Sequence[Samples]) -> HeldOut:
        """Take samples of splits, at most 20,000 of all, spread evenly."""
        total = sum(map(len, splits))
        counts = [len(samples) if total <= MOST else len(samples) * MOST // total for samples in splits]
        return cls(
            parts=tuple(
                (samples, np.linspace(0, len(samples) - 1, count).astype(np.int64))
                for samples, count in zip(splits, counts, strict=True)
                if count
            )
        )

    @classmethod
    def of_task(cls, task: Task) -> HeldOut:
        """Take samples of validation and, where there is one, of constraint."""
        splits = [task.samples("validation")]
        with contextlib.suppress(KeyError, DataError, SpecError):  # only budgets need it, see `data_checks`
            splits.append(task.samples("constraint"))
        return cls.of(splits)

    @property
    def labels(self) -> Tensor:
        """Return [N] labels of the new version."""
        return torch.from_numpy(np.concatenate([samples.labels[positions] for samples, positions in self.parts]))

    def logits(self, version: Predecessor, *, batch_size: int) -> Tensor:
        """Return [N, C] outputs of a version; NaN where it has no answer."""
        blocks = []
        for samples, positions in self.parts:
            size = portion(samples, version.learner.collate, most=batch_size)
            for start in range(0, len(positions), size):
                blocks.append(version(samples.read(positions[start : start + size])).logits.cpu())
        return torch.cat(blocks)


def evidence_of(
    section: spec.Blend,
    chain: Sequence[Predecessor],
    references: Sequence[Predecessor],
    held_out: HeldOut,
    *,
    classes: Sequence[str],
    batch_size: int,
) -> Evidence:
    """Ask all versions about the held-out samples.

    Args:
        section: For the temperature.
        chain: The old versions.
        references: The reference runs.
        held_out: The held-out samples.
        classes: The classes of the new version.
        batch_size: Samples per forward pass.
    """
    labels = held_out.labels
    runs = [held_out.logits(run, batch_size=batch_size) for run in references]
    errors = [1.0 - float(_right(logits, labels).double().mean()) for logits in runs]
    mean = torch.stack(runs).mean(0)
    answered = mean.isfinite().all(1)
    reference = blending.tempered(torch.where(answered[:, None], mean, 0.0), section.temperature)
    old = []
    for version in chain:
        logits, mapped = held_out.logits(version, batch_size=batch_size), label_map(classes, version.classes)
        present = logits.isfinite().all(1)
        filled = torch.where(present[:, None], logits, 0.0)
        known = blending.Known.of(mapped)
        class_known = present & (mapped[labels] >= 0)
        old.append(
            OldAnswers(
                name=version.name,
                log_p=blending.completed(reference, filled, known, temperature=section.temperature),
                right=class_known & _right(logits, mapped[labels]),
                known=class_known,
                present=present,
            )
        )
    return Evidence(
        reference=reference,
        reference_error=math.fsum(errors) / len(errors),
        labels=torch.where(answered, labels, -1),
        old=tuple(old),
    )


def plan(
    section: spec.Blend,
    evidence: Evidence | None,
    *,
    names: Sequence[str],
    weighting: spec.Weighting,
    held_out: HeldOut,
    recorded: Mapping[str, float] | None = None,
) -> Blended:
    """Choose the shares, or read those that were chosen.

    Args:
        section: What was asked for.
        evidence: Outputs of versions; None: some cannot be run.
        names: The names of the old versions, latest first.
        weighting: How a given total is divided.
        held_out: The held-out samples.
        recorded: Shares with which this run began; it keeps to them.

    Raises:
        SpecError: `share` names no predecessor, or is auto and a version cannot be run.
    """
    if recorded is not None:
        return _given(recorded, evidence, held_out, "as this run began")
    if isinstance(section.share, Mapping):
        for name in section.share:
            if name not in names:
                raise SpecError(
                    f"compatibility.blend.share: {name!r} is not a predecessor of this training; it has"
                    f" {', '.join(names)}"
                )
        return _given({name: section.share.get(name, 0.0) for name in names}, evidence, held_out, "as written")
    if section.share != "auto":
        total, division = section.share, strengths(weighting, names)
        return _given({name: total * division[name] for name in names}, evidence, held_out, "as written")
    if evidence is None:
        raise SpecError(
            "compatibility.blend.share: auto asks all predecessors about held-out samples, and the weights of some are"
            " gone; write a share, 0.3 say"
        )
    front, bound = shares.front(evidence), (1.0 - section.margin) * evidence.reference_error
    teacher = shares.choose(front, largest_error=bound)
    kept = teacher.error <= bound
    chosen = (
        f"lowest NFR at an error of at most {100 * bound:.2f} %"
        if kept
        else f"no share keeps the error at {100 * bound:.2f} %, these have the lowest error"
    )
    return Blended(
        shares=teacher.shares,
        evidence=evidence,
        held_out=held_out,
        teacher=teacher,
        front=tuple(front),
        chosen=chosen,
    )


def _given(given: Mapping[str, float], evidence: Evidence | None, held_out: HeldOut, chosen: str) -> Blended:
    teacher = None if evidence is None else evidence.predicted(given)
    return Blended(shares=dict(given), evidence=evidence, held_out=held_out, teacher=teacher, chosen=chosen)


def progress_row(blend: Blended) -> dict[str, object]:
    """Return the row of progress that says what was chosen and what is predicted."""
    row: dict[str, object] = {"stage": "blend", "shares": dict(blend.shares), "chosen": blend.chosen}
    if blend.evidence is not None and blend.teacher is not None:
        facts = {"teacher_error": blend.teacher.error, "teacher_nfr": dict(blend.teacher.nfr)}
        row |= {**facts, "reference_error": blend.evidence.reference_error, "ids": len(blend.evidence.labels)}
    return row


def record(run_dir: Path, blend: Blended, new: Predecessor, *, batch_size: int) -> tuple[str, ...]:
    """Measure the trained version where its teacher was, write `blend.json`, return sentences for the report."""
    document: dict[str, Any] = {"schema": 1, "shares": dict(blend.shares), "chosen": blend.chosen}
    if blend.evidence is not None and blend.teacher is not None:
        labels = blend.held_out.labels
        right = _right(blend.held_out.logits(new, batch_size=batch_size), labels)
        document |= {
            "ids": len(labels),
            "reference_error": blend.evidence.reference_error,
            "references_nfr": dict(blend.evidence.predicted(dict.fromkeys(blend.shares, 0.0)).nfr),
            "teacher": blend.teacher.document(),
            "reached": blend.evidence.measured(right, shares=blend.shares).document(),
            "front": [teacher.document() for teacher in blend.front],
        }
    write_json(run_dir / FILE, document)
    return _sentences(document)


def recorded(run_dir: Path) -> tuple[str, ...]:
    """Return the sentences of a run whose training has ended; none without a blend.

    Raises:
        DataError: Its record is damaged.
    """
    path = run_dir / FILE
    if not path.exists():
        return ()
    try:
        return _sentences(json.loads(read_bytes(path)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise DataError(f"{path}: not what a blend records ({one_line(e)}); delete it") from e


def _sentences(document: Mapping[str, Any]) -> tuple[str, ...]:
    text = ", ".join(f"{share:.2f} {name}" for name, share in document["shares"].items())
    chosen = f"blend: the teacher has the shares {text}, the rest is the reference runs' ({document['chosen']})"
    if "teacher" not in document:
        return (chosen,)
    teacher, reached = document["teacher"], document["reached"]
    return (
        chosen,
        f"blend: on {document['ids']} held-out samples the teacher has an error of {100 * teacher['error']:.2f} % and"
        f" flips {_rates(teacher['nfr'])}; this version has {100 * reached['error']:.2f} % and flips"
        f" {_rates(reached['nfr'])}; a reference run has an error of {100 * document['reference_error']:.2f} %",
    )


def _rates(nfr: Mapping[str, float]) -> str:
    return ", ".join(f"{100 * rate:.2f} % against {name}" for name, rate in nfr.items())


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    """Return [N] bool; who has no answer is wrong."""
    return logits.isfinite().all(1) & (logits.argmax(1) == labels)
