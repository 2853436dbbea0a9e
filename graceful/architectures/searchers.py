"""Which paths to measure next: evolution, or random ones. Pure; the same seed and scores give the same paths. Driver.

A search that was interrupted is run again from its first generation, with the scores that were recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Literal

from graceful.architectures.space import Genes, Space
from graceful.spec.architectures import Architectures

DRAWS = 2000
"""How often a path that is new and within the budget is drawn before neighbours are tried instead."""


class Searcher:
    """Asks for generations of paths and is told their scores.

    Source: single-path one-shot search (Guo et al., 2020) for the scheme: the best so far, mutated and crossed.

    Args:
        space: What is searched.
        section: Population, parents, chance of mutation.
        method: evolution or random.
        fits: Whether a path is within the budget.
        start: A path within the budget, which is measured first.
        seed: The seed of all draws.
    """

    def __init__(
        self,
        space: Space,
        section: Architectures,
        *,
        method: Literal["evolution", "random"],
        fits: Callable[[Genes], bool],
        start: Genes,
        seed: int,
    ) -> None:
        self._space, self._section, self._method = space, section, method
        self._fits, self._start, self._generator = fits, start, Random(seed)
        self._asked: dict[Genes, None] = {}
        self._scores: dict[Genes, float] = {}

    def ask(self, most: int) -> list[Genes]:
        """Return the next generation of paths that were not asked before; empty once the space has no more.

        Args:
            most: How many at most.
        """
        wanted = min(most, self._section.population)
        generation: list[Genes] = []
        while len(generation) < wanted:
            genes = self._next()
            if genes is None:
                break
            self._asked[genes] = None
            generation.append(genes)
        return generation

    def tell(self, scores: Mapping[Genes, float | None]) -> None:
        """Record the scores of a generation; None: the path failed, and has no children."""
        self._scores |= {genes: score for genes, score in scores.items() if score is not None}

    def _next(self) -> Genes | None:
        if not self._asked:
            return self._start
        for _ in range(DRAWS):
            genes = self._draw()
            if genes not in self._asked and self._fits(genes):
                return genes
        return self._neighbour()

    def _draw(self) -> Genes:
        parents = sorted(self._scores, key=lambda genes: (-self._scores[genes], genes))[: self._section.parents]
        generator = self._generator
        if self._method == "random" or not parents:
            return self._space.random(generator)
        if generator.random() < 0.5 or len(parents) == 1:
            parent = generator.choice(parents)
            return self._space.mutant(parent, generator, chance=self._section.mutation)
        left, right = generator.sample(parents, 2)
        return self._space.cross(left, right, generator)

    def _neighbour(self) -> Genes | None:
        """Return a new path within the budget beside one that was asked; None where there is none.

        In a space nearly all of which is too dear, or was measured, draws find nothing."""
        near = (genes for asked in self._asked for genes in self._space.neighbours(asked))
        return next((genes for genes in near if genes not in self._asked and self._fits(genes)), None)
