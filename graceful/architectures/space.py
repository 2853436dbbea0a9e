"""Paths of a space of networks as JSON values: drawn at random, changed, crossed. Pure functions. Driver and actors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

from graceful.spec.architectures import ArchitectureSpace
from graceful.spec.stages import StagedNetwork
from graceful.storage import sha256_json

Path = dict[str, Any]
"""`resolution` and `stages`, as a spec writes them in a network of kind `stages`."""
Genes = tuple[int, ...]
"""Which value of each choice a path has."""
_STAGE = ("width", "kernel", "depth", "depthwise")


def digest_of(path: Path) -> str:
    """Return a short name of a path, the same in every process."""
    return sha256_json(path)[:16]


def path_of(network: StagedNetwork) -> Path:
    """Return the path that a network of a spec is."""
    document = network.model_dump(mode="json")
    return {key: document[key] for key in ("resolution", "stages")}


def network_of(path: Mapping[str, Any], like: StagedNetwork) -> StagedNetwork:
    """Return the network of a spec that a path is.

    Args:
        path: The path.
        like: Whose embedding, head and normalisation it gets.
    """
    return StagedNetwork.model_validate({**like.model_dump(mode="json"), **path})


@dataclass(frozen=True)
class Space:
    """All paths of a section of the spec.

    Attributes:
        section: The section.
    """

    section: ArchitectureSpace

    @cached_property
    def choices(self) -> tuple[tuple[Any, ...], ...]:
        """Return the values of each choice: the resolution, then four of each stage."""
        stages = (getattr(stage, key) for stage in self.section.stages for key in _STAGE)
        return (self.section.resolution, *stages)

    def path(self, genes: Genes) -> Path:
        """Return the path of genes."""
        resolution, *values = (values[gene] for values, gene in zip(self.choices, genes, strict=True))
        rows = (values[at : at + len(_STAGE)] for at in range(0, len(values), len(_STAGE)))
        return {"resolution": resolution, "stages": [dict(zip(_STAGE, row, strict=True)) for row in rows]}

    def genes(self, path: Path) -> Genes | None:
        """Return the genes of a path; None where the space does not have it."""
        stages = path["stages"]
        if len(stages) != len(self.section.stages):
            return None
        values = [path["resolution"], *(stage[key] for stage in stages for key in _STAGE)]
        if any(value not in choice for value, choice in zip(values, self.choices, strict=True)):
            return None
        return tuple(choice.index(value) for value, choice in zip(values, self.choices, strict=True))

    def random(self, generator: Random) -> Genes:
        """Draw a path, each choice uniformly."""
        return tuple(generator.randrange(len(values)) for values in self.choices)

    def mutant(self, genes: Genes, generator: Random, *, chance: float) -> Genes:
        """Draw each choice again with a chance."""
        return tuple(
            generator.randrange(len(values)) if generator.random() < chance else gene
            for gene, values in zip(genes, self.choices, strict=True)
        )

    def cross(self, left: Genes, right: Genes, generator: Random) -> Genes:
        """Take each choice from one of two paths."""
        return tuple(generator.choice(pair) for pair in zip(left, right, strict=True))

    def neighbours(self, genes: Genes) -> Iterator[Genes]:
        """Return the paths that differ in one choice."""
        for position, values in enumerate(self.choices):
            for gene in range(len(values)):
                if gene != genes[position]:
                    yield (*genes[:position], gene, *genes[position + 1 :])
