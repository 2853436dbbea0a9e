"""Between which versions an adapter stands, and how its map is chosen. Runs in every process."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from graceful.sections import VERSION, Count, Section, unreserved

Version = Annotated[str, Field(pattern=VERSION), AfterValidator(unreserved)]
MapKind = Literal["procrustes", "low_rank", "mlp"]


class SpaceMap(Section):
    """Makes this version a map between the embedding spaces of two others. `graceful adapt` writes it."""

    old: Version
    """The version whose gallery is there."""
    new: Version
    """The version whose queries come."""
    side: Literal["queries", "gallery"] = "queries"
    """queries: new queries are mapped into the old gallery's space; gallery: the old gallery is mapped into the space
    of new queries."""
    kinds: tuple[MapKind, ...] = ("procrustes", "low_rank", "mlp")
    """Maps that are tried: rotation and scale, affine of low rank, a residual network."""
    interpolate: bool = False
    """Also run the old version on queries, and search with a point between its vector and the mapped one."""
    pairs: Count = 20_000
    """Training samples that both versions embed, at most."""
