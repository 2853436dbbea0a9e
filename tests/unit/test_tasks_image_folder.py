"""Image folders: layouts, splits, and what is said about damaged ones."""

import shutil

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from graceful import tasks
from graceful.errors import DataError, SpecError
from graceful.spec import ImageFolderTask

CLOSED = ("train", "validation", "constraint", "test")
COLOURS = {"ant": (255, 0, 0), "bee": (0, 255, 0), "cat": (0, 0, 255)}


def paint(path, colour, size=(20, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def root(tmp_path):
    """Three classes of 40 images, without split folders."""
    folder = tmp_path / "images"
    for name, colour in COLOURS.items():
        for number in range(40):
            paint(folder / name / f"{number:02d}.png", colour, size=(10 + number, 12))
    return folder


def opened(root, name, **options):
    return tasks.build(ImageFolderTask(root=str(root), size=8, **options)).samples(name)


def test_without_split_folders_every_image_is_in_exactly_one_split(root):
    ids = [opened(root, name).ids.tolist() for name in CLOSED]
    assert all(ids)
    everything = [name for part in ids for name in part]
    assert sorted(everything) == sorted(f"{name}/{n:02d}.png" for name in COLOURS for n in range(40))


@pytest.mark.parametrize("given", [(), ("validation",), ("constraint",), ("validation", "constraint")])
def test_whichever_splits_have_folders_no_two_share_an_image(tmp_path, given):
    for split in ("train", "test", *given):
        for name, colour in COLOURS.items():
            for number in range(30):
                paint(tmp_path / split / name / f"{number:02d}.png", colour)
    ids = [name for split in CLOSED for name in opened(tmp_path, split).ids.tolist()]
    assert len(ids) == len(set(ids))


def test_images_read_in_the_order_asked_for_and_fit_the_square(root):
    task = tasks.build(ImageFolderTask(root=str(root), size=8))
    samples = task.samples("train")
    positions = np.asarray([len(samples) - 1, 0])
    inputs = task.transform(samples.read(positions), None)
    assert inputs.shape == (2, 3, 8, 8)
    for row, position in enumerate(positions):
        colour = COLOURS[samples.classes[samples.labels[position]]]
        assert inputs[row, :, 4, 4].tolist() == pytest.approx([c / 127.5 - 1 for c in colour])


def test_grey_and_augmented_inputs(root):
    task = tasks.build(ImageFolderTask(root=str(root), size=8, channels=1, shift=2, flip=True))
    samples = task.samples("train")
    items = samples.read(np.arange(10))
    views = tasks.view_numbers(samples.ids[:10], seed=0, epoch=0)
    assert task.augments
    assert task.transform(items, views).shape == (10, 1, 8, 8)
    assert task.transform(items, views).equal(task.transform(items, views))


def test_a_shift_keeps_something_of_the_image_in_sight(root):
    task = tasks.build(ImageFolderTask(root=str(root), size=8, shift=7))
    samples = task.samples("train")
    views = tasks.view_numbers(samples.ids[:10], seed=0, epoch=0)
    assert task.transform(samples.read(np.arange(10)), views).shape == (10, 3, 8, 8)
    with pytest.raises(ValidationError, match="shift must be less than size = 8 pixels, got 8; write 1"):
        ImageFolderTask(root=str(root), size=8, shift=8)


def test_each_version_brings_the_same_items_to_its_own_size(root):
    items = opened(root, "train").read(np.arange(2))
    other = tasks.build(ImageFolderTask(root="/training/data/that/is/gone", size=16))
    assert other.transform(items, None).shape == (2, 3, 16, 16)


def test_split_folders_are_used_and_the_missing_ones_are_taken_from_train(root, tmp_path):
    layout = tmp_path / "layout"
    shutil.copytree(root, layout / "train")
    paint(layout / "test" / "ant" / "t.png", COLOURS["ant"])
    parts = {name: set(opened(layout, name).ids.tolist()) for name in CLOSED}
    assert parts["test"] == {"test/ant/t.png"}
    assert parts["validation"]
    assert parts["constraint"]
    assert len(parts["train"] | parts["validation"] | parts["constraint"]) == 120
    assert sum(len(parts[name]) for name in ("train", "validation", "constraint")) == 120
    paint(layout / "validation" / "bee" / "v.png", COLOURS["bee"])
    assert parts["validation"] < set(opened(layout, "train").ids.tolist()) | parts["validation"]
    assert set(opened(layout, "train").ids.tolist()).isdisjoint(opened(layout, "constraint").ids.tolist())
    assert opened(layout, "validation").ids.tolist() == ["validation/bee/v.png"]


def test_query_and_gallery_folders_may_hold_classes_of_their_own(root, tmp_path):
    layout = tmp_path / "layout"
    shutil.copytree(root, layout / "train")
    for name in ("query", "gallery"):
        paint(layout / name / "dog" / "1.png", (9, 9, 9))
    paint(layout / "gallery" / "eel" / "1.png", (9, 9, 9))
    assert opened(layout, "query").classes == opened(layout, "gallery").classes == ("dog", "eel")
    with pytest.raises(KeyError):
        opened(root, "query")


def test_a_class_that_only_the_test_folder_has_is_refused(root, tmp_path):
    layout = tmp_path / "layout"
    shutil.copytree(root, layout / "train")
    paint(layout / "test" / "dog" / "1.png", (9, 9, 9))
    with pytest.raises(DataError, match=r"dog/1\.png: class 'dog' has no folder in train"):
        opened(layout, "test")


def test_hidden_files_other_files_and_link_loops_are_passed_over(root):
    before = opened(root, "train").digest
    (root / ".hidden").mkdir()
    paint(root / "ant" / ".thumb.png", (1, 1, 1))
    (root / "ant" / "notes.txt").write_text("no image")
    (root / "bee" / "loop").symlink_to(root, target_is_directory=True)
    (root / "cat" / "broken.png").symlink_to(root / "nowhere.png")
    assert opened(root, "train").digest == before


def test_the_digest_follows_the_content(root):
    before = opened(root, "train")
    path = root / before.ids[0]
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert opened(root, "train").digest != before.digest
    path.write_bytes(data)
    assert opened(root, "train").digest == before.digest


def test_a_corrupt_image_is_named_in_one_line(root):
    samples = opened(root, "train")
    path = root / samples.ids[3]
    for damage in (b"not an image", path.read_bytes()[:40]):
        path.write_bytes(damage)
        with pytest.raises(DataError, match="not a readable image") as caught:
            samples.read(np.asarray([3]))
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_images_that_cannot_be_read_are_left_out_on_request(root, tmp_path, monkeypatch):
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))
    whole = opened(root, "train")
    damaged = sorted(whole.ids.tolist())[3:5]
    (root / damaged[0]).write_bytes(b"not an image")
    (root / damaged[1]).write_bytes((root / damaged[1]).read_bytes()[:40])
    for _ in range(2):  # decoded, then read from the cache
        task = tasks.build(ImageFolderTask(root=str(root), size=8, on_bad_sample="skip"))
        samples = task.samples("train")
        assert set(samples.ids.tolist()) == set(whole.ids.tolist()) - set(damaged)
        assert len(samples.read(np.arange(len(samples)))) == len(samples)
        (note,) = task.notes
        assert note.startswith(f"{root}: 2 images that cannot be read were left out, first {root / damaged[0]}: not a")
    assert len(list((tmp_path / "home/cache/images").glob("*/meta.json"))) == 1
    (root / damaged[0]).write_bytes((root / samples.ids[0]).read_bytes())
    assert len(opened(root, "train", on_bad_sample="skip")) == len(whole) - 1


def test_an_empty_class_is_refused_by_name(root):
    (root / "dog").mkdir()
    with pytest.raises(DataError, match=r"class 'dog' of .* has no training image"):
        opened(root, "train")


def test_roots_without_a_class_are_refused(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        opened(tmp_path / "gone", "train")
    with pytest.raises(DataError, match="has no class folder"):
        opened(tmp_path, "train")


def test_classes_are_chosen_in_the_order_named_and_unknown_ones_refused(root):
    assert tasks.build(ImageFolderTask(root=str(root))).classes == ("ant", "bee", "cat")
    chosen = opened(root, "train", classes=("cat", "ant"))
    assert chosen.classes == ("cat", "ant")
    assert {name.split("/")[0] for name in chosen.ids} == {"ant", "cat"}
    with pytest.raises(SpecError, match=r"task\.classes: .* no class folder 'antt'; did you mean ant\?"):
        opened(root, "train", classes=("antt", "cat"))


def test_a_share_grows_the_training_images_alone_and_in_a_fixed_order(root):
    parts = [set(opened(root, "train", share=share).ids.tolist()) for share in (0.3, 0.6, 1.0)]
    assert parts[0] < parts[1] < parts[2]
    assert 0.1 < len(parts[0]) / len(parts[2]) < 0.5
    assert opened(root, "test", share=0.3).digest == opened(root, "test").digest
    assert "share" not in ImageFolderTask(root="r").model_dump(mode="json")


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_of_bytes_are_read_as_images_of_pillow_are(channels):
    task = tasks.build(ImageFolderTask(root="gone", size=8, channels=channels))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 12, 3), dtype=np.uint8)
    expected = task.transform([Image.fromarray(one) for one in pixels], None)
    assert task.transform(pixels, None).equal(expected)
