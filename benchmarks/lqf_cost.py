"""What linear-quadratic fine-tuning costs: a pass, an answer, weights, and solvers by the size of the problem.

    python -m benchmarks.lqf_cost            # a minute of one core, writes benchmarks/results/lqf_cost.json
    python -m benchmarks.lqf_cost --quick    # smaller sizes, prints only

Seconds are of the processor, the smallest of five. `step` is one iteration of conjugate gradients (a product with J and
one with its transpose) on 128 images of the small network `s2`, its ratio that to forward and backward pass of ordinary
training; `answer` is a forward pass of the linearised network against one of the network. `exact` factorises so many
rows (samples x classes) and solves; its ratio is against the smallest size. `kernel` makes the matrix of these rows,
and `pcg` is one iteration of conjugate gradients on the same samples, by rows and parameters, with the bytes that
either keeps. `exact_gives_up` is the largest number of rows that fits into 2 GiB, and `pcg_iterations` how many
iterations reach a relative gradient of 5e-4, by penalty (as a share of the mean eigenvalue): 500 is where it gives up.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import results
from graceful import models, spec
from graceful.errors import SpecError
from graceful.lqf import exact, kfac, pcg
from graceful.lqf.network import Linearised, names_of
from graceful.lqf.operators import Batched
from graceful.lqf.solution import Problem
from graceful.lqf.tangent import Tangent
from graceful.models.base import Headed, outputs_of

CLASSES, BATCH, REPEATS = 10, 128, 5


def smallest(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the smallest processor time of some calls."""
    times = []
    for _ in range(repeats + 1):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return min(times[1:] or times)


def row(what: str, value: float, ratio: float | None, **facts: object) -> dict[str, Any]:
    """Return a row of the result."""
    return {"what": what, "value": round(value, 5), "ratio": None if ratio is None else round(ratio, 3), **facts}


def passes() -> list[dict[str, Any]]:
    """Measure passes through the network, with and without its derivative."""
    torch.manual_seed(0)
    network = models.build(spec.Network(size="s2"), classes=CLASSES, input_shape=(1, 28, 28)).eval()
    x, y = torch.rand(BATCH, 1, 28, 28), torch.randint(CLASSES, (BATCH,))
    names = names_of(network, [])

    def trained() -> None:
        network.zero_grad()
        torch.nn.functional.cross_entropy(outputs_of(network, x).logits, y).backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def forward() -> None:
        outputs_of(network, x)

    step, answer = smallest(trained), smallest(forward)
    parameters = sum(p.numel() for p in network.parameters())
    linearised = Linearised(network, names)
    derivative = Batched(Tangent(linearised.network, outputs_of, names), [x], sizes=[BATCH], classes=CLASSES)
    delta = torch.randn(parameters, dtype=torch.float64)
    iteration = smallest(lambda: derivative.pull(derivative.push(delta)))
    served = smallest(lambda: linearised.outputs_by(outputs_of, x))
    stored = sum(tensor.nbytes for tensor in linearised.state_dict().values())
    return [
        row("step", iteration, iteration / step, parameters=parameters),
        row("answer", served, served / answer, parameters=parameters),
        row("weights_bytes", stored, stored / (4 * parameters), parameters=parameters),
    ]


def solvers(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Measure the factorised system and one solution, by rows."""
    found: list[dict[str, Any]] = []
    for rows in sizes:
        factor = torch.randn(rows, 256, dtype=torch.float64)
        kernel, ones = factor @ factor.T, torch.ones(rows, dtype=torch.float64)
        begun = time.process_time()
        system = exact.DualSystem(kernel, ones, classes=CLASSES)
        factorised = time.process_time() - begun
        again = smallest(lambda system=system, ones=ones: system.solve(ones, 1.0), 1)  # type: ignore[misc]
        first = found[0]["value"] if found else factorised
        gib = exact.MATRICES * 8 * rows * rows / 2**30
        found.append(
            row("exact", factorised, factorised / first, rows=rows, solve_again=round(again, 5), gib=round(gib, 3))
        )
    return found


def sizes(counts: tuple[int, ...], widths: tuple[int, ...]) -> list[dict[str, Any]]:
    """Measure the matrix of the exact solver and an iteration of the other, by samples and parameters."""
    found: list[dict[str, Any]] = []
    for width in widths:
        for count in counts:
            derivative, parameters = _problem(count, width)
            rows = count * CLASSES
            delta = torch.randn(parameters, dtype=torch.float64)
            kernel = smallest(derivative.kernel, 1)
            iteration = smallest(lambda d=derivative, v=delta: d.pull(d.push(v)), 2)  # type: ignore[misc]
            facts = {"rows": rows, "parameters": parameters}
            found.append(row("kernel", kernel, None, **facts, bytes=exact.MATRICES * 8 * rows * rows))
            found.append(row("pcg", iteration, None, **facts, bytes=8 * (4 * parameters + 3 * rows)))
    return found


def _problem(count: int, width: int) -> tuple[Batched, int]:
    """Return a perceptron on random inputs: its derivative and how many parameters it has."""
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(64, width), torch.nn.GELU(), torch.nn.Linear(width, 32), torch.nn.GELU())
    network = Headed(body, torch.nn.Linear(32, CLASSES)).eval()
    parts = torch.randn(count, 64).split(BATCH)
    tangent = Tangent(network, outputs_of, names_of(network, []))
    parameters = sum(tensor.numel() for tensor in tangent.start.values())
    return Batched(tangent, list(parts), sizes=[len(part) for part in parts], classes=CLASSES), parameters


def limits(shares: tuple[float, ...]) -> list[dict[str, Any]]:
    """Find where each solver gives up: rows that fit, and iterations by penalty."""
    low, high = 1, 100_000
    while high - low > 1:
        middle = (low + high) // 2
        try:
            exact.elements_at_once(middle, 10**6, 2 * 2**30)
            low = middle
        except SpecError:
            high = middle
    found = [row("exact_gives_up", float(low), None, rows=low, bytes=2 * 2**30)]
    count = 100
    derivative, parameters = _problem(count, 64)
    mean = float(derivative.kernel().diagonal().mean())
    residual = 15.0 * torch.nn.functional.one_hot(torch.randint(CLASSES, (count,)), CLASSES).double().reshape(-1)
    network = derivative.tangent
    for share in shares:
        penalty = share * mean / count
        weights = torch.ones_like(residual)
        problem = Problem(residual=residual, weights=weights, samples=count, penalty=penalty)
        factors = kfac.factors(
            network._module.network, derivative.batches, list(network.start), samples=count, run=outputs_of
        )
        options = {"parameters": parameters, "tolerance": 5e-4, "iterations": 500}
        for name, step in (("kfac", factors.preconditioner(penalty)), ("plain", None)):
            done = pcg.solve(derivative, problem, precondition=step, **options)
            facts = {"preconditioner": name, "penalty_share": share, "relative_gradient": round(done.relative, 6)}
            found.append(row("pcg_iterations", float(done.iteration), None, rows=count * CLASSES, **facts))
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    rows = [*passes(), *solvers((250, 500) if options.quick else (250, 500, 1000, 2000))]
    rows += sizes((25,) if options.quick else (25, 50, 100, 200), (64,) if options.quick else (64, 512, 4096))
    rows += limits((1.0,) if options.quick else (1.0, 1e-1, 1e-2, 1e-3, 1e-4))
    for each in rows:
        print(each)
    if not options.quick:
        print(results.write("lqf_cost", rows, time.monotonic() - started))


if __name__ == "__main__":
    main()
