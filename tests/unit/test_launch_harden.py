"""Hardening adds, keeps what is there, and leaves its argument alone; redaction hides and leaves the harmless alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from graceful import redact
from graceful.launch.kubernetes import harden

POD: dict[str, Any] = {
    "containers": [
        {"name": "a", "env": [{"name": "X", "value": "1"}], "volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    ],
    "volumes": [{"name": "v", "emptyDir": {}}],
    "nodeSelector": {"k": "v"},
}


def test_the_argument_stays_as_it_is() -> None:
    before = copy.deepcopy(POD)
    harden.pod(POD, user=1000)
    assert before == POD


def test_what_a_pod_says_already_is_kept() -> None:
    pod = harden.pod(POD, user=7)
    assert pod["nodeSelector"] == {"k": "v"}
    assert {"name": "v", "emptyDir": {}} in pod["volumes"]
    (container,) = pod["containers"]
    assert {"name": "X", "value": "1"} in container["env"]
    assert {"name": "v", "mountPath": "/v"} in container["volumeMounts"]


def test_every_writable_folder_is_a_volume_of_its_own_and_home_is_one() -> None:
    pod = harden.pod(POD, user=7)
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    home = next(item["value"] for item in container["env"] if item["name"] == "HOME")
    assert home in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_a_container_cannot_soften_what_we_harden() -> None:
    soft = {"containers": [{"name": "a", "securityContext": {"privileged": True}}]}
    assert harden.pod(soft, user=7)["containers"][0]["securityContext"] == harden.security_context()


@pytest.mark.parametrize(
    "secret",
    [
        {"env": [{"name": "AWS_SECRET_ACCESS_KEY", "value": "hunter2hunter2"}]},
        {"env": [{"name": "MLFLOW_TRACKING_TOKEN", "value": "hunter2"}]},
        {"env": [{"name": "DB_PASSWORD", "value": "hunter2"}]},
        {"uri": "https://ann:hunter2@mlflow.example.com"},
        {"entrypoint": "python run.py --password hunter2 --password=hunter2"},
        {"text": '{"api_token": "hunter2"}'},
        {"text": "token: hunter2"},
        {"text": "Authorization: Bearer hunter2hunter2"},
        {"text": "key AKIAIOSFODNN7EXAMPLE in a text"},
        {"kind": "Secret", "data": {"a": "hunter2"}, "stringData": {"b": "hunter2"}},
        {"text": "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----"},
    ],
)
def test_secrets_are_hidden_wherever_they_stand(secret: dict[str, Any]) -> None:
    shown = str(redact.hidden(secret))
    assert redact.HIDDEN in shown
    assert "AKIAIOSFODNN7EXAMPLE" not in shown
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    "harmless",
    [
        {"automountServiceAccountToken": False, "authOptions": {"mode": "token"}},
        {"envFrom": [{"secretRef": {"name": "s3-credentials"}}]},
        {"env": [{"name": "RAY_AUTH_MODE", "value": "token"}, {"name": "RAY_AUTH_TOKEN_PATH", "value": "/home/ray/t"}]},
        {"imagePullSecrets": [{"name": "registry"}]},
        {"image": "registry.example.com:5000/graceful@sha256:" + "0" * 64},
        {"mlflow": {"uri": "http://mlflow.mlflow.svc:5000", "token_secret": None}},
        {"text": "train: {optimizer: {lr: 0.05}, tokens: null}"},
        {"config-hash": "f" * 64},
    ],
)
def test_the_harmless_is_shown(harmless: dict[str, Any]) -> None:
    assert redact.hidden(harmless) == harmless
    assert list(redact.secrets(harmless)) == []


def test_a_secret_is_found_by_the_name_of_its_variable() -> None:
    document = {"containers": [{"name": "ray-head", "env": [{"name": "A_TOKEN", "value": "hunter2"}]}]}
    assert list(redact.secrets(document, "spec")) == ["spec.containers.ray-head.env.A_TOKEN.value"]
