"""Code that travels: the same files give the same bytes, the digest names the content, nothing unpacks outside."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import marshal
import os
import random
import stat
import struct
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from graceful import packing, spec, tasks
from graceful.errors import IntegrityError, SpecError
from graceful.spec import PythonTask
from graceful.tasks import code, python_task
from graceful.tasks.importing import VerifiedModules

TASK = """
    from shapes import CLASSES

    class Own:
        classes = CLASSES
        augments = False
        def network(self, classes): return None
        def samples(self, split):
            import late
            return late.samples(split)
        def transform(self, items, views): return items

    def task():
        return Own()
"""
FILES = {
    "task.py": textwrap.dedent(TASK),
    "shapes.py": "CLASSES = ('a', 'b')\n",
    "late.py": "def samples(split):\n    raise KeyError(split + ' is late')\n",
    "table/names.csv": "x\n",
}


def folder(root: Path, files: dict[str, str] | None = None) -> Path:
    for name, text in (FILES if files is None else files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def _clean(own_modules: None) -> None:
    """Every test loads folders of its own."""


def names_in(bundle: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        return archive.namelist()


def test_the_same_files_give_the_same_bytes_whatever_their_order_times_and_rights(tmp_path: Path) -> None:
    one = folder(tmp_path / "one")
    shuffled = list(FILES.items())
    random.Random(3).shuffle(shuffled)
    other = folder(tmp_path / "other", dict(shuffled))
    os.utime(other / "task.py", (1, 1))
    (other / "shapes.py").chmod(0o700)
    assert packing.pack(one) == packing.pack(other)
    assert names_in(packing.pack(one)) == ["late.py", "shapes.py", "table/names.csv", "task.py"]
    assert code.digest(str(one)) == hashlib.sha256(packing.pack(one)).hexdigest()


def test_the_bytes_of_a_bundle_do_not_change_with_releases(tmp_path: Path) -> None:
    small = folder(tmp_path / "small", {"task.py": "x = 1\n", "sub/b.py": ""})
    assert code.digest(str(small)) == "eaffc185dcf121aa1cd9fa261c3a613055a4084f05d89a877c2674ed9c6c921f"


def test_bytecode_and_hidden_files_do_not_count_and_every_other_does(tmp_path: Path) -> None:
    root = folder(tmp_path / "t")
    before = code.digest(str(root))
    folder(root, {"__pycache__/task.cpython-311.pyc": "x", ".git/config": "x", ".env": "SECRET=1", "table/.x": "x"})
    assert code.digest(str(root)) == before
    (root / "table" / "names.csv").write_text("y\n")
    assert code.digest(str(root)) != before


def test_one_file_travels_as_task_and_is_named_by_its_own_bytes(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("x = 1\n")
    assert names_in(packing.pack(path)) == ["task.py"]
    assert code.digest(str(path)) == hashlib.sha256(b"x = 1\n").hexdigest()


def test_a_link_to_a_file_inside_is_that_file(tmp_path: Path) -> None:
    root = folder(tmp_path / "t")
    (root / "again.py").symlink_to("shapes.py")
    with zipfile.ZipFile(io.BytesIO(packing.pack(root))) as archive:
        assert archive.read("again.py") == archive.read("shapes.py")


def leaving(root: Path) -> None:
    (root.parent / "outside.py").write_text("secret = 1\n")
    (root / "inside.py").symlink_to(root.parent / "outside.py")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (leaving, r"inside\.py leads out of its folder, to .*outside\.py; copy it"),
        (lambda root: (root / "up").symlink_to(root.parent), r"up leads out of its folder"),
        (lambda root: (root / "self").symlink_to(root), r"self is not a file"),
        (lambda root: (root / "gone.py").symlink_to("nowhere.py"), r"gone\.py is not a file"),
        (lambda root: os.mkfifo(root / "pipe"), r"pipe is not a file"),
        (lambda root: (root / "task.py").unlink(), r"is a folder without task\.py"),
        (lambda root: (root / "a\\b.py").touch(), r"not a plain UTF-8 name"),
        (lambda root: (root / "a\nb.py").touch(), r"not a plain UTF-8 name"),
    ],
)
def test_what_cannot_travel_is_refused_in_one_line(tmp_path: Path, spoil: object, said: str) -> None:
    root = folder(tmp_path / "t")
    spoil(root)  # type: ignore[operator]
    with pytest.raises(SpecError, match=said) as caught:
        packing.pack(root)
    assert "\n" not in caught.value.message


def test_too_much_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "t")
    with (root / "data.bin").open("wb") as file:
        file.truncate(10 * 2**40)  # no disk is that large: reading it would fail otherwise
    with pytest.raises(SpecError, match=r"at most 64 MiB travel; leave data out"):
        packing.pack(root)
    (root / "data.bin").unlink()
    monkeypatch.setattr(packing, "MOST", 3)
    with pytest.raises(SpecError, match="more than 3 files"):
        packing.pack(root)


# Unpacking.


def archive_of(*entries: tuple[str, bytes], kind: int = stat.S_IFREG, method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries:
            entry = zipfile.ZipInfo("x")
            entry.filename = name
            entry.external_attr = (kind | 0o644) << 16
            archive.writestr(entry, data, method)
    return buffer.getvalue()


def test_what_was_packed_unpacks(tmp_path: Path) -> None:
    root = folder(tmp_path / "t")
    code.unpack(packing.pack(root), tmp_path / "u", where="x.zip")
    assert packing.pack(tmp_path / "u") == packing.pack(root)


@pytest.mark.parametrize(
    "bundle",
    [
        archive_of(("task.py", b""), ("../evil.py", b"")),
        archive_of(("task.py", b""), ("a/../../evil.py", b"")),
        archive_of(("task.py", b""), ("/tmp/evil.py", b"")),
        archive_of(("task.py", b""), ("a\\..\\evil.py", b"")),
        archive_of(("task.py", b""), ("a//evil.py", b"")),
        archive_of(("task.py", b""), ("folder/", b"")),
        archive_of(("task.py", b"/etc/passwd"), kind=stat.S_IFLNK),
        archive_of(("task.py", bytes(10**6)), method=zipfile.ZIP_DEFLATED),
        archive_of(("other.py", b"")),
        archive_of(),
        b"",
        b"PK\x05\x06",
        archive_of(("task.py", b"x" * 100))[:-30],
        archive_of(("task.py", b"x" * 100)).replace(b"xxxx", b"yyyy", 1),
    ],
)
def test_an_unsafe_or_damaged_archive_is_not_unpacked(tmp_path: Path, bundle: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"^x\.zip: "):
        code.unpack(bundle, tmp_path / "deep" / "u", where="x.zip")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_name_twice_or_too_much_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = archive_of(("task.py", b"1"), ("task.py", b"2"))
    with pytest.raises(IntegrityError, match="occur twice"):
        code.unpack(twice, tmp_path / "u", where="x.zip")
    monkeypatch.setattr(packing, "LARGEST", 99)
    with pytest.raises(IntegrityError, match=r"100 bytes in 1 files, at most 99"):
        code.unpack(archive_of(("task.py", b"x" * 100)), tmp_path / "u", where="x.zip")


@pytest.mark.parametrize("file", ["s3://b/code/short.zip", "https://b/code/" + "0" * 64 + ".zip", "s3://b/x/task.py"])
def test_an_address_that_names_no_bundle_is_refused_by_the_spec(file: str) -> None:
    document = {"model": "m", "name": "v1", "task": {"kind": "python", "file": file}}
    with pytest.raises(SpecError, match=r"task\.file.*must be a path, or s3://bucket/prefix/code/<SHA-256>\.zip"):
        spec.parse(document)


def test_the_digest_of_a_bundle_is_its_name_without_a_look_at_it() -> None:
    uri = packing.address("s3://b/team/", "ab" * 32)
    assert uri == f"s3://b/team/code/{'ab' * 32}.zip"
    assert python_task.source_digest(PythonTask(file=uri)) == "ab" * 32


# Verified code.


def planted(marker: Path) -> str:
    """A module that leaves a mark and looks like both of those it would stand for."""
    rest = "CLASSES = ('x', 'y')\ndef samples(split):\n    raise KeyError('planted')\n"
    return f"open({str(marker)!r}, 'w').close()\n{rest}"


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[PythonTask, Path]:
    """A bundle that was fetched before, and its folder; nothing answers where it came from."""
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))
    packed = packing.pack(folder(tmp_path / "t"))
    digest = hashlib.sha256(packed).hexdigest()
    target = tmp_path / "home" / "code" / digest
    code.unpack(packed, target, where="x.zip")
    monkeypatch.setattr(code.storage, "list_objects", lambda uri: iter(()))
    return PythonTask(file=packing.address("s3://b", digest)), target


def test_an_unpacked_bundle_is_run_without_a_look_at_the_bucket(unpacked: tuple[PythonTask, Path]) -> None:
    section, target = unpacked
    task = tasks.build(section)
    assert task.classes == ("a", "b")
    with pytest.raises(KeyError, match="query is late"):
        task.samples("query")
    assert str(target) not in sys.path


def test_a_bundle_that_was_changed_after_it_was_unpacked_is_not_run(
    unpacked: tuple[PythonTask, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section, target = unpacked
    before = (target / "shapes.py").read_text()
    packed = packing.pack(target)
    monkeypatch.setattr(code, "_download", lambda uri, wanted: packed)
    for name, text in (
        ("shapes.py", planted(tmp_path / "ran")),
        ("numpyx.py", ""),
        ("task.py", planted(tmp_path / "ran")),
    ):
        former = (target / name).read_text() if (target / name).exists() else None
        (target / name).write_text(text)
        with pytest.raises(IntegrityError, match=r"is not what was unpacked there from s3://b/code/.*; delete it"):
            tasks.build(section)
        (target / name).unlink() if former is None else (target / name).write_text(former)
    assert (target / "shapes.py").read_text() == before
    assert tasks.build(section).classes == ("a", "b")
    assert not (tmp_path / "ran").exists()


def test_what_is_put_beside_verified_code_is_never_imported(unpacked: tuple[PythonTask, Path], tmp_path: Path) -> None:
    """Bytecode does not count for the digest, and a module may be imported long after the digest was checked."""
    section, target = unpacked
    source = target / "shapes.py"
    bytecode = Path(importlib.util.cache_from_source(str(source)))
    bytecode.parent.mkdir()
    compiled = compile(planted(tmp_path / "ran"), str(source), "exec")
    stamp = source.stat()
    header = importlib.util.MAGIC_NUMBER + struct.pack("<III", 0, int(stamp.st_mtime), stamp.st_size)
    bytecode.write_bytes(header + marshal.dumps(compiled))
    task = tasks.build(section)
    assert task.classes == ("a", "b")
    (target / "late.py").write_text(planted(tmp_path / "ran"))
    with pytest.raises(KeyError, match="query is late"):
        task.samples("query")
    assert not (tmp_path / "ran").exists()


def test_a_module_put_into_a_verified_package_is_not_found(tmp_path: Path) -> None:
    package = tmp_path / "fast_shapes"
    package.mkdir()
    (package / "_compiled.py").write_text("raise SystemExit('unverified code ran')")
    finder = VerifiedModules(tmp_path, {"fast_shapes/__init__.py": b""})
    with pytest.raises(ModuleNotFoundError, match=r"fast_shapes\._compiled"):
        finder.find_spec("fast_shapes._compiled", [str(package)])
    assert finder.find_spec("elsewhere.module", ["/usr/lib"]) is None


def test_packages_and_folders_of_verified_code_are_imported_as_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imports = "import json\nfrom deep import CLASSES\nfrom plain.inner import CLASSES as again\n"
    files = {
        "task.py": FILES["task.py"].replace("\nfrom shapes import CLASSES\n", imports),
        "deep/__init__.py": "from deep.names import CLASSES\nfrom . import names\n",
        "deep/names.py": "CLASSES = ('a', 'b')\n",
        "plain/inner.py": "from pathlib import Path\nCLASSES = Path(__file__).with_name('x.csv').read_text()\n",
        "plain/x.csv": "x",
        "json/data.py": "",
        "numpy/linalg.py": "",
    }
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))
    packed = packing.pack(folder(tmp_path / "t", files))
    monkeypatch.setattr(code, "_download", lambda uri, wanted: packed)
    section = PythonTask(file=packing.address("s3://b", hashlib.sha256(packed).hexdigest()))
    assert tasks.build(section).classes == ("a", "b")
    import json

    assert json.loads("[]") == []
    assert sys.modules["numpy.linalg"].__file__ != str(tmp_path)


# Importing.


def build(root: Path) -> tasks.base.Task:
    return tasks.build(PythonTask(file=str(root)))


def test_a_folder_is_a_task_with_the_modules_beside_it_also_late(tmp_path: Path) -> None:
    task = build(folder(tmp_path / "t"))
    assert task.classes == ("a", "b")
    with pytest.raises(KeyError, match="query is late"):
        task.samples("query")
    assert not list(tmp_path.rglob("shapes*.pyc"))


def test_an_edit_beside_the_file_is_seen_and_no_edit_imports_nothing_again(tmp_path: Path) -> None:
    root = folder(tmp_path / "t")
    before = build(root)
    assert type(build(root).own) is type(before.own)  # type: ignore[attr-defined]
    (root / "shapes.py").write_text("CLASSES = ('c', 'd')\n")
    assert build(root).classes == ("c", "d")
    assert tasks.transform_digest(PythonTask(file=str(root))) != ""


def test_two_folders_with_modules_of_one_name_stay_apart(tmp_path: Path) -> None:
    one = folder(tmp_path / "one")
    other = folder(tmp_path / "other", {**FILES, "shapes.py": "CLASSES = ('x', 'y')\n"})
    assert (build(one).classes, build(other).classes) == (("a", "b"), ("x", "y"))


@pytest.mark.parametrize(
    ("name", "said"), [("json.py", "is Python's own"), ("numpy/__init__.py", "is loaded already from elsewhere")]
)
def test_a_module_that_would_hide_another_is_refused(tmp_path: Path, name: str, said: str) -> None:
    root = folder(tmp_path / "t", {**FILES, name: ""})
    with pytest.raises(SpecError, match=f"{said}; give it another name here"):
        build(root)
    assert str(root) not in sys.path


def test_an_error_beside_the_file_names_the_line_that_imports_it(tmp_path: Path) -> None:
    root = folder(tmp_path / "t", {**FILES, "shapes.py": "1 / 0\n"})
    with pytest.raises(SpecError, match=r"task\.py:2: ZeroDivisionError"):
        build(root)
    (root / "shapes.py").write_text("CLASSES = (\n")
    with pytest.raises(SpecError, match=r"shapes\.py:1: SyntaxError"):
        build(root)
