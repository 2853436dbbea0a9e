"""Which terms of the objective become one: the plan, and the value of a merged term on a batch. Runs in workers.

Terms merge when their old outputs are cached and what they ask of a sample does not follow the new model. Predecessors
that know the same classes of the new version (or have embeddings of one length) form a group; the cost of a step grows
with the number of groups, not of predecessors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graceful import spec
from graceful.chain.merging import Merged
from graceful.losses.base import OUTPUTS, Loss
from graceful.losses.ops.reduction import weighted_mean
from graceful.models.base import Outputs


@dataclass(frozen=True, kw_only=True)
class Group:
    """Versions whose terms of one loss are one term.

    Attributes:
        key: `<kind>/chain`, the name of its value in logs; further groups of a loss are `chain-2`, ...
        loss: Its section of the spec.
        loss_index: Position of the loss.
        versions: Positions of the versions.
        columns: Labels of the new version that all of them know, ascending; None: the group is of embeddings.
    """

    key: str
    loss: Loss
    loss_index: int
    versions: tuple[int, ...]
    columns: tuple[int, ...] | None

    def some_columns(self, classes: int, device: torch.device) -> Tensor | None:
        """Return the columns as an index, made once; None where all of the new version's classes take part, or it has
        none."""
        if self.columns is None or self.columns == tuple(range(classes)):
            return None
        return torch.tensor(self.columns, device=device)

    def value(self, outputs: Outputs, merged: Merged, *, columns: Tensor | None) -> Tensor:
        """Return `sum_i W_i D_i / B`: what the terms of all its versions add up to, less a constant.

        Args:
            outputs: The outputs of the new version.
            merged: Outputs of the versions of the group.
            columns: What `some_columns` gave.
        """
        if columns is not None:
            outputs = outputs._replace(logits=outputs.logits.index_select(1, columns))
        distances = self.loss.compare_merged(outputs, merged.target)
        return weighted_mean(distances, weights=merged.weight.to(distances), participates=outputs.mask)


def named_losses(losses: Sequence[Loss]) -> list[tuple[str, Loss]]:
    """Return the losses with their names in logs: the kind, numbered from the second of a kind on."""
    seen: dict[str, int] = defaultdict(int)
    named = []
    for loss in losses:
        seen[loss.kind] += 1
        named.append((loss.kind if seen[loss.kind] == 1 else f"{loss.kind}-{seen[loss.kind]}", loss))
    return named


def plan(
    compatibility: spec.Compatibility,
    *,
    known: Sequence[Sequence[int]],
    sizes: Sequence[int],
    cached: Sequence[bool],
) -> tuple[Group, ...]:
    """Group what merges; a version alone in its group keeps its own term.

    Args:
        compatibility: The section of the spec.
        known: For each version [C_new] its label for each class of the new version, -1: unknown; see `label_map`.
        sizes: For each version the length of its embedding.
        cached: For each version whether its outputs are cached.
    """
    groups = []
    for index, (name, loss) in enumerate(named_losses(compatibility.losses)):
        if loss.merge is None:
            continue
        alike: dict[tuple[int, ...] | int, list[int]] = defaultdict(list)
        for version in (position for position, yes in enumerate(cached) if yes):
            columns = tuple(label for label, old in enumerate(known[version]) if old >= 0)
            alike[columns if loss.merge.of_logits else sizes[version]].append(version)
        chosen = [(what, versions) for what, versions in alike.items() if len(versions) > 1 and what != ()]
        for number, (what, versions) in enumerate(chosen, start=1):
            suffix = "" if number == 1 else f"-{number}"
            group = Group(
                key=f"{name}/chain{suffix}",
                loss=loss,
                loss_index=index,
                versions=tuple(versions),
                columns=what if isinstance(what, tuple) else None,
            )
            groups.append(group)
    return tuple(groups)


def unmerged(compatibility: spec.Compatibility, groups: Sequence[Group], count: int) -> frozenset[int]:
    """Return the positions of those of `count` versions whose own outputs a step still needs, because a term did not
    merge."""
    merged = {(group.loss_index, version) for group in groups for version in group.versions}
    reading = [index for index, loss in enumerate(compatibility.losses) if loss.reads & OUTPUTS]
    return frozenset(version for version in range(count) if any((index, version) not in merged for index in reading))
