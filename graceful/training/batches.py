"""What a training step eats: inputs, labels, what predecessors say about them; one slice ahead. Runs in workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graceful import targets
from graceful.chain import OldOutputs, Predecessor, label_map
from graceful.losses.influence import prototypes
from graceful.models import bundle
from graceful.tasks import view_numbers
from graceful.tasks.base import Samples, Task
from graceful.training.job import TrainingJob
from graceful.training.objective import OldVersion, needs

_CHUNK = 1024


class Slice(NamedTuple):
    """One rank's part of one slice of a batch, on the rank's device."""

    inputs: Tensor
    labels: Tensor
    old: tuple[OldOutputs, ...]
    reference: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Materials:
    """Everything a run reads.

    Attributes:
        task: Model, data, transform.
        train: The training split.
        validation: The split that tells how training goes.
        versions: What the objective must know of each predecessor.
        sources: Where each predecessor's outputs come from; empty if no loss reads outputs.
        reference: Mean of the reference runs.
        views: Epochs cycle through so many views; None: every epoch has its own.
        seed: Of the views.
        device: Where slices go.
    """

    task: Task
    train: Samples
    validation: Samples
    versions: tuple[OldVersion, ...]
    sources: tuple[targets.Source, ...]
    reference: targets.Source | None
    views: int | None
    seed: int
    device: torch.device

    def slice(self, positions: NDArray[np.int64], *, epoch: int) -> Slice:
        """Read and transform some training samples as they look in an epoch."""
        index = epoch % self.views if self.views else epoch
        views = view_numbers(self.train.ids[positions], self.seed, index) if self.task.augments else None
        items = self.train.read(positions)
        reference = self.reference.fetch(positions, items, views, index).logits if self.reference else None
        return Slice(
            inputs=self.task.transform(items, views).to(self.device),
            labels=torch.from_numpy(self.train.labels[positions]).to(self.device),
            old=tuple(source.fetch(positions, items, views, index) for source in self.sources),
            reference=reference,
        )

    def slices(self, order: NDArray[np.int64], *, epoch: int) -> Iterator[list[Slice]]:
        """Slices of each step of [steps, accumulation, n] positions; the next one is prepared in a thread meanwhile."""
        steps, accumulation, size = order.shape
        flat = order.reshape(steps * accumulation, size)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="slices") as thread:
            coming = thread.submit(self.slice, flat[0], epoch=epoch) if len(flat) else None
            for step in range(steps):
                found = []
                for index in range(step * accumulation, (step + 1) * accumulation):
                    assert coming is not None
                    found.append(coming.result())
                    more = index + 1 < len(flat)
                    coming = thread.submit(self.slice, flat[index + 1], epoch=epoch) if more else None
                yield found


def gather(job: TrainingJob, task: Task, *, device: torch.device) -> Materials:
    """Open the data, the predecessors and their outputs.

    Raises:
        DataError, IntegrityError, SpecError: Something does not fit or is damaged.
    """
    train, compatibility = task.samples("train"), job.compatibility
    wanted = needs(compatibility)
    folders = job.predecessors if compatibility.losses else ()
    caches = job.caches or (None,) * len(folders)
    versions, sources = [], []
    for folder, cached in zip(folders, caches, strict=False):
        predecessor = bundle.load(folder, augment_like=job.spec.task)
        predecessor.network.to(device)
        source: targets.Cache | targets.Live = targets.Live(predecessor=predecessor)
        if cached is not None:
            source = targets.Cache.open(cached).aligned(train.ids, device=device)
        versions.append(_version(predecessor, source, train, task, wanted))
        sources.append(source)
    references = [targets.Cache.open(folder).aligned(train.ids, device=device) for folder in job.references]
    keyed = targets.plan_views(compatibility.targets, augments=task.augments) == "keyed" and any([*caches, *references])
    return Materials(
        task=task,
        train=train,
        validation=task.samples("validation"),
        versions=tuple(versions),
        sources=tuple(sources) if wanted & {"logits", "embedding"} else (),
        reference=targets.Mean(sources=tuple(references)) if references and compatibility.reference else None,
        views=compatibility.targets.views if keyed else None,
        seed=job.effective_seed,
        device=device,
    )


def _version(
    predecessor: Predecessor, source: targets.Cache | targets.Live, train: Samples, task: Task, wanted: frozenset[str]
) -> OldVersion:
    known = label_map(task.classes, predecessor.classes)[torch.from_numpy(train.labels)]
    correct, units = 0.0, None
    if "correctness" in wanted or ("prototypes" in wanted and bool((known < 0).any())):
        hits, judged, embeddings, kept = _survey(source, train, known, keep="prototypes" in wanted)
        correct = hits / judged if judged else 0.0
        if "prototypes" in wanted:
            units, _ = prototypes(embeddings, torch.from_numpy(train.labels)[kept], len(task.classes))
    return OldVersion(
        name=predecessor.name,
        classes=predecessor.classes,
        embedding_size=predecessor.embedding_size,
        head=predecessor.network.classify if "head" in wanted else None,  # type: ignore[arg-type]
        correct_share=correct,
        known_share=float((known >= 0).double().mean()),
        prototypes=units,
    )


def _survey(
    source: targets.Cache | targets.Live, train: Samples, known: Tensor, *, keep: bool
) -> tuple[int, int, Tensor, Tensor]:
    """Ask a predecessor about all training samples, clean view (or the first cached one).

    Every rank asks all, so that all know the same; of a live predecessor that costs one pass over the training data.

    Returns:
        Samples it gets right, samples of classes it knows; embeddings [n, d] and positions [n], empty without `keep`.
    """
    hits = judged = 0
    embeddings, positions = [], []
    for chunk in _chunks(len(train)):
        outputs = (
            source.rows(chunk, 0)
            if isinstance(source, targets.Cache)
            else source.fetch(chunk, train.read(chunk), None, 0)
        )
        present, labels = outputs.present.cpu(), known[torch.from_numpy(chunk)]
        asked = present & (labels >= 0)
        hits += int((asked & (outputs.logits.argmax(1).cpu() == labels)).sum())
        judged += int(asked.sum())
        if keep:
            embeddings.append(outputs.embedding.cpu()[present])
            positions.append(torch.from_numpy(chunk)[present])
    empty = torch.zeros(0, dtype=torch.int64)
    return hits, judged, torch.cat(embeddings or [torch.zeros(0, 1)]), torch.cat(positions or [empty])


def _chunks(count: int) -> Sequence[NDArray[np.int64]]:
    return [np.arange(start, min(start + _CHUNK, count), dtype=np.int64) for start in range(0, count, _CHUNK)]


def evaluate(
    task: Task, samples: Samples, batches: Sequence[NDArray[np.int64]], *, forward: Any, device: torch.device
) -> tuple[int, int]:
    """Count right answers on the clean view; a sample whose logits are not finite is wrong.

    Args:
        task: For its transform.
        samples: The split.
        batches: Positions; an empty batch still runs a forward pass, see `sampler.shard`.
        forward: Inputs -> Outputs.
        device: Where inputs go.

    Returns:
        Right answers and samples, of this rank.
    """
    right = total = 0
    for positions in batches:
        asked = positions if len(positions) else np.zeros(1, dtype=np.int64)
        logits = forward(task.transform(samples.read(asked), None).to(device)).logits.float()
        hits = (logits.argmax(1).cpu() == torch.from_numpy(samples.labels[asked])) & logits.isfinite().all(1).cpu()
        right += int(hits[: len(positions)].sum())
        total += len(positions)
    return right, total
