"""The whole path with real parts: train, evaluate, gate, register and promote on sqlite, through the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from graceful.constraints import COMPARISON_METRICS, OWN_METRICS
from graceful.programs.messages.webhook import PATIENCE
from tests.support.mlflow_versions import copied_store
from tests.support.webhook_receiver import receiving

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
FAST: dict[str, Any] = {"num_workers": 0, "engine": {"kind": "torch"}, "epochs": 12, "batch_size": 16}
NETWORK = {"head": "cosine"}


def graceful(*arguments: object, home: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "graceful.cli", *map(str, arguments)]
    environment = {**os.environ, "GRACEFUL_HOME": str(home), **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)


def write_spec(folder: Path, name: str, **sections: Any) -> Path:
    document = {
        "model": "digits",
        "name": name,
        "task": {"kind": "digits", "network": NETWORK},
        "train": FAST,
        "gate": {"constraints": [{"metric": "error_rate", "bound": 0.5, "against": "self"}]},
        **sections,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose registry holds digits v1, passed and champion."""
    home = tmp_path_factory.mktemp("home")
    path = write_spec(home, "v1", task={"kind": "digits", "share": 0.5, "classes": 8, "network": NETWORK})
    done = graceful("refresh", path, "-o", "json", home=home)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["outcome"], result["version"], result["champion"]) == ("passed", 1, 1)
    return home


@pytest.fixture
def home(first: Path, tmp_path: Path) -> Path:
    """A copy of that home for one test to change."""
    target = tmp_path / "home"
    copied_store(first, target)
    return target


def champion(home: Path) -> int:
    done = graceful("lineage", "digits", "-o", "json", home=home)
    assert done.returncode == 0, done.stderr
    return next(version["version"] for version in json.loads(done.stdout) if "champion" in version["aliases"])


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("graceful: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0]


def test_a_second_version_is_trained_against_the_first_and_promoted(home: Path) -> None:
    losses = [{"kind": "focal_distillation"}, {"kind": "influence"}, {"kind": "embedding_regression"}]
    path = write_spec(home, "v2", compatibility={"losses": losses, "reference": {"runs": 1}})
    with receiving(*[503] * PATIENCE.tries, 200) as receiver:
        done = graceful("refresh", path, "-o", "json", home=home, env={"GRACEFUL_WEBHOOK": receiver.url})
        assert done.returncode == 0, done.stderr
        assert "503" in done.stderr
        delivered = len(receiver.came)
        again = graceful("refresh", path, "-o", "json", home=home, env={"GRACEFUL_WEBHOOK": receiver.url})
        assert_told(receiver.documents()[PATIENCE.tries :])
        assert len(receiver.came) == delivered + 2, "what was not delivered is sent again, once"
    assert json.loads(again.stdout) == json.loads(done.stdout)
    assert champion(home) == 2
    report = json.loads(Path(json.loads(done.stdout)["report"]).read_text())
    [edge] = report["comparisons"]
    flips = edge["measurements"]["negative_flip_rate"]
    assert edge["against"] == "v1"
    assert flips["value"] == flips["count"] / flips["n"]
    assert flips["lower"] <= flips["value"] <= flips["upper"] < 0.2
    assert_documented(home)
    unknown = graceful("evaluate", path, "--matrix", "--versions", "v1,v9", home=home)
    assert_one_line(unknown, 2, "--versions: 'v9' is not a version of this chain, which has v1, v2")
    measured = graceful("evaluate", path, "--matrix", "-o", "json", home=home)
    assert json.loads(measured.stdout)["versions"] == ["v1", "v2"]
    assert "<caption>R@1, %</caption>" in (home / "runs" / "digits-v2" / "matrix.html").read_text()


def assert_told(messages: list[dict[str, Any]]) -> None:
    """The verdict and the promotion, with what the edge cost."""
    assert [(one["kind"], one["name"], one["verdict"]) for one in messages] == [
        ("verdict", "v2", "passed"),
        ("promotion", "v2", "passed"),
    ]
    assert [one["champion"] for one in messages] == [2, 2]
    [edge] = messages[0]["nfr"]["by_predecessor"]
    assert edge["name"] == "v1"
    assert edge["lower"] <= edge["value"] <= edge["upper"]


def assert_documented(home: Path) -> None:
    """The constraint report of v2 is attached to the version, and knows the unconstrained runs of both."""
    kept = [json.loads(path.read_text()) for path in home.glob("artifacts/**/lineage/constraints.json")]
    [found] = [document for document in kept if document["version"] == "v2"]
    assert found == json.loads((home / "runs" / "digits-v2" / "constraints.json").read_text())
    assert found["compat_slice"] == {"v1": 64}
    assert found["matrix"]["unconstrained"] == {"v1": "it is one", "v2": "1 of its recipe, other seed"}
    first, second = found["matrix"]["independent"]["recall_at_1"]
    assert first == found["matrix"]["recall_at_1"][0][0]
    assert 0.5 < second <= 1.0
    assert found["matrix"]["summary_recall_at_1"]["average_compatibility_independent"]["value"] in (0.0, 1.0)
    assert found["unconstrained"]["runs"] == 1
    assert found["unconstrained"]["seed_floor"] is None
    assert set(found["unconstrained"]["nfr"]) == {"v1"}


def test_a_held_version_is_registered_with_reasons_and_does_not_move_the_champion(home: Path) -> None:
    tight = {"constraints": [{"metric": "negative_flip_rate", "bound": 0.0001}]}
    with receiving(200) as receiver:
        path = write_spec(home, "v2", gate=tight, registry={"webhook": receiver.url})
        done = graceful("refresh", path, "-o", "json", home=home)
    assert done.returncode == 3, done.stderr
    [message] = receiver.documents()
    assert (message["kind"], message["verdict"], message["champion"]) == ("verdict", "held", 1)
    assert "negative_flip_rate" in " ".join(message["reasons"])
    result = json.loads(done.stdout)
    assert result["outcome"] == "held"
    assert "negative_flip_rate" in " ".join(result["reasons"])
    assert champion(home) == 1
    replay = graceful("gate", result["report"], path, "-o", "json", home=home)
    assert replay.returncode == 3
    relaxed = graceful("gate", result["report"], path, "--set", "gate.constraints.0.bound=0.5", home=home)
    assert relaxed.returncode == 0, relaxed.stderr


def test_another_spec_under_a_finished_name_is_refused(home: Path) -> None:
    path = write_spec(home, "v1", train={**FAST, "seed": 7})
    assert_one_line(graceful("refresh", path, home=home), 2, "digits-v1", "name")


def test_a_run_killed_while_training_resumes_and_registers_once(home: Path) -> None:
    path = write_spec(home, "v2", train={**FAST, "epochs": 60, "checkpoint_every": 10})
    environment = {**os.environ, "GRACEFUL_HOME": str(home)}
    command = [sys.executable, "-m", "graceful.programs", "refresh", "--output", "json"]
    from graceful import spec

    document = json.dumps(spec.load(path).dump())
    trace = home / "runs" / "digits-v2" / "metrics.jsonl"
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, text=True)
    assert child.stdin is not None
    child.stdin.write(document)
    child.stdin.close()
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and child.poll() is None:
        if trace.exists() and trace.read_text().count("\n") > 40:
            break
        time.sleep(0.05)  # polling a file that another process writes
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert trace.exists()
    done = graceful("refresh", path, "-o", "json", home=home)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"] == 2
    steps = [row["step"] for row in map(json.loads, trace.read_text().splitlines()) if row["event"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    assert champion(home) == 2


def test_an_altered_ancestor_is_refused_before_anything_is_trained(home: Path) -> None:
    for folder in (home / "artifacts", home / "versions"):
        for weights in folder.rglob("model.safetensors"):
            data = bytearray(weights.read_bytes())
            data[-1] ^= 1
            weights.write_bytes(data)
    path = write_spec(home, "v2")
    assert_one_line(graceful("refresh", path, home=home), 4, "model.safetensors")
    assert not (home / "runs" / "digits-v2" / "model").exists()
    assert champion(home) == 1


def test_an_unreachable_registry_is_one_line(tmp_path: Path) -> None:
    path = write_spec(tmp_path, "v1", registry={"uri": "http://127.0.0.1:9"})
    start = time.monotonic()
    assert_one_line(graceful("refresh", path, home=tmp_path), 4, "127.0.0.1:9")
    assert time.monotonic() - start < 60


@pytest.mark.parametrize(("override", "word"), [("task.clases=3", "task.clases"), ("compatibility.against=[v9]", "v9")])
def test_bad_specs_are_one_line_and_register_nothing(home: Path, override: str, word: str) -> None:
    path = write_spec(home, "v2", compatibility={"losses": [{"kind": "focal_distillation"}]})
    assert_one_line(graceful("refresh", path, "--set", override, home=home), 2, word)
    assert champion(home) == 1


@pytest.mark.parametrize(
    ("sections", "word"),
    [
        ({"train": {**FAST, "batch_size": 100_000}}, "batch_size"),
        ({"gate": {"constraints": [{"metric": "negative_flip_rate", "bound": 0.1, "against": "v9"}]}}, "v9"),
    ],
    ids=["data", "chain"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")  # its own use of SQLAlchemy
def test_a_refresh_that_fails_does_not_stay_running_in_the_registry(
    home: Path, sections: dict[str, Any], word: str
) -> None:
    from graceful.lineage import Store

    path = write_spec(home, "v2", **sections)
    assert_one_line(graceful("refresh", path, home=home), 2, word)
    assert not (home / "runs" / "digits-v2" / "spec.json").exists()
    registry = Store(None, home).registry
    runs = registry.client.search_runs([registry.experiment("digits")], "tags.graceful_refresh_id = 'digits-v2'")
    assert [run.info.status for run in runs] == ["FAILED"]


def test_the_readme_example_runs_as_written(tmp_path: Path) -> None:
    for name in ("v1", "v2"):
        done = graceful("refresh", ROOT / "jobs" / "wine" / f"{name}.yaml", "-o", "json", home=tmp_path)
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"] == 2


def test_every_measurement_may_be_constrained_and_only_those(home: Path) -> None:
    path = write_spec(home, "v2", compatibility={"losses": [{"kind": "embedding_regression"}]})
    done = graceful("refresh", path, "-o", "json", home=home)
    assert done.returncode == 0, done.stderr
    report = json.loads(Path(json.loads(done.stdout)["report"]).read_text())
    assert set(report["measurements"]) == set(OWN_METRICS)
    assert set(report["comparisons"][0]["measurements"]) == set(COMPARISON_METRICS)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")  # its own use of SQLAlchemy
def test_an_ancestor_whose_weights_were_deleted_is_trained_against_and_holds_what_is_judged_by_it(home: Path) -> None:
    from graceful import spec
    from graceful.errors import DataError
    from graceful.lineage import Store
    from graceful.programs.refresh import matrix_of, refresh
    from graceful.programs.runs.run import Run

    def refreshed(name: str, metric: str, bound: float, against: str, **compatibility: Any) -> Any:
        asked = {"losses": [{"kind": "focal_distillation"}], **compatibility}
        gate = {"constraints": [{"metric": metric, "bound": bound, "against": against}]}
        path = write_spec(home, name, compatibility=asked, gate=gate, evaluate={"bootstrap": 100})
        return refresh(Run.of(spec.load(path, [f"home={home}"])))

    assert refreshed("v2", "negative_flip_rate", 0.0001, "all")[0].outcome == "held", "it leaves the cache of v1"
    (v1,) = Store(None, home).chain("digits")
    copies = [path for path in home.rglob("model.safetensors") if v1.model_id in path.parts]
    assert len(copies) == 2, "in the registry, and what was fetched from it"
    for path in copies:
        path.unlink()

    held, report = refreshed("v3", "negative_flip_rate", 0.9, "all")
    assert (held.outcome, held.champion) == ("held", 1)
    assert held.reasons == ("negative_flip_rate against v1: undefined: v1 cannot be run, only its head is left",)
    assert "v1: only its head is left, so its cached outputs were not compared with it" in report.notes
    (nothing,) = report.comparisons
    assert (nothing.against, nothing.measurements["negative_flip_rate"].value) == ("v1", None)
    with pytest.raises(DataError, match="has no outputs of it on these samples and views"):
        refreshed("v4", "error_rate", 0.5, "self", targets={"top": 2}, losses=[NEAR])
    passed, _ = refreshed("v5", "error_rate", 0.5, "self", losses=[{"kind": "influence", "prototypes": False}])
    assert (passed.outcome, passed.champion) == ("passed", passed.version)
    told: list[Any] = []
    found = matrix_of(Run.of(spec.load(home / "v5.yaml", [f"home={home}"])), progress=told.append)
    assert found["versions"] == ["v1", "v5"]
    assert found["recall_at_1"][1][0] is None
    assert found["lost"] == {"v1": "only its head is left"}
    assert told[-1]["lost"] == ["v1: only its head is left"]


NEAR = {"kind": "focal_distillation", "temperature": 5.0, "allow_low_temperature": True}
