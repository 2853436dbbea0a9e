"""A plan describes and changes nothing; submitting creates once, also in a race, and never overwrites."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from graceful import cli, spec
from graceful.cli import planning
from graceful.environment import OUTCOME_VARIABLE
from graceful.errors import InfrastructureError, SpecError
from graceful.launch import outcome, plan
from graceful.launch.backend import Change, Finding, Handle, Severity
from graceful.launch.job import JobSpec, Resources
from graceful.launch.kuberay import backend as kuberay
from graceful.launch.kuberay import manifests
from graceful.launch.kuberay.backend import KubeRayBackend
from graceful.launch.refusals import ForbiddenError, InvalidObjectError, UnreachableError
from tests.support.launch import CLUSTER, Server, cluster, job

ROOT = Path(__file__).parents[2]
NAME = "glyphs-v2"


def backend(server: Server | None = None, **profile: Any) -> KubeRayBackend:
    return KubeRayBackend(profile=cluster(**profile), connect=None if server is None else lambda: server)  # type: ignore[arg-type, return-value]  # as much of a server as planning uses


def submitted(server: Server, one: JobSpec) -> Handle:
    place = backend(server)
    return place.submit(place.plan(one))


def test_a_plan_asks_and_changes_nothing() -> None:
    server = Server()
    planned = backend(server).plan(job())
    assert server.objects == {}
    assert {call.split()[0] for call in server.calls} == {"get", "try"}
    assert [item.change for item in planned.differences] == [Change.CREATE, Change.CREATE]
    assert planned.errors == ()
    assert str(planned.handle) == "kuberay://team-a/glyphs-v2"


def test_offline_nobody_is_asked_and_the_rest_is_the_same() -> None:
    offline, asked = backend().plan(job()), backend(Server()).plan(job())
    assert {item.change for item in offline.differences} == {Change.UNKNOWN}
    assert dataclasses.replace(offline, differences=()) == dataclasses.replace(asked, differences=())


def test_submitting_sends_exactly_the_planned_documents() -> None:
    server = Server()
    place = backend(server)
    planned = place.plan(job())
    place.submit(planned)
    for document in planned.documents:
        live = server.objects[document["kind"], document["metadata"]["name"]]
        assert {key: live[key] for key in document if key != "metadata"} == {
            key: part for key, part in document.items() if key != "metadata"
        }


def test_the_configmap_goes_with_its_job() -> None:
    server = Server()
    submitted(server, job())
    config = next(value for (kind, _), value in server.objects.items() if kind == "ConfigMap")
    (owner,) = config["metadata"]["ownerReferences"]
    assert owner["uid"] == server.objects["RayJob", NAME]["metadata"]["uid"]


def test_the_same_run_twice_is_one_job() -> None:
    server = Server()
    assert submitted(server, job()) == submitted(server, job())
    assert sorted(kind for kind, _ in server.objects) == ["ConfigMap", "RayJob"]
    assert backend(server).plan(job()).differences[-1].change is Change.NONE


def test_two_submitters_that_planned_before_either_sent_make_one_job() -> None:
    server = Server()
    first, second = backend(server), backend(server)
    plans = first.plan(job()), second.plan(job())
    assert first.submit(plans[0]) == second.submit(plans[1])
    assert len(server.objects) == 2


def test_the_slower_of_two_different_specs_is_refused_and_leaves_nothing_behind() -> None:
    server = Server()
    first, second = backend(server), backend(server)
    mine = first.plan(job())
    other = second.plan(job(document="{}", labels={"config-hash": "other"}))
    first.submit(mine)
    before = dict(server.objects)
    with pytest.raises(SpecError, match="is there already with another spec"):
        second.submit(other)
    assert server.objects == before


def test_a_plan_says_that_the_run_id_is_taken() -> None:
    server = Server()
    submitted(server, job())
    planned = backend(server).plan(job(document="{}", labels={"config-hash": "other"}))
    assert [finding.rule for finding in planned.errors] == ["run-id-taken"]
    with pytest.raises(SpecError, match="RayJob glyphs-v2 is there already with another spec"):
        kuberay.refuse(planned)


def test_a_create_that_arrived_although_its_answer_was_lost_is_one_job() -> None:
    server = Server()
    place = backend(server)
    planned = place.plan(job())
    lost = iter([True])

    def cut(verb: str, kind: str) -> None:
        if (verb, kind) == ("create", "RayJob") and next(lost, False):
            server.objects["RayJob", NAME] = {**planned.documents[-1]}
            server.objects["RayJob", NAME]["metadata"] = {**planned.documents[-1]["metadata"], "uid": "u"}
            raise UnreachableError("create rayjobs: no answer")

    server.before = cut
    assert place.submit(planned) == planned.handle
    assert len(server.objects) == 2


def test_a_missing_permission_is_named_and_is_not_the_users_fault() -> None:
    def refuse(verb: str, kind: str) -> None:
        if (verb, kind) == ("try", "RayJob"):
            raise ForbiddenError("create rayjobs.ray.io: forbidden for ann; grant a Role")

    planned = backend(Server(before=refuse)).plan(job())
    assert planned.differences[-1].change is Change.REFUSED
    with pytest.raises(InfrastructureError, match="forbidden for ann") as caught:
        kuberay.refuse(planned)
    assert caught.value.exit_code == 4


def test_an_object_that_the_server_refuses_is_the_users_fault() -> None:
    def refuse(verb: str, kind: str) -> None:
        if (verb, kind) == ("try", "RayJob"):
            raise InvalidObjectError("create rayjobs.ray.io: unknown field")

    with pytest.raises(SpecError, match="unknown field"):
        kuberay.refuse(backend(Server(before=refuse)).plan(job()))


def test_a_server_that_does_not_answer_is_asked_once_and_the_plan_is_shown() -> None:
    def silent(verb: str, kind: str) -> None:
        raise UnreachableError("no answer from https://10.0.0.1")

    server = Server(before=silent)
    planned = backend(server).plan(job())
    assert len(server.calls) == 1
    assert {item.change for item in planned.differences} == {Change.UNKNOWN}
    with pytest.raises(InfrastructureError, match="no answer"):
        kuberay.refuse(planned)


def test_a_plan_with_errors_is_not_sent() -> None:
    server = Server()
    place = backend(server, storage={})
    planned = place.plan(job())
    with pytest.raises(SpecError, match="no volume that they and the head share"):
        place.submit(planned)
    assert server.objects == {}


def test_accelerators_that_the_profile_lacks_are_an_error() -> None:
    needs = job(resources=Resources(gpu=1))
    assert "no-gpu" in {finding.rule for finding in backend().plan(needs).errors}
    assert backend(worker={"gpu": 1}).plan(needs).errors == ()


def test_prices_are_those_of_the_table() -> None:
    prices = {"currency": "EUR", "cpu": 0.1, "memory": 0.01, "gpu": 2.0, "spot_factor": 0.5}
    machine = {"cpu": 4, "memory": "16Gi", "gpu": 1, "spot": True}
    planned = backend(prices=prices, head={"cpu": 2, "memory": "8Gi"}, worker=machine).plan(job(workers=3))
    head, worker, submitter = planned.parts
    assert head.price == pytest.approx(2 * 0.1 + 8 * 0.01)
    assert worker.price == pytest.approx(3 * (4 * 0.1 + 16 * 0.01 + 2.0) * 0.5)
    assert submitter.price == pytest.approx(0.1 + 0.01)
    assert planned.price == pytest.approx(sum(part.price or 0 for part in planned.parts))
    assert (planned.gpus, planned.currency) == (3, "EUR")


def test_without_a_table_there_is_no_price() -> None:
    assert backend().plan(job()).price is None


def test_a_difference_shows_our_fields_and_not_the_servers() -> None:
    _, rayjob = manifests.render(job(), cluster())
    live = {**rayjob, "status": {"x": 1}, "metadata": {**rayjob["metadata"], "uid": "u", "resourceVersion": "7"}}
    assert plan.difference(rayjob, live, rayjob).change is Change.NONE
    _, larger = manifests.render(job(workers=3), cluster())
    found = plan.difference(larger, live, larger)
    assert found.change is Change.UPDATE
    assert any(line.startswith("+") and "replicas: 3" in line for line in found.lines)
    assert not any("resourceVersion" in line for line in found.lines)


def test_differences_hide_secrets() -> None:
    before, after = ({"kind": "Secret", "data": {"a": text}} for text in ("b2xk", "bmV3"))
    assert "bmV3" not in "\n".join(plan.diff(before, after))


def test_a_finding_is_one_line_that_does_not_repeat_itself() -> None:
    finding = Finding(rule="r", severity=Severity.ERROR, where="RayJob a", message="RayJob a is there", remedy="")
    assert finding.line() == "RayJob a is there"
    assert dataclasses.replace(finding, where="RayJob.spec", remedy="do").line() == "RayJob.spec: RayJob a is there; do"


@pytest.mark.parametrize("text", ["kuberay://ns/name", "local://glyphs-v2", "rayjobs://127.0.0.1:8265/raysubmit_1"])
def test_a_handle_is_read_as_it_is_written(text: str) -> None:
    assert str(Handle.parse(text)) == text


@pytest.mark.parametrize("text", ["", "name", "kuberay://", "kuberay://ns/", "://ns/name"])
def test_what_is_no_handle_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="must look like kuberay://namespace/name"):
        Handle.parse(text)


# The command line.

DIGITS = {"model": "digits", "name": "v1", "task": {"kind": "digits"}, "home": "/home/me/runs"}


def test_a_job_leaves_this_machines_folders_behind() -> None:
    made = planning.job_of(spec.parse(DIGITS), cluster())
    document = json.loads(made.document or "")
    assert document["home"] is None
    assert spec.parse(document).digest() == spec.parse(DIGITS).digest() == made.labels["config-hash"]
    assert (made.run_id, made.workers) == ("digits-v1", 2)


def test_a_task_file_of_the_users_travels_with_the_job(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("one = 1\n", encoding="utf-8")
    resolved = spec.parse({**DIGITS, "task": {"kind": "python", "file": str(file)}})
    before = planning.job_of(resolved, cluster())
    assert json.loads(before.document or "")["task"]["file"] == "/etc/graceful/task.py"
    assert before.files == {"task.py": "one = 1\n"}
    file.write_text("one = 2\n", encoding="utf-8")
    assert planning.job_of(resolved, cluster()).labels["config-hash"] != before.labels["config-hash"]


def test_a_task_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    resolved = spec.parse({**DIGITS, "task": {"kind": "python", "file": str(tmp_path / "none.py")}})
    with pytest.raises(SpecError, match=r"none\.py: cannot be read"):
        planning.job_of(resolved, cluster())


@pytest.fixture
def profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.usefixtures("profiles")
def test_the_plan_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "jobs/glyphs/v2.yaml", "--on", "gpu-spot", "--offline"]) == 0
    said = capsys.readouterr().out
    for wanted in (
        "kuberay://ml-training/glyphs-v2",
        "worker     2",
        "64Gi",
        "USD per hour",
        "1.44",
        "unknown: RayJob",
    ):
        assert wanted in said


@pytest.mark.usefixtures("profiles")
def test_a_plan_shows_the_least_and_the_largest_number_of_workers(capsys: pytest.CaptureFixture[str]) -> None:
    setting = ["--set", "train.num_workers={min: 1, max: 8}", "--set", "train.batch_size=512"]
    engine = ["--set", "train.engine={kind: torch}"]
    assert cli.main(["plan", "jobs/glyphs/v2.yaml", "--on", "gpu-spot", "--offline", *setting, *engine]) == 0
    said = capsys.readouterr().out
    assert "1 to 8 Ray workers, as there is room (1, 2, 4, 8 divide a batch)" in said
    assert "8 ranks in 8 pods" in said


@pytest.mark.usefixtures("profiles")
def test_the_plan_as_manifests_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    arguments = ["plan", "jobs/glyphs/v2.yaml", "--on", "kind", "--offline", "-o"]
    assert cli.main([*arguments, "yaml"]) == 0
    manifests = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [document["kind"] for document in manifests] == ["ConfigMap", "RayJob"]
    assert cli.main([*arguments, "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["documents"] == manifests
    assert found["price_per_hour"] is None


@pytest.mark.usefixtures("profiles")
def test_no_form_of_the_plan_shows_a_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "leaky.yaml"
    text = (ROOT / "cluster/kind.yaml").read_text(encoding="utf-8")
    path.write_text(text + "env: {API_TOKEN: hunter2}\nmlflow: {uri: 'https://ann:hunter2@mlflow'}\n", encoding="utf-8")
    for output in ("table", "yaml", "json"):
        code = cli.main(["plan", "jobs/glyphs/v2.yaml", "--on", str(path), "--offline", "-o", output])
        said = capsys.readouterr()
        assert code == 2
        assert "secret" in said.out + said.err
        assert "hunter2" not in said.out + said.err


@pytest.mark.usefixtures("profiles")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["plan", "jobs/glyphs/v2.yaml", "--on", "kindd"], "did you mean kind?"),
        (["gc", "--on", "local", "-n", "y"], "--on local: kind local is not a Kubernetes backend"),
        (["gc", "-n", "y", "--home", "h"], "--home: is of this machine"),
        (["gc", "--cache-gb", "nan"], "'nan' is not a finite number"),
        (["status", "x", "--on", "local", "-n", "y"], "leave --context and --namespace out"),
        (["plan", "jobs/glyphs/none.yaml", "--on", "kind"], "no such spec file"),
        (["plan", "jobs/glyphs/v2.yaml"], "missing option '--on'"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert told in said.err
    assert said.err.count("\n") == 1


@pytest.mark.usefixtures("profiles")
def test_nothing_is_sent_where_nobody_can_be_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server()
    monkeypatch.setattr(kuberay, "connector", lambda profile: lambda: server)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert cli.main(["submit", "jobs/glyphs/v2.yaml", "--on", "kind"]) == 2
    assert "add --yes" in capsys.readouterr().err
    assert server.objects == {}


@pytest.mark.usefixtures("profiles")
def test_submit_prints_the_handle_on_stdout_and_the_way_back_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server()
    monkeypatch.setattr(kuberay, "connector", lambda profile: lambda: server)
    assert cli.main(["submit", "jobs/glyphs/v2.yaml", "--on", "kind", "--yes"]) == 0
    said = capsys.readouterr()
    assert said.out == "kuberay://graceful/glyphs-v2\n"
    assert "graceful logs -f kuberay://graceful/glyphs-v2 --on kind" in said.err
    assert len(server.objects) == 2


@pytest.mark.usefixtures("profiles")
def test_what_a_cluster_may_not_have_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "photos.yaml"
    path.write_text("{model: photos, name: v1, task: {kind: image_folder, root: photos}}", encoding="utf-8")
    assert cli.main(["plan", str(path), "--on", "kind", "--offline"]) == 0
    said = capsys.readouterr().out
    assert f"warning: task.root: {tmp_path / 'photos'} is a path of this machine" in said
    assert "warning: profile.mlflow.uri: not set" in said
    network = "{kind: transformers, checkpoint: m}"
    task = f"{{kind: table, files: [a.csv, 's3://b/c.csv'], columns: {{text: t}}, network: {network}}}"
    path.write_text(f"{{model: texts, name: v1, task: {task}}}", encoding="utf-8")
    assert cli.main(["plan", str(path), "--on", "kind", "--offline"]) == 0
    said = capsys.readouterr().out
    assert f"warning: task.files: {tmp_path / 'a.csv'} is a path of this machine" in said
    assert f"warning: task.network.checkpoint: {tmp_path / 'm'} is a path of this machine" in said
    assert "s3://b/c.csv is" not in said


# The program at the other end.


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a pod finds its spec in."""
    path = tmp_path / "spec.json"
    made = planning.job_of(spec.parse(DIGITS), cluster())
    path.write_text(made.document or "", encoding="utf-8")
    monkeypatch.setenv("GRACEFUL_RUN_SPEC", str(path))
    return path


@pytest.mark.parametrize(("code", "ended"), [(0, 0), (3, 0), (5, 5)])
@pytest.mark.usefixtures("mounted")
def test_a_pods_program_reads_the_mounted_spec_and_ends_with_its_outcome(
    code: int, ended: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from graceful.programs import __main__ as entry
    from graceful.programs.runs.run import Run

    seen: list[spec.RefreshSpec] = []

    def program(run: Run, progress: Any) -> Any:
        seen.append(run.spec)
        return {}, code, lambda console: None

    monkeypatch.setitem(entry.PROGRAMS, "refresh", program)
    assert entry.main(["refresh", "--quiet"]) == ended
    assert [one.run_id for one in seen] == ["digits-v1"]
    found = outcome.last(capsys.readouterr().out.splitlines())
    assert found is not None
    assert found.exit_code == code


def test_a_pod_without_its_spec_says_which_file(mounted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from graceful.programs import __main__ as entry

    mounted.unlink()
    assert entry.main(["refresh", "--quiet"]) == 2
    assert f"{mounted}: cannot be read" in capsys.readouterr().err


def test_a_full_disk_under_the_outcome_does_not_change_the_exit_code(
    mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graceful.programs import __main__ as entry

    mounted.unlink()
    monkeypatch.setenv(OUTCOME_VARIABLE, "/dev/full")
    assert entry.main(["refresh", "--quiet"]) == 2


@pytest.mark.parametrize(("registry", "code", "retryable"), [("/nowhere", 2, False), ("http://127.0.0.1:9", 4, True)])
def test_the_outcome_tells_trouble_outside_the_run_from_a_wrong_spec(
    mounted: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, registry: str, code: int, retryable: bool
) -> None:
    from graceful.lineage import outages
    from graceful.programs import __main__ as entry

    document = json.loads(mounted.read_text())
    mounted.write_text(json.dumps({**document, "home": str(tmp_path), "registry": {"uri": registry}}))
    monkeypatch.setattr(outages, "PATIENCE", dataclasses.replace(outages.PATIENCE, seconds=0.0))
    monkeypatch.setenv(OUTCOME_VARIABLE, str(tmp_path / "outcome"))
    assert entry.main(["refresh", "--quiet"]) == code
    told = outcome.last((tmp_path / "outcome").read_text().splitlines())
    assert told is not None
    assert (told.exit_code, told.retryable) == (code, retryable)


IMPORTED = """
import io, json, sys
from graceful.cli import main
sys.stdout = io.StringIO()
code = main(sys.argv[1:])
sys.stderr.write(json.dumps({"code": code, "modules": sorted(sys.modules)}))
"""


def test_planning_offline_imports_neither_science_nor_a_client() -> None:
    arguments = ("plan", "jobs/glyphs/v2.yaml", "--on", "kind", "--offline")
    command = [sys.executable, "-c", IMPORTED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=ROOT)
    found = json.loads(done.stderr.strip().splitlines()[-1])
    assert found["code"] == 0
    assert not {"torch", "numpy", "ray", "mlflow", "boto3", "kubernetes", "urllib3", "rich"} & set(found["modules"])


def test_a_planned_search_announces_every_training_and_names_doctor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "place.yaml"
    path.write_text(yaml.safe_dump(CLUSTER))
    given = ["plan", str(ROOT / "jobs/glyphs/tune.yaml"), "--on", str(path), "--offline", "--tune"]
    assert cli.main([*given, "-o", "json", "--set", "tune.trials=10", "--set", "tune.final.candidates=2"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert notes[0].startswith("28 trainings: 10 trials, 12 reference runs")
    assert notes[0].endswith("6 of the best trials again with fresh seeds")
    assert notes[-1].endswith(f"`graceful doctor --on {path}` does")
