"""Tiny versions to register: a bundle of two small files, a report and a verdict, in milliseconds and without torch."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from graceful import gate
from graceful.constraints import Constraint, Direction
from graceful.lineage import LineageRecord, Registration, Store
from graceful.report import Comparison, Measurement, Report
from graceful.storage import sha256_json
from tests.support import mlflow_server

BOUND = 0.02
CONSTRAINT = {"metric": "negative_flip_rate", "direction": "at_most", "bound": BOUND, "against": "all"}


def spec(name: str, model: str = "glyphs", **changes: Any) -> dict[str, Any]:
    return {
        "kind": "refresh",
        "model": model,
        "name": name,
        "description": "",
        "task": {"kind": "digits", "share": 1.0},
        "gate": {"constraints": [CONSTRAINT]},
        "registry": {"uri": None},
        "home": None,
        **changes,
    }


def report(name: str, ancestors: Sequence[LineageRecord], *, flips: float, model: str = "glyphs") -> Report:
    return Report(
        model=model,
        version=name,
        data={"test": "d" * 64},
        measurements={"error_rate": Measurement(value=0.125, lower=0.1, upper=0.15, count=125, n=1000)},
        comparisons=tuple(
            Comparison(
                against=ancestor.name,
                model_id=ancestor.model_id,
                distance=distance,
                measurements={
                    "negative_flip_rate": Measurement(value=flips, lower=flips / 2, upper=flips * 1.5, n=1000)
                },
            )
            for distance, ancestor in enumerate(ancestors, start=1)
        ),
    )


def verdict(evidence: Report) -> gate.Verdict:
    bound = Constraint(metric="negative_flip_rate", direction=Direction.AT_MOST, bound=BOUND)
    return gate.judge(evidence, [bound])


def bundle(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(content.encode() * 100)
    (folder / "arch.json").write_text('{"schema": 1}\n')
    return folder


def registration(
    store: Store, folder: Path, name: str, chain: Sequence[LineageRecord] = (), *, flips: float = 0.005, **changes: Any
) -> Registration:
    """Return the refresh `glyphs-NAME` as a program would hand it over; its ancestors are `chain`, nearest first."""
    document = spec(name, **changes)
    evidence = report(name, chain, flips=flips, model=document["model"])
    run_id = f"{document['model']}-{name}"
    return Registration(
        spec=document,
        model=document["model"],
        name=name,
        run_id=run_id,
        tracking_run=store.begin(document, run_id),
        bundle=bundle(folder / run_id, run_id),
        digest=sha256_json(run_id),
        parents=tuple(record.model_id for record in chain[:1]),
        report=evidence,
        verdict=verdict(evidence),
    )


def changed(item: Registration, **fields: Any) -> Registration:
    return replace(item, **fields)


def add(
    store: Store, folder: Path, name: str, chain: Sequence[LineageRecord], *, flips: float = 0.005
) -> LineageRecord:
    """Register a version after `chain` and, if it passed, promote it."""
    record = store.register(registration(store, folder, name, chain, flips=flips))
    if record.verdict == "passed":
        expected = chain[0].version if chain else None
        store.promote("glyphs", record.version, expected=expected, reason="test", actor="pytest")
    return record


def three_versions(home: Path, bundles: Path) -> list[LineageRecord]:
    """v3, v2, v1 registered and promoted in a registry under `home`; the last is the champion."""
    store = local_store(home)
    v1 = add(store, bundles, "v1", [])
    v2 = add(store, bundles, "v2", [v1])
    return [add(store, bundles, "v3", [v2, v1]), v2, v1]


def local_store(home: Path) -> Store:
    return Store(f"sqlite:///{home / 'mlflow.db'}", home)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a new and empty registry in a folder until the block ends; yields the server's address."""
    assert local_store(folder).versions("none") == []  # makes the tables, before the server opens the database
    (folder / "served").mkdir()
    with mlflow_server.server(folder / "mlflow.db", folder / "served") as uri:
        yield uri


def copied_store(home: Path, target: Path) -> Store:
    """Return a copy of a registry to change at will: creating a database takes seconds, copying it takes none."""
    shutil.copytree(home, target)
    columns = {
        "experiments": "artifact_location",
        "runs": "artifact_uri",
        "logged_models": "artifact_location",
        "model_versions": "storage_location",
    }
    database = sqlite3.connect(target / "mlflow.db")
    for table, column in columns.items():
        database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (home.as_uri(), target.as_uri()))
    database.commit()
    database.close()
    return local_store(target)
