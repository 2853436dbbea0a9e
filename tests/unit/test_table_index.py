"""The index of a table: the values that a plain computation gives, found once, in memory that does not grow."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graceful import spec, tasks
from graceful.errors import DataError
from graceful.programs.housekeeping.reclaim import copies, leftovers
from graceful.tasks.hashing import SPLITS, fractions
from graceful.tasks.names import ids_digest
from graceful.tasks.table import content, index_build, mapping, repeats, source
from graceful.tasks.table.source import gathered
from tests.support import text_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def made(count: int, *, seed: int = 0) -> pa.Table:
    generator = np.random.default_rng(seed)
    return pa.table(
        {
            "id": [f"é-{row}" if row % 7 == 0 else f"row-{row}" for row in range(count)],
            "number": np.arange(count) * 3,
            "value": generator.integers(0, 40, count).astype(np.int16),
            "weight": generator.normal(size=count).round(1).astype(np.float32),
            "label": generator.integers(0, 3, count).astype(np.int8),
            "group": [f"group {row // 3}" for row in range(count)],
        }
    )


def build(path: Path, **task: Any) -> Any:
    columns = {"features": ["value", "weight"], **task.pop("columns", {})}
    document = {"kind": "table", "files": str(path), "columns": columns, **task}
    return tasks.build(spec.parse({"model": "m", "name": "v1", "task": document}).task)


def indexes(home: Path) -> list[Path]:
    return sorted((home / "cache" / "tables").glob("*/usable.npy"))


@pytest.mark.parametrize("columns", [{}, {"id": "id"}, {"id": "number", "group": "group"}])
@pytest.mark.parametrize("part", [2**22, 100])
def test_an_index_has_the_values_that_a_plain_computation_gives(
    columns: dict[str, str], part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "PART", part)
    table = made(3000)
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=700)
    rows = table.to_pylist()
    if "id" in columns:
        ids = groups = [str(row[columns["id"]]) for row in rows]
    else:
        seen: Counter[str] = Counter()
        ids, groups = [], []
        for row in rows:
            text = f"{row['value']!r}\0{row['weight']!r}".encode()
            groups.append(hashlib.blake2b(text, digest_size=12).hexdigest())
            seen[groups[-1]] += 1
            ids.append(groups[-1] if seen[groups[-1]] == 1 else f"{groups[-1]}-{seen[groups[-1]]}")
    if "group" in columns:
        groups = [row["group"] for row in rows]
    drawn = fractions(groups, salt=6)
    task = build(tmp_path / "t.parquet", columns=columns, split=3)
    for split, (low, high) in SPLITS.items():
        samples = task.samples(split)
        chosen = np.flatnonzero((drawn >= low) & (drawn < high))
        assert samples.ids.tolist() == [ids[row] for row in chosen]
        assert samples.ids.digest == ids_digest(np.asarray(samples.ids))
        assert samples.groups.tolist() == [groups[row] for row in chosen]
        assert samples.labels.tolist() == [rows[row]["label"] for row in chosen]
        positions = np.random.default_rng(0).permutation(len(samples))[:100]
        assert samples.read(positions).column("weight") == [rows[row]["weight"] for row in chosen[positions]]
        np.testing.assert_array_equal(
            samples.read(positions).numbers("value"), [rows[row]["value"] for row in chosen[positions]]
        )


def test_an_index_is_made_once_and_again_when_a_file_changes_or_is_damaged(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(made(500), path)
    digest = build(path).samples("train").digest
    (usable,) = indexes(home)
    stamp = usable.stat().st_mtime_ns
    assert build(path).samples("train").digest == digest
    assert usable.stat().st_mtime_ns == stamp
    for damage in (b"", usable.read_bytes()[:-1] + b"\x07"):
        usable.write_bytes(damage)
        assert build(path).samples("train").digest == digest
        assert usable.stat().st_mtime_ns != stamp
    (division,) = (home / "cache" / "tables").glob("*/train-labels.npy")
    division.unlink()
    assert build(path).samples("train").digest == digest
    pq.write_table(made(500, seed=1), path)
    assert build(path).samples("train").digest != digest
    assert len(indexes(home)) == 2
    (home / "cache" / "tables" / f".{usable.parent.name}.abcd1234.tmp").mkdir()  # of a process that was killed
    assert [item.kind for item in copies(home)] == ["index"] * 4
    assert [item.kind for item in leftovers(home)] == ["leftover"]


def test_two_processes_build_one_index(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(made(20_000), path)
    section = {"kind": "table", "files": str(path), "columns": {"features": ["value"], "id": "id"}}
    code = (
        "import json, sys\n"
        "from graceful import spec\n"
        "from graceful.tasks.table import division, index, source\n"
        "section = spec.parse({'model': 'm', 'name': 'v1', 'task': json.loads(sys.argv[1])}).task\n"
        "table = source.joined(source.read_files(section.files, texts=[]))\n"
        "made = index.open_index(section, table, split_rows=[('', len(table.rows))])\n"
        "print(division.Division(made).part('train').digest)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
    builders = [
        subprocess.Popen([sys.executable, "-c", code, json.dumps(section)], stdout=subprocess.PIPE, env=environment)
        for _ in range(2)
    ]
    outputs = {builder.communicate()[0] for builder in builders}
    assert [builder.returncode for builder in builders] == [0, 0]
    assert len(outputs) == len(indexes(home)) == 1
    assert not list((home / "cache" / "tables").glob("*.tmp"))


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200,000 ids take 11 MB as Python strings and 5 MB as an array; their positions take 1.6 MB."""
    monkeypatch.setattr(repeats, "PART", 2**15)
    monkeypatch.setattr(repeats, "AT_ONCE", 2**14)
    count = 200_000
    path = tmp_path / "t.parquet"
    values = np.arange(count, dtype=np.int32)
    pq.write_table(pa.table({"id": values, "value": values % 1000, "label": (values % 3).astype(np.int8)}), path)
    columns = {"features": ["value"], "id": "id"}
    build(path, columns=columns, split=1).samples("train")  # converts the file
    tracemalloc.start()
    try:
        for split, most in ((1, 5e5), (2, 5e6)):  # opened, and with a division of its own
            tracemalloc.reset_peak()
            train = build(path, columns=columns, split=split).samples("train")
            assert len(train) > 0.45 * count
            train.read(np.arange(0, len(train), 1000)).column("value")
            assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def resident(files: Path) -> tuple[int, int]:
    """Return how many bytes of the files below a folder are mapped, and how many are in this process's memory."""
    size = inside = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, value = line.split()[:2]
        if not name.endswith(":"):
            inside = str(files) in line
        elif inside and name == "Rss:":
            size += int(value) * 1024
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if str(files) in line}
    return sum(Path(path).stat().st_size for path in mapped), size


def test_what_was_read_of_a_large_table_leaves_the_memory(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 1_000_000
    values = np.arange(count)
    pq.write_table(pa.table({"id": values, "value": values % 1000, "label": values % 3}), tmp_path / "t.parquet")
    found = {}
    for name, small in (("given back", 0), ("kept", 2**40)):
        monkeypatch.setattr(mapping, "SMALL", small)
        task = build(tmp_path / "t.parquet", columns={"features": ["value"], "id": "id"})
        train = task.samples("train")
        for start in range(0, len(train), 4096):
            rows = train.read(np.arange(start, min(start + 4096, len(train))))
            assert rows.numbers("value").sum() == (np.asarray(rows.column("id")) % 1000).sum()
        size, found[name] = resident(home)
        assert size > 16 * count  # the table alone is 24 bytes a row
        del task, train, rows
    assert found["given back"] < 0.2 * size < 0.5 * size < found["kept"]


def test_ids_that_repeat_are_named_by_the_first_row_that_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "PART", 50)
    ids = [f"row-{row}" for row in range(900)]
    ids[800], ids[500], ids[501] = ids[2], ids[400], ids[400]
    pq.write_table(made(900).set_column(0, "id", [ids]), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t.parquet, row 500: id 'row-400' is that of .*t.parquet, row 400, too"):
        build(tmp_path / "t.parquet", columns={"id": "id"}).samples("train")


def test_a_column_of_too_many_labels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_build, "MOST_LABELS", 100)
    pq.write_table(made(200), tmp_path / "t.parquet")
    with pytest.raises(
        DataError, match=r"task.columns.label: more than 100 different values; name a column of classes"
    ):
        build(tmp_path / "t.parquet", columns={"label": "number"}).samples("train")


def test_rows_that_repeat_across_splits_are_counted(tmp_path: Path) -> None:
    texts = ["Red ball", "green box", "blue cup", "old ball", "red ball", "GREEN  box!", "blue cup", "new", "!", "?"]
    parts = ["train"] * 4 + ["test"] * 4 + ["train", "test"]
    table = {"text": texts, "part": parts, "label": ["a", "b"] * 5, "id": list(map(str, range(10)))}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    task = build(
        tmp_path / "t.parquet",
        columns={"features": [], "text": "text", "split": "part", "id": "id"},
        network={"kind": "transformers", "checkpoint": str(text_checkpoint.save(tmp_path / "checkpoint"))},
    )
    same, alike = task.notes
    assert same.startswith("1 of 5 test rows embed the same as a training row; ")
    assert alike.startswith("2 of 5 test rows differ from a training row in spelling alone; ")


def test_what_an_array_holds_decides_its_digest_and_not_how_it_is_stored() -> None:
    def digest(values: Any) -> str:
        rows = content.Content(["x"])
        rows.update(lambda name: values)
        return rows.hexdigest()

    same = [
        [pa.array([1, None, 3], pa.int8()), pa.array([1, None, 3], pa.int64())],
        [pa.array(["a", "é"]), pa.array(["a", "é"], pa.large_string()), pa.array(["b", "a", "é"]).slice(1)],
        [pa.array(["a", "a"]), pa.array(["a", "a"]).dictionary_encode()],
        [pa.array([None, None], pa.string()), pa.array([None, None], pa.int8()), pa.nulls(2)],
        [pa.array([0.5], pa.float32()), pa.array([0.5], pa.float64())],
        [pa.array([[1, 2], [3]]), pa.array([[9], [1, 2], [3]]).slice(1)],
        [pa.array([{"a": 1, "b": "x"}]), pa.array([{"a": 2, "b": "y"}, {"a": 1, "b": "x"}]).slice(1)],
    ]
    digests = [{digest(values) for values in group} for group in same]
    assert [len(group) for group in digests] == [1] * len(same)
    different = [pa.array(["ab", "c"]), pa.array(["a", "bc"]), pa.array([1, 3, None]), pa.array([[1], [2, 3]])]
    assert len({*map(digest, different), *(value for group in digests for value in group)}) == 11


def test_rows_are_gathered_in_the_order_that_is_asked_for() -> None:
    generator = np.random.default_rng(0)
    values = pa.array([f"text {row}" for row in range(1000)])
    starts = np.asarray([0, 10, 10, 400, 990])
    chunks = [values.slice(start, stop - start) for start, stop in zip(starts, [*starts[1:], 1000], strict=True)]
    for positions in (generator.integers(0, 1000, 300), np.arange(5, 700), np.arange(0), np.asarray([999, 0])):
        expected = values.take(pa.array(positions, pa.int64())).to_pylist()
        assert gathered(chunks, starts, positions.astype(np.int64)).to_pylist() == expected


def test_a_selection_of_a_saved_dataset_is_read_through_its_selection(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset(made(300)).select(range(299, -1, -1)).save_to_disk(tmp_path / "saved")
    task = build(tmp_path / "saved", columns={"id": "id"})
    train = task.samples("train")
    assert [row["id"] for row in train.read(np.arange(3))] == train.ids[:3].tolist()


def test_numbers_are_read_from_several_files_of_several_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "STORED", 100)
    table = made(1000).append_column("gap", [[None if row % 9 == 0 else row for row in range(1000)]])
    pq.write_table(table.slice(0, 450), tmp_path / "a.parquet")
    pq.write_table(table.slice(450), tmp_path / "b.parquet")
    train = build(tmp_path / "*.parquet", columns={"id": "number"}).samples("train")
    positions = np.random.default_rng(0).integers(0, len(train), 500)
    rows = train.read(positions)
    wanted = table.take(np.asarray(train.ids[positions], dtype=np.int64) // 3)
    for name in ("value", "weight", "label", "number", "gap"):
        expected = wanted[name].cast("float64").to_numpy()
        np.testing.assert_array_equal(rows.numbers(name), expected)
        np.testing.assert_array_equal(np.asarray(rows.column(name), dtype=np.float64), expected)
