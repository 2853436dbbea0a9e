"""Query models on the index of a gallery model: spec, contract, losses, metrics, gate, networks, fleet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from graceful import gate, models, spec, tasks
from graceful.chain import OldOutputs
from graceful.constraints import Constraint, Direction
from graceful.errors import SpecError
from graceful.lineage.family import Key
from graceful.lineage.fleet import Fleet, FleetModel, named
from graceful.losses.ops.pair import OldVersion
from graceful.losses.ranking_distillation import ranking_distillation
from graceful.metrics.inputs import VersionOutputs
from graceful.metrics.predictions import Predictions
from graceful.metrics.query_gallery import measure_pair
from graceful.metrics.retrieval import Embeddings
from graceful.models import cost
from graceful.models.base import Outputs
from graceful.models.embedding_contract import contract_of, difference
from graceful.report import Comparison, Measurement, Report
from graceful.spec.stages import StagedNetwork
from graceful.training.objective import Objective

QUERY: dict[str, Any] = {
    "model": "glyphs-edge",
    "name": "edge-v1",
    "task": {"kind": "glyphs"},
    "gallery": {"version": "glyphs@champion"},
}
DISTILLATION = {"kind": "focal_distillation"}


def with_gallery(**keys: Any) -> dict[str, Any]:
    return {**QUERY, "gallery": {**QUERY["gallery"], **keys}}


# --- the spec ---------------------------------------------------------------------------------------------------------


def test_a_query_model_is_trained_by_the_gallery_head_and_regression_unless_the_spec_names_losses() -> None:
    losses = spec.parse(QUERY).compatibility.losses
    assert [(loss.kind, loss.weight) for loss in losses] == [("influence", 1.0), ("embedding_regression", 10.0)]
    free = spec.parse(with_gallery(labels=False)).compatibility.losses
    assert [(loss.kind, loss.weight) for loss in free] == [("embedding_regression", 10.0)]
    resolved = spec.parse(QUERY)
    assert spec.parse(resolved.dump()) == resolved
    assert "gallery" not in spec.parse({key: QUERY[key] for key in ("model", "name", "task")}).dump()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compatibility": {"losses": [DISTILLATION]}}, "focal_distillation leaves the embeddings of a query model"),
        ({"compatibility": {"losses": []}}, "no loss leaves the embeddings"),
        ({"model": "glyphs"}, "gallery.version in spec: must be of another model family than glyphs"),
        (with_gallery(baseline="glyphs-edge:1"), "gallery.baseline in spec: must be of another model family"),
        (
            {**with_gallery(labels=False), "compatibility": {"losses": [{"kind": "influence"}]}},
            "influence reads labels, and gallery.labels is false",
        ),
    ],
)
def test_what_could_not_search_its_gallery_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec.parse({**QUERY, **changes})


# --- the contract -----------------------------------------------------------------------------------------------------


def task_section(**keys: Any) -> Any:
    return spec.parse({**QUERY, "task": keys}).task


def test_contracts_differ_in_dimension_resolution_and_preprocessing_but_not_in_augmentation() -> None:
    folder = {"kind": "image_folder", "root": "images", "network": {"size": "xs"}}
    gallery = contract_of(task_section(**folder, size=64), 32)
    assert difference(contract_of(task_section(**folder, size=64, flip=True, shift=2), 32), gallery) is None
    other = contract_of(task_section(**folder, size=32), 16)
    assert difference(other, gallery) == "dimension 16, not 32; resolution 32, not 64"
    assert difference(other, gallery, allowed=("resolution",)) == "dimension 16, not 32"
    grey = contract_of(task_section(**folder, size=64, channels=1), 32)
    assert (difference(grey, gallery) or "").startswith("preprocessing")
    assert grey.digest != gallery.digest


# --- losses -----------------------------------------------------------------------------------------------------------


def test_ranking_distillation_is_the_divergence_of_the_two_orders() -> None:
    generator = np.random.default_rng(0)
    new, old = generator.normal(size=(6, 5)), generator.normal(size=(6, 5))
    present = np.array([True, True, True, True, True, False])

    def softmax(vectors: np.ndarray, row: int) -> np.ndarray:
        gallery = old / np.linalg.norm(old, axis=1, keepdims=True)
        ranked = [column for column in range(6) if present[column] and column != row]
        cosines = gallery[ranked] @ (vectors[row] / np.linalg.norm(vectors[row])) / 0.1
        weights = np.exp(cosines - cosines.max())
        return np.asarray(weights / weights.sum())

    expected = [float((softmax(old, row) * np.log(softmax(old, row) / softmax(new, row))).sum()) for row in range(6)]
    tensors = [torch.from_numpy(vectors) for vectors in (new, old)]
    mask = torch.from_numpy(present)
    values = ranking_distillation(*tensors, present=mask, temperature=0.1)
    assert values.tolist() == pytest.approx(expected, abs=1e-12)
    assert ranking_distillation(tensors[1], tensors[1], present=mask, temperature=0.1).abs().max() < 1e-12
    alone = ranking_distillation(tensors[0][:1].requires_grad_(), tensors[1][:1], present=mask[:1], temperature=0.1)
    alone.sum().backward()  # nothing else to rank
    assert alone.tolist() == [0.0]


def test_without_labels_the_labels_change_nothing() -> None:
    section = spec.parse(with_gallery(labels=False)).compatibility
    old = OldVersion(name="glyphs-v1", classes=("a", "b"), embedding_size=4)
    objective = Objective(section, ("a", "b"), [old], task_weight=0.0)
    embedding, logits = torch.randn(3, 4), torch.randn(3, 2)
    old_outputs = [OldOutputs(torch.zeros(3, 2), torch.randn(3, 4), torch.ones(3, dtype=torch.bool))]
    totals = {
        float(objective(Outputs(embedding, logits), torch.tensor(labels), old_outputs).total)
        for labels in ([0, 0, 1], [1, 1, 0])
    }
    assert len(totals) == 1


# --- metrics and gate -------------------------------------------------------------------------------------------------


def outputs(name: str, vectors: np.ndarray, labels: list[str]) -> VersionOutputs:
    ids = np.asarray([f"{index}" for index in range(len(labels))])
    sides = [
        Embeddings(ids=np.char.add(side, ids), labels=np.asarray(labels), vectors=vectors + shift)
        for side, shift in (("q", 0.0), ("g", 0.01))
    ]
    logits = np.zeros((len(labels), 2), dtype=np.float32)
    predictions = Predictions.from_logits(
        logits, ids=ids, labels=np.asarray(labels), classes=("a", "b"), groups=np.asarray(ids)
    )
    return VersionOutputs(name=name, predictions=predictions, queries=sides[0], gallery=sides[1])


def test_pairs_are_measured_against_the_query_alone_the_paragon_and_a_baseline() -> None:
    labels = ["a", "b"] * 20
    generator = np.random.default_rng(1)
    centres = np.asarray([[1.0, 0.0], [0.0, 1.0]])[[0, 1] * 20]
    large = outputs("large", centres + generator.normal(size=(40, 2), scale=0.1), labels)
    small = outputs("small", centres + generator.normal(size=(40, 2), scale=0.6), labels)
    turned = outputs("alone", (centres + generator.normal(size=(40, 2), scale=0.6))[:, ::-1], labels)
    measured = measure_pair(small, large, baseline=turned, draws=200)
    value = {name: measurement.value or 0.0 for name, measurement in measured.items()}
    assert value["pair_gain_map"] == pytest.approx(value["pair_map"] - value["pair_query_alone_map"])
    assert value["pair_share_map"] == pytest.approx(value["pair_map"] / value["pair_paragon_map"])
    gained = value["pair_gain_map"] / (value["pair_paragon_map"] - value["pair_query_alone_map"])
    assert value["pair_gain_ratio_map"] == pytest.approx(gained)
    assert value["pair_gain_map"] > 0.0
    assert value["pair_gain_over_baseline_map"] > 0.0
    at_chance = measure_pair(turned, large, draws=200)
    assert (at_chance["pair_map"].value or 0.0) < 0.5 < (at_chance["pair_query_alone_map"].value or 0.0)
    assert "gallery.baseline" in (at_chance["pair_gain_over_baseline_map"].reason or "")
    itself = measure_pair(large, large, draws=200)
    assert (itself["pair_gain_map"].value, itself["pair_share_map"].value) == (0.0, 1.0)


def comparison(name: str, relation: Any, distance: int, **metrics: float) -> Comparison:
    measurements = {key: Measurement(value=value, lower=value, upper=value, n=9) for key, value in metrics.items()}
    return Comparison(against=name, model_id=name, distance=distance, measurements=measurements, relation=relation)


def test_constraints_on_pairs_are_about_galleries_and_those_on_flips_about_ancestors() -> None:
    report = Report(
        model="glyphs-edge",
        version="edge-v2",
        data={},
        measurements={},
        comparisons=(
            comparison("edge-v1", "ancestor", 1, negative_flip_rate=0.01),
            comparison("glyphs-v3", "gallery", 2, pair_gain_map=0.05),
            comparison("glyphs-v2", "gallery", 3, pair_gain_map=-0.05),
        ),
    )
    assert Report.from_json(report.to_json()) == report
    flips = Constraint(metric="negative_flip_rate", direction=Direction.AT_MOST, bound=0.02)
    gain = Constraint(metric="pair_gain_map", direction=Direction.ABOVE, bound=0.0)
    verdict = gate.judge(report, [flips, gain, replace(gain, against="latest")])
    assert [(found.against, found.met) for found in verdict.findings] == [
        ("edge-v1", True),
        ("glyphs-v3", True),
        ("glyphs-v2", False),
        ("glyphs-v3", True),
    ]
    alone = replace(report, comparisons=report.comparisons[:1])
    assert "relation" not in alone.to_json()
    assert "no query model or gallery yet" in gate.judge(alone, [gain]).findings[0].reason


# --- networks and fleet -----------------------------------------------------------------------------------------------


def test_a_network_of_stages_costs_what_its_layers_cost() -> None:
    stages = [{"width": 4, "kernel": 3}, {"width": 8, "kernel": 5, "depthwise": True, "depth": 2}]
    section = StagedNetwork.model_validate({"stages": stages, "embedding": 6, "head": "cosine", "resolution": 20})
    network = models.build(section, classes=3, input_shape=(1, 28, 28)).eval()
    expected = 10 * 10 * 4 * 9  # 20 pixels, stride 2
    expected += 5 * 5 * (4 * 25 + 4 * 8) + 5 * 5 * (8 * 25 + 8 * 8) + 8 * 25 * 6
    assert cost.macs(network.embed, torch.zeros(1, 1, 28, 28)) == expected
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 3)
    assert tasks.build(task_section(kind="glyphs", network=section.model_dump())).network(("a", "b")) is not None


def test_retiring_a_version_ends_its_live_pairs() -> None:
    def model(name: str, family: str, number: int) -> FleetModel:
        return FleetModel(key=Key(family, number), name=name, model_id=f"{family}-{number}")

    edge, watch = model("edge-v1", "glyphs-edge", 1), model("watch-v1", "glyphs-watch", 1)
    old, new = model("v3", "glyphs", 3), model("v4", "glyphs", 4)
    pairs = frozenset({(edge.key, old.key), (edge.key, new.key), (watch.key, new.key)})
    fleet = Fleet(model="glyphs", queries=(edge, watch), galleries=(old, new), pairs=pairs)
    assert fleet.losing(old.key) == ["glyphs-edge-edge-v1 on glyphs-v3"]
    assert len(fleet.losing(new.key)) == 2
    assert named({"graceful_galleries": "/glyphs@3/glyphs@4/"}, "graceful_galleries") == (old.key, new.key)
