"""What becomes of damaged images? Mutated files of seven formats with EXIF and ICC metadata, read as a task reads them.

python -m benchmarks.image_fuzz [COUNT]     prints a table, writes benchmarks/results/image_fuzz.json; 1 if any file
ended in anything but pixels or one line that names it
"""

from __future__ import annotations

import io
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from benchmarks.results import write
from graceful.errors import DataError
from graceful.tasks.image_listing import Image as Listed
from graceful.tasks.photos import Frame, read_photo

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PGM")
COUNT = 21_000
SEED = 11
MARKS = (b"Exif", b"II*\0", b"MM\0*", b"eXIf", b"iCCP", b"acsp", b"xmp", b"IDAT", b"VP8", b"EXIF", b"ICC_PROFILE")
"""Where metadata begin."""
EDGES = (0x00, 0x01, 0x7F, 0x80, 0xFF)
"""Bytes that lengths and signs trip over."""


def mutants(kind: str, *, count: int, seed: int) -> Iterator[bytes]:
    """So many damaged files of a format, the same for the same seed.

    Args:
        kind: One of `FORMATS`.
        count: How many.
        seed: Of the damage.
    """
    random = np.random.default_rng([seed, FORMATS.index(kind)])
    good = _good(kind)
    for number in range(count):
        yield _damaged(good[number % len(good)], random)


def outcome(data: bytes, kind: str) -> str:
    """Return what reading a file ends in: `read`, `refused` with one line that names it, or what else.

    Args:
        data: The file.
        kind: For its name.
    """
    where = f"photos/ant/1.{kind.lower()}"
    image = Listed(path=where, split="", label="ant", where=where, load=lambda: data, tag=lambda: "")
    try:
        pixels = read_photo(image, Frame(size=16, decode="reduced")).pixels
    except DataError as e:
        is_one_line = str(e).isprintable() and str(e).startswith(f"{where}: ")
        return "refused" if is_one_line else f"refused badly: {e}"
    except Exception as e:  # noqa: BLE001  # this benchmark counts whatever is not translated
        return f"{type(e).__name__}: {e}"
    return "read" if pixels.shape == (16, 16, 3) else f"shape {pixels.shape}"


def _damaged(good: bytes, random: np.random.Generator) -> bytes:
    """Return the bytes changed, most of them in headers or metadata; cut, repeated, inserted. Half of it is sealed
    again."""
    data = bytearray(good)
    anchors = [0, *(place for mark in MARKS if (place := good.find(mark)) >= 0)]
    for _ in range(int(random.integers(1, 6))):
        near = int(random.choice(anchors)) + int(random.integers(200))
        at = near if near < len(data) and random.random() < 0.7 else int(random.integers(len(data)))
        match int(random.integers(6)):
            case 0 | 1:
                data[at] = int(random.integers(256))
            case 2:
                data[at] = int(random.choice(EDGES))
            case 3:
                length = int(random.integers(1, 9))
                data[at : at + length] = random.integers(0, 256, length, np.uint8).tobytes()
            case 4:
                length = int(random.integers(1, 40))
                data[at:at] = data[at : at + length]
            case 5:
                del data[at : at + int(random.integers(1, 40))]
        if not data:
            return b""
    if random.random() < 0.1:
        del data[int(random.integers(len(data))) :]
    return _sealed(bytes(data)) if random.random() < 0.5 else bytes(data)


def _sealed(data: bytes) -> bytes:
    """With the checksums that a PNG's chunks ought to have, so that damage gets past them."""
    sealed, at = bytearray(data), 8
    while data.startswith(b"\x89PNG") and at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if end + 4 <= len(data):
            sealed[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(sealed)


@lru_cache
def _good(kind: str) -> tuple[bytes, ...]:
    """Sound files of a format, small, with every kind of metadata it takes."""
    random = np.random.default_rng(5)
    colour = Image.fromarray(random.integers(0, 256, (24, 36, 3), np.uint8))
    grey, palette, bits = colour.convert("L"), colour.quantize(16), colour.convert("1")
    deep = Image.fromarray(random.integers(0, 65536, (24, 36), np.uint16))
    frames = {"save_all": True, "append_images": [colour.rotate(90)]}
    metadata: dict[str, Any] = {"exif": _exif(), "icc_profile": _profile()}
    codecs = ("raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg")
    variants: dict[str, list[tuple[Image.Image, dict[str, Any]]]] = {
        "JPEG": [
            (colour, metadata),
            (colour, {"progressive": True, "xmp": _XMP, **metadata}),
            (grey, {"restart_marker_rows": 1, **metadata}),
            (colour.convert("CMYK"), {"dpi": (72, 72), "comment": b"a comment", **metadata}),
        ],
        "PNG": [
            *((picture, metadata) for picture in (colour, grey, palette, deep, colour.convert("RGBA"), bits)),
            (colour, {**frames, **metadata}),
        ],
        "GIF": [(palette, {"transparency": 3}), (palette, {"comment": b"a comment", **frames})],
        "WEBP": [(colour, {**metadata, **option}) for option in ({}, {"lossless": True}, {"xmp": _XMP}, frames)],
        "TIFF": [
            *((colour, {"compression": codec, **metadata}) for codec in codecs),
            *((picture, {}) for picture in (deep, palette)),
            (colour, {"big_tiff": True, **metadata}),
        ],
        "BMP": [(picture, {}) for picture in (colour, grey, palette, bits)],
        "PGM": [(grey, {}), (colour, {})],
    }
    files = tuple(_bytes(picture, "PPM" if kind == "PGM" else kind, **options) for picture, options in variants[kind])
    return (*files, *_plain(np.asarray(deep))) if kind == "PGM" else files


def _plain(deep: NDArray[np.uint16]) -> tuple[bytes, ...]:
    """PGM as text, and with more than 8 bits."""
    wide = deep.astype(">u2").tobytes()
    text = b"P2\n# a comment\n9 9\n4095\n" + b" ".join(b"%d" % (number * 50) for number in range(81))
    return text, b"P5\n36 24\n65535\n" + wide, b"P5 36 24 1000\n" + wide


_XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "a maker", 72.0
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    exif.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    return exif


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _bytes(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def main(arguments: list[str]) -> int:
    """Print and write the outcomes by format; 1 if one is neither pixels nor a line."""
    count, start, rows = int(arguments[0]) if arguments else COUNT, time.monotonic(), []
    for kind in FORMATS:
        found = Counter(outcome(data, kind) for data in mutants(kind, count=count // len(FORMATS), seed=SEED))
        others = {name: number for name, number in found.items() if name not in ("read", "refused")}
        row = {"format": kind, "seed": SEED, "images": found.total(), "read": found["read"]}
        rows.append({**row, "refused": found["refused"], "others": sum(others.values())})
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()))
        for name, number in sorted(others.items(), key=lambda item: -item[1])[:20]:
            print(f"    {number} {name:.200}")
    if count == COUNT:
        print("wrote", write("image_fuzz", rows, time.monotonic() - start).name)
    return int(any(row["others"] for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
