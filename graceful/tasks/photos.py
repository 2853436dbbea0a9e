"""Images as networks see them: decoded one by one, upright, in colour, and cut to a square at once. Driver and workers.

A batch holds squares and never whole photos: 12 megapixels decoded are 36 MB, a square of 64 pixels 12 KB. Whatever
Pillow raises on a damaged file becomes one line that names it. Pillow loads on first use.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError
from graceful.tasks.image_listing import Image

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Decode = Literal["full", "reduced"]
Interpolation = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
"""In the order of Pillow's numbers for them."""
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "DIB", "PPM", "AVIF", "JPEG2000", "ICO")
"""Formats that a file may have, whatever its ending. Formats that Pillow gives to other programs (EPS) are not among
them."""
MARGIN = 3
"""A reduced JPEG keeps at least so many pixels for each pixel of the square's side."""
MEMORY_LIMIT = 512 * 2**20
"""Bytes that images may take together while they are decoded; a larger one is decoded alone."""
_BYTES_PER_PIXEL = 8
"""An image and one copy of it, turned or in another mode."""
_ORIENTATION = 0x0112
_RAISED = (
    OSError,  # truncated, not identified, a broken data stream
    EOFError,
    SyntaxError,  # Pillow's own word for a file that breaks its format
    ValueError,
    TypeError,  # a tag of another type than it must have
    IndexError,
    KeyError,
    OverflowError,  # an offset beyond what C takes
    ZeroDivisionError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""Errors that the decoders of Pillow 13 raise on damaged files, from their `raise` statements, and 20,000 mutated
images."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """How an image becomes a square.

    Attributes:
        size: Side of the square in pixels.
        decode: Whether large JPEGs may be decoded at a fraction of their size.
        interpolation: How pixels are scaled; a method of Pillow in lower case.
        crop: Share of the shorter side that is kept, around the middle.
        stretch: Scale both sides to the square, whatever their ratio, and cut nothing off.
    """

    size: int
    decode: Decode = "full"
    interpolation: Interpolation = "bilinear"
    crop: float = 1.0
    stretch: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Photo:
    """One image of a batch.

    Attributes:
        image: Where it comes from.
        frame: How it became a square.
        pixels: [size, size, 3] uint8.
    """

    image: Image
    frame: Frame
    pixels: NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        """Return the bytes of its pixels."""
        return self.pixels.nbytes

    def square(self, frame: Frame | int, decode: Decode = "full") -> NDArray[np.uint8]:
        """Return the pixels for another frame; the file is decoded again where it differs.

        Args:
            frame: How the image becomes a square, or the side of the square alone.
            decode: Where only the side is given.

        Raises:
            DataError: It has become unreadable.
        """
        wanted = Frame(size=frame, decode=decode) if isinstance(frame, int) else frame
        return self.pixels if wanted == self.frame else _square(self.image, wanted)

    def thumbnail(self, longest: int) -> Picture:
        """Return the whole image, for people: its longer side has at most so many pixels.

        Raises:
            DataError: It has become unreadable.
        """
        with _decoded(self.image, least=MARGIN * longest) as picture:
            picture.thumbnail((longest, longest))
            return picture


def image_of(name: str, *, where: str, load: Callable[[], bytes]) -> Image:
    """Return an image that no listing found: a member of a shard, for example."""
    return Image(path=name, split="", label="", where=where, load=load, tag=lambda: "")


def read_photo(image: Image, frame: Frame) -> Photo:
    """Decode one image and cut it to a square.

    Raises:
        DataError: Corrupt, truncated or absurdly large; names the file.
    """
    return Photo(image=image, frame=frame, pixels=_square(image, frame))


def cut(picture: Picture, frame: Frame) -> NDArray[np.uint8]:
    """Return [size, size, 3]: scaled until both sides cover the square, the middle kept; or as the frame says."""
    from PIL import Image as Pillow
    from PIL import ImageOps

    method, shape = Pillow.Resampling[frame.interpolation.upper()], (frame.size, frame.size)
    if frame.stretch:
        return np.asarray(picture.convert("RGB").resize(shape, resample=method))
    border = (1.0 - frame.crop) / 2.0
    return np.asarray(ImageOps.fit(picture, shape, method=method, bleed=border).convert("RGB"))


def _square(image: Image, frame: Frame) -> NDArray[np.uint8]:
    least = round(MARGIN * frame.size / frame.crop) if frame.decode == "reduced" else None
    with _decoded(image, least=least) as picture:
        return cut(picture, frame)


# --- decoding ---------------------------------------------------------------------------------------------------------


@contextmanager
def _decoded(image: Image, *, least: int | None) -> Iterator[Picture]:
    """Yield an image upright and in colour while its memory is reserved.

    Args:
        image: Which.
        least: A JPEG may be decoded at half, a quarter or an eighth of its size while both sides keep so many pixels;
            None: at its own size.
    """
    data = image.load()
    with _decoding_errors(image.where, "not a readable image", "repair or remove it"):
        picture = _open(data)
    with _memory_budget(os.getpid()).reserved(picture.width * picture.height * _BYTES_PER_PIXEL):
        with _decoding_errors(image.where, "not a readable image", "repair or remove it"):
            if least is not None:
                picture.draft(None, (least, least))
            picture.load()
        is_netpbm = picture.format == "PPM"
        with _decoding_errors(image.where, "its EXIF metadata cannot be read", "save it without them, or remove it"):
            picture = _upright(picture)
        with _decoding_errors(image.where, "not a readable image", "repair or remove it"):
            picture = _as_rgb(picture, is_netpbm=is_netpbm)
        yield picture


def _open(data: bytes) -> Picture:
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    _silence_pillow()
    try:
        return Pillow.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as e:
        raise ValueError("of no known format") from e


@contextmanager
def _decoding_errors(image: str, problem: str, remedy: str) -> Iterator[None]:
    from PIL import Image as Pillow

    try:
        yield
    except (*_RAISED, Pillow.DecompressionBombError) as e:
        reason = " ".join(str(e).split()) or type(e).__name__
        raise DataError(f"{image}: {problem} ({reason:.200}); {remedy}") from e


def _upright(picture: Picture) -> Picture:
    """Return the picture turned by its EXIF orientation; metadata are only read, since writing odd ones back fails.

    The methods are those of `PIL.ImageOps.exif_transpose`.
    """
    from PIL.Image import Transpose

    turned = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    method = turned.get(picture.getexif().get(_ORIENTATION, 1))
    return picture if method is None else picture.transpose(method)


def _as_rgb(picture: Picture, *, is_netpbm: bool) -> Picture:
    """Return the picture as RGB; grey of 16 bits, which Pillow would clip to white, is scaled to 8.

    Raises:
        ValueError: 32 bits, whose range is not known.
    """
    from PIL import Image as Pillow

    if picture.mode.startswith("I;16") or (picture.mode == "I" and is_netpbm):  # Pillow reads PGM of 16 bits as I
        picture = Pillow.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError("32-bit pixels; save it with 8 or 16 bits")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


@lru_cache(maxsize=1)
def _silence_pillow() -> None:
    """Silence Pillow's warnings about odd metadata and large images; errors are raised here."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


# --- memory -----------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _MemoryBudget:
    """Memory that the decoding threads of a process share."""

    used: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Reserve bytes, waiting until they are free; a request above the limit takes all of it."""
        amount = min(size, MEMORY_LIMIT)
        with self.changed:
            self.changed.wait_for(lambda: self.used + amount <= MEMORY_LIMIT)
            self.used += amount
        try:
            yield
        finally:
            with self.changed:
                self.used -= amount
                self.changed.notify_all()


@lru_cache(maxsize=1)
def _memory_budget(process: int) -> _MemoryBudget:
    """Return the budget of a process; a forked process gets its own."""
    return _MemoryBudget()
