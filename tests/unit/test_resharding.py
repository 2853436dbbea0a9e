"""Parts of a ZeRO checkpoint, cut anew for other numbers of ranks; the format is what DeepSpeed 0.19 writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from graceful.errors import SpecError
from graceful.training import resharding

Json = dict[str, Any]
VALUES = 11
"""Odd: the last part is padded."""


def part(start: int, stop: int, *, size: int, ranks: int) -> Json:
    """What a rank writes that holds some of the values: the optimiser's state is padded, the weights are not."""
    own = torch.arange(start, stop, dtype=torch.float32)
    padding = size - len(own)
    state = {"step": torch.tensor(3.0), "exp_avg": torch.nn.functional.pad(own + 100, (0, padding))}
    optimizer = {
        "base_optimizer_state": {"state": {0: state}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "single_partition_of_fp32_groups": [own],
        "group_paddings": [padding],
        "partition_count": [ranks],
    }
    return {"optimizer_state_dict": optimizer, "ds_version": "0"}


def written(folder: Path, parts: list[Json]) -> list[Path]:
    paths = [folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(len(parts))]
    for path, document in zip(paths, parts, strict=True):
        torch.save(document, path)
    return paths


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return bool(torch.equal(left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


WRITTEN = {
    1: [(0, 11, 12)],
    2: [(0, 6, 6), (6, 11, 6)],
    3: [(0, 4, 4), (4, 8, 4), (8, 11, 4)],
    4: [(0, 4, 4), (4, 8, 4), (8, 11, 4), (11, 11, 4)],
}
"""By ranks, as DeepSpeed pads: to a multiple of two values for each rank."""


@pytest.mark.parametrize(("saved", "loading"), [(saved, loading) for saved in WRITTEN for loading in WRITTEN])
def test_each_rank_gets_what_it_would_have_written_itself(saved: int, loading: int, tmp_path: Path) -> None:
    def parts(ranks: int) -> list[Json]:
        return [part(start, stop, size=size, ranks=ranks) for start, stop, size in WRITTEN[ranks]]

    written(tmp_path, parts(saved))
    for rank, own in enumerate(parts(loading)):
        path = tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        assert same(resharding.read(path, ranks=loading, read_file=torch.load), own)


def test_weights_are_those_of_all_ranks_and_parts_by_parameter_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": {}, "dp_world_size": 2}, path)
    assert resharding.read(path, ranks=3, read_file=torch.load) == {"module": {}, "dp_world_size": 3}
    (tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    assert resharding.read(path, ranks=2, read_file=torch.load)["dp_world_size"] == 2
    with pytest.raises(SpecError, match="has parts of 2 workers at zero_stage 3, which 1 cannot take over; resume"):
        resharding.read(path, ranks=1, read_file=torch.load)
