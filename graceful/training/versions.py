"""Open the predecessors of a run: their label maps, and the source of their outputs. Runs in workers.

A predecessor whose outputs are cached is opened without its weights, unless a loss reads its head: fifty releases cost
a worker no fifty networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from graceful import spec, targets
from graceful.chain import Completeness, OldOutputs, Predecessor, label_map, on_device
from graceful.chain.ancestor import Ancestor
from graceful.chain.blending import Known
from graceful.chain.old_labels import OldLabels
from graceful.learners import roles
from graceful.losses.ops.prototypes import prototypes
from graceful.targets.mixture import Member, Mixture
from graceful.targets.teacher import OldSide
from graceful.tasks.base import Samples, Task
from graceful.tasks.portions import portion
from graceful.training.merging import Group, plan
from graceful.training.objective import OldVersion

_CHUNK = 1024


@dataclass(frozen=True, kw_only=True)
class Opened:
    """One predecessor, ready for training.

    Attributes:
        version: What the objective must know.
        source: Its outputs.
        gallery: Those of its gallery encoder, where a loss reads them and it is another one.
        read: Whether a step reads them; else they are part of merged targets, or no loss needs them.
    """

    version: OldVersion
    source: targets.Cache | targets.Live
    gallery: targets.Cache | targets.Live | None = None
    read: bool = False

    @property
    def outputs(self) -> targets.Source:
        """Return what a step reads."""
        if self.gallery is None:
            return self.source
        return targets.TwoEncoders(query=self.source, gallery=self.gallery)


@dataclass(frozen=True, kw_only=True)
class MergedTerm:
    """Terms of several predecessors that are one.

    Attributes:
        group: Which.
        mixture: Their target; `remix` it before the first batch.
    """

    group: Group
    mixture: Mixture


def opened(ancestor: Ancestor, *, task: Task, train: Samples, wanted: frozenset[str], device: torch.device) -> Opened:
    """Open one predecessor. Every rank asks about all samples, so that all know the same.

    Args:
        ancestor: The predecessor; weights that are not needed may be missing, see `programs.availability`.
        task: The task of the new version.
        train: The training split.
        wanted: What `objective.needs` says.
        device: Where outputs go.

    Raises:
        DataError, IntegrityError, StorageError: Something is missing, does not fit or is damaged.
    """
    predecessor = None
    if ancestor.cache is None or wanted & {"head", "prototypes"}:
        predecessor = on_device(ancestor.stored.open(), device)
    source: targets.Cache | targets.Live
    if ancestor.cache is not None:
        source = targets.Cache.open(ancestor.cache).aligned(train.ids, device=device)
    else:
        assert predecessor is not None
        source = targets.Live(predecessor=predecessor)
    description = predecessor or ancestor.stored.description
    old_label_of = label_map(task.classes, description.classes).numpy()
    old_labels = OldLabels(old_label_of=old_label_of, labels=train.labels)
    units = None
    headless = predecessor is not None and predecessor.completeness is Completeness.NOTHING
    if predecessor is not None and "prototypes" in wanted and (headless or old_labels.known_share() < 1.0):
        units = _prototypes(predecessor, source, train, classes=len(task.classes))
    reads_head = "head" in wanted and not headless
    version = OldVersion(
        name=description.name,
        classes=description.classes,
        embedding_size=description.embedding_size,
        head=predecessor.network.classify if predecessor and reads_head else None,  # type: ignore[arg-type]
        correct_share=_correct_share(source, train, old_labels) if "correctness" in wanted else None,
        known_share=old_labels.known_share(),
        near_chance=ancestor.near_chance,
        prototypes=units,
    )
    gallery = _gallery(ancestor, predecessor, train=train, device=device) if "gallery" in wanted else None
    return Opened(version=version, source=source, gallery=gallery)


def _gallery(
    ancestor: Ancestor, predecessor: Predecessor | None, *, train: Samples, device: torch.device
) -> targets.Cache | targets.Live | None:
    """Return the source of a predecessor's gallery embeddings; None where it has one encoder for everything."""
    if ancestor.gallery_cache is not None:
        return targets.Cache.open(ancestor.gallery_cache).aligned(train.ids, device=device)
    if ancestor.cache is not None or predecessor is None or len(roles(predecessor.learner)) == 1:
        return None
    return targets.Live(predecessor=replace(predecessor, role="gallery"))


def grouped(compatibility: spec.Compatibility, classes: Sequence[str], chain: Sequence[Opened]) -> tuple[Group, ...]:
    """Return which terms of these predecessors merge; see `merging.plan`."""
    return plan(
        compatibility,
        known=[label_map(classes, predecessor.version.classes).tolist() for predecessor in chain],
        sizes=[predecessor.version.embedding_size for predecessor in chain],
        cached=[isinstance(predecessor.source, targets.Cache) for predecessor in chain],
    )


def merged_term(
    group: Group, chain: Sequence[Opened], *, classes: Sequence[str], train: Samples, device: torch.device
) -> MergedTerm:
    """Return a group with its merged target, not mixed yet."""
    members = []
    for predecessor in (chain[index] for index in group.versions):
        assert isinstance(predecessor.source, targets.Cache)
        old_label_of = label_map(classes, predecessor.version.classes).numpy()
        columns = None if group.columns is None else old_label_of[np.asarray(group.columns)]
        members.append(
            Member(
                name=predecessor.version.name,
                cache=predecessor.source,
                columns=columns,
                labels=OldLabels(old_label_of=old_label_of, labels=train.labels),
                correct_share=predecessor.version.correct_share,
                near_chance=predecessor.version.near_chance,
            )
        )
    mixture = Mixture(group.loss, members, device=device, scratch=members[0].cache.folder.parent)
    return MergedTerm(group=group, mixture=mixture)


def old_side(predecessor: Opened, *, classes: Sequence[str]) -> OldSide:
    """Return a predecessor as a side of the blend's teacher; its outputs must be cached."""
    assert isinstance(predecessor.source, targets.Cache)
    known = Known.of(label_map(classes, predecessor.version.classes))
    return OldSide(name=predecessor.version.name, cache=predecessor.source, known=known)


def _prototypes(
    predecessor: Predecessor, source: targets.Cache | targets.Live, train: Samples, *, classes: int
) -> Tensor:
    clean = source if isinstance(source, targets.Cache) and source.views is None else None
    blocks = _clean(clean or targets.Live(predecessor=predecessor), train)
    embeddings, present_blocks = zip(*((out.embedding.cpu(), out.present.cpu()) for _, out in blocks), strict=True)
    present = torch.cat(present_blocks)
    units, _ = prototypes(torch.cat(embeddings)[present], torch.from_numpy(np.array(train.labels))[present], classes)
    return units


def _correct_share(source: targets.Cache | targets.Live, train: Samples, known: OldLabels) -> float:
    """Share of the samples of known classes that the predecessor gets right: over the cached views, as training will
    meet them, or of a live one on the clean view. 0 where it knows none.
    """
    if isinstance(source, targets.Cache):
        share = source.correct_share(known)
        return 0.0 if math.isnan(share) else share
    hits = total = 0
    for chunk, outputs in _clean(source, train):
        labels = torch.from_numpy(known[chunk.numpy()])
        eligible = outputs.present.cpu() & (labels >= 0)
        hits += int((eligible & (outputs.logits.argmax(1).cpu() == labels)).sum())
        total += int(eligible.sum())
    return hits / total if total else 0.0


def _clean(source: targets.Cache | targets.Live, train: Samples) -> Iterator[tuple[Tensor, OldOutputs]]:
    """Yield the positions and outputs of all training samples on the clean view, chunk by chunk; a cache needs no
    samples."""
    live = isinstance(source, targets.Live)
    size = (
        portion(train, source.predecessor.learner.collate, most=_CHUNK) if isinstance(source, targets.Live) else _CHUNK
    )
    for start in range(0, len(train), size):
        chunk = np.arange(start, min(start + size, len(train)), dtype=np.int64)
        yield torch.from_numpy(chunk), source.fetch(chunk, train.read(chunk) if live else None, None, 0)
