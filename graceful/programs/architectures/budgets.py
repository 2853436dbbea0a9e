"""What the paths of a search cost, with measured latency, and where a budget begins to be met. Runs in the driver."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from random import Random

import torch

from graceful.architectures import costs
from graceful.architectures.costs import Costs, cheapest, excess
from graceful.architectures.space import Genes, Space, network_of
from graceful.errors import SpecError
from graceful.models import cost
from graceful.models.cost import Latency
from graceful.models.staged import StagedNet
from graceful.programs.architectures.journal import latencies
from graceful.spec.architectures import Budget
from graceful.spec.stages import StagedNetwork
from graceful.storage import sha256_json

SAMPLED = 2000
_WORDS = {
    "macs": "multiply-accumulates",
    "parameters": "parameters",
    "int8_bytes": "bytes in 8 bits",
    "latency_ms": "ms (median of one image on one core)",
}


class Prices:
    """Costs of paths; a latency is measured once and kept by the path's digest.

    Args:
        space: The paths.
        like: Whose embedding, head and normalisation they have.
        input_shape: (channels, height, width) of an image.
        budget: The budget of the spec.
        folder: The folder of the search, where latencies of this kind of machine are kept; None: nowhere.
    """

    def __init__(
        self,
        space: Space,
        like: StagedNetwork,
        input_shape: tuple[int, int, int],
        budget: Budget,
        *,
        folder: Path | None,
    ) -> None:
        self._space, self._like, self._shape, self._budget = space, like, input_shape, budget
        self._costs: dict[Genes, Costs] = {}
        self._known: dict[Genes, Latency] = {}
        machine = sha256_json([platform.machine(), platform.processor(), platform.node(), torch.__version__])
        self._journal = None if folder is None else latencies(folder / f"latency-{machine[:8]}.jsonl")

    def costs(self, genes: Genes) -> Costs:
        """Return what a path costs by its description."""
        if genes not in self._costs:
            self._costs[genes] = costs.of(network_of(self._space.path(genes), self._like), self._shape)
        return self._costs[genes]

    def latency(self, genes: Genes) -> Latency:
        """Return the measured latency of a path: torch, one image, one thread."""
        path = self._space.path(genes)
        known = self._known.get(genes) or (self._journal.find(path) if self._journal else None)
        if known is None:
            known = measured_latency(network_of(path, self._like), self._shape)
            if self._journal is not None:
                self._journal.add(path, known)
        self._known[genes] = known
        return known

    def cost(self, genes: Genes, name: str) -> float:
        """Return one cost by its name in a budget."""
        return self.latency(genes).p50_ms if name == "latency_ms" else float(self.costs(genes).document()[name])

    @property
    def axis(self) -> str:
        """Return the cost over which the front is drawn: the first one with a limit, else multiply-accumulates."""
        return next(iter(self._budget.model_dump(exclude_none=True)), "macs")

    def fits(self, genes: Genes) -> bool:
        """Return whether a path is within the budget; its latency is measured only if that is limited and the rest
        fits."""
        limit = self._budget.latency_ms
        within = excess(self.costs(genes).document(), self._budget) <= 1.0
        return within and (limit is None or self.latency(genes).p50_ms <= limit)

    def share(self) -> float:
        """Return the share of random paths that are within the budget, latency aside."""
        generator = Random(0)
        drawn = [self._space.random(generator) for _ in range(SAMPLED)]
        return sum(excess(self.costs(genes).document(), self._budget) <= 1.0 for genes in drawn) / SAMPLED

    def start(self) -> Genes:
        """Return a path within the budget.

        Raises:
            SpecError: None is known; the nearest is named.
        """
        best = cheapest(self._space, self.costs, self._budget)
        if excess(self.costs(best).document(), self._budget) > 1.0:
            raise SpecError(self._refusal(best))
        while not self.fits(best):  # only its latency can be too long
            near = [
                genes
                for genes in self._space.neighbours(best)
                if excess(self.costs(genes).document(), self._budget) <= 1.0
            ]
            faster = min(near, key=lambda genes: self.latency(genes).p50_ms, default=best)
            if self.latency(faster).p50_ms >= self.latency(best).p50_ms:
                raise SpecError(self._refusal(best))
            best = faster
        return best

    def _refusal(self, nearest: Genes) -> str:
        limits = self._budget.model_dump(exclude_none=True)
        exceeded = {name: limit for name, limit in limits.items() if self.cost(nearest, name) > limit}
        asked = " and ".join(f"{limit:,} {_WORDS[name]}" for name, limit in exceeded.items())
        costs_text = " and ".join(
            f"{self.cost(nearest, name):,.3f}" if name == "latency_ms" else f"{self.cost(nearest, name):,.0f}"
            for name in exceeded
        )
        return (
            f"architectures.budget: no network of the space keeps {asked}; the nearest costs {costs_text}:"
            f" {json.dumps(self._space.path(nearest))}; raise {' and '.join(exceeded)}, or add smaller choices"
        )


def measured_latency(network: StagedNetwork, input_shape: tuple[int, int, int]) -> Latency:
    """Return the latency of one embedding of one image on one thread, by torch and with random weights."""
    with torch.random.fork_rng(devices=[]):
        built = StagedNet(network, input_shape=input_shape, classes=1).eval()
    image, threads = torch.zeros(1, *input_shape), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            return cost.latency(lambda: built.embed(image))
    finally:
        torch.set_num_threads(threads)
