"""The chart on a real API server: every shape accepted, install, upgrade, rollback, and what its accounts may do."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import yaml

from graceful.cli.app import graceful as command_line
from graceful.launch.job import JobSpec
from graceful.launch.kuberay import manifests, validate
from graceful.launch.kuberay.profile import KubeRay
from graceful.launch.profile import parse
from graceful.programs import ray_gauges
from tests.unit.test_chart import single_values

if TYPE_CHECKING:
    from tests.cluster.conftest import Cluster

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm/graceful"
SHAPES = sorted((CHART / "ci").glob("*-values.yaml"))
KUEUE = ROOT.parent / "shared/testbed/manifests/kueue.yaml"
RELEASE = "rel"
PREFIX = "rel-graceful"


@dataclass(frozen=True, kw_only=True)
class Bed:
    """A cluster, a namespace that enforces PodSecurity `restricted`, and the two programs that talk to it."""

    cluster: Cluster
    namespace: str

    def kubectl(
        self, *arguments: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        where = (f"--context={self.cluster.context}", f"--namespace={self.namespace}")
        return self._run("kubectl", *where, *arguments, stdin=stdin, check=check)

    def helm(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        where = (f"--kube-context={self.cluster.context}", f"--namespace={self.namespace}")
        return self._run("helm", *arguments, *where, check=check)

    def render(self, *options: str) -> list[dict[str, Any]]:
        text = self.helm("template", RELEASE, str(CHART), *options).stdout
        return [document for document in yaml.safe_load_all(text) if document]

    def objects(self, *arguments: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", *arguments, "--output=json").stdout)["items"]
        return found

    def _run(self, *command: str, stdin: str | None = None, check: bool) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, env=self.cluster.env, input=stdin, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.stderr}"
        return done


@pytest.fixture(scope="module")
def bed(cluster: Cluster) -> Iterator[Bed]:
    bed = Bed(cluster=cluster, namespace=f"graceful-chart-{uuid4().hex[:8]}")
    label = "pod-security.kubernetes.io/enforce=restricted"
    bed.kubectl("create", "namespace", bed.namespace)
    bed.kubectl("label", "namespace", bed.namespace, label, label.replace("enforce", "warn"))
    yield bed
    bed.kubectl("delete", "namespace", bed.namespace, "--wait=false")


@pytest.fixture(scope="module")
def queues(bed: Bed) -> Iterator[None]:
    """Kueue's LocalQueue as a kind: Kueue itself, or on the test bed its definition alone, for this file."""
    if bed.kubectl("get", "localqueues", check=False).returncode == 0:
        yield
        return
    if not KUEUE.is_file():
        pytest.skip(f"the cluster of context {bed.cluster.context} has no Kueue")
    documents = yaml.load_all(KUEUE.read_text(), Loader=yaml.CSafeLoader)
    definition = next(item for item in documents if item["metadata"]["name"] == "localqueues.kueue.x-k8s.io")
    del definition["spec"]["conversion"]  # done by Kueue's webhook, which does not run here
    bed.kubectl("create", "--filename=-", stdin=json.dumps(definition))
    bed.kubectl("wait", "--for=condition=Established", "crd/localqueues.kueue.x-k8s.io", "--timeout=60s")
    yield
    bed.kubectl("delete", "crd", "localqueues.kueue.x-k8s.io", "--timeout=60s")


@pytest.fixture(scope="module")
def monitors(bed: Bed) -> None:
    """The kinds of the Prometheus Operator, without their schemas, where the cluster has none."""
    for kind in ("PodMonitor", "PrometheusRule"):
        names = {"kind": kind, "plural": f"{kind.lower()}s", "singular": kind.lower()}
        schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
        versions = [{"name": "v1", "served": True, "storage": True, "schema": schema}]
        definition = {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{names['plural']}.monitoring.coreos.com"},
            "spec": {"group": "monitoring.coreos.com", "scope": "Namespaced", "names": names, "versions": versions},
        }
        if bed.kubectl("get", names["plural"], check=False).returncode != 0:
            bed.kubectl("create", "--filename=-", stdin=json.dumps(definition))
            bed.kubectl("wait", "--for=condition=Established", f"crd/{definition['metadata']['name']}")


@pytest.fixture(scope="module")
def installed(bed: Bed) -> str:
    """The chart in the shape for KubeRay; returns its notes."""
    return bed.helm("install", RELEASE, str(CHART), f"--values={CHART}/ci/kuberay-values.yaml").stdout


# --- rendering --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=lambda path: path.stem)
def test_every_object_of_every_shape_is_accepted(bed: Bed, queues: None, monitors: None, shape: Path) -> None:
    documents = bed.render(f"--values={shape}")
    sent = bed.kubectl(
        "apply",
        "--dry-run=server",
        "--validate=strict",
        "--output=json",
        "--filename=-",
        stdin=yaml.safe_dump_all(documents),
    )
    answer = json.loads(sent.stdout)
    assert len(answer.get("items", [answer])) == len(documents) > 0
    assert "Warning" not in sent.stderr


def test_pods_of_every_shape_are_admitted_where_only_restricted_ones_are(bed: Bed) -> None:
    bed.kubectl("create", "priorityclass", "batch", "--value=1", check=False)
    for shape, seen in SEEN.items():
        documents = bed.render(f"--values={CHART}/ci/{shape}-values.yaml")
        for account in (item for item in documents if item["kind"] == "ServiceAccount"):
            bed.kubectl("apply", "--filename=-", stdin=json.dumps(account))
        templates = [item["spec"]["jobTemplate"]["spec"]["template"] for item in documents if item["kind"] == "CronJob"]
        pods = [
            {"apiVersion": "v1", "kind": "Pod", **part, "metadata": {**part["metadata"], "name": f"pod-{number}"}}
            for number, part in enumerate(templates)
        ]
        body = json.dumps({"apiVersion": "v1", "kind": "List", "items": pods})
        answer = bed.kubectl("create", "--dry-run=server", "--output=json", "--filename=-", stdin=body).stdout
        admitted = objects_in(answer)
        assert len(admitted) == len(pods) > 0
        for pod in admitted:
            seen(pod)
        for account in (item for item in documents if item["kind"] == "ServiceAccount"):
            bed.kubectl("delete", "serviceaccount", account["metadata"]["name"])
    bed.kubectl("delete", "priorityclass", "batch")


def _on_eks(pod: dict[str, Any]) -> None:
    assert pod["spec"]["priority"] == 1
    assert pod["spec"]["nodeSelector"] == {"karpenter.sh/capacity-type": "on-demand"}
    assert pod["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] == "true"
    assert pod["metadata"]["labels"]["cost-center"] == "vision"


def _on_gke(pod: dict[str, Any]) -> None:
    assert pod["spec"]["affinity"]["nodeAffinity"]
    assert pod["metadata"]["annotations"]["sidecar.istio.io/nativeSidecar"] == "true"


def _on_openshift(pod: dict[str, Any]) -> None:
    assert not {"runAsUser", "fsGroup"} & set(pod["spec"]["securityContext"])
    assert pod["spec"]["hostAliases"][0]["ip"] == "192.0.2.20"
    assert pod["spec"]["initContainers"][0]["name"] == "watch"
    (container,) = pod["spec"]["containers"]
    env = {item["name"]: item.get("value") for item in container["env"]}
    assert env["NO_PROXY"].endswith("$(KUBERNETES_SERVICE_HOST),.corp.example,10.128.0.0/14")
    assert env["SSL_CERT_FILE"] == "/etc/graceful-ca/ca-bundle.crt"
    assert {"/etc/extra", "/etc/graceful-ca"} <= {mount["mountPath"] for mount in container["volumeMounts"]}


def _on_one_machine(pod: dict[str, Any]) -> None:
    assert "/dev/shm" in {mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}


def _everything(pod: dict[str, Any]) -> None:
    (container,) = pod["spec"]["containers"]
    assert {"name": "GRACEFUL_LOG_LEVEL", "value": "DEBUG"} in container["env"]
    assert container["imagePullPolicy"] == "Always"
    assert pod["spec"]["terminationGracePeriodSeconds"] == 300
    assert {"key": "dedicated", "operator": "Exists"} in pod["spec"]["tolerations"]
    assert pod["metadata"]["labels"]["tier"] == "batch"


SEEN = {
    "eks": _on_eks,
    "every": _everything,
    "gke": _on_gke,
    "openshift": _on_openshift,
    "machine": _on_one_machine,
}


def test_the_dashboard_asks_for_what_is_there(bed: Bed) -> None:
    (config,) = [
        item
        for item in bed.render(f"--values={CHART}/ci/eks-values.yaml")
        if item["metadata"]["name"] == f"{PREFIX}-dashboard"
    ]
    board = json.loads(config["data"]["graceful.json"])
    asked = {target["expr"] for panel in board["panels"] for target in panel.get("targets", ())}
    assert len(asked) == 11
    ours = {name for text in asked for name in re.findall(r"ray_(graceful_\w+)", text)}
    assert ours <= set(ray_gauges.NAMES)
    assert len(ours) == 4


@pytest.mark.parametrize("shape", SHAPES, ids=lambda path: path.stem)
def test_lint_finds_nothing(bed: Bed, shape: Path) -> None:
    assert "0 chart(s) failed" in bed.helm("lint", "--strict", str(CHART), f"--values={shape}").stdout


def test_every_value_of_every_shape_changes_what_is_rendered(bed: Bed, tmp_path: Path) -> None:
    """A value that nothing reads would be set in vain; refusing the rest without it is reading it."""

    def rendered(values: dict[str, Any]) -> str:
        path = tmp_path / f"{uuid4().hex}.yaml"
        path.write_text(yaml.safe_dump(values))
        return bed.helm("template", RELEASE, str(CHART), f"--values={path}", check=False).stdout

    whole = {shape: yaml.safe_load(shape.read_text()) for shape in SHAPES}
    texts = {shape: rendered(values) for shape, values in whole.items()}
    read: set[str] = set()
    for shape, values in whole.items():
        for path in single_values():
            less = without(values, path.split("."))
            if path not in read and less != values and rendered(less) != texts[shape]:
                read.add(path)
    unread = sorted(set(single_values()) - read)
    assert not unread, unread


def without(values: dict[str, Any], path: list[str]) -> dict[str, Any]:
    key, *rest = path
    if not isinstance(values, dict) or key not in values:
        return values
    return {
        name: value if name != key else without(value, rest) for name, value in values.items() if name != key or rest
    }


def test_only_namespaced_permissions_and_selectors_that_never_change(bed: Bed) -> None:
    documents = bed.render(f"--values={CHART}/ci/kuberay-values.yaml")
    assert not [document["kind"] for document in documents if document["kind"].startswith("Cluster")]
    assert {document["metadata"]["namespace"] for document in documents} == {bed.namespace}
    assert all(document["metadata"]["labels"]["team"] == "vision" for document in documents)
    selectors = json.dumps([document["spec"]["podSelector"] for document in documents if "Policy" in document["kind"]])
    assert "app.kubernetes.io/version" not in selectors
    assert "team" not in selectors


@pytest.mark.parametrize("name", ["kuberay", "gpu-queue", "minimal", "eks", "gke", "openshift"])
def test_profiles_are_what_submit_reads(bed: Bed, name: str) -> None:
    documents = bed.render(f"--values={CHART}/ci/{name}-values.yaml")
    (profiles,) = [item for item in documents if item["metadata"]["name"] == f"{PREFIX}-profiles"]
    for text in profiles["stringData"].values():
        profile = parse(yaml.safe_load(text))
        assert isinstance(profile, KubeRay)
        assert profile.namespace == bed.namespace
        job = JobSpec(name="refresh", command=("true",), document="{}", run_id="v1", workers=8 if name == "eks" else 1)
        assert validate.validate(manifests.rayjob(job, profile)) == ()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda path: path.stem)
def test_scheduled_pods_call_commands_that_exist(bed: Bed, shape: Path) -> None:
    cronjobs = [document["spec"] for document in bed.render(f"--values={shape}") if document["kind"] == "CronJob"]
    assert cronjobs or shape.stem == "minimal-values"
    ours = [part for cronjob in cronjobs for part in containers(cronjob) if part.get("command") == ["graceful"]]
    assert len(ours) >= len(cronjobs)
    for container in ours:
        name, *arguments = container["args"]
        command_line.commands[name].make_context(name, arguments)  # refuses what it does not know


def test_only_pods_that_compute_get_credentials_and_only_submitters_a_token(bed: Bed) -> None:
    for shape, token in (("kuberay", True), ("machine", False)):  # gc, which has both, is in neither
        options = ["--set=mlflow.secretName=mlflow", f"--values={CHART}/ci/{shape}-values.yaml"]
        for cronjob in (item["spec"] for item in bed.render(*options) if item["kind"] == "CronJob"):
            assert cronjob["jobTemplate"]["spec"]["template"]["spec"]["automountServiceAccountToken"] is token
            assert all(("envFrom" in container) is not token for container in containers(cronjob))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--set=networkPolicy.creat=false"], "creat"),
        (
            ["--set=schedules.n.cron=@daily", "--set=schedules.n.spec=x", "--set=schedules.n.suspended=true"],
            "suspended",
        ),
        (
            ["--set=schedules.n.cron=@daily", "--set=schedules.n.spec=x", "--set=schedules.n.profile=gpu"],
            "known: default",
        ),
        (["--set=schedules.n.cron=@daily", "--set=schedules.n.spec=x"], "schedules.n.spec"),
        ([f"--set=schedules.{'n' * 40}.cron=@daily", f"--set=schedules.{'n' * 40}.spec=x"], "allows 52"),
        (["--set=serviceAccounts.ray.create=false"], "serviceAccounts.ray.name"),
        (["--set=queue.clusterQueue=gpus"], "queue.name"),
        (["--set=podSecurity.user=0"], "minimum"),
    ],
)
def test_values_that_cannot_work_are_refused_with_their_reason(bed: Bed, options: list[str], reason: str) -> None:
    refused = bed.helm("template", RELEASE, str(CHART), *options, check=False)
    assert refused.returncode != 0
    assert reason in refused.stderr


# --- on the cluster ---------------------------------------------------------------------------------------------------


def test_notes_name_what_is_needed_and_what_comes_next(bed: Bed, installed: str) -> None:
    assert "KubeRay operator" in installed
    assert "NOT FOUND" not in installed
    assert "http://mlflow.registry.svc:5000" in installed
    assert f"graceful plan SPEC --on {bed.namespace}\n" in installed
    command = next(line.strip() for line in installed.splitlines() if "jsonpath" in line)
    _, _, wanted = command.partition("-o ")
    path = wanted.partition(" |")[0].strip("'").replace("jsonpath='", "jsonpath=")
    assert "| base64 -d > cluster/" in command
    text = decoded(bed.kubectl("get", "secret", f"{PREFIX}-profiles", f"--output={path.partition(' |')[0]}").stdout)
    assert isinstance(parse(yaml.safe_load(text)), KubeRay)


def test_accounts_may_do_what_they_need_and_nothing_else(bed: Bed, installed: str) -> None:
    wanted = {
        ("submitter", "create", "ray.io", "rayjobs"): True,
        ("submitter", "delete", "ray.io", "rayjobs"): True,
        ("submitter", "create", "", "configmaps"): True,
        ("submitter", "get", "", "pods/log"): True,
        ("submitter", "list", "", "events"): True,
        ("submitter", "list", "kueue.x-k8s.io", "workloads"): True,
        ("submitter", "create", "", "events"): True,
        ("ray", "create", "", "events"): False,
        ("submitter", "delete", "batch", "jobs"): True,
        ("submitter", "get", "", "secrets"): False,
        ("submitter", "get", "", f"secrets/{PREFIX}-profiles"): True,
        ("submitter", "patch", "", f"secrets/{PREFIX}-profiles"): False,
        ("submitter", "get", "", f"secrets/{PREFIX}-nightly"): False,
        ("submitter", "get", "", f"serviceaccounts/{PREFIX}-ray"): True,
        ("submitter", "get", "", f"serviceaccounts/{PREFIX}-submitter"): False,
        ("submitter", "create", "", "pods"): True,
        ("submitter", "create", "", "pods/exec"): False,
        ("submitter", "create", "batch", "cronjobs"): False,
        ("submitter", "create", "rbac.authorization.k8s.io", "rolebindings"): False,
        ("submitter", "impersonate", "", "serviceaccounts"): False,
        ("ray", "get", "", "pods"): False,
        ("ray", "list", "ray.io", "rayclusters"): False,
        ("ray", "get", "", "configmaps"): False,
        ("ray", "get", "", "secrets"): False,
    }
    people = {
        ("ada", "create", "batch", "cronjobs"): True,
        ("ada", "create", "ray.io", "rayjobs"): True,
        ("ada", "get", "", "secrets"): False,
        ("eve", "get", "ray.io", "rayjobs"): False,
    }
    cases = {
        **{
            (f"system:serviceaccount:{bed.namespace}:{PREFIX}-{who}", *what): yes
            for (who, *what), yes in wanted.items()
        }
    }
    cases |= {(who, *what): yes for (who, *what), yes in people.items()}
    assert reviewed(bed, list(cases)) == cases


def test_accounts_have_no_say_in_other_namespaces(bed: Bed, installed: str) -> None:
    submitter = f"system:serviceaccount:{bed.namespace}:{PREFIX}-submitter"
    case = (submitter, "create", "ray.io", "rayjobs")
    assert reviewed(bed, [case], namespace="default") == {case: False}


def reviewed(bed: Bed, cases: list[tuple[str, ...]], *, namespace: str = "") -> dict[tuple[str, ...], bool]:
    """What the API server's authorisation says to each (user, verb, group, resource)."""
    reviews = []
    for user, verb, group, resource in cases:
        name, _, part = resource.partition("/")
        detail = {"name": part} if part.startswith(PREFIX) else {"subresource": part}
        asked = {"verb": verb, "group": group, "resource": name, **detail}
        spec = {"user": user, "resourceAttributes": {"namespace": namespace or bed.namespace, **asked}}
        reviews.append({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec})
    body = json.dumps({"apiVersion": "v1", "kind": "List", "items": reviews})
    answer = bed.kubectl("create", "--output=json", "--filename=-", stdin=body).stdout
    return {case: item["status"]["allowed"] for case, item in zip(cases, objects_in(answer), strict=True)}


def objects_in(text: str) -> list[dict[str, Any]]:
    """The objects that kubectl printed, one after the other or as a list."""
    decoder, found = json.JSONDecoder(), []
    while text.strip():
        document, end = decoder.raw_decode(text.lstrip())
        text = text.lstrip()[end:]
        found += document.get("items", [document])
    return found


def test_the_submitter_may_send_what_its_profile_renders_and_ray_may_not(bed: Bed, installed: str) -> None:
    text = decoded(
        bed.kubectl("get", "secret", f"{PREFIX}-profiles", "--output=jsonpath={.data.default\\.yaml}").stdout
    )
    profile = parse(yaml.safe_load(text))
    assert isinstance(profile, KubeRay)
    job = JobSpec(name="refresh", command=("graceful", "worker", "run"), document="{}", run_id="glyphs-v1", workers=2)
    body = "---\n".join(yaml.safe_dump(json.loads(json.dumps(item))) for item in manifests.render(job, profile))
    account = f"--as=system:serviceaccount:{bed.namespace}:{PREFIX}"
    refused = bed.kubectl("create", f"{account}-ray", "--filename=-", stdin=body, check=False)
    assert "forbidden" in refused.stderr
    bed.kubectl("create", f"{account}-submitter", "--validate=strict", "--filename=-", stdin=body)
    assert [item["metadata"]["name"] for item in bed.objects("rayjobs")] == ["glyphs-v1"]


def test_a_firing_is_admitted_where_only_restricted_pods_are(bed: Bed, installed: str) -> None:
    container = {"name": "c", "image": "localhost/x"}
    loose = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "loose"}, "spec": {"containers": [container]}}
    assert "violates PodSecurity" in bed.kubectl("create", "--filename=-", stdin=json.dumps(loose), check=False).stderr
    for name, account in (("nightly", "submitter"), ("release", "submitter")):
        firing = f"{PREFIX}-{name}-29412345"
        bed.kubectl("create", "job", firing, f"--from=cronjob/{PREFIX}-{name}")
        label = f"batch.kubernetes.io/job-name={firing}"
        bed.kubectl("wait", "--for=create", "pod", f"--selector={label}", "--timeout=60s")
        (pod,) = bed.objects("pods", f"--selector={label}")
        assert pod["spec"]["serviceAccountName"] == f"{PREFIX}-{account}"
        assert pod["metadata"]["labels"]["graceful.dev/role"] == "schedule"


def test_a_version_is_named_after_its_firing_unless_it_is_fixed(bed: Bed, installed: str) -> None:
    jobs = {item["metadata"]["name"]: item["spec"] for item in bed.objects("cronjobs")}
    submit, wait = containers(jobs[f"{PREFIX}-nightly"])
    assert "--set=name=$(GRACEFUL_FIRING)" in submit["args"]
    assert wait["args"][:2] == ["status", "glyphs-$(GRACEFUL_FIRING)"]
    submit, wait = containers(jobs[f"{PREFIX}-release"])
    assert "--set=name=v1" in submit["args"]
    assert wait["args"][:2] == ["status", "glyphs-v1"]
    nightly = jobs[f"{PREFIX}-nightly"]
    assert (nightly["concurrencyPolicy"], nightly["startingDeadlineSeconds"]) == ("Forbid", 3600)
    assert (nightly["successfulJobsHistoryLimit"], nightly["failedJobsHistoryLimit"]) == (3, 3)
    assert nightly["timeZone"] == "Europe/Berlin"
    assert jobs[f"{PREFIX}-release"]["suspend"] is True


def decoded(text: str) -> str:
    return base64.b64decode(text).decode()


def containers(cronjob: dict[str, Any]) -> list[dict[str, Any]]:
    pod = cronjob["jobTemplate"]["spec"]["template"]["spec"]
    return [*pod.get("initContainers", []), *pod["containers"]]


def test_upgrade_changes_what_was_asked_rollback_takes_it_back_uninstall_leaves_nothing(
    bed: Bed, installed: str
) -> None:
    def state() -> dict[str, Any]:
        kinds = "cronjobs,configmaps,secrets,networkpolicies,roles,rolebindings,serviceaccounts"
        found = bed.objects(kinds, f"--selector=app.kubernetes.io/instance={RELEASE}")
        return {f"{item['kind']}/{item['metadata']['name']}": without_bookkeeping(item) for item in found}

    before = state()
    changes = [
        "--set=schedules.nightly.suspend=true",
        "--set=rbac.portForward=false",
        "--set=networkPolicy.create=false",
    ]
    bed.helm("upgrade", RELEASE, str(CHART), f"--values={CHART}/ci/kuberay-values.yaml", *changes)
    after = state()
    assert {key for key in before if before[key] != after.get(key)} == {
        f"CronJob/{PREFIX}-nightly",
        f"Role/{PREFIX}-submitter",
        *(key for key in before if key.startswith("NetworkPolicy/")),
    }
    bed.helm("rollback", RELEASE, "1")
    assert state() == before
    bed.helm("uninstall", RELEASE)
    assert state() == {}


def without_bookkeeping(item: dict[str, Any]) -> dict[str, Any]:
    """What a release says about an object: no version numbers, times and states."""
    labels = item["metadata"]["labels"]
    return {"labels": labels, **{key: value for key, value in item.items() if key not in ("metadata", "status")}}
