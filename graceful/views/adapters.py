"""An adapter and what was measured of it, as lines for the terminal. Driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graceful import catalogue

SHOWN = {
    "adapter": "cross_test_recall_at_10",
    "old/old": "old_old_recall_at_10",
    "all embedded again": "full_recall_at_10",
    "share of that": "adapter_share_recall_at_10",
    "gain over old/old": "adapter_gain_recall_at_10",
    "retrieval NFR": "retrieval_nfr",
}


def adapter_lines(result: Mapping[str, Any]) -> dict[str, str]:
    """Return what people read of a result of `graceful adapt`, by heading."""
    described = f"{result['kind']}, maps {result['side']}, fitted on {result['fitted']['pairs']} pairs"
    if result["share"] < 1.0:
        described += f", searches {result['share']:g} of the way from old to mapped queries"
    lines = {"adapter": described, "folder": f"{result['adapter']}, {result['bytes']:,} bytes"}
    for heading, name in SHOWN.items():
        heading = heading if heading.startswith(("share", "gain", "retrieval")) else f"recall at 10, {heading}"
        lines[heading] = _measured(result["metrics"].get(name), catalogue.unit_of(name))
    lines["verdict"] = result["outcome"]
    lines |= {f"constraint {number}": reason for number, reason in enumerate(result["reasons"], start=1)}
    return lines


def _measured(measured: Mapping[str, float | None] | None, unit: str) -> str:
    if measured is None or measured["value"] is None:
        return "-"
    text, ends = catalogue.shown(measured["value"], unit), (measured["lower"], measured["upper"])
    if None in ends:
        return text
    return f"{text} [{', '.join(catalogue.shown(end, unit) for end in ends if end is not None)}]"
