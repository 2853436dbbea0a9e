"""Image folders as people have them: split names, debris, spellings, links, names that are not text."""

import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from graceful import tasks
from graceful.errors import DataError
from graceful.spec import ImageFolderTask

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.fixture(scope="module")
def png(tmp_path_factory):
    path = tmp_path_factory.mktemp("png") / "one.png"
    Image.new("RGB", (9, 9), (200, 30, 30)).save(path)
    return path.read_bytes()


@pytest.fixture
def fill(tmp_path, png):
    """Folders below `root`, each with eight images."""

    def fill(*folders, root=tmp_path / "photos"):
        for folder in folders:
            (root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(8):
                (root / folder / f"{number}.png").write_bytes(png)
        return root

    return fill


def built(root, **options):
    return tasks.build(ImageFolderTask(root=str(root), size=8, **options))


def refusal(root, split="train", **options):
    with pytest.raises(DataError) as caught:
        built(root, **options).samples(split)
    message = str(caught.value)
    assert "\n" not in message
    message.encode()
    return message


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "val", "test"),
        ("train", "valid", "test"),
        ("TRAIN", "VAL", "TEST"),
        ("Train", "Dev", "Test"),
        ("training", "validation", "testing"),
    ],
)
def test_usual_names_of_split_folders_are_splits_and_no_classes(fill, train, validation, test):
    root = fill(*(f"{split}/{name}" for split in (train, validation, test) for name in ("ant", "bee")))
    task = built(root)
    assert task.classes == ("ant", "bee")
    assert {name.split("/")[0] for name in task.samples("test").ids} == {test}
    assert {name.split("/")[0] for name in task.samples("validation").ids} == {validation}
    assert {name.split("/")[0] for name in task.samples("train").ids} == {train}


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("train/ant", "val/ant", "validation/ant"), "'val' and 'validation' are both the validation split"),
        (("val/ant", "test/ant"), "'test', 'val' but no train"),
        (("train", "val", "test"), "no class folder"),
        (("train/ant", "test/ant", "extra/ant"), "'test', 'train' look like splits"),
        (("ant", "bee", "test"), "'test' looks like a split"),
        (("ant", "bee", "train2017/ant"), "'train2017' looks like a split"),
        (("train/ant", "train/test", "test/ant"), "'test' looks like a split"),
        (("train/ant", "eval/ant"), "'eval': write validation or test"),
        (("ant/train", "ant/test", "bee/train", "bee/test"), "<split>/<class>"),
    ],
)
def test_folders_that_look_like_splits_are_never_classes(fill, folders, said):
    assert said in refusal(fill(*folders))


def test_a_class_that_is_called_train_may_be_one(fill):
    assert built(fill("car", "plane", "train")).classes == ("car", "plane", "train")
    assert built(fill("test"), classes=("car", "test")).samples("train").classes == ("car", "test")


def test_folders_that_are_named_are_classes_and_the_others_none(fill):
    root = fill("ant", "bee", "test")
    assert built(root, classes=("ant", "bee")).samples("train").classes == ("ant", "bee")
    assert "look like splits" in refusal(fill("train/ant", root=root), classes=("ant", "wasp"))


def test_folders_without_images_beside_splits_are_neither(fill):
    root = fill("train/ant", "train/bee", "test/ant")
    (root / "annotations" / "test").mkdir(parents=True)
    (root / "annotations" / "list.json").write_text("[]")
    task = built(root)
    assert task.classes == ("ant", "bee")
    assert task.notes == (f"{root}: 1 file passed over: 1 .json",)


def test_debris_of_other_programs_is_no_class_and_no_image(fill):
    root = fill("ant", "bee")
    before = built(root).samples("train")
    for name in ("__MACOSX", "@eaDir", "lost+found", ".ipynb_checkpoints", "$RECYCLE.BIN", "ant/@eaDir"):
        fill(name)
    for name in ("Thumbs.db", ".DS_Store", "ant/desktop.ini", "bee/._1.png"):
        (root / name).write_bytes(b"x")
    task = built(root)
    assert task.classes == before.classes
    assert task.samples("train").digest == before.digest
    assert task.notes == ()


def test_files_that_are_passed_over_are_counted_by_their_ending(fill):
    root = fill("ant", "bee")
    for name in ("ant/a.HEIC", "ant/b.heic", "bee/list.csv", "bee/README", "top.png"):
        (root / name).write_bytes(b"x")
    assert built(root).notes == (
        f"{root}: 5 files passed over: 2 .heic, 1 .csv, 1 .png outside the class folders, 1 without an ending",
    )


@pytest.mark.parametrize(("one", "other"), [(NFC, NFD), ("cat", "cat ")])
def test_class_folders_that_look_the_same_are_refused(fill, one, other):
    message = refusal(fill(one, other, "dog"))
    assert ascii(one) in message
    assert ascii(other) in message


def test_a_class_has_one_name_whatever_its_spelling_on_disk(fill):
    root = fill(f"train/{NFD}", "train/dog", f"test/{NFC}")
    task = built(root)
    assert task.classes == (NFC, "dog")
    assert set(task.samples("test").labels.tolist()) == {0}
    assert built(root, classes=("dog", NFD)).classes == ("dog", NFC)


@pytest.mark.parametrize("kind", ["file", "folder", "class"])
def test_links_out_of_the_root_need_a_flag(fill, tmp_path, kind):
    root, other = fill("ant", "bee"), fill("", root=tmp_path / "other")
    link, target = {
        "file": (root / "ant" / "x.png", other / "0.png"),
        "folder": (root / "ant" / "more", other),
        "class": (root / "cow", other),
    }[kind]
    link.symlink_to(target)
    message = refusal(root)
    assert str(link) in message
    assert "task.follow_links" in message
    ids = [name for split in ("train", "validation", "constraint", "test") for name in _ids(root, split)]
    assert len(ids) > 16


def _ids(root, split):
    try:
        return built(root, follow_links=True).samples(split).ids.tolist()
    except DataError:  # so few images that a split is empty
        return []


def test_links_within_the_root_and_loops_are_followed_as_before(fill):
    root = fill("ant", "bee")
    (root / "ant" / "again.png").symlink_to(root / "ant" / "0.png")
    (root / "bee" / "itself").symlink_to(root / "bee" / "itself")
    (root / "bee" / "up").symlink_to(root)
    (root / "bee" / "gone.png").symlink_to(root / "nowhere.png")
    assert built(root).notes == (f"{root}: 2 files passed over: 2 links that lead nowhere",)


def test_the_flag_for_links_changes_no_digest():
    plain = ImageFolderTask(root="a")
    assert "follow_links" not in plain.model_dump(mode="json")
    assert tasks.transform_digest(plain) == tasks.transform_digest(ImageFolderTask(root="a", follow_links=True))


@pytest.mark.parametrize("name", [b"ant/caf\xe9.png", b"caf\xe9/0.png"])
def test_names_that_are_not_text_are_refused_in_printable_form(fill, png, name):
    root = fill("ant", "bee")
    path = os.path.join(os.fsencode(root), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(png)
    assert "caf\\xe9" in refusal(root)


def test_messages_about_a_name_with_a_line_break_have_one_line(fill):
    root = fill("ant", "bee")
    (root / "ant" / "two\nlines.png").write_bytes(b"no image")
    for split in ("train", "validation", "constraint", "test"):
        samples = built(root).samples(split)
        at = np.flatnonzero(np.char.endswith(samples.ids, "two\nlines.png"))
        if len(at):
            with pytest.raises(DataError) as caught:
                samples.read(at)
            assert "two\\nlines.png" in str(caught.value)
            return
    pytest.fail("the image is in no split")


def test_roots_that_cannot_be_looked_at_are_refused(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for root in (tmp_path / "loop", tmp_path / ("x" * 300)):
        assert "check the path" in refusal(root)
