"""What a training step eats: inputs, labels, what predecessors say about them; one slice ahead. Runs in workers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graceful import targets
from graceful.chain import OldOutputs, Predecessor, label_map
from graceful.errors import DataError, SpecError
from graceful.losses.influence import prototypes
from graceful.models import bundle
from graceful.models.base import Forward
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
    reference: OldOutputs | None


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
        reference = self.reference.fetch(positions, items, views, index) if self.reference else None
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
    if job.data not in (None, train.digest):
        raise DataError(
            f"{job.run_dir}: the training data are not those this run began with (SHA-256 {train.digest[:12]}..., then"
            f" {str(job.data)[:12]}...); restore them, or give the version another name"
        )
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


def try_out(task: Task, network: nn.Module, samples: Samples) -> None:
    """Run an untrained network on one sample, so that one that does not fit is refused before it is trained.

    Raises:
        SpecError: It does not take what the transform gives, or does not give an embedding and a logit for each class.
    """
    inputs = task.transform(samples.read(np.zeros(1, dtype=np.int64)), None)
    given = f"one sample, {list(inputs.shape)} {str(inputs.dtype).removeprefix('torch.')}"
    network.eval()
    try:
        with torch.no_grad():
            outputs = Forward(network)(inputs)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as e:
        reason = " ".join(str(e).split())
        raise SpecError(f"task: the network fails on {given}: {reason}; mend network() or transform()") from e
    wanted, found = [1, len(task.classes)], list(outputs.logits.shape)
    if found != wanted or outputs.embedding.shape[:-1] != (1,):
        raise SpecError(
            f"task: the network makes an embedding {list(outputs.embedding.shape)} and logits {found} of {given};"
            f" must be [1, d] and {wanted}, one logit for each class"
        )


def _version(
    predecessor: Predecessor, source: targets.Cache | targets.Live, train: Samples, task: Task, wanted: frozenset[str]
) -> OldVersion:
    """What the objective must know beforehand. Every rank asks about all samples, so that all know the same."""
    labels = torch.from_numpy(train.labels)
    known = label_map(task.classes, predecessor.classes)[labels]
    clean = source if isinstance(source, targets.Cache) and source.views is None else None
    units = None
    if "prototypes" in wanted and bool((known < 0).any()):
        blocks = _clean(clean or targets.Live(predecessor=predecessor), train)
        embeddings, kept = zip(*((out.embedding.cpu(), out.present.cpu()) for _, out in blocks), strict=True)
        present = torch.cat(kept)
        units, _ = prototypes(torch.cat(embeddings)[present], labels[present], len(task.classes))
    return OldVersion(
        name=predecessor.name,
        classes=predecessor.classes,
        embedding_size=predecessor.embedding_size,
        head=predecessor.network.classify if "head" in wanted else None,  # type: ignore[arg-type]
        correct_share=_correct_share(source, train, known) if "correctness" in wanted else None,
        known_share=float((known >= 0).double().mean()),
        prototypes=units,
    )


def _correct_share(source: targets.Cache | targets.Live, train: Samples, known: Tensor) -> float:
    """Share of the samples of known classes that the predecessor gets right: over the cached views, as training will
    meet them, or of a live one on the clean view. 0 where it knows none.
    """
    if isinstance(source, targets.Cache):
        share = source.correct(known.numpy())
        return 0.0 if math.isnan(share) else share
    hits = judged = 0
    for chunk, outputs in _clean(source, train):
        asked = outputs.present.cpu() & (known[chunk] >= 0)
        hits += int((asked & (outputs.logits.argmax(1).cpu() == known[chunk])).sum())
        judged += int(asked.sum())
    return hits / judged if judged else 0.0


def _clean(source: targets.Source, train: Samples) -> Iterator[tuple[Tensor, OldOutputs]]:
    """Positions and outputs of all training samples on the clean view, chunk by chunk."""
    for start in range(0, len(train), _CHUNK):
        chunk = np.arange(start, min(start + _CHUNK, len(train)), dtype=np.int64)
        yield torch.from_numpy(chunk), source.fetch(chunk, train.read(chunk), None, 0)


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
