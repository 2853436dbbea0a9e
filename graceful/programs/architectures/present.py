"""The result of a search of architectures for people. In the driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from graceful.programs.architectures.program import SPEC


def path_text(path: Mapping[str, Any]) -> str:
    """Return a path in one line: width, kernel, dw for depthwise, x and the depth, of each stage."""
    stages = [
        f"{stage['width']}k{stage['kernel']}{'dw' if stage['depthwise'] else ''}"
        + (f"x{stage['depth']}" if stage["depth"] > 1 else "")
        for stage in path["stages"]
    ]
    size = "" if path["resolution"] is None else f"{path['resolution']}px "
    return size + " ".join(stages)


def result_table(document: Mapping[str, Any]) -> Table:
    """Return the front, and the spec's own network where the space has it."""
    whose = "by their own weights" if document["method"] == "pruning" else "by the supernet's weights"
    table = Table(title=f"{document['run_id']}: networks that search {document['gallery']}, {whose}")
    for name in ("network", "MACs", "parameters", "int8 bytes", "p50 ms", "p95 ms", "mAP on big", "mAP alone"):
        table.add_column(name, justify="left" if name == "network" else "right")
    for row in document["front"]:
        table.add_row(path_text(row["path"]), *_numbers(row))
    written = document["written"]
    if written is not None:
        table.add_section()
        table.add_row(f"{path_text(written['path'])} (the spec's)", *_numbers(written))
    return table


def _numbers(row: Mapping[str, Any]) -> list[str]:
    counts = [f"{row[name]:,}" for name in ("macs", "parameters", "int8_bytes")]
    times = [f"{row[name]:.3f}" for name in ("p50_ms", "p95_ms")]
    scores = [f"{row[name]:.2%}" if name in row else "failed" for name in ("small_on_big_map", "small_alone_map")]
    return [*counts, *times, *scores]


def result_lines(document: Mapping[str, Any]) -> list[str]:
    """Return what was measured, and what to do next."""
    folder = document["folder"]
    step = "copy it and `graceful refresh` it:" if "://" in folder else "graceful refresh"
    if document["method"] == "pruning":
        return [f"next:   {step} {folder}/{row['spec']}" for row in document["front"]]
    return [
        f"{document['evaluations']} of {document['networks']:,} networks measured, {len(document['failed'])} failed;"
        f" every one is in {document['journal']}",
        *(f"failed: {path_text(row['path'])}: {row['failed']}" for row in document["failed"][:3]),
        f"next:   {step} {folder}/{SPEC}",
    ]
