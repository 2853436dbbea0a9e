"""What every test may use: golden files, and the command line as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("graceful", deadline=None)  # machines that test are busy
settings.load_profile("graceful")

GOLDEN = Path(__file__).parent / "golden"


def pytest_configure() -> None:
    """Tests interrupt programs; a shell that starts us in the background has us, and them, ignore SIGINT."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="Rewrite golden files in place of comparing.")


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Leave the environment of the test process as it was: libraries put addresses, tokens and settings into it."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with tests/golden/NAME; `make golden` rewrites it, and its diff is reviewed."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--write-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"no golden file {name}; `make golden` writes it"
        assert text == path.read_text(encoding="utf-8"), f"{name} differs; if meant, run `make golden` and review"

    return compare


@pytest.fixture
def command_line(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `graceful ...` in an empty folder with a home of its own."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "GRACEFUL_HOME": str(tmp_path / "home"), "COLUMNS": "100"}
        env.pop("MLFLOW_TRACKING_URI", None)
        return subprocess.run(
            [sys.executable, "-m", "graceful.cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=env,
            timeout=600,
            stdin=subprocess.DEVNULL,
        )

    return run


@pytest.fixture
def own_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget the folders and modules of tasks that a test loads: module names are shared by a whole process."""
    from graceful.tasks import importing

    before = list(sys.path)
    yield
    importing.forget_task_folders()
    sys.path[:] = before
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(f"{tmp_path_factory.getbasetemp()}{os.sep}"):
            del sys.modules[name]
