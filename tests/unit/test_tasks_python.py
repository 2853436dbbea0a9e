"""Tasks from a user's file: what they may be, and what is said when they are wrong."""

import pickle
import textwrap

import pytest

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
    assert task.depth == 3


def test_its_objects_survive_pickling_in_a_process_that_loaded_it(write):
    path = write(GOOD)
    assert pickle.loads(pickle.dumps(build(path, depth=5))).depth == 5  # noqa: S301
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


def test_errors_that_speak_for_themselves_pass(write):
    path = write(
        "from graceful.errors import DataError\n\n\ndef task():\n    raise DataError('no data here; fetch it')\n"
    )
    with pytest.raises(DataError, match="no data here; fetch it"):
        build(path)
