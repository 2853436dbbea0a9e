"""The same registry on what people and teams run: sqlite with files, PostgreSQL with a bucket, both behind a server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from graceful.errors import IntegrityError, RegistryError
from graceful.lineage import LineageRecord, Store, schema
from graceful.lineage.render import DESCRIPTION_LIMIT
from tests.support import mlflow_server, postgres_server, s3_server
from tests.support import mlflow_versions as versions

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),  # its own use of SQLAlchemy
]

BUCKET = "graceful-lineage"
WHO = {"reason": "because", "actor": "pytest"}


@pytest.fixture(scope="module", params=["sqlite-files", "postgresql-files", "postgresql-s3"])
def uri(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    database, artifacts = request.param.split("-")
    folder = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        if database == "postgresql":
            reason = postgres_server.missing()
            if reason is not None:
                pytest.skip(reason)
            store: Path | str = stack.enter_context(postgres_server.server())
        else:
            store = folder / "mlflow.db"
            assert versions.local_store(folder).versions("none") == []  # the schema, before the server opens it
        destination: Path | str = folder / "served"
        if artifacts == "s3":
            stack.enter_context(s3_server.serving(signed=False))
            _bucket()
            variables = {"MLFLOW_S3_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"]}
            destination = f"s3://{BUCKET}/mlflow"
        else:
            (folder / "served").mkdir()
            variables = {}
        yield stack.enter_context(mlflow_server.server(store, destination, variables=variables))


def _bucket() -> None:
    from graceful.storage import server

    client = server.client()
    if BUCKET not in {item["Name"] for item in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=BUCKET)


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """A family of its own for each test."""
    return request.node.name.partition("[")[0].removeprefix("test_").replace("_", "-")[:60].rstrip("-")


def add(
    store: Store, folder: Path, model: str, name: str, chain: list[LineageRecord], **changes: float
) -> LineageRecord:
    record = store.register(versions.registration(store, folder, name, chain, model=model, **changes))
    if record.verdict == "passed":
        expected = chain[0].version if chain else None
        store.promote(model, record.version, expected=expected, **WHO)
    return record


@pytest.fixture
def three(uri: str, tmp_path: Path, model: str) -> tuple[Store, list[LineageRecord]]:
    store = Store(uri, tmp_path / "home")
    v1 = add(store, tmp_path, model, "v1", [])
    v2 = add(store, tmp_path, model, "v2", [v1])
    return store, [add(store, tmp_path, model, "v3", [v2, v1]), v2, v1]


Three = tuple[Store, list[LineageRecord]]


def test_chain_and_files_come_back_as_recorded(three: Three, uri: str, model: str, tmp_path: Path) -> None:
    store, chain = three
    elsewhere = Store(uri, tmp_path / "elsewhere")
    assert elsewhere.chain(model) == chain == store.chain(model)
    assert elsewhere.chain(model) == chain, "from records on disk"
    assert (elsewhere.fetch(chain[1]) / "model.safetensors").read_bytes() == f"{model}-v2".encode() * 100
    assert [(item.version, item.gate, item.aliases) for item in store.versions(model)] == [
        (3, "passed", ("champion",)),
        (2, "passed", ("previous",)),
        (1, "passed", ()),
    ]


def test_registering_again_changes_nothing(three: Three, model: str, tmp_path: Path) -> None:
    store, chain = three
    assert store.register(versions.registration(store, tmp_path, "v3", chain[1:], model=model)) == chain[0]
    other = versions.registration(store, tmp_path, "v3", chain[1:], model=model)
    with pytest.raises(RegistryError, match="is registered with other weights"):
        store.register(replace(other, digest="0" * 64))


def test_people_move_the_champion(three: Three, model: str, tmp_path: Path) -> None:
    store, chain = three
    held = add(store, tmp_path, model, "v4", chain, flips=0.5)
    with pytest.raises(RegistryError, match="is held by the gate"):
        store.promote(model, held.version, expected=3, **WHO)
    store.promote(model, held.version, expected=3, waive=True, **WHO)
    assert store.registry.aliases(model) == {"champion": 4, "previous": 3}
    store.rollback(model, **WHO)
    store.retire(model, 1, **WHO)
    assert store.registry.aliases(model) == {"champion": 3, "previous": 2}
    assert store.retired(model) == {chain[2].model_id}
    told = [(event.kind, event.before, event.version, event.waived) for event in store.history(model)]
    assert told[3:] == [("promotion", 3, 4, True), ("rollback", 4, 3, False), ("retirement", None, 1, False)]
    assert store.repair(model) == []


def test_repair_rebuilds_what_was_lost(three: Three, model: str) -> None:
    store, chain = three
    client = store.registry.client
    client.delete_registered_model_alias(model, "champion")
    client.delete_model_version_tag(model, "2", schema.TAG_GATE)
    client.set_logged_model_tags(chain[0].model_id, {schema.TAG_DIGEST: "0" * 64})
    assert len(store.repair(model, dry_run=True)) == 3
    assert all(repair.repaired for repair in store.repair(model))
    assert store.chain(model) == chain
    assert store.repair(model) == []


def test_altered_files_are_not_promoted(three: Three, model: str, tmp_path: Path) -> None:
    store, chain = three
    late = store.register(versions.registration(store, tmp_path, "v4", chain, model=model))
    wrong = tmp_path / "arch.json"
    wrong.write_text("{}")
    store.registry.client.log_model_artifact(late.model_id, str(wrong), "")
    with pytest.raises(IntegrityError, match=rf"{model} v4 .* arch\.json"):
        store.promote(model, late.version, expected=3, **WHO)
    assert store.registry.aliases(model)["champion"] == 3


def test_the_longest_texts_fit(uri: str, model: str, tmp_path: Path) -> None:
    store = Store(uri, tmp_path / "home")
    v1 = add(store, tmp_path, model, "v1", [])
    long = "a" + 60 * "x" + "1"
    many = [v1, *(replace(v1, model_id=f"m-{number:032x}", name=f"{long[:-3]}{number:03}") for number in range(120))]
    item = versions.registration(store, tmp_path, "v2", many, model=model, flips=0.5)
    record = store.register(replace(item, parents=(v1.model_id,)))
    listed = store.registry.client.get_model_version(model, "2")
    assert 4000 < len(listed.description) <= DESCRIPTION_LIMIT
    assert len(store.record(record.model_id).edges) == 121
    store.promote(model, 2, expected=1, waive=True, reason="ä" * 20_000, actor="a" * 1000)
    *_, last = store.history(model)
    assert (len(last.reason), len(last.actor)) == (5000, 500)


# --- who gets in ------------------------------------------------------------------------------------------------------

PASSWORD = "a-password-of-16+"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that asks for credentials."""
    pytest.importorskip("flask_wtf", reason="MLflow's own login needs Flask-WTF: pip install 'mlflow[auth]'")
    folder = tmp_path_factory.mktemp("guarded")
    assert versions.local_store(folder).versions("none") == []
    (folder / "served").mkdir()
    settings = folder / "auth.ini"
    settings.write_text(
        "[mlflow]\ndefault_permission = READ\nadmin_username = graceful\n"
        f"admin_password = {PASSWORD}\ndatabase_uri = sqlite:///{folder / 'auth.db'}\n"
        "auth_cache_ttl_seconds = 60\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    variables = {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key for tests that stays the same",
    }
    with mlflow_server.server(
        folder / "mlflow.db", folder / "served", "--app-name", "basic-auth", variables=variables
    ) as uri:
        yield uri


def test_a_guarded_registry_wants_credentials_and_gets_them_from_uri_or_environment(
    guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # put back what was there, whatever the test sets
        monkeypatch.delenv(name)
    with pytest.raises(RegistryError, match="cannot connect") as raised:
        Store(guarded, tmp_path).versions("guarded")
    assert "\n" not in raised.value.message
    with pytest.raises(RegistryError) as raised:
        Store(guarded.replace("://", "://graceful:wrong-password@"), tmp_path).versions("guarded")
    assert "wrong-password" not in raised.value.message
    store = Store(guarded.replace("://", f"://graceful:{PASSWORD}@"), tmp_path / "home")
    v1 = add(store, tmp_path, "guarded", "v1", [])
    v2 = add(store, tmp_path, "guarded", "v2", [v1])
    assert store.chain("guarded") == [v2, v1]
    assert store.rollback("guarded", **WHO) is not None
    assert (store.fetch(v1) / "arch.json").exists()
