"""Negative flips as the table that MLflow's run page shows, with thumbnails. Pure files; runs in the driver.

Written in the form of mlflow's `log_table`, but as files of one upload: `log_table` appends, so that a registration
that is repeated after an interruption would list every flip twice.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = "negative_flips.json"
IMAGES = "flips"
TAG = json.dumps([{"path": f"lineage/{FILE}", "type": "table"}])
"""Value of the run's tag that lists its tables."""
MOST = 500
"""Rows; flips.json and predictions.npz have all of them."""


def write(folder: Path, rows: Sequence[Mapping[str, Any]], thumbnails: Mapping[str, bytes]) -> None:
    """Write the table and its pictures into the folder that becomes the run's `lineage/`.

    Args:
        folder: Exists.
        rows: Equal keys in each, one of them `id`; the first `MOST` are listed.
        thumbnails: Sample id -> PNG; ids without one come last, with a blank: the page calls an empty
            cell an error, in a box for each.
    """
    listed = sorted(rows[:MOST], key=lambda row: row["id"] not in thumbnails)
    pictures = {row["id"]: thumbnails[row["id"]] for row in listed if row["id"] in thumbnails}
    cells = {name: _picture(folder, f"{index:04d}", png) for index, (name, png) in enumerate(pictures.items())}
    blank = _picture(folder, "none", _blank()) if 0 < len(cells) < len(listed) else None
    columns = [*(("picture",) if cells else ()), *listed[0]]
    data = [
        [cells.get(row["id"], blank) if column == "picture" else row[column] for column in columns] for row in listed
    ]
    (folder / FILE).write_text(json.dumps({"columns": columns, "data": data}), encoding="utf-8")


def _picture(folder: Path, name: str, png: bytes) -> dict[str, str]:
    """Write a picture in the two sizes that MLflow's page needs; its name has no sample id, which may hold any text."""
    from PIL import Image

    (folder / IMAGES).mkdir(exist_ok=True)
    path = folder / IMAGES / f"{name}.png"
    path.write_bytes(png)
    Image.open(io.BytesIO(png)).save(path.with_suffix(".webp"), lossless=True)
    where = f"lineage/{IMAGES}/{path.stem}"
    return {"type": "image", "filepath": f"{where}.png", "compressed_filepath": f"{where}.webp"}


def _blank() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), "white").save(buffer, format="PNG")
    return buffer.getvalue()
