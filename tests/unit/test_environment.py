"""Credentials in the environment: stripped where they are read, and never repeated where they are wrong."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from graceful import environment
from graceful.cli import checks_services
from graceful.errors import GracefulError, SpecError
from graceful.launch.kubernetes import kubeconfig, proxies
from graceful.launch.kubernetes.kube import Kube
from graceful.launch.ray_jobs.dashboard import Dashboard, token
from graceful.lineage import connection
from graceful.patience import Patience
from graceful.storage import aws_environment

MARKER = "mark3r-Secret"


def test_the_name_of_a_variable_is_written_in_one_module() -> None:
    modules: dict[str, set[str]] = defaultdict(set)
    package = Path(environment.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if re.fullmatch(r"(GRACEFUL|MLFLOW|AWS|RAY|DS)_[A-Z0-9_]*[A-Z0-9]", text):
                modules[text].add(path.relative_to(package).as_posix())
    assert {name: found for name, found in modules.items() if len(found) > 1} == {}
    assert {name: found for name, found in modules.items() if name.startswith("GRACEFUL_")} == {
        name: {"environment.py"} for name in modules if name.startswith("GRACEFUL_")
    }


def test_white_space_around_what_is_read_goes() -> None:
    found = {"AWS_SECRET_ACCESS_KEY": f"{MARKER}\n", "MLFLOW_TRACKING_PASSWORD": f" {MARKER}\r\n", "OTHER": "x\n"}
    environment.clean(found)
    assert found == {"AWS_SECRET_ACCESS_KEY": MARKER, "MLFLOW_TRACKING_PASSWORD": MARKER, "OTHER": "x\n"}


@pytest.mark.parametrize("odd", ["\n", "\u0000", "é"])
def test_what_no_header_may_hold_is_refused_and_not_repeated(
    odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SpecError, match=r"^token: holds a line break or another character") as error:
        environment.header_value(f"{MARKER}{odd}{MARKER}", what="token")
    assert MARKER not in error.value.message
    if odd != "\u0000":  # which no variable can hold
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", f"{MARKER}{odd}{MARKER}")
        place = connection.resolve("http://127.0.0.1:9", tmp_path)
        assert MARKER not in refused(lambda: connection.connect(place))


def refused(ask: object) -> str:
    with pytest.raises(GracefulError) as error:
        ask()  # type: ignore[operator]
    shown = []
    cause: BaseException | None = error.value
    while cause is not None:
        shown.append(str(cause))
        cause = cause.__cause__
    return " ".join(shown)


def ask_version(config: Path) -> str:
    return Kube(access=kubeconfig.load(files=[config]), patience=Patience(tries=1)).version()


def test_tokens_with_a_line_break_inside_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = f"{MARKER}\n{MARKER}"
    assert MARKER not in refused(lambda: token({"RAY_AUTH_TOKEN": broken}))
    (tmp_path / "token").write_text(broken)
    assert MARKER not in refused(lambda: token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}))
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
    }
    for user in ({"token": broken}, {"tokenFile": str(tmp_path / "token")}):
        (tmp_path / "config").write_text(yaml.safe_dump({**config, "users": [{"name": "u", "user": user}]}))
        assert MARKER not in refused(lambda: ask_version(tmp_path / "config"))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", broken)
    assert MARKER not in refused(checks_services._credentials)


@pytest.mark.parametrize(
    "uri",
    [
        f"http://bob:{MARKER}/x@host", f"http://bob:{MARKER}?x@host:5000", f"postgresql://bob:x@{MARKER}@host/db",
        f"http://bob:{MARKER}@[::1", f"http://bob:{MARKER}@host:port", f"nowhere://bob:{MARKER}@host",
        f"bob:{MARKER}@host/db",
    ],
)  # fmt: skip
def test_an_address_of_a_registry_is_not_shown_whole(uri: str, tmp_path: Path) -> None:
    assert MARKER not in refused(lambda: connection.resolve(uri, tmp_path))


@pytest.mark.parametrize("user", [f"bob:{MARKER}/x", f"bob:{MARKER}"])
def test_an_address_that_is_not_reachable_is_not_shown_whole(user: str) -> None:
    def ask() -> str:
        return Dashboard(address=f"http://{user}@127.0.0.1:9", patience=Patience(tries=1)).version()

    assert MARKER not in refused(ask)


@pytest.mark.parametrize("address", [f"bob:{MARKER}@host:port", f"bob:{MARKER}/x@host", f"ftp://bob:{MARKER}@host"])
def test_an_address_without_a_scheme_is_not_shown_whole(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MARKER not in refused(lambda: proxies.checked(address, where="HTTPS_PROXY"))
    (tmp_path / "config").write_text(
        yaml.safe_dump(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c"}}],
                "clusters": [{"name": "c", "cluster": {"server": address}}],
            }
        )
    )
    assert MARKER not in refused(lambda: kubeconfig.load(files=[tmp_path / "config"]))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
    assert MARKER not in refused(aws_environment.endpoint)


@pytest.mark.parametrize(
    ("quota", "ranks", "expected"),
    [("max 100000", "1", None), ("150000 100000", "1", 2), ("50000 100000", "1", 1), ("100000 100000", "8", 1)],
)
def test_cpus_are_those_of_the_pod_shared_among_its_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, ranks: str, expected: int | None
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert environment.usable_cpus(tmp_path / "cpu.max") == (expected or 64)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert environment.usable_cpus(tmp_path / "missing") == 8
