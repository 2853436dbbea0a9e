"""The memory that training takes of each GPU, counted from a spec; what `graceful plan` says about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from graceful import spec
from graceful.cli import gpu_memory
from graceful.spec import memory

ADAMW = {"kind": "adamw"}
ZERO = {stage: {"kind": "deepspeed", "zero_stage": stage} for stage in range(4)}


def document(checkpoint: Path, **train: Any) -> spec.RefreshSpec:
    network = {"kind": "transformers", "checkpoint": str(checkpoint)}
    task = {"kind": "image_folder", "root": "photos", "network": network}
    return spec.parse({"model": "m", "name": "v1", "task": task, "train": {"num_workers": 4, **train}})


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Two files with a million numbers together."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file({"a": torch.zeros(600, 1000)}, folder / "model-1.safetensors")
    save_file({"b": torch.zeros(400, 1000, dtype=torch.bfloat16)}, folder / "model-2.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("train", "gpu", "host"),
    [
        ({"engine": {"kind": "torch"}}, 4 + 8 + 4, 0),
        ({"engine": {"kind": "torch"}, "optimizer": ADAMW}, 4 + 8 + 8, 0),
        ({"engine": {"kind": "torch"}, "num_workers": 1}, 4 + 4 + 4, 0),
        ({"engine": {"kind": "torch"}, "precision": "bf16", "weights": "bf16"}, 2 + 4 + 2, 0),
        ({"engine": ZERO[1], "optimizer": ADAMW}, 4 + 4 + 3, 0),
        ({"engine": ZERO[2], "optimizer": ADAMW}, 4 + 1 + 3, 0),
        ({"engine": ZERO[2] | {"offload": "optimizer"}, "optimizer": ADAMW}, 4 + 1, 3),
        ({"engine": ZERO[3], "optimizer": ADAMW}, 1 + 1 + 3, 0),
        ({"engine": ZERO[3] | {"offload": "all"}, "optimizer": ADAMW}, 1, 4),
        ({"engine": {"kind": "fsdp2"}, "optimizer": ADAMW}, 1 + 1 + 2, 0),
    ],
)
def test_bytes_of_a_million_parameters(checkpoint: Path, train: dict[str, Any], gpu: int, host: int) -> None:
    needed = gpu_memory.estimate(document(checkpoint, **train))
    assert needed is not None
    assert (needed.gpu, needed.host) == (gpu * 10**6, host * 10**6)


def test_the_plan_compares_the_estimate_with_the_gpu_that_pods_select(checkpoint: Path) -> None:
    needed = memory.per_rank(10**10, document(checkpoint, engine=ZERO[2], optimizer=ADAMW).train, ranks=4)
    assert gpu_memory.note(needed) == (
        "memory of each GPU: weights 37.3 GiB, gradients 9.3 GiB, optimiser 27.9 GiB: 74.5 GiB for 10,000 million"
        " parameters; activations and live predecessors come on top"
    )

    def pods(**selector: str) -> tuple[dict[str, Any], ...]:
        return ({"spec": {"groups": [{"template": {"nodeSelector": selector}}]}},)

    small = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB"}
    (found,) = gpu_memory.finding(needed, pods(**small))
    assert found.line().startswith(
        "train.engine: weights, gradients and optimiser take 74.5 GiB of a GPU that has 37.3 GiB"
    )
    assert gpu_memory.finding(needed, pods(**{"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"})) == (found,)[1:]
    assert gpu_memory.finding(needed, pods(**{"nvidia.com/gpu.memory": "40960"}))
    assert not gpu_memory.finding(needed, pods(disk="ssd"))


@pytest.mark.parametrize("train", [{"use_gpu": False}, {}])
def test_nothing_is_said_where_nothing_is_known(tmp_path: Path, checkpoint: Path, train: dict[str, Any]) -> None:
    folder = checkpoint if train else tmp_path / "empty"
    folder.mkdir(exist_ok=True)
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"no header") if not train else None
    assert gpu_memory.estimate(document(folder, **train)) is None
