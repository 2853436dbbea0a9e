"""One run of a program as a value: what is asked, where its files are, their copy in a bucket. Runs in the driver.

It is made once and passed to all that work on the run, so that a file is copied once and a version is opened once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from graceful.programs import home_of
from graceful.spec import RefreshSpec
from graceful.storage import Mirror

if TYPE_CHECKING:
    from graceful.chain.ancestor import Ancestor, Link
    from graceful.lineage import Store
    from graceful.models.stored import StoredVersion

Progress = Callable[[Mapping[str, object]], None]


def silent(row: Mapping[str, object]) -> None:
    """Report no progress."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run.

    Attributes:
        spec: What is asked.
        home: Folder of runs, caches and the default registry.
        folder: The folder of this run's files.
        mirror: Copy of the home folder in a bucket, where there is one.
        versions: By absolute folder, those that were asked for; each is opened once.
    """

    spec: RefreshSpec
    home: Path
    folder: Path
    mirror: Mirror
    versions: dict[str, StoredVersion] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, spec: RefreshSpec, *, home: Path | None = None, folder: Path | None = None) -> Run:
        """Return the run of a spec.

        Args:
            spec: What is asked.
            home: None: the spec's, else $GRACEFUL_HOME, else .graceful here.
            folder: None: that of the spec's run id.

        Raises:
            SpecError: GRACEFUL_STORAGE is not an address of a bucket.
        """
        home = home or home_of(spec)
        return cls(spec=spec, home=home, folder=folder or home / "runs" / spec.run_id, mirror=Mirror.of(home))

    @cached_property
    def store(self) -> Store:
        """Return the registry.

        Raises:
            RegistryError: Unreachable.
        """
        from graceful.lineage import Store  # MLflow, which trials do without

        return Store(self.spec.registry.uri, self.home)

    @property
    def model(self) -> Path:
        """Return the folder of the bundle that the run trains."""
        return self.folder / "model"

    def version(self, folder: Path, link: Link | None = None) -> StoredVersion:
        """Return the version in a bundle's folder; the same value each time, so that it is opened once."""
        from graceful.models.stored import StoredVersion

        key = os.path.abspath(folder)
        if key not in self.versions:
            self.versions[key] = StoredVersion(
                folder=folder,
                augment_like=self.spec.task,
                trusted=self.spec.trust.code_digests,
                digest=link.digest if link else None,
                model_id=link.model_id if link else None,
                alias=link.name if link and not link.is_ancestor else None,
            )
        return self.versions[key]

    def chain(self, folders: Iterable[Path]) -> list[Ancestor]:
        """Return ancestors that are known by their bundles alone."""
        from graceful.chain.ancestor import Ancestor

        return [Ancestor(stored=self.version(Path(folder))) for folder in folders]
