"""Weights between two versions: the old one's in the shape of the new one, and a share of each. Drivers and workers.

Tensors are matched by name. Those of the head with one row per class are matched row by row, by the class's name: rows
of classes that the old version does not know are the new version's own, rows of classes that are gone are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from graceful.errors import SpecError
from graceful.learners.batch import Batch
from graceful.models.base import Forward, Outputs

State = Mapping[str, Tensor]
_HEAD = "head."


def inherited(new: State, old: State, *, classes: Sequence[str], old_classes: Sequence[str], name: str) -> State:
    """The old version's weights in the shape of the new one's.

    Args:
        new: State of a network for `classes`; what the old version has no weights for is taken from it.
        old: State of the old version's network.
        classes: Of the new version, in the order of its logits.
        old_classes: Of the old one.
        name: Of the old version, for messages.

    Returns:
        Names and shapes of `new`; may share memory with both.

    Raises:
        SpecError: The networks differ in more than their classes, or classes differ and no tensor of a submodule `head`
            has a row for each.
    """
    same = tuple(classes) == tuple(old_classes)
    by_class = set() if same else _by_class_keys(new, old, len(classes), len(old_classes), name=name)
    found = {}
    for key in dict.fromkeys([*new, *old]):
        if key not in new or key not in old:
            raise _differs(name, f"tensor {key} is only in {name if key in old else 'this version'}")
        mine, theirs = new[key], old[key]
        if key in by_class:
            theirs = _by_class(mine, theirs, classes, old_classes, key=key, name=name)
        if theirs.shape != mine.shape:
            raise _differs(name, f"tensor {key} has shape {list(theirs.shape)} in {name}, here {list(mine.shape)}")
        found[key] = theirs
    return found


def mixed(new: State, old: State, share: float) -> State:
    """`share` x old + (1 - share) x new, tensor by tensor; what cannot be mixed (counters) is the new version's.

    Args:
        new: State of the finished network.
        old: What `inherited` made of the old one's.
        share: In [0, 1]; 0 gives `new` bit for bit.
    """
    if not share:
        return dict(new)
    return {
        key: _lerp(tensor, old[key].to(tensor), share) if tensor.is_floating_point() else tensor
        for key, tensor in new.items()
    }


def _lerp(new: Tensor, old: Tensor, share: float) -> Tensor:
    """Mix; what is equal stays, so that an infinity of a mask does not become NaN."""
    return torch.where(new == old, new, torch.lerp(new, old, share))


def recalibrate(
    network: nn.Module, batches: Iterable[Batch], *, run: Callable[[nn.Module, Batch], Outputs] | None = None
) -> None:
    """Measure the running statistics of batch normalisation anew: those of two networks say nothing of their mixture.

    Without such layers (graceful's own networks have none) nothing is read.

    Args:
        network: With `embed` and `classify`; changed in place.
        batches: As training sees them, of two samples or more.
        run: How a batch goes through the network, a learner's `forward`; None: embed, then classify.
    """
    update_bn(batches, Forward(network, run).train(network.training))


def _by_class_keys(new: State, old: State, count: int, old_count: int, *, name: str) -> set[str]:
    """Tensors of the head with a row for each class: one matrix, and its bias if any; all else is a guess."""
    head = [key for key in new if key.startswith(_HEAD) and key in old and new[key].ndim]
    found = [key for key in head if new[key].shape[0] == count and old[key].shape[0] == old_count]
    wide = [key for key in found if new[key].ndim > 1]
    unclear = [key for key in head if key not in found and count in new[key].shape]
    if not wide:
        raise _differs(name, f"{name} has other classes and no head.* tensor has a row for each")
    if len(wide) > 1 or len(found) > 2 or unclear:
        several = ", ".join(sorted({*found, *unclear}))
        raise _differs(name, f"{name} has other classes, and which of {several} has a row for each cannot be told")
    return set(found)


def _by_class(
    mine: Tensor, theirs: Tensor, classes: Sequence[str], old_classes: Sequence[str], *, key: str, name: str
) -> Tensor:
    if mine.shape[1:] != theirs.shape[1:]:
        raise _differs(
            name, f"rows of {key} have shape {list(theirs.shape[1:])} in {name}, here {list(mine.shape[1:])}"
        )
    position = {one: index for index, one in enumerate(old_classes)}
    rows = mine.clone()
    for index, one in enumerate(classes):
        if one in position:
            rows[index] = theirs[position[one]]
    return rows


def _differs(name: str, what: str) -> SpecError:
    return SpecError(
        f"train.start: latest needs the network of {name}, but {what}; give task.network the same shape, or write"
        " train.start: random"
    )
