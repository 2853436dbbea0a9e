"""A version on disk that each process opens at most once. Driver and workers."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from graceful.chain import Completeness, Predecessor
from graceful.models import bundle
from graceful.models.bundle_files import Description
from graceful.spec import Task as TaskSection


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredVersion:
    """A bundle and what is needed to open it. Sent to another process it arrives closed: that process opens its own.

    Attributes:
        folder: The folder of the bundle, absolute.
        augment_like: Task section of the version in training, see `bundle.load`.
        trusted: Digests of recorded code that may run.
        digest: The digest of the bundle, from the registry; None: only the weights are checked.
        model_id: Identity in the registry; None: `<model>-<name>`.
        alias: What a run calls it, where another version may have its name; None: its name.
    """

    folder: Path
    augment_like: TaskSection | None = None
    trusted: Collection[str] = ()
    digest: str | None = None
    model_id: str | None = None
    alias: str | None = None
    _known: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(os.path.abspath(self.folder)))

    def __getstate__(self) -> dict[str, Any]:
        return {attribute.name: getattr(self, attribute.name) for attribute in fields(self)} | {"_known": {}}

    @property
    def description(self) -> Description:
        """Return the bundle's description of its version; the weights are not read.

        Raises:
            DataError, StorageError: As `bundle.describe`.
        """
        if "description" not in self._known:
            self._known["description"] = bundle.describe(self.folder)
        described: Description = self._known["description"]
        return described

    @property
    def name(self) -> str:
        """Name of the version in this run."""
        return self.alias or self.description.name

    def open(self, *, at_least: Completeness = Completeness.NOTHING) -> Predecessor:
        """Return the version, opened by the first call.

        Args:
            at_least: What of it must be left; less is refused.

        Raises:
            IntegrityError, DataError: As `bundle.load`.
        """
        version: Predecessor | None = self._known.get("version")
        if version is None or (at_least is Completeness.WHOLE and version.unrunnable_reason):
            version = bundle.load(
                self.folder,
                expected_digest=self.digest,
                model_id=self.model_id,
                augment_like=self.augment_like,
                trusted=self.trusted,
                at_least=at_least,
            )
            version = version if self.alias is None else replace(version, name=self.alias)
            self._known["version"] = version
        return version

    def whole(self) -> Predecessor:
        """Return the version, which must be whole; raises as `open`."""
        return self.open(at_least=Completeness.WHOLE)
