"""`graceful index`: build, add, delete, embed, query, accept, verify, status, roll back. Driver."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.errors import EXIT_INFRASTRUCTURE, SpecError
from graceful.index import Hits, Index, View, files
from graceful.index.base import NOTHING
from graceful.index.manifest import Manifest
from graceful.programs.indexing import source as sources
from graceful.programs.indexing.source import Source

SHOWN = 20
"""Queries, or commits, that a table shows."""


@dataclass(frozen=True, kw_only=True)
class Action:
    """One thing to do with an index, as the command line says it.

    Attributes:
        action: build, add, delete, embed, query, accept, verify, status or rollback.
        index: Its folder or s3://bucket/prefix; of embed, the file that is written.
        source: Vectors to store or to search with.
        sources: Of query: files of the same queries by other models.
        backend: Of build.
        options: The options of the backend.
        replace: Of add.
        mixed: Of add.
        ids: Of delete.
        gallery: Of accept: name of the space of the vectors.
        k: Of query.
        to: Of rollback.
        reason: Why.
        author: Who.
    """

    action: str
    index: str
    source: Source = field(default_factory=Source)
    sources: tuple[Source, ...] = ()
    backend: str = "exact"
    options: Mapping[str, Any] = field(default_factory=dict)
    replace: bool = False
    mixed: bool = False
    ids: tuple[str, ...] = ()
    gallery: str = ""
    k: int = 10
    to: int = 0
    reason: str = ""
    author: str = ""

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Action:
        """Return what the command line sent."""
        parts = dict(document)
        parts["source"] = Source(**parts.get("source", {}))
        parts["sources"] = tuple(Source(**item) for item in parts.get("sources", ()))
        parts["ids"] = tuple(parts.get("ids", ()))
        return cls(**parts)

    @property
    def why(self) -> dict[str, str]:
        """Return reason and author."""
        return {"reason": self.reason, "author": self.author}


@dataclass(frozen=True, kw_only=True)
class Done:
    """What came of it: JSON values, and the lines that a table shows."""

    document: Any
    lines: dict[str, Any]
    code: int = 0


def act(action: Action, home: Path) -> Done:
    """Do one thing with an index.

    Raises:
        SpecError, DataError: What was asked is not possible, in one line.
        IntegrityError, StorageError: The index cannot be read or written.
    """
    return _ACTIONS[action.action](action, home)


def _build(action: Action, home: Path) -> Done:
    vectors, space = sources.read(action.source, home)
    built = Index.create(action.index, vectors, space, backend=action.backend, options=action.options, **action.why)
    return _committed(built, built.head())


def _add(action: Action, home: Path) -> Done:
    index = Index.open(action.index)
    vectors, space = sources.read(action.source, home)
    return _committed(index, index.add(vectors, space, replacing=action.replace, mixed=action.mixed, **action.why))


def _delete(action: Action, home: Path) -> Done:
    index = Index.open(action.index)
    return _committed(index, index.delete(np.asarray(action.ids, dtype=np.str_), **action.why))


def _embed(action: Action, home: Path) -> Done:
    role = "query" if action.source.split == "query" else "gallery"
    vectors, space = sources.read(action.source, home, role=role)  # type: ignore[arg-type]
    checked = vectors.checked(dimension=space.dimension, where=f"space {space.name}")
    files.write(Path(action.index), checked, space)
    document = {"file": action.index, "space": space.document(), "vectors": len(checked)}
    return Done(document=document, lines={"file": f"{action.index}, {len(checked)} vectors of {space.name}"})


def _accept(action: Action, home: Path) -> Done:
    index = Index.open(action.index)
    _, space = _declared(action, home)
    return _committed(index, index.accept(space, action.gallery, **action.why))


def _declared(action: Action, home: Path) -> tuple[Any, Any]:
    if action.source.version is None:
        return sources.read(action.source, home, role="query")
    return None, sources.embedder(action.source, home).space


def _rollback(action: Action, home: Path) -> Done:
    index = Index.open(action.index)
    return _committed(index, index.rollback(action.to, **action.why))


def _query(action: Action, home: Path) -> Done:
    index = Index.open(action.index)
    head = index.head()
    given: dict[str, NDArray[np.float32]] = {}
    ids: NDArray[np.str_] = np.zeros(0, dtype="U1")
    for source in (*([action.source] if action.source != Source() else []), *action.sources):
        vectors, space = sources.read(source, home, role="query")
        name = head.named(space.fingerprint)
        if name is None:
            known = ", ".join(f"{item.name} ({item.fingerprint[:12]})" for item in head.spaces.values())
            raise SpecError(
                f"{index.place}: queries of {space.name} (fingerprint {space.fingerprint[:12]}), the index has vectors"
                f" of {known}; embed the queries with one of these, or declare them comparable with `graceful index"
                " accept`"
            )
        if given and ids.tolist() != vectors.ids.tolist():
            raise SpecError(
                f"queries of {space.name}: have other ids than the first; give the same queries in one order"
            )
        given[name], ids = vectors.vectors, vectors.ids
    if not given:
        raise SpecError("query: give --vectors FILE or --version with --spec")
    view = index.view(head)
    start = time.perf_counter()
    hits = index.search(given, k=action.k, manifest=head)
    seconds = time.perf_counter() - start
    found = _found(view, head, ids.tolist(), hits)
    document = {"index": action.index, "snapshot": head.number, "k": action.k, "seconds": seconds, "queries": found}
    lines = {
        item["query"]: ", ".join(f"{hit['id']} {hit['score']:.4f}" for hit in item["hits"]) for item in found[:SHOWN]
    }
    if len(found) > SHOWN:
        lines["..."] = f"{len(found)} queries in all; -o json has them"
    return Done(document=document, lines=lines)


def _found(view: View, head: Manifest, queries: list[str], hits: Hits) -> list[dict[str, Any]]:
    """Return the hits of each query with space and payload, as JSON values."""
    wanted = np.unique(hits.ids[hits.ids != NOTHING])
    about: dict[str, dict[str, Any]] = {}
    for space, count in head.counts.items():
        vectors = view.read(space, wanted) if count else None
        if vectors is not None:
            columns = {name: column.tolist() for name, column in vectors.payload.items()}
            for row, name in enumerate(vectors.ids.tolist()):
                about[name] = {"space": space, "payload": {key: column[row] for key, column in columns.items()}}
    return [
        {
            "query": query,
            "hits": [
                {"id": name, "score": score, **about[name]}
                for name, score in zip(names, scores, strict=True)
                if name != NOTHING
            ],
        }
        for query, names, scores in zip(queries, hits.ids.tolist(), hits.scores.tolist(), strict=True)
    ]


def _verify(action: Action, home: Path) -> Done:
    index = Index.open(action.index)
    numbers = index.log.numbers()
    problems = []
    for number in numbers[-1:] if action.to == 0 else numbers:
        manifest = index.log.read(number)
        problems += [f"snapshot {number}: {problem}" for problem in index.backend.verify(manifest)]
    head = index.head()
    document: dict[str, Any] = {"index": action.index, "snapshot": head.number, "vectors": head.count}
    document |= {"problems": problems, "recall": {} if problems else recall(index.view(head), head)}
    lines = {f"problem {number}": text for number, text in enumerate(problems, start=1)} or {
        action.index: f"snapshot {head.number}, {head.count} ids, each has one vector of the recorded digest"
    }
    lines |= {
        f"recall of the search in {space}": f"{value:.4f} of the ten nearest are found"
        for space, value in document["recall"].items()
    }
    return Done(document=document, lines=lines, code=EXIT_INFRASTRUCTURE if problems else 0)


def recall(view: View, head: Manifest, *, k: int = 10, queries: int = 200) -> dict[str, float]:
    """Return by space which share of the k nearest the search finds, for some of the stored vectors as queries.

    This is the recall of approximate search against exact search in the same vectors, 1 for exact backends. What the
    vectors are worth is another question, which the metrics of a report answer.
    """
    found = {}
    for space, count in head.counts.items():
        if not count:
            continue
        ids = view.ids(space)
        sample = ids[np.unique(np.linspace(0, len(ids) - 1, queries).astype(np.int64))]
        vectors = view.read(space, sample).vectors
        near, truth = (view.search(vectors, space=space, k=min(k, count), exact=way) for way in (False, True))
        kept = [len(set(one) & set(other)) for one, other in zip(near.ids.tolist(), truth.ids.tolist(), strict=True)]
        found[space] = float(np.mean(kept)) / min(k, count)
    return found


def _status(action: Action, home: Path) -> Done:
    index = Index.open(action.index)
    head = index.head()
    history = [_event(index.log.read(number)) for number in index.log.numbers()[-SHOWN:]]
    document = {**_summary(index, head), "history": history}
    lines = {key: _line(value) for key, value in document.items() if value and key not in ("history", "spaces")}
    lines |= {
        f"space {item['name']}": f"{head.counts.get(item['name'], 0)} ids, {item['dimension']} numbers, fingerprint"
        f" {item['fingerprint'][:12]}"
        for item in document["spaces"]
    }
    lines |= {
        f"snapshot {item['number']}": f"{item['time']} {item['action']}, {item['vectors']} ids, for {item['serving']}"
        + (f": {item['reason']}" if item["reason"] else "")
        for item in history
    }
    return Done(document=document, lines=lines)


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(" on ".join(pair) for pair in value) if isinstance(value, list) else str(value)


def _summary(index: Index, head: Manifest) -> dict[str, Any]:
    return {
        "index": str(index.place),
        "snapshot": head.number,
        "backend": head.backend,
        "vectors": head.count,
        "bytes": sum(part.bytes for part in head.parts),
        "serving": head.serving,
        "writes": head.writes,
        "counts": dict(head.counts),
        "payload": dict(head.payload),
        "accepts": [list(pair) for pair in head.accepts],
        "spaces": [space.document() for space in head.spaces.values()],
        "backfill": head.backfill,
    }


def _event(manifest: Manifest) -> dict[str, Any]:
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(manifest.time))
    return {
        "number": manifest.number,
        "time": moment,
        "action": manifest.action,
        "reason": manifest.reason,
        "author": manifest.author,
        "vectors": manifest.count,
        "serving": manifest.serving,
        "content": manifest.content,
    }


def _committed(index: Index, manifest: Manifest) -> Done:
    document = _summary(index, manifest)
    spaces = ", ".join(f"{count} of {name}" for name, count in manifest.counts.items())
    return Done(
        document=document, lines={str(index.place): f"snapshot {manifest.number}, {manifest.count} ids: {spaces}"}
    )


_ACTIONS: Mapping[str, Callable[[Action, Path], Done]] = {
    "build": _build,
    "add": _add,
    "delete": _delete,
    "embed": _embed,
    "query": _query,
    "accept": _accept,
    "verify": _verify,
    "status": _status,
    "rollback": _rollback,
}
