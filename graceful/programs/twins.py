"""Whether what lies in a home also lies elsewhere, so that it may be deleted here: registry and bucket are asked.

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

from graceful.lineage import Store
from graceful.spec.tasks import BUNDLE
from graceful.storage import Mirror, list_objects, read_bytes, sha256_file
from graceful.targets import files

DATABASE = "mlflow.db"
"""The default registry under home."""


class Twins:
    """Copies elsewhere of what lies in a home.

    Args:
        home: The folder of local state.
        mirror: Its twin in a bucket.
    """

    def __init__(self, home: Path, mirror: Mirror) -> None:
        self._home, self._mirror = home, mirror

    def version(self, folder: Path) -> bool:
        """Return whether the registry holds each file of a version's folder."""
        held = self._held(folder.name)
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
        return bool(sizes) and all(held.get(name) == size for name, size in sizes.items())

    def record(self, path: Path) -> bool:
        """Return whether the registry holds the very record that a file repeats."""
        model_id, _, digest = path.stem.rpartition("-")
        if self._store is None:
            return False
        with self._store.registry.door(f"read the record of {model_id}"):
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

    def outputs(self, folder: Path) -> bool:
        """Return whether a cache of outputs lies in the bucket, or its version in the registry, which can be run again.

        A cache whose description is damaged is nobody's.
        """
        if self._mirror.sealed(folder):
            return True
        try:
            predecessor = json.loads(read_bytes(folder / files.META))["identity"]["predecessor"]
        except (ValueError, KeyError, TypeError):
            return False
        record = self._records.get(str(predecessor))
        return record is not None and set(record["files"]) <= set(self._held(record["model_id"]))

    def _held(self, model_id: str) -> Mapping[str, int]:
        """Size of each file of a version that the registry holds, by name."""
        if self._store is None:
            return {}
        with self._store.registry.door(f"list the files of {model_id}") as client:
            if self._store.registry.node(model_id) is None:
                return {}
            folders, found = [""], {}
            while folders:
                for item in client.list_logged_model_artifacts(model_id, folders.pop() or None):
                    if item.is_dir:
                        folders.append(item.path)
                    else:
                        found[item.path] = item.file_size
            return found

    @cached_property
    def _store(self) -> Store | None:
        """The registry; None where there is none, which asking must not make."""
        known = os.environ.get("MLFLOW_TRACKING_URI") or (self._home / DATABASE).exists()
        return Store(None, self._home) if known else None

    @cached_property
    def _records(self) -> dict[str, dict[str, Any]]:
        """Records of this home by the digest of their version."""
        found = {}
        for path in self._home.glob("records/[!.]*.json"):
            with suppress(ValueError, KeyError, TypeError):  # no record: it says nothing
                record = json.loads(read_bytes(path))
                found[str(record["digest"])] = {"model_id": str(record["model_id"]), "files": list(record["files"])}
        return found

    @cached_property
    def _addresses(self) -> dict[str, set[str]]:
        """Addresses at which a bundle may lie, by its digest: those of this home's runs and of its bucket."""
        found: dict[str, set[str]] = {}
        for path in self._home.glob("runs/*/spec*.*"):
            for match in BUNDLE.finditer(path.read_text(encoding="utf-8", errors="replace")):
                found.setdefault(match[1], set()).add(match[0])
        for folder in (self._home / "code").glob("[!.]*") if self._mirror.uri else ():
            found.setdefault(folder.name, set()).add(f"{self._mirror.twin(folder)}.zip")
        return found


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
