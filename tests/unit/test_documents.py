"""The strict reader of YAML: what numbers mean, what is refused, and how soon."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from graceful import documents, spec
from graceful.errors import SpecError
from graceful.launch import profile
from graceful.launch.kuberay.profile import KubeRay
from graceful.launch.kubernetes import kubeconfig


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-3.", -3.0),
        (".5", 0.5),
        ("01000", 1000),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", 1000),
        ("1:30", "1:30"),
        ("0b11", "0b11"),
        ("2024-13-45", "2024-13-45"),
        ("2024-01-31", "2024-01-31"),
        ("2024-01-31 10:00:00", "2024-01-31 10:00:00"),
        ("yes", True),
        ("off", False),
        ("~", None),
        ("!!str 5", "5"),
        ("2.60.0", "2.60.0"),
        ("'1e-4'", "1e-4"),
    ],
)
def test_scalars_are_those_of_yaml_1_2_and_times_stay_text(text: str, value: Any) -> None:
    read = documents.parse(text, where="x")
    assert (type(read), read) == (type(value), value)


def bomb(levels: int = 9) -> str:
    first = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    names = "abcdefghijkl"[: levels + 1]
    return first + "".join(
        f"{this}: &{this} [{', '.join([f'*{before}'] * 10)}]\n" for before, this in itertools.pairwise(names)
    )


def merge_bomb(levels: int = 9) -> str:
    names = "abcdefghijkl"[: levels + 1]
    lines = (f"{this}: &{this} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n" for old, this in itertools.pairwise(names))
    return "a: &a {x: 1}\n" + "".join(lines)


REFUSED = {
    "a number by its tag": ("n: !!int abc", "'abc' is not an integer, line 1"),
    "a truth value by its tag": ("\nn: !!bool perhaps", "'perhaps' is neither true nor false, line 2"),
    "nested too deeply": ("a: " + "[" * 100_000, "nested more than 64 levels deep, line 1"),
    "nested sections": (
        "".join(f"{' ' * depth}a:\n" for depth in range(300)),
        "nested more than 64 levels deep, line 65",
    ),
    "aliases that multiply": (bomb(), "aliases that stand for more than 50000 keys and values"),
    "merges that multiply": (merge_bomb(), "aliases that stand for more than 50000 keys and values"),
    "an alias inside itself": ("a: &a [*a]", "an alias that contains itself, line 1"),
    "an alias of nothing": ("a: *b", "undefined alias, line 1"),
    "digits": (f"a: {'9' * 400}", "a number of 400 digits; put it in quotes if it is text, line 1"),
    "a number beyond floats": ("a: 1e999", "'1e999' is larger than any number a computer holds, line 1"),
    "an unknown tag": ("a: !secret b", "the tag '!secret'; leave it out, line 1"),
    "a Python object": ("a: !!python/object/apply:os.system [id]", "leave it out, line 1"),
    "bytes": ("a: !!binary aGk=", "the tag '!!binary'; leave it out"),
    "a time by its tag": ("a: !!timestamp 2024-13-45", "the tag '!!timestamp'; leave it out"),
    "two documents": ("a: 1\n---\nb: 2", "another document"),
    "a key twice": ("a: 1\nb: 2\na: 3", "key 'a' (first in line 1) is written twice; keep one, line 3"),
    "a number for a key": ("1: a", "key '1' is not text; put it in quotes, line 1"),
    "a list for a key": ("? [a]\n: b", "is not text"),
    "a control character": ("a: \0", "control characters are not allowed"),
    "half a surrogate": ("a: \ud800", "not UTF-8"),
    "too many nodes": (f"a: [{'1,' * 60_000}]", "more than 50000 keys and values"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_takes_one_line_and_no_time(text: str, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(SpecError) as caught:
        documents.parse(text, where="v1.yaml")
    assert time.monotonic() - began < 2
    assert caught.value.message.startswith("v1.yaml: not valid YAML (")
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_files_are_read_as_far_as_the_limit_and_named_when_they_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "v1.yaml"
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(SpecError, match=r"v1.yaml: cannot be read \(not UTF-8 at byte 3\)"):
        documents.read(path)
    with pytest.raises(SpecError, match="more than 1048576 bytes"):
        documents.read(Path("/dev/zero"))
    for odd in (tmp_path, Path("nul\0"), tmp_path / ("x" * 300)):
        with pytest.raises(SpecError, match="cannot be read"):
            documents.read(odd)
    reading, writing = os.pipe()
    os.write(writing, b"a: 1")
    os.close(writing)
    assert documents.read(Path(f"/dev/fd/{reading}")) == {"a": 1}
    os.close(reading)


@pytest.mark.parametrize(
    "text",
    ["1e-4", "01000", "0o17", "1:30", "yes", "2024-01-31", "~", "", "<<", "=", "1_000", ".inf", "a: b", "# c", "é\n"],
)
def test_a_text_that_looks_like_something_else_is_written_in_quotes(text: str) -> None:
    assert documents.parse(documents.dump({"a": text}), where="x") == {"a": text}


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)


@given(value=values)
@example(value={"\x85": None, " ": "\u2029"})
def test_what_is_written_is_read_back(value: Any) -> None:
    for unicode in (True, False):
        assert documents.parse(documents.dump(value, allow_unicode=unicode), where="x") == value


def test_the_three_readers_are_one(tmp_path: Path) -> None:
    """Profiles and kubeconfigs lost the first of two sections without a word, and `user: 01000` became 512."""
    twice = tmp_path / "twice.yaml"
    twice.write_text("kind: local\nenv: {A: b}\nenv: {C: d}\n", encoding="utf-8")
    for reader in (spec.load, lambda path: profile.load(str(path)), lambda path: kubeconfig.load(files=[path])):
        with pytest.raises(SpecError, match=r"key 'env' \(first in line 2\) is written twice; keep one, line 3"):
            reader(twice)
    octal = tmp_path / "octal.yaml"
    octal.write_text("kind: kuberay\nnamespace: a\nimage: b\nuser: 01000\n", encoding="utf-8")
    read = profile.load(str(octal))
    assert isinstance(read, KubeRay)
    assert read.user == 1000


def test_task_options_read_numbers_as_the_spec_does(tmp_path: Path) -> None:
    path = tmp_path / "v1.yaml"
    path.write_text("{model: a, name: v1, task: {kind: python, file: t.py, options: {lr: 1e-4, at: 2024-01-31}}}")
    task = spec.load(path, ["task.options.decay=5e-5"]).task
    assert isinstance(task, spec.PythonTask)
    assert task.options == {"lr": 1e-4, "at": "2024-01-31", "decay": 5e-5}
