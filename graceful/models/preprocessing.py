"""How images become numbers for a network of another package: size, cut, mean, deviation. Driver and workers.

The numbers come from a checkpoint once and are kept with the version, so that it is always fed as it was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from graceful.errors import DataError
from graceful.tasks.photos import Decode, Frame, Interpolation

METHODS = get_args(Interpolation)
LARGEST_SIZE = 1024
"""Pixels of a side."""
PLAIN_SIZE = 64
"""Pixels of a side where neither the spec nor a checkpoint names a size."""
_CONVNEXT_STRETCHES_FROM = 384
"""ConvNeXt's processor does not crop from this size on."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The numbers of one network.

    Attributes:
        size: Side of the square in pixels.
        interpolation: How pixels are scaled.
        crop: Share of the shorter side that is kept.
        stretch: Scale both sides to the square and cut nothing off.
        factor: What bytes are multiplied by before mean and deviation.
        mean, deviation: Of red, green and blue.
    """

    size: int = PLAIN_SIZE
    interpolation: Interpolation = "bilinear"
    crop: float = 1.0
    stretch: bool = False
    factor: float = 1.0 / 255.0
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    deviation: tuple[float, ...] = (0.5, 0.5, 0.5)

    def frame(self, decode: Decode) -> Frame:
        """Return how an image becomes a square."""
        return Frame(
            size=self.size, decode=decode, interpolation=self.interpolation, crop=self.crop, stretch=self.stretch
        )

    def document(self) -> dict[str, Any]:
        """Return the numbers as a JSON value."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def read(document: Any, *, where: str) -> Preprocessing:
    """Return the numbers that a version keeps.

    Raises:
        DataError: They are not those that `Preprocessing.document` wrote.
    """
    if not isinstance(document, Mapping) or set(document) != {field.name for field in fields(Preprocessing)}:
        raise DataError(f"{where}: does not hold the preprocessing of a version; fetch the version again")
    return _checked(where, **{name: tuple(v) if isinstance(v, list) else v for name, v in document.items()})


def of_transformers(document: Mapping[str, Any], *, where: str) -> Preprocessing:
    """Return the numbers of a `preprocessor_config.json`.

    Raises:
        DataError: Numbers that are missing, or that no square image can be made with.
    """
    size, crop, stretch = _cut(document, where)
    normalise = document.get("do_normalize", True)
    if document.get("rescale_offset"):
        raise DataError(f"{where}: rescale_offset is not supported; save the processor with image_mean and image_std")
    resample = document.get("resample", METHODS.index("bilinear"))
    return _checked(
        where,
        size=size,
        interpolation=METHODS[resample] if resample in range(len(METHODS)) else resample,
        crop=crop,
        stretch=stretch,
        factor=document.get("rescale_factor", 1.0 / 255.0) if document.get("do_rescale", True) else 1.0,
        mean=_triple(document.get("image_mean"), 0.5) if normalise else (0.0, 0.0, 0.0),
        deviation=_triple(document.get("image_std"), 0.5) if normalise else (1.0, 1.0, 1.0),
    )


def of_timm(document: Mapping[str, Any], *, where: str) -> Preprocessing:
    """Return the numbers of the `pretrained_cfg` of timm's config.json.

    Raises:
        DataError: As `of_transformers`.
    """
    shape = document.get("input_size") or (3, PLAIN_SIZE, PLAIN_SIZE)
    return _checked(
        where,
        size=shape[-1] if isinstance(shape, Sequence) else shape,
        interpolation=document.get("interpolation", "bilinear"),
        crop=document.get("crop_pct", 1.0),
        stretch=document.get("crop_mode") == "squash",
        mean=_triple(document.get("mean"), 0.5),
        deviation=_triple(document.get("std"), 0.5),
    )


def _cut(document: Mapping[str, Any], where: str) -> tuple[Any, Any, bool]:
    """Return size, share of the shorter side, and whether images are stretched."""
    size, crop = document.get("size"), document.get("crop_size")
    shortest = size.get("shortest_edge") if isinstance(size, Mapping) else None
    side = _side(size, where)
    if "crop_pct" in document and shortest is not None:  # ConvNeXt
        whole = shortest >= _CONVNEXT_STRETCHES_FROM
        return shortest, 1.0 if whole else document["crop_pct"] or 1.0, whole
    if document.get("do_center_crop", crop is not None) and crop is not None:
        target = _side(crop, where)
        between = shortest or side or target
        if _is_number(target) and _is_number(between) and between > 0:
            return target, min(1.0, target / between), False
    if side is None and shortest is None:
        raise DataError(f"{where}: has no size of images; save the image processor of the checkpoint there")
    return (side, 1.0, True) if side is not None else (shortest, 1.0, False)


def _side(size: Any, where: str) -> Any:
    """Return the side of a square; None where there is none."""
    if not isinstance(size, Mapping):
        return size
    height, width = size.get("height"), size.get("width")
    if height != width:
        raise DataError(f"{where}: images of {height} x {width} pixels, and networks get squares; choose another model")
    return height


def _triple(values: Any, default: float) -> tuple[Any, ...]:
    if values is None:
        return (default,) * 3
    return tuple(values) if isinstance(values, list | tuple) else (values,) * 3


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _checked(where: str, **values: Any) -> Preprocessing:
    """Refuse numbers that no square image can be made with.

    Raises:
        DataError: With the first culprit.
    """
    numbers: dict[str, Any] = {"size": values["size"], "crop": values["crop"]}
    for name in ("mean", "deviation"):
        numbers |= {f"{name}[{index}]": value for index, value in enumerate(values[name])}
    for name, value in numbers.items():
        if not _is_number(value) or not abs(value) < 1e6:
            raise DataError(f"{where}: {name} of images must be a number, got {value!r:.40}; save the processor again")
    problem = None
    if not (1 <= values["size"] <= LARGEST_SIZE and values["size"] == int(values["size"])):
        problem = f"size of images must be whole, in [1, {LARGEST_SIZE}], got {values['size']!r:.40}"
    elif values["interpolation"] not in METHODS:
        problem = f"interpolation must be one of {', '.join(METHODS)}, got {values['interpolation']!r:.40}"
    elif not 0.1 <= values["crop"] <= 1.0:
        problem = f"crop must be in [0.1, 1], got {values['crop']!r:.40}"
    elif len(values["mean"]) != 3 or len(values["deviation"]) != 3 or min(values["deviation"]) <= 0.0:
        problem = "mean and deviation must be three numbers each, deviations above 0"
    if problem is not None:
        raise DataError(f"{where}: {problem}; save the processor again")
    return Preprocessing(**{**values, "size": int(values["size"])})
