"""Approximate search in the files of an index, by faiss: flat, IVF or HNSW over the segments of a space. Driver.

The structure that faiss searches is derived: it is built from segments, kept under a digest beside them (of an index in
a bucket: in the home of this machine), and built again where it is missing or damaged. Rows that were added since are
searched exactly beside it, and rows that later segments took away are masked, so that commits need not wait for it.
What it finds is scored again in double precision.
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
"""Rows beside the structure, as a share of those in it, up to which it is not built again."""
SPARSE = 0.2
"""Share of the rows that still count below which they are searched exactly: a graph of dead ends finds too few."""
SPARE = 16
"""Candidates beyond twice as many as are wanted, which are scored again."""
Structure = Literal["flat", "ivf", "hnsw"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `--option` may say for faiss.

    Attributes:
        index: flat (all vectors), ivf (some of many lists) or hnsw (a graph).
        lists: Of ivf, into how many lists vectors are sorted; 0: four times the root of their number.
        probes: Of ivf, how many lists a query looks into.
        links: Of hnsw, neighbours of a vector.
        build: Of hnsw, candidates that are looked at for each vector when the graph is built.
        beam: Of hnsw, candidates that are looked at for each query.
        exact_below: Spaces with fewer vectors are searched exactly.
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
        """Return options as somebody wrote them.

        Raises:
            SpecError: One is unknown, or out of range.
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
    """One snapshot in memory, with a structure for each space that is large enough."""

    backend: FaissBackend | None = None
    structures: dict[str, tuple[Any, int]] = field(default_factory=dict)

    def search(self, queries: NDArray[np.float32], *, space: str, k: int, exact: bool = False) -> Hits:
        """Return the k nearest vectors of a space for each query, or most of them."""
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
    """Return the nearest of the rows that the structure does not cover, exactly; None: it covers all."""
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
    """Files of the index and faiss.

    Attributes:
        settings: Which structure.
    """

    kind: str = "faiss"
    settings: Options = field(default_factory=Options)

    def options(self) -> dict[str, Any]:
        """Return what opens this backend again."""
        return vars(self.settings).copy()

    def view(self, manifest: Manifest) -> ApproximateView:
        """Open a snapshot."""
        opened = super().view(manifest)
        return ApproximateView(opened.manifest, opened.contents, opened.last, backend=self)

    def structure(self, manifest: Manifest, space: str, resolved: Resolved) -> tuple[Any, int]:
        """Return a structure over the first rows of a space, and over how many; built where none is near enough."""
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
        """Return a structure that was built before; None where there is none, or its bytes are not those written."""
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
    """Return how a structure is searched: how widely, and which rows may be found."""
    faiss = _faiss()
    selector = {} if alive is None else {"sel": faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little"))}
    if settings.index == "hnsw":
        return faiss.SearchParametersHNSW(efSearch=max(settings.beam, count), **selector)
    if settings.index == "ivf":
        return faiss.SearchParametersIVF(nprobe=settings.probes, **selector)
    return faiss.SearchParameters(**selector)


def _faiss() -> Any:
    """Return the package, whose stubs know less than it has."""
    import faiss

    return faiss


def opened(place: Place, options: Mapping[str, Any]) -> FaissBackend:
    """Return the backend of an index.

    Raises:
        SpecError: faiss is missing, or an option is wrong.
    """
    try:
        _faiss()
    except ImportError as e:
        raise SpecError("index backend faiss: needs faiss; install graceful-ai[faiss], or use --backend exact") from e
    return FaissBackend(place=place, cache=Cache(), settings=Options.read(options))
