"""Learners and batches: mappings of tensors of any type, and what a user's file gets wrong about them."""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from graceful import spec, tasks
from graceful.chain import OldOutputs, Predecessor, freeze
from graceful.chain.merging import Merged
from graceful.errors import SpecError
from graceful.learners import Classifier, Learner, batch, learner_of, run
from graceful.lineage.serving import Served
from graceful.losses.embedding_regression import EmbeddingRegression, embedding_regression
from graceful.models import bundle
from graceful.models.base import Outputs
from graceful.programs.fitting import train as program
from graceful.programs.fitting.rehearsal import rehearse
from graceful.programs.outputs.model_outputs import Evaluated, run_on_split, run_versions
from graceful.programs.tuning import fits
from graceful.spec import Compatibility, DigitsTask, PythonTask, RefreshSpec
from graceful.targets import Live, build
from graceful.tasks.base import Task
from graceful.training.batches import answered, gather
from graceful.training.driver import train as run_training
from graceful.training.job import TrainingJob
from graceful.training.merging import Group
from graceful.training.objective import Objective, OldVersion
from tests.support.runs import train

SEQUENCES = Path(__file__).parents[1] / "support" / "sequences.py"


def sequences(width: int = 8) -> Task:
    return tasks.build(PythonTask(file=str(SEQUENCES), options={"width": width}))


NESTED = {"text": {"ids": torch.tensor([[1, 2], [3, 4], [5, 6]]), "mask": torch.ones(3, 2, dtype=torch.bool)},
          "price": torch.tensor([1.0, float("nan"), 3.0])}  # fmt: skip


def test_batches_are_counted_cut_and_described_without_knowing_what_they_hold() -> None:
    assert batch.size(NESTED) == 3
    assert [path for path, _ in batch.leaves(NESTED)] == ["text.ids", "text.mask", "price"]
    assert batch.described(NESTED) == "3 samples, text.ids [3, 2] int64, text.mask [3, 2] bool, price [3] float32"
    assert batch.finite_rows(NESTED).tolist() == [True, False, True]
    assert batch.finite_rows(NESTED["text"]).tolist() == [True, True, True]
    cut = batch.take(NESTED, slice(1, 3))
    assert cut["text"]["ids"].tolist() == [[3, 4], [5, 6]]
    assert batch.to_device(cut, "meta")["price"].device.type == "meta"
    assert batch.described(torch.zeros(2, 3)) == "2 samples, [2, 3] float32"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "f returned a list; return a torch.Tensor, or a mapping of names to tensors"),
        ({"a": {"b": None}}, "f returned a NoneType in a.b"),
        ({3: torch.zeros(2)}, "f returned the key 3; keys of a batch must be strings"),
        ({}, "f returned an empty mapping"),
        ({"a": torch.zeros(2), "b": {"c": torch.zeros(3)}}, "f made the tensor b.c of 3 rows for 2 samples"),
        (torch.zeros(()), "f returned a tensor without axes"),
        (torch.zeros(3, 1), "f made a tensor of 3 rows for 2 samples"),
    ],
)
def test_what_is_no_batch_is_refused_with_the_culprit(value: object, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        batch.require_batch(value, rows=2, who="f")
    assert message in caught.value.message


def test_a_task_without_a_learner_is_a_classifier_of_its_transform() -> None:
    task = tasks.build(DigitsTask())
    learner = learner_of(task)
    assert isinstance(learner, Classifier)
    assert isinstance(learner, Learner)
    train = task.samples("train")
    inputs = learner.collate(train.read(np.arange(3)), None)
    outputs = run(learner, task.network(task.classes), inputs)
    losses = learner.task_loss(outputs, inputs, torch.from_numpy(train.labels[:3]))
    assert losses.shape == (3,)


def test_a_learner_of_a_file_embeds_queries_and_galleries_with_encoders_of_their_own() -> None:
    task = sequences()
    learner = learner_of(task)
    network = task.network(task.classes)
    inputs = learner.collate(task.samples("train").read(np.arange(4)), None)
    queries, gallery = (learner.forward(network, inputs, encoder=name) for name in learner.encoders)
    assert queries.embedding.shape == gallery.embedding.shape == (4, 8)
    assert not torch.equal(queries.embedding, gallery.embedding)


LEARNER = """
import torch
from graceful.models.base import Headed, Outputs
from graceful.tasks.base import Samples
import numpy as np

def labels_of(batch): return batch.long().sum(1)

class L:
    encoders = ("default",)
    def collate(self, items, views): return {COLLATE}
    def forward(self, network, batch, *, encoder): return {FORWARD}
    def task_loss(self, outputs, batch, labels): return {LOSS}

class T:
    classes, augments, learner = ("a", "b"), False, L()
    def network(self, classes): return Headed(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    def samples(self, split):
        return Samples.of(np.zeros((4, 2), np.float32), [0, 1, 0, 1], classes=self.classes, ids=list("wxyz"))

def task(): return T()
"""
GOOD = {"COLLATE": "torch.from_numpy(items)", "FORWARD": "Outputs(*[network.embed(batch)] * 2)", "LOSS": "labels * 1.0"}


def losses_of(task: Task) -> torch.Tensor:
    learner = learner_of(task)
    inputs = learner.collate(task.samples("train").read(np.arange(4)), None)
    outputs = run(learner, task.network(task.classes), inputs)
    return learner.task_loss(outputs, inputs, torch.tensor([0, 1, 0, 1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"COLLATE": "{'x': torch.from_numpy(items), 'n': torch.zeros(1)}"}, "the tensor n of 1 rows for 4 samples"),
        ({"COLLATE": "items"}, "collate() of the learner returned a ndarray; return a torch.Tensor"),
        ({"COLLATE": "1 / 0"}, "ZeroDivisionError"),
        ({"FORWARD": "(1, 2)"}, "forward() of the learner returned a tuple; return graceful.models.base.Outputs"),
        ({"FORWARD": "Outputs(network.embed(batch)[:3], network.embed(batch))"}, "made embedding [3, 3]; must be [4, "),
        (
            {"FORWARD": "Outputs(network.embed(batch), labels_of(batch))"},
            "made logits [4] int64; must be [4, ...], one",
        ),
        ({"FORWARD": "Outputs(network.embed(batch), None)"}, "forward() of the learner made logits a NoneType; must"),
        ({"FORWARD": "Outputs(*[batch] * 2, labels_of(batch))"}, "made mask [4] int64; must be [4] bool"),
        ({"FORWARD": "Outputs(*[batch] * 2, batch > 0)"}, "made mask [4, 2] bool; must be [4] bool"),
        ({"LOSS": "outputs.logits.sum()"}, "task_loss() of the learner returned []; must be one value for each sample"),
        ({"LOSS": "None"}, "task_loss() of the learner returned a NoneType"),
    ],
)
def test_a_learner_that_breaks_its_contract_is_told_in_one_line(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    text = LEARNER
    for name, code in {**GOOD, **changes}.items():
        text = text.replace(f"{{{name}}}", code)
    (tmp_path / "task.py").write_text(text)
    task = tasks.build(PythonTask(file=str(tmp_path / "task.py")))
    with pytest.raises(SpecError) as caught:
        losses_of(task)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_a_learner_without_a_member_is_refused_by_name(tmp_path: Path) -> None:
    text = textwrap.dedent(LEARNER).replace("def collate", "def gather")
    (tmp_path / "task.py").write_text(text.replace("{", "").replace("}", ""))
    with pytest.raises(SpecError, match="the learner, a L, lacks the method collate"):
        tasks.build(PythonTask(file=str(tmp_path / "task.py")))


@pytest.mark.parametrize("member", ["collate", "task_loss", "assets"])
def test_a_member_of_another_type_is_refused_by_name(tmp_path: Path, member: str) -> None:
    text = LEARNER.replace(f"    def {member}", "    def unused") + f"\nL.{member} = {{3: 4}}\n"
    for name, code in GOOD.items():
        text = text.replace(f"{{{name}}}", code)
    (tmp_path / "task.py").write_text(text)
    with pytest.raises(SpecError, match=f"{member} of the learner, a L, is a dict and must be a method") as caught:
        tasks.build(PythonTask(file=str(tmp_path / "task.py")))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("right", "wrong", "name"),
    [
        ("network.head(embedding), text", "network.head(embedding) / 0 * 0, text", "logits"),
        ("        return Outputs(embedding,", "        return Outputs(embedding * torch.nan,", "embedding"),
        ("label_smoothing=0.05)", "label_smoothing=0.05) * torch.nan", "loss"),
    ],
)
def test_nan_of_a_learner_is_told_before_training_with_the_sample(
    tmp_path: Path, right: str, wrong: str, name: str
) -> None:
    text = SEQUENCES.read_text()
    assert right in text
    (tmp_path / "task.py").write_text(text.replace(right, wrong))
    document = spec_of(tmp_path / "task.py")
    task = tasks.build(document.task)
    with pytest.raises(SpecError, match=rf"the {name} of the untrained network is NaN for sample 'text-\d+' of train"):
        rehearse(document, task, task.samples("train"))


@pytest.mark.parametrize("encoders", ["()", "'default'", "('query', 3)"])
def test_encoders_must_be_names(tmp_path: Path, encoders: str) -> None:
    text = LEARNER.replace('("default",)', encoders)
    for name, code in GOOD.items():
        text = text.replace(f"{{{name}}}", code)
    (tmp_path / "task.py").write_text(text)
    with pytest.raises(SpecError, match="encoders of the learner, a L, must be a tuple of names"):
        tasks.build(PythonTask(file=str(tmp_path / "task.py")))


def spec_of(file: Path) -> RefreshSpec:
    section = {"kind": "python", "file": str(file)}
    return spec.parse({"model": "m", "name": "v1", "task": section, "train": {"num_workers": 0}})


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("else mean", "else network.gallery(mean)", "the network in eval mode with the gallery encoder fails"),
        ("else mean", "else mean + torch.rand(1)", "gives other outputs for the same samples each time"),
    ],
)
def test_the_gallery_encoder_is_tried_before_training(tmp_path: Path, right: str, wrong: str, message: str) -> None:
    text = SEQUENCES.read_text()
    assert right in text
    (tmp_path / "task.py").write_text(text.replace(right, wrong))
    document = spec_of(tmp_path / "task.py")
    task = tasks.build(document.task)
    with pytest.raises(SpecError) as caught:
        rehearse(document, task, task.samples("train"))
    assert message in caught.value.message


def test_running_out_of_memory_in_a_loss_is_no_mistake_of_the_file(tmp_path: Path) -> None:
    text = LEARNER
    for name, code in {**GOOD, "LOSS": "(_ for _ in ()).throw(torch.OutOfMemoryError('CUDA'))"}.items():
        text = text.replace(f"{{{name}}}", code)
    (tmp_path / "task.py").write_text(text)
    task = tasks.build(PythonTask(file=str(tmp_path / "task.py")))
    with pytest.raises(torch.OutOfMemoryError):
        losses_of(task)


def test_texts_and_pairs_are_served_as_they_came_and_numbers_as_arrays() -> None:
    seen: list[object] = []

    def version(items: object) -> Outputs:
        seen.append(items)
        return Outputs(torch.zeros(2, 1), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))

    version.classes = ("a", "b")  # type: ignore[attr-defined]
    served = Served(version)  # type: ignore[arg-type]
    texts, pairs, numbers = ["one", "two"], [[1, [2, 3]], [4, [5]]], [[1, 2], [3, 4]]
    for items in (texts, pairs, numbers, {"x": [1, 2]}):
        assert served.predict(items)["label"].tolist() == ["a", "b"]
    assert seen[0] is texts
    assert seen[1] is pairs
    assert isinstance(seen[2], np.ndarray)
    assert seen[3] == {"x": [1, 2]}


def test_the_tasks_own_loss_of_a_learner_is_what_is_trained() -> None:
    seen: list[object] = []

    def own_loss(outputs: Outputs, batch: object, labels: torch.Tensor) -> torch.Tensor:
        seen.append(batch)
        return torch.tensor([1.0, 3.0])

    objective = Objective(Compatibility(), ("a", "b"), [], task_loss=own_loss)
    outputs = Outputs(torch.zeros(2, 1), torch.zeros(2, 2))
    value = objective(outputs, torch.tensor([0, 1]), batch="the batch")
    assert (value.total.item(), value.parts["task"].item(), seen) == (2.0, 2.0, ["the batch"])


MASK = torch.tensor([True, False, True, False, False])
OLD = OldVersion(
    name="v1", classes=("b", "a"), embedding_size=3, head=lambda embedding: embedding[:, :2], correct_share=0.5
)
LOSSES = [
    {"kind": "focal_distillation"},
    {"kind": "focal_distillation", "focus": "negative_flip"},
    {"kind": "logit_displacement"},
    {"kind": "influence", "prototypes": False},
    {"kind": "embedding_regression"},
    {"kind": "reweighting"},
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: "-".join(map(str, loss.values())))
def test_a_masked_sample_weighs_nothing_in_any_loss_and_means_divide_by_the_batch(loss: dict[str, object]) -> None:
    """Equal to the loss of the other samples alone, times their share; nothing flows to the masked rows."""
    generator = torch.Generator().manual_seed(0)
    document = {"losses": [loss], "reference": {"weight": 2.0}}
    compatibility = Compatibility.model_validate(document)
    labels = torch.tensor([0, 1, 1, 0, 1])
    tensors = [torch.randn(5, size, generator=generator) for size in (3, 2, 3, 2, 2)]
    embedding, logits = (tensor.requires_grad_() for tensor in tensors[:2])

    def value(rows: torch.Tensor, mask: torch.Tensor | None):
        outputs = Outputs(embedding[rows], logits[rows], mask)
        present = torch.ones(len(rows), dtype=torch.bool)
        old = OldOutputs(tensors[3][rows], tensors[2][rows], present)
        reference = OldOutputs(tensors[4][rows], torch.zeros(len(rows), 0), present)
        return Objective(compatibility, ("a", "b"), [OLD])(outputs, labels[rows], [old], reference)

    masked, alone = value(torch.arange(5), MASK), value(MASK.nonzero().flatten(), None)
    share = MASK.float().mean()
    assert masked.parts.keys() == alone.parts.keys()
    for name, part in masked.parts.items():
        assert torch.allclose(part, alone.parts[name] * share), name
    assert masked.correct == alone.correct
    masked.total.backward()
    gradients = [tensor.grad[~MASK] for tensor in (embedding, logits) if tensor.grad is not None]
    assert gradients
    assert not any(bool(gradient.any()) for gradient in gradients)


def test_a_masked_sample_weighs_nothing_in_merged_terms() -> None:
    loss = Compatibility.model_validate({"losses": [{"kind": "embedding_regression"}]}).losses[0]
    group = Group(key="chain", loss=loss, loss_index=0, versions=(0, 1), columns=None)
    rows, target = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), torch.eye(5, 3)
    outputs = Outputs(rows, torch.zeros(5, 2), MASK)
    value = group.value(outputs, Merged(target=target, weight=torch.ones(5)), columns=None)
    alone = group.value(Outputs(rows[MASK], torch.zeros(2, 2)), Merged(target[MASK], torch.ones(2)), columns=None)
    assert torch.allclose(value, alone * MASK.float().mean())


def test_a_masked_sample_has_no_answer_in_caches_evaluation_and_serving(tmp_path: Path) -> None:
    task = sequences()
    test, version = task.samples("test"), frozen(task)
    empty = np.array([not text for text in test.read(np.arange(len(test)))])
    assert 0 < empty.sum() < len(test)
    cache = build(version, test, views=None, root=tmp_path)
    assert np.array_equal(~cache.present[0], empty)
    live = Live(predecessor=version).fetch(np.arange(8), test.read(np.arange(8)), None, 0)
    assert live.present.tolist() == (~empty[:8]).tolist()
    (measured,) = run_versions([version], Evaluated(test=test, query=test, gallery=test), batch_size=64)
    assert np.array_equal(measured.predictions.has_prediction(), ~empty)
    assert measured.queries is not None
    assert np.array_equal(np.isnan(measured.queries.vectors).all(1), empty)
    labels = Served(version).predict(["w1 w2", ""])["label"].tolist()
    assert labels[0] in task.classes
    assert labels[1] == ""
    right = torch.cat(
        [hits for _, hits in answered(task, test, [np.arange(len(test))], forward=forward(task), device="cpu")]
    )
    assert not right.numpy()[empty].any()


def forward(task: Task):
    network = task.network(task.classes)
    return lambda inputs: run(learner_of(task), network, inputs)


def frozen(task: Task) -> Predecessor:
    return Predecessor(
        name="v1",
        model_id="m-v1",
        digest="d",
        classes=task.classes,
        embedding_size=8,
        network=freeze(task.network(task.classes)),
        learner=learner_of(task),
        transform_digest="t",
    )


def test_galleries_are_embedded_by_the_gallery_encoder_in_evaluation_and_search() -> None:
    task = sequences()
    version, test = frozen(task), task.samples("test")
    queries, gallery = (run_on_split(version, test, 64, role=role).embeddings for role in ("query", "gallery"))
    assert not np.array_equal(queries, gallery, equal_nan=True)
    (measured,) = run_versions([version], Evaluated(test=test, query=test, gallery=test), batch_size=64)
    assert measured.queries is not None
    assert measured.gallery is not None
    assert np.array_equal(measured.queries.vectors, queries, equal_nan=True)
    assert np.array_equal(measured.gallery.vectors, gallery, equal_nan=True)
    asked: list[tuple[str, str]] = []
    document = spec.parse({"model": "m", "name": "v2", "task": {"kind": "digits"}})

    def recording(self: Predecessor, items: object, views: object = None, *, role: str = "query") -> Outputs:
        asked.append((self.name, role))
        return Outputs(torch.eye(len(items)), torch.eye(len(items)))  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predecessor, "__call__", recording)
        fits._cross_test(dataclasses.replace(version, name="new"), version, test, document, task)
    assert set(asked) == {("new", "query"), ("v1", "gallery")}


PROJECTION = """
import torch
from torch import nn
from graceful.models.base import Outputs
from graceful.tasks.base import Samples
import numpy as np

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.proj, self.head = nn.Linear(2, 4), nn.Linear(4, 3), nn.Linear(4, 2)
    def classify(self, features): return self.head(features)

class L:
    encoders = ("default",)
    def collate(self, items, views): return torch.from_numpy(np.asarray(items))
    def forward(self, network, batch, *, encoder):
        features = network.body(batch)
        return Outputs(network.proj(features), network.head(features))
    def task_loss(self, outputs, batch, labels):
        return nn.functional.cross_entropy(outputs.logits, labels, reduction="none")

class T:
    classes, augments, learner = ("a", "b"), False, L()
    def network(self, classes): return Network()
    def samples(self, split):
        return Samples.of(np.eye(4, 2, dtype=np.float32), [0, 1, 0, 1], classes=self.classes, ids=list("wxyz"))

def task(): return T()
"""


def test_a_projection_that_only_losses_against_predecessors_reach_can_be_trained(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(PROJECTION)
    train = {"num_workers": 2, "batch_size": 4, "engine": {"kind": "torch"}}
    document = {"model": "m", "name": "v2", "task": {"kind": "python", "file": str(tmp_path / "task.py")}}
    reached = spec.parse({**document, "train": train, "compatibility": {"losses": [{"kind": "embedding_regression"}]}})
    task = tasks.build(reached.task)
    version = rehearse(reached, task, task.samples("train"))
    assert version.embedding_size == 3
    alone = spec.parse({**document, "train": train})
    with pytest.raises(SpecError, match=r"the loss does not reach proj\.weight, proj\.bias"):
        rehearse(alone, task, task.samples("train"))


def trained(name: str, home: Path, *, ancestors: tuple[Path, ...] = (), **compatibility: object) -> Path:
    section = {"kind": "python", "file": str(SEQUENCES), "options": {"width": 8}}
    recipe = {"num_workers": 0, "engine": {"kind": "torch"}, "epochs": 1, "batch_size": 32}
    document = {"model": "m", "name": name, "task": section, "train": recipe, "compatibility": compatibility}
    train(spec.parse(document), run_dir=home / name, home=home, ancestors=ancestors)
    return home / name / "model"


@pytest.mark.parametrize("mode", ["keyed", "live"])
def test_a_loss_may_compare_with_the_gallery_encoder_of_a_predecessor(tmp_path: Path, mode: str) -> None:
    """Cached or live, it sees what the gallery encoder makes of the very view, and other losses the query encoder's."""
    first = trained("v1", tmp_path)
    losses = [{"kind": "focal_distillation"}, {"kind": "embedding_regression", "encoder": "gallery"}]
    seen: list[TrainingJob] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "run_training", lambda job, **_: (seen.append(job), run_training(job, **_))[1])
        trained("v2", tmp_path, ancestors=(first,), losses=losses, targets={"mode": mode, "views": 1})
    (job,) = seen
    assert len(list((tmp_path / "targets").glob("*/meta.json"))) == {"keyed": 2, "live": 0}[mode]
    task = tasks.build(job.spec.task)
    positions = np.arange(8)
    slice_ = gather(job, task, device=torch.device("cpu")).slice(positions, epoch=0)
    samples = task.samples("train")
    views = tasks.view_numbers(samples.ids[positions], job.effective_seed, 0)
    version = bundle.load(first, augment_like=job.spec.task)
    by = {role: version(samples.read(positions), views, role=role) for role in ("query", "gallery")}  # type: ignore[arg-type]
    (old,) = slice_.old
    assert old is not None
    assert old.gallery is not None
    torch.testing.assert_close(old.embedding, by["query"].embedding.nan_to_num(), atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(old.gallery, by["gallery"].embedding.nan_to_num(), atol=1e-2, rtol=1e-2)
    assert not torch.allclose(old.gallery, old.embedding, atol=1e-2, rtol=1e-2)
    objective = Objective(job.compatibility, task.classes, gather(job, task, device=torch.device("cpu")).versions)
    outputs = Outputs(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(8, 3))
    part = objective(outputs, slice_.labels, slice_.old).parts["embedding_regression/v1"]
    each = embedding_regression(outputs.embedding, old.gallery)
    torch.testing.assert_close(part, each.where(old.present, 0.0).mean())


def test_the_encoder_of_a_loss_is_the_query_s_unless_written_and_then_does_not_merge() -> None:
    default, gallery = EmbeddingRegression(), EmbeddingRegression(encoder="gallery")
    assert "encoder" not in default.model_dump()
    assert (default.reads, gallery.reads) == ({"embedding"}, {"gallery"})
    assert default.merge is not None
    assert gallery.merge is None
    version = OldVersion(name="v1", classes=("a", "b"), embedding_size=2)
    outputs, old = (
        Outputs(torch.eye(2), torch.eye(2)),
        OldOutputs(torch.eye(2), torch.eye(2).flip(0), torch.ones(2) > 0),
    )
    values = [
        Objective(Compatibility.model_construct(losses=(loss,)), ("a", "b"), [version])(outputs, torch.arange(2), [old])
        for loss in (default, gallery)
    ]
    assert values[0].total == values[1].total, "a version with one encoder has one embedding"
