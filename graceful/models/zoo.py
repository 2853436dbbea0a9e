"""Networks of timm and torchvision, for Python tasks and for specs that name one. Both packages load on first use.

Neither is needed by graceful. Their wheels often do not match the installed torch, and then fail while importing with
RuntimeError rather than ImportError; both become one line that says what to install.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_weights
from torch import Tensor, nn

from graceful import storage
from graceful.errors import DataError, SpecError
from graceful.models import weights as states
from graceful.models.heads import CosineHead, LinearHead

_INSTALL = {
    "timm": "pip install 'graceful-ai[zoo]' with the torchvision build of the same torch",
    "torchvision": "install the torchvision build of the same torch (CPU or CUDA)",
}


class ZooNetwork(nn.Module):
    """A body that ends in pooled features, and a fresh head on top.

    Batch normalisation inside the body is kept: predecessors run in eval mode, but its running statistics depend on
    the micro-batch of each worker.

    Args:
        body: Input [B, ...] -> features [B, d].
        embedding_size: d.
        classes: C.
        cosine_scale: Scale of a cosine head; None: a linear head.
    """

    def __init__(self, body: nn.Module, *, embedding_size: int, classes: int, cosine_scale: float | None) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.body = body
        self.head: nn.Module
        if cosine_scale is None:
            self.head = LinearHead(embedding_size, classes)
        else:
            self.head = CosineHead(embedding_size, classes, scale=cosine_scale)

    def embed(self, x: Tensor) -> Tensor:
        """Return the embeddings [B, d] of an input [B, ...], not normalised."""
        return torch.flatten(self.body(x), 1)

    def classify(self, embedding: Tensor) -> Tensor:
        """Return the logits [B, C] of embeddings [B, d]."""
        logits: Tensor = self.head(embedding)
        return logits


def timm_network(
    name: str, *, classes: int, pretrained: bool = False, cosine_scale: float | None = None, **options: Any
) -> ZooNetwork:
    """Return a timm model without its classifier.

    Args:
        name: As `timm.create_model` takes it.
        classes: C.
        pretrained: Download weights. Predecessors are rebuilt through the task, so leave it off where no network is.
        cosine_scale: Scale of a cosine head; None: a linear head.
        options: Further keywords of `timm.create_model`.

    Raises:
        SpecError: timm cannot be imported, or has no such model.
    """
    body: Any = _timm(name, pretrained=pretrained, **options)
    size = int(getattr(body, "head_hidden_size", None) or body.num_features)
    return ZooNetwork(body, embedding_size=size, classes=classes, cosine_scale=cosine_scale)


def torchvision_network(
    name: str, *, classes: int, weights: str | None = None, cosine_scale: float | None = None, **options: Any
) -> ZooNetwork:
    """Return a torchvision classification model whose last linear layer is taken off.

    Args:
        name: As `torchvision.models.get_model` takes it.
        classes: C.
        weights: Name of pretrained weights to download; None: random.
        cosine_scale: Scale of a cosine head; None: a linear head.
        options: Further keywords of the model.

    Raises:
        SpecError: torchvision cannot be imported, has no such model, or the model does not end in a linear layer.
    """
    body = _torchvision(name, weights=weights, **options)
    size = _behead(body, name)
    return ZooNetwork(body, embedding_size=size, classes=classes, cosine_scale=cosine_scale)


def body(kind: str, name: str, *, channels: int, weights: Path | None) -> nn.Module:
    """Return a model of timm or torchvision that ends in features, [B, d] or [B, d, 1, 1].

    Args:
        kind: timm or torchvision.
        name: The name of the model, as the package has it.
        channels: The channels of the images.
        weights: Folder of model.safetensors, whose classifier is left out; None: random weights.

    Raises:
        SpecError: The package cannot be imported, or has no such model.
        DataError: The weights are missing, damaged, or of another model.
    """
    if kind == "timm":
        model = _timm(name, pretrained=False, in_chans=channels)
    elif channels != 3:
        raise SpecError(f"task.channels: models of torchvision read 3, got {channels}")
    else:
        model = _torchvision(name, weights=None)
        _behead(model, name)
    if weights is not None:
        _fill(model, weights / "model.safetensors")
    return nn.Sequential(model, nn.Flatten(1))


def _timm(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
    timm = _package("timm")
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except (RuntimeError, TypeError, ValueError) as e:
        raise SpecError(f"timm model {name!r}: {_one_line(e)}; see timm.list_models()") from e
    return model


def _torchvision(name: str, *, weights: str | None, **options: Any) -> nn.Module:
    models = _package("torchvision").models
    try:
        model: nn.Module = models.get_model(name, weights=weights, **options)
    except (KeyError, RuntimeError, TypeError, ValueError) as e:
        raise SpecError(f"torchvision model {name!r}: {_one_line(e)}; see torchvision.models.list_models()") from e
    return model


def _fill(model: nn.Module, path: Path) -> None:
    """Load the tensors that the model has; those of a classifier may be left over.

    Raises:
        DataError: The file is missing or damaged, or lacks a tensor.
    """
    if not path.is_file():
        raise DataError(f"task.network.checkpoint: {path} is missing; save the weights there as safetensors")
    try:
        state = parse_weights(storage.read_bytes(path))
    except (SafetensorError, ValueError) as e:
        raise DataError(f"{path}: not a safetensors file ({_one_line(e)}); save it again") from e
    wanted = model.state_dict()
    problem = states.difference(wanted, {name: tensor for name, tensor in state.items() if name in wanted})
    if problem is not None:
        raise DataError(f"{path}: {problem}; give the weights of task.network.model")
    model.load_state_dict({name: state[name] for name in wanted})


def _behead(body: nn.Module, name: str) -> int:
    """Replace the classifier's last linear layer by the identity; returns its input size."""
    for attribute in ("fc", "classifier", "heads", "head"):
        part = getattr(body, attribute, None)
        if isinstance(part, nn.Linear):
            setattr(body, attribute, nn.Identity())
            return part.in_features
        if isinstance(part, nn.Sequential) and isinstance(part[-1], nn.Linear):
            size = part[-1].in_features
            part[-1] = nn.Identity()
            return size
    raise SpecError(f"torchvision model {name!r}: does not end in a linear layer; wrap it in a network of your own")


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as e:
        raise SpecError(
            f"{name} cannot be imported ({_one_line(e)}); {_INSTALL[name]}, or use task.network.size"
        ) from e


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
