"""Photos: small in memory, the same pixels as ever, and one line about whatever is wrong with a file."""

import io
import shutil
import struct
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from benchmarks.image_fuzz import FORMATS, mutants, outcome
from graceful import tasks
from graceful.errors import DataError
from graceful.programs.outputs.flipped import thumbnails
from graceful.spec import ImageFolderTask
from graceful.tasks.base import Samples
from graceful.tasks.portions import MEMORY_LIMIT, portion


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width, height, *, seed=0):
    """Smooth colours with some grain, so that resampling has something to get wrong."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((width, height), Image.BICUBIC)
    return Image.fromarray(np.clip(np.asarray(coarse) + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8))


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.fixture
def folder(tmp_path):
    """A root of two classes whose first training image has the bytes that one gives; its task and the image's row."""

    def folder(data, name="photo.jpg", **options):
        shutil.rmtree(tmp_path / "train", ignore_errors=True)
        for label in ("ant", "bee"):
            (tmp_path / "train" / label).mkdir(parents=True)
            (tmp_path / "train" / label / name).write_bytes(data)
        task = tasks.build(ImageFolderTask(root=str(tmp_path), **options))
        return task, tmp_path / "train" / "ant" / name

    return folder


def squares(task, rows=(0,)):
    """[B, size, size, channels] as bytes."""
    samples = _train(task)
    inputs = task.transform(samples.read(np.asarray(rows)), None)
    return ((inputs.numpy().transpose(0, 2, 3, 1) + 1.0) * 127.5).round().astype(np.uint8)


def _train(task):
    """All images of the train folder, whichever split their hash puts them in."""
    from graceful.tasks import image_folder

    image_folder._CARVED["train"], before = (0.0, 1.0), image_folder._CARVED["train"]
    try:
        return task.samples("train")
    finally:
        image_folder._CARVED["train"] = before


def as_before(data, size, channels):
    """What releases before `Photo` made of a file: decoded whole, turned by Pillow, fitted."""
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    square = ImageOps.fit(picture, (size, size), method=Image.Resampling.BILINEAR)
    return np.asarray(square.convert("L" if channels == 1 else "RGB")).reshape(size, size, channels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"exif": turned(6), "progressive": True}),
        ("JPEG", {"exif": turned(5)}),
        ("PNG", {"exif": turned(8)}),
        ("WEBP", {"exif": turned(3), "lossless": True}),
        ("TIFF", {"exif": turned(7)}),
    ],
)
def test_pixels_are_those_of_before(folder, kind, options, channels):
    data = encoded(noise(150, 97), kind, **options)
    for decode in ("full", "reduced"):
        task, _ = folder(data, f"photo.{kind.lower()}", size=40, channels=channels, decode=decode)
        np.testing.assert_array_equal(squares(task)[0], as_before(data, 40, channels))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_pixels_of_other_modes_are_those_of_before(folder, mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    data = encoded(noise(30, 50).convert(mode), kind)
    task, _ = folder(data, f"photo.{kind.lower()}", size=16)
    np.testing.assert_array_equal(squares(task)[0], as_before(data, 16, 3))


def test_large_jpegs_are_whole_by_default_and_nearly_the_same_where_reduced(folder):
    data = encoded(noise(800, 600), "JPEG", exif=turned(6))
    whole, _ = folder(data, size=24)
    np.testing.assert_array_equal(squares(whole)[0], as_before(data, 24, 3))
    reduced, _ = folder(data, size=24, decode="reduced")
    distance = np.abs(squares(reduced)[0].astype(int) - as_before(data, 24, 3).astype(int))
    assert 0 < distance.max() <= 8
    assert distance.mean() < 1.5


UNCHANGED = "88fa2a6212132fd1ca2a774ac5691390c1df7c5b0344c2a7c5e09418db6ce37f"
"""As recorded in versions that are older than the choice; their cached outputs stay valid."""


def test_the_way_of_decoding_belongs_to_the_transform_and_the_default_to_no_digest():
    plain, reduced = ImageFolderTask(root="a"), ImageFolderTask(root="a", decode="reduced")
    assert "decode" not in plain.model_dump(mode="json")
    assert tasks.transform_digest(plain) == UNCHANGED
    assert tasks.transform_digest(reduced) != tasks.transform_digest(plain)


def test_a_version_of_another_size_sees_what_it_would_see_alone(folder):
    data = encoded(noise(300, 200), "JPEG")
    mine, _ = folder(data, size=8, decode="reduced")
    items = _train(mine).read(np.zeros(1, np.int64))
    other, _ = folder(data, size=64)
    alone = squares(other)[0]
    seen = ((other.transform(items, None)[0].numpy().transpose(1, 2, 0) + 1) * 127.5).round().astype(np.uint8)
    np.testing.assert_array_equal(seen, alone)


def test_batches_of_photos_hold_squares_and_not_photos(folder):
    data = encoded(noise(400, 300).resize((4000, 3000)), "JPEG")
    task, path = folder(data, size=64)
    for number in range(40):
        path.with_name(f"{number}.jpg").hardlink_to(path)
    code = f"""
        import resource, sys
        import numpy as np
        from graceful import tasks
        from graceful.spec import ImageFolderTask
        samples = tasks.build(ImageFolderTask(root={str(task._section.root)!r}, size=64)).samples("train")
        samples.read(np.arange(1))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        items = samples.read(np.arange(24))
        assert sum(item.nbytes for item in items) == 24 * 64 * 64 * 3
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 400, f"24 photos of 36 MB took {grown} MB"


def test_thumbnails_show_the_whole_photo(folder):
    task, _ = folder(encoded(noise(1200, 300), "JPEG"), size=16)
    samples = _train(task)
    [png] = thumbnails([samples.ids[0]], samples).values()
    assert Image.open(io.BytesIO(png)).size == (56, 14)


@pytest.mark.parametrize(
    "items", [[([1, 2], [3]), ([4], [5, 6])], {"text": ["one", "two"]}, [["words"], ["more", "words"]]]
)
def test_items_that_are_no_pictures_have_no_thumbnails(items):
    ids = np.array(["a", "b"])
    labels = np.array([0, 1])
    samples = Samples(ids=ids, labels=labels, classes=("x", "y"), groups=ids, read=lambda _: items, digest="d")
    assert thumbnails(["a", "b"], samples) == {}


# --- how many at a time -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "expected"), [(64, 1024), (224, 89), (1024, 4)])
def test_large_inputs_are_run_fewer_at_a_time(folder, size, expected):
    task, _ = folder(encoded(noise(20, 20), "JPEG"), size=size)
    samples = _train(task)
    assert portion(samples, task.transform, most=1024) == expected
    assert expected * size * size * 15 <= MEMORY_LIMIT


# --- damaged files ----------------------------------------------------------------------------------------------------


def refusal(task):
    with pytest.raises(DataError) as caught:
        squares(task)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_grey_of_16_bits_is_read_from_pgm_as_from_png(folder):
    ramp = np.linspace(0, 65535, 16 * 16).reshape(16, 16).astype(np.uint16)
    pgm = b"P5\n16 16\n65535\n" + ramp.astype(">u2").tobytes()
    plain = b"P2\n16 16\n4095\n" + b" ".join(b"%d" % (value >> 4) for value in ramp.ravel())
    for data, name in ((pgm, "a.pgm"), (plain, "a.pgm"), (encoded(Image.fromarray(ramp), "PNG"), "a.png")):
        task, _ = folder(data, name, size=16)
        got = squares(task)[0][..., 0].astype(int)
        assert np.abs(got - (ramp >> 8)).max() <= 1
    task, _ = folder(encoded(Image.fromarray(ramp.astype(np.float32)), "TIFF"), "a.tif", size=16)
    assert "32-bit pixels; save it with 8 or 16 bits" in refusal(task)


def test_malformed_exif_is_refused_by_name(folder):
    good = encoded(noise(20, 20), "JPEG", exif=turned(6), dpi=(72, 72))
    at = good.index(b"Exif\0\0") + 6
    data = good[:at] + b"XX*\0" + good[at + 4 :]
    task, path = folder(data, size=16)
    message = refusal(task)
    assert message.startswith(f"{path}: its EXIF metadata cannot be read (")
    assert message.endswith("; save it without them, or remove it")


def test_metadata_that_cannot_be_written_again_do_not_matter(folder):
    """Pillow's exif_transpose writes them anew, and raises what is not an OSError."""
    exif = turned(6)
    exif[0x011A] = 72.0
    good = encoded(noise(20, 30), "JPEG", exif=exif)
    rational, undefined = struct.pack(">HHI", 0x011A, 5, 1), struct.pack(">HHI", 0x011A, 7, 1)
    assert rational in good
    data = good.replace(rational, undefined)
    with pytest.raises(TypeError):
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    task, _ = folder(data, size=16)
    np.testing.assert_array_equal(squares(task)[0], as_before(good, 16, 3))


def test_text_of_a_png_that_unpacks_to_too_much_is_one_line(folder):
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "a" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    task, path = folder(encoded(noise(9, 9), "PNG", pnginfo=info), "a.png", size=16)
    assert str(path) in refusal(task)


def test_files_that_would_start_another_program_are_not_opened(folder):
    task, _ = folder(encoded(noise(9, 9), "EPS"), size=16)
    assert "of no known format" in refusal(task)


@pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\..*")
@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_images_are_read_or_refused_in_one_line(kind):
    """The small version of benchmarks/image_fuzz.py."""
    outcomes = [outcome(data, kind) for data in mutants(kind, count=60, seed=7)]
    assert set(outcomes) == {"read", "refused"}
