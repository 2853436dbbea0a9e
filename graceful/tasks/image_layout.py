"""Which folders below a root are splits and which are classes, by their names alone. Driver and workers; pure.

A split folder that is taken for a class trains without complaint and means nothing, so whatever looks like a split and
is not one is refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence

from graceful.errors import DataError

Parts = tuple[str, ...]
"""Names on the way from the root to a folder or a file."""

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev", "development"),
    "constraint": ("constraint",),
    "test": ("test", "testing"),
    "query": ("query",),
    "gallery": ("gallery",),
}
_SPLIT_OF = {name: split for split, names in _SPLITS.items() for name in names}
_UNCLEAR = ("eval", "evaluation", "holdout", "hold-out")
_ALIKE = re.compile(rf"(?:{'|'.join((*_SPLIT_OF, *_UNCLEAR))})[ _-]?(?:set|split|data|images|[0-9]{{1,4}})?")
_DEBRIS = {
    "__macosx",
    "thumbs.db",
    "desktop.ini",
    "@eadir",
    "lost+found",
    "$recycle.bin",
    "#recycle",
    "system volume information",
    "__pycache__",
}


def is_debris(name: str) -> bool:
    """Return whether a file or folder is hidden, or left beside data by systems and viewers."""
    return name.startswith(".") or name.casefold() in _DEBRIS


def split_of(name: str) -> str | None:
    """Return the split that a folder's name means, in any case; None: it is not a usual name of one."""
    return _SPLIT_OF.get(name.casefold())


def looks_like_split(name: str) -> bool:
    """Return whether a folder's name looks like that of a split."""
    return _ALIKE.fullmatch(name.strip().casefold()) is not None


def label_of(name: str) -> str:
    """Return the class of a folder's name, with composed letters."""
    return unicodedata.normalize("NFC", name)


def split_folders(
    root: str, folders: Collection[Parts], direct: Collection[Parts], named: Sequence[str]
) -> dict[str, str]:
    """Return name of each split folder -> its split; empty where the root holds class folders.

    Args:
        root: For messages.
        folders: Every folder below it.
        direct: The folders that hold an image themselves.
        named: What the spec names as classes.

    A folder of another name without a single image, such as one of annotations, does not turn splits into classes.

    Raises:
        DataError: Some folders look like splits and others do not, one is unclear, two are one split, or none is train.
    """
    top = sorted({parts[0] for parts in folders})
    filled = {parts[0] for parts in direct if parts}
    alike = [name for name in top if looks_like_split(name)]
    if not alike or filled.difference(alike) or (not filled and len(alike) < len(top)):
        _require_classes(root, top, direct, (), named)
        return {}
    splits: dict[str, str] = {}
    for name in alike:
        split = split_of(name)
        if split is None:
            write = "validation or test" if name.strip().casefold() in _UNCLEAR else "train, validation or test"
            raise DataError(f"task.root: {root} has a folder {name!r}: write {write}, so that its use is clear")
        if split in splits.values():
            other = next(key for key, value in splits.items() if value == split)
            raise DataError(f"task.root: {root}: {other!r} and {name!r} are both the {split} split; merge them")
        splits[name] = split
    if "train" not in splits.values():
        raise DataError(
            f"task.root: {root} has split folders {_quoted_list(alike)} but no train; add root/train/<class>"
        )
    return splits


def require_classes(
    root: str, folders: Collection[Parts], direct: Collection[Parts], splits: Collection[str], named: Sequence[str]
) -> None:
    """Refuse class folders that cannot be told apart, or that hold splits; arguments as of `split_folders`.

    Raises:
        DataError: Two names that look the same, a blank name, or a split above or below.
    """
    depth = 1 if splits else 0
    parents: list[Parts] = [(name,) for name in sorted(splits)]
    for above in parents or [()]:
        names = sorted({parts[depth] for parts in folders if len(parts) > depth and parts[:depth] == above})
        _require_apart(root, names)
        if splits:
            _require_classes(root, names, direct, above, named)
    _require_apart(root, {label_of(parts[depth]) for parts in folders if len(parts) > depth})
    below: dict[Parts, set[str]] = {}
    for parts in folders:
        if len(parts) == depth + 2 and (split := split_of(parts[-1])):
            below.setdefault(parts[:-1], set()).add(split)
    for parts, split_names in sorted(below.items()):
        if "train" in split_names and len(split_names) > 1:
            path = "/".join(parts)
            raise DataError(f"task.root: {root}: class folder {path!r} holds splits; expected root/<split>/<class>")


def _require_classes(
    root: str, names: Sequence[str], direct: Collection[Parts], above: Parts, named: Sequence[str]
) -> None:
    """Refuse names of splits among classes. A single class may be called train, as a vehicle.

    Where the spec names classes of this folder, other folders are not checked.
    """
    if named and {label_of(name) for name in names}.issuperset(named):
        return
    alike = [name for name in names if looks_like_split(name) and label_of(name) not in named]
    plausible = len(names) > 1 and alike == ["train"] and (*above, "train") in direct
    if alike and not plausible:
        looks = "look like splits" if len(alike) > 1 else "looks like a split"
        others = [name for name in names if name not in alike]
        beside = f", beside {_quoted_list(others[:3])}" if others else ""
        remedy = "move or rename folders, or list the classes in task.classes if it is one"
        raise DataError(f"task.root: {'/'.join((root, *above))}: {_quoted_list(alike)} {looks}{beside}; {remedy}")


def _require_apart(root: str, names: Iterable[str]) -> None:
    names_by_label: dict[str, str] = {}
    for name in sorted(names):
        key = label_of(name).strip()
        if not key:
            raise DataError(f"task.root: {root}: a class folder has the blank name {name!a}; rename it")
        if key in names_by_label:
            raise DataError(
                f"task.root: {root}: class folders {names_by_label[key]!a} and {name!a} look the same;"
                " merge or rename them"
            )
        names_by_label[key] = name


def _quoted_list(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
