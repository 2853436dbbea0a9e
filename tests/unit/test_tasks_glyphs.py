"""The glyphs task: what is in which split, and that the archive is what it says."""

import json
import shutil

import numpy as np
import pytest

from graceful import tasks
from graceful.errors import DataError, IntegrityError, SpecError
from graceful.spec import GlyphsTask
from graceful.tasks.glyphs.archive import ARCHIVE, RECORD, open_archive
from graceful.tasks.glyphs.characters import ALL_SEEN, CHARACTERS, CLOSED_SET, OPEN_SET
from graceful.tasks.glyphs.families import design_key
from graceful.tasks.glyphs.task import split_designs

CLOSED = ("train", "validation", "constraint", "test")


def opened(split_name, **options):
    return tasks.build(GlyphsTask(**options)).samples(split_name)


def characters_of(samples):
    return {chr(int(name.rsplit("U+", 1)[1], 16)) for name in samples.ids}


def designs_of(samples):
    return set(samples.groups.tolist())


@pytest.mark.parametrize("split", [0, 1, 2])
def test_no_design_is_in_two_splits(split):
    designs = [designs_of(opened(name, split=split)) for name in CLOSED]
    assert all(designs)
    assert len(set.union(*designs)) == sum(map(len, designs))


def test_another_split_seed_draws_other_test_designs():
    assert designs_of(opened("test", split=0)) != designs_of(opened("test", split=1))


def test_validation_has_enough_designs_to_choose_on_and_test_the_most():
    sizes = {name: len(designs_of(opened(name))) for name in CLOSED}
    assert sizes["validation"] >= 10
    assert sizes["test"] >= 25
    assert sizes["train"] >= 40


def test_growing_data_is_nested_and_later_versions_keep_the_test_split():
    versions = [opened("train", fonts=fonts, classes=classes) for fonts, classes in ((0.4, 30), (0.7, 40), (1.0, 47))]
    ids = [set(version.ids.tolist()) for version in versions]
    assert ids[0] < ids[1] < ids[2]
    assert set(opened("test", classes=30).ids.tolist()) < set(opened("test", fonts=0.4).ids.tolist())
    assert np.array_equal(opened("test", fonts=0.4).ids, opened("test").ids)


def test_class_order_is_stable_and_grows_at_the_end():
    assert "".join(CLOSED_SET) == "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
    assert tasks.build(GlyphsTask(classes=30)).classes == CLOSED_SET[:30]
    assert tasks.build(GlyphsTask(characters="all")).classes == ALL_SEEN
    assert ALL_SEEN[:47] == CLOSED_SET
    assert (len(ALL_SEEN), len(OPEN_SET), len(set(CHARACTERS))) == (110, 45, 170)


@pytest.mark.parametrize("characters", ["alphanumeric", "all"])
def test_no_version_trains_on_a_character_of_the_open_set(characters):
    for name in CLOSED:
        assert characters_of(opened(name, characters=characters)).isdisjoint(OPEN_SET)
    assert characters_of(opened("query")) == characters_of(opened("gallery")) == set(OPEN_SET)


def test_query_and_gallery_come_from_disjoint_test_designs():
    query, gallery, test = (designs_of(opened(name)) for name in ("query", "gallery", "test"))
    assert query.isdisjoint(gallery)
    assert query | gallery == test


def test_without_an_open_set_there_is_no_query_split():
    with pytest.raises(KeyError):
        opened("query", open_set=False)


@pytest.mark.parametrize("split", [*CLOSED, "query", "gallery"])
def test_every_class_has_samples_and_ids_say_what_is_read(split):
    samples = opened(split, characters="all")
    assert len(set(samples.ids.tolist())) == len(samples) == len(samples.labels) == len(samples.groups)
    assert (np.bincount(samples.labels, minlength=len(samples.classes)) > 0).all()
    positions = np.asarray([len(samples) - 1, 0, len(samples) // 2])
    assert np.array_equal(samples.read(positions), np.stack([samples.read(np.asarray([p]))[0] for p in positions]))


def test_the_same_id_reads_the_same_image_whatever_the_selection():
    few, many = opened("train", fonts=0.3, classes=20), opened("train", characters="all")
    where = {name: position for position, name in enumerate(many.ids.tolist())}
    positions = np.asarray([where[name] for name in few.ids.tolist()])
    assert np.array_equal(few.read(np.arange(len(few))), many.read(positions))
    assert [few.classes[label] for label in few.labels] == [many.classes[label] for label in many.labels[positions]]


def test_digests_tell_selections_apart_and_repeat():
    selections = ({}, {"fonts": 0.5}, {"classes": 30}, {"split": 1}, {"characters": "all"})
    digests = [opened("train", **options).digest for options in selections]
    assert len(set(digests)) == len(selections)
    assert opened("train").digest == digests[0]


def test_views_move_glyphs_deterministically_and_the_clean_view_does_not():
    task = tasks.build(GlyphsTask(shift=2))
    samples = task.samples("train")
    items = samples.read(np.arange(64))
    views = [tasks.view_numbers(samples.ids[:64], seed=0, epoch=epoch) for epoch in (0, 0, 1)]
    first, again, other = (task.transform(items, numbers) for numbers in views)
    assert task.augments
    assert first.equal(again)
    assert not first.equal(other)
    assert not first.equal(task.transform(items, None))
    assert not tasks.build(GlyphsTask()).augments


def test_no_glyph_of_the_closed_set_is_blank_and_classes_are_learnable():
    """A nearest-centroid reader gets most test glyphs right: labels and pictures belong together."""
    train, test = opened("train"), opened("test")
    images, probes = (s.read(np.arange(len(s))).reshape(len(s), -1).astype(np.float32) for s in (train, test))
    assert (images.max(axis=1) > 100).all()
    centroids = np.stack([images[train.labels == label].mean(axis=0) for label in range(47)])
    distances = (centroids**2).sum(axis=1) - 2 * probes @ centroids.T
    assert (distances.argmin(axis=1) == test.labels).mean() > 0.55


def test_more_classes_than_there_are_is_refused_with_the_bound():
    with pytest.raises(SpecError, match=r"task\.classes: must be at most 47, got 60; characters: all has 110"):
        tasks.build(GlyphsTask(classes=60))


# --- the archive ------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path):
    for name in (ARCHIVE.name, RECORD):
        shutil.copy(ARCHIVE.with_name(name), tmp_path / name)
    return tmp_path / ARCHIVE.name


def test_a_flipped_byte_is_refused_in_one_line(copy):
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    with pytest.raises(IntegrityError, match="is recorded") as caught:
        open_archive(copy)
    assert "\n" not in str(caught.value)


def test_a_missing_archive_or_record_is_refused_with_its_path(copy):
    copy.with_name(RECORD).unlink()
    with pytest.raises(DataError, match=RECORD):
        open_archive(copy)
    copy.unlink()
    with pytest.raises(DataError, match=r"glyphs\.npz"):
        open_archive(copy)


def test_the_archive_holds_no_pickles_and_fits_its_budget():
    assert ARCHIVE.stat().st_size <= 6_000_000
    with np.load(ARCHIVE, allow_pickle=False) as archive:
        assert all(not archive[name].dtype.hasobject for name in archive.files)


def test_every_face_is_recorded_with_a_permissive_licence():
    record = json.loads(ARCHIVE.with_name(RECORD).read_text())
    archive = open_archive()
    assert [face["name"] for face in record["faces"]] == archive.faces.tolist()
    assert [face["design"] for face in record["faces"]] == archive.keys.tolist()
    permissive = {"OFL-1.0", "OFL-1.1", "MIT", "BSD-2-Clause", "Apache-2.0", "Bitstream-Vera", "public-domain"}
    assert {face["licence"] for face in record["faces"]} <= permissive
    assert all(len(face["copyright_sha256"]) == 64 for face in record["faces"])
    card = ARCHIVE.with_name("CARD.md").read_text()
    assert record["sha256"] in card
    assert all(face["family"] in card for face in record["faces"])


@pytest.mark.parametrize(
    ("family", "design"),
    [
        ("Arimo", "liberation"),
        ("Liberation Sans", "liberation"),
        ("Tinos", "liberation-serif"),
        ("DejaVu Sans Mono", "dejavu-mono"),
        ("Hack", "dejavu-mono"),
        ("Open Sans", "noto"),
        ("Carlito", "lato"),
        ("GFS Didot", "didot"),
        ("Roboto Slab", "roboto-slab"),
    ],
)
def test_clones_and_derivatives_share_a_design(family, design):
    assert design_key(family) == design


def test_no_two_splits_share_nearly_the_same_face():
    """Independent of the builder: the nearest pair across designs is not a copy."""
    archive = open_archive()
    pixels = archive.alphanumeric().reshape(len(archive.faces), -1).astype(np.float32)
    norms = (pixels**2).sum(axis=1)
    relative = (norms[:, None] + norms[None] - 2 * pixels @ pixels.T) / (norms[:, None] + norms[None])
    apart = archive.keys[:, None] != archive.keys[None]
    assert relative[apart].min() > 0.03


def test_every_design_is_in_exactly_one_split_for_any_seed():
    keys = open_archive().keys
    for seed in range(5):
        parts = split_designs(keys, seed)
        assert sorted(np.concatenate(list(parts.values())).tolist()) == sorted(set(keys.tolist()))
