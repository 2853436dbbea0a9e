"""One ancestor of a run as a row: its place in the registry, its bundle, its cached outputs. Driver and workers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from graceful.models.stored import StoredVersion


@dataclass(frozen=True, kw_only=True)
class Link:
    """One ancestor as this run found it in the registry when it first started.

    Attributes:
        name: The name of the version; no two ancestors of a run have the same.
        model_id: Its identity.
        version: Number in the registry.
        digest: The digest of its bundle.
        role: What the run has to do with it; empty in older files, where the first one is the champion. `gallery`:
            a gallery model that the new version shall search, the one that it is trained against first; `query`: a
            query model of the new version's index; `baseline`: a model that was trained alone.
    """

    name: str
    model_id: str
    version: int
    digest: str
    role: Literal["champion", "parent", "ancestor", "gallery", "query", "baseline", ""] = ""

    @property
    def is_ancestor(self) -> bool:
        """Return whether the new version descends from it."""
        return self.role not in ("gallery", "query", "baseline")


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """One ancestor of a run, and what the run has of it. Copies made by `dataclasses.replace` share the opened version.

    Attributes:
        stored: Its bundle, opened once in each process.
        link: How the registry knows it; None: it was named by its bundle alone.
        cache: Folder of its outputs on the training data; None: it runs in every step that needs them.
        gallery_cache: Those of its gallery encoder, where a loss reads them and it is another one; None likewise.
        near_chance: It pulls only where it is right, see `spec.Compatibility`.
    """

    stored: StoredVersion
    link: Link | None = None
    cache: Path | None = None
    gallery_cache: Path | None = None
    near_chance: bool = False

    def portable(self) -> Ancestor:
        """Return what is sent to another process: absolute paths."""
        cache, gallery = (path and path.resolve() for path in (self.cache, self.gallery_cache))
        return replace(self, cache=cache, gallery_cache=gallery)

    @property
    def name(self) -> str:
        """Name of the version in this run."""
        return self.stored.name

    @property
    def is_ancestor(self) -> bool:
        """Return whether the new version descends from it, as it does from all that are known by their bundles
        alone."""
        return self.link is None or self.link.is_ancestor
