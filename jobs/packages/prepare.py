"""Write what the specs in this folder read: the package index of this Debian or Ubuntu machine as a table.

    python jobs/packages/prepare.py                  # needs what `apt-get update` has fetched

A row of `packages.parquet` is a package: sizes and counts as numbers, maintainer, architecture, parts of the name and
the host of its home page as categories, and its section, which the models learn to tell. Sections with fewer than 100
packages are left out.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
LEAST_ROWS = 100
"""Packages of a section."""
LISTS = ("Depends", "Recommends", "Suggests", "Provides", "Replaces", "Tag")
"""Fields of which the number of entries is a column."""


def stanzas(text: str) -> Iterator[Mapping[str, str]]:
    """Yield the fields of each package of an index; a field that goes on over several lines is one line."""
    for stanza in text.replace("\n ", " ").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line)
        if "Package" in fields and "Section" in fields:
            yield fields


def row(fields: Mapping[str, str]) -> dict[str, Any]:
    """Return the row of a package."""
    name, sizes = fields["Package"], (fields.get("Installed-Size", "0"), fields.get("Size", "0"))
    return {
        "package": name,
        "source": fields.get("Source", name).split()[0],
        "section": fields["Section"].rpartition("/")[2],
        "installed_size": math.log1p(float(sizes[0])),
        "size": math.log1p(float(sizes[1])),
        "name_length": len(name),
        "description_length": len(fields.get("Description", "")),
        **{field.lower(): len(fields[field].split(",")) if field in fields else 0 for field in LISTS},
        "maintainer": fields.get("Maintainer", "").rpartition(" <")[0],
        "architecture": "all" if fields.get("Architecture") == "all" else "any",
        "beginning": name.partition("-")[0],
        "ending": name.rpartition("-")[2],
        "homepage": urlsplit(fields.get("Homepage", "")).hostname or "none",
    }


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=HERE, help="folder to write to (default: that of this script)")
    options = parser.parse_args()
    try:
        done = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as e:
        sys.exit(f"apt-cache cannot be asked ({e}); run this on Debian or Ubuntu")
    rows = list({fields["Package"]: row(fields) for fields in stanzas(done.stdout)}.values())
    counts = Counter(each["section"] for each in rows)
    rows = [each for each in rows if counts[each["section"]] >= LEAST_ROWS]
    if not rows:
        sys.exit("apt-cache knows no packages; run `apt-get update` first")
    options.to.mkdir(parents=True, exist_ok=True)
    target = options.to / "packages.parquet"
    pq.write_table(pa.Table.from_pylist(rows), target)
    print(f"{target}: {len(rows)} packages of {len({each['section'] for each in rows})} sections")


if __name__ == "__main__":
    main()
