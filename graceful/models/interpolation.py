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
_HEAD_ALONE = "head needs the head"


def inherited_state(
    new: State,
    old: State,
    *,
    classes: Sequence[str],
    old_classes: Sequence[str],
    name: str,
    needs: str = "latest needs the network",
) -> State:
    """Return the old version's weights in the shape of the new one's.

    Args:
        new: State of a network for `classes`; what the old version has no weights for is taken from it.
        old: State of the old version's network.
        classes: The classes of the new version, in the order of its logits.
        old_classes: The classes of the old one.
        name: The name of the old version, for messages.
        needs: Which `train.start` needs what of it, for messages.

    Returns:
        Names and shapes of `new`; may share memory with both.

    Raises:
        SpecError: The networks differ in more than their classes, or classes differ and no tensor of a submodule `head`
            has a row for each.
    """
    same_classes = tuple(classes) == tuple(old_classes)
    by_class = (
        set() if same_classes else _by_class_keys(new, old, len(classes), len(old_classes), name=name, needs=needs)
    )
    state = {}
    for key in dict.fromkeys([*new, *old]):
        if key not in new or key not in old:
            raise _mismatch(name, needs, f"tensor {key} is only in {name if key in old else 'this version'}")
        new_tensor, old_tensor = new[key], old[key]
        if key in by_class:
            old_tensor = _by_class(new_tensor, old_tensor, classes, old_classes, key=key, name=name, needs=needs)
        if old_tensor.shape != new_tensor.shape:
            raise _mismatch(
                name, needs, f"tensor {key} has shape {list(old_tensor.shape)} in {name}, here {list(new_tensor.shape)}"
            )
        state[key] = old_tensor
    return state


def inherited_head(new: State, old: State, *, classes: Sequence[str], old_classes: Sequence[str], name: str) -> State:
    """Return `new` with the head of the old version: rows of classes that it knows are its own.

    Args:
        new: State of a network for `classes`.
        old: State of the old version's head, or more; names as in `new`.
        classes: The classes of the new version, in the order of its logits.
        old_classes: The classes of the old one.
        name: The name of the old version, for messages.

    Raises:
        SpecError: The heads differ in more than their classes, or there is none.
    """
    heads = [{key: tensor for key, tensor in state.items() if key.startswith(_HEAD)} for state in (new, old)]
    if not heads[0] or not heads[1]:
        whose = name if heads[0] else "this version"
        raise _mismatch(name, _HEAD_ALONE, f"the network of {whose} has no tensor head.*")
    head = inherited_state(*heads, classes=classes, old_classes=old_classes, name=name, needs=_HEAD_ALONE)
    return {**new, **head}


def interpolated(new: State, old: State, share: float) -> State:
    """Return `share` x old + (1 - share) x new, tensor by tensor; what cannot be mixed (counters) is the new version's.

    Args:
        new: State of the finished network.
        old: What `inherited_state` made of the old one's.
        share: In [0, 1]; 0 gives `new` bit for bit.
    """
    if not share:
        return dict(new)
    return {
        key: _lerp(tensor, old[key].to(tensor), share) if tensor.is_floating_point() else tensor
        for key, tensor in new.items()
    }


def _lerp(new: Tensor, old: Tensor, share: float) -> Tensor:
    """Interpolate; equal values stay, so that an infinity of a mask does not become NaN."""
    return torch.where(new == old, new, torch.lerp(new, old, share))


def recalibrate(
    network: nn.Module, batches: Iterable[Batch], *, run: Callable[[nn.Module, Batch], Outputs] | None = None
) -> None:
    """Measure the running statistics of batch normalisation again, because they cannot be interpolated.

    Without such layers (graceful's own networks have none) nothing is read.

    Args:
        network: With `embed` and `classify`; changed in place.
        batches: As training sees them, of two samples or more.
        run: How a batch goes through the network, a learner's `forward`; None: embed, then classify.
    """
    update_bn(batches, Forward(network, run).train(network.training))


def _by_class_keys(new: State, old: State, count: int, old_count: int, *, name: str, needs: str) -> set[str]:
    """Return the tensors of the head with a row for each class: one matrix and its bias; refuse any other layout."""
    head = [key for key in new if key.startswith(_HEAD) and key in old and new[key].ndim]
    keys = [key for key in head if new[key].shape[0] == count and old[key].shape[0] == old_count]
    matrices = [key for key in keys if new[key].ndim > 1]
    unclear = [key for key in head if key not in keys and count in new[key].shape]
    if not matrices:
        raise _mismatch(name, needs, f"{name} has other classes and no head.* tensor has a row for each")
    if len(matrices) > 1 or len(keys) > 2 or unclear:
        several = ", ".join(sorted({*keys, *unclear}))
        raise _mismatch(
            name, needs, f"{name} has other classes, and which of {several} has a row for each cannot be told"
        )
    return set(keys)


def _by_class(
    new_rows: Tensor,
    old_rows: Tensor,
    classes: Sequence[str],
    old_classes: Sequence[str],
    *,
    key: str,
    name: str,
    needs: str,
) -> Tensor:
    if new_rows.shape[1:] != old_rows.shape[1:]:
        raise _mismatch(
            name,
            needs,
            f"rows of {key} have shape {list(old_rows.shape[1:])} in {name}, here {list(new_rows.shape[1:])}",
        )
    position = {class_name: index for index, class_name in enumerate(old_classes)}
    rows = new_rows.clone()
    for index, class_name in enumerate(classes):
        if class_name in position:
            rows[index] = old_rows[position[class_name]]
    return rows


def _mismatch(name: str, needs: str, difference: str) -> SpecError:
    return SpecError(
        f"train.start: {needs} of {name}, but {difference}; give task.network the same shape, or write"
        " train.start: random"
    )
