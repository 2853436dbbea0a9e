"""Plan and submit against a real API server: what it accepts, what it refuses, and who wins when two submit at once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from graceful import cli
from graceful.errors import InfrastructureError, SpecError
from graceful.launch import names, profile
from graceful.launch.backend import Change, Phase
from graceful.launch.kuberay import backend as kuberay
from graceful.launch.kuberay import manifests, validate
from graceful.launch.kuberay.backend import KubeRayBackend
from graceful.launch.kuberay.profile import KubeRay
from graceful.launch.kubernetes.kube import Kube
from graceful.launch.refusals import ApiError
from tests.cluster.conftest import Cluster, anonymous
from tests.support import launch
from tests.support.launch import changed, job
from tests.support.replay import write_status

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]


@pytest.fixture
def restricted(kube: Kube) -> Kube:
    """The test's namespace, with PodSecurity at its strictest, and the accounts that profiles name."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kube.patch("Namespace", kube.namespace, {"metadata": {"labels": labels}})
    named = {"ServiceAccount": ("default", "graceful-ray"), "Secret": ("registry", "mlflow-token", "s3-credentials")}
    for kind, object_names in named.items():
        for name in object_names:
            meta = {"name": name, "namespace": kube.namespace}
            kube.apply({"apiVersion": "v1", "kind": kind, "metadata": meta}, force=True)
    return kube


def backend(kube: Kube, **changes: Any) -> KubeRayBackend:
    return KubeRayBackend(profile=launch.cluster(namespace=kube.namespace, **changes), connect=lambda: kube)


def shipped(name: str, namespace: str) -> KubeRay:
    found = profile.load(name, folder=ROOT / "cluster")
    assert isinstance(found, KubeRay)
    return found.model_copy(update={"namespace": namespace})


@pytest.mark.parametrize("name", ["kind", "gpu-spot", "queue"])
def test_the_server_accepts_every_shipped_profile_and_its_pods_under_restricted(name: str, restricted: Kube) -> None:
    chosen = shipped(name, restricted.namespace)
    planned = KubeRayBackend(profile=chosen, connect=lambda: restricted).plan(job())
    assert [finding.rule for finding in planned.errors] == (["no-kueue"] if chosen.queue else [])
    assert [item.change for item in planned.differences] == [Change.CREATE, Change.CREATE]
    spec = planned.documents[-1]["spec"]
    cluster = spec["rayClusterSpec"]
    for template in (
        spec["submitterPodTemplate"],
        cluster["headGroupSpec"]["template"],
        cluster["workerGroupSpecs"][0]["template"],
    ):
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"] = {"name": "probe", "namespace": restricted.namespace, **template["metadata"]}
        restricted.create(pod, dry_run=True)
    assert restricted.list("ConfigMap", selector=names.SELECTOR).items == ()


def test_a_failed_run_resumes_with_the_profile_of_today_and_defaults_are_no_difference(restricted: Kube) -> None:
    text = json.dumps({"model": "glyphs", "train": {"num_workers": 2}})
    small = backend(restricted, worker={"memory": "2Gi"})
    handle = small.submit(small.plan(job(document=text)))
    write_status(restricted, handle.name, {"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"})
    assert small.renewal(handle) == ()
    large = backend(restricted, worker={"memory": "3Gi"})
    lines = [line for line in large.renewal(handle) if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert {"".join(line.split()) for line in lines} == {"-memory:2Gi", "+memory:3Gi"}
    large.resume(handle)
    (group,) = restricted.get("RayJob", handle.name)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] == "3Gi"


def test_restricted_refuses_the_same_pod_unhardened(restricted: Kube) -> None:
    template = manifests.rayjob(job(), shipped("kind", restricted.namespace))["spec"]["submitterPodTemplate"]
    soft = changed(template, "spec/containers/0/securityContext", None)
    pod = {"apiVersion": "v1", "kind": "Pod", **soft, "metadata": {"name": "probe", "namespace": restricted.namespace}}
    with pytest.raises(ApiError, match="violates PodSecurity"):
        restricted.create(pod, dry_run=True)


CASES: list[tuple[str, Any]] = [
    ("spec/shutdownAfterJobFinish", True),
    ("spec/backoffLimit", "two"),
    ("spec/rayClusterSpec/workerGroupSpecs/0/groupName", None),
    ("spec/rayClusterSpec/workerGroupSpecs/0/template/spec/containers/0/imagee", "x"),
    ("spec/rayClusterSpec/authOptions/mode", "tokn"),
    ("spec/rayClusterSpec/workerGroupSpecs/0/minReplicas", None),
    ("spec/rayClusterSpec/workerGroupSpecs/0/rayStartParams", {"num-cpus": 1}),
    ("spec/submitterPodTemplate/spec/containers", {}),
    ("spec/entrypoint", "python -m graceful.programs train"),
]


@pytest.mark.parametrize(("path", "value"), CASES, ids=[path for path, _ in CASES])
def test_our_schema_check_and_the_server_agree(path: str, value: Any, kube: Kube) -> None:
    document = changed(manifests.rayjob(job(), launch.cluster(namespace=kube.namespace)), path, value)
    ours = [finding for finding in validate.validate(document) if finding.rule == "schema"]
    try:
        kube.create(document, dry_run=True)
        refused = False
    except ApiError:
        refused = True
    assert bool(ours) == refused


def test_eight_submitters_at_once_make_one_job(kube: Kube) -> None:
    plans = [(place := backend(kube), place.plan(job())) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        handles = set(pool.map(lambda one: str(one[0].submit(one[1])), plans))
    assert handles == {f"kuberay://{kube.namespace}/glyphs-v2"}
    (rayjob,) = kube.list("RayJob").items
    (config,) = kube.list("ConfigMap", selector=names.SELECTOR).items
    assert config["data"] == {"spec.json": job().document}
    assert [owner["uid"] for owner in config["metadata"]["ownerReferences"]] == [rayjob["metadata"]["uid"]]


def test_of_different_specs_at_once_one_wins_whole(kube: Kube) -> None:
    jobs = [job(document=f'{{"seed": {n}}}', labels={"config-hash": str(n)}) for n in range(6)]
    places = [(place := backend(kube), place.plan(one)) for one in jobs]

    def send(one: tuple[KubeRayBackend, Any]) -> bool:
        try:
            one[0].submit(one[1])
        except SpecError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(send, places))
    assert sum(won) == 1
    (rayjob,) = kube.list("RayJob").items
    (config,) = kube.list("ConfigMap", selector=names.SELECTOR).items
    winner = jobs[won.index(True)]
    assert config["data"]["spec.json"] == winner.document
    assert rayjob["metadata"]["annotations"][names.CONFIG_HASH] == winner.labels["config-hash"]
    volumes = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
    assert config["metadata"]["name"] in [volume.get("configMap", {}).get("name") for volume in volumes]


def test_what_is_there_shows_no_change_and_another_profile_shows_its_own(kube: Kube) -> None:
    place = backend(kube)
    place.submit(place.plan(job()))
    assert {item.change for item in place.plan(job()).differences} == {Change.NONE}
    found = backend(kube, deadlines={"keep": 7}).plan(job()).differences[-1]
    assert found.change is Change.UPDATE
    assert "-  ttlSecondsAfterFinished: 600" in found.lines
    assert "+  ttlSecondsAfterFinished: 7" in found.lines


def test_a_submitted_job_is_found_listed_and_stopped_through_the_same_backend(kube: Kube) -> None:
    place = backend(kube)
    handle = place.submit(place.plan(job()))
    assert place.status(handle).phase is Phase.PROVISIONING
    assert [one.handle for one in place.list()] == [handle]
    assert place.stop(handle).phase is Phase.STOPPED


def test_a_missing_namespace_is_the_places_fault_and_named(kube: Kube) -> None:
    place = KubeRayBackend(profile=launch.cluster(namespace="nowhere"), connect=lambda: kube)
    with pytest.raises(InfrastructureError, match='namespaces "nowhere" not found') as caught:
        kuberay.refuse(place.plan(job()))
    assert caught.value.exit_code == 4


def test_a_missing_permission_is_named_with_the_rule_to_grant(cluster: Cluster, kube: Kube) -> None:
    poor = anonymous(cluster, kube)
    with pytest.raises(InfrastructureError, match="forbidden for reader") as caught:
        kuberay.refuse(backend(poor).plan(job()))
    assert 'verbs: ["get"]' in caught.value.message
    assert "\n" not in caught.value.message


def test_the_command_line_plans_submits_and_is_idempotent(
    cluster: Cluster, kube: Kube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", cluster.env["KUBECONFIG"])
    path = tmp_path / "here.yaml"
    path.write_text(
        yaml.safe_dump({**launch.CLUSTER, "namespace": kube.namespace, "context": cluster.context}), encoding="utf-8"
    )
    arguments = [str(ROOT / "jobs/glyphs/v2.yaml"), "--on", str(path)]
    assert cli.main(["plan", *arguments, "-o", "json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert [item["change"] for item in planned["differences"]] == ["create", "create"]
    assert kube.list("RayJob").items == ()
    for sent, told in (("first", False), ("second", True)):
        assert cli.main(["submit", *arguments, "--yes"]) == 0, sent
        said = capsys.readouterr()
        assert said.out == f"kuberay://{kube.namespace}/glyphs-v2\n"
        assert ("it was there already" in said.err) == told
    assert cli.main(["submit", *arguments, "--yes", "--set", "train.epochs=3", "-o", "json"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "is there already with another spec" in said.err
    assert len(kube.list("RayJob").items) == 1
