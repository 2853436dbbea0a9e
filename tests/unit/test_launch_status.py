"""The status table: every recorded life-cycle ends in the right phase, exit code and human cause."""

from __future__ import annotations

from typing import Any

import pytest

from graceful.launch import causes, outcome
from graceful.launch.backend import Phase, Status
from graceful.launch.evidence import Evidence
from graceful.launch.kuberay import status
from graceful.launch.kuberay.observe import Observer
from graceful.launch.kubernetes.kube import Listing
from graceful.launch.outcome import Outcome
from graceful.patience import Patience
from tests.support.kuberay_lives import Life, lives
from tests.support.kuberay_sequences import LifeCycle, life_cycles, rayjob

P = Phase
STARTED = [P.PROVISIONING, P.RUNNING]
EXPECTED: dict[str, tuple[list[Phase], int, int, str, str]] = {
    # case: phases in order, exit code, attempt, cause at the end, cause shown meanwhile
    "succeeds": ([*STARTED, P.SUCCEEDED], 0, 1, "", ""),
    "application error, no retry": ([*STARTED, P.FAILED], 5, 1, "exit code 7", "exit code 7"),
    "application error, one retry": (
        [P.PROVISIONING, P.RETRYING, *STARTED, P.FAILED], 5, 2, "exit code 7", "1 failed attempt before this one",
    ),
    "invalid: ttl without shutdown": ([P.PROVISIONING, P.INVALID], 2, 1, "TTLSecondsAfterFinished", ""),
    "image does not exist, preRunningDeadlineSeconds 30": (
        [P.PROVISIONING, P.FAILED], 4, 1, "image pull: head", "image pull: head",
    ),
    "worker unschedulable, preRunningDeadlineSeconds 30": (
        [P.PROVISIONING, P.FAILED], 4, 1, "unschedulable: worker: 0/1 nodes", "Insufficient cpu",
    ),
    "activeDeadlineSeconds 45 exceeded": ([*STARTED, P.FAILED], 5, 1, "deadline: out of time", ""),
    "submitter pod deleted while running": ([*STARTED, P.SUCCEEDED], 0, 1, "", "submitter restarted"),
    "worker pod deleted while running": ([*STARTED, P.SUCCEEDED], 0, 1, "", "worker restarted"),
    "operator restarted while running": ([*STARTED, P.SUCCEEDED], 0, 1, "", ""),
    "head pod deleted while running, one retry": (
        [*STARTED, P.SUCCEEDED], 0, 2, "head restarted", "head restarted, attempt 2",
    ),
    "head out of memory": ([*STARTED, P.FAILED], 5, 1, "out of memory: Ray's monitor", "1.15GB used / 1.17GB limit"),
    "suspended while running, then resumed": (
        [P.PROVISIONING, P.RUNNING, P.QUEUED, *STARTED, P.SUCCEEDED], 0, 2, "", "being resumed",
    ),
    "preempted by Kueue while running, re-admitted": (
        [P.QUEUED, P.PROVISIONING, P.RUNNING, P.QUEUED, *STARTED, P.SUCCEEDED],
        0, 2, "", "preempted: Preempted to accommodate a workload",
    ),
    "ResourceQuota exceeded by the worker, preRunningDeadlineSeconds 30": (
        [P.PROVISIONING, P.FAILED], 4, 1, "over quota: rq", "requested: requests.cpu=200m",
    ),
}  # fmt: skip


def history(cycle: LifeCycle) -> list[Status]:
    return [status.read(moment.job, moment.evidence) for moment in cycle.moments]


def phases(statuses: list[Status]) -> list[Phase]:
    found: list[Phase] = []
    for one in statuses:
        if not found or found[-1] is not one.phase:
            found.append(one.phase)
    return found


def test_all_fifteen_recorded_cases_are_expected() -> None:
    assert {cycle.case for cycle in life_cycles()} == set(EXPECTED)


@pytest.mark.parametrize("cycle", life_cycles(), ids=lambda cycle: cycle.case)
def test_a_recorded_life_cycle_is_read_as_what_it_was(cycle: LifeCycle) -> None:
    wanted_phases, code, attempt, final, meanwhile = EXPECTED[cycle.case]
    statuses = history(cycle)
    last = statuses[-1]
    assert phases(statuses) == wanted_phases
    assert last.exit_code == code
    assert last.attempt == attempt
    assert final in last.cause
    assert any(meanwhile in one.cause for one in statuses)
    assert all("\n" not in one.cause for one in statuses)


@pytest.mark.parametrize("cycle", life_cycles(), ids=lambda cycle: cycle.case)
def test_only_the_end_of_a_life_cycle_is_terminal_and_has_an_exit_code(cycle: LifeCycle) -> None:
    statuses = history(cycle)
    ends = [one.phase.terminal for one in statuses]
    assert ends.index(True) == len(ends) - ends.count(True)
    assert all((one.exit_code is not None) == one.phase.terminal for one in statuses)


@pytest.mark.parametrize("cycle", life_cycles(), ids=lambda cycle: cycle.case)
def test_without_any_evidence_the_phase_at_the_end_is_the_same(cycle: LifeCycle) -> None:
    assert status.read(cycle.moments[-1].job).phase is history(cycle)[-1].phase


NO_VICTIM = (
    "no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
)
TAINTED = f"0/1 nodes are available: 1 node(s) had untolerated taint(s). {NO_VICTIM}"
CORDONED = f"0/1 nodes are available: 1 node(s) were unschedulable. {NO_VICTIM}"
LIVES: dict[str, tuple[list[Phase], int, list[str]]] = {
    # case: phases in order, attempt at the end, every cause that is shown
    "stopped while running, then sent again": (
        [*STARTED, *STARTED, P.SUCCEEDED], 2, ["being deleted; its program is stopped first"],
    ),
    "refused pod, then repaired": (
        [P.PROVISIONING], 2, [
            "waiting for the KubeRay operator",
            'invalid pod: [spec.containers[0].volumeMounts[4].name: Not found: "nowhere",'
            ' spec.initContainers[0].volumeMounts[4].name: Not found: "nowhere"]; correct the profile',
        ],
    ),
    "no node takes pods, then one does": (
        [P.PROVISIONING], 1, [
            f"unschedulable: {TAINTED}", f"unschedulable: head: {TAINTED}", f"unschedulable: worker: {CORDONED}",
        ],
    ),
    "namespace deleted when its pods had started": ([P.PROVISIONING], 1, ["being deleted with its namespace"]),
}  # fmt: skip
QUIET = ("", "the cluster is ready, submitting the job", "the program has ended, KubeRay is cleaning up")


@pytest.mark.parametrize("life", lives(), ids=lambda life: life.case)
def test_causes_of_a_run_over_several_jobs_are_those_of_each_job(life: Life) -> None:
    wanted_phases, attempt, causes_shown = LIVES[life.case]
    statuses = [status.read(moment.job, moment.evidence) for moment in life.moments]
    assert phases(statuses) == wanted_phases
    assert statuses[-1].attempt == attempt
    assert list(dict.fromkeys(one.cause for one in statuses if one.cause not in QUIET)) == causes_shown


def job(deployment: str, job_status: str = "", **fields: Any) -> dict[str, Any]:
    document = rayjob("glyphs-v2")
    spec = fields.pop("spec", {})
    document["spec"] |= spec
    document["metadata"]["labels"] |= fields.pop("labels", {})
    return {**document, "status": {"jobDeploymentStatus": deployment, "jobStatus": job_status, **fields}}


def pod(kind: str, name: str = "", **state: Any) -> dict[str, Any]:
    labels = {"ray.io/node-type": kind, "ray.io/cluster": "c"}
    return {"metadata": {"name": name or kind, "uid": name or kind, "labels": labels}, "status": state}


def test_a_held_version_is_a_success_with_exit_code_3_however_it_comes() -> None:
    said = "Job entrypoint command failed with exit code 3, last available logs:\n"
    by_code = status.read(job("Failed", "FAILED", reason="AppFailed", message=said))
    by_line = status.read(job("Complete", "SUCCEEDED"), Evidence(outcome=Outcome(exit_code=3)))
    assert by_code.phase is by_line.phase is Phase.SUCCEEDED
    assert by_code.exit_code == by_line.exit_code == 3
    assert by_code.cause == by_line.cause == "held by the gate"


def test_the_last_words_of_a_failed_program_are_the_cause() -> None:
    said = "Job entrypoint command failed with exit code 2, last available logs:\ngraceful: data.csv: no such file\n"
    found = status.read(job("Failed", "FAILED", reason="AppFailed", message=said))
    assert (found.exit_code, found.cause) == (2, "data.csv: no such file")


@pytest.mark.parametrize(
    ("document", "phase", "code", "cause"),
    [
        (job("Complete", "STOPPED"), Phase.STOPPED, 5, "stopped"),
        (job("Waiting"), Phase.INVALID, 2, "InteractiveMode"),
        (job("Retrying"), Phase.RETRYING, None, ""),
        (job("Suspended", spec={"suspend": True}), Phase.STOPPED, 5, "suspended by a person"),
        (job("Failed", reason="SubmissionFailed"), Phase.FAILED, 4, "submitter"),
        (job("Failed", reason="JobStatusCheckTimeoutExceeded"), Phase.FAILED, 4, "head unreachable"),
        (
            job(
                "Failed", "RUNNING", reason="AppFailed", message="Submitter completed but Ray job not found in cluster"
            ),
            Phase.FAILED,
            4,
            "head lost",
        ),
        (
            job("Complete", "SUCCEEDED", reason="JobDeploymentStatusTransitionGracePeriodExceeded"),
            Phase.SUCCEEDED,
            0,
            "",
        ),
        (job("Dreaming"), Phase.RUNNING, None, "does not know"),
    ],
)
def test_states_that_no_recording_has(document: dict[str, Any], phase: Phase, code: int | None, cause: str) -> None:
    found = status.read(document)
    assert (found.phase, found.exit_code) == (phase, code)
    assert cause in found.cause


def test_a_container_killed_by_the_kernel_is_out_of_memory() -> None:
    killed = pod("worker", containerStatuses=[{"state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}])
    message = "Job entrypoint command failed with exit code 1, last available logs:"
    failed = job("Failed", "FAILED", reason="AppFailed", message=message)
    found = status.read(failed, Evidence(pods=(killed,)))
    assert found.cause.startswith("out of memory: the kernel killed the worker")


def test_a_pod_that_the_scheduler_preempted_is_told_as_preempted() -> None:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "m"}
    assert causes.removed([pod("worker", conditions=[condition])]) == "worker preempted (PreemptionByScheduler): m"
    assert "evicted" in causes.removed([pod("head", reason="Evicted", message="low on memory")])


def test_a_running_job_without_a_head_says_so() -> None:
    gone = pod("head")
    gone["metadata"]["deletionTimestamp"] = "x"
    running = job("Running", "RUNNING", rayClusterName="c")
    assert "head lost" in status.read(running, Evidence(pods=(gone, pod("worker")))).cause


def test_events_tell_of_a_replaced_head_when_nobody_watched() -> None:
    made = {"reason": "CreatedHeadPod", "count": 2, "involvedObject": {"name": "c"}, "metadata": {"uid": "e"}}
    running = job("Running", "RUNNING", rayClusterName="c")
    found = status.read(running, Evidence(pods=(pod("head"), pod("worker")), events=(made,)))
    assert found.attempt == 2
    assert "head restarted" in found.cause


def test_over_quota_in_a_queue_shows_what_is_missing() -> None:
    condition = {"type": "QuotaReserved", "status": "False", "message": "insufficient unused quota for cpu"}
    queued = job("Suspended", labels={"kueue.x-k8s.io/queue-name": "q"})
    found = status.read(queued, Evidence(workload={"status": {"conditions": [condition]}}))
    assert (found.phase, found.cause) == (Phase.QUEUED, "over quota: insufficient unused quota for cpu")
    assert status.read(queued).cause == "waiting in queue q"
    full = {
        **condition,
        "message": 'topology "racks" doesn\'t allow to fit any of 1 pod(s). Total nodes: 1; excluded: cpu: 1',
    }
    cause = status.read(queued, Evidence(workload={"status": {"conditions": [full]}})).cause
    assert cause == f"no room in the topology: {full['message']}"
    placed = {"status": {"conditions": [condition]}, "waiting": "3 of 5 in queue q"}
    assert status.read(queued, Evidence(workload=placed)).cause == f"{found.cause}; 3 of 5 in queue q"


def test_an_image_that_is_never_pulled_is_told_as_missing_on_the_node() -> None:
    waits = {"image": "x:1", "state": {"waiting": {"reason": "ErrImageNeverPull"}}}
    found = status.read(
        job("Initializing", rayClusterName="c"), Evidence(pods=(pod("head", containerStatuses=[waits]),))
    )
    assert found.cause.endswith("(ErrImageNeverPull); the node has no such image and pull_policy is Never")


def test_a_refusal_by_pod_security_is_told() -> None:
    said = 'pods "x" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation'
    event = {"reason": "FailedToCreateHeadPod", "message": said, "involvedObject": {"name": "c"}}
    waiting = status.read(job("Initializing", rayClusterName="c"), Evidence(events=(event,)))
    assert waiting.cause.startswith("refused by PodSecurity: ")


def test_an_outcome_survives_its_line_and_noise_is_passed_over() -> None:
    said = Outcome(exit_code=3, message="held: NFR 7 %, at most 5 %", error="", retryable=False)
    assert outcome.last(["x", f"(driver) {said.line()}", "graceful-outcome: {broken", "y"]) == said
    assert outcome.last(["graceful-outcome: []", "graceful-outcome: {}"]) is None
    assert outcome.from_message("Unexpected error occurred") is None


def test_a_submitter_that_its_job_made_again_is_told_when_nobody_watched() -> None:
    made = {"reason": "SuccessfulCreate", "involvedObject": {"kind": "Job", "name": "churn"}}
    running = job("Running", "RUNNING", rayClusterName="c")
    once, twice = (status.read(running, Evidence(events=[made] * count)).cause for count in (1, 2))
    assert once == ""
    assert twice == "submitter restarted, the job went on"


def test_what_a_running_program_waits_for_is_its_cause_until_it_goes_on() -> None:
    log = ["step=1", f"{outcome.WAITS}s3://b/k: not reachable; waiting up to 180 s"]
    running = job("Running", "RUNNING", rayClusterName="c")
    assert status.read(running, Evidence(waits=outcome.waiting_reason(log))).cause == log[1].removeprefix(outcome.WAITS)
    assert status.read(running, Evidence(waits=outcome.waiting_reason([*log, outcome.WAITS]))).cause == ""


def test_an_outcome_that_was_cut_off_is_looked_for_again() -> None:
    """A held run whose log came short would look as if it had passed."""
    held = Outcome(exit_code=3).line()

    class Server:
        patience = Patience(sleep=lambda seconds: None)
        logs = iter([["step=1"], ["step=1"], ["step=1", held]])

        def list(self, kind: str, **query: str) -> Listing:
            return Listing(items=(pod("submitter", "s"),) if kind == "Pod" else (), resource_version="1")

        def pod_logs(self, name: str, *, container: str, tail: int) -> list[str]:
            return next(self.logs)

    seen = Observer(kube=Server(), name="churn").status_of(job("Complete", "SUCCEEDED"))  # type: ignore[arg-type]
    assert (seen.phase, seen.exit_code) == (P.SUCCEEDED, 3)


def test_a_submitter_that_has_no_node_is_the_cause_though_the_cluster_is_ready() -> None:
    ready = job("Running", "", rayClusterName="c")
    message = "0/3 nodes are available: 3 node(s) had untolerated taint {dedicated: jobs}"
    unplaced = [{"type": "PodScheduled", "status": "False", "message": message}]
    waiting = pod("submitter", conditions=unplaced)
    waiting["metadata"]["labels"] = {"graceful.dev/role": "submitter"}
    seen = status.read(ready, Evidence(pods=(waiting,)))
    assert (seen.phase, seen.exit_code) == (P.PROVISIONING, None)
    assert seen.cause == f"the pod that submits the job is waiting: unschedulable: submitter: {message}"
    assert status.read(ready, Evidence()).cause == "the cluster is ready, submitting the job"


@pytest.mark.parametrize("retryable", [True, False])
def test_only_a_run_that_something_outside_it_ended_is_said_to_go_on(*, retryable: bool) -> None:
    ended = Outcome(exit_code=4, message="registry http://m: no answer", error="RegistryError", retryable=retryable)
    read_again = outcome.last([ended.line()])
    assert read_again == ended
    seen = status.read(job("Failed", "FAILED", reason="AppFailed"), Evidence(outcome=read_again))
    assert (seen.phase, seen.exit_code) == (P.FAILED, 4)
    assert seen.cause.endswith("resume goes on from there") is retryable


MADE = "2026-11-22T13:00:00Z"
BEFORE, AFTER, LATER = "2026-11-22T12:50:00Z", "2026-11-22T13:01:00Z", "2026-11-22T13:30:00Z"


def event(reason: str, message: str, kind: str, name: str, at: str, **subject: Any) -> dict[str, Any]:
    involved = {"kind": kind, "name": name, **subject}
    return {"reason": reason, "message": message, "involvedObject": involved, "lastTimestamp": at}


def at(document: dict[str, Any], made: str) -> dict[str, Any]:
    document["metadata"] |= {"creationTimestamp": made, "uid": document["metadata"].get("uid", "this")}
    return document


def ending(document: dict[str, Any]) -> dict[str, Any]:
    document["metadata"]["deletionTimestamp"] = AFTER
    return document


PULL = event("Failed", 'Failed to pull image "x": not found', "Pod", "old-head-a", BEFORE)
NO_NODE = "0/1 nodes are available: 1 Insufficient cpu"


@pytest.mark.parametrize(
    ("document", "evidence", "cause"),
    [
        pytest.param(
            job("Initializing", rayClusterName="c", startTime=AFTER),
            Evidence(
                events=(
                    {**PULL, "lastTimestamp": AFTER},
                    event("FailedToCreateHeadPod", 'Pod "h" is invalid: spec.volumes[1]: no', "RayCluster", "c", AFTER),
                )
            ),
            "invalid pod: spec.volumes[1]: no; correct the profile",
            id="an invalid pod is not the image pull of the attempt before",
        ),
        pytest.param(
            job("Initializing", rayClusterName="c", startTime=AFTER),
            Evidence(
                pods=(at(pod("worker", "c-w-worker-b", phase="Running"), AFTER),),
                events=(event("FailedScheduling", NO_NODE, "Pod", "c-w-worker-b", AFTER),),
            ),
            "",
            id="a pod that runs is not unschedulable",
        ),
        pytest.param(
            job("Initializing", rayClusterName="c", startTime=AFTER),
            Evidence(
                pods=({**at(pod("worker", "c-w-worker-b", phase="Pending"), AFTER), "spec": {"nodeName": "n"}},),
                events=(event("FailedScheduling", NO_NODE, "Pod", "c-w-worker-b", AFTER),),
            ),
            "",
            id="a pod that has a node at last is not unschedulable",
        ),
        pytest.param(
            job("Initializing", rayClusterName="c", startTime=AFTER),
            Evidence(events=(event("FailedScheduling", NO_NODE, "Pod", "c-w-worker-b", AFTER),)),
            f"unschedulable: {NO_NODE}",
            id="a pod that nobody saw may be",
        ),
        pytest.param(
            job("Running", "RUNNING", rayClusterName="c"),
            Evidence(
                pods=(at(pod("head"), AFTER), at(pod("worker"), AFTER), at(pod("head", "old"), BEFORE)),
                events=(
                    event("SuccessfulCreate", "", "Job", "glyphs-v2", BEFORE),
                    event("SuccessfulCreate", "", "Job", "glyphs-v2", AFTER),
                    event("Failed", "", "RayJob", "glyphs-v2", AFTER, uid="another"),
                ),
            ),
            "",
            id="pods and events of the job before this one are not its own",
        ),
        pytest.param(
            job("Complete", "SUCCEEDED", rayClusterName="c", endTime=AFTER),
            Evidence(pods=(at(pod("worker"), AFTER), at(pod("worker", "w2"), LATER))),
            "",
            id="what is made after the end restarted nothing",
        ),
        pytest.param(
            job("Complete", "SUCCEEDED", rayClusterName="c", endTime=LATER),
            Evidence(pods=(at(pod("worker"), AFTER), at(pod("worker", "w2"), AFTER))),
            "worker restarted on the way",
            id="after the end nothing goes on",
        ),
        pytest.param(
            {**job("Running", "RUNNING", rayClusterName="c"), "deleted": True},
            Evidence(),
            "being deleted; its program is stopped first",
            id="a job that is deleted is no lost head",
        ),
        pytest.param(
            job("Running", "RUNNING", rayClusterName="c"),
            Evidence(pods=(at(ending(pod("head")), AFTER),), namespace_ends=True),
            "being deleted with its namespace",
            id="a namespace that is deleted takes pods first, and is no lost head",
        ),
    ],
)  # fmt: skip
def test_a_cause_is_of_this_job_and_this_attempt(document: dict[str, Any], evidence: Evidence, cause: str) -> None:
    document = at(document, MADE)
    if document.pop("deleted", False):
        document["metadata"]["deletionTimestamp"] = AFTER
    found = status.read(document, evidence)
    assert (found.cause, found.attempt) == (cause, 1)
