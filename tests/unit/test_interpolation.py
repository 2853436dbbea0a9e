"""Starting at the predecessor's weights and keeping a share of them: tensors, refusals before training, small fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from graceful import spec as specs
from graceful import tasks
from graceful.errors import SpecError
from graceful.models import bundle
from graceful.models.base import Headed
from graceful.models.interpolation import inherited_state, interpolated, recalibrate
from graceful.models.stored import StoredVersion
from graceful.programs.fitting.finishing import Trained
from graceful.programs.fitting.reference_training import reference_run
from graceful.programs.fitting.weight_mixing import mix
from graceful.programs.runs.run import Run
from graceful.training.start import weights_of
from tests.support.runs import train

State = dict[str, Tensor]


def state(seed: int, classes: int, width: int = 4) -> State:
    random = torch.Generator().manual_seed(seed)
    return {
        "body.weight": torch.randn(width, 3, generator=random),
        "body.seen": torch.tensor(seed),
        "head.weight": torch.randn(classes, width, generator=random),
        "head.bias": torch.randn(classes, generator=random),
    }


def names(count: int) -> tuple[str, ...]:
    return tuple(f"class-{index}" for index in range(count))


def taken(new: State, old: State, *, classes: tuple[str, ...], old_classes: tuple[str, ...]) -> State:
    return dict(inherited_state(new, old, classes=classes, old_classes=old_classes, name="v1"))


# --- tensors ----------------------------------------------------------------------------------------------------------


def test_no_share_is_the_new_version_bit_for_bit_and_a_whole_one_the_old() -> None:
    new, old = state(1, 3), state(2, 3)
    assert all(torch.equal(found, new[key]) for key, found in interpolated(new, old, 0.0).items())
    nearly = interpolated(new, old, 0.999999)
    assert all(torch.allclose(nearly[key], old[key], atol=1e-4) for key in old if key != "body.seen")
    assert int(nearly["body.seen"]) == 1  # counters are not mixed


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 99), st.floats(0.0, 0.99), st.permutations(names(6)), st.integers(1, 6), st.integers(1, 6))
def test_every_class_keeps_its_own_row(seed: int, share: float, order: list[str], count: int, old_count: int) -> None:
    classes, old_classes = tuple(order[:count]), names(old_count)
    new, old = state(seed, count), state(seed + 1, old_count)
    if not set(classes) & set(old_classes) or classes == old_classes:
        return
    found = interpolated(new, taken(new, old, classes=classes, old_classes=old_classes), share)
    assert {key: one.shape for key, one in found.items()} == {key: one.shape for key, one in new.items()}
    for index, name in enumerate(classes):
        for key in ("head.weight", "head.bias"):
            mine = new[key][index]
            if name not in old_classes:
                assert torch.equal(found[key][index], mine)
                continue
            wanted = (1 - share) * mine + share * old[key][old_classes.index(name)]
            assert torch.allclose(found[key][index], wanted, atol=1e-5)
    wanted = (1 - share) * new["body.weight"] + share * old["body.weight"]
    assert torch.allclose(found["body.weight"], wanted, atol=1e-5)


def test_what_is_inherited_leaves_both_networks_as_they_were() -> None:
    new, old = state(1, 3), state(2, 2)
    before = {key: one.clone() for key, one in new.items()}
    taken(new, old, classes=names(3), old_classes=names(2))
    assert all(torch.equal(new[key], before[key]) for key in new)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"body.weight": torch.zeros(5, 3)}, r"tensor body.weight has shape \[5, 3\] in v1, here \[4, 3\]"),
        ({"head.weight": torch.zeros(2, 5)}, r"rows of head.weight have shape \[5\] in v1, here \[4\]"),
        ({"extra": torch.zeros(1)}, "tensor extra is only in v1"),
        ({"body.weight": None}, "tensor body.weight is only in this version"),
    ],
)
def test_networks_that_differ_in_more_than_their_classes_are_refused(change: dict[str, Any], message: str) -> None:
    old = {key: one for key, one in {**state(2, 2), **change}.items() if one is not None}
    with pytest.raises(SpecError, match=message) as caught:
        taken(state(1, 3), old, classes=names(3), old_classes=names(2))
    assert caught.value.message.endswith("or write train.start: random")
    assert "\n" not in caught.value.message


def test_other_classes_without_a_head_that_names_them_are_refused() -> None:
    new, old = ({key.replace("head", "top"): one for key, one in state(seed, 2).items()} for seed in (1, 2))
    with pytest.raises(SpecError, match=r"v1 has other classes and no head.\* tensor has a row for each"):
        taken(new, old, classes=("a", "b"), old_classes=("b", "a"))
    assert torch.equal(taken(new, old, classes=("a", "b"), old_classes=("a", "b"))["top.bias"], old["top.bias"])


def test_batch_normalisation_is_measured_anew() -> None:
    body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    network = Headed(body, nn.Linear(4, 2)).eval()
    inputs = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    recalibrate(network, [inputs])
    assert torch.allclose(body[1].running_mean, body[0](inputs).mean(0), atol=1e-5)  # type: ignore[arg-type]
    assert not any(module.training for module in network.modules())


def test_without_batch_normalisation_nothing_is_read() -> None:
    def never() -> Any:
        raise AssertionError("was read")
        yield

    network = Headed(nn.Linear(3, 4), nn.Linear(4, 2))
    recalibrate(network, never())
    assert network.training


# --- fits -------------------------------------------------------------------------------------------------------------


def spec_of(home: Path, name: str, *, classes: int = 10, epochs: int = 1, **sections: Any) -> specs.RefreshSpec:
    optimizer = {"kind": "adamw", "lr": 0.01}
    recipe = {
        "num_workers": 0,
        "engine": {"kind": "torch"},
        "optimizer": optimizer,
        "epochs": epochs,
        "batch_size": 128,
    }
    task = {"kind": "digits", "classes": classes, **sections.pop("task", {})}
    document = {"model": "digits", "name": name, "task": task, "home": str(home)}
    return specs.parse({**document, **sections, "train": {**recipe, **sections.get("train", {})}})


def made(spec: specs.RefreshSpec, home: Path, *ancestors: Path) -> Trained:
    return train(spec, run_dir=home / spec.run_id, home=home, ancestors=ancestors)


def first_loss(run_dir: Path) -> float:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return float(next(row["loss"] for row in rows if row["event"] == "step"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def old(home: Path) -> Path:
    """A version that knows eight of the ten digits."""
    return made(spec_of(home, "v1", classes=8, epochs=6), home).folder


@pytest.fixture(scope="module")
def random(home: Path, old: Path) -> Trained:
    """Its successor, begun at random."""
    return made(spec_of(home, "v2-random", classes=8), home, old)


def test_training_goes_on_where_the_predecessor_ended_and_keeps_a_share_of_it(
    home: Path, old: Path, random: Trained
) -> None:
    section = {"start": "latest"}
    mixing = spec_of(home, "v2", classes=8, train=section, compatibility={"interpolation": 0.25})
    found = made(mixing, home, old)
    assert first_loss(home / "digits-v2") < 0.5 * first_loss(home / "digits-v2-random")
    assert found.result.validation_error < random.result.validation_error
    trained, before = load_file(found.result.weights), load_file(old / "model.safetensors")
    kept = load_file(found.folder / "model.safetensors")
    assert all(torch.equal(kept[key], torch.lerp(trained[key], before[key], 0.25)) for key in before)
    assert found.notes == ("weights are 0.75 x those of training + 0.25 x those of v1",)
    started = json.loads((home / "digits-v2" / "spec.json").read_text())["job"]["start"]
    assert started == bundle.recorded_digest(old)
    assert made(mixing, home, old).digest == found.digest  # finished: nothing is trained again


def test_classes_that_the_predecessor_does_not_know_keep_their_own_rows(home: Path, old: Path) -> None:
    spec = spec_of(home, "v3", train={"start": "latest"}, compatibility={"interpolation": 0.5})
    found = made(spec, home, old)
    trained, before = load_file(found.result.weights), load_file(old / "model.safetensors")
    kept = load_file(found.folder / "model.safetensors")
    assert torch.equal(kept["head.weight"][8:], trained["head.weight"][8:])
    assert torch.allclose(kept["head.weight"][:8], (trained["head.weight"][:8] + before["head.weight"]) / 2, atol=1e-6)


def test_a_head_alone_is_inherited_by_another_network(home: Path, old: Path, tmp_path: Path) -> None:
    """By class name, from a version of which nothing but its head is left."""
    head_only = tmp_path / "head-only"
    head_only.mkdir()
    for name in ("arch.json", "head.safetensors"):
        (head_only / name).write_bytes((old / name).read_bytes())
    spec = spec_of(home, "v8", classes=9, task={"network": {"size": "s2"}}, train={"start": "head"})
    task = tasks.build(spec.task)
    torch.manual_seed(1)
    network, start = task.network(task.classes), StoredVersion(folder=head_only)
    inherited, before = weights_of(start, network, task=task, head=True), network.state_dict()
    rows, classes = load_file(head_only / "head.safetensors"), start.description.classes
    for index, name in enumerate(task.classes):
        for key in ("head.weight", "head.bias"):
            known = rows[key][classes.index(name)] if name in classes else before[key][index]
            assert torch.equal(inherited[key][index], known)
    assert all(torch.equal(inherited[key], before[key]) for key in before if not key.startswith("head."))
    narrow = spec_of(home, "v8", classes=9, task={"network": {"embedding": 8}}, train={"start": "head"})
    with pytest.raises(SpecError, match=r"train.start: head needs the head of v1, but rows of head.weight have shape"):
        made(narrow, tmp_path, old)


def test_reference_runs_start_where_the_run_does(home: Path, old: Path, random: Trained) -> None:
    latest, anew = spec_of(home, "v4", classes=8, train={"start": "latest"}), spec_of(home, "v4", classes=8)
    task = tasks.build(latest.task)
    run, other = Run.of(latest, home=home), Run.of(anew, home=home)
    untreated = [reference_run(run, 1, task=task, latest=run.version(one)).folder for one in (old, random.folder)]
    plain = [reference_run(other, 1, task=task, latest=one).folder for one in (run.version(old), None)]
    assert len({*untreated, *plain}) == 3
    assert plain[0] == plain[1]
    assert first_loss(untreated[0].parent) < 0.5 * first_loss(plain[0].parent)


def test_a_share_is_mixed_into_a_frozen_network_too(home: Path, old: Path, random: Trained) -> None:
    spec = spec_of(home, "v2", classes=8)
    network, latest = bundle.load(random.folder).network, StoredVersion(folder=old)
    before = {key: one.clone() for key, one in network.state_dict().items()}
    assert mix(network, latest, 0.0, spec=spec, task=tasks.build(spec.task)) == ()
    assert all(torch.equal(one, before[key]) for key, one in network.state_dict().items())
    mix(network, latest, 0.5, spec=spec, task=tasks.build(spec.task))
    assert not torch.equal(network.state_dict()["head.bias"], before["head.bias"])
    assert not network.training
    assert not any(one.requires_grad for one in network.parameters())


def test_a_start_that_cannot_be_had_is_refused_before_training(home: Path, old: Path, tmp_path: Path) -> None:
    def refused(message: str, *ancestors: Path, **task: Any) -> None:
        with pytest.raises(SpecError, match=message):
            made(spec_of(tmp_path, "v9", task=task, train={"start": "latest"}), tmp_path, *ancestors)
        assert not (tmp_path / "digits-v9").exists()

    refused("train.start: latest needs a predecessor, digits has none yet; write random")
    refused("needs the network of v1, but tensor features.0.weight has shape", old, network={"size": "s2"})
    refused("needs the network of v1, but tensor projection.weight has shape", old, network={"embedding": 32})
    lost = tmp_path / "lost"
    lost.mkdir()
    (lost / "arch.json").write_bytes((old / "arch.json").read_bytes())
    refused("needs the weights of v1, which are gone from", lost)


@pytest.mark.parametrize(
    "more",
    [
        {"head.hidden.weight": torch.zeros(3, 5)},
        {"head.scale.weight": torch.zeros(5, 3)},
        {"head.low": torch.zeros(3), "head.high": torch.zeros(3)},
    ],
    ids=["two matrices", "transposed", "three vectors"],
)
def test_a_head_whose_class_rows_cannot_be_told_is_refused(more: dict[str, torch.Tensor]) -> None:
    state = {"head.weight": torch.zeros(3, 7), "head.bias": torch.zeros(3), **more}
    with pytest.raises(SpecError, match="cannot be told"):
        inherited_state(state, state, classes=("a", "b", "c"), old_classes=("b", "a", "c"), name="v1")
