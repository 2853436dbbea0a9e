"""How many workers a run has where a cluster's room changes. In Ray's controller; imports Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy


class DivisibleScaling(ElasticScalingPolicy):  # type: ignore[misc]
    """Ray's elastic policy, on numbers of workers among which a batch can be divided.

    Args:
        scaling: Ray's settings, with the least and the largest number.
        allowed: The numbers.
    """

    def __init__(self, scaling: ScalingConfig, *, allowed: Sequence[int]) -> None:
        super().__init__(scaling)
        self._allowed = tuple(allowed)

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        """Return the largest number for which there is room; 0: for none."""
        room = super()._count_possible_workers(reserved_resources)
        return max((count for count in self._allowed if count <= room), default=0)
