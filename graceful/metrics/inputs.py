"""What metrics read: the outputs of a version and of its ancestors. Runs in the driver, NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from graceful.metrics import retrieval
from graceful.metrics.predictions import Joined, Predictions, join


@dataclass(frozen=True, kw_only=True)
class VersionOutputs:
    """Outputs of one version on the evaluated samples.

    Attributes:
        name: The name of the version.
        predictions: On the test split.
        queries: Its embeddings of the query split; None: retrieval is not measured.
        gallery: The gallery of the gallery split.
    """

    name: str
    predictions: Predictions
    queries: retrieval.Embeddings | None = None
    gallery: retrieval.Embeddings | None = None


@dataclass(frozen=True)
class MetricInputs:
    """What the function of another package's metric gets.

    Attributes:
        new: Outputs of the version that is measured.
        ancestors: Of its ancestors, latest first: none for a metric about the version, one for a metric about an
            ancestor, all of them for a metric about the chain.
        draws: Bootstrap draws, see `graceful.metrics.intervals.Evidence`.
        seed: The seed of the draws.
    """

    new: VersionOutputs
    ancestors: tuple[VersionOutputs, ...] = ()
    draws: int = 1000
    seed: int = 0

    @cached_property
    def joined(self) -> Joined:
        """Return the version and its latest ancestor here on the ids that both can answer, see `predictions.join`."""
        return join(self.new.predictions, self.ancestors[0].predictions)
