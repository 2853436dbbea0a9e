"""The parts of a ZeRO checkpoint of so many ranks as those of another number of ranks. Runs in workers.

At ZeRO 1 and 2 every rank holds a part of each flat group of parameters, in fp32, and the optimiser's state of it. The
parts of all ranks, one after another and without padding, are the group; this module divides it again. Weights lie
whole beside them. At ZeRO 3 each parameter is cut by itself, which is not undone here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graceful.errors import SpecError

_PART = re.compile(r"(?P<family>.*zero_pp_rank_)(?P<rank>\d+)(?P<rest>_mp_rank_\d+_optim_states\.pt)")
_ALIGNMENT = 2
"""DeepSpeed pads groups to a multiple of so many values for each rank."""
_STATE, _FLAT, _PADDINGS = "base_optimizer_state", "single_partition_of_fp32_groups", "group_paddings"
Read = Callable[[Path], Any]


def read(path: Path, *, ranks: int, read_file: Read) -> Any:
    """Return what a file of a checkpoint holds, as it would be if so many ranks had saved it.

    Args:
        path: Of DeepSpeed's file; a part of a rank that did not save exists in what others saved.
        ranks: That load.
        read_file: Reads a file that exists.

    Raises:
        SpecError: Another number of ranks saved it at ZeRO 3.
    """
    match = _PART.fullmatch(path.name)
    if match is None:
        document = read_file(path)
        if isinstance(document, dict) and "dp_world_size" in document:
            _require_movable(path.parent, saved=document["dp_world_size"], ranks=ranks)
            document["dp_world_size"] = ranks
        return document
    saved = _parts(path.parent, match)
    if len(saved) == ranks:
        return read_file(path)
    return _cut(_joined([read_file(part) for part in saved]), rank=int(match["rank"]), ranks=ranks)


def _require_movable(folder: Path, *, saved: int, ranks: int) -> None:
    if saved != ranks and any(folder.glob("*zero_pp_rank_*_model_states.pt")):
        raise SpecError(
            f"train.num_workers: the checkpoint has parts of {saved} workers at zero_stage 3, which {ranks} cannot take"
            f" over; resume the run with {saved}",
            {"unanimous": True},
        )


def _parts(folder: Path, match: re.Match[str]) -> list[Path]:
    """Return the files of all ranks that saved, in their order."""
    found = [(int(part["rank"]), path) for path in folder.iterdir() if (part := _PART.fullmatch(path.name)) is not None]
    return [path for _, path in sorted(found) if path.name.startswith(match["family"])]


def _joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the first rank's file with whole groups in place of its parts."""
    optimizers = [part["optimizer_state_dict"] for part in parts]
    first = optimizers[0]
    flat = [torch.cat(pieces) for pieces in zip(*(one[_FLAT] for one in optimizers), strict=True)]
    states: dict[int, dict[str, Any]] = {}
    for group, state in first[_STATE]["state"].items():
        lengths = [one[_FLAT][group].numel() for one in optimizers]
        pieces = {key: [one[_STATE]["state"][group][key] for one in optimizers] for key in state}
        states[group] = {key: _whole(values, lengths) for key, values in pieces.items()}
    return {
        **parts[0],
        "optimizer_state_dict": {**first, _FLAT: flat, _STATE: {**first[_STATE], "state": states}},
    }


def _whole(values: Sequence[Any], lengths: Sequence[int]) -> Any:
    """Return one state of the optimiser: joined without padding if there is one for each value, else the first's."""
    if not (isinstance(values[0], Tensor) and values[0].dim() > 0):
        return values[0]
    return torch.cat([value[:length] for value, length in zip(values, lengths, strict=True)])


def _cut(whole: dict[str, Any], *, rank: int, ranks: int) -> dict[str, Any]:
    """Return one rank's file of whole groups: as DeepSpeed writes it, with padding in the optimiser's state alone."""
    optimizer = whole["optimizer_state_dict"]
    groups: list[Tensor] = optimizer[_FLAT]
    sizes = [-(-group.numel() // (_ALIGNMENT * ranks)) * _ALIGNMENT for group in groups]
    flat = [group[rank * size : (rank + 1) * size] for group, size in zip(groups, sizes, strict=True)]
    states = {
        group: {
            key: _padded(value[rank * sizes[group] : (rank + 1) * sizes[group]], sizes[group])
            if isinstance(value, Tensor) and value.dim() > 0
            else value
            for key, value in state.items()
        }
        for group, state in optimizer[_STATE]["state"].items()
    }
    changed = {
        _FLAT: flat,
        _STATE: {**optimizer[_STATE], "state": states},
        _PADDINGS: [size - part.numel() for size, part in zip(sizes, flat, strict=True)],
        "partition_count": [ranks] * len(groups),
    }
    return {**whole, "optimizer_state_dict": {**optimizer, **changed}}


def _padded(part: Tensor, size: int) -> Tensor:
    return torch.nn.functional.pad(part, (0, size - part.numel()))
