"""The task of the `table` section: rows with texts or numbers, classes by name. Driver and workers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from graceful import storage
from graceful.errors import DataError, SpecError
from graceful.learners import Batch
from graceful.learners.features import FeatureLearner
from graceful.learners.images import ImageLearner, options_of
from graceful.learners.text import TextLearner
from graceful.spec.networks import Perceptron, TransformersNetwork
from graceful.spec.table import TableTask
from graceful.tasks.base import Samples, Split
from graceful.tasks.table import judged, pictures, rows
from graceful.tasks.table.division import Division, Part
from graceful.tasks.table.index import open_index
from graceful.tasks.table.index_build import ALL, inputs_of
from graceful.tasks.table.mapping import mappings_of
from graceful.tasks.table.source import BATCH, Table, joined, read_files
from graceful.tasks.text_notes import cut_note


class TableOfRows:
    """The task of the `table` section.

    Files are opened on first need, so that a predecessor's learner works where its training data is gone.

    Attributes:
        augments: Whether images are shifted or flipped in training, or words of texts left out.
        learner: Makes batches of rows; a predecessor's is restored from the files that its version keeps.
    """

    def __init__(self, section: TableTask) -> None:
        self._section = section
        self.learner: TextLearner | FeatureLearner | ImageLearner = _learner(section, self)
        self.augments = section.shift > 0 or section.flip or section.augment is not None

    classes: tuple[str, ...]
    """Labels of the training rows, sorted, or those that the section names, in its order; read when first asked for."""

    def __getattr__(self, name: str) -> Any:
        if name != "classes":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        self.classes = self._class_names()
        return self.classes

    def _class_names(self) -> tuple[str, ...]:
        known = self._division.known
        for name in self._section.classes or ():
            if name not in known:
                raise SpecError(f"task.classes: no training row has the label {name!r}; it has {', '.join(known[:10])}")
        return self._section.classes or known

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what a reader of a report must know of the rows, one sentence each."""
        index = self._division.index
        notes = []
        if index.bad:
            count = f"{index.bad} of {len(index)} rows"
            notes.append(f"{count} were left out, because they lack a value in a column that is used")
        parts = {name: self._division.part(name) for name in ("validation", "constraint", "test")}
        counts = (
            ("embed the same as a training row", {name: part.repeats for name, part in parts.items()}),
            ("differ from a training row in spelling alone", {name: part.alike for name, part in parts.items()}),
        )
        for what, by_split in counts:
            shares = [f"{count} of {len(parts[name])} {name} rows" for name, count in by_split.items() if count]
            if shares:
                notes.append(f"{', '.join(shares)} {what}; task.columns.group keeps rows together that belong together")
        if isinstance(self.learner, TextLearner):
            notes += cut_note(self.learner, self.samples("train"), what="training rows")
        return tuple(notes)

    def restored(self, assets: Mapping[str, Any]) -> TableOfRows:
        """Return this task with the learner that has the assets of another version; this task stays as it is."""
        task = copy.copy(self)
        task.learner = self.learner.restored(assets)
        return task

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        """Build the section's network; where the learner was restored, its weights are still to be filled."""
        return self.learner.network(classes)

    def transform(self, items: Any, views: NDArray[np.uint64] | None) -> Batch:
        """As the learner's `collate`."""
        return self.learner.collate(items, views)

    def samples(self, split: Split) -> Samples:
        """Open a split; `read` returns `rows.Rows`.

        Raises:
            DataError: An empty split, a class without a training row, a class that only other splits have.
            KeyError: query or gallery, where the files have none.
        """
        division = self._division
        index, named = division.index, division.index.splits
        if split not in division.names:
            raise KeyError(split)
        if split == "test" and named and split not in named:
            raise DataError("task.files: there are splits but no test split; add one")
        part = division.part(split)
        if split not in ("query", "gallery"):
            self.classes  # noqa: B018  # refuses classes that no training row has
        if part.stray is not None:
            row, label = part.stray
            raise DataError(f"{index.table.place(row)}: no training row has the class {label!r}; add some")
        self._require_rows(split, part)
        self._require_weights(part)
        pages = mappings_of([part.rows, part.labels, part.weights])

        def read(positions: NDArray[np.int64]) -> rows.Rows:
            pages.read(len(positions))
            return self._rows(index.table, part.rows[positions].astype(np.int64))

        samples = Samples(
            ids=division.ids(split),
            labels=part.labels,
            classes=part.classes,
            groups=division.groups(split),
            read=read,
            digest=self._digest(index.table, part),
            weights=part.weights,
        )
        return self._judged(samples) if split == "query" and self._section.judgments is not None else samples

    def _judged(self, queries: Samples) -> Samples:
        """Return the queries with their judgments."""
        assert self._section.judgments is not None
        names = [np.asarray(ids, dtype=np.str_) for ids in (queries.ids, self.samples("gallery").ids)]
        judgments = judged.read(self._section.judgments, queries=names[0], items=names[1])
        return replace(queries, judgments=judgments, digest=storage.sha256_json([queries.digest, judgments.digest()]))

    def _rows(self, table: Table, positions: NDArray[np.int64]) -> rows.Rows:
        image = self._section.columns.image
        inputs = [] if image is not None else inputs_of(self._section)
        return rows.Rows(table, positions, inputs=inputs, image=image, named=self._section.columns.text is None)

    def _digest(self, table: Table, part: Part) -> str:
        """Return the digest of a split, which changes when images do that the rows name."""
        image = self._section.columns.image
        tags = [] if image is None else pictures.tags(table, image, part.rows.astype(np.int64))
        return storage.sha256_json([part.digest, tags]) if tags else part.digest

    @staticmethod
    def _require_weights(part: Part) -> None:
        """Refuse training rows none of which counts."""
        if part.weights is None:
            return
        blocks = (part.weights[start : start + BATCH] for start in range(0, len(part), BATCH))
        if not any(block.any() for block in blocks):
            raise DataError(f"task.columns.weight: all {len(part)} training rows have weight 0; correct the column")

    @cached_property
    def _division(self) -> Division:
        """Return the table's splits, which are found once on a node.

        Raises:
            DataError: A row that lacks a value, where such rows are refused; or as of `index.open_index`.
        """
        section, columns = self._section, self._section.columns
        naming = (columns.text, columns.pair, columns.label, columns.id, columns.group, columns.split)
        exact = [name for name in (*naming, *columns.categories) if name]
        files_by_split = section.files if isinstance(section.files, dict) else {ALL: section.files}
        parts = [
            (split, part)
            for split, files in files_by_split.items()
            for part in read_files(files, texts=exact, image=columns.image)
        ]
        table = joined([part for _, part in parts])
        for name in inputs_of(section):
            rows.require_column(table, name, key="columns")
            if name == columns.image:
                pictures.require_images(table, name)
            elif name in columns.categories:
                rows.require_texts(table, name, key="columns.categories")
            else:
                rows.require_type(table, name, numbers=name in columns.features)
        if columns.weight is not None:
            rows.require_type(table, columns.weight, numbers=True, key="weight")
        index = open_index(section, table, split_rows=[(split, len(part.rows)) for split, part in parts])
        if section.on_bad_row == "refuse" and index.first_bad is not None:
            more = f" (and {index.bad - 1} other rows)" if index.bad > 1 else ""
            needed = [*inputs_of(section), columns.label, *filter(None, [columns.weight])]
            raise DataError(
                f"{table.place(index.first_bad)}: no value in one of {', '.join(needed)}"
                f"{more}; correct the rows, or write task.on_bad_row: skip"
            )
        return Division(index)

    @staticmethod
    def _require_rows(split: Split, part: Part) -> None:
        empty = [name for name, count in zip(part.classes, part.counts, strict=True) if count == 0]
        if len(part) == 0 or (split == "train" and empty):
            problem = f"no {split} row" + (f" of class {empty[0]!r}" if empty else "")
            raise DataError(f"task.files: {problem} ({len(empty)} such classes); add rows, or raise task.share")


def _learner(section: TableTask, task: TableOfRows) -> TextLearner | FeatureLearner | ImageLearner:
    network = section.network
    if isinstance(network, Perceptron):
        return FeatureLearner(section.columns, network, training=lambda: task.samples("train"))
    if section.columns.image is not None:
        return ImageLearner(network, options_of(section), column=section.columns.image)
    assert isinstance(network, TransformersNetwork), "only texts are left"
    return TextLearner(section.columns, network, augment=section.augment)
