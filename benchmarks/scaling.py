"""Arithmetic of a refresh on 256 GPUs with 10^8 samples and 50 predecessors: bytes, seconds, cost, what breaks first.

    python -m benchmarks.scaling            # the table of docs/scaling.md
    python -m benchmarks.scaling --gpus 64 --samples 1e7 --predecessors 16

Nothing is measured here. Each row is a formula over the inputs at the top of this file; those that were measured in
this repository say where. The rates of machines are those of their makers' data sheets, and MFU is an assumption.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace

GB, TB = 1e9, 1e12


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the arithmetic starts from."""

    gpus: int = 256
    gpus_per_node: int = 8
    samples: float = 1e8
    predecessors: int = 50
    epochs: int = 1
    parameters: float = 86e6
    """ViT-B/16."""
    forward_flops: float = 35.2e9
    """Of one image of 224 pixels a side: 17.6 G multiply-adds."""
    classes: int = 1000
    embedding: int = 768
    image_bytes: float = 100e3
    batch_per_gpu: int = 64
    peak_flops: float = 989e12
    """An H100 SXM with bf16."""
    mfu: float = 0.35
    network: float = 50 * GB
    """Of each GPU to other nodes, bytes a second: 400 Gb/s."""
    storage: float = 20 * GB
    """What a bucket gives all nodes together, bytes a second."""
    nvme: float = 6 * GB
    """What a node reads from its own disks, bytes a second."""
    cores_per_node: int = 192
    decoded_per_core: float = 400.0
    """JPEGs of a tenth of a megapixel a second."""
    price: float = 2.5
    """Of a GPU and hour, in dollars."""
    test_share: float = 0.01
    """Samples of the test split, as a share of those that are trained on."""

    @property
    def nodes(self) -> float:
        """Machines."""
        return self.gpus / self.gpus_per_node


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    what: str
    formula: str
    value: float
    unit: str

    @property
    def text(self) -> str:
        """Return the value, for people."""
        return f"{self.value:,.1f} {self.unit}" if abs(self.value) < 100 else f"{self.value:,.0f} {self.unit}"


def rows(given: Inputs) -> Iterator[Row]:
    """Yield the table."""
    rate = given.gpus * given.peak_flops * given.mfu / (3 * given.forward_flops)
    epoch = given.samples / rate
    yield Row(
        what="samples a second that the GPUs can train on",
        formula="gpus x peak x MFU / (3 x forward FLOPs)",
        value=rate / 1e3,
        unit="thousand/s",
    )
    yield Row(what="an epoch, bound by arithmetic", formula="samples / rate", value=epoch, unit="s")
    step = given.batch_per_gpu * given.gpus / rate
    yield Row(what="a step", formula="batch x gpus / rate", value=1e3 * step, unit="ms")
    traffic = 2 * (given.gpus - 1) / given.gpus * given.parameters * 4
    yield Row(
        what="gradients that each GPU sends in a step",
        formula="2 (gpus - 1) / gpus x parameters x 4 bytes",
        value=traffic / GB,
        unit="GB",
    )
    yield Row(
        what="time of that, most of it beside the backward pass",
        formula="bytes / network of a GPU",
        value=1e3 * traffic / given.network,
        unit="ms",
    )
    yield from _data(given, rate=rate)
    yield from _predecessors(given, epoch=epoch)
    yield from _evaluation(given, rate=rate)
    state = given.parameters * 4 * 3
    yield Row(
        what="a checkpoint: weights and two moments", formula="parameters x 3 x 4 bytes", value=state / GB, unit="GB"
    )
    yield Row(
        what="time of it to the bucket, beside training",
        formula="bytes / storage",
        value=state / given.storage,
        unit="s",
    )
    yield from _cost(given, epoch=epoch)


def _data(given: Inputs, *, rate: float) -> Iterator[Row]:
    read = given.samples * given.image_bytes
    yield Row(what="images read in an epoch", formula="samples x bytes of an image", value=read / TB, unit="TB")
    yield Row(
        what="bytes a second that keep the GPUs busy",
        formula="rate x bytes of an image",
        value=rate * given.image_bytes / GB,
        unit="GB/s",
    )
    yield Row(what="an epoch, bound by the bucket", formula="bytes / storage", value=read / given.storage, unit="s")
    yield Row(
        what="cores that decode for it",
        formula="rate / images a second of a core",
        value=rate / given.decoded_per_core,
        unit="cores",
    )
    yield Row(
        what="cores that there are", formula="nodes x cores", value=given.nodes * given.cores_per_node, unit="cores"
    )


def _predecessors(given: Inputs, *, epoch: float) -> Iterator[Row]:
    sample = 2 * given.classes + 4 + 2 * given.embedding
    yield Row(
        what="cached outputs of one predecessor",
        formula="samples x (2 classes + 4 + 2 embedding) bytes",
        value=given.samples * sample / GB,
        unit="GB",
    )
    caches = given.predecessors * given.samples * sample
    yield Row(what="of all predecessors", formula="predecessors x that", value=caches / TB, unit="TB")
    yield Row(what="running one predecessor once, in its first refresh", formula="epoch / 3", value=epoch / 3, unit="s")
    yield Row(
        what="the same for all, were nothing cached, in every epoch",
        formula="predecessors x epoch / 3",
        value=given.predecessors * epoch / 3,
        unit="s",
    )
    mixed = given.samples * 4 * (given.classes + 1)
    yield Row(
        what="merged target, of each worker", formula="samples x 4 (classes + 1) bytes", value=mixed / GB, unit="GB"
    )
    node = mixed * given.gpus_per_node
    yield Row(what="merged targets on the disks of a node", formula="that x GPUs of a node", value=node / TB, unit="TB")
    logits = given.predecessors * given.samples * (2 * given.classes + 4)
    yield Row(
        what="cached logits that each worker reads to merge",
        formula="predecessors x samples x (2 classes + 4)",
        value=logits / TB,
        unit="TB",
    )
    seconds = logits * given.gpus_per_node / given.nvme
    yield Row(
        what="time of that at a node's disks", formula="that x GPUs of a node / NVMe", value=seconds / 3600, unit="h"
    )
    shared = (logits / given.gpus + mixed / given.gpus) / (given.nvme / given.gpus_per_node)
    yield Row(
        what="the same, if each worker merged only the rows that it trains on",
        formula="(logits + merged) / gpus / share of NVMe",
        value=shared,
        unit="s",
    )


def _evaluation(given: Inputs, *, rate: float) -> Iterator[Row]:
    tested = given.samples * given.test_share
    yield Row(
        what="evaluating the new version on a test split of a hundredth",
        formula="samples / 100 / (3 x rate)",
        value=tested / (3 * rate),
        unit="s",
    )
    outputs = given.predecessors * tested * (2 * given.classes + 4 + 2 * given.embedding)
    yield Row(
        what="cached outputs of all predecessors there",
        formula="predecessors x samples / 100 x (2 classes + 4 + 2 embedding) bytes",
        value=outputs / GB,
        unit="GB",
    )
    yield Row(what="time of reading them", formula="bytes / storage", value=outputs / given.storage, unit="s")


def _cost(given: Inputs, *, epoch: float) -> Iterator[Row]:
    """Yield what epochs cost while GPUs compute, and while they wait."""
    second = given.gpus / 3600 * given.price
    logits = given.predecessors * given.samples * (2 * given.classes + 4)
    for what, seconds in (
        ("cost of an epoch, if nothing waits", epoch),
        ("the same, bound by the bucket", given.samples * given.image_bytes / given.storage),
        ("cost of GPUs that wait while each worker merges", logits * given.gpus_per_node / given.nvme),
    ):
        yield Row(what=what, formula="gpus x seconds / 3600 x price", value=second * seconds, unit="USD")


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=Inputs.gpus)
    parser.add_argument("--samples", type=float, default=Inputs.samples)
    parser.add_argument("--predecessors", type=int, default=Inputs.predecessors)
    chosen = parser.parse_args()
    given = replace(Inputs(), gpus=chosen.gpus, samples=chosen.samples, predecessors=chosen.predecessors)
    print("| what | formula | value |\n|---|---|---|")
    for row in rows(given):
        print(f"| {row.what} | {row.formula} | {row.text} |")


if __name__ == "__main__":
    main()
