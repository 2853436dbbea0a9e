"""The search of architectures: costs, shared weights, searchers, budgets, journals, and a whole search on glyphs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from graceful import spec, tasks
from graceful.architectures import channels, costs
from graceful.architectures.measuring import Measured
from graceful.architectures.nested import NestedNet
from graceful.architectures.searchers import Searcher
from graceful.architectures.space import Genes, Space, network_of
from graceful.architectures.supernet import Supernet, recalibrate
from graceful.chain.ancestor import Ancestor, Link
from graceful.errors import GracefulError, IntegrityError, SpecError, TrainingError
from graceful.models import cost
from graceful.models.staged import StagedNet
from graceful.programs.architectures import program, pruning
from graceful.programs.architectures.actors import Here, Recipe
from graceful.programs.architectures.budgets import Prices
from graceful.programs.architectures.journal import measurements
from graceful.programs.fitting.train import train
from graceful.programs.runs.run import Run
from graceful.spec.architectures import Architectures, ArchitectureSpace, Budget
from graceful.spec.stages import Stage, StagedNetwork
from graceful.training.nested_loop import projected

SPACE: dict[str, Any] = {
    "resolution": [None, 20],
    "stages": [{"width": [4, 8], "kernel": [3, 5]}, {"width": [6, 12], "kernel": [3, 5], "depth": [1, 2]}],
}
SHAPE = (1, 28, 28)
LIKE = StagedNetwork.model_validate({"stages": [{"width": 4}, {"width": 6}], "embedding": 8, "head": "cosine"})
NETWORK = LIKE.model_dump(mode="json")


def space(**keys: Any) -> Space:
    return Space(ArchitectureSpace.model_validate({**SPACE, **keys}))


def some(count: int, *, of: Space, seed: int = 0) -> list[Genes]:
    generator = Random(seed)
    return [of.random(generator) for _ in range(count)]


# --- space and costs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_norm", [True, False])
def test_costs_are_those_of_the_built_network(batch_norm: bool) -> None:
    searched, like = space(), LIKE.model_copy(update={"batch_norm": batch_norm})
    assert len(set(some(4000, of=searched))) == searched.section.size == 256
    for genes in some(3, of=searched):
        assert searched.genes(searched.path(genes)) == genes
        network = network_of(searched.path(genes), like)
        built = StagedNet(network, input_shape=SHAPE, classes=3).eval()
        found = costs.of(network, SHAPE)
        assert found.macs == cost.macs(built.embed, torch.zeros(1, *SHAPE))
        assert found.parameters == cost.parameters(built)
        weights = sum(value.numel() for name, value in built.named_parameters() if value.ndim > 1)
        assert found.int8_bytes > weights - 3 * 8  # the classifier's are left out
    assert searched.genes({"resolution": 21, "stages": NETWORK["stages"]}) is None


# --- the supernet -----------------------------------------------------------------------------------------------------


def supernet(searched: Space) -> Supernet:
    torch.manual_seed(0)
    return Supernet(searched, LIKE, input_shape=SHAPE, classes=3)


def test_a_path_of_the_supernet_is_the_network_with_its_weights() -> None:
    searched, images = space(), torch.rand(5, *SHAPE)
    shared = supernet(searched)
    for genes in some(8, of=searched):
        shared._drawn = lambda genes=genes: genes  # type: ignore[method-assign]
        alone = shared.network(searched.path(genes)).train()
        torch.testing.assert_close(shared.train().embed(images), alone.embed(images))
        torch.testing.assert_close(shared.classify(alone.embed(images)), alone(images))
    small = (1, 0, 0, 0, 1, 0, 0, 0, 1)
    shared._drawn = lambda: small  # type: ignore[method-assign]
    shared.embed(images).sum().backward()
    gradient = shared.get_parameter("blocks.1-0-depthwise.layers.3.weight").grad
    assert gradient is not None
    assert bool(gradient[:6, :4].any())
    assert not bool(gradient[6:].any() | gradient[:, 4:].any())
    assert shared.get_parameter("blocks.1-0-full.layers.0.weight").grad is None
    assert shared.eval().embed(images[:1]).shape == (1, 8)


def test_recalibration_measures_the_statistics_of_the_path() -> None:
    searched, images = space(), torch.rand(64, *SHAPE)
    network = supernet(searched).network(searched.path(some(1, of=searched)[0]))
    with torch.no_grad():
        before = network.embed(images)
        recalibrate(network, [images])
        after, expected = network.embed(images), network.train().embed(images)
    assert float((after - expected).abs().max()) < 0.05 * float((before - expected).abs().max())


# --- pruning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_norm", [True, False])
def test_channels_are_ordered_without_changing_the_network_and_narrow_ones_lie_within(batch_norm: bool) -> None:
    stages = [{"width": 6}, {"width": 8, "depthwise": True, "depth": 2}, {"width": 10, "depth": 2}]
    section = LIKE.model_copy(update={"batch_norm": batch_norm, "stages": tuple(map(Stage.model_validate, stages))})
    torch.manual_seed(0)
    whole = StagedNet(section, input_shape=SHAPE, classes=3)
    images, targets = torch.rand(16, *SHAPE), torch.randn(16, 8)
    whole.train()(images)  # statistics of its own
    with torch.no_grad():
        for layer in (block.layers[0] for block in whole.features):  # type: ignore[union-attr, index]
            layer.weight[1] = 0.0  # type: ignore[union-attr, index, operator]
        before = whole.eval().embed(images)
    values = channels.importance(whole, section, [(images[:8], targets[:8]), (images[8:], targets[8:])])
    assert [len(value) for value in values] == [6, 8, 10]
    assert float(values[0][1]) <= float(values[0].median())
    orders = channels.by_importance(values)
    channels.reorder(whole, section, orders)
    with torch.no_grad():
        torch.testing.assert_close(whole.embed(images), before)

    falling = [value[order].tolist() for value, order in zip(values, orders, strict=True)]
    macs = costs.of(section, SHAPE).macs
    capacities = (1.0, 0.5, 0.3)
    widths = channels.nested_widths(section, falling, capacities, input_shape=SHAPE)
    assert widths[0] == (6, 8, 10)
    assert all(
        left >= right for one, other in itertools.pairwise(widths) for left, right in zip(one, other, strict=True)
    )
    narrow = [channels.narrowed(section, each) for each in widths]
    assert all(costs.of(each, SHAPE).macs <= share * macs for each, share in zip(narrow, capacities, strict=True))
    with pytest.raises(ValueError, match=r"\[2, 2, 2\] channels cost .*, the limit is"):
        channels.nested_widths(section, falling, [0.001], input_shape=SHAPE)

    nested = NestedNet(whole, narrow)
    for number, each in enumerate(narrow):
        nested.capacity = number
        alone = nested.network(number).train()
        torch.testing.assert_close(nested.embed(images), alone.embed(images))
        torch.testing.assert_close(nested.classify(alone.embed(images)), alone(images))
        assert cost_of(alone) == costs.of(each, SHAPE).macs
    nested.embed(images[:1]).sum().backward()
    gradient = nested.whole.features[0].layers[0].weight.grad  # type: ignore[union-attr, index]
    assert gradient is not None
    assert not bool(gradient[widths[-1][0] :].any())


def cost_of(network: StagedNet) -> int:
    return cost.macs(network.eval().embed, torch.zeros(1, *SHAPE))


def test_gradients_keep_what_is_not_against_another() -> None:
    one, other = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([-1.0, 0.0, 0.0])
    first, second = projected([one, other])
    torch.testing.assert_close(first, torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(second, torch.tensor([-0.5, 0.5, 0.0]))
    agreeing = [one, one + other.abs()]
    assert all(torch.equal(left, right) for left, right in zip(projected(agreeing), agreeing, strict=True))
    torch.manual_seed(0)
    many = [torch.randn(5) for _ in range(2)]
    assert all(
        float(torch.dot(kept, against)) >= -1e-5 for kept, against in zip(projected(many), many[::-1], strict=True)
    )


# --- searchers and budgets --------------------------------------------------------------------------------------------


def section(**keys: Any) -> Architectures:
    return Architectures.model_validate({"space": SPACE, "population": 6, "parents": 3, **keys})


def run_search(method: Any, seed: int, *, count: int, budget: Budget) -> list[tuple[Genes, float]]:
    searched = space()
    prices = Prices(searched, LIKE, SHAPE, budget, folder=None)
    searcher = Searcher(searched, section(), method=method, fits=prices.fits, start=prices.start(), seed=seed)
    found: dict[Genes, float] = {}
    while len(found) < count and (generation := searcher.ask(count - len(found))):
        scores = {genes: -float(sum((gene - 1) ** 2 for gene in genes)) for genes in generation}
        assert all(prices.fits(genes) for genes in generation)
        found |= scores
        searcher.tell({genes: None if genes[0] and genes[1] else score for genes, score in scores.items()})
    return list(found.items())


def test_searches_are_repeatable_stay_within_the_budget_and_end_with_the_space() -> None:
    budget = Budget(macs=20_000)
    evolved = run_search("evolution", 3, count=20, budget=budget)
    assert evolved == run_search("evolution", 3, count=20, budget=budget)
    assert evolved != run_search("evolution", 4, count=20, budget=budget)
    everything = run_search("random", 0, count=1000, budget=budget)
    searched = space()
    prices = Prices(searched, LIKE, SHAPE, budget, folder=None)
    within = {genes for genes in some(4000, of=searched) if prices.fits(genes)}
    assert {genes for genes, _ in everything} == within
    best = [
        np.mean([max(score for _, score in run_search(method, seed, count=30, budget=Budget())) for seed in range(6)])
        for method in ("evolution", "random")
    ]
    assert best[0] > best[1]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            {"macs": 1000},
            r"keeps 1,000 multiply-accumulates; the nearest costs 6,300: .*\"resolution\": 20.*raise macs",
        ),
        ({"macs": 90_000, "int8_bytes": 100}, r"keeps 100 bytes in 8 bits; the nearest .*raise int8_bytes"),
        ({"latency_ms": 1e-6}, r"ms \(median of one image on one core\); the nearest costs 0\.\d+: .*raise latency_ms"),
    ],
)
def test_a_budget_that_nothing_meets_is_refused_with_the_nearest(budget: dict[str, Any], message: str) -> None:
    few = space(resolution=[20], stages=[{"width": [4, 8], "depthwise": [True]}, {"width": [6]}])
    with pytest.raises(SpecError, match=message) as caught:
        Prices(few, LIKE, SHAPE, Budget.model_validate(budget), folder=None).start()
    assert caught.value.exit_code == 2


def test_the_front_has_what_is_neither_cheaper_nor_better_elsewhere() -> None:
    costs_of = {(0,): 10.0, (1,): 20.0, (2,): 30.0, (3,): 20.0}
    assert program.front_of(costs_of, {(0,): 0.5, (1,): 0.4, (2,): 0.6, (3,): 0.55}) == [(0,), (3,), (2,)]


def test_a_journal_outlives_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path, searched = tmp_path / "evaluations.jsonl", space()
    paths = [searched.path(genes) for genes in some(2, of=searched)]
    measurements(path).add(paths[0], Measured(scores={"small_alone_map": 0.5}, seconds=1.0), costs={"macs": 1})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"digest": "12", "rec')
    again = measurements(path)
    assert again.find(paths[0]) == Measured(scores={"small_alone_map": 0.5}, seconds=1.0)
    again.add(paths[1], Measured(failed="out of memory"))
    assert len(measurements(path).known) == 2
    assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


# --- the spec ---------------------------------------------------------------------------------------------------------

QUERY: dict[str, Any] = {
    "model": "glyphs-edge",
    "name": "edge-v1",
    "task": {"kind": "glyphs", "classes": 16, "fonts": 0.2, "network": NETWORK},
    "gallery": {"version": "glyphs@champion"},
    "train": {"epochs": 2, "batch_size": 64, "num_workers": 0, "engine": "torch"},
}
PRUNE: dict[str, Any] = {"pruning": {"capacities": [0.6, 0.3]}, "epochs": 1, "recalibration": 4}
SEARCH = {"space": SPACE, "evaluations": 6, "population": 3, "parents": 2, "budget": {"macs": 20_000}, "epochs": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": None}, "architectures: is missing, so there is nothing to search"),
        ({"task": {"kind": "glyphs"}}, "task.network: must be of kind stages to be searched, got small"),
        ({"gallery": None}, "gallery: is missing; a search compares query models"),
        ({"architectures": {}}, "either space or pruning, got neither; write space: "),
        ({"architectures": {**SEARCH, "pruning": {"capacities": [0.5]}}}, "either space or pruning, got both"),
        ({"architectures": {**PRUNE, "budget": {"macs": 1000}}}, "budget has no part in pruning"),
        ({"architectures": {"pruning": {"capacities": [0.2, 0.5]}}}, r"must fall, .*; write \[0.5, 0.2\]"),
        ({"architectures": {"pruning": {"capacities": [0.502, 0.501]}}}, "must differ by a whole percent"),
    ],
)
def test_what_cannot_be_searched_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        program.run_of(spec.parse({**QUERY, "architectures": SEARCH, **changes}))


def test_the_section_changes_no_version() -> None:
    plain, searched = spec.parse(QUERY), spec.parse({**QUERY, "architectures": SEARCH})
    assert plain.digest() == searched.digest()
    assert "architectures" not in plain.dump()


# --- a whole search ---------------------------------------------------------------------------------------------------


def gallery_of(home: Path) -> Ancestor:
    document = {**QUERY, "model": "glyphs", "name": "v1", "gallery": None}
    large = {**NETWORK, "stages": [{"width": 8}, {"width": 16}]}
    version = spec.parse({**document, "task": {**QUERY["task"], "network": large}, "compatibility": {"losses": []}})
    run = Run.of(version, home=home)
    trained = train(run, task=tasks.build(version.task))
    link = Link(name="v1", model_id="glyphs-v1", version=1, digest=trained.digest, role="gallery")
    return Ancestor(stored=run.version(trained.folder), link=link)


def test_a_search_ends_in_specs_and_measures_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path))
    ancestors = [gallery_of(tmp_path)]
    asked: list[int] = []
    measure = Here.measure

    def counting(self: Here, paths: Any) -> Iterator[tuple[int, Measured]]:
        asked.append(len(paths))
        return measure(self, paths)

    monkeypatch.setattr(Here, "measure", counting)
    run = program.run_of(spec.parse({**QUERY, "architectures": SEARCH}))
    first = program.conclude(run, ancestors=ancestors)
    assert (first["evaluations"], first["failed"], first["gallery"]) == (6, [], "v1")
    assert all(row["macs"] <= 20_000 for row in first["front"])
    assert first["best"]["small_on_big_map"] == max(row["reward"] for row in first["front"])
    assert first["written"]["path"]["stages"][0]["width"] == 4
    assert first["written"]["within_budget"]
    assert first["best"]["reward"] >= first["written"]["reward"]
    winner = spec.load(run.folder / program.SPEC)
    assert winner.architectures is None
    assert costs.of(winner.task.network, SHAPE).macs == first["best"]["macs"]  # type: ignore[union-attr, arg-type]
    assert len(list(run.folder.glob("spec-*.yaml"))) == len(first["front"]) - 1

    before = sum(asked)
    more = spec.parse({**QUERY, "architectures": {**SEARCH, "evaluations": 8, "reward": "product"}})
    assert program.conclude(program.run_of(more), ancestors=ancestors)["evaluations"] == 8
    assert program.conclude(run, ancestors=ancestors) == first
    assert sum(asked) - before <= 8

    damaged = Recipe.evaluator

    def with_bad_weights(self: Recipe, task: Any = None) -> Any:
        state = {name: np.where("depthwise" in name, np.nan, array) for name, array in self.state.items()}
        return damaged(Recipe(spec=self.spec, state=state, index=self.index, data=self.data), task)

    monkeypatch.setattr(Recipe, "evaluator", with_bad_weights)
    next(run.folder.glob("evaluations-*.jsonl")).unlink()
    found = program.conclude(run, ancestors=ancestors)
    assert found["failed"]
    assert all(row["failed"] == "ValueError: its embeddings are not finite" for row in found["failed"])
    assert not any(stage["depthwise"] for stage in found["best"]["path"]["stages"][1:])
    only = {**SPACE, "stages": [SPACE["stages"][0], {**SPACE["stages"][1], "depthwise": [True]}]}
    hopeless = program.run_of(spec.parse({**QUERY, "architectures": {**SEARCH, "space": only}}))
    with pytest.raises(TrainingError, match="all 6 networks failed, the first with ValueError"):
        program.conclude(hopeless, ancestors=ancestors)


def test_pruning_ends_in_versions_of_every_capacity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path))
    ancestors = [gallery_of(tmp_path)]
    wide = {**NETWORK, "stages": [{"width": 6}, {"width": 10, "depth": 2, "depthwise": True}]}
    query = {**QUERY, "task": {**QUERY["task"], "network": wide}, "train": {**QUERY["train"], "epochs": 1}}
    run = program.run_of(spec.parse({**query, "architectures": PRUNE}))
    found = pruning.conclude(run, ancestors=ancestors)
    assert [row["capacity"] for row in found["front"]] == [0.3, 0.6, 1.0]
    whole = found["front"][-1]["macs"]
    assert all(0.7 * row["capacity"] < row["macs"] / whole <= row["capacity"] for row in found["front"])
    added = program.run_of(
        spec.parse({**query, "architectures": {**PRUNE, "pruning": {**PRUNE["pruning"], "project": False}}})
    )
    assert added.folder != run.folder

    for row in found["front"]:
        wanted = spec.load(run.folder / row["spec"])
        assert (wanted.architectures, wanted.train.method.kind) == (None, "pruned")
        version = Run.of(wanted, home=tmp_path)
        done = train(version, ancestors=ancestors, task=tasks.build(wanted.task))
        assert any("nothing was trained" in note for note in done.notes)
        again = train(version, ancestors=ancestors, task=tasks.build(wanted.task))
        assert (again.digest, done.result.steps) == (done.digest, 0)
        network = version.version(done.folder).whole().network
        state = load_file(run.folder / row["weights"])
        assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
        assert cost_of(network) == row["macs"]  # type: ignore[arg-type]

    again = pruning.conclude(run, ancestors=ancestors)
    scores = ("macs", "small_on_big_map", "small_alone_map")
    assert [[row[key] for key in scores] for row in again["front"]] == [
        [row[key] for key in scores] for row in found["front"]
    ]
    wanted = spec.load(run.folder / "spec-30.yaml", ["name=other"])
    for damage, kind, message in (
        (b"no weights", IntegrityError, "has SHA-256 .*, the spec says"),
        (None, SpecError, r"weights-30.safetensors cannot be read \(No such file"),
    ):
        path = run.folder / "weights-30.safetensors"
        path.unlink() if damage is None else path.write_bytes(damage)
        with pytest.raises(kind, match=message) as caught:
            train(Run.of(wanted, home=tmp_path), ancestors=ancestors, task=tasks.build(wanted.task))
        assert isinstance(caught.value, GracefulError)
    least = spec.parse({**query, "architectures": {"pruning": {"capacities": [0.5, 0.01]}}})
    with pytest.raises(
        SpecError,
        match=r"0.01 of 29,400 .* is 294, but the fewest channels, 2, 2, cost 6,468; write at least 0.221",
    ):
        pruning.dry_run(least)
    assert pruning.dry_run(run.spec)["multiply-accumulates"][0] == whole
