"""Ray's job server and MLflow as HTTP services: tokens, refusals, patience, and what `graceful doctor` says of them."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from graceful.cli import checks_services
from graceful.cli.checks_services import Services
from graceful.launch.checks import Check
from graceful.launch.kuberay import checks as kuberay_checks
from graceful.launch.kuberay.backend import client_ray
from graceful.launch.kuberay.profile import Storage
from graceful.launch.ray_jobs import checks as rayjobs_checks
from graceful.launch.ray_jobs.dashboard import Dashboard, token
from graceful.launch.ray_jobs.profile import RayJobs
from graceful.launch.refusals import ApiError, ForbiddenError, NotFoundError, UnreachableError
from graceful.patience import Patience
from tests.support.http_answers import Answers, answering

VERSION = json.dumps({"version": "4", "ray_version": client_ray()})
PACKAGE = "/api/packages/gcs/_ray_pkg_1.zip"
SEARCH = f"GET {checks_services.SEARCH}"


def dashboard(answers: Answers, secret: str | None = "s3cret") -> Dashboard:
    patience = Patience(sleep=lambda seconds: None, random=lambda: 0.0)
    return Dashboard(address=f"{answers.address}/", patience=patience, secret=lambda: secret)


def test_the_token_goes_with_every_request_and_is_looked_for_where_ray_does(tmp_path: Path) -> None:
    with answering({"GET /api/version": [(200, VERSION)]}) as answers:
        assert dashboard(answers).version() == client_ray()
        dashboard(answers, None).version()
    assert [header for _, header, _ in answers.asked] == ["Bearer s3cret", ""]
    file = tmp_path / "token"
    file.write_text("from a file\n", encoding="utf-8")
    assert token({"RAY_AUTH_TOKEN": "given", "RAY_AUTH_TOKEN_PATH": str(file)}) == "given"
    assert token({"RAY_AUTH_TOKEN_PATH": str(file)}) == "from a file"
    with pytest.raises(ForbiddenError, match=r"RAY_AUTH_TOKEN_PATH .* cannot be read"):
        token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")})


def test_reads_are_repeated_and_a_submission_is_not() -> None:
    given = {"GET /api/jobs/a": [(503, "busy"), (200, '{"status": "RUNNING"}')], "POST /api/jobs/": [(500, "busy")]}
    with answering(given) as answers:
        assert dashboard(answers).job("a") == {"status": "RUNNING"}
        with pytest.raises(ApiError, match="answers 500"):
            dashboard(answers).submit({"entrypoint": "x"})
        assert [request for request, *_ in answers.asked].count("POST /api/jobs/") == 1


def test_a_package_is_uploaded_only_where_it_is_missing() -> None:
    with answering({f"GET {PACKAGE}": [(404, ""), (200, "")], f"PUT {PACKAGE}": [(200, "")]}) as answers:
        for _ in range(2):
            dashboard(answers).put_package("gcs://_ray_pkg_1.zip", b"zip")
    assert [(request, body) for request, _, body in answers.asked if body] == [(f"PUT {PACKAGE}", b"zip")]


def test_refusals_are_told_by_what_the_caller_can_do() -> None:
    traceback = "Traceback (most recent call last):\n  File x\nValueError: entrypoint must be a string\n"
    given = {
        "GET /api/jobs/none": [(404, "Job none does not exist")],
        "GET /api/jobs/locked": [(401, "no token")],
        "GET /api/jobs/page": [(200, "<html>")],
        "POST /api/jobs/": [(400, traceback)],
    }
    with answering(given) as answers:
        asked = dashboard(answers)
        for name, kind, words in (
            ("none", NotFoundError, "Job none does not exist"),
            ("locked", ForbiddenError, "wants a token and got none .401.; set RAY_AUTH_TOKEN"),
            ("page", UnreachableError, "is not a Ray dashboard"),
        ):
            with pytest.raises(kind, match=words):
                asked.job(name)
        with pytest.raises(ApiError, match="POST /api/jobs/: ValueError: entrypoint must be a string; correct the job"):
            asked.submit({})
    with pytest.raises(UnreachableError, match=r"no answer from http://127\.0\.0\.1"):
        asked.version()


def states(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.state for check in checks}


def ray(answers: Answers) -> list[Check]:
    return rayjobs_checks.checks(RayJobs(kind="rayjobs", address=answers.address, home="/h"))


def test_doctor_looks_at_a_ray_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    well = {"GET /api/version": [(200, VERSION)], "GET /api/jobs/": [(200, "[]")]}
    with answering(well) as answers:
        assert states(ray(answers)) == {"dashboard": "ok", "ray": "ok", "token": "ok"}
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert states(ray(answers))["token"] == "warn"
        answers.given["GET /api/version"] = [(200, '{"ray_version": "1.13.0"}')]
        assert states(ray(answers))["ray"] == "fail"
        answers.given["GET /api/jobs/"] = [(403, "Forbidden")]
        assert states(ray(answers)) == {"dashboard": "ok", "token": "fail"}
    assert states(ray(answers)) == {"dashboard": "fail"}


MLFLOW = [
    ((200, "3.17.2"), (200, "{}"), {"mlflow": "ok", "mlflow api": "ok"}, "is an allowed host"),
    ((200, "3.16.0"), (200, "{}"), {"mlflow": "fail", "mlflow api": "ok"}, "update the server to 3.17.2"),
    ((200, "<html>"), (200, "{}"), {"mlflow": "fail", "mlflow api": "ok"}, "is it MLflow's own address"),
    ((200, "3.18.0"), (403, "Invalid Host header"), {"mlflow": "ok", "mlflow api": "fail"}, "--allowed-hosts ...,127"),
    ((200, "3.18.0"), (401, "who?"), {"mlflow": "ok", "mlflow api": "warn"}, "set MLFLOW_TRACKING_TOKEN"),
    ((200, "3.18.0"), (500, "no table"), {"mlflow": "ok", "mlflow api": "fail"}, "no table"),
    ((502, "bad gateway"), (502, ""), {"mlflow": "fail"}, "answers 502 to /version"),
]


@pytest.mark.parametrize(("version", "search", "expected", "words"), MLFLOW)
def test_doctor_looks_at_mlflow(
    version: tuple[int, str], search: tuple[int, str], expected: dict[str, str], words: str
) -> None:
    with answering({"GET /version": [version], SEARCH: [search]}) as answers:
        found = checks_services.mlflow(answers.address)
    assert states(found) == expected
    assert words in " ".join(f"{check.found} {check.remedy}" for check in found)


def test_doctor_looks_whether_mlflow_lets_strangers_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    given = {"GET /version": [(200, "3.17.2")], SEARCH: [(200, "{}"), (401, "who?")]}
    with answering({**given, "POST /ajax-api/3.0/jobs/search": [(200, "{}")]}) as answers:
        found = checks_services.mlflow(answers.address)
    assert states(found) == {"mlflow": "ok", "mlflow api": "ok", "mlflow auth": "ok", "mlflow jobs": "warn"}
    sent = [authorization for request, authorization, _ in answers.asked if request == SEARCH]
    assert sent == ["Basic YW5uOnNlY3JldA==", ""]
    assert "secret" not in " ".join(f"{check.found} {check.remedy}" for check in found)


def test_doctor_names_settings_of_mlflow_that_let_pickles_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    with answering({"GET /version": [(200, "3.17.2")], SEARCH: [(200, "{}")]}) as answers:
        found = checks_services.mlflow(answers.address)
    assert states(found) == {"mlflow": "ok", "mlflow api": "ok", "mlflow client": "warn"}


def test_mlflow_that_is_not_there_fails_and_a_name_of_pods_warns() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert states(checks_services.mlflow(f"http://127.0.0.1:{port}")) == {"mlflow": "fail"}
    assert states(checks_services.mlflow("http://mlflow.team.invalid:5000")) == {"mlflow": "warn"}
    assert states(checks_services.mlflow(None)) == {"mlflow": "warn"}


def test_storage_is_tried_by_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    (tried,) = kuberay_checks._storage(Storage(uri="s3://bucket/runs"), Services(home=tmp_path))
    assert (tried.name, tried.state) == ("storage", "fail")
    assert "s3://bucket/runs/probe-" in tried.found
    assert states(kuberay_checks._storage(Storage(), Services(home=tmp_path))) == {"storage": "warn"}
    assert kuberay_checks._storage(Storage(claim="runs"), Services(home=tmp_path)) == []


@pytest.mark.integration
def test_a_bucket_is_written_read_and_left_as_it_was(tmp_path: Path) -> None:
    from graceful.storage import objects
    from graceful.storage.server import client
    from tests.support.s3_server import serving

    with serving():
        client().create_bucket(Bucket="doctor")
        (tried,) = kuberay_checks._storage(Storage(uri="s3://doctor/runs"), Services(home=tmp_path))
        assert (tried.state, tried.found) == ("ok", "s3://doctor/runs, probe written, read and deleted")
        assert objects.list_objects("s3://doctor") == []
        (missing,) = kuberay_checks._storage(Storage(uri="s3://doctor-not-there/runs"), Services(home=tmp_path))
        assert (missing.state, "no such bucket" in missing.found) == ("fail", True)
