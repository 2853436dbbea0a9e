"""Tasks from a user's file: what they may be, and what is said when they are wrong."""

import pickle
import textwrap

import numpy as np
import pytest
import torch

from graceful import tasks
from graceful.errors import DataError, SpecError
from graceful.spec import PythonTask
from graceful.tasks.base import Task

GOOD = """
    class Own:
        classes = ("a", "b")
        augments = False

        def __init__(self, depth):
            self.depth = depth

        def network(self, classes):
            return None

        def samples(self, split):
            raise KeyError(split)

        def transform(self, items, views):
            return items


    def task(depth=1, *, width=2):
        return Own(depth)
"""


@pytest.fixture
def write(tmp_path):
    def write(source, name="own.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(source).lstrip("\n"))
        return path

    return write


def build(path, **options):
    return tasks.build(PythonTask(file=str(path), options=options))


def message_of(path, **options):
    with pytest.raises(SpecError) as caught:
        build(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_that_defines_task_is_a_task(write):
    task = build(write(GOOD), depth=3)
    assert isinstance(task, Task)
    assert task.own.depth == 3


def test_its_objects_survive_pickling_in_a_process_that_loaded_it(write):
    path = write(GOOD)
    assert pickle.loads(pickle.dumps(build(path, depth=5))).own.depth == 5  # noqa: S301
    assert type(build(path)) is type(build(path))


def test_two_files_of_one_name_stay_apart_and_an_edit_is_seen(write, tmp_path):
    (tmp_path / "other").mkdir()
    one, other = write(GOOD), write(GOOD.replace('("a", "b")', '("x", "y")'), "other/own.py")
    assert (build(one).classes, build(other).classes) == (("a", "b"), ("x", "y"))
    write(GOOD.replace('("a", "b")', '("c", "d")'))
    assert build(one).classes == ("c", "d")


def test_an_unknown_option_is_refused_with_the_nearest(write):
    assert message_of(write(GOOD), dept=1).endswith("takes no such option; did you mean depth?")
    assert "it takes depth, width" in message_of(write(GOOD), zzz=1)


def test_a_required_option_that_is_missing_is_named(write):
    path = write(GOOD.replace("depth=1", "depth"))
    assert "task.options.depth: required" in message_of(path)


def test_a_missing_member_is_named(write):
    assert "without the method transform" in message_of(write(GOOD.replace("def transform", "def transfrom")))
    assert "without the attribute augments" in message_of(write(GOOD.replace("augments = False", "")))
    assert "classes must be a tuple of names, got ['a']" in message_of(write(GOOD.replace('("a", "b")', '["a"]')))
    assert "'a' occurs twice" in message_of(write(GOOD.replace('("a", "b")', '("a", "a")')))


def test_no_file_and_no_function_are_said(write, tmp_path):
    assert "cannot be read" in message_of(tmp_path / "gone.py")
    assert "defines no function task" in message_of(write("x = 1\n"))


@pytest.mark.parametrize(
    ("source", "line", "reason"),
    [
        ("x = 1\ny = x / 0\n", 2, "ZeroDivisionError: division by zero"),
        ("import no_such_library_anywhere\n", 1, "ModuleNotFoundError: No module named"),
        ("def task():\n    return 1 +\n", 2, "SyntaxError"),
        (
            "def task():\n    inner()\n\n\ndef inner():\n    raise ValueError('two\\nlines')\n",
            6,
            "ValueError: two lines",
        ),
    ],
)
def test_an_error_in_the_file_gives_its_line_and_the_exception(write, source, line, reason):
    path = write(source)
    said = message_of(path)
    assert f"{path}:{line}: {reason}" in said


def test_a_relative_path_among_the_options_is_said_to_depend_on_the_working_directory(write, monkeypatch, tmp_path):
    path = write("from pathlib import Path\n\n\ndef task(root):\n    return Path(root).read_text()\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert f"are looked up in the working directory, {elsewhere}; write" in message_of(path, root="data/x")
    assert message_of(path, root="/nowhere/x").endswith("correct the file")


def test_errors_that_speak_for_themselves_pass(write):
    path = write(
        "from graceful.errors import DataError\n\n\ndef task():\n    raise DataError('no data here; fetch it')\n"
    )
    with pytest.raises(DataError, match="no data here; fetch it"):
        build(path)


WHOLE = """
    import numpy as np
    import torch
    from torch import nn

    from graceful.models.base import Headed
    from graceful.tasks.base import Samples


    class Own:
        classes = ("a", "b")
        augments = False

        def network(self, classes):
            return Headed(nn.Linear(3, 4), nn.Linear(4, len(classes)))

        def samples(self, split):
            if split in ("query", "gallery"):
                raise KeyError(split)
            return Samples.of(np.zeros((2, 3), np.float32), [0, 1], classes=self.classes, ids=[split, split + "1"])

        def transform(self, items, views):
            return torch.from_numpy(items)


    def task():
        return Own()
"""


def used(task):
    """Ask a task for everything that training asks it for."""
    assert isinstance(task.network(task.classes), torch.nn.Module)
    for split in ("query", "gallery"):
        with pytest.raises(KeyError):
            task.samples(split)
    for split in ("train", "validation", "test"):
        samples = task.samples(split)
        assert task.transform(samples.read(np.asarray([1, 0, 1])), None).shape == (3, 3)


def test_a_good_task_is_passed_through(write):
    task = build(write(WHOLE))
    used(task)
    samples = task.samples("train")
    assert (task.classes, task.augments) == (("a", "b"), False)
    assert (samples.ids.tolist(), samples.labels.tolist()) == (["train", "train1"], [0, 1])
    assert task.transform(samples.read(np.asarray([1])), None).tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        ("return Headed(nn.Linear(3, 4), nn.Linear(4, len(classes)))", "raise OSError('gone')", "py:14: OSError: gone"),
        ("return Headed(nn.Linear(3, 4), nn.Linear(4, len(classes)))", "return nn.Linear(3, 2)", "without embed and"),
        ("raise KeyError(split)", "raise SystemExit('bye')", "py:18: SystemExit: bye"),
        ("return Samples.of(", "return len(", "py:19: TypeError"),
        ("return Samples.of(", "return tuple(", "TypeError"),
        ("return Samples.of(np", "return None and Samples.of(np", "samples('train') returned a NoneType"),
        ("return torch.from_numpy(items)", "return items @ items[:1]", "py:22: ValueError: matmul"),
        ("return torch.from_numpy(items)", "return items", "transform() returned a ndarray"),
        (
            "return torch.from_numpy(items)",
            "return torch.from_numpy(items)[1:]",
            "of 2 rows for 3 samples",
        ),
    ],
)
def test_what_a_task_does_wrong_later_is_said_with_its_file(write, good, bad, said):
    assert good in WHOLE
    task = build(write(WHOLE.replace(good, bad)))
    with pytest.raises(SpecError) as caught:
        used(task)
    assert said in str(caught.value)
    assert str(task.path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("Samples.of(np.zeros((0, 3), np.float32), [], classes=self.classes, ids=[])", "is empty; training needs"),
        ("Samples.of(np.zeros((1, 3)), [0], classes=('a', 'z'), ids=['x'])", "has classes ('a', 'z'), the task"),
        (
            "Samples.of(np.zeros((1, 3)), [4], classes=self.classes, ids=['x'])",
            "own.py: samples('train'): labels span 4",
        ),
        (
            "Samples.of([[1], [2, 3]], [0, 1], classes=self.classes, ids=['x', 'y'])",
            "samples('train'): items differ in",
        ),
    ],
)
def test_splits_that_cannot_train_are_refused(write, bad, said):
    whole = 'Samples.of(np.zeros((2, 3), np.float32), [0, 1], classes=self.classes, ids=[split, split + "1"])'
    assert whole in WHOLE
    with pytest.raises(DataError) as caught:
        build(write(WHOLE.replace(whole, bad))).samples("train")
    assert said in str(caught.value)


def test_a_file_that_ends_the_program_is_an_error_of_the_file(write):
    assert "own.py:1: SystemExit: 3" in message_of(write("raise SystemExit(3)\n"))
