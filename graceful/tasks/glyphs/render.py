"""Draws one typeface as 28x28 images. Runs in the archive's builder only; needs Pillow and fontTools.

The capital H is 18 pixels high, the baseline lies at three quarters of the height, each glyph is centred horizontally.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graceful.tasks.glyphs.characters import ALPHANUMERIC, CHARACTERS, class_of

SIZE = 28
CAP_HEIGHT = 18
BASELINE = 21
LEVELS = 16
"""Grey levels kept: enough for antialiasing, and the archive is half as large as with 256."""
BLANK, SOLID = 0.004, 0.9
"""Bounds of the mean ink of a glyph: a full stop has 0.01, a bold W 0.5."""
DISTINCT = 45
"""Least number of distinct images among the 47 classes; faces with capitals only in place of small letters have 36."""
FAINT = 160
"""Least brightness that the median glyph reaches: hairlines fade away at this size."""
UNICASE = 0.6
"""Largest mean correlation of small letters with their capitals, cropped and scaled alike: faces that draw capitals
twice have 0.63 and more, all others 0.56 and less."""
MIXED = {"eurofurence classic", "eurofurence classic light"}
"""Families that exchange some capitals and small letters on purpose."""


@dataclass(frozen=True, kw_only=True)
class Face:
    """One typeface as the archive knows it.

    Attributes:
        name: Unique short name: the file's stem.
        file: File name in its package.
        family: Family name the file declares.
        style: Style name the file declares, e.g. `Bold Italic`.
        package: Debian package.
        licence: Licence of the fonts in that package.
        images: [170, 28, 28] uint8 in the order of CHARACTERS.
        present: [170] bool: False where the face lacks the character.
    """

    name: str
    file: str
    family: str
    style: str
    package: str
    licence: str
    images: NDArray[np.uint8]
    present: NDArray[np.bool_]


def render(path: Path, *, package: str, licence: str) -> Face | str:
    """Render a font file.

    Returns:
        The face, or the reason why it is dropped.
    """
    from fontTools.ttLib import TTFont, TTLibError
    from PIL import ImageFont

    try:
        font = TTFont(path, fontNumber=0, lazy=True)
        covered = set(font.getBestCmap() or {})
        family, style = (str(font["name"].getBestFamilyName() or ""), str(font["name"].getBestSubFamilyName() or ""))
    except (TTLibError, KeyError, AssertionError, UnicodeDecodeError) as e:
        return f"unreadable ({type(e).__name__})"
    if any(ord(c) not in covered for c in ALPHANUMERIC):
        return "lacks alphanumeric characters"
    probe = ImageFont.truetype(str(path), 200, layout_engine=ImageFont.Layout.BASIC)
    _, top, _, bottom = probe.getbbox("H", anchor="ls")
    if bottom <= top:
        return "blank H"
    sized = ImageFont.truetype(str(path), 200 * CAP_HEIGHT / (bottom - top), layout_engine=ImageFont.Layout.BASIC)
    present = np.asarray([ord(c) in covered for c in CHARACTERS])
    images = np.stack(
        [_draw(sized, c) if has_glyph else _blank_image() for c, has_glyph in zip(CHARACTERS, present, strict=True)]
    )
    ink = images.mean(axis=(1, 2)) / 255
    usable = (ink > BLANK) & (ink < SOLID)
    reason = "mixes capitals and small letters" if family in MIXED else _unusable(images, usable)
    if reason:
        return reason
    return Face(
        name=path.stem,
        file=path.name,
        family=family or path.stem,
        style=style or "Regular",
        package=package,
        licence=licence,
        images=images,
        present=present & usable & _not_the_placeholder(images, sized),
    )


def _draw(font: object, character: str) -> NDArray[np.uint8]:
    from PIL import Image, ImageDraw, ImageFont

    assert isinstance(font, ImageFont.FreeTypeFont)
    left, _, right, _ = font.getbbox(character, anchor="ls")
    canvas = Image.new("L", (SIZE, SIZE), 0)
    start = (SIZE - (right - left)) / 2 - left
    ImageDraw.Draw(canvas).text((start, BASELINE), character, font=font, fill=255, anchor="ls")
    step = 255 / (LEVELS - 1)
    grey: NDArray[np.uint8] = (np.round(np.asarray(canvas) / step) * step).astype(np.uint8)
    return grey


def _blank_image() -> NDArray[np.uint8]:
    return np.zeros((SIZE, SIZE), np.uint8)


def _unusable(images: NDArray[np.uint8], usable: NDArray[np.bool_]) -> str:
    """Return why the drop rules refuse a face; empty when they do not."""
    if not usable[: len(ALPHANUMERIC)].all():
        return "blank or solid glyphs"
    first = {class_of(c): images[i].tobytes() for i, c in reversed(list(enumerate(ALPHANUMERIC)))}
    if len(set(first.values())) < DISTINCT:
        return f"fewer than {DISTINCT} distinct glyphs"
    if np.median(images[: len(ALPHANUMERIC)].max(axis=(1, 2))) < FAINT:
        return "too thin to be seen"
    if _likeness_of_cases(images) > UNICASE:
        return "draws capitals in place of small letters"
    return ""


def _likeness_of_cases(images: NDArray[np.uint8]) -> float:
    """Return the mean correlation between capitals and small letters whose shape differs from theirs."""
    letters = [c for c in ALPHANUMERIC if c.islower() and class_of(c) == c]
    pairs = [
        (_ink_square(images[CHARACTERS.index(c)]), _ink_square(images[CHARACTERS.index(c.upper())])) for c in letters
    ]
    return float(np.mean([np.corrcoef(small_letter, capital)[0, 1] for small_letter, capital in pairs]))


def _ink_square(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return [256], the inked rectangle scaled to 16x16."""
    from PIL import Image

    rows, columns = np.nonzero(image > 60)
    if len(rows) == 0:
        return np.arange(256, dtype=np.float64)
    box = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return np.asarray(Image.fromarray(box).resize((16, 16)), dtype=np.float64).ravel()


def _not_the_placeholder(images: NDArray[np.uint8], font: object) -> NDArray[np.bool_]:
    """Return where a glyph differs from the box that stands for a missing one."""
    box = _draw(font, "\U0010fffd")
    differs: NDArray[np.bool_] = (images != box).any(axis=(1, 2))
    return differs
