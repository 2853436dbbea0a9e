"""How long people and refreshes wait in a registry of a hundred, three hundred, a thousand versions of one model.

Versions stand in lines of fifty, each measured against all before it in its line. Two are registered as always; the
others are copies of the last one's rows and files under identities of their own, which takes seconds, not hours.
`again` is the same question when the records are on disk. `diff` compares the newest version with one of the middle,
with the predictions of two thousand samples each.

    python -m benchmarks.lineage_scale [--backend sqlite|postgresql]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy

from benchmarks import results
from graceful.lineage import LineageRecord, Node, Store, pages, schema
from graceful.lineage.registration import record_tags, version_tags
from graceful.metrics.predictions import Predictions
from graceful.programs.outputs import recorded_predictions
from graceful.programs.versions.diff import difference
from graceful.programs.versions.lineage import NEWEST
from graceful.programs.versions.lineage import versions as lineage
from tests.support import mlflow_server, postgres_server
from tests.support import mlflow_versions as made

SIZES = (100, 300, 1000)
LINE = 50
"""Versions in a chain."""
REPEATS = 3
SAMPLES, CLASSES = 2000, 47
SERVED = "mlflow-artifacts:/"


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A registry to fill.

    Attributes:
        name: As the rows say it.
        uri: For `Store`.
        database: For SQLAlchemy.
        artifacts: Folder of a server's artifacts; None: the database's own locations are files.
    """

    name: str
    uri: str
    database: str
    artifacts: Path | None


@contextmanager
def sqlite(folder: Path) -> Iterator[Backend]:
    """Yield one person: a file, no server."""
    uri = f"sqlite:///{folder / 'home' / 'mlflow.db'}"
    yield Backend(name="sqlite", uri=uri, database=uri, artifacts=None)


@contextmanager
def postgresql(folder: Path) -> Iterator[Backend]:
    """Yield a team: a server on PostgreSQL."""
    (folder / "served").mkdir()
    with postgres_server.server() as database, mlflow_server.server(database, folder / "served") as uri:
        yield Backend(name="postgresql behind a server", uri=uri, database=database, artifacts=folder / "served")


class Copies:
    """Makes versions from the rows and files of one that was registered.

    Args:
        backend: Where.
        template: The registered version.
    """

    def __init__(self, backend: Backend, template: LineageRecord) -> None:
        self.backend, self.template = backend, template
        self.engine = sqlalchemy.create_engine(backend.database)
        self.tables = sqlalchemy.MetaData()
        self.tables.reflect(self.engine)
        keys = {"model_id": template.model_id, "run_uuid": template.run_id, "run_id": template.run_id}
        self.rows: dict[str, list[dict[str, Any]]] = {}
        with self.engine.connect() as connection:
            for name, table in self.tables.tables.items():
                column = next((table.c[key] for key in keys if key in table.c), None)
                if name == "model_versions":
                    column, wanted = table.c.source, f"models:/{template.model_id}"
                elif name == "model_version_tags":
                    column, wanted = table.c.version, template.version
                elif column is not None:
                    wanted = keys[column.name]
                if column is not None and name not in ("latest_metrics", "metrics"):
                    found = connection.execute(table.select().where(column == wanted))
                    self.rows[name] = [dict(row._mapping) for row in found]

    def add(self, record: LineageRecord, places: dict[str, tuple[str, int]]) -> None:
        """One more version, as its record says."""
        document = record.to_json()
        tags = {"logged_model_tags": record_tags(record, places), "model_version_tags": version_tags(record, places)}
        exchanged = {
            self.template.model_id: record.model_id,
            self.template.run_id: record.run_id,
            self.template.refresh_id: record.refresh_id,
        }
        with self.engine.begin() as connection:
            for name in ("runs", "logged_models", *[key for key in self.rows if key not in ("runs", "logged_models")]):
                rows = [self._row(name, row, exchanged, record) for row in self.rows[name]]
                if name in tags:
                    column = "tag_key" if name == "logged_model_tags" else "key"
                    value = "tag_value" if name == "logged_model_tags" else "value"
                    kept = [row for row in rows if row[column] not in tags[name] and "parent_m" not in row[column]]
                    rows = kept + [{**rows[0], column: key, value: text} for key, text in tags[name].items()]
                if rows:
                    connection.execute(self.tables.tables[name].insert(), rows)
        folder = self._folder(record.run_id)
        folder.mkdir(parents=True)
        (folder / "lineage.json").write_text(document)

    def files(self, record: LineageRecord) -> None:
        """Those of a version that is to be promoted or compared."""
        for path in self._folder(self.template.run_id).iterdir():
            if path.is_file() and path.name != "lineage.json":
                shutil.copy(path, self._folder(record.run_id) / path.name)
        nodes = self.tables.tables["logged_models"]
        with self.engine.connect() as connection:
            query = sqlalchemy.select(nodes.c.artifact_location)
            old = connection.execute(query.where(nodes.c.model_id == self.template.model_id)).scalar_one()
            new = connection.execute(query.where(nodes.c.model_id == record.model_id)).scalar_one()
        shutil.copytree(self._path(old), self._path(new), dirs_exist_ok=True)

    def _row(self, name: str, row: dict[str, Any], exchanged: dict[str, str], record: LineageRecord) -> dict[str, Any]:
        row = dict(row)
        for key, value in row.items():
            if isinstance(value, str):
                for old, new in exchanged.items():
                    value = value.replace(old, new)
                row[key] = value
        if name in ("model_versions", "model_version_tags"):
            row["version"] = record.version
        if "input_uuid" in row:
            row["input_uuid"] = uuid.uuid4().hex
        return row

    def _path(self, location: str) -> Path:
        if self.backend.artifacts is None:
            return Path(location.removeprefix("file://"))
        return self.backend.artifacts / location.removeprefix(SERVED)

    def _folder(self, run_id: str) -> Path:
        runs = self.tables.tables["runs"]
        with self.engine.connect() as connection:
            found = connection.execute(sqlalchemy.select(runs.c.artifact_uri).where(runs.c.run_uuid == run_id))
            return self._path(found.scalar_one()) / "lineage"


def fill(copies: Copies, records: list[LineageRecord], size: int) -> None:
    """Add versions until there are `size`; the last is the fiftieth of its line."""
    places = {record.model_id: (record.model, record.version) for record in records}
    while len(records) < size:
        number = len(records) + 1
        line = records[-((number - size - 1) % LINE) :] if (number - size - 1) % LINE else []
        edge = copies.template.edges[0]
        edges = tuple(
            replace(edge, model_id=old.model_id, name=old.name, distance=distance)
            for distance, old in enumerate(reversed(line), start=1)
        )
        record = replace(
            copies.template,
            name=f"v{number}",
            refresh_id=f"glyphs-v{number}",
            model_id=f"m-{uuid.uuid4().hex}",
            run_id=uuid.uuid4().hex,
            parents=tuple(Node(model_id=old.model_id, name=old.name) for old in line[-1:]),
            edges=edges,
            version=number,
        )
        copies.add(record, places)
        places[record.model_id] = (record.model, number)
        records.append(record)
    copies.files(records[-1])
    copies.files(records[size // 2 - 1])


def predictions(path: Path, seed: int) -> Path:
    """Return what a version with an error rate of ten percent says."""
    random = np.random.default_rng(seed)
    labels = np.arange(SAMPLES) % CLASSES
    said = np.where(random.random(SAMPLES) < 0.1, random.integers(CLASSES, size=SAMPLES), labels)
    names = tuple(f"class{number}" for number in range(CLASSES))
    column = np.asarray(names)
    ids = np.asarray([f"sample{number}" for number in range(SAMPLES)])
    recorded_predictions.save(path, Predictions(ids=ids, labels=column[labels], predicted=column[said], classes=names))
    return path


def registered(store: Store, folder: Path) -> list[LineageRecord]:
    """Return two versions as a refresh makes them, the second measured against the first."""
    records = list[LineageRecord]()
    for number in range(1, 3):
        item = made.registration(store, folder, f"v{number}", records[::-1])
        said = predictions(folder / recorded_predictions.FILE, number)
        records.append(store.register(made.changed(item, attachments=(said,))))
        expected = records[-2].version if number > 1 else None
        store.promote("glyphs", records[-1].version, expected=expected, reason="first", actor="benchmark")
    return records


def measure(backend: Backend, size: int, folder: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """Each question to a registry of this size, asked of a store that knows nothing yet, and again."""
    homes = iter(range(10**6))

    def fresh() -> Store:
        store = Store(backend.uri, folder / f"fresh-{size}-{next(homes)}")
        store.versions("nobody")  # mlflow's own import and first connection
        return store

    def timed(operation: str, prepare: Callable[[], Store], ask: Callable[[Store], object]) -> dict[str, Any]:
        taken = []
        for _ in range(repeats):
            store = prepare()
            start = time.perf_counter()
            ask(store)
            taken.append(time.perf_counter() - start)
        seconds = sorted(taken)[repeats // 2]
        return {"backend": backend.name, "versions": size, "operation": operation, "seconds": round(seconds, 3)}

    def move(store: Store) -> None:
        champion = store.registry.aliases("glyphs")["champion"]
        target = size if champion != size else champion - 1
        if target == size:
            store.promote("glyphs", size, expected=champion, reason="benchmark", actor="benchmark")
        else:
            store.rollback("glyphs", reason="benchmark", actor="benchmark")

    known = fresh()
    yield timed("promote or roll back", lambda: known, move)
    if known.registry.aliases("glyphs")["champion"] != size:
        move(known)
    assert len(known.chain("glyphs")) == LINE
    yield timed(f"chain of {LINE}, first time", fresh, lambda store: store.chain("glyphs"))
    yield timed(f"chain of {LINE}, again", lambda: known, lambda store: store.chain("glyphs"))
    yield timed("versions", fresh, lambda store: store.versions("glyphs"))
    yield timed("lineage, first time", fresh, lambda store: lineage(store, "glyphs"))
    yield timed(f"lineage, newest {NEWEST}", fresh, lambda store: lineage(store, "glyphs", last=NEWEST))
    lineage(known, "glyphs")
    yield timed("lineage, again", lambda: known, lambda store: lineage(store, "glyphs"))
    pair = f"glyphs:{size // 2}", f"glyphs:{size}"
    assert len(difference(known, *pair).flips) > 0
    yield timed("diff", fresh, lambda store: difference(store, *pair))
    yield timed("history", fresh, lambda store: store.history("glyphs"))
    yield timed("page of the model", lambda: known, lambda store: pages.refresh(store.registry, "glyphs"))


def run(backend: Backend, folder: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """Fill and measure at each size."""
    store = Store(backend.uri, folder / "home")
    records = registered(store, folder)
    copies = Copies(backend, records[-1])
    for size in SIZES:
        start = time.perf_counter()
        fill(copies, records, size)
        print(f"{backend.name}: {size} versions after {time.perf_counter() - start:.1f} s", flush=True)
        sample = store.records("glyphs", [records[size // 2].model_id, records[-1].model_id])
        assert [record.version for record in sample] == [size // 2 + 1, size], "a copy is not what it should be"
        assert store.registry.client.get_model_version("glyphs", str(size)).tags[schema.TAG_GATE] == "passed"
        yield from measure(backend, size, folder, repeats)


def main() -> None:
    """Measure, print, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=["sqlite", "postgresql"])
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of each question; the median counts")
    options = parser.parse_args()
    chosen, repeats = options.backend, options.repeats
    start, rows = time.monotonic(), list[dict[str, Any]]()
    kept = results.FOLDER / "lineage_scale.json"
    if chosen is not None and kept.exists():
        rows = [row for row in json.loads(kept.read_text())["rows"] if not row["backend"].startswith(chosen)]
    for name, backend in (("sqlite", sqlite), ("postgresql", postgresql)):
        if chosen not in (None, name):
            continue
        with tempfile.TemporaryDirectory(prefix="graceful-scale-") as scratch, backend(Path(scratch)) as place:
            for row in run(place, Path(scratch), repeats):
                print(row, flush=True)
                rows.append(row)
    results.write("lineage_scale", rows, time.monotonic() - start)


if __name__ == "__main__":
    main()
