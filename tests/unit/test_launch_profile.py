"""Cluster profiles: the shipped ones load, misspelt keys are refused at every depth, errors are one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import graceful
from graceful.errors import SpecError
from graceful.launch import profile, registry
from graceful.launch.local.profile import Local
from tests.support.launch import CLUSTER, changed

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path.stem for path in (ROOT / "cluster").glob("*.yaml"))


def refused(document: Any) -> str:
    with pytest.raises(SpecError) as caught:
        profile.parse(document, where="p.yaml")
    assert "\n" not in caught.value.message
    return caught.value.message


def test_the_profiles_we_ship_are_these() -> None:
    assert {"local", "kind", "gpu-spot", "queue"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_profile_is_valid_and_says_what_it_is_for(name: str) -> None:
    profile.load(name, folder=ROOT / "cluster")
    assert (ROOT / "cluster" / f"{name}.yaml").read_text(encoding="utf-8").startswith("# ")


def test_a_profile_is_found_by_name_and_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(CLUSTER), encoding="utf-8")
    assert profile.load("mine", folder=tmp_path) == profile.load(str(path)) == profile.parse(CLUSTER)


def test_local_needs_no_file(tmp_path: Path) -> None:
    assert profile.load("local", folder=tmp_path) == Local(kind="local")


@pytest.mark.parametrize(
    ("name", "told"),
    [("gpu-spott", "did you mean gpu-spot?"), ("zzz", "there is gpu-spot, kind"), ("no/such.yaml", "write one")],
)
def test_a_missing_profile_proposes_what_there_is(name: str, told: str) -> None:
    with pytest.raises(SpecError, match=f"--on {name}: no profile") as caught:
        profile.load(name, folder=ROOT / "cluster")
    assert told in caught.value.message


DEPTHS = ["", "head", "worker", "storage", "mlflow", "retries", "deadlines", "prices"]


@pytest.mark.parametrize("section", DEPTHS)
def test_a_misspelt_key_is_refused_at_every_depth(section: str) -> None:
    path = f"{section}/nonsens" if section else "nonsens"
    assert refused(changed(CLUSTER, path, 1)).startswith(f"{path.replace('/', '.')} in p.yaml: unknown key")


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("namespce", "x", "namespce in p.yaml: unknown key, did you mean namespace?"),
        ("worker/memry", "x", "worker.memry in p.yaml: unknown key, did you mean memory?"),
        ("worker/tolerations", [{"efect": "NoSchedule"}], "worker.tolerations.0.efect in p.yaml: unknown key, did you"),
        ("worker/memory", "4GB", "worker.memory in p.yaml: must be a quantity such as 2, 500m or 4Gi, got '4GB'"),
        ("worker/memory", 2, "worker.memory in p.yaml: must be memory such as 4Gi, at least 64Mi, got 2 (2 bytes)"),
        ("worker/cpu", "2Gi", "worker.cpu in p.yaml: must be cores such as 2 or 500m, from 1m to 10000, got '2Gi'"),
        ("worker/cpu", 0, "worker.cpu in p.yaml: must be cores such as 2 or 500m, from 1m to 10000, got 0"),
        ("worker/reserved_cpu", 8, "worker.reserved_cpu in p.yaml: must be at most cpu = 1, got 8"),
        ("worker/tolerations", [{"operator": "Exists", "value": "x"}], "operator Exists takes no value, got 'x'"),
        ("worker/tolerations", [{"value": "x"}], "operator Equal needs a key; name it, or write operator: Exists"),
        ("worker/node_selector", {"pool": "a b"}, "must be the value of a label: at most 63 letters"),
        ("worker/node_selector", {"-pool": "a"}, "must be the name of a label, such as node.kubernetes.io"),
        ("namespace", None, "namespace in p.yaml: required and missing"),
        ("namespace", "Team A", "namespace in p.yaml: "),
        ("kind", "kuberai", "kind in p.yaml: must be one of local, rayjobs, kuberay, got 'kuberai'; did you mean"),
        ("head/gpu", 1, "head.gpu in p.yaml: must be 0, got 1"),
        ("user", 0, "user in p.yaml: must be an integer in [1, 2147483647] or null, got 0"),
        ("image", "host/Team/graceful:1", "image in p.yaml: the name of an image is in lower case, got "),
        ("image", "host:5000/graceful:a b", "image in p.yaml: "),
        ("image", "https://host/graceful", "image in p.yaml: the address of an image has no scheme"),
        ("image", "graceful@sha256:12", "image in p.yaml: the digest of an image is sha256: and 64 hexadecimal"),
        ("image", "graceful:a/b:c!", "image in p.yaml: the tag of an image has at most 128 letters"),
        (
            "pods/labels",
            {"ray.io/cluster": "x"},
            "pods.labels in p.yaml: label ray.io/cluster: graceful or KubeRay finds",
        ),
        ("worker/overrides/affinity", {}, "worker.overrides in p.yaml: must be the part of a pod template"),
        ("worker/overrides/metadata", {"name": "x"}, "worker.overrides in p.yaml: metadata of a pod template has"),
        ("worker/resources/cpu", 4, "worker.resources in p.yaml: cpu has a key of its own"),
        ("storage/path", "s3://bucket", "storage.path in p.yaml: "),
        ("retries/job", -1, "retries.job in p.yaml: must be an integer in [0, 2147483647], got -1"),
    ],
)
def test_errors_name_key_file_value_and_remedy(path: str, value: Any, told: str) -> None:
    assert told in refused(changed(CLUSTER, path, value))


@pytest.mark.parametrize("document", [None, [], "kuberay", {}, {"kind": ["kuberay"]}])
def test_what_is_no_profile_is_refused(document: Any) -> None:
    assert refused(document).startswith("kind in p.yaml: must be one of")


def test_a_file_that_is_no_yaml_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("kind: [\n", encoding="utf-8")
    with pytest.raises(SpecError, match="not valid YAML"):
        profile.load(str(path))


@pytest.mark.parametrize("kind", registry.OWN)
def test_a_kind_of_backend_is_named_in_its_folder_and_the_registry_only(kind: str) -> None:
    """So that a backend is one folder and one line; Ray calls itself local, too, and a profile is called local."""
    package = Path(graceful.__file__).parent
    launch = package / "launch"
    profile_class = registry.find(kind)
    assert profile_class is not None
    name = profile_class.__name__
    own = {other: entry.split(".")[2] for other, entry in registry.OWN.items()}
    imported = f"launch.{own[kind]}.backend import {name}"
    names = (f'"{kind}"', f"profile.{name}", f"isinstance(profile, {name}", imported)
    folders = [launch / folder for folder in (*own.values(), "kubernetes")]  # whose objects have such names as well
    for path in (*launch.rglob("*.py"), *(package / "cli").rglob("*.py")):
        if path == launch / "registry.py" or any(map(path.is_relative_to, folders)):
            continue
        text = path.read_text(encoding="utf-8").replace('HERE = "local"', "")
        assert not [name for name in names if name in text], path
