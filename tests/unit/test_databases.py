"""Addresses of databases below folders of any name, against the library that reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import URL, make_url

from graceful import databases
from graceful.errors import SpecError
from graceful.lineage import connection

FOLDERS = ["plain", "what?", "C# projects", "a%20b", "100%", "naïve ü", 'it\'s "quoted"', "a+b&c=d", "x@y:z;w", "%3F#?"]


@pytest.mark.parametrize("name", FOLDERS)
def test_an_address_names_the_same_file_to_everybody(name: str, tmp_path: Path) -> None:
    file = tmp_path / name / "mlflow.db"
    address = databases.sqlite(file)
    assert make_url(address).database == str(file)
    assert databases.file(address) == file
    assert databases.file(URL.create("sqlite", database=str(file)).render_as_string()) == file
    place = connection.resolve(None, tmp_path / name)
    assert databases.file(place.uri) == file
    assert place.lock == tmp_path / name / "mlflow.db.lock"
    assert place.display == f"sqlite:///{file}"


def test_other_addresses_are_no_files() -> None:
    assert databases.file("postgresql://me@host/name") is None
    assert databases.file("http://host:5000") is None
    assert databases.file("sqlite:////a/b.db?timeout=5") == Path("/a/b.db")


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "/srv/mlruns",
        "file:///srv/mlruns",
        "http://[::1",
        "http://host:port",
        "oracle://x",
    ],
)
def test_addresses_that_are_none_are_refused_in_one_line(uri: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as raised:
        connection.resolve(uri, tmp_path)
    assert raised.value.message.startswith(f"registry {uri}")
    assert "\n" not in raised.value.message
