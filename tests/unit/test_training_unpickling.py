"""What the restricted reader of checkpoints builds, and what it refuses."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch

from graceful.errors import IntegrityError
from graceful.training.unpickling import load_tensors


class Stage(Enum):
    """Members are pickled by name through `getattr`, as Python 3.11.0 to 3.11.3 does for all enumerations."""

    weights = 3

    def __reduce_ex__(self, protocol: Any) -> Any:
        return getattr, (Stage, self.name)


class Holder:
    """An allowed class that is not an enumeration."""


class Reaching:
    """Pickled as `getattr` of something else."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name

    def __reduce__(self) -> Any:
        return getattr, (self.owner, self.name)


def saved(folder: Path, value: object) -> Path:
    torch.save({"value": value, "tensor": torch.ones(2)}, folder / "file.pt")
    return folder / "file.pt"


def test_members_of_allowed_enumerations_are_read_however_they_were_written(tmp_path: Path) -> None:
    loaded = load_tensors(saved(tmp_path, Stage.weights), map_location="cpu", classes=(Stage,))
    assert loaded["value"] is Stage.weights
    assert loaded["tensor"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("value", "classes"),
    [
        (Stage.weights, ()),
        (Reaching(Holder, "__init__"), (Holder,)),
        (Reaching(Stage, "mro"), (Stage,)),
        (Reaching(Stage, "__members__"), (Stage,)),
        (Reaching(torch.Tensor, "backward"), (Stage,)),
    ],
)
def test_getattr_reaches_nothing_else(tmp_path: Path, value: object, classes: tuple[type, ...]) -> None:
    with pytest.raises(IntegrityError, match=r"holds code|cannot be read as tensors"):
        load_tensors(saved(tmp_path, value), map_location="cpu", classes=classes)
