"""The glyphs task: characters of real typefaces, split by design. Driver and workers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graceful.errors import DataError, SpecError
from graceful.spec import GlyphsTask
from graceful.tasks.augment import random_shift
from graceful.tasks.base import Samples, Split
from graceful.tasks.glyphs.archive import Archive, open_archive
from graceful.tasks.glyphs.characters import ALL_SEEN, ALPHANUMERIC, CHARACTERS, CLOSED_SET, OPEN_SET, class_of
from graceful.tasks.hashing import fractions, split_digest

SHARES: dict[str, float] = {"train": 0.5, "validation": 0.12, "constraint": 0.08, "test": 0.3}
"""Shares of the designs, taken one after another in the order of a hash."""


class Glyphs:
    """The task of the `glyphs` section.

    Items are uint8 [B, 28, 28], ids `face/U+0041`, groups the designs. Splits are taken by design, so that no design
    is in two of them; the query and gallery splits hold the open set in the two halves of the test designs.
    """

    def __init__(self, section: GlyphsTask) -> None:
        characters = ALL_SEEN if section.characters == "all" else CLOSED_SET
        count = len(characters) if section.classes is None else section.classes
        if count > len(characters):
            hint = "" if section.characters == "all" else f"; characters: all has {len(ALL_SEEN)}"
            raise SpecError(f"task.classes: must be at most {len(characters)}, got {count}{hint}")
        self._section = section
        self.classes = characters[:count]
        self.augments = section.shift > 0

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        """Build the section's network for [B, 1, 28, 28] inputs."""
        from graceful import models

        return models.build(self._section.network, classes=len(classes), input_shape=(1, 28, 28))

    def samples(self, split: Split) -> Samples:
        """Open a split; `read` returns uint8 [B, 28, 28].

        Raises:
            DataError: The archive is missing, or so few designs are left that a class has no training image.
            IntegrityError: The archive is damaged.
            KeyError: query and gallery when the section switches the open set off.
        """
        archive = open_archive()
        if split in ("query", "gallery"):
            if not self._section.open_set:
                raise KeyError(split)
            return self._open_set(archive, _halves(self._designs(archive, "test"), self._section.split)[split])
        return self._closed_set(archive, split)

    def transform(self, items: Any, views: NDArray[np.uint64] | None) -> Tensor:
        """Turn uint8 [B, 28, 28] into float32 [B, 1, 28, 28] in [0, 1]; translated when there are views."""
        images = np.asarray(items)
        if views is not None:
            images = random_shift(images, views, self._section.shift)
        return torch.from_numpy(images.astype(np.float32)).unsqueeze(1) / 255.0

    def _designs(self, archive: Archive, split: Split) -> NDArray[np.str_]:
        """Return the designs of a split in growth order; of train, the share the section asks for."""
        designs = split_designs(archive.keys, self._section.split)[split]
        if split == "train":
            designs = designs[: int(np.ceil(self._section.fonts * len(designs)))]
        return designs

    def _closed_set(self, archive: Archive, split: Split) -> Samples:
        position = {name: index for index, name in enumerate(self.classes)}
        label_of = np.asarray([position.get(class_of(c), -1) for c in CHARACTERS])
        samples = _select(archive, self._designs(archive, split), label_of, self.classes)
        counts = np.bincount(samples.labels, minlength=len(self.classes))
        if len(samples) == 0 or (split == "train" and not counts.all()):
            missing = [name for name, count in zip(self.classes, counts, strict=True) if count == 0]
            raise DataError(
                f"task.fonts: {self._section.fonts:g} leaves no {split} image of {' '.join(missing)}; use a larger one"
            )
        return samples

    def _open_set(self, archive: Archive, designs: NDArray[np.str_]) -> Samples:
        label_of = np.asarray([OPEN_SET.find(c) for c in CHARACTERS])
        return _select(archive, designs, label_of, tuple(OPEN_SET))


def split_designs(keys: NDArray[np.str_], seed: int) -> dict[str, NDArray[np.str_]]:
    """Split designs 50/12/8/30, each part in its growth order.

    Args:
        keys: [F] design of each face, repetitions allowed.
        seed: The section's `split`: another seed, another split.

    Returns:
        Designs by split name; together every design once.
    """
    designs = np.unique(keys)
    shuffled = designs[np.argsort(fractions(designs, salt=2 * seed), kind="stable")]
    bounds = np.rint(np.cumsum([0.0, *SHARES.values()]) * len(designs)).astype(int)
    parts = {name: shuffled[bounds[i] : bounds[i + 1]] for i, name in enumerate(SHARES)}
    return {name: part[np.argsort(fractions(part, salt=2 * seed + 1), kind="stable")] for name, part in parts.items()}


def _halves(designs: NDArray[np.str_], seed: int) -> dict[str, NDArray[np.str_]]:
    """Return two disjoint halves of the test designs."""
    shuffled = designs[np.argsort(fractions(designs, salt=2 * seed + 1), kind="stable")]
    return {"query": shuffled[0::2], "gallery": shuffled[1::2]}


def _select(
    archive: Archive, designs: NDArray[np.str_], label_of: NDArray[np.int64], classes: tuple[str, ...]
) -> Samples:
    """Return the samples of some designs whose character has a label; [170] labels, -1 where there is none.

    Letters and digits come first, then the others, each by face and character. Images stay in the archive's arrays.
    """
    in_split = np.isin(archive.keys, designs)
    split = len(ALPHANUMERIC)
    sources: list[NDArray[np.uint8]] = []
    picks: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
    if (label_of[:split] >= 0).any():
        face, character = np.nonzero(in_split[:, None] & (label_of[None, :split] >= 0))
        sources.append(archive.alphanumeric().reshape(-1, 28, 28))
        picks.append((face, character, face * split + character))
    if (label_of[split:] >= 0).any():
        images, face, character = archive.others()
        chosen = np.flatnonzero(in_split[face] & (label_of[character] >= 0))
        sources.append(images)
        picks.append((face[chosen], character[chosen], chosen))
    face, character = (np.concatenate([pick[part] for pick in picks]) for part in (0, 1))
    labels = label_of[character].astype(np.int64)
    code = np.asarray([f"/U+{ord(c):04X}" for c in CHARACTERS])
    ids = np.char.add(archive.faces[face], code[character])
    return Samples(
        ids=ids,
        labels=labels,
        classes=classes,
        groups=archive.keys[face],
        read=_Reader(sources=sources, rows=[pick[2] for pick in picks]),
        digest=split_digest(ids, labels, classes, archive.digest),
    )


class _Reader:
    """Positions [B] -> uint8 [B, 28, 28], out of one or two arrays laid end to end."""

    def __init__(self, *, sources: list[NDArray[np.uint8]], rows: list[NDArray[np.int64]]) -> None:
        self._sources = sources
        self._source = np.repeat(np.arange(len(rows)), [len(source_rows) for source_rows in rows])
        self._row = np.concatenate(rows)

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        if len(self._sources) == 1:
            return self._sources[0][self._row[positions]]
        images = np.empty((len(positions), 28, 28), np.uint8)
        for number, source in enumerate(self._sources):
            in_source = self._source[positions] == number
            images[in_source] = source[self._row[positions][in_source]]
        return images
