"""Whether the registry or a bucket has a copy of what lies in a home, so that it may be deleted here. Driver.

What cannot be found elsewhere counts as the only copy.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from graceful.environment import REGISTRY_VARIABLE
from graceful.lineage import Store
from graceful.spec.tasks import BUNDLE
from graceful.storage import Mirror, list_objects, read_bytes, sha256_file
from graceful.targets import eviction

DATABASE = "mlflow.db"
"""The default registry under home."""
DESCRIPTION = "arch.json"
"""File of a version that describes its task, as `graceful.models.bundle` writes it; that module would import torch."""
CODE = "python"
"""Kind of tasks that are code of their own."""


class OtherCopies:
    """Copies elsewhere of what lies in a home.

    Args:
        home: The folder of local state.
        mirror: Its copy in a bucket.
    """

    def __init__(self, home: Path, mirror: Mirror) -> None:
        self._home, self._mirror = home, mirror

    def version(self, folder: Path) -> bool:
        """Return whether the registry holds each file of a version's folder."""
        registered_sizes = self._registered_sizes(folder.name)
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
        return bool(sizes) and all(registered_sizes.get(name) == size for name, size in sizes.items())

    def record(self, path: Path) -> bool:
        """Return whether the registry holds the very record that a file repeats."""
        model_id, _, digest = path.stem.rpartition("-")
        if self._store is None:
            return False
        with self._store.registry.client_for(f"read the record of {model_id}"):
            node = self._store.registry.node(model_id)
            text = None if node is None else self._store.registry.record_text(node, sealed=False)
        return text is not None and hashlib.sha256(text.encode()).hexdigest() == digest == sha256_file(path)

    def code(self, folder: Path) -> bool:
        """Return whether a bucket holds the bundle that was unpacked into a folder."""
        return any(
            stored.uri == address
            for address in self._addresses.get(folder.name, ())
            for stored in list_objects(address.rpartition("/")[0])
        )

    def base(self, folder: Path) -> bool:
        """Return whether the bucket holds the weights that versions with adapters name."""
        return self._mirror.is_sealed(folder)

    def outputs(self, folder: Path) -> bool:
        """Return whether a cache of outputs lies in the bucket, or its version can be run again to make it.

        Code that was recorded with a version runs only where a spec or a person trusts it, and no person can be asked
        here: the outputs of such a version count as the only copy unless the bucket has them. A cache whose description
        is damaged belongs to no version.
        """
        if self._mirror.is_sealed(folder):
            return True
        record = self._records.get(eviction.predecessor_of(folder) or "")
        if record is None or not record["files"].keys() <= self._registered_sizes(record["model_id"]).keys():
            return False
        return self._runs_own_code(record) is False

    def _runs_own_code(self, record: Mapping[str, Any]) -> bool | None:
        """Return whether a version's task is code of its own; None where its description in the registry does not
        say."""
        expected = record["files"].get(DESCRIPTION)
        if self._store is None or expected is None:
            return None
        with self._store.registry.client_for(f"read {DESCRIPTION} of {record['model_id']}"):
            description = self._store.registry.registered_file(record["model_id"], DESCRIPTION)
        if hashlib.sha256(description).hexdigest() != expected:
            return None
        try:
            return bool(json.loads(description)["task"]["kind"] == CODE)
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    def _registered_sizes(self, model_id: str) -> Mapping[str, int]:
        """Return the size of each file of a version that the registry holds, by name."""
        if self._store is None:
            return {}
        with self._store.registry.client_for(f"list the files of {model_id}") as client:
            if self._store.registry.node(model_id) is None:
                return {}
            folders, sizes = [""], {}
            while folders:
                for item in client.list_logged_model_artifacts(model_id, folders.pop() or None):
                    if item.is_dir:
                        folders.append(item.path)
                    else:
                        sizes[item.path] = item.file_size
            return sizes

    @cached_property
    def _store(self) -> Store | None:
        """Return the registry; None where there is none, because reading must not create one."""
        exists = os.environ.get(REGISTRY_VARIABLE) or (self._home / DATABASE).exists()
        return Store(None, self._home) if exists else None

    @cached_property
    def _records(self) -> dict[str, dict[str, Any]]:
        """Return the records of this home by the digest of their version."""
        records = {}
        for path in self._home.glob("records/[!.]*.json"):
            with suppress(ValueError, KeyError, TypeError, RecursionError):  # it is no record
                record = json.loads(read_bytes(path))
                records[str(record["digest"])] = {"model_id": str(record["model_id"]), "files": dict(record["files"])}
        return records

    @cached_property
    def _addresses(self) -> dict[str, set[str]]:
        """Return the addresses at which a bundle may lie, by its digest: those of this home's runs and of its
        bucket."""
        addresses: dict[str, set[str]] = {}
        for path in self._home.glob("runs/*/spec*.*"):
            for match in BUNDLE.finditer(path.read_text(encoding="utf-8", errors="replace")):
                addresses.setdefault(match[1], set()).add(match[0])
        for folder in (self._home / "code").glob("[!.]*") if self._mirror.uri else ():
            addresses.setdefault(folder.name, set()).add(f"{self._mirror.copy_uri(folder)}.zip")
        return addresses


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
