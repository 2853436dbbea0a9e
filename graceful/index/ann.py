"""The backend `faiss`: approximate search in the files of an index, by a flat, IVF or HNSW structure. Driver.

The structure is built from the segments of a space and stored under a digest beside them; for an index in a bucket, it
is stored in the home folder of this machine. A structure that is missing or damaged is built again. Rows that were
added after it was built are searched exactly, and rows that later segments replaced are masked, so a commit does not
wait for the structure. All results are scored again in double precision.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from graceful.errors import SpecError
from graceful.files import guarded
from graceful.index import exact
from graceful.index.base import NOTHING, Hits
from graceful.index.embedded import Cache, Embedded, EmbeddedView, Resolved
from graceful.index.manifest import Manifest, Part
from graceful.index.places import Place
from graceful.storage import sha256_file, sha256_json, write_bytes, write_json

FOLDER = "derived"
TAIL = 0.5
"""The structure is built again once the rows outside of it exceed this share of the rows in it."""
SPARSE = 0.2
"""A space is searched exactly once fewer than this share of its rows count, because a graph would find too few."""
SPARE = 16
"""Candidates that are scored again in addition to twice the number of results."""
Structure = Literal["flat", "ivf", "hnsw"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The values of `--option` for faiss.

    Attributes:
        index: The structure: `flat` compares all vectors, `ivf` those in some of many lists, `hnsw` follows a graph.
        lists: The number of lists of ivf; 0 takes four times the square root of the number of vectors.
        probes: The number of lists that ivf searches for each query.
        links: The number of neighbours of each vector in the graph of hnsw.
        build: The number of candidates that hnsw considers for each vector when the graph is built.
        beam: The number of candidates that hnsw considers for each query.
        exact_below: Spaces with fewer vectors than this are searched exactly.
    """

    index: Structure = "hnsw"
    lists: int = 0
    probes: int = 16
    links: int = 32
    build: int = 100
    beam: int = 96
    exact_below: int = 4096

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> Self:
        """Parse options as they were written on the command line or in a manifest.

        Raises:
            SpecError: An option is unknown or out of range.
        """
        known = {name: type(value) for name, value in vars(cls()).items()}
        parsed: dict[str, Any] = {}
        for name, value in options.items():
            if name not in known:
                raise SpecError(f"index backend faiss: has no option {name!r}; it has {', '.join(known)}")
            if known[name] is str:
                parsed[name] = value
            elif str(value).isascii() and str(value).isdigit() and len(str(value)) < 10:
                parsed[name] = int(value)
            else:
                raise SpecError(f"index backend faiss: option {name} must be a whole number, got {value!r}")
        structures = get_args(Structure)
        if parsed.get("index", "hnsw") not in structures:
            raise SpecError(f"index backend faiss: option index must be one of {', '.join(structures)}")
        zero = [name for name in ("probes", "links", "build", "beam") if parsed.get(name, 1) < 1]
        if zero or parsed.get("links", 2) < 2:
            raise SpecError(f"index backend faiss: option {(zero or ['links'])[0]} is too small; leave it out")
        return cls(**parsed)


@dataclass(frozen=True, eq=False)
class ApproximateView(EmbeddedView):
    """A snapshot in memory, with a structure for each space that is large enough."""

    backend: FaissBackend | None = None
    structures: dict[str, tuple[Any, int]] = field(default_factory=dict)

    def search(self, queries: NDArray[np.float32], *, space: str, k: int, exact: bool = False) -> Hits:
        """Return most of the k nearest vectors of a space for each query."""
        resolved = self.spaces[space]
        alive = int(resolved.alive.sum())
        assert self.backend is not None
        if exact or alive < max(self.backend.settings.exact_below, 1, SPARSE * len(resolved.alive)):
            return super().search(queries, space=space, k=k)
        if space not in self.structures:
            self.structures[space] = self.backend.structure(self.manifest, space, resolved)
        index, covered = self.structures[space]
        near = self._candidates(index, queries, resolved, covered, k)
        tail = _beside(queries, resolved, covered, k)
        hits = near if tail is None else _best(near, tail, k)
        short = (hits.ids == NOTHING).sum(axis=1) > max(0, k - alive)
        if short.any():  # a graph or a few lists reached fewer than there are
            truth = super().search(queries[short], space=space, k=k)
            ids = hits.ids.astype(np.promote_types(hits.ids.dtype, truth.ids.dtype))
            ids[short], hits.scores[short] = truth.ids, truth.scores
            hits = Hits(ids=ids, scores=hits.scores)
        return hits

    def _candidates(self, index: Any, queries: NDArray[np.float32], resolved: Resolved, covered: int, k: int) -> Hits:
        assert self.backend is not None
        alive = resolved.alive[:covered]
        count = min(2 * k + SPARE, covered)
        parameters = _parameters(self.backend.settings, None if alive.all() else alive, count)
        _, found = index.search(np.ascontiguousarray(queries), count, params=parameters)
        rows, places = np.nonzero(found >= 0)
        ids = np.full((len(queries), k), NOTHING, dtype=resolved.vectors.ids.dtype)
        scores = np.full((len(queries), k), -np.inf)
        exact.fill(
            found_ids=ids,
            found_scores=scores,
            rows=rows,
            columns=found[rows, places],
            queries=queries,
            vectors=resolved.vectors.vectors,
            ids=resolved.vectors.ids,
        )
        return Hits(ids=ids, scores=scores)


def _beside(queries: NDArray[np.float32], resolved: Resolved, covered: int, k: int) -> Hits | None:
    """Search the rows that the structure does not cover exactly; None if it covers all rows."""
    if covered == len(resolved.alive):
        return None
    rest = resolved.vectors
    return exact.search(queries, rest.vectors[covered:], rest.ids[covered:], k, alive=resolved.alive[covered:])


def _best(first: Hits, second: Hits, k: int) -> Hits:
    """Return the k best of two results for the same queries."""
    ids = np.concatenate([first.ids, second.ids], axis=1)
    scores = np.concatenate([first.scores, second.scores], axis=1)
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    return Hits(ids=np.take_along_axis(ids, order, axis=1), scores=np.take_along_axis(scores, order, axis=1))


@dataclass(frozen=True, kw_only=True)
class FaissBackend(Embedded):
    """The files of the index, searched by faiss.

    Attributes:
        settings: The structure and its parameters.
    """

    kind: str = "faiss"
    settings: Options = field(default_factory=Options)

    def options(self) -> dict[str, Any]:
        """Return the options that open this backend again."""
        return vars(self.settings).copy()

    def view(self, manifest: Manifest) -> ApproximateView:
        """Open a snapshot."""
        opened = super().view(manifest)
        return ApproximateView(opened.manifest, opened.contents, opened.last, backend=self)

    def structure(self, manifest: Manifest, space: str, resolved: Resolved) -> tuple[Any, int]:
        """Return a structure, built if necessary, and how many rows from the start of the space it covers."""
        faiss = _faiss()
        parts = [part for part in manifest.parts if part.space == space]
        rows = len(resolved.alive)
        for count in range(len(parts), 0, -1):
            covered = sum(part.rows for part in parts[:count])
            if rows - covered > TAIL * covered:
                break
            kept = self._kept(self._path(parts[:count]))
            if kept is not None:
                return kept, covered
        built = _built(self.settings, resolved.vectors.vectors)
        path = self._path(parts)
        write_bytes(path, faiss.serialize_index(built).tobytes())
        write_json(path.with_suffix(".json"), {"sha256": sha256_file(path), "rows": rows})
        return built, rows

    def _path(self, parts: list[Part]) -> Path:
        faiss = _faiss()
        made = {
            key: value for key, value in vars(self.settings).items() if key not in ("probes", "beam", "exact_below")
        }
        content = {"of": [part.sha256 for part in parts], "options": made, "faiss": faiss.__version__}
        return self.place.scratch / FOLDER / f"{sha256_json(content)}.faiss"

    def _kept(self, path: Path) -> Any | None:
        """Return a structure that was built before; None if there is none or its bytes have another digest."""
        faiss = _faiss()
        record = path.with_suffix(".json")
        if not path.exists() or not record.exists():
            return None
        with guarded(record, "read"):
            try:
                written = json.loads(record.read_text(encoding="utf-8"))["sha256"]
            except (ValueError, KeyError, TypeError):
                return None
        return faiss.read_index(str(path)) if sha256_file(path) == written else None


def _built(settings: Options, vectors: NDArray[np.float32]) -> Any:
    """Build a structure over vectors of unit length."""
    faiss = _faiss()
    dimension, rows = vectors.shape[1], len(vectors)
    if settings.index == "flat":
        index = faiss.IndexFlatIP(dimension)
    elif settings.index == "hnsw":
        index = faiss.IndexHNSWFlat(dimension, settings.links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = settings.build
    else:
        lists = max(1, min(settings.lists or round(4 * math.sqrt(rows)), rows // 39))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.min_points_per_centroid = 1  # rows // 39 is enough where there are more
        index.train(vectors)
    index.add(vectors)
    return index


def _parameters(settings: Options, alive: NDArray[np.bool_] | None, count: int) -> Any:
    """Return the search parameters: the width of the search and a mask of the rows that may be found."""
    faiss = _faiss()
    selector = {} if alive is None else {"sel": faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little"))}
    if settings.index == "hnsw":
        return faiss.SearchParametersHNSW(efSearch=max(settings.beam, count), **selector)
    if settings.index == "ivf":
        return faiss.SearchParametersIVF(nprobe=settings.probes, **selector)
    return faiss.SearchParameters(**selector)


def _faiss() -> Any:
    """Import faiss untyped, because its stubs are incomplete."""
    import faiss

    return faiss


def opened(place: Place, options: Mapping[str, Any]) -> FaissBackend:
    """Return the backend of an index.

    Raises:
        SpecError: faiss is not installed, or an option is wrong.
    """
    try:
        _faiss()
    except ImportError as e:
        raise SpecError("index backend faiss: needs faiss; install graceful-ai[faiss], or use --backend exact") from e
    return FaissBackend(place=place, cache=Cache(), settings=Options.read(options))
