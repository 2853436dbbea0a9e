"""Learning rates by depth: which parameters get which."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from graceful import spec
from graceful.errors import SpecError
from graceful.models.base import Headed
from graceful.models.heads import CosineHead
from graceful.training.plain import TorchEngine, optimizer_parameters
from graceful.training.rates import described, parameter_groups


class Layered(nn.Module):
    """Embeddings, three layers and a norm above them, as transformers have."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(50, 4)
        self.encoder = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(3))
        self.norm = nn.LayerNorm(4)


def network() -> nn.Module:
    torch.manual_seed(0)
    return Headed(Layered(), CosineHead(4, 2, scale=1.0))


def factors(built: nn.Module, **options: Any) -> dict[str, tuple[float, float]]:
    groups = parameter_groups(spec.AdamW(weight_decay=0.1, **options), built)
    of = {id(parameter): (group.factor, group.weight_decay) for group in groups for parameter in group.parameters}
    return {name: of[id(parameter)] for name, parameter in built.named_parameters()}


def test_layers_learn_slower_the_deeper_they_are_and_the_head_faster() -> None:
    found = factors(network(), layer_decay=0.5, head_factor=10.0, decay_norms=False)
    assert found["head.weight"] == (10.0, 0.1)
    assert found["body.norm.weight"] == (0.5, 0.0)
    assert found["body.encoder.2.0.weight"] == (0.5, 0.1)
    assert found["body.encoder.0.0.weight"] == (0.125, 0.1)
    assert found["body.encoder.0.0.bias"] == (0.125, 0.0)
    assert found["body.embeddings.weight"] == (0.0625, 0.1)
    assert (
        described(spec.AdamW(lr=0.01, layer_decay=0.5, head_factor=10.0), network())
        == "head 0.1, body 0.005 to 0.000625"
    )


def test_without_rates_there_is_one_group_and_nothing_is_said() -> None:
    built = network()
    groups = parameter_groups(spec.AdamW(), built)
    assert optimizer_parameters(spec.AdamW(), groups) == list(built.parameters())
    assert described(spec.AdamW(), built) is None


def test_each_group_takes_steps_of_its_own_size() -> None:
    built = Headed(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Linear(3, 2))
    before = {name: parameter.detach().clone() for name, parameter in built.named_parameters()}
    section = spec.Sgd(momentum=0.0, weight_decay=0.0, layer_decay=0.5, head_factor=3.0)
    train = spec.Train(optimizer=section, engine=spec.TorchEngine(), clip=0.0, batch_size=2)
    engine = TorchEngine(train, built, device=torch.device("cpu"))
    engine.backward(engine.forward(torch.randn(2, 3)).logits.square().sum())
    gradients = {name: parameter.grad.clone() for name, parameter in built.named_parameters()}  # type: ignore[union-attr]
    engine.step(0.1)
    for name, factor in (("head.weight", 3.0), ("body.1.weight", 0.5), ("body.0.weight", 0.25)):
        moved = before[name] - built.get_parameter(name)
        assert torch.allclose(moved, 0.1 * factor * gradients[name], atol=1e-6)


def test_modules_are_in_the_mode_of_each_forward_pass() -> None:
    built = Headed(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), nn.Linear(3, 2))
    train = spec.Train(optimizer=spec.Sgd(), engine=spec.TorchEngine(), batch_size=2)
    engine = TorchEngine(train, built, device=torch.device("cpu"))
    for mode in (False, True, True, False, True):
        engine.forward(torch.randn(2, 3), train=mode)
        assert {module.training for module in built.modules()} == {mode}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"layer_decay": 0.9}, "no list of layers"), ({"head_factor": 2.0}, "no trained submodule `head`")],
)
def test_rates_that_a_network_has_no_parts_for_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parameter_groups(spec.Sgd(**options), nn.Linear(2, 2))
