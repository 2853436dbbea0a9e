"""Adapters beside a checkpoint: what is trained, what a version keeps, and which base it takes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from graceful.errors import DataError, IntegrityError, SpecError
from graceful.learners import run
from graceful.models import adapters, bases, bundle
from graceful.models.weights import own_state
from graceful.spec import RefreshSpec, parse
from graceful.spec.adapters import Lora
from graceful.storage import sha256_file
from graceful.tasks import build
from graceful.training.batches import gather
from graceful.training.driver import train
from graceful.training.job import TrainingJob
from tests.support import text_checkpoint
from tests.unit.test_tasks_table import parquet, rows
from tests.unit.test_training_loop import StoppedError, losses, stop_at

LORA = {"kind": "lora", "r": 2, "targets": ["query", "value"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    text_checkpoint.save(folder / "base", hidden=64)
    parquet(folder / "rows.parquet", rows(120))
    return folder


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))


def spec(checkpoint: Path, **network: Any) -> RefreshSpec:
    columns = {"text": "text", "label": "label", "id": "id"}
    network = {"kind": "transformers", "checkpoint": str(checkpoint), "max_length": 16, "peft": LORA, **network}
    files = str(checkpoint.parent / "rows.parquet")
    return parse(
        {"model": "m", "name": "v1", "task": {"kind": "table", "files": files, "columns": columns, "network": network}}
    )


def trained(task: Any) -> torch.nn.Module:
    """Return a network whose own tensors have moved."""
    torch.manual_seed(0)
    network: torch.nn.Module = task.network(task.classes)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network


def saved(folder: Path, checkpoint: Path) -> tuple[Any, torch.nn.Module]:
    section = spec(checkpoint)
    task = build(section.task)
    network = trained(task)
    bundle.save(folder, network=network, spec=section, classes=task.classes, task=task)
    return task, network


def test_adapters_alone_are_trained_and_change_nothing_at_first(folder: Path) -> None:
    task, plain = build(spec(folder / "base").task), build(spec(folder / "base", peft=None).task)
    torch.manual_seed(0)
    adapted = task.network(task.classes).eval()
    names = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[-3] for name in names if "body." in name} == {"lora_A", "lora_B"}
    assert {name for name in names if "body." not in name} == {"head.weight", "head.bias"}
    assert set(own_state(adapted)) == names
    batch = task.learner.collate(["small red ball"], None)
    expected = run(plain.learner, plain.network(plain.classes).eval(), batch)
    assert torch.equal(run(task.learner, adapted, batch).embedding, expected.embedding)
    everywhere = build(spec(folder / "base", peft={"kind": "lora"}).task)
    assert len(own_state(everywhere.network(task.classes))) == 2 * 2 * 6 + 2  # two layers of six linear ones


@pytest.mark.parametrize(
    ("model", "section", "adapted"),
    [
        ("GPT2", Lora(r=2), {"c_attn", "c_proj", "c_fc"}),
        ("GPT2", Lora(r=2, targets=("c_attn",)), {"c_attn"}),
        ("ResNet", Lora(r=2, targets=("convolution",)), {"convolution"}),
    ],
)
def test_layers_of_other_kinds_are_adapted_too(model: str, section: Lora, adapted: set[str]) -> None:
    import transformers

    small = {
        "GPT2": {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 20},
        "ResNet": {"depths": [1], "hidden_sizes": [8]},
    }
    body = getattr(transformers, f"{model}Model")(getattr(transformers, f"{model}Config")(**small[model]))
    adapters.adapt(body, section)
    trained = {name.split(".")[-4] for name, parameter in body.named_parameters() if parameter.requires_grad}
    assert trained == adapted


def test_a_version_keeps_adapters_and_names_its_base(folder: Path, tmp_path: Path) -> None:
    _, network = saved(tmp_path / "v1", folder / "base")
    whole = (folder / "base" / "model.safetensors").stat().st_size
    assert (tmp_path / "v1" / "model.safetensors").stat().st_size < whole / 10
    assert set(load_file(tmp_path / "v1" / "model.safetensors")) == set(own_state(network))
    version = bundle.load(tmp_path / "v1")
    learner = version.learner
    outputs = run(learner, network.eval(), learner.collate(["small red ball"], None))
    assert torch.equal(version(["small red ball"]).logits, outputs.logits.detach())


def test_the_weights_of_the_base_are_mapped_and_not_copied(folder: Path) -> None:
    network = build(spec(folder / "base").task).network(("a", "b"))
    maps = Path("/proc/self/maps").read_text()
    assert str((folder / "base" / "model.safetensors").resolve()) in maps
    del network


def test_another_base_is_refused_and_a_copy_is_found(folder: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(folder / "base", tmp_path / "data" / "base"))
    shutil.copy(folder / "rows.parquet", base.parent)
    saved(tmp_path / "v1", base)
    text_checkpoint.save(base, hidden=64, seed=1)
    with pytest.raises(
        IntegrityError, match=r"base/model.safetensors: is not the base .* SHA-256 must be \w{12}\.\.\."
    ):
        bundle.load(tmp_path / "v1")
    shutil.rmtree(base)
    with pytest.raises(DataError, match=r"base is not a folder; the version needs its weights .* put its weights into"):
        bundle.load(tmp_path / "v1")
    document = json.loads((tmp_path / "v1" / "assets" / bases.FILE).read_text())
    recorded = bases.of(spec(base).task.network, document)  # type: ignore[union-attr, arg-type]
    with pytest.raises(IntegrityError, match="SHA-256 must be"):
        bases.put(recorded, text_checkpoint.save(tmp_path / "other", hidden=64, seed=1))
    bases.put(recorded, folder / "base")
    assert bundle.load(tmp_path / "v1")(["small red ball"]).logits.isfinite().all()


def test_workers_with_another_base_are_refused_and_a_run_belongs_to_its_base(folder: Path, tmp_path: Path) -> None:
    section = spec(folder / "base")
    digest = bases.digest_of(section.task)
    job = TrainingJob(spec=section, run_dir=tmp_path / "run", base=digest)
    assert job.identity()["base"] == digest == sha256_file(folder / "base" / "model.safetensors")
    assert "base" not in replace(job, base=None).identity()
    with pytest.raises(IntegrityError, match="give all machines the same checkpoint"):
        gather(replace(job, base="0" * 64), build(section.task), device=torch.device("cpu"))


def test_a_stopped_run_goes_on_with_the_same_losses_and_exports_what_was_trained(folder: Path, tmp_path: Path) -> None:
    document = spec(folder / "base", peft={**LORA, "dropout": 0.2}).dump()
    recipe = {"epochs": 2, "batch_size": 16, "num_workers": 0, "engine": {"kind": "torch"}, "checkpoint_every": 2}
    rates = {"kind": "adamw", "lr": 0.01, "layer_decay": 0.9, "head_factor": 3.0, "decay_norms": False}
    augment = {"kind": "word_dropout", "p": 0.2}
    section = parse(
        {**document, "train": {**recipe, "optimizer": rates}, "task": {**document["task"], "augment": augment}}
    )
    jobs = [TrainingJob(spec=section, run_dir=tmp_path / name) for name in ("whole", "parts")]
    rows: list[Mapping[str, object]] = []
    result = train(jobs[0], progress=rows.append)
    assert rows[0]["learning_rates"] == "head 0.03, body 0.009 to 0.0081"
    with pytest.raises(StoppedError):
        train(jobs[1], progress=stop_at(5))
    assert train(jobs[1]).resumed_from == 4
    assert losses(jobs[1].run_dir) == losses(jobs[0].run_dir)
    kept = load_file(result.weights)
    assert {name.partition(".")[0] for name in kept} == {"body", "head"}
    assert all("lora_" in name for name in kept if name.startswith("body"))


def test_the_head_of_a_version_needs_no_base(folder: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(folder / "base", tmp_path / "data" / "base"))
    shutil.copy(folder / "rows.parquet", base.parent)
    _, network = saved(tmp_path / "v1", base)
    shutil.rmtree(base)
    (tmp_path / "v1" / "model.safetensors").unlink()
    from graceful.chain import Completeness

    version = bundle.load(tmp_path / "v1", at_least=Completeness.HEAD)
    assert torch.equal(version.network.head.weight, network.head.weight)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"peft": {**LORA, "targets": ["q_proj"]}}, "no layer q_proj; its linear layers are dense, key, query, value"),
        ({"weights": "random"}, "peft needs the weights of the checkpoint"),
        ({"freeze": "body"}, "leave out freeze: body"),
        ({"peft": {**LORA, "r": 0}}, "peft.r"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(network: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(SpecError, match=message):
        build(spec(folder / "base", **network).task).network(("a", "b"))
