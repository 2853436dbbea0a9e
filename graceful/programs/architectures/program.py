"""Search the network of a query model: supernet, evaluations under a budget, winners as specs. Runs in the driver."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from graceful import documents, tasks
from graceful.architectures.measuring import Measured
from graceful.architectures.searchers import Searcher
from graceful.architectures.space import Genes, Space, digest_of, network_of, path_of
from graceful.architectures.space import Path as NetworkPath
from graceful.chain.ancestor import Ancestor
from graceful.errors import TrainingError
from graceful.programs import exclusive, home_of
from graceful.programs.architectures import training
from graceful.programs.architectures.actors import Pool, searched
from graceful.programs.architectures.bench import Bench
from graceful.programs.architectures.budgets import Prices
from graceful.programs.architectures.journal import Journal
from graceful.programs.fitting.readiness import require_ready
from graceful.programs.runs import ancestry
from graceful.programs.runs.run import Progress, Run, silent
from graceful.programs.tuning.result import LEFT_OUT
from graceful.spec import RefreshSpec
from graceful.spec.architectures import require_searchable, space_of
from graceful.spec.methods import Pruned
from graceful.spec.stages import StagedNetwork
from graceful.storage import write_json, write_text
from graceful.training.job import NOT_MIRRORED

RESULT, SPEC = "architectures.json", "spec.yaml"
IDENTITY = "search.json"
MOST = 16
"""Networks of the front that are written as specs."""


def run_of(spec: RefreshSpec) -> Run:
    """Return the search of a spec as a run; another space, recipe or gallery has another folder.

    Raises:
        SpecError: It cannot be searched.
    """
    require_searchable(spec)
    folder = home_of(spec) / "architectures" / f"{spec.run_id}-{training.digest(spec)[:8]}"
    return Run.of(spec, folder=folder)


@contextmanager
def opened(run: Run) -> Iterator[Sequence[Ancestor]]:
    """Hold a search, and yield the ancestors of its spec; those of a search that has begun stay the same.

    Raises:
        SpecError: Another process holds it, or there is no such gallery model.
    """
    with exclusive(run.folder):
        run.mirror.restore(run.folder, exclude=NOT_MIRRORED)
        links = ancestry.read(run.store, run.spec, run.folder, begun=(run.folder / IDENTITY).exists())
        yield ancestry.fetch(run, links)


def search(run: Run, *, progress: Progress = silent) -> dict[str, Any]:
    """Train the supernet, search, write the winners. Each evaluation is kept: the same call continues.

    Args:
        run: See `run_of`.
        progress: Called with rows of progress.

    Returns:
        The result as JSON values: `best`, `front`, `written` (the spec's own network), counts and files.

    Raises:
        SpecError: There is no such gallery model, or no network of the space is within the budget.
        DataError: Too few samples.
        TrainingError: The supernet did not train, or every network failed.
    """
    with opened(run) as ancestors:
        return conclude(run, ancestors=ancestors, progress=progress)


def conclude(run: Run, *, ancestors: Sequence[Ancestor], progress: Progress = silent) -> dict[str, Any]:
    """Do what `search` does, with ancestors that are known; the gallery model is one of them."""
    bench = Bench.of(run, ancestors)
    prices = Prices(bench.space, bench.network, bench.input_shape, bench.section.budget, folder=run.folder)
    start = _start(bench, prices)  # a budget that nothing meets is refused before anything is trained
    progress({"stage": "space", "networks": bench.space.section.size, "gallery": bench.gallery.name})
    if not (run.folder / IDENTITY).exists():
        require_ready(training.spec_of(run.spec), bench.task, run_dir=run.folder)
        write_json(run.folder / IDENTITY, {"digest": training.digest(run.spec)})
    recipe = bench.recipe(progress)
    journal = bench.journal(recipe)
    with bench.pool(recipe) as pool:
        scores = _searched(bench, prices, journal, pool, start=start, progress=progress)
        written = _written(bench, prices, journal, pool)
    document = _result(bench, prices, journal, scores) | {"written": written}
    for path, text in _specs(run.spec, bench.network, document).items():
        write_text(run.folder / path, text)
    write_json(run.folder / RESULT, document)
    run.mirror.save(run.folder, exclude=NOT_MIRRORED)
    return document


def score(run: Run, networks: Sequence[StagedNetwork], *, ancestors: Sequence[Ancestor]) -> list[Measured]:
    """Return how well networks of the space find with the weights of the supernet, which is trained if need be.

    Args:
        run: See `run_of`.
        networks: The networks of the space.
        ancestors: As of `conclude`.

    Raises:
        ValueError: A network is not of the space.
    """
    bench = Bench.of(run, ancestors)
    prices = Prices(bench.space, bench.network, bench.input_shape, bench.section.budget, folder=run.folder)
    wanted = [bench.space.genes(path_of(network)) for network in networks]
    if None in wanted:
        raise ValueError(f"networks: number {wanted.index(None)} is not of the space")
    generation = [genes for genes in wanted if genes is not None]
    recipe = bench.recipe(silent)
    with bench.pool(recipe) as pool:
        found = measure(generation, bench.space, prices, bench.journal(recipe), pool)
    return [found[genes] for genes in generation]


def _start(bench: Bench, prices: Prices) -> Genes:
    """Return the spec's own network if it is of the space and within the budget, so that a search does not end below
    it; else a path that is."""
    written = bench.space.genes(path_of(bench.network))
    return written if written is not None and prices.fits(written) else prices.start()


def _searched(
    bench: Bench, prices: Prices, journal: Journal[Measured], pool: Pool, *, start: Genes, progress: Progress
) -> dict[Genes, Measured]:
    """Measure generations of paths until there are enough; what the journal knows is not measured again."""
    section, space = bench.section, bench.space
    seed = bench.run.spec.train.seed if section.seed is None else section.seed
    searcher = Searcher(space, section, method=section.method, fits=prices.fits, start=start, seed=seed)
    found: dict[Genes, Measured] = {}
    while len(found) < section.evaluations:
        generation = searcher.ask(section.evaluations - len(found))
        if not generation:
            break
        measured = measure(generation, space, prices, journal, pool)
        found |= measured
        searcher.tell({genes: record.reward(section.reward) for genes, record in measured.items()})
        bench.run.mirror.save(bench.run.folder, only=[journal.path.name])
        rewards = [reward for record in found.values() if (reward := record.reward(section.reward)) is not None]
        best = {"best": max(rewards)} if rewards else {}
        failed = sum(bool(record.failed) for record in found.values())
        counts = {"step": len(found), "steps": section.evaluations, "failed": failed}
        progress({"stage": "search", **counts, **best})
    return found


def measure(
    generation: Sequence[Genes], space: Space, prices: Prices, journal: Journal[Measured], pool: Pool
) -> dict[Genes, Measured]:
    """Return how paths were measured, from the journal or by the pool, in the order of the generation."""
    paths = [space.path(genes) for genes in generation]
    known = [journal.find(path) for path in paths]
    todo = [position for position, record in enumerate(known) if record is None]
    for index, record in pool.measure([paths[position] for position in todo]):
        position = todo[index]
        journal.add(paths[position], record, costs=prices.costs(generation[position]).document())
        known[position] = record
    return {genes: record for genes, record in zip(generation, known, strict=True) if record is not None}


def _written(bench: Bench, prices: Prices, journal: Journal[Measured], pool: Pool) -> dict[str, Any] | None:
    """Measure the spec's own network, which a search should beat; None where the space does not have it."""
    genes = bench.space.genes(path_of(bench.network))
    if genes is None:
        return None
    record = measure([genes], bench.space, prices, journal, pool)[genes]
    return _row(bench, prices, genes, record) | {"within_budget": prices.fits(genes)}


def _row(bench: Bench, prices: Prices, genes: Genes, record: Measured) -> dict[str, Any]:
    latency = prices.latency(genes)
    return {
        "path": bench.space.path(genes),
        **prices.costs(genes).document(),
        "p50_ms": latency.p50_ms,
        "p95_ms": latency.p95_ms,
        "reward": record.reward(bench.section.reward),
        **record.scores,
        **({"failed": record.failed} if record.failed else {}),
    }


def front_of(costs: dict[Genes, float], rewards: dict[Genes, float]) -> list[Genes]:
    """Return the paths beside which none is both no dearer and better, or cheaper and no worse; cheapest first."""
    front: list[Genes] = []
    for genes in sorted(rewards, key=lambda genes: (costs[genes], -rewards[genes], genes)):
        if not front or rewards[genes] > rewards[front[-1]]:
            front.append(genes)
    return front


def _result(bench: Bench, prices: Prices, journal: Journal[Measured], found: dict[Genes, Measured]) -> dict[str, Any]:
    section = bench.section
    rewards = {genes: value for genes, record in found.items() if (value := record.reward(section.reward)) is not None}
    failed = [{"path": bench.space.path(genes), "failed": item.failed} for genes, item in found.items() if item.failed]
    if not rewards:
        reason = failed[0]["failed"] if failed else "none was measured"
        raise TrainingError(
            f"architectures: all {len(failed)} networks failed, the first with {reason}; see {journal.path}"
        )
    axis = prices.axis
    front = front_of({genes: prices.cost(genes, axis) for genes in rewards}, rewards)
    rows = [_row(bench, prices, genes, found[genes]) for genes in front[-MOST:]]
    return {
        "run_id": bench.run.spec.run_id,
        "gallery": bench.gallery.name,
        "method": section.method,
        "reward": section.reward,
        "budget": section.budget.model_dump(mode="json", exclude_none=True),
        "networks": bench.space.section.size,
        "evaluations": len(found),
        "failed": failed,
        "best": rows[-1],
        "front_over": axis,
        "front": rows,
        "journal": bench.run.mirror.display_path(journal.path),
        "folder": bench.run.mirror.display_path(bench.run.folder),
    }


def _specs(spec: RefreshSpec, like: StagedNetwork, document: dict[str, Any]) -> dict[str, str]:
    """Return the winner and the rest of the front as files for `graceful refresh`, which trains them from scratch."""
    best, *others = reversed(document["front"])
    texts = {SPEC: spec_text(spec, like, best["path"], name=spec.name)}
    for row in others:
        digest = digest_of(row["path"])[:6]
        texts[f"spec-{digest}.yaml"] = spec_text(spec, like, row["path"], name=f"{spec.name[:50]}-{digest}")
    return texts


def spec_text(
    spec: RefreshSpec, like: StagedNetwork, path: NetworkPath, *, name: str, method: Pruned | None = None
) -> str:
    """Return a spec with the network of a path, as a file; with the weights of `method`, if there are any."""
    section = spec.task.model_copy(update={"network": network_of(path, like)})
    chosen = spec.model_copy(update={"task": section, "name": name, "architectures": None})
    if method is not None:
        chosen = chosen.model_copy(update={"train": spec.train.model_copy(update={"method": method})})
    document = {key: value for key, value in chosen.recorded().items() if key not in LEFT_OUT}
    about = f"network found by `graceful search-architecture`: {json.dumps(path)}"
    return f"# {about}\n" + documents.dump(document)


def dry_run(spec: RefreshSpec) -> dict[str, Any]:
    """Return what would be searched; trains nothing and asks no registry.

    Raises:
        SpecError: It cannot be searched, or no network of the space is within the budget.
    """
    section, task = require_searchable(spec), tasks.build(spec.task)
    network, shape = getattr(spec.task, "network", None), task.network(task.classes).input_shape
    assert isinstance(network, StagedNetwork)
    _, sides = searched(spec, task)
    space = Space(space_of(section))
    prices = Prices(space, network, shape, section.budget, folder=None)  # type: ignore[arg-type]
    start = prices.start()
    return {
        "networks": space.section.size,
        "within budget": f"{prices.share():.0%} of them, by MACs, parameters and bytes",
        "cheapest": {**space.path(start), **prices.costs(start).document()},
        "gallery": spec.gallery.version if spec.gallery else None,
        "epochs of the supernet": training.spec_of(spec).train.epochs,
        "evaluations": section.evaluations,
        "queries": len(sides.query),
        "gallery samples": len(sides.gallery),
        "folder": str(run_of(spec).folder),
    }
