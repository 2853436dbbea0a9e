"""Linear-quadratic fine-tuning as mathematics, in float64: each closed form against what it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian

from graceful.errors import SpecError
from graceful.lqf import cut, exact, kfac, pcg
from graceful.lqf.activations import LeakyClamp, make_leaky
from graceful.lqf.contributions import Contributions
from graceful.lqf.memory import Factored, Memory, Remembered, largest
from graceful.lqf.network import Linearised, names_of, start_digest
from graceful.lqf.operators import Batched, Dense, flat, grouped, unflat
from graceful.lqf.protection import differences, protect
from graceful.lqf.solution import Problem
from graceful.lqf.streaming import Streaming
from graceful.lqf.tangent import Tangent, require_derivative
from graceful.lqf.targets import Pull, label_targets, relabelled, scaled
from graceful.models.base import Headed, outputs_of

N, C, D = 12, 3, 6
AMPLITUDE = 15.0


def network(seed: int = 0, *, head: nn.Module | None = None) -> Headed:
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, 5), nn.Tanh())
    return Headed(body, head or nn.Linear(5, C)).double().eval()


class Photo(nn.Module):
    """Convolutions with a normalisation and an in-place activation, behind `embed` and `classify`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3),
            nn.Flatten(),
        )
        self.head = nn.Linear(16, C)

    def embed(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def classify(self, embedding: Tensor) -> Tensor:
        return self.head(embedding)


class Attention(nn.Module):
    """A transformer layer whose fused kernels have no forward mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(D, 2, 8, batch_first=True, activation="gelu")
        self.head = nn.Linear(D, C)

    def embed(self, x: Tensor) -> Tensor:
        return self.layer(x).mean(1)

    def classify(self, embedding: Tensor) -> Tensor:
        return self.head(embedding)


class _NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * x.exp()


def samples(*shape: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, *(shape or (D,)), generator=generator, dtype=torch.float64)
    return x, torch.randint(C, (N,), generator=generator)


def jacobian(tangent: Tangent, x: Tensor) -> Tensor:
    (whole,) = grouped(tangent.start, 10**6)
    return tangent.rows(x, whole).flatten(0, 1)


def exact_delta(rows: Tensor, residual: Tensor, weights: Tensor, *, ridge: float) -> Tensor:
    system = exact.DualSystem(rows @ rows.T, weights, classes=C)
    return rows.T @ system.solve(residual, ridge)


@pytest.mark.parametrize(
    ("build", "shape"),
    [(network, (D,)), (lambda: Photo().double().eval(), (1, 8, 8)), (lambda: Attention().double().eval(), (4, D))],
    ids=["layers", "convolutions", "attention"],
)
def test_products_with_the_derivative(build, shape):
    """push, pull and rows are one matrix, by forward mode and by two reverse passes alike."""
    model = build()
    x, _ = samples(*shape)
    tangent = Tangent(model, outputs_of, names_of(model, []))
    rows = jacobian(tangent, x)
    delta = {name: torch.randn_like(tensor) for name, tensor in tangent.start.items()}
    vector, cotangent = flat(delta, tangent.start), torch.randn(N, C, dtype=torch.float64)
    _, along = tangent.push(x, delta)
    torch.testing.assert_close(along.logits.reshape(-1), rows @ vector)
    torch.testing.assert_close(flat(tangent.pull(x, cotangent), tangent.start), rows.T @ cotangent.reshape(-1))
    tangent._forward_mode = False
    _, reverse = tangent.push(x, delta)
    torch.testing.assert_close(reverse.logits, along.logits)
    torch.testing.assert_close(reverse.embedding, along.embedding)
    kernel = Batched(tangent, [x[:5], x[5:]], sizes=[5, N - 5], classes=C).kernel(elements=50)
    torch.testing.assert_close(kernel, rows @ rows.T)


def test_relabelling_is_the_solution_of_both_terms():
    """The predecessor's term as other labels: the same minimum as that of the sum of both terms, to 1e-10."""
    model = network()
    x, labels = samples()
    tangent = Tangent(model, outputs_of, names_of(model, []))
    rows, start = jacobian(tangent, x), tangent.outputs(x).logits
    old, strength = torch.randn(N, C, dtype=torch.float64) * 5.0, torch.rand(N, C, dtype=torch.float64) * 4.0
    strength[:, 2] = 0.0  # a class that the predecessor does not know
    aim, penalty = label_targets(labels, classes=C, amplitude=AMPLITUDE), 0.1
    targets, weights = relabelled(aim, torch.ones(N), [Pull(outputs=old, strength=strength)])
    delta = exact_delta(rows, (targets - start).reshape(-1), weights.reshape(-1), ridge=N * penalty)
    both = torch.eye(rows.shape[1], dtype=torch.float64) * penalty * N
    both += rows.T @ ((1.0 + strength).reshape(-1, 1) * rows)
    right = rows.T @ ((aim - start) + strength * (old - start)).reshape(-1)
    assert float((delta - torch.linalg.solve(both, right)).abs().max()) < 1e-10


def test_leaving_out_is_training_without():
    """The closed form of leave-one-out, with weights and penalty, against solutions without each sample, to 1e-8."""
    model = network()
    x, labels = samples()
    tangent = Tangent(model, outputs_of, names_of(model, []))
    rows, start = jacobian(tangent, x), tangent.outputs(x).logits
    residual = label_targets(labels, classes=C, amplitude=AMPLITUDE) - start
    weights, ridge = torch.rand(N, C, dtype=torch.float64) + 0.5, 0.7
    weights[3] = 0.0  # has no part
    system = exact.DualSystem(rows @ rows.T, weights.reshape(-1), classes=C)
    errors = system.left_out(residual.reshape(-1), ridge)
    assert not errors[3].any()
    for index in (index for index in range(N) if index != 3):
        kept = torch.arange(N) != index
        part = rows.reshape(N, C, -1)[kept].flatten(0, 1)
        delta = exact_delta(part, residual[kept].reshape(-1), weights[kept].reshape(-1), ridge=ridge)
        expected = residual[index] - rows.reshape(N, C, -1)[index] @ delta
        torch.testing.assert_close(errors[index], expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("factored", [False, True], ids=["plain", "kfac"])
def test_conjugate_gradients_find_the_exact_minimum(factored):
    """pcg and exact agree; two workers agree with one; a run that was interrupted ends in the same bits."""
    model = network()
    x, labels = samples()
    names = names_of(model, [])
    tangent = Tangent(model, outputs_of, names)
    start = tangent.outputs(x).logits
    residual = (label_targets(labels, classes=C, amplitude=AMPLITUDE) - start).reshape(-1)
    problem = Problem(residual=residual, weights=torch.ones(N * C, dtype=torch.float64), samples=N, penalty=0.03)
    whole = Batched(tangent, [x[:7], x[7:]], sizes=[7, N - 7], classes=C)
    step = kfac.factors(model, [x], names, samples=N).preconditioner(0.03) if factored else None
    total = sum(tensor.numel() for tensor in tangent.start.values())
    options = {"parameters": total, "tolerance": 1e-12, "iterations": 300, "precondition": step, "preconditioned": 9}
    states: list[pcg.State] = []
    done = pcg.solve(whole, problem, each=states.append, **options)
    expected = exact_delta(jacobian(tangent, x), residual, problem.weights, ridge=N * 0.03)
    assert float((done.delta - expected).abs().max()) < 1e-8
    again = pcg.solve(whole, problem, state=states[8], **options)
    assert torch.equal(again.delta, done.delta)
    assert again.iteration == done.iteration
    parts = [Batched(tangent, [part], sizes=[len(part)], classes=C) for part in (x[:7], x[7:])]
    split = residual.split([7 * C, (N - 7) * C])

    class TwoWorkers:
        def push(self, delta):
            return torch.cat([part.push(delta) for part in parts])

        def pull(self, values):
            return sum(part.pull(own) for part, own in zip(parts, values.split([len(s) for s in split]), strict=True))

    two = pcg.solve(TwoWorkers(), problem, **options)
    assert float((two.delta - done.delta).abs().max()) < 1e-10


def test_order_of_data_changes_nothing():
    """The minimum of permuted data is the minimum of the data, and its gradient is zero."""
    model = network()
    x, labels = samples()
    tangent = Tangent(model, outputs_of, names_of(model, []))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(5))

    def solved(positions: Tensor) -> Tensor:
        rows, start = jacobian(tangent, x[positions]), tangent.outputs(x[positions]).logits
        aim = label_targets(labels[positions], classes=C, amplitude=AMPLITUDE)
        residual, weights = (aim - start).reshape(-1), torch.ones(N * C, dtype=torch.float64)
        delta = exact_delta(rows, residual, weights, ridge=0.5)
        problem = Problem(residual=residual, weights=weights, samples=N, penalty=0.5 / N)
        slopes = [problem.slope(Dense(rows), vector, reduce=pcg.alone) for vector in (delta, torch.zeros_like(delta))]
        assert float(slopes[0].norm()) < 1e-10 * float(slopes[1].norm())
        return delta

    torch.testing.assert_close(solved(order), solved(torch.arange(N)), rtol=0.0, atol=1e-10)


def test_factors_are_the_curvature_of_one_layer():
    """Of a linear network, the Kronecker factors are the Hessian, which autograd computes independently."""
    head = Headed(nn.Identity(), nn.Linear(D, C)).double().eval()
    x, _ = samples()
    names = names_of(head, [])
    start = {name: p.detach() for name, p in head.named_parameters()}

    def objective(vector: Tensor) -> Tensor:
        logits = functional_call(
            head.head, {k.removeprefix("head."): v for k, v in unflat(vector, start).items()}, (x,)
        )
        return 0.5 * (logits - 1.0).square().sum() / N

    expected = hessian(objective)(flat(start, start)) + 0.2 * torch.eye((D + 1) * C, dtype=torch.float64)
    found = kfac.factors(head, [x] * 400, names, samples=N * 400).preconditioner(0.2)
    vector = torch.randn((D + 1) * C, dtype=torch.float64)
    torch.testing.assert_close(found(vector), torch.linalg.solve(expected, vector), rtol=0.1, atol=0.05)


def test_factors_leave_convolutions_and_norms_positive():
    """Patches and the diagonal of normalisation give a symmetric positive map."""
    model = Photo().double().eval()
    x, _ = samples(1, 8, 8)
    names = names_of(model, [])
    tangent = Tangent(model, outputs_of, names)
    found = kfac.factors(model, [x], names, samples=N).preconditioner(0.01)
    total = sum(tensor.numel() for tensor in tangent.start.values())
    left, right = torch.randn(2, total, dtype=torch.float64)
    torch.testing.assert_close(left @ found(right), right @ found(left))
    assert float(left @ found(left)) > 0.0


def test_deltas_combine():
    """Outputs are affine in delta; the solution for mixed targets is the mix of the solutions, as for any ridge."""
    model = network()
    x, labels = samples()
    linearised = Linearised(network(), names_of(model, []), slope=0.1)
    tangent = Tangent(linearised.network, outputs_of, linearised.names)
    rows, start = jacobian(tangent, x), linearised.outputs_by(outputs_of, x).logits
    weights = torch.ones(N * C, dtype=torch.float64)
    aims = [label_targets(labels.roll(shift), classes=C, amplitude=AMPLITUDE) - start for shift in (0, 1)]
    one, two = (exact_delta(rows, aim.reshape(-1), weights, ridge=0.3) for aim in aims)
    mixed = exact_delta(rows, (0.3 * aims[0] + 0.7 * aims[1]).reshape(-1), weights, ridge=0.3)
    torch.testing.assert_close(mixed, 0.3 * one + 0.7 * two, rtol=0.0, atol=1e-10)
    outputs = []
    for vector in (one, two, mixed):
        linearised.put(unflat(vector, tangent.start))
        outputs.append(linearised.outputs_by(outputs_of, x))
    torch.testing.assert_close(outputs[2].logits, 0.3 * outputs[0].logits + 0.7 * outputs[1].logits)
    torch.testing.assert_close(outputs[2].embedding, 0.3 * outputs[0].embedding + 0.7 * outputs[1].embedding)


def test_weights_move_with_the_digest_of_their_start():
    """The state holds w0 and delta by name, and w0's digest follows weights and slope, not delta."""
    linearised = Linearised(network(), ("body.0.weight", "head.bias"), slope=0.01)
    keys = set(linearised.state_dict())
    assert {"network.body.0.weight", "delta.body.0.weight", "delta.head.bias"} <= keys
    before = start_digest(linearised.network, slope=0.01)
    linearised.put({name: torch.ones_like(tensor) for name, tensor in linearised.deltas().items()})
    assert start_digest(linearised.network, slope=0.01) == before != start_digest(linearised.network, slope=0.2)
    assert not linearised.train().network.training
    assert isinstance(linearised.network.body[1], LeakyClamp)


def test_leaky_activations():
    """ReLU and ReLU6 get a slope where they are flat; nothing else changes."""
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Sequential(nn.ReLU6()), nn.GELU())
    assert make_leaky(model, 0.0) == 0
    assert make_leaky(model, 0.1) == 2
    x = torch.tensor([-2.0, 3.0, 8.0])
    torch.testing.assert_close(model[0](x), torch.tensor([-0.2, 3.0, 8.0]))
    torch.testing.assert_close(model[1](x), torch.tensor([-0.2, 3.0, 6.2]))


def test_outputs_of_a_predecessor_on_the_scale_of_labels():
    """Sharp logits and logits of another scale come out alike; what points away from the labels is not turned round."""
    _, labels = samples()
    truth = nn.functional.one_hot(labels, C).double()
    rows = torch.ones(N, dtype=torch.bool)
    torch.testing.assert_close(scaled(3.0 * truth + 7.0, truth, rows=rows, amplitude=AMPLITUDE), AMPLITUDE * truth)
    away = scaled(-truth, truth, rows=rows, amplitude=AMPLITUDE)
    torch.testing.assert_close(away, torch.full_like(away, AMPLITUDE / C))


def test_the_penalty_is_chosen_inside_the_grid_or_said_to_be_at_its_edge():
    """Targets without noise want the smallest ridge, noise alone the largest."""
    model = network()
    x, _ = samples()
    tangent = Tangent(model, outputs_of, names_of(model, []))
    rows = jacobian(tangent, x)
    system = exact.DualSystem(rows @ rows.T, torch.ones(N * C, dtype=torch.float64), classes=C)
    grid = (0.1, 1.0, 10.0, 100.0)
    learnable = rows @ rows.T @ torch.randn(N * C, dtype=torch.float64)
    assert exact.choose_ridge(system, learnable, learnable, grid=grid).edge == "smallest"
    opposite = torch.where(torch.arange(N) % 2 == 0, 1.0, -1.0).double().repeat_interleave(C)
    noise = 10.0 * opposite * (rows @ rows.T @ torch.ones(N * C, dtype=torch.float64)).sign()
    both = exact.choose_ridge(system, learnable + noise, learnable + noise, grid=grid)
    errors = system.left_out(learnable + noise, both.ridge)
    assert both.score == pytest.approx(float(errors.square().sum(1).mean()))


def test_refusals():
    """What cannot be linearised, or would not fit, is one line before anything is spent."""
    x, _ = samples()

    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.round()

    class StraightThrough(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + (x.sign() - x).detach()

    for odd in (Rounded(), StraightThrough()):
        model = Headed(nn.Sequential(nn.Linear(D, 5), odd), nn.Linear(5, C)).double().eval()
        with pytest.raises(SpecError, match="straight-through"):
            require_derivative(Tangent(model, outputs_of, ["body.0.weight"]), x)

    class OnlyReverse(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return _NoForwardMode.apply(x)

    class Infinite(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 0.0).sqrt()

    bad = Headed(nn.Sequential(nn.Linear(D, 5), Infinite()), nn.Linear(5, C)).double().eval()
    with pytest.raises(SpecError, match="not finite"):
        require_derivative(Tangent(bad, outputs_of, ["body.0.weight"]), x)
    with pytest.raises(SpecError, match=r"scope: body\.7 is the name of no trained parameter"):
        names_of(network(), ["body.7"])
    assert names_of(network(), ["body.2", "head.*"]) == ("body.2.weight", "body.2.bias", "head.weight", "head.bias")
    with pytest.raises(SpecError, match=r"exact needs 3\.06 GiB for 10000 samples x classes"):
        exact.elements_at_once(10_000, 10**6, 2**30)
    assert exact.elements_at_once(1000, 10**6, 2**30) == (2**30 - 32 * 10**6) // 8000
    assert exact.fits(1000, 10**6, 2**30)
    assert not exact.fits(1000, 10**7, 2**30)


class Deep(nn.Module):
    """Blocks one after the other; `bypass`: the head reads the first one, too."""

    def __init__(self, *, bypass: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(D, D), nn.Tanh()) for _ in range(4))
        self.head = nn.Linear(D, C)
        self.bypass = bypass

    def embed(self, x: Tensor) -> Tensor:
        first = None
        for layer in self.layers:
            x = layer(x)
            first = x if first is None else first
        return x + first if self.bypass else x

    def classify(self, embedding: Tensor) -> Tensor:
        return self.head(embedding)


def test_blocks_below_the_scope_run_once():
    """Kept outputs give the same derivative without running the blocks; a network with a bypass is left whole."""
    x, _ = samples()
    model = Deep(bypass=False).double().eval()
    names = names_of(model, ["layers.3", "head"])
    found = cut.find(model, outputs_of, names, x)
    assert found is not None
    assert (len(found.skipped), found.kept) == (2, model.layers[2])
    assert cut.bytes_per_sample(found, x) == 8 * D
    carried = cut.Carried(found, [x[:5], x[5:]])
    list(carried)
    calls = []
    handles = [layer[0].register_forward_hook(lambda *_: calls.append(1)) for layer in model.layers[:3]]
    part = Batched(Tangent(model, found.replay, names), carried, sizes=[5, N - 5], classes=C)
    kernel = part.kernel()
    vector = torch.randn(sum(t.numel() for t in part.tangent.start.values()), dtype=torch.float64)
    pushed = part.push(vector)
    assert not calls
    for handle in handles:
        handle.remove()
    whole = Batched(Tangent(model, outputs_of, names), [x], sizes=[N], classes=C)
    torch.testing.assert_close(kernel, whole.kernel())
    torch.testing.assert_close(pushed, whole.push(vector))
    layers = [nn.TransformerEncoderLayer(D, 2, 8, batch_first=True) for _ in range(3)]  # keys' bias: no derivative
    attention = Headed(nn.Sequential(*layers, nn.Flatten()), nn.Linear(4 * D, C)).double().eval()
    last = names_of(attention, ["body.2", "head"])
    assert cut.find(attention, outputs_of, last, samples(4, D)[0]) is not None
    assert cut.find(Deep(bypass=True).double().eval(), outputs_of, names, x) is None
    assert cut.find(model, outputs_of, names_of(model, []), x) is None


@pytest.mark.parametrize("twins", [False, True], ids=["possible", "contradiction"])
def test_protected_samples(twins):
    """Every margin is kept and the gradient is balanced by constraints that hold; twins with two labels are named."""
    model = network()
    x, labels = samples()
    rows = torch.tensor([1, 4, 6])
    if twins:
        x[6], labels[6] = x[1], (labels[1] + 1) % C
    wanted = torch.where(rows == 4, (labels[rows] + 1) % C, labels[rows])  # of sample 4 another class than was learnt
    tangent = Tangent(model, outputs_of, names_of(model, []))
    jac, start, ridge = jacobian(tangent, x), tangent.outputs(x).logits, 2.0
    residual = (label_targets(labels, classes=C, amplitude=AMPLITUDE) - start).reshape(-1)
    weights = torch.rand(N * C, dtype=torch.float64) + 0.5
    kernel = jac @ jac.T
    system = exact.DualSystem(kernel, weights, classes=C)
    alpha = system.solve(residual, ridge)
    chosen = differences(rows, wanted, samples=N, classes=C)
    outputs = start.reshape(-1) + kernel @ alpha
    found = protect(system, kernel, chosen, outputs, ridge=ridge, margin=1.5, classes=C)
    if twins:
        assert found.conflicting == (0, 2)
        return
    moved = alpha + found.change
    margins = chosen @ (start.reshape(-1) + kernel @ moved)
    assert float(margins.min()) == pytest.approx(1.5)
    assert float((chosen @ outputs).min()) < 1.5
    delta = jac.T @ moved
    gradient = jac.T @ (weights * (jac @ delta - residual)) + ridge * delta
    assert float((gradient - ridge * jac.T @ found.pressure).norm()) < 1e-8 * float((jac.T @ residual).norm())
    multipliers = torch.linalg.lstsq(chosen.T, found.pressure).solution
    assert float(multipliers.min()) > -1e-9
    assert float((multipliers * (margins - 1.5)).abs().max()) < 1e-8


def test_contributions_are_the_change_of_a_logit():
    """The terms of training samples add up to what delta adds to a logit; a solution by iterations has the same."""
    model = network()
    x, labels = samples()
    tangent = Tangent(model, outputs_of, names_of(model, []))
    start = tangent.outputs(x).logits
    residual = (label_targets(labels, classes=C, amplitude=AMPLITUDE) - start).reshape(-1)
    problem = Problem(residual=residual, weights=torch.ones(N * C, dtype=torch.float64), samples=N, penalty=0.03)
    derivative = Batched(tangent, [x], sizes=[N], classes=C)
    total = sum(tensor.numel() for tensor in tangent.start.values())
    done = pcg.solve(derivative, problem, parameters=total, tolerance=1e-12, iterations=300)
    values = problem.contributions(derivative, done.delta)
    solved = exact.DualSystem(derivative.kernel(), problem.weights, classes=C).solve(residual, N * 0.03)
    torch.testing.assert_close(values, solved, rtol=1e-6, atol=1e-8)
    kept = Contributions.parse(Contributions(ids=list("abcdefghijkl"), values=values.reshape(N, C)).files(), where="v")
    other = samples(seed=3)[0][:1]
    cotangent = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64)
    terms = (tangent.push(x, tangent.pull(other, cotangent))[1].logits * kept.values).sum(1)
    added = tangent.push(other, unflat(done.delta, tangent.start))[1].logits
    assert float(terms.sum()) == pytest.approx(float((added * cotangent).sum()), rel=1e-8)


@pytest.mark.parametrize("kind", ["whole", "largest", "kfac"])
def test_memory_stands_for_the_data_that_are_gone(kind):
    """All eigenvectors: joint training; some, or Kronecker factors: nearer to it than without; read from a file."""
    model = network()
    x, labels = samples()
    names = names_of(model, [])
    tangent = Tangent(model, outputs_of, names)
    start, penalty, old = tangent.outputs(x).logits, 0.03, 7
    residual = label_targets(labels, classes=C, amplitude=AMPLITUDE) - start
    total = sum(tensor.numel() for tensor in tangent.start.values())
    options = {"parameters": total, "tolerance": 1e-13, "iterations": 500}

    def solved(rows: slice, count: int, remembered: Remembered | None = None) -> Tensor:
        part = residual[rows].reshape(-1)
        problem = Problem(
            residual=part, weights=torch.ones_like(part), samples=count, penalty=penalty, remembered=remembered
        )
        derivative = Batched(tangent, [x[rows]], sizes=[len(x[rows])], classes=C)
        return pcg.solve(derivative, problem, **options).delta

    joint, first = solved(slice(0, N), N), solved(slice(0, old), old)
    if kind == "kfac":
        moments = kfac.measured(model, [x[:old]], names, samples=old)
        curvature = Factored.of([(old, moments)], model, names)
    else:
        curvature = largest(jacobian(tangent, x[:old]).T / old**0.5, rank=total if kind == "whole" else old * C // 2)
    kept = Memory(curvature=curvature, samples=old, penalty=penalty)
    read = Memory.parse(kept.file(), model, names, where="v1")
    assert (read.samples, read.penalty) == (old, penalty)
    vector = torch.randn(total, dtype=torch.float64)
    torch.testing.assert_close(read.curvature.times(vector), curvature.times(vector), rtol=1e-4, atol=1e-4)
    remembered = Remembered(curvature=curvature, share=old / N, penalty=penalty, centre=first)
    continued, forgotten = solved(slice(old, N), N, remembered), solved(slice(old, N), N)
    distance, without = float((continued - joint).norm()), float((forgotten - joint).norm())
    assert distance < {"whole": 1e-8, "largest": 0.9, "kfac": 0.9}[kind] * without


def test_two_passes_give_the_gradient_of_the_linearised_network():
    """Values are f_lin and the backward pass is J'u, through the coordinates of the preconditioner."""
    model = network()
    x, labels = samples()
    names = names_of(model, [])
    factors = kfac.factors(model, [x], names, samples=N)
    spread = factors.spread(0.1, dtype=torch.float64)
    streaming = Streaming(model, names, spread=spread, amplitude=AMPLITUDE, penalty=0.1)
    theta = torch.randn(len(streaming.theta), dtype=torch.float64)
    streaming.theta.data.copy_(theta)
    tangent = Tangent(model, outputs_of, names)
    delta = AMPLITUDE * spread(theta)
    torch.testing.assert_close(spread(spread(delta)), factors.preconditioner(0.1)(delta))
    outputs = streaming.outputs_by(outputs_of, x)
    expected = tangent.moved(x, unflat(delta, tangent.start))
    torch.testing.assert_close(outputs.logits.detach(), expected.logits)
    torch.testing.assert_close(outputs.embedding.detach(), expected.embedding)
    streaming.loss(outputs, x, labels).mean().backward()
    residual = (label_targets(labels, classes=C, amplitude=AMPLITUDE) - tangent.outputs(x).logits).reshape(-1)
    problem = Problem(residual=residual, weights=torch.ones(N * C, dtype=torch.float64), samples=N, penalty=0.1)
    slope = problem.slope(Batched(tangent, [x], sizes=[N], classes=C), delta, reduce=pcg.alone)
    torch.testing.assert_close(streaming.theta.grad, spread(slope) / AMPLITUDE, rtol=1e-8, atol=1e-10)
