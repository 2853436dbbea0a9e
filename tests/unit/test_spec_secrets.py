"""A marker planted wherever people may write a secret must not be found in what any command prints, writes or sends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from graceful import cli, redact, spec
from graceful.cli import planning
from graceful.errors import SpecError
from graceful.launch import profile
from graceful.launch.ray_jobs import request as rayrequest
from graceful.launch.ray_jobs.profile import RayJobs

MARKER = "mark3r-Secret"
URI = f"postgresql://bob:{MARKER}@db.example/graceful"
HOOK = f"https://chat.example/{MARKER}?key={MARKER}"
SPEC = "model: digits\nname: v1\ntask: {kind: digits}\n"
PLACES = {
    "registry.uri": ("--set", f"registry.uri={URI}"),
    "registry.uri with a parameter": ("--set", f"registry.uri=postgresql://db/x?user=u&password={MARKER}"),
    "registry.uri with a parameter of ODBC": (
        "--set",
        f"registry.uri=mssql+pyodbc:///?odbc_connect=UID%3Du%3BPWD%3D{MARKER}",
    ),
    "registry.uri without a scheme": ("--set", f"registry.uri=bob:{MARKER}@db.example/graceful"),
    "registry.webhook": ("--set", f"registry.webhook={HOOK}"),
    "description": ("--set", f"description=the password={MARKER} opens it"),
}
WRONG = {
    "registry.uri with / # ?": ("--set", f"registry.uri=http://bob:a/b#c?{MARKER}@host"),
    "webhook that is none": ("--set", f"registry.webhook=ftp://chat.example/{MARKER}"),
    "webhook as a section": ("--set", f"registry.webhook={{{MARKER}: 1}}"),
    "webhook with a key below": ("--set", f"registry.webhook={HOOK}", "--set", "registry.webhook.x=1"),
    "override that is not YAML": ("--set", f"registry.webhook={HOOK}]: ["),
    "option of a task": ("--set", f"task={{kind: python, file: t.py, options: {{api_key: {MARKER}}}}}"),
    "address in an option": ("--set", f"task={{kind: python, file: t.py, options: {{source: '{URI}'}}}}"),
    "unknown flag": (f"--set=registry.uri={URI}", "--unknown"),
}
COMMANDS = {
    "refresh": ("refresh", "v1.yaml", "--dry-run"),
    "refresh json": ("refresh", "v1.yaml", "--dry-run", "-o", "json"),
    "plan": ("plan", "v1.yaml", "--on", "kind", "--offline"),
    "plan yaml": ("plan", "v1.yaml", "--on", "kind", "--offline", "-o", "yaml"),
    "plan json": ("plan", "v1.yaml", "--on", "rays.yaml", "--offline", "-o", "json"),
    "plan here": ("plan", "v1.yaml", "--on", "local", "-o", "json"),
    "schedule": ("schedule", "apply", "nightly", "v1.yaml", "--cron", "0 3 * * *"),
}
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command in a folder with a spec, profiles and a home; all it prints comes back."""
    monkeypatch.setattr(redact, "_known", set())  # what another test planted must not help
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))
    (tmp_path / "v1.yaml").write_text(SPEC)
    (tmp_path / "cluster").symlink_to(Path(__file__).parents[2] / "cluster")
    (tmp_path / "rays.yaml").write_text("kind: rayjobs\naddress: http://127.0.0.1:8265\nhome: /data\n")

    def command(*words: str) -> tuple[int, str]:
        code = cli.main(list(words))
        said = capsys.readouterr()
        return code, said.out + said.err

    return command


def revealing(folder: Path) -> list[Path]:
    """Files that others may read and that hold the marker."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
    return [path for path in files if MARKER.encode() in path.read_bytes()]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", [*PLACES, *WRONG])
def test_no_command_shows_a_secret(run: Run, tmp_path: Path, place: str, command: str) -> None:
    code, said = run(*COMMANDS[command], *{**PLACES, **WRONG}[place])
    assert MARKER not in said
    assert revealing(tmp_path) == []
    travels = command in ("plan", "plan yaml", "plan json")
    assert code == (2 if place in WRONG or travels else 0), said
    if code == 2:
        assert said.count("\n") == 1, said


@pytest.mark.parametrize("output", ["table", "yaml", "json"])
@pytest.mark.parametrize("kind", ["kuberay", "rayjobs"])
@pytest.mark.parametrize(
    "changes",
    [
        {"env": {"GRACEFUL_WEBHOOK": HOOK}},
        {"env": {"AWS_SECRET_ACCESS_KEY": f"/{MARKER}"}},
        {"mlflow": {"uri": f"http://bob:{MARKER}%2F@mlflow:5000"}},
        {"mlflow": {"uri": f"postgresql://db/x?user=u&password={MARKER}"}},
    ],
)
def test_a_profile_with_a_secret_is_refused_and_not_shown(
    run: Run, tmp_path: Path, changes: dict[str, object], kind: str, output: str
) -> None:
    path = {"kuberay": tmp_path / "cluster" / "kind.yaml", "rayjobs": tmp_path / "rays.yaml"}[kind]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
    code, said = run("plan", "v1.yaml", "--on", "mine.yaml", "--offline", "-o", output)
    assert code == 2
    assert "looks like a secret" in said
    assert MARKER not in said


@pytest.mark.parametrize(("key", "value"), [("DB_PASSWORD", 987654321), ("GRACEFUL_WEBHOOK", f"{HOOK}\0")])
def test_a_profile_with_a_wrong_value_does_not_show_it(run: Run, tmp_path: Path, key: str, value: object) -> None:
    profile_of_mine = {**yaml.safe_load((tmp_path / "rays.yaml").read_text()), "env": {key: value}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(profile_of_mine))
    code, said = run("plan", "v1.yaml", "--on", "mine.yaml", "--offline")
    assert (code, said.count("\n")) == (2, 1)
    assert f"env.{key} in mine.yaml" in said
    assert "987654321" not in said
    assert MARKER not in said


@pytest.mark.parametrize(
    ("words", "code"), [(("ui",), 0), (("refresh", "v1.yaml", "--dry-run"), 0), (("list", "--on", "local"), 0)]
)
def test_no_command_shows_what_the_environment_holds(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://bob:{MARKER}@mlflow.example")
    monkeypatch.setenv("GRACEFUL_WEBHOOK", HOOK)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{MARKER}\n")
    found, said = run(*words)
    assert found == code, said
    assert MARKER not in said


@pytest.mark.parametrize("kind", ["kuberay", "rayjobs"])
@pytest.mark.parametrize(
    ("key", "value", "instead"),
    [("uri", URI, "MLFLOW_TRACKING_URI"), ("webhook", HOOK, "GRACEFUL_WEBHOOK")],
)
def test_a_spec_that_travels_holds_no_secret(kind: str, key: str, value: str, instead: str) -> None:
    document = {**yaml.safe_load(SPEC), "registry": {key: value}}
    place = {
        "kuberay": profile.load("kind"),
        "rayjobs": RayJobs(kind="rayjobs", address="http://h:8265", home="/data"),
    }[kind]
    where = {"kuberay": "ConfigMaps", "rayjobs": "dashboard"}[kind]
    with pytest.raises(SpecError, match=rf"^registry\.{key}: holds .* {where} see it; leave it out and set {instead} "):
        planning.job_of(spec.parse(document), place)
    open_to_all = {**document, "registry": {"uri": "http://mlflow.team.svc:5000", "webhook": "http://notices.team.svc"}}
    job = planning.job_of(spec.parse(open_to_all), place)
    assert json.loads(job.document or "")["registry"] == open_to_all["registry"]
    if isinstance(place, RayJobs):
        assert list(rayrequest.problems(rayrequest.render(job, place))) == []


def test_what_was_hidden_is_not_taken_for_an_address(run: Run, tmp_path: Path) -> None:
    _, shown = run("refresh", "v1.yaml", "--dry-run", *PLACES["registry.uri"])
    assert "postgresql://***@db.example/graceful" in shown
    (tmp_path / "again.yaml").write_text(f"{SPEC}registry: {{uri: 'postgresql://***@db.example/graceful'}}\n")
    code, said = run("refresh", "again.yaml", "--dry-run")
    assert code == 2
    assert "registry.uri in again.yaml: holds ***" in said
    assert "set MLFLOW_TRACKING_URI" in said


def test_a_recorded_spec_has_the_same_digest() -> None:
    resolved = spec.parse({**yaml.safe_load(SPEC), "registry": {"uri": URI, "webhook": HOOK}})
    assert MARKER not in str(resolved.recorded())
    assert spec.parse(resolved.recorded()).digest() == resolved.digest()


@pytest.mark.parametrize(
    "address",
    [
        "http://[::1", "http://host:99999/x", "http://host:abc/x", "http:///x", "http://a b/x", "https://host:0/x",
        "http://a..b/x", f"http://{'a' * 64}.example/x", "http://bob:p/ss@host/x", "https://", "hooks.example/x",
        "http://host/x\u0000",
    ],
)  # fmt: skip
def test_a_webhook_that_cannot_be_posted_to_is_refused_with_the_spec(address: str) -> None:
    with pytest.raises(SpecError, match=r"^registry\.webhook in spec: must be http\(s\)://HOST/PATH") as refused:
        spec.parse({**yaml.safe_load(SPEC), "registry": {"webhook": address}})
    assert address not in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("address", ["https://hooks.example/x", "http://[::1]:8080/x?y=z", "HTTPS://Bücher.example/x"])
def test_a_webhook_that_can_be_posted_to_is_taken(address: str) -> None:
    assert spec.parse({**yaml.safe_load(SPEC), "registry": {"webhook": address}}).registry.webhook == address


HARMLESS = {
    "token_mixer": "mlp", "token_type": "bpe", "class_token": "mean", "access_key": "speaker_id",
    "secret_classes": ["a", "b"], "private_key_column": "identifier", "auth_token_env": "HF_TOKEN",
    "token_encoder_name": "facebook/wav2vec2-large-960h-lv60",
    "key": "user_id", "token": "cls", "max_tokens": 512, "token_size": 64, "password": None, "api_key": "",
    "source": "https://data.example/a?b=c", "revision": "d41d8cd98f00b204e9800998ecf8427e",
    "note": "the token: mean of all; password: none",
}  # fmt: skip
REFUSED = {
    "password": "two words", "db_password": 123456, "api_key": "abc", "secret_access_key": "x", "client-secret": "y",
    "auth_token": "a8Fk29dLq0Zx7Rw3", "token": "550e8400-e29b-41d4-a716-446655440000", "revision": "hf_" + "a1B2" * 8,
    "source": "https://bob:pw@data.example/a", "args": "--lr 0.1 password=hunter2",
    "header": "Authorization: Basic Ym9iOnB3",
    "sources": ["https://a.example", "https://bob:pw@b.example"], "webhook": "https://chat.example/x",
}  # fmt: skip


def with_options(folder: Path, options: dict[str, object]) -> Path:
    (folder / "t.py").write_text("def task(**options): ...\n")
    task = {"kind": "python", "file": "t.py", "options": options}
    path = folder / "options.yaml"
    path.write_text(yaml.safe_dump({"model": "digits", "name": "v1", "task": task}))
    return path


def test_options_that_are_called_like_secrets_and_are_none_are_taken(run: Run, tmp_path: Path) -> None:
    path = with_options(tmp_path, HARMLESS)
    for words in (
        ("refresh", "--dry-run"),
        ("plan", "--on", "kind", "--offline"),
        ("plan", "--on", "rays.yaml", "--offline"),
    ):
        code, said = run(words[0], str(path), *words[1:])
        assert code == 0, said


@pytest.mark.parametrize("option", REFUSED)
def test_options_that_are_secrets_are_refused(run: Run, tmp_path: Path, option: str) -> None:
    code, said = run("refresh", str(with_options(tmp_path, {option: REFUSED[option]})), "--dry-run")
    assert code == 2
    assert f"task.options.{option}" in said
    assert "looks like a secret" in said
