"""Tables: rows of Parquet, Arrow, JSON lines or CSV files. Runs in every process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from graceful.sections import Section
from graceful.spec.data_files import Files, FilesBySplit, require_splits
from graceful.spec.networks import Network, Perceptron, PretrainedImages, is_pretrained, require_fitting


class Columns(Section):
    """Which column of a table holds what."""

    text: str | None = None
    """Text to embed."""
    pair: str | None = None
    """A second text that is read with the first; None: there is none."""
    features: tuple[str, ...] = ()
    """Numbers to embed."""
    categories: Annotated[tuple[str, ...], Field(exclude_if=lambda names: not names)] = ()
    """Texts or whole numbers that stand for kinds, such as a colour or a code, to embed beside numbers. Values that the
    training rows do not have share one embedding."""
    missing: Annotated[Literal["refuse", "mean", "indicator"], Field(exclude_if=lambda how: how == "refuse")] = "refuse"
    """Numbers and categories that a row lacks. refuse: as `on_bad_row` says; mean: a number is the mean of the training
    rows, a category counts as unknown; indicator: the same, and the network reads whether a number is there."""
    image: Annotated[str | None, Field(exclude_if=lambda image: image is None)] = None
    """Images to embed: those of Hugging Face datasets, bytes of files, or paths relative to the table."""
    label: str = "label"
    """Name or number of the class."""
    id: str | None = None
    """A name that never changes for a row; None: a hash of what is embedded."""
    group: str | None = None
    """What belongs together: groups are never split, and intervals are drawn over them; None: each row alone."""
    split: str | None = None
    """Which split a row is in: train, validation, constraint, test, query or gallery; None: by file, or by hash."""
    weight: Annotated[str | None, Field(exclude_if=lambda name: name is None)] = None
    """A number from 0 on: what a row counts in the task's loss, relative to the mean of the training rows; None: all
    rows count the same. Evaluation does not read it."""

    @model_validator(mode="after")
    def _one_input(self) -> Columns:
        tabular = bool(self.features or self.categories)
        if sum((self.text is not None, tabular, self.image is not None)) != 1:
            raise ValueError("must name one of text, features and image; write columns: {text: COLUMN}")
        if self.missing != "refuse" and not tabular:
            raise ValueError("missing is for features and categories; leave it out")
        both = set(self.features) & set(self.categories)
        if both:
            raise ValueError(f"features and categories both name {min(both)}; keep it in one of them")
        if self.pair is not None and self.text is None:
            raise ValueError("pair needs text; name the first text as well")
        return self


class WordDropout(Section):
    """Leave words of texts out in training, other ones in each view; predecessors see the same words."""

    kind: Literal["word_dropout"] = "word_dropout"
    p: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Probability of a word to be left out; words are what white space separates."""


class JudgmentFiles(Section):
    """Which items of the gallery split answer which query, and how well; the columns are those of BEIR's `qrels`."""

    files: Files
    """As `files` of the task."""
    query: str = "query-id"
    """Column with ids of queries."""
    item: str = "corpus-id"
    """Column with ids of items."""
    grade: str | None = "score"
    """Column with whole numbers, 0: irrelevant; None: every row names an item that answers its query."""


class TableTask(Section):
    """Rows of Parquet, Arrow, JSON lines or CSV files, read with Hugging Face datasets."""

    kind: Literal["table"] = "table"
    files: FilesBySplit
    """Files, patterns such as `data/*.parquet`, or folders of `save_to_disk`, relative to the spec, or s3:// addresses;
    or these for each split."""
    columns: Columns
    """Which column holds what."""
    judgments: Annotated[JudgmentFiles | None, Field(exclude_if=lambda judgments: judgments is None)] = None
    """Judgments that decide in place of labels which rows of the gallery split answer a query."""
    classes: tuple[str, ...] | None = None
    """Classes to learn, in this order; None: all labels of the training rows, sorted."""
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the training rows (of their groups) this version may learn from, in a fixed order: growing data."""
    split: Annotated[int, Field(ge=0)] = 0
    """Seed of the split by hash."""
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    """refuse: a row without text, label or id ends the run with its file and number; skip: such rows are left out, and
    the report says how many."""
    size: Annotated[int | None, Field(ge=8, le=1024, exclude_if=lambda size: size == 64)] = 64
    """Images are resized to fit and centre-cropped to size x size; None: to the size that the checkpoint of `network`
    was trained with, which is the default where `network` is of another package."""
    channels: Annotated[Literal[1, 3], Field(exclude_if=lambda channels: channels == 3)] = 3
    """1: grey images; 3: colour."""
    decode: Annotated[Literal["full", "reduced"], Field(exclude_if=lambda decode: decode == "full")] = "full"
    """full: decode every pixel of images, then scale; reduced: decode large JPEGs at a half, a quarter or an eighth."""
    shift: Annotated[int, Field(ge=0, exclude_if=lambda shift: shift == 0)] = 0
    """Random translation of images in training, in pixels, less than `size`; 0: none."""
    flip: Annotated[bool, Field(exclude_if=lambda flip: not flip)] = False
    """Random horizontal flips of images in training."""
    augment: Annotated[WordDropout | None, Field(exclude_if=lambda augment: augment is None)] = None
    """How texts are changed in training; None: they are read as they are."""
    network: Annotated[Perceptron | Network | PretrainedImages, Field(discriminator="kind")] = Perceptron()
    """The network that embeds and classifies. The default of a table of images is small, of size s2."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_images(cls, values: Any) -> Any:
        """Let a network of images without `kind` be a small one, and a checkpoint say the size."""
        columns = values.get("columns") if isinstance(values, Mapping) else None
        image = columns.get("image") if isinstance(columns, Mapping) else getattr(columns, "image", None)
        if image is None:
            return values
        network = values.get("network", {"size": "s2"})
        if isinstance(network, Mapping) and "kind" not in network:
            network = {"kind": "small", **network}
        values = {**values, "network": network}
        return {"size": None, **values} if is_pretrained(values) else values

    @model_validator(mode="after")
    def _consistent(self) -> TableTask:
        require_splits(self.files, key="columns.split", named=self.columns.split is not None, what="file")
        require_fitting(
            self.network,
            section="columns",
            embedded=[key for key in ("text", "image", "features", "categories") if getattr(self.columns, key)],
            size=self.size,
            shift=self.shift,
            flip=self.flip,
            augments_text=self.augment is not None,
        )
        self._require_judged_splits()
        return self

    def _require_judged_splits(self) -> None:
        """Refuse judgments of rows that have no names, or of splits that files lack."""
        if self.judgments is None:
            return
        if self.columns.id is None:
            raise ValueError("judgments names rows by columns.id; name that column")
        if isinstance(self.files, dict) and not {"query", "gallery"} <= set(self.files):
            raise ValueError("judgments needs the splits query and gallery; add them to files")
