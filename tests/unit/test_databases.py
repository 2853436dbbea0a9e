"""Addresses of databases below folders of any name, against the library that reads them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from mlflow.utils.uri import extract_db_type_from_uri
from sqlalchemy import URL, create_engine, make_url, text

from graceful import addresses, databases
from graceful.cli.programs import require_usable
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


WRITTEN = [
    "postgresql://u:p[ssw0rd@h/db",
    "postgresql://u:p]a/s?s#w rd@h:5432/db?sslmode=require",
    "postgresql+psycopg2://bob:%5B%40@[::1]:5432/db",
    "mysql+pymysql://u@h/db",
    "postgresql:///db?host=/var/run/postgresql",
    "mysql://h:3306/a b",
]


@pytest.mark.parametrize("uri", WRITTEN)
def test_an_address_that_sqlalchemy_reads_is_taken_and_mlflow_reads_it_alike(uri: str, tmp_path: Path) -> None:
    assert addresses.registry(uri) == uri
    place = connection.resolve(uri, tmp_path)
    assert make_url(place.uri) == make_url(uri)
    assert extract_db_type_from_uri(place.uri) == uri.partition(":")[0].partition("+")[0]
    password = make_url(uri).password
    assert password is None or password not in place.display


def test_a_database_in_a_folder_with_a_space_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my dir").mkdir()
    uri = f"sqlite:///{tmp_path}/my dir/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    require_usable(os.environ)
    assert addresses.registry(uri) == uri
    engine = create_engine(connection.resolve(None, tmp_path).uri)
    with engine.connect() as opened:
        assert opened.scalar(text("select 1")) == 1
    engine.dispose()
    assert (tmp_path / "my dir" / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("postgresql://u:mark3r@h:abc/db", "its port must be a number from 1 to 65535"),
        ("postgresql://u:mark3r@h:/db", "its port must be a number from 1 to 65535"),
        ("mysql://u:mark3r@h:99999/db", "its port must be a number from 1 to 65535"),
        ("postgresql://u:mark3r@w@h/db", "write @ of a user or password as %40"),
        ("postgresql://u:mark3r\x07@h/db", "it holds control characters"),
        ("sqlite:////srv/mark3r\n.db", "it holds control characters"),
        ("http://mark3r host/", "it holds white space or control characters"),
    ],
)
def test_what_no_database_can_have_is_refused_with_the_scheme_that_was_given(uri: str, problem: str) -> None:
    with pytest.raises(SpecError) as raised:
        require_usable({"MLFLOW_TRACKING_URI": uri})
    with pytest.raises(ValueError, match=re.escape(problem)):
        addresses.registry(uri)
    assert raised.value.message.startswith(
        f"MLFLOW_TRACKING_URI: must be an address such as {uri.partition(':')[0]}://"
    )
    assert problem in raised.value.message
    assert "mark3r" not in raised.value.message


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
