"""The task of the `table` section: rows with texts or numbers, classes by name. Driver and workers."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from graceful.errors import DataError, SpecError
from graceful.learners import Batch
from graceful.learners.features import FeatureLearner
from graceful.learners.text import TextLearner
from graceful.spec.networks import TransformersNetwork
from graceful.spec.table import TableTask
from graceful.tasks.base import Samples, Split
from graceful.tasks.hashing import fractions, in_split, split_digest
from graceful.tasks.image_layout import split_of
from graceful.tasks.table import rows
from graceful.tasks.table.source import joined, read_files

ALL = ""
"""Name of the split of files that name none."""


class TableOfRows:
    """The task of the `table` section.

    Files are opened on first need, so that a predecessor's learner works where its training data is gone.

    Attributes:
        augments: Always False: rows are read as they are.
        learner: Makes batches of rows; a predecessor's is restored from the files that its version keeps.
    """

    augments = False

    def __init__(self, section: TableTask) -> None:
        self._section = section
        self.learner: TextLearner | FeatureLearner = _learner(section, self)

    classes: tuple[str, ...]
    """Labels of the training rows, sorted, or those that the section names, in its order; read when first asked for."""

    def __getattr__(self, name: str) -> Any:
        if name != "classes":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        self.classes = self._class_names()
        return self.classes

    def _class_names(self) -> tuple[str, ...]:
        known = sorted(set(self._table.labels[self._members("train", share=1.0)].tolist()))
        for name in self._section.classes or ():
            if name not in known:
                raise SpecError(f"task.classes: no training row has the label {name!r}; it has {', '.join(known[:10])}")
        return self._section.classes or tuple(known)

    @property
    def notes(self) -> tuple[str, ...]:
        """How many rows were left out, as one sentence; empty where none was."""
        usable = self._table.usable
        if usable.all():
            return ()
        count = f"{int((~usable).sum())} of {len(usable)} rows"
        return (f"{count} were left out, because they lack a value in a column that is used",)

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
        table = self._table
        chosen = np.flatnonzero(self._members(split, share=self._section.share))
        names = table.labels[chosen]
        classes = tuple(sorted(set(names.tolist()))) if split in ("query", "gallery") else self.classes
        position = {name: index for index, name in enumerate(classes)}
        if self._section.classes is None:
            for row, name in zip(chosen.tolist(), names.tolist(), strict=True):
                if name not in position:
                    raise DataError(f"{table.source.place(row)}: no training row has the class {name!r}; add some")
        chosen = chosen[[name in position for name in names.tolist()]]
        labels = np.asarray([position[name] for name in table.labels[chosen].tolist()], dtype=np.int64)
        self._require_rows(split, labels, classes)
        ids = table.ids[chosen]
        content = hashlib.sha256(table.digests[chosen].tobytes()).hexdigest()
        return Samples(
            ids=ids,
            labels=labels,
            classes=classes,
            groups=table.groups[chosen],
            read=lambda positions: rows.Rows(table.source, chosen[positions], inputs=table.inputs),
            digest=split_digest(ids, labels, classes, content),
        )

    @cached_property
    def _table(self) -> _Columns:
        return _Columns(self._section)

    def _members(self, split: str, *, share: float) -> NDArray[np.bool_]:
        """Return which rows belong to a split, [N]; of the training rows, a share."""
        table, section = self._table, self._section
        split_names = {name for name in table.splits.tolist() if name is not None} - {ALL}
        if not split_names:
            if split in ("query", "gallery"):
                raise KeyError(split)
            members = in_split(table.groups, split, seed=section.split)
        elif split in split_names and split != "train":
            members = table.splits == split
        elif split in ("query", "gallery"):
            raise KeyError(split)
        elif split == "test":
            raise DataError("task.files: there are splits but no test split; add one")
        else:
            low, high = self._train_share(split, split_names)
            row_fractions = fractions(table.groups, salt=2 * section.split)
            members = (table.splits == "train") & (row_fractions >= low) & (row_fractions < high)
        if split == "train" and share < 1.0:
            members = members & (fractions(table.groups, salt=2 * section.split + 1) < share)
        return np.asarray(members & table.usable)

    @staticmethod
    def _train_share(split: str, split_names: set[str]) -> tuple[float, float]:
        """Return the range of the training rows of a split; a missing validation or constraint split gets a tenth."""
        missing = [name for name in ("validation", "constraint") if name not in split_names]
        if split == "train":
            return (0.0, 1.0 - 0.1 * len(missing))
        start = 1.0 - 0.1 * (len(missing) - missing.index(split))
        return (start, start + 0.1)

    def _require_rows(self, split: Split, labels: NDArray[np.int64], classes: tuple[str, ...]) -> None:
        counts = np.bincount(labels, minlength=len(classes))
        if len(labels) == 0 or (split == "train" and not counts.all()):
            empty_classes = [name for name, count in zip(classes, counts, strict=True) if count == 0]
            problem = f"no {split} row" + (f" of class {empty_classes[0]!r}" if empty_classes else "")
            raise DataError(f"task.files: {problem} ({len(empty_classes)} such classes); add rows, or raise task.share")


class _Columns:
    """What the task itself needs of a table, one entry for each row.

    Attributes:
        source: The table.
        inputs: Names of the columns that are embedded.
        digests: [N, D] digest of all columns, because a predecessor may read others than this version.
        labels, splits: [N] texts or None.
        ids, groups: [N] strings.
        usable: [N] whether every column that is used has a value.
    """

    def __init__(self, section: TableTask) -> None:
        columns = section.columns
        self.inputs = inputs = [name for name in (columns.text, columns.pair, *columns.features) if name is not None]
        of_text = (columns.text, columns.pair, columns.label, columns.id, columns.group, columns.split)
        exact = [name for name in of_text if name]
        files_by_split = section.files if isinstance(section.files, dict) else {ALL: section.files}
        parts = {split: read_files(files, texts=exact) for split, files in files_by_split.items()}
        self.source = joined([table for tables in parts.values() for table in tables])
        for name in inputs:
            rows.require_type(self.source, name, numbers=name in columns.features)
        self._inputs_digests, self.usable = rows.row_digests(self.source, inputs)
        self.digests, _ = rows.row_digests(self.source, sorted(self.source.rows.column_names))
        self.labels = rows.as_texts(self.source, columns.label, key="columns.label")
        self.usable &= self.labels != None  # noqa: E711  # elementwise
        counts = {split: sum(len(table) for _, table in tables) for split, tables in parts.items()}
        self.splits = self._split_names(section, counts)
        self._unnamed = columns.id is None
        self.ids = self._ids(columns.id)
        self.groups = self._groups(columns.group)
        if section.on_bad_row == "refuse" and not self.usable.all():
            bad = np.flatnonzero(~self.usable)
            more = f" (and {len(bad) - 1} other rows)" if len(bad) > 1 else ""
            raise DataError(
                f"{self.source.place(int(bad[0]))}: no value in one of {', '.join([*inputs, columns.label])}{more};"
                " correct the rows, or write task.on_bad_row: skip"
            )

    def _ids(self, column: str | None) -> NDArray[np.str_]:
        """Return the names of the rows; without a column, their digests, and a number behind those that repeat.

        Raises:
            DataError: Two rows of the column have the same name.
        """
        if column is None:
            return _numbered([digest.tobytes().hex() for digest in self._inputs_digests])
        names = self._texts(column, "columns.id")
        first: dict[str, int] = {}
        for row in np.flatnonzero(self.usable).tolist():
            before = first.setdefault(str(names[row]), row)
            if before != row:
                other = self.source.place(before)
                raise DataError(
                    f"{self.source.place(row)}: {column} {str(names[row])!r} is that of {other}, too; give each row a"
                    " name of its own, or leave columns.id out"
                )
        return names

    def _groups(self, column: str | None) -> NDArray[np.str_]:
        """Return what belongs together; without a column, rows that embed the same stay in one split."""
        if column is not None:
            return self._texts(column, "columns.group")
        return np.asarray([name.partition("-")[0] for name in self.ids.tolist()]) if self._unnamed else self.ids

    def _texts(self, column: str, key: str) -> NDArray[np.str_]:
        values = rows.as_texts(self.source, column, key=key)
        self.usable &= values != None  # noqa: E711
        return np.asarray(["" if value is None else value for value in values.tolist()], dtype=np.str_)

    def _split_names(self, section: TableTask, counts: dict[str, int]) -> NDArray[np.object_]:
        column = section.columns.split
        if column is None:
            return np.repeat(np.asarray(list(counts), dtype=object), list(counts.values()))
        written = rows.as_texts(self.source, column, key="columns.split")
        meaning = {name: split_of(name) for name in dict.fromkeys(written.tolist()) if name is not None}
        for name, split in meaning.items():
            if split is None:
                where = self.source.place(written.tolist().index(name))
                raise DataError(f"{where}: {name!r} is no split; write train, validation or test")
        return np.asarray([meaning.get(name) for name in written.tolist()], dtype=object)


def _numbered(names: list[str]) -> NDArray[np.str_]:
    """Return names of which each is different: `name`, `name-2`, `name-3` for three that are the same."""
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return np.asarray(numbered, dtype=np.str_)


def _learner(section: TableTask, task: TableOfRows) -> TextLearner | FeatureLearner:
    if isinstance(section.network, TransformersNetwork):
        return TextLearner(section.columns, section.network)
    return FeatureLearner(section.columns, section.network, training=lambda: task.samples("train"))
