"""One rank's view of the quadratic: data, w0, targets, and J of its samples. Runs in workers.

What is small is computed by every rank; products with J of all samples are sums over ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, distributed

from graceful import learners, tasks
from graceful.chain.multipliers import strengths
from graceful.errors import TrainingError
from graceful.lqf import cut, exact, kfac
from graceful.lqf.operators import Batched
from graceful.lqf.solution import Problem
from graceful.lqf.tangent import Tangent
from graceful.spec.methods import Lqf
from graceful.training import batches
from graceful.training.chain_targets import ChainTargets, chain_targets
from graceful.training.fixed_batches import FixedBatches, data_digest, fixed_batches
from graceful.training.job import TrainingJob
from graceful.training.linear_cache import remembered
from graceful.training.linear_measures import HeldOut
from graceful.training.linear_start import LinearStart, prepared, starting_network
from graceful.training.rank_context import RankContext, unanimous


class LinearProblem:
    """What is solved. Making it opens data and predecessors and talks to no other rank.

    Args:
        job: What is solved.
        context: The rank.

    Attributes:
        materials: Data and predecessors.
        forward: Network and batch -> outputs.
        all: Training samples of all ranks, `own` those of this one.
        start: The network at w0.
        targets: What is fitted, of all samples.
    """

    def __init__(self, job: TrainingJob, context: RankContext) -> None:
        method = job.spec.train.method
        assert isinstance(method, Lqf)
        self.job, self.context, self.method = job, context, method
        task = job.task or tasks.build(job.spec.task)
        self.materials = batches.gather(job, task, device=context.device)
        self.forward = partial(learners.run, self.materials.learner)
        size = job.spec.train.batch_size
        self.all = fixed_batches(self.materials.train, self.materials.learner, size=size, device=context.device)
        self.own = self.all.of_rank(context.rank, context.world_size)
        self.start = self._start()
        self.cut = self._cut()
        self.targets = self._targets()

    def _start(self) -> LinearStart:
        job, task = self.job, self.materials.task
        network, source, unseen = starting_network(
            self.method, task, self.materials.train, start=job.start, seed=job.effective_seed
        )
        batches.try_out(task, network, self.materials.train)
        follows = job.start is not None and job.start.description.linearised is not None
        return prepared(
            self.method,
            network.to(self.context.device),
            self.all,
            run=self.forward,
            source=source,
            unseen=unseen,
            fresh=not follows,
        )

    def _targets(self) -> ChainTargets:
        names = [version.name for version in self.materials.versions]
        fixed = strengths(self.job.compatibility.weighting, names)
        return chain_targets(self.job, self.materials, self.all, amplitude=self.method.amplitude, strengths=fixed)

    def _cut(self) -> cut.Cut | None:
        """Return the blocks whose outputs are kept; None where there are none below the scope, or too many samples."""
        few = learners.batch.take(self.all[0], slice(4))
        found = cut.find(self.start.network, self.forward, self.start.names, few)
        if found is None:
            return None
        needed = cut.bytes_per_sample(found, few) * len(self.all.rows)
        return found if needed <= self.limit else None

    @property
    def limit(self) -> int:
        """Return how many bytes the solver may take."""
        return int(self.method.memory_gib * 2**30)

    @property
    def classes(self) -> int:
        """Return C, the number of classes."""
        return len(self.materials.task.classes)

    @property
    def samples(self) -> int:
        """Return N, the number of samples over all ranks."""
        return len(self.all.rows)

    @property
    def parameters(self) -> int:
        """Return P, the number of parameters with a delta."""
        return sum(tensor.numel() for tensor in self.tangent().start.values())

    def tangent(self) -> Tangent:
        """Return the network at w0 with its derivative."""
        return Tangent(self.start.network, self.forward, self.start.names)

    def derivative(self, part: FixedBatches) -> Batched:
        """Return J of some samples; what lies below the scope is computed once."""
        if self.cut is None:
            return Batched(self.tangent(), part, sizes=part.sizes, classes=self.classes)
        above = Tangent(self.start.network, self.cut.replay, self.start.names)
        return Batched(above, cut.Carried(self.cut, part), sizes=part.sizes, classes=self.classes)

    def at_start(self, part: FixedBatches) -> tuple[Tensor, Tensor]:
        """Return outputs at w0 [N, C] in float64, and which samples have an answer [N]."""
        tangent = self.tangent()
        outputs = [tangent.outputs(batch) for batch in part]
        logits = torch.cat([each.logits for each in outputs]).double()
        answered = [
            torch.ones(len(each.logits), dtype=torch.bool, device=logits.device) if each.mask is None else each.mask
            for each in outputs
        ]
        return logits, torch.cat(answered)

    def targets_of(self, part: FixedBatches) -> ChainTargets:
        """Return targets of some of the batches, in their order."""
        place = np.empty(len(self.materials.train), dtype=np.int64)
        place[self.all.rows] = np.arange(len(self.all.rows))
        rows = torch.from_numpy(place[part.rows]).to(self.context.device)
        return self.targets.take(rows)

    def problem(self, part: FixedBatches, penalty: float) -> Problem:
        """Return the quadratic of some samples.

        Raises:
            TrainingError: An output at w0 is not finite.
        """
        start, answered = self.at_start(part)
        fitted = self.targets_of(part)
        weights = torch.where(answered[:, None], fitted.weights, 0.0)
        residual = torch.where(answered[:, None], fitted.targets - start, 0.0)
        if not bool(residual.isfinite().all()):
            raise unanimous(
                TrainingError("LQF: an output of the starting weights is not finite; start from other weights")
            )
        return Problem(
            residual=residual.reshape(-1), weights=weights.reshape(-1), samples=self.samples, penalty=penalty
        )

    def kernel(self, part: FixedBatches) -> Tensor:
        """Return K of some samples, [M, M] float64; every rank must ask.

        Raises:
            SpecError: It does not fit into memory.
        """
        rows = sum(part.sizes) * self.classes
        elements = exact.elements_at_once(rows, self.parameters, self.limit)
        make = partial(self.derivative(part).kernel, elements=elements)
        return self._remembered("kernel", part, lambda: {"kernel": make()})["kernel"].to(self.context.device)

    def moments(self, derivative: Batched) -> dict[str, Tensor]:
        """Return the moments of the curvature's Kronecker factors at w0; every rank must ask.

        Args:
            derivative: J of this rank's samples.
        """
        network, names, context = self.start.network, self.start.names, self.context
        measure = partial(
            kfac.measured,
            network,
            derivative.batches,
            names,
            samples=self.samples,
            run=self.forward if self.cut is None else self.cut.replay,
            reduce=self.sum,
            first=context.rank,
            stride=context.world_size,
        )
        return self._remembered("kfac", self.all, measure)

    def _remembered(self, what: str, part: FixedBatches, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors that follow from w0 and inputs, from the home folder where another fit has made them."""
        context, home = self.context, self.job.home
        alone = context.world_size == 1  # ranks elsewhere may not see the folder, and all must do the same
        if home is None or not alone:
            return make()
        key = {
            "what": what,
            "schema": 1,
            "start": self.start.digest,
            "names": self.start.names,
            "inputs": data_digest(part, None, rank=0, world_size=1, labels=False),
            "device": context.device.type,
        }
        return remembered(home / "linearised", key, make)

    def sum(self, values: Tensor) -> Tensor:
        """Add a tensor up over ranks, in place, and return it."""
        if self.context.world_size > 1:
            distributed.all_reduce(values)
        return values

    def gathered(self, own: Tensor) -> Tensor:
        """Return values [N x C] of all samples from those of this rank's samples; every rank must ask."""
        if self.context.world_size == 1:
            return own
        sizes = [size * self.classes for size in self.all.sizes]
        whole = own.new_zeros(sum(sizes))
        places = torch.split(torch.arange(len(whole), device=own.device), sizes)
        mine = places[self.context.rank :: self.context.world_size]
        if mine:
            whole[torch.cat(list(mine))] = own
        return self.sum(whole)

    def held_out(self) -> HeldOut:
        """Return the validation samples that penalty and temperature are chosen on."""
        return HeldOut.of(self.materials, self.forward, size=max(self.all.sizes))

    def data_digest(self) -> str:
        """Return the digest of the training samples; every rank must ask."""
        weights = self.materials.weights
        rows = self.all.rows
        own = None if weights is None else weights.of(rows, self.materials.train.labels[rows]).numpy()
        return data_digest(self.all, own, rank=self.context.rank, world_size=self.context.world_size)
