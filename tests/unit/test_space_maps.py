"""Maps between embedding spaces: closed forms against independent ones, the network, interpolation, files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group
from sklearn.linear_model import Ridge

from graceful import adapters, spec
from graceful.adapters import bundle, maps, mlp, selection
from graceful.adapters.maps import unit
from graceful.constraints import ADAPTER_METRICS
from graceful.errors import DataError, IntegrityError, SpecError
from graceful.metrics.adapted import measure_adapter
from graceful.metrics.retrieval import Embeddings, rank


def points(n: int, d: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, d)) * np.linspace(1.0, 0.2, d))


@pytest.mark.parametrize("wider", [0, 3])
def test_procrustes_finds_the_rotation_that_made_the_target(wider):
    x = points(200, 6)
    rotation = ortho_group.rvs(6 + wider, random_state=1)[:6]
    found = adapters.procrustes(x, x @ rotation)
    assert found.target == 6 + wider
    np.testing.assert_allclose(found.arrays["weight"], rotation, atol=1e-6)
    np.testing.assert_allclose(found(x), x @ rotation, atol=1e-6)


def test_procrustes_is_the_solution_of_scipy_on_centred_data_with_the_best_scale():
    x, y = points(300, 8), points(300, 8, seed=1) + 0.5 * points(300, 8)
    y = unit(y)
    x0, y0 = x - x.mean(0), y - y.mean(0)
    rotation, total = orthogonal_procrustes(x0, y0)
    scale = total / (x0**2).sum()
    found = adapters.procrustes(x, y)
    np.testing.assert_allclose(found.arrays["weight"], scale * rotation, atol=1e-6)
    np.testing.assert_allclose(found.arrays["bias"], y.mean(0) - x.mean(0) @ (scale * rotation), atol=1e-6)


def test_procrustes_into_a_smaller_space_keeps_orthogonal_directions():
    x, y = points(200, 9), points(200, 4, seed=2)
    weight = adapters.procrustes(x, y).arrays["weight"].astype(np.float64)
    gram = weight.T @ weight
    np.testing.assert_allclose(gram / gram[0, 0], np.eye(4), atol=1e-5)


def test_low_rank_at_full_rank_is_the_ridge_solution():
    x, y, ridge = points(150, 5), points(150, 7, seed=3), 0.05
    penalty = ridge * ((x - x.mean(0)) ** 2).sum() / 5
    expected = Ridge(alpha=penalty, solver="cholesky").fit(x, y)
    found = adapters.low_rank(x, y, rank=5, ridge=ridge)
    np.testing.assert_allclose(found.arrays["left"] @ found.arrays["right"], expected.coef_.T, atol=1e-5)
    np.testing.assert_allclose(found.arrays["bias"], expected.intercept_, atol=1e-5)


def test_low_rank_beats_the_truncated_ridge_solution_at_its_own_objective():
    x, y, ridge, rank = points(150, 6), points(150, 6, seed=4), 0.05, 2
    x0, y0 = x - x.mean(0), y - y.mean(0)
    penalty = ridge * (x0**2).sum() / 6

    def objective(weight):
        return ((y0 - x0 @ weight) ** 2).sum() + penalty * (weight**2).sum()

    found = adapters.low_rank(x, y, rank=rank, ridge=ridge)
    weight = (found.arrays["left"] @ found.arrays["right"]).astype(np.float64)
    assert np.linalg.matrix_rank(weight, tol=1e-6) == rank
    left, singular, right = np.linalg.svd(np.linalg.solve(x0.T @ x0 + penalty * np.eye(6), x0.T @ y0))
    assert objective(weight) <= objective(left[:, :rank] * singular[:rank] @ right[:rank]) + 1e-9
    for seed in range(20):  # a small step in any direction of rank two is no better
        step = np.random.default_rng(seed).normal(size=(6, 6)) * 1e-3
        near_left, near_singular, near_right = np.linalg.svd(weight + step)
        assert objective(weight) <= objective(near_left[:, :rank] * near_singular[:rank] @ near_right[:rank]) + 1e-6


def test_slerp_divides_the_angle_and_stays_on_the_great_circle():
    first, second = points(50, 3), points(50, 3, seed=5)
    middle = adapters.slerp(first, second, 0.3)
    np.testing.assert_allclose(adapters.slerp(first, second, 0.0), first, atol=1e-6)
    np.testing.assert_allclose(adapters.slerp(first, second, 1.0), second, atol=1e-6)
    angle = np.arccos((first * second).sum(1))
    np.testing.assert_allclose(np.arccos((first * middle).sum(1)), 0.3 * angle, atol=1e-5)
    np.testing.assert_allclose(np.arccos((middle * second).sum(1)), 0.7 * angle, atol=1e-5)
    opposite = adapters.slerp(first, -first, 0.4)
    np.testing.assert_allclose(opposite, first, atol=1e-6)
    with pytest.raises(DataError, match="share in"):
        adapters.slerp(first, second, 1.5)


def test_a_network_begins_at_its_base_learns_what_no_matrix_can_and_repeats():
    x, held = points(2000, 12), points(400, 12, seed=6)

    def bent(values):
        return unit(np.abs(values) + 0.3 * values[:, ::-1])

    recipe = mlp.Recipe(hidden=64, epochs=20, learning_rate=0.01, batch_size=100, seed=3)
    begin = adapters.residual_mlp(x, bent(x), validation=(held, bent(held)), recipe=mlp.Recipe(hidden=8, epochs=0))
    base = adapters.procrustes(x, bent(x))
    np.testing.assert_allclose(begin(held), base(held), atol=1e-6)
    first, second = (adapters.residual_mlp(x, bent(x), validation=(held, bent(held)), recipe=recipe) for _ in range(2))
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, second.arrays[name])
    fresh = points(500, 12, seed=7)
    error = {kind: ((found(fresh) - bent(fresh)) ** 2).sum(1).mean() for kind, found in (("a", base), ("b", first))}
    assert error["b"] < 0.7 * error["a"]


@pytest.mark.parametrize("side", ["queries", "gallery"])
def test_the_chosen_map_is_the_one_whose_neighbours_agree(side):
    hidden, rotation = points(900, 10), ortho_group.rvs(10, random_state=2)
    new, old = hidden, unit(hidden @ rotation + 0.02 * np.random.default_rng(8).normal(size=hidden.shape))
    source, target = (new, old) if side == "queries" else (old, new)
    train, validation = (
        selection.Pairs(source=source[part], target=target[part]) for part in (slice(0, 700), slice(700, None))
    )
    best, tried = adapters.choose(train, validation, kinds=("procrustes", "low_rank"), side=side)
    assert best.agreement == max(candidate.agreement for candidate in tried) > 0.6
    assert {candidate.kind for candidate in tried} == {"procrustes", "low_rank"}
    assert selection.agreement(new, new, new, new) == 1.0
    unrelated = selection.agreement(validation.source, train.target, validation.source, train.source)
    assert unrelated < 0.2


def test_interpolation_is_tried_for_queries_alone():
    new, old = points(60, 5), points(60, 5, seed=9)
    pairs = selection.Pairs(source=new[:40], target=old[:40]), selection.Pairs(source=new[40:], target=old[40:])
    best, tried = adapters.choose(*pairs, kinds=("procrustes",), old=True)
    assert len(tried) == 1
    assert best.share in selection.SHARES
    with pytest.raises(SpecError, match="side queries"):
        adapters.choose(*pairs, kinds=("procrustes",), old=True, side="gallery")


END = {"name": "glyphs:v1", "model_id": "m-1", "digest": "a" * 64, "contract": "b" * 64, "dimension": 4}
DESCRIBED = {
    "model": "glyphs-adapter",
    "name": "v1-v2",
    "side": "queries",
    "kind": "procrustes",
    "source": END,
    "target": {**END, "digest": "c" * 64},
    "fitted": {"pairs": 40},
}


def test_an_adapter_on_disk_is_the_same_and_refuses_other_versions(tmp_path):
    x, y = points(40, 4), points(40, 4, seed=1)
    fitted = adapters.procrustes(x, y)
    saved = adapters.save(tmp_path, fitted, DESCRIBED)
    read = adapters.load(tmp_path, expected_digest=saved.digest)
    np.testing.assert_array_equal(read(x), fitted(x))
    read.require_between(source="a" * 64, target="c" * 64)
    with pytest.raises(SpecError, match="was fitted on glyphs:v1 with digest cccc"):
        read.require_between(source="a" * 64, target="d" * 64)
    with pytest.raises(DataError, match="maps vectors of 4 numbers"):
        read(points(3, 5))
    between = adapters.save(tmp_path / "between", fitted, {**DESCRIBED, "share": 0.5})
    with pytest.raises(SpecError, match="run that version too"):
        between(x)
    np.testing.assert_allclose(between(x, old=y), adapters.slerp(y, fitted(x), 0.5), atol=1e-6)


def test_a_damaged_adapter_is_refused(tmp_path):
    saved = adapters.save(tmp_path, adapters.procrustes(points(40, 4), points(40, 4, seed=1)), DESCRIBED)
    description, weights = ((tmp_path / name).read_bytes() for name in (bundle.DESCRIPTION, bundle.WEIGHTS))
    (tmp_path / bundle.WEIGHTS).write_bytes(weights[:-1] + b"\x01")
    with pytest.raises(IntegrityError, match="fetch the adapter again"):
        adapters.load(tmp_path)
    (tmp_path / bundle.WEIGHTS).write_bytes(weights)
    (tmp_path / bundle.DESCRIPTION).write_bytes(description.replace(b'"share": 1.0', b'"share": 0.5'))
    with pytest.raises(IntegrityError):
        adapters.load(tmp_path, expected_digest=saved.digest)
    document = json.loads(description)
    (tmp_path / bundle.DESCRIPTION).write_text(json.dumps({**document, "kind": "mlp"}))
    with pytest.raises(DataError, match="a mlp consists of"):
        adapters.load(tmp_path)
    (tmp_path / bundle.DESCRIPTION).write_text(json.dumps({**document, "side": "both"}))
    with pytest.raises(DataError, match="side"):
        adapters.load(tmp_path)
    (tmp_path / bundle.WEIGHTS).unlink()
    with pytest.raises(DataError, match=r"adapter\.safetensors missing"):
        adapters.load(tmp_path)


def test_arrays_that_do_not_fit_or_are_not_finite_are_refused():
    weight, bias = np.eye(3, dtype=np.float32), np.zeros(3, dtype=np.float32)
    for arrays in ({"weight": weight}, {"weight": weight, "bias": bias[:2]}, {"weight": weight[0], "bias": bias}):
        with pytest.raises(DataError, match="that fit each other"):
            maps.Map(kind="procrustes", arrays=arrays)
    with pytest.raises(DataError, match="NaN"):
        maps.Map(kind="procrustes", arrays={"weight": weight * np.nan, "bias": bias})
    with pytest.raises(DataError, match="needs pairs"):
        adapters.procrustes(weight, weight[:2])


def test_a_spec_of_an_adapter_is_no_spec_to_train(tmp_path):
    document = {"model": "a-adapter", "name": "v1-v2", "task": {"kind": "digits"}}
    bound = {"gate": {"constraints": [{"metric": "adapter_share_recall_at_10", "bound": 0.9}]}}
    section = spec.parse({**document, **bound, "adapter": {"old": "a:v1", "new": "a:v2"}})
    assert spec.parse(section.dump()) == section
    assert "adapter" not in spec.parse(document).dump()
    with pytest.raises(SpecError, match="is measured of adapters alone"):
        spec.parse({**document, **bound})
    (tmp_path / "spec.yaml").write_text(json.dumps(section.dump()))
    with pytest.raises(SpecError, match="run `graceful adapt a:v1 a:v2`"):
        spec.load(tmp_path / "spec.yaml")


def test_what_is_measured_of_an_adapter_compares_with_both_searches():
    rng = np.random.default_rng(1)
    latent = {"q": rng.normal(size=(60, 8)), "g": rng.normal(size=(200, 8))}
    labels = {name: np.array([str(int(row.argmax())) for row in part]) for name, part in latent.items()}

    def embedded(part, vectors):
        ids = np.array([f"{part}{row:03d}" for row in range(len(vectors))])
        return Embeddings(ids=ids, labels=labels[part], vectors=vectors)

    rotation = ortho_group.rvs(8, random_state=0)
    new = {name: embedded(name, part) for name, part in latent.items()}
    old = {name: embedded(name, (part + 0.8 * rng.normal(size=part.shape)) @ rotation) for name, part in latent.items()}
    adapted = rank(embedded("q", latent["q"] @ rotation), old["g"])
    old_old, full = rank(old["q"], old["g"]), rank(new["q"], new["g"])
    found = measure_adapter(adapted, old_old=old_old, full=full, draws=200)
    hits = {name: ranking.first_hit <= 1 for name, ranking in (("a", adapted), ("o", old_old), ("f", full))}
    assert found["adapter_gain_recall_at_1"].value == pytest.approx(hits["a"].mean() - hits["o"].mean())
    assert found["adapter_share_recall_at_1"].value == pytest.approx(hits["a"].mean() / hits["f"].mean())
    assert found["retrieval_nfr"].value == pytest.approx((hits["o"] & ~hits["a"]).mean())
    assert found["full_recall_at_1"].value == pytest.approx(hits["f"].mean())
    share = found["adapter_share_ndcg_at_10"]
    assert share.value == pytest.approx(adapted.gain.sum() / full.gain.sum())
    assert share.lower < share.value < share.upper
    assert {name for name in found if name in ADAPTER_METRICS} == set(ADAPTER_METRICS)
