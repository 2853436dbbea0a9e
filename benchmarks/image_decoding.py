"""Reading and decoding JPEGs of an image folder at 224 pixels, beside a torch DataLoader with as many workers.

    python -m benchmarks.data_scale --source jpeg      # writes rows of benchmarks/results/data_scale.json
    python -m benchmarks.image_decoding                # the same, prints only

The pictures are photograph-like: noise of several scales, of 500 x 375 pixels as those of ImageNet, and of 2000 x 1500.
Ours is `Samples.read` and the learner's `collate` with as many threads as the peer has worker processes. The peer's
Dataset opens, scales, crops and normalises with the same calls of Pillow and gives float tensors, which the DataLoader
stacks. Both make the same numbers, which is checked. Rounds alternate in one process, each over all pictures;
`ratio` is the median over rounds of samples per second by the clock, `cpu_ratio` by CPU time of the process and its
workers.
"""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from graceful import spec, tasks
from graceful.tasks import image_listing

SIDES = {"jpeg": (500, 375), "jpeg-3mp": (2000, 1500)}
"""Source -> width and height."""
COUNTS = {"jpeg": (512,), "jpeg-3mp": (96,)}
SIZE, BATCH, WORKERS, ROUNDS, SEED = 224, 64, 2, 7, 0


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Return noise of several scales, which compresses about as a photograph does."""
    total = np.zeros((height, width, 3), dtype=np.float32)
    for scale in (4, 16, 64):
        small = rng.normal(0, 12 * scale**0.4, (height // scale + 2, width // scale + 2, 3)) + 128
        layer = Image.fromarray(np.clip(small, 0, 255).astype(np.uint8))
        total += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    return Image.fromarray((total / 3).astype(np.uint8))


def write(root: Path, source: str) -> None:
    """Write class folders of pictures."""
    rng = np.random.default_rng(SEED)
    for number in range(COUNTS[source][0]):
        path = root / "train" / ("ant", "bee")[number % 2] / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(rng, *SIDES[source]).save(path, quality=90)


class Pictures(Dataset[torch.Tensor]):
    """What people write for a DataLoader.

    Args:
        paths: Of the pictures.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return one picture, [3, SIZE, SIZE] in [-1, 1]."""
        with Image.open(self._paths[index]) as picture:
            square = ImageOps.fit(picture.convert("RGB"), (SIZE, SIZE), method=Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 127.5 - 1.0


def measured(source: str) -> dict[str, Any]:
    """Make the pictures, measure, and delete them."""
    with tempfile.TemporaryDirectory(prefix="image-decoding-") as folder:
        root = Path(folder)
        write(root, source)
        task = tasks.build(spec.ImageFolderTask(root=folder, size=SIZE))
        begun = time.perf_counter()
        train = task.samples("train")
        seconds = time.perf_counter() - begun
        chosen = np.arange(len(train))
        paths = [root / name for name in train.ids.tolist()]

        def ours() -> list[torch.Tensor]:
            parts = np.split(chosen, range(BATCH, len(chosen), BATCH))
            return [task.transform(train.read(part), None) for part in parts]

        def peer() -> list[torch.Tensor]:
            loader = DataLoader(Pictures(paths), batch_size=BATCH, num_workers=WORKERS)
            return list(loader)

        image_listing.pool()._max_workers = WORKERS
        assert all(torch.equal(*pair) for pair in zip(ours(), peer(), strict=True))
        row = {"source": source, "rows": len(train), "seed": SEED, "batch": BATCH, "workers": WORKERS}
        return {**row, "open_seconds": round(seconds, 2), "rss_mb": _rss_mb(), **rates(ours, peer, count=len(train))}


def rates(ours: Callable[[], object], peer: Callable[[], object], *, count: int) -> dict[str, Any]:
    """Return the samples per second of both by the clock and by CPU time, in rounds that alternate."""
    clock: dict[str, list[float]] = {"ours": [], "peer": []}
    cpu: dict[str, list[float]] = {"ours": [], "peer": []}
    for number in range(ROUNDS):
        for name, step in (("ours", ours), ("peer", peer))[:: 1 if number % 2 else -1]:
            before, begun = _cpu_seconds(), time.perf_counter()
            step()
            clock[name].append(count / (time.perf_counter() - begun))
            cpu[name].append(count / (_cpu_seconds() - before))
    return {
        "samples_per_second": round(statistics.median(clock["ours"])),
        "peer_samples_per_second": round(statistics.median(clock["peer"])),
        "ratio": _ratio(clock),
        "cpu_ratio": _ratio(cpu),
    }


def _ratio(rounds: dict[str, list[float]]) -> float:
    return round(statistics.median(one / other for one, other in zip(rounds["ours"], rounds["peer"], strict=True)), 2)


def _cpu_seconds() -> float:
    """Return CPU seconds of this process and of those workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _rss_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 10**6


if __name__ == "__main__":
    for kind in SIDES:
        print(measured(kind), flush=True)
