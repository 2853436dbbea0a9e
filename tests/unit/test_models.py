"""Networks: shapes for every input size, seeds, heads, and zoo packages that cannot be imported."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from graceful import models, spec
from graceful.errors import SpecError
from graceful.models import zoo
from graceful.models.heads import CosineHead


@pytest.mark.parametrize("size", ["xs", "s2", "m"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 64, 48), (3, 224, 224), (1, 1, 1)])
def test_any_image_size_gives_embedding_and_logits(size: str, shape: tuple[int, int, int]) -> None:
    section = spec.Network.model_validate({"size": size, "embedding": 16})
    network = models.build(section, classes=5, input_shape=shape)
    assert isinstance(network, models.Network)
    outputs = models.Forward(network)(torch.rand(2, *shape))
    assert outputs.embedding.shape == (2, 16)
    assert outputs.logits.shape == (2, 5)


def test_embedding_layer_is_bounded_at_high_resolution() -> None:
    network = models.build(spec.Network(size="m"), classes=10, input_shape=(3, 1024, 1024))
    assert network.projection.in_features <= 48 * 8 * 8


def test_channels_follow_the_recipe() -> None:
    network = models.build(spec.Network(size="s2"), classes=3, input_shape=(1, 28, 28))
    convolutions = [layer for layer in network.features if isinstance(layer, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size[0], c.stride[0]) for c in convolutions] == [(12, 5, 2), (24, 3, 2)]


@pytest.mark.parametrize(("head", "signed"), [("linear", False), ("cosine", True)])
def test_embeddings_are_signed_for_cosine_heads_only(head: str, signed: bool) -> None:
    section = spec.Network.model_validate({"head": head})
    embedding = models.build(section, classes=3, input_shape=(1, 8, 8)).embed(torch.rand(4, 1, 8, 8))
    assert bool((embedding < 0).any()) is signed


def test_weights_follow_from_the_seed() -> None:
    def built(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        network = models.build(spec.Network(head="cosine"), classes=4, input_shape=(1, 8, 8))
        return nn.utils.parameters_to_vector(network.parameters())

    assert torch.equal(built(3), built(3))
    assert not torch.equal(built(3), built(4))


def test_a_sample_alone_equals_the_sample_in_a_batch_and_training_mode_changes_nothing() -> None:
    network = models.build(spec.Network(), classes=4, input_shape=(1, 8, 8))
    x = torch.rand(6, 1, 8, 8)
    torch.testing.assert_close(network(x)[:1], network(x[:1]))
    assert torch.equal(network.train()(x), network.eval()(x))
    assert not list(network.buffers())


@pytest.mark.parametrize("shape", [(64,), (8, 8), (0, 8, 8), (1, 1, 8, 8)])
def test_inputs_that_are_no_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match=r"channels, height, width"):
        models.build(spec.Network(), classes=2, input_shape=shape)


def test_a_network_without_classes_is_refused() -> None:
    with pytest.raises(SpecError, match="at least 1 class"):
        models.build(spec.Network(), classes=0, input_shape=(1, 8, 8))


def test_cosine_logits_ignore_the_length_of_both_sides() -> None:
    head = CosineHead(3, 2, scale=10.0)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[2.0, 0.0, 0.0], [0.0, 5.0, 0.0]]))
    logits = head(torch.tensor([[3.0, 4.0, 0.0], [0.3, 0.4, 0.0], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(logits, torch.tensor([[6.0, 8.0], [6.0, 8.0], [0.0, 0.0]]))


def _fake_timm() -> types.ModuleType:
    module = types.ModuleType("timm")

    def create_model(name: str, *, pretrained: bool, num_classes: int, **options: object) -> nn.Module:
        if name != "tiny":
            raise RuntimeError(f"Unknown model ({name})")
        assert num_classes == 0
        body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 7, 1))
        body.num_features = 7  # type: ignore[assignment]
        return body

    module.create_model = create_model  # type: ignore[attr-defined]
    return module


def test_timm_model_gets_embed_and_classify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", _fake_timm())
    network = zoo.timm_network("tiny", classes=4, cosine_scale=16.0)
    embedding = network.embed(torch.rand(2, 3, 5, 5))
    assert embedding.shape == (2, network.embedding_size) == (2, 7)
    assert network.classify(embedding).shape == (2, 4)
    with pytest.raises(SpecError, match=r"timm model 'huge': Unknown model"):
        zoo.timm_network("huge", classes=4)


def _fake_torchvision(body: nn.Module) -> types.ModuleType:
    module = types.ModuleType("torchvision")
    module.models = types.SimpleNamespace(get_model=lambda name, weights=None: body)  # type: ignore[attr-defined]
    return module


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1))


class _Sequential(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(6, 1000))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(x.flatten(1))


@pytest.mark.parametrize("body", [_Residual, _Sequential])
def test_torchvision_model_loses_its_classifier(monkeypatch: pytest.MonkeyPatch, body: type[nn.Module]) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", _fake_torchvision(body()))
    network = zoo.torchvision_network("any", classes=4)
    x = torch.rand(2, 6, 1, 1)
    torch.testing.assert_close(network.embed(x), x.flatten(1))
    assert network.classify(network.embed(x)).shape == (2, 4)


def test_torchvision_model_without_a_linear_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", _fake_torchvision(nn.ReLU()))
    with pytest.raises(SpecError, match="does not end in a linear layer"):
        zoo.torchvision_network("any", classes=4)


@pytest.mark.parametrize("error", [ImportError("No module"), RuntimeError("operator torchvision::nms\ndoes not exist")])
@pytest.mark.parametrize("name", ["timm", "torchvision"])
def test_a_zoo_that_fails_while_importing_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    class Broken:
        def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
            if fullname == name:
                raise error

    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    build = zoo.timm_network if name == "timm" else zoo.torchvision_network
    with pytest.raises(SpecError, match=rf"^{name} cannot be imported .*torchvision build of the same torch") as caught:
        build("resnet18", classes=2)
    assert "\n" not in str(caught.value)
