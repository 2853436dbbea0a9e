"""What could not be saved, loaded or measured after training is refused before it, and leaves the run's name free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from graceful import spec, tasks
from graceful.errors import DataError, GracefulError, SpecError, StorageError, TrainingError
from graceful.models import bundle
from graceful.models.base import Outputs
from graceful.programs.fitting.finishing import Trained
from graceful.training import job
from graceful.training.batches import require_outputs
from tests.support import odd_networks
from tests.support.runs import train


def parse(options: dict[str, Any], **recipe: Any) -> spec.RefreshSpec:
    task = {"kind": "python", "file": odd_networks.__file__, "options": options}
    recipe = {"epochs": 1, "batch_size": 24, "engine": {"kind": "torch"}, "num_workers": 0, **recipe}
    return spec.parse({"model": "odd", "name": "v1", "task": task, "train": recipe})


def trained(home: Path, options: dict[str, Any], **recipe: Any) -> Trained:
    return train(parse(options, **recipe), run_dir=home / "runs" / "odd-v1", home=home)


def refusal(kind: type[GracefulError], home: Path, options: dict[str, Any], **recipe: Any) -> str:
    document = parse(options, **recipe)
    with pytest.raises(kind) as raised:
        train(document, run_dir=home / "runs" / "odd-v1", home=home)
    assert type(raised.value) is kind
    assert "\n" not in raised.value.message
    assert not (home / "runs" / "odd-v1" / "spec.json").exists(), "the run's name must stay free"
    return raised.value.message


@pytest.mark.parametrize(
    "network", ["batch_norm", "weight_norm", "parametrised", "spectral", "tied", "hooked", "mask", "unused"]
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_networks_that_are_fine_are_trained_saved_and_loaded(tmp_path: Path, network: str) -> None:
    done = trained(tmp_path, {"network": network})
    version = bundle.load(done.folder, augment_like=parse({"network": network}).task)
    assert version.embedding_size == odd_networks.WIDTH
    task = odd_networks.task(network)
    items = task.samples("test").read([0, 1, 2])
    alone = torch.cat([version(items[row : row + 1]).logits for row in range(3)])
    torch.testing.assert_close(version(items).logits, alone)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ("lazy", "layer body.0 of the network (LazyLinear) has no shape until data pass through it"),
        ("lazy_norm", "layer body.1 of the network (LazyBatchNorm1d) has no shape"),
        ("hidden", "saved and loaded again, the network gives other outputs (embedding differs by"),
        ("not_persistent", "it uses what its state_dict does not hold"),
        ("learnt_in_python", "saved and loaded again, the network gives other outputs"),
        ("grows", "network() does not make again the network that was trained: tensor scale is not part of"),
        ("counts", "seen of the network changes while it answers in eval mode"),
        ("random", "in eval mode the network gives other outputs for the same samples each time"),
        ("extra_state", "_extra_state in the state of the network is a dict, which no version can hold"),
        ("sparse", "graph in the state of the network is a tensor of type sparse_coo"),
        ("complex", "filter in the state of the network is a tensor of type complex64"),
        (
            "double",
            "loaded and frozen, fails: v1: its network or transform does not take these samples (RuntimeError: mat1",
        ),
        ("batch_mean", "in eval mode the network gives other outputs for a sample alone than beside another"),
        ("batch_statistics", "the network fails on one sample, [1, 6] float32: Expected more than 1 value per channel"),
        ("wrong_size", "embedding_size of the network is 64, embed() makes 8"),
        ("random_shape", "network() does not make again the network that was trained: tensor body.0.weight must have"),
        ("frozen", "has no parameter that requires a gradient"),
        (
            "embeds_tuple",
            "EmbedsTuple.embed(), which is Sequential.forward(), returned a tuple of Tensor, Tensor; must",
        ),
        ("classifies_to_dict", "classify(), which is Linear.forward(), returned a dict with the keys 'logits', 'loss'"),
        ("tuple_while_training", "returned a tuple of Tensor, Tensor; must return one tensor [B, classes]"),
        ("recurrent", "Headed.embed(), which is Recurrent.forward(), returned a tuple of Tensor, tuple; must"),
        ("asserts", "the network fails on one sample, [1, 6] float32: six columns"),
        ("divides", "the network fails on one sample, [1, 6] float32: division by zero"),
    ],
)
def test_networks_that_no_version_survives_are_refused_before_training(
    tmp_path: Path, network: str, words: str
) -> None:
    assert words in refusal(SpecError, tmp_path, {"network": network})


def test_outputs_that_are_no_tensors_are_named() -> None:
    outputs = Outputs(torch.zeros(1, 4), {"logits": torch.zeros(1, 3)})  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="the network makes a dict as logits of one sample; must be one tensor"):
        require_outputs(outputs, rows=1, classes=3, given="one sample")


def test_batch_normalisation_with_one_sample_a_slice_is_refused_with_the_remedy(tmp_path: Path) -> None:
    message = refusal(SpecError, tmp_path, {"network": "batch_norm"}, batch_size=24, accumulation=24)
    assert message.startswith("train.batch_size: each worker sees one sample at a time")
    assert message.endswith("batch normalisation (body.1) needs two, raise batch_size")


def test_parameters_that_no_loss_reaches_are_named_where_workers_would_wait_for_them(tmp_path: Path) -> None:
    message = refusal(SpecError, tmp_path, {"network": "unused"}, num_workers=2)
    assert "the loss does not reach spare.weight, spare.bias of the network" in message
    assert message.endswith("or write train.engine.find_unused_parameters: true")


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"batch_size": 999}, "train.batch_size must be at most the 240 training samples, got 999"),
        ({"precision": "fp16"}, "train.precision: fp16 needs a GPU"),
        ({"use_gpu": True}, "train.use_gpu: true needs a GPU, and torch sees none here"),
    ],
)
def test_a_spec_that_does_not_fit_leaves_the_name_free_for_the_corrected_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert words in refusal(SpecError, tmp_path, {}, **recipe)
    assert trained(tmp_path, {}).result.steps == 10


def test_a_version_that_cannot_be_saved_after_all_is_not_trained_again(tmp_path: Path) -> None:
    """No rehearsal sees what only the fifth step does; the trained weights stay, and the same command only saves."""
    document, run_dir, rows = parse({"network": "grows_late"}), tmp_path / "runs" / "odd-v1", []
    for _ in range(2):
        with pytest.raises(
            SpecError, match=r"network\(\) does not make again the network that was trained: tensor late"
        ):
            train(document, run_dir=run_dir, home=tmp_path, progress=rows.append)
    assert [row["event"] for row in rows if "event" in row].count("step") == 10
    assert (run_dir / "model.safetensors").exists()


def test_weights_that_a_full_disk_kept_from_being_written_come_from_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document, run_dir, rows, real = parse({}), tmp_path / "runs" / "odd-v1", [], job.write_weights

    def full(path: Path, state: Any) -> None:
        if path.parent == run_dir:
            raise StorageError(f"{path}: cannot write, the disk is full; free some space")
        real(path, state)

    monkeypatch.setattr("graceful.training.loop.write_weights", full)
    with pytest.raises(StorageError, match="disk is full"):
        train(document, run_dir=run_dir, home=tmp_path, progress=rows.append)
    monkeypatch.setattr("graceful.training.loop.write_weights", real)
    assert train(document, run_dir=run_dir, home=tmp_path, progress=rows.append).result.resumed_from == 10
    assert [row["event"] for row in rows if "event" in row].count("step") == 10


def test_a_network_that_fails_while_it_trains_is_no_bug_of_ours(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 4: the network fails on samples 'train/.*IndexError: list index"):
        trained(tmp_path, {"network": "tires"})


def test_a_predecessor_that_cannot_answer_is_named_before_training(tmp_path: Path) -> None:
    old = parse({}).model_copy(update={"task": spec.DigitsTask()})
    digits = tasks.build(old.task)
    network = digits.network(digits.classes)
    bundle.save(tmp_path / "v0", network=network, spec=old, classes=digits.classes)
    document = parse({}).model_copy(update={"name": "v2"})
    with pytest.raises(DataError, match=r"v1 cannot answer sample 'test/000' of test, on which every version is"):
        train(document, run_dir=tmp_path / "run", home=tmp_path, ancestors=[tmp_path / "v0"])
    assert not (tmp_path / "run" / "spec.json").exists()


@pytest.mark.parametrize("split", ["train", "validation", "test", "query"])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("ragged", "task: samples '{}' and '{}' of {} do not fit together: "),
        ("not_a_number", "task: sample '{1}' of {2} holds NaN or infinity after transform()"),
        ("infinite", "task: sample '{1}' of {2} holds NaN or infinity after transform()"),
        ("short_groups", " groups; give one of each for each sample"),
        ("short_labels", " labels, "),
    ],
)
def test_items_that_cannot_be_used_are_named_before_training(
    tmp_path: Path, fault: str, words: str, split: str
) -> None:
    stored = "test" if split == "query" else split
    message = refusal(DataError, tmp_path, {"fault": fault, "split": split})
    assert words.format(f"{stored}/040", f"{stored}/041", split) in message


def test_a_read_that_gives_fewer_items_is_refused_before_training(tmp_path: Path) -> None:
    assert "read() gave 7 items for 8 positions" in refusal(DataError, tmp_path, {"fault": "short_read"})


def test_an_empty_test_split_is_refused_before_training(tmp_path: Path) -> None:
    assert "the test split is empty" in refusal(DataError, tmp_path, {"fault": "empty"})


def test_an_empty_query_split_is_refused_before_training(tmp_path: Path) -> None:
    assert "the query split is empty" in refusal(DataError, tmp_path, {"fault": "empty", "split": "query"})
