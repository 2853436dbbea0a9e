"""Images for networks of other packages: preprocessing, pooling, and what a version keeps of both."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from pydantic import ValidationError

from graceful import spec, tasks
from graceful.errors import DataError, SpecError
from graceful.learners import run
from graceful.learners.images import ImageLearner, options_of
from graceful.models import bundle, preprocessing, zoo
from graceful.models import weights as states
from graceful.spec import ImageFolderTask
from tests.support import image_checkpoint

CLASSES = ("blue", "green", "red")


def learner(checkpoint: Path, *, task: dict[str, Any] | None = None, **network: Any) -> ImageLearner:
    section = section_of(checkpoint, task=task, **network)
    assert section.network.kind == "transformers"
    return ImageLearner(section.network, options_of(section))


def section_of(checkpoint: Path, *, task: dict[str, Any] | None = None, **network: Any) -> ImageFolderTask:
    named = {"kind": "transformers", "checkpoint": str(checkpoint), **network}
    return ImageFolderTask.model_validate({"root": "images", "network": named, **(task or {})})


def noise(count: int = 2, side: int = 50) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in pixels]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: image_checkpoint.save(folder / kind, kind) for kind in image_checkpoint.CONFIGS}


@pytest.mark.parametrize("pooling", ["mean", "cls", "map"])
@pytest.mark.parametrize("kind", image_checkpoint.CONFIGS)
def test_every_model_gives_one_embedding_for_each_image(kind: str, pooling: str, checkpoints: dict[str, Path]) -> None:
    images = learner(checkpoints[kind], pooling=pooling)
    batch = images.collate(noise(), None)
    assert batch.shape == (2, 3, 32, 32)
    if pooling == "cls" and kind in ("swin", "resnet", "convnext"):
        with pytest.raises(SpecError, match=r"pooling: .*Model has no class token; write mean"):
            images.network(CLASSES)
        return
    network = images.network(CLASSES)
    outputs = run(images, network.eval(), batch)
    assert outputs.embedding.shape == (2, image_checkpoint.WIDTH)
    assert outputs.logits.shape == (2, 3)
    with torch.no_grad():
        model = network.body.model(pixel_values=batch)
    if pooling == "cls":
        assert torch.allclose(outputs.embedding, model.last_hidden_state[:, 0], atol=1e-6)
    elif pooling == "map":
        assert torch.allclose(outputs.embedding, model.pooler_output.flatten(1), atol=1e-6)
    elif kind == "deit":  # a class token and one for distillation stand before 16 patches
        assert torch.allclose(outputs.embedding, model.last_hidden_state[:, 2:].mean(1), atol=1e-6)
    run(images, network.train(), batch).logits.sum().backward()
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert all((parameter.grad is not None) == (name in trained) for name, parameter in network.named_parameters())


@pytest.mark.parametrize("kind", ["vit", "dinov2", "resnet"])
def test_a_model_takes_images_of_another_size_where_the_task_names_one(kind: str, checkpoints: dict[str, Path]) -> None:
    images = learner(checkpoints[kind], task={"size": 48})
    assert run(images, images.network(CLASSES).eval(), images.collate(noise(), None)).embedding.shape == (2, 16)


def test_a_section_has_the_projection_head_and_frozen_parts_that_it_names(checkpoints: dict[str, Path]) -> None:
    images = learner(checkpoints["resnet"], projection=6, head="cosine", normalise=True, freeze="body")
    network = images.network(CLASSES).train()
    before = {name: buffer.clone() for name, buffer in network.body.named_buffers()}
    outputs = run(images, network, images.collate(noise(), None))
    assert outputs.embedding.shape == (2, 6)
    assert torch.allclose(outputs.embedding.norm(dim=1), torch.ones(2))
    trained = {name.split(".")[0] for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {"projection", "head"}
    assert all(buffer.equal(before[name]) for name, buffer in network.body.named_buffers())
    half = learner(checkpoints["vit"], freeze="embeddings", layers=1).network(CLASSES)
    assert not any(parameter.requires_grad for parameter in half.body.model.embeddings.patch_embeddings.parameters())
    assert len(half.body.model.layers) == 1


def test_images_are_scaled_as_the_processor_of_transformers_does(checkpoints: dict[str, Path]) -> None:
    processor = pytest.importorskip("transformers").ViTImageProcessor
    own = {"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5] * 3}
    picture = noise(1, side=80)[0]
    wanted = torch.from_numpy(np.asarray(processor(**own)(picture)["pixel_values"][0]))
    numbers = preprocessing.of_transformers(own, where="x")
    assert numbers.stretch
    checkpoint = checkpoints["vit"]
    restored = learner(checkpoint).restored({**learner(checkpoint).assets(), "preprocessing.json": numbers.document()})
    assert torch.allclose(restored.collate([picture], None)[0], wanted, atol=0.05)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (image_checkpoint.PROCESSOR, {"size": 32, "crop": 0.8, "interpolation": "bicubic", "stretch": False}),
        ({"size": 224, "image_mean": 0.5}, {"size": 224, "crop": 1.0, "stretch": True, "mean": (0.5, 0.5, 0.5)}),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, {"size": 224, "crop": 0.875, "stretch": False}),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, {"size": 384, "crop": 1.0, "stretch": True}),
        ({"size": {"shortest_edge": 64}, "do_normalize": False}, {"deviation": (1.0, 1.0, 1.0), "stretch": False}),
    ],
)
def test_numbers_of_usual_processors(document: dict[str, Any], expected: dict[str, Any]) -> None:
    numbers = preprocessing.of_transformers(document, where="x")
    assert {name: getattr(numbers, name) for name in expected} == expected
    assert preprocessing.read(json.loads(json.dumps(numbers.document())), where="x") == numbers


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "p.json: has no size of images"),
        ({"size": {"height": 32, "width": 48}}, "images of 32 x 48 pixels, and networks get squares"),
        ({"size": "large"}, "size of images must be a number, got 'large'"),
        ({"size": 4096}, r"size of images must be whole, in \[1, 1024\], got 4096"),
        ({"size": 32, "image_std": [0.5, 0.5, 0]}, "deviations above 0"),
        ({"size": 32, "resample": 9}, "interpolation must be one of nearest, .*, got 9"),
        ({"size": 32, "rescale_offset": True}, "rescale_offset is not supported"),
    ],
)
def test_numbers_that_make_no_image_are_refused(document: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        preprocessing.of_transformers(document, where="p.json")


def test_a_version_has_its_own_numbers_and_running_statistics_and_needs_no_checkpoint(tmp_path: Path) -> None:
    """The new version has other numbers; the old one is fed as it was trained, from the same photos."""
    root = tmp_path / "images"
    for number, picture in enumerate(noise(60)):
        path = root / ("ant", "bee")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    old = image_checkpoint.save(tmp_path / "old")
    other = {**image_checkpoint.PROCESSOR, "size": {"height": 24, "width": 24}, "crop_size": None, "image_mean": 0.1}
    new = image_checkpoint.save(tmp_path / "new", "vit", processor={**other, "do_center_crop": False})
    old_spec, new_spec = (
        spec.parse({"model": "m", "name": name, "task": {**section_of(path).model_dump(), "root": str(root)}})
        for name, path in (("v1", old), ("v2", new))
    )
    task, items = tasks.build(old_spec.task), tasks.build(new_spec.task).samples("train").read(np.arange(4))
    network = task.network(task.classes).train()
    network.to(memory_format=torch.channels_last)  # tensors that are not contiguous
    run(task.learner, network, task.learner.collate(items, None))  # moves the running statistics
    assert any(bool((buffer != 0).any()) for name, buffer in network.named_buffers() if "running_mean" in name)
    bundle.save(tmp_path / "v1", network=network, spec=old_spec, classes=task.classes, task=task)
    expected = run(task.learner, network.eval(), task.learner.collate(items, None))
    shutil.rmtree(old)
    version = bundle.load(tmp_path / "v1", augment_like=new_spec.task)
    assert torch.allclose(version(items).logits, expected.logits, atol=1e-5)
    others = version([Image.fromarray(item.pixels) for item in items])
    assert not torch.allclose(others.logits, expected.logits, atol=1e-3)


def test_existing_specs_mean_the_small_network_and_keep_their_digests() -> None:
    section = {"model": "a", "name": "b", "task": {"kind": "image_folder", "root": "/r", "network": {"size": "m"}}}
    task = spec.parse(section, where="/x/s.yaml").task
    assert "kind" not in task.model_dump(mode="json")["network"]
    assert ImageFolderTask.model_validate(task.model_dump(mode="json")) == task
    plain = tasks.transform_digest(ImageFolderTask(root="r"))
    assert plain == "88fa2a6212132fd1ca2a774ac5691390c1df7c5b0344c2a7c5e09418db6ce37f"
    assert plain != tasks.transform_digest(section_of(Path("c"), task={"size": 64}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {"checkpoint": "/none"}}, "/none is not a folder"),
        ({"processor": None}, "has no preprocessor_config.json, which says how images were scaled"),
        ({"channels": 1}, "task.channels: must be 3, as the checkpoint reads, got 1"),
        ({"text": True}, "BertModel reads input_ids, no images alone"),
        ({"network": {"layers": 1}}, "layers: resnet has stages"),
        ({"network": {"freeze": "embeddings"}}, "ResNetModel has no embeddings to freeze"),
        ({"network": {"gradient_checkpointing": True}}, "ResNetModel cannot do that"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpoint = image_checkpoint.save(tmp_path / "checkpoint")
    if "processor" in change:
        (checkpoint / "preprocessor_config.json").unlink()
    if "text" in change:
        from tests.support import text_checkpoint

        text_checkpoint.save(checkpoint)
    channels = {"channels": change["channels"]} if "channels" in change else {}
    images = learner(checkpoint, task=channels, **change.get("network", {})) if "network" not in change else None
    if images is None:
        images = learner(**{"checkpoint": checkpoint, **change["network"]})
    with pytest.raises((DataError, SpecError), match=message):
        images.network(CLASSES)


def test_a_configuration_alone_makes_a_random_network_and_plain_numbers(tmp_path: Path) -> None:
    checkpoint = image_checkpoint.save(tmp_path / "checkpoint")
    (checkpoint / "preprocessor_config.json").unlink()
    (checkpoint / "model.safetensors").unlink()
    images = learner(checkpoint, weights="random")
    batch = images.collate([Image.new("RGB", (10, 10), "white")], None)
    assert batch.shape == (1, 3, 64, 64)
    assert batch.max() == batch.min() == 1.0
    assert run(images, images.network(CLASSES).eval(), batch).logits.shape == (1, 3)


MISMATCHED = """
from graceful.errors import SpecError
from graceful.models import transformers_body
from graceful.spec.networks import TransformersNetwork
try:
    section = TransformersNetwork(checkpoint="x", weights="random")
    transformers_body.build(section, {"model_type": "vit"}, place=id, check=id)
except SpecError as e:
    print(e)
"""


def test_a_torchvision_that_does_not_match_torch_is_told_with_its_remedy(tmp_path: Path) -> None:
    """It breaks transformers' imports as well. Such a wheel takes gigabytes, so its failure is imitated."""
    package, facts = tmp_path / "torchvision", tmp_path / "torchvision-0.28.0.dist-info"
    package.mkdir()
    facts.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", MISMATCHED]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path})
    assert "transformers cannot be imported (operator torchvision::nms does not exist)" in done.stdout
    assert "the torchvision build of the same torch or none" in done.stdout


@pytest.mark.parametrize(("kind", "model"), [("timm", "resnet10t"), ("torchvision", "shufflenet_v2_x0_5")])
def test_models_of_timm_and_torchvision_start_at_the_weights_of_a_folder(kind: str, model: str, tmp_path: Path) -> None:
    try:
        importlib.import_module(kind)
    except (ImportError, RuntimeError) as e:
        pytest.skip(f"{kind} is not installed, or its build does not match this torch ({e})")
    options = {"size": 64, "root": "images"}
    random = ImageFolderTask.model_validate({**options, "network": {"kind": kind, "model": model}})
    assert random.network.kind != "small"
    torch.manual_seed(0)
    network = ImageLearner(random.network, options_of(random)).network(CLASSES)
    state = {name.removeprefix("body.0."): value for name, value in network.state_dict().items() if "body" in name}
    safetensors.torch.save_file({**state, "fc.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"pretrained_cfg": {"input_size": [3, 96, 96], "mean": [0, 0, 0]}})
    )
    named = {"kind": kind, "model": model, "checkpoint": str(tmp_path), "weights": "pretrained", "head": "cosine"}
    section = ImageFolderTask.model_validate({"root": "images", "network": named})
    assert section.network.kind != "small"
    images = ImageLearner(section.network, options_of(section))
    batch = images.collate(noise(), None)
    assert batch.shape == (2, 3, 96, 96)
    torch.manual_seed(1)
    filled = images.network(CLASSES)
    assert filled.body.eval()(batch).equal(network.body.eval()(batch))
    restored = images.restored(json.loads(json.dumps(images.assets())))
    shutil.rmtree(tmp_path)
    assert restored.network(CLASSES).state_dict().keys() == filled.state_dict().keys()
    assert restored.collate(noise(), None).equal(batch)


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_weights_of_another_package_must_be_there(kind: str, tmp_path: Path) -> None:
    network = {"kind": kind, "model": "any", "weights": "pretrained"}
    with pytest.raises(ValidationError, match="weights: pretrained needs a checkpoint"):
        ImageFolderTask.model_validate({"root": "images", "network": network})
    model = torch.nn.Linear(2, 2)
    with pytest.raises(DataError, match=r"model\.safetensors is missing"):
        zoo._fill(model, tmp_path / "model.safetensors")
    safetensors.torch.save_file({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"tensor weight must have shape \[2, 2\], got \[3, 2\]"):
        zoo._fill(model, tmp_path / "model.safetensors")


def test_adapters_are_kept_without_the_weights_of_the_checkpoint(checkpoints: dict[str, Path]) -> None:
    images = learner(checkpoints["vit"], peft={"kind": "lora", "r": 2, "targets": ["q_proj", "v_proj"]}, pooling="cls")
    network = images.network(CLASSES)
    kept = states.own_state(network)
    assert any("lora_A" in name for name in kept)
    assert not any("mlp" in name for name in kept)
    restored = images.restored(json.loads(json.dumps(images.assets())))
    again = restored.network(CLASSES)
    states.load_own(again, kept)
    batch = images.collate(noise(), None)
    assert run(restored, again.eval(), batch).logits.equal(run(images, network.eval(), batch).logits)
