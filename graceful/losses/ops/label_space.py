"""Compare two versions whose classes differ: in the old label space, by class name. Runs in workers.

Several new classes that map to one old class are joined by logsumexp of their logits (the logit of "any of them").
New classes without an old one and old classes without a new one leave the comparison.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LabelSpace:
    """The S old classes that both versions know, in old order; index tensors live on one device.

    Attributes:
        label_map: [C_new] new label -> old label, -1: unknown to the old version.
        shared: [S] old labels in the shared space.
        columns: [K] new labels that take part, ordered by `slots`.
        slots: [K] their place in the shared space, ascending; K > S where new classes are joined.
        slot_of: [C_new] new label -> place in the shared space, -1: none.
        old_size: C_old.
    """

    label_map: Tensor
    shared: Tensor
    columns: Tensor
    slots: Tensor
    slot_of: Tensor
    old_size: int

    @property
    def size(self) -> int:
        """Return S, the number of shared classes; 0 where the versions share none."""
        return len(self.shared)

    def new(self, logits: Tensor) -> Tensor:
        """Map new logits [B, C_new] -> [B, S]. S = 0 gives [B, 0], still in the graph."""
        chosen = logits.index_select(1, self.columns)
        if len(self.columns) == self.size:
            return chosen
        shape = (len(logits), self.size)
        slots = self.slots.expand_as(chosen)
        lowest = torch.full(shape, -torch.inf, dtype=logits.dtype, device=logits.device)
        top = lowest.scatter_reduce(1, slots, chosen.detach(), "amax")
        joined = torch.zeros(shape, dtype=logits.dtype, device=logits.device)
        joined = joined.index_add(1, self.slots, (chosen - top.index_select(1, self.slots)).exp())
        return top + joined.log()

    def old(self, logits: Tensor) -> Tensor:
        """Map old logits [B, C_old] -> [B, S]."""
        return logits.index_select(1, self.shared)

    def old_labels(self, labels: Tensor) -> Tensor:
        """Map new labels [B] -> old labels [B], -1 where the old version does not know the class."""
        return self.label_map[labels]

    def shared_labels(self, labels: Tensor) -> Tensor:
        """Map new labels [B] -> places in the shared space [B], -1 where the old version does not know the class."""
        return self.slot_of[labels]


def build(label_map: Tensor, *, old_size: int, device: torch.device | str = "cpu") -> LabelSpace:
    """Build the shared space of two versions.

    Args:
        label_map: [C_new] int64, new label -> old label or -1, see `graceful.chain.label_map`.
        old_size: C_old.
        device: Where the logits will live.

    Raises:
        ValueError: The map is not [C_new], or names an old label outside [-1, C_old).
    """
    if label_map.dim() != 1:
        raise ValueError(f"label_map must have shape [C_new], got {list(label_map.shape)}")
    if len(label_map) and bool(((label_map < -1) | (label_map >= old_size)).any()):
        raise ValueError(f"label_map must hold old labels in [-1, {old_size}), got {label_map.tolist()}")
    label_map = label_map.cpu().long()
    shared = torch.unique(label_map[label_map >= 0])
    position = torch.full((old_size + 1,), -1, dtype=torch.int64)
    position[shared] = torch.arange(len(shared))
    slot_of = position[label_map]  # an unknown class is -1 and reads the extra last entry, which is -1
    known = (slot_of >= 0).nonzero().squeeze(1)
    columns = known[torch.argsort(slot_of[known], stable=True)]
    return LabelSpace(
        label_map=label_map.to(device),
        shared=shared.to(device),
        columns=columns.to(device),
        slots=slot_of[columns].to(device),
        slot_of=slot_of.to(device),
        old_size=old_size,
    )
