"""Shards: tar files become samples that are read by range; what is wrong with one is said with its name."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graceful import spec, tasks
from graceful.errors import DataError, SpecError
from graceful.programs.outputs.flipped import excerpts, thumbnails
from graceful.tasks.photos import Frame
from graceful.tasks.shards import files
from graceful.tasks.shards.files import expanded
from tests.support import shards
from tests.support.shards import Sample, packed, samples, write

ALL = ("train", "validation", "constraint", "test")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def build(files: Any, *, members: dict[str, Any] | None = None, **task: Any) -> Any:
    """A task of images by default."""
    document = {"kind": "shards", "files": files, "members": members or {"image": "png"}, **task}
    if isinstance(files, Path):
        document["files"] = str(files)
    return tasks.build(spec.parse({"model": "m", "name": "v1", "task": document}).task)


def everyone(task: Any) -> list[str]:
    return [str(name) for split in ALL for name in task.samples(split).ids]


def test_images_are_read_by_range_and_do_not_depend_on_how_they_are_sharded(tmp_path: Path) -> None:
    few, many = (build(write(tmp_path / str(count), samples(200), shards=count)) for count in (2, 7))
    assert few.classes == tuple("0123456789")
    for split in ALL:
        one, other = few.samples(split), many.samples(split)
        assert one.digest == other.digest
        assert one.ids.tolist() == other.ids.tolist()
    assert sorted(everyone(few)) == [f"{index:06d}" for index in range(200)]
    train = few.samples("train")
    photos = train.read(np.asarray([3, 1]))
    images, labels = shards.digits()
    for photo, position in zip(photos, (3, 1), strict=True):
        row = int(train.ids[position])
        assert few.classes[train.labels[position]] == str(labels[row])
        wanted = shards.Image.open(io.BytesIO(shards.picture(images[row]))).convert("RGB")
        assert photo.square(Frame(size=16)).tolist() == np.asarray(wanted).tolist()
    assert few.transform(photos, None).shape == (2, 3, 64, 64)
    folder = tasks.build(spec.ImageFolderTask(root="/gone", size=8, channels=1))  # of a predecessor
    assert folder.transform(photos, None).shape == (2, 1, 8, 8)
    assert set(thumbnails(train.ids[:3].tolist(), train)) == set(train.ids[:3].tolist())


def test_an_index_is_made_once_and_a_new_shard_costs_its_own_alone(tmp_path: Path, home: Path) -> None:
    pattern = write(tmp_path / "s", samples(90))
    before = everyone(build(pattern))
    parts = {path: path.stat().st_mtime_ns for path in home.glob("cache/shards/parts/*/*/keys.npy")}
    assert len(parts) == 3
    (tmp_path / "s" / "003.tar").write_bytes(packed(samples(30, start=90)))
    assert set(before) < set(everyone(build(pattern)))
    again = {path: path.stat().st_mtime_ns for path in home.glob("cache/shards/parts/*/*/keys.npy")}
    assert len(again) == 4
    assert parts.items() < again.items()


def test_a_damaged_index_is_named_with_its_remedy(tmp_path: Path, home: Path) -> None:
    pattern = write(tmp_path / "s", samples(90))
    build(pattern).samples("train")
    for path in home.rglob("ids.npy"):
        path.write_bytes(b"rot")
    with pytest.raises(DataError, match=r"ids.npy: the index of shards is damaged; delete .*/cache/shards, and it is"):
        build(pattern).samples("train").ids.tolist()


def test_names_come_from_members_and_from_keys_of_json(tmp_path: Path) -> None:
    pattern = write(tmp_path / "s", samples(240))
    task = build(
        pattern,
        members={"image": ["jpg", "png"], "label": "json:meta.category", "id": "json:row", "group": "json:owner"},
    )
    assert task.classes == tuple(f"digit {number}" for number in range(10))
    parts = [task.samples(split) for split in ALL]
    assert sorted(int(name) for part in parts for name in part.ids) == list(range(240))
    owners = [set(part.groups.tolist()) for part in parts]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 60
    weighted = build(pattern, members={"image": "png", "weight": "json:ink"}).samples("train")
    images, _ = shards.digits()
    assert weighted.weights is not None
    assert weighted.weights[0] == pytest.approx(images[int(weighted.ids[0])].mean())
    assert 0 < len(build(pattern, share=0.5).samples("train")) < len(parts[0])


def test_splits_come_from_files_or_from_a_field(tmp_path: Path) -> None:
    table = samples(120)
    write(tmp_path / "a", table[:80])
    write(tmp_path / "b", table[80:], shards=1)
    task = build({"train": [str(tmp_path / "a" / "{000..002}.tar")], "test": [str(tmp_path / "b")]})
    assert task.samples("test").ids.tolist() == [key for key, _ in table[80:]]
    assert len(task.samples("train")) + len(task.samples("validation")) + len(task.samples("constraint")) == 80
    with pytest.raises(KeyError):
        task.samples("query")
    named = [
        (key, {**members, "split": (b"val", b"test", *[b"train"] * 4)[index % 6]})
        for index, (key, members) in enumerate(table)
    ]
    field = build(write(tmp_path / "c", named), members={"image": "png", "split": "split"})
    assert len(field.samples("validation")) == len(field.samples("test")) == 20
    named[7][1]["split"] = b"holdout"
    with pytest.raises(DataError, match=r"000.tar: sample '000007' is in 'holdout', which is not a split; write train"):
        build(write(tmp_path / "d", named), members={"image": "png", "split": "split"}).samples("train")


def test_texts_and_numbers_are_read_as_a_learner_asks(tmp_path: Path) -> None:
    pattern = write(tmp_path / "s", samples(120))
    task = build(
        pattern, members={"features": ["json:ink", "json:row"], "label": "cls"}, network={"kind": "perceptron"}
    )
    train = task.samples("train")
    batch = task.learner.collate(train.read(np.arange(len(train))), None)
    assert batch.mean(0).abs().max() < 1e-6
    row = train.read(np.arange(1))[0]
    assert row["json:row"] == int(train.ids[0])
    assert excerpts(train.ids[:1].tolist(), train) == {
        train.ids[0]: f"json:ink = {row['json:ink']} | json:row = {row['json:row']}"
    }
    network = {"kind": "transformers", "checkpoint": "none"}
    texts = build(pattern, members={"text": "txt", "pair": "json:owner"}, network=network).samples("test")
    first = texts.read(np.arange(1))[0]
    assert first["txt"].endswith(f"of {int(texts.ids[0])}")
    assert first["json:owner"] == f"owner-{int(texts.ids[0]) // 4}"


def test_samples_of_other_splits_that_repeat_training_samples_are_counted(tmp_path: Path) -> None:
    table = samples(120)
    images = [members["png"] for _, members in table]
    again = [(key, {**members, "png": images[index // 2]}) for index, (key, members) in enumerate(table)]
    assert build(write(tmp_path / "a", table)).notes == ()
    task = build(write(tmp_path / "b", again))
    train = {images[int(name) // 2] for name in task.samples("train").ids.tolist()}
    test = task.samples("test").ids.tolist()
    count = sum(images[int(name) // 2] in train for name in test)
    assert count > 0
    (note,) = task.notes
    assert f"{count} of {len(test)} test samples embed the same as a training sample; task.members.group keeps" in note
    assert build(write(tmp_path / "b", again), members={"image": "png", "group": "json:owner"}).notes == ()


def changed(index: int, **members: bytes | None) -> list[Sample]:
    table = samples(120)
    kept = {**table[index][1], **members}
    table[index] = (table[index][0], {ending: data for ending, data in kept.items() if data is not None})
    return table


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (changed(5, cls=None), r"000.tar: sample '000005' has no member .cls; correct the shard, or write"),
        (changed(5, cls=b" \n"), r"000.tar: sample '000005' has an empty member .cls"),
        (changed(50, png=None), r"001.tar: sample '000050' has no member .png"),
        (changed(50, png=b""), r"001.tar: sample '000050' has an empty member .png"),
        (changed(50, cls=b"\xff\xfe"), r"001.tar: sample '000050' has a member .cls that is not UTF-8"),
        (changed(5, cls=b"a\nb"), r"000.tar: sample '000005' has more than one line or 1024 characters as cls"),
        ([*samples(119), samples(1)[0]], r"002.tar: the id '000000' is that of a sample of .*000.tar, too; give each"),
    ],
)
def test_bad_samples_are_named_and_can_be_left_out(table: list[Sample], message: str, tmp_path: Path) -> None:
    pattern = write(tmp_path / "s", table)
    with pytest.raises(DataError, match=message):
        build(pattern).samples("train")
    if "the id" not in message:
        skipping = build(pattern, on_bad_sample="skip")
        assert len(everyone(skipping)) == 119
        assert skipping.notes[0].startswith("1 of 120 samples were left out, because they cannot be used; the first: ")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (b"{", "has a member .json that is not JSON"),
        (b'{"meta": {"category": null}}', "has no value at json:meta.category"),
        (b'{"meta": {"category": [1]}}', "has a list or an object at json:meta.category, which must be one value"),
        (b'{"meta": {"category": 1.5}}', "has a number with a fraction as json:meta.category"),
    ],
)
def test_bad_values_of_json_are_named(facts: bytes, message: str, tmp_path: Path) -> None:
    task = build(write(tmp_path, changed(5, json=facts)), members={"image": "png", "label": "json:meta.category"})
    with pytest.raises(DataError, match=f"sample '000005' {message}"):
        task.samples("train")


def test_images_that_cannot_be_decoded_are_named_when_read_or_left_out(tmp_path: Path) -> None:
    table = changed(5, png=samples(6)[5][1]["png"][:-60])
    pattern = write(tmp_path / "s", table)
    task = build(pattern)
    split = next(task.samples(name) for name in ALL if "000005" in task.samples(name).ids.tolist())
    with pytest.raises(DataError, match=r"000.tar, member 000005.png: not a readable image"):
        split.read(np.flatnonzero(np.asarray(split.ids) == "000005"))
    skipping = build(pattern, on_bad_sample="skip")
    assert "000005" not in everyone(skipping)
    assert "sample '000005' has a member .png that is not a readable image" in skipping.notes[0]


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def without_end(data: bytes) -> bytes:
    return data[: -(-len(data.rstrip(b"\0")) // 512) * 512]


def garbled(data: bytes) -> bytes:
    header = data.index(b"000010.png")
    return data[:header] + b"\xff" * 512 + data[header + 512 :]


def linked(data: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("000001.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    return file.getvalue()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            cut,
            r"001.tar: (member 0000\d\d.\w+ is truncated|truncated or damaged after).* copy or write",
        ),
        (without_end, r"001.tar: truncated or damaged after member 000079.json \(it ends without the mark"),
        (lambda data: packed(samples(20)) + data, r"001.tar: truncated or damaged after member 000019.json"),
        (garbled, r"001.tar: truncated or damaged after member 000009.json \(what follows is not a member\)"),
        (linked, r"001.tar: member 000001.png is a link, a sparse or a special file; write the file itself"),
        (gzip.compress, r"001.tar: is compressed \(gzip\)"),
        (lambda data: b"", r"001.tar: is empty"),
        (lambda data: b"no tar" * 1000, r"001.tar: truncated or damaged after the first member"),
        (lambda data: packed([]), r"001.tar: holds no member KEY.ENDING"),
    ],
)
def test_damaged_shards_are_named(damage: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    pattern = write(tmp_path, samples(120))
    path = tmp_path / "001.tar"
    data = packed(samples(40, start=0 if damage is garbled else 40))
    path.write_bytes(damage(data))
    if damage is garbled:
        (tmp_path / "000.tar").unlink()
    with pytest.raises(DataError, match=message):
        build(pattern).samples("train")


def test_shards_that_change_under_the_run_are_refused(tmp_path: Path) -> None:
    pattern = write(tmp_path, samples(120))
    train = build(pattern).samples("train")
    path = tmp_path / "000.tar"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"IDAT", b"IDAX"))
    with pytest.raises(DataError, match=r"000.tar, member 0000\d\d.png: has other bytes than when the shard was ind"):
        train.read(np.arange(1))
    path.write_bytes(data + b"\0" * 10240)
    with pytest.raises(DataError, match=r"000.tar: it changed after this run opened it; restore the shard, or write"):
        train.read(np.arange(1))
    path.unlink()
    with pytest.raises(DataError, match=r"000.tar: cannot be read \(No such file or directory\); restore the shard"):
        train.read(np.arange(1))


def test_patterns_stand_for_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    assert expanded("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expanded("{a,b}/{0..1}.tar") == ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]
    monkeypatch.setattr(files, "MOST", 99)
    for name in ("{0..9}{0..9}.tar", "{0..100}.tar"):
        with pytest.raises(DataError, match="stands for more than 99 shards; write a pattern with"):
            expanded(name)


def test_shards_that_are_not_there_or_named_twice_are_refused(tmp_path: Path) -> None:
    write(tmp_path, samples(60))
    for name, message in (
        ("none-{0..3}.tar", r"none-0.tar names no shard; check the path"),
        ("none*.tar", r"none\*.tar names no shard"),
        ("{000,000}.tar", r"000.tar is named twice"),
    ):
        with pytest.raises(DataError, match=message):
            build(tmp_path / name).samples("train")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"members": {}}, "must name one of image, text and features"),
        ({"members": {"image": "png", "text": "txt"}}, "must name one of image, text and features"),
        ({"members": {"image": "json:a"}}, "members.image in spec: must be endings such as jpg"),
        ({"members": {"image": "png", "label": ".cls"}}, "must be an ending such as cls, or json:KEY, got '.cls'"),
        ({"members": {"text": "txt"}}, r"members.text needs a network for text; write network: {kind: transformers"),
        (
            {"members": {"features": "json:a"}, "network": {"kind": "perceptron"}, "flip": True},
            "shift and flip are for",
        ),
        ({"files": {"test": "a.tar"}}, "files has no train split"),
        ({"shuffle": "half"}, "must be auto, blocks or full, got 'half'"),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(task: dict[str, Any], message: str) -> None:
    document = {"kind": "shards", "files": "a.tar", "members": {"image": "png"}, **task}
    with pytest.raises(SpecError, match=message):
        spec.parse({"model": "m", "name": "v1", "task": document})
