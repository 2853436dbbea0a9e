"""Which typefaces are one design, and which faces of a design the archive keeps. Runs in the archive's builder only.

Splits are taken by design key, so what two keys share leaks from training into the test. A key is the first word of the
family name, a few foundries' names skipped; clones sold under other names are joined by the alias table; whatever is
still nearly the same picture is joined by comparing pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from graceful.tasks.glyphs.characters import ALPHANUMERIC
from graceful.tasks.glyphs.render import Face

FACES_PER_KEY = 6
NEAR = 0.03
"""Designs are joined where two of their faces differ by less than this share of their ink. Copies under other names
differ by less than 0.03; bold sans-serifs of independent designers start at 0.05."""

FOUNDRIES = {"gfs", "linux", "nanum", "the", "old"}
"""First words that name a publisher or nothing: the design is the next word."""

COMPOUND = {"liberation", "noto", "dejavu", "roboto", "league"}
"""First words that stand for several designs, told apart by one of KINDS."""
KINDS = ("serif", "mono", "slab", "spartan")

ALIASES = {
    "arimo": "liberation",
    "tinos": "liberation-serif",
    "cousine": "liberation-mono",
    "stix": "liberation-serif",
    "conakry": "liberation-serif",
    "syamala": "liberation",
    "carlito": "lato",
    "karmilla": "karla",
    "hack": "dejavu-mono",
    "aerial-mono": "dejavu-mono",
    "aerial": "dejavu",
    "tymes": "dejavu-serif",
    "veranda": "dejavu",
    "verana": "dejavu",
    "bitstream": "dejavu",
    "vera": "dejavu",
    "open": "noto",
    "sans": "dejavu",
    "klaudia": "berenika",
    "monoisome": "monoid",
    "monofur": "eurofurence",
    "unifur": "eurofurence",
    "ocra": "ocr",
    "m": "mplus",
    "barun": "gothic",
    "ntr": "gurajada",
    "suravaram": "gurajada",
    "nats": "mallanna",
}
"""Clones, derivatives and metric twins by the key they would otherwise have -> the design they belong to."""


def design_key(family: str) -> str:
    """Return the design a family belongs to, before pixels are compared: a lower-case word, sometimes with its kind."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", family.replace("DejaVu", "Dejavu"))
    words = re.findall(r"[a-z]+|[0-9]+", spaced.lower()) or [family.lower()]
    named = [word for word in words if word not in FOUNDRIES] or words
    key = named[0] if not named[0].startswith("ocra") else "ocra"
    if key in COMPOUND or key == "aerial":
        kind = next((kind for kind in KINDS if kind in words), "")
        key = f"{key}-{kind}" if kind else key
    return ALIASES.get(key, key)


def keys_of(faces: Sequence[Face]) -> tuple[list[str], list[str]]:
    """Return the design keys of faces, near copies joined.

    Returns:
        One key per face, and one line per pair of keys that pixels joined.
    """
    keys = [design_key(face.family) for face in faces]
    parent = {key: key for key in keys}

    def root(key: str) -> str:
        while parent[key] != key:
            key = parent[key]
        return key

    joined = []
    for left, right, distance in near_pairs(faces, NEAR):
        first, second = sorted((root(keys[left]), root(keys[right])))
        if first != second:
            parent[second] = first
            joined.append(f"{second} -> {first}: {faces[left].name} and {faces[right].name} differ by {distance:.3f}")
    return [root(key) for key in keys], joined


def near_pairs(faces: Sequence[Face], bound: float) -> list[tuple[int, int, float]]:
    """Return pairs of faces whose letters and digits differ by less than a share of their ink, nearest first."""
    pixels = np.stack([face.images[: len(ALPHANUMERIC)].ravel() for face in faces]).astype(np.float32)
    norms = (pixels**2).sum(axis=1)
    squared = np.maximum(norms[:, None] + norms[None, :] - 2 * pixels @ pixels.T, 0)
    relative = squared / (norms[:, None] + norms[None, :])
    rows, columns = np.nonzero(np.triu(relative < bound, k=1))
    pairs = [(int(i), int(j), float(relative[i, j])) for i, j in zip(rows, columns, strict=True)]
    return sorted(pairs, key=lambda pair: pair[2])


def without_copies(faces: Sequence[Face]) -> tuple[list[Face], list[Face]]:
    """Return the faces sorted by name, and those dropped as copies of an earlier one.

    A copy has exactly the same letters and digits, or is the same file name of a package in another format or folder.
    """
    known_marks: set[bytes | tuple[str, str]] = set()
    originals: list[Face] = []
    copies: list[Face] = []
    for face in sorted(faces, key=lambda face: (face.name, face.package)):
        marks: set[bytes | tuple[str, str]] = {face.images[: len(ALPHANUMERIC)].tobytes(), (face.package, face.name)}
        (copies if marks & known_marks else originals).append(face)
        known_marks |= marks
    return originals, copies


def representatives(faces: Sequence[Face], keys: Sequence[str], per_key: int = FACES_PER_KEY) -> list[int]:
    """Return at most so many faces of each design: its plainest one, then each time the one most unlike those chosen.

    Returns:
        Positions in `faces`, in the order of (key, choice).
    """
    chosen = []
    for key in sorted(set(keys)):
        members = sorted((i for i, k in enumerate(keys) if k == key), key=lambda i: _plainness(faces[i]))
        pixels = np.stack([faces[i].images[: len(ALPHANUMERIC)].ravel() for i in members]).astype(np.float32)
        chosen += [members[i] for i in _spread(pixels, per_key)]
    return chosen


def _plainness(face: Face) -> tuple[int, int, str]:
    plain = face.style.lower() in ("regular", "book", "roman", "medium", "normal", "text")
    return (0 if plain else 1, len(face.family), face.name)


def _spread(pixels: NDArray[np.float32], count: int) -> list[int]:
    """Return the order of a farthest-first traversal from row 0."""
    chosen = [0]
    nearest = ((pixels - pixels[0]) ** 2).sum(axis=1)
    while len(chosen) < min(count, len(pixels)):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((pixels - pixels[chosen[-1]]) ** 2).sum(axis=1))
    return chosen
