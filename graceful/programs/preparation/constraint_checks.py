"""Refuse constraints that the gate could not judge, before training begins. Runs in the driver."""

from __future__ import annotations

from collections.abc import Sequence

from graceful import catalogue
from graceful.constraints import ALL, LATEST, SELF
from graceful.errors import SpecError
from graceful.spec import RefreshSpec


def require_judgeable(spec: RefreshSpec, ancestors: Sequence[str]) -> None:
    """Check the gate's constraints against the names of the ancestors.

    Raises:
        SpecError: A constraint is about no ancestor, or about something that will not be measured.
    """
    known = {SELF, LATEST, ALL, *ancestors}
    for index, item in enumerate(spec.gate.constraints):
        if item.against is not None and item.against not in known:
            names = ", ".join(ancestors) or "no versions yet"
            where = f"gate.constraints.{index}.against"
            raise SpecError(f"{where}: {item.against!r} is not an ancestor; the chain has {names}")
        metric = catalogue.find(item.metric)
        if metric is not None and metric.retrieval and not spec.evaluate.retrieval:
            raise SpecError(
                f"gate.constraints.{index}.metric: {item.metric} is not measured with evaluate.retrieval: false;"
                " write true, or leave the constraint out"
            )
