"""One job on Ray Train V2: connect, check resources, fit, follow, translate errors. Driver.

Where RAY_ADDRESS names no cluster, a private Ray is started in this process and kept until it ends: no dashboard, a
secret token that only its own processes know, no files outside its session folder. Ray restarts a worker group that
lost a process from the last checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from graceful import errors, redact, startup
from graceful.environment import RAY_SETTINGS, RAY_TOKEN_FILE_VARIABLE, RAY_TOKEN_VARIABLE, RAY_WATCHER_VARIABLE
from graceful.errors import GracefulError, InfrastructureError, SpecError, TrainingError
from graceful.spec import Train
from graceful.storage import write_text
from graceful.training import checkpoint, rank_resources, ray_address, trace
from graceful.training.engine import require_precision
from graceful.training.job import FAILURE, LOG, WEIGHTS, TrainingJob, first_line
from graceful.training.rank_context import out_of_time
from graceful.training.ray_worker import worker

POLL_SECONDS = 0.2
JOIN_SECONDS = 300.0
"""How long nodes of an existing cluster may take to join."""
RESIZE_SECONDS = 60.0
"""Between two looks for more room by a run that may grow, which costs the steps since its last checkpoint."""
_KNOBS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "1200",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_PRIVATE_KNOBS = {
    RAY_WATCHER_VARIABLE: "0",
    **RAY_SETTINGS,
    "RAY_AUTH_MODE": "token",
}


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A Ray that has room for a job.

    Attributes:
        private: It was started by this process.
        use_gpu: Workers compute on GPUs.
        deadline: `time.monotonic` after which the job has no time left.
    """

    private: bool
    use_gpu: bool
    deadline: float


def ready(job: TrainingJob) -> Ready:
    """Return the Ray on which a job can train, started or joined.

    Raises:
        SpecError: This machine has fewer CPUs or GPUs than workers need, or no GPU for fp16.
        InfrastructureError: Ray does not start, or the cluster's nodes did not join in time.
    """
    deadline = time.monotonic() + job.spec.train.timeout
    private = connect()
    use_gpu = require(job.spec.train, private=private, deadline=deadline)
    require_precision(job.spec.train, gpu=use_gpu)
    return Ready(private=private, use_gpu=use_gpu, deadline=deadline)


def fit(
    job: TrainingJob, ready: Ready, *, digest: str, progress: Callable[[Mapping[str, object]], None] | None
) -> dict[str, Any]:
    """Train a job on Ray workers.

    Returns:
        What rank 0's loop returned.

    Raises:
        GracefulError: Whatever a worker raised.
        TrainingError: Out of time, or the workers failed too often; `error.log` has the traceback.
    """
    failure = job.run_dir / FAILURE
    job.mirror.delete(failure)
    for folder in job.inputs:
        job.mirror.seal(folder)
    fetcher = trace.Fetcher(job.run_dir / trace.FILE, mirror=job.mirror)
    follower = trace.Follower(fetcher.path)
    trainer = _trainer(job, digest=digest, use_gpu=ready.use_gpu, private=ready.private)
    fitting = _Fitting(trainer.fit)
    fitting.start()
    try:
        while fitting.is_alive():
            fitting.join(POLL_SECONDS)
            fetcher.fetch(now=not fitting.is_alive())
            for row in follower.rows():
                if progress is not None:
                    progress(row)
            if time.monotonic() > ready.deadline:
                raise out_of_time(job.spec.train.timeout)
    except BaseException:
        _disconnect(fitting)
        raise
    if job.mirror.restore_file(failure) or failure.exists():
        raise _recorded(failure)
    if fitting.error is not None:
        raise _failed(job, fitting.error) from fitting.error
    outcome = dict(fitting.result.return_value or {})
    if not outcome:
        raise TrainingError(
            f"a worker ended without a result; {job.run_dir} must be a folder that all workers share, or set"
            " GRACEFUL_STORAGE to a bucket"
        )
    for name in (trace.FILE, WEIGHTS):
        job.mirror.restore_file(job.run_dir / name)
    return outcome


class _Fitting(threading.Thread):
    """`fit` in a thread, so that the main one can follow the trace, watch the clock and be interrupted."""

    def __init__(self, fit: Callable[[], Any]) -> None:
        super().__init__(name="fit", daemon=True)
        self._fit = fit
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._fit()
        except BaseException as e:  # noqa: BLE001  raised by the main thread
            self.error = e


# --- cluster ----------------------------------------------------------------------------------------------------------


def connect() -> bool:
    """Join the cluster of RAY_ADDRESS, or start a private one; True: private.

    Raises:
        InfrastructureError: Neither is possible.
    """
    for name, value in _KNOBS.items():
        os.environ.setdefault(name, value)
    address = ray_address.named()
    private = address is None
    if private:
        for name, value in _PRIVATE_KNOBS.items():
            os.environ.setdefault(name, value)
        if os.environ["RAY_AUTH_MODE"] == "token" and not os.environ.get(RAY_TOKEN_FILE_VARIABLE):
            os.environ.setdefault(RAY_TOKEN_VARIABLE, secrets.token_hex(32))
    if os.environ.get(RAY_TOKEN_FILE_VARIABLE):  # Ray starts, or is joined, from another folder
        os.environ[RAY_TOKEN_FILE_VARIABLE] = os.path.abspath(os.environ[RAY_TOKEN_FILE_VARIABLE])
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray(\.|$)")
    if address is not None:
        ray_address.require_answer(address)
    with _uninterrupted():
        import ray

        if not ray.is_initialized():
            _init(address)
    return private


def _init(address: str | None) -> None:
    import ray

    quiet = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
    target = {"address": "local", "include_dashboard": False} if address is None else {"address": address}
    try:
        with startup.outside_working_directory():
            ray.init(**target, **quiet)
    except (ConnectionError, OSError, RuntimeError) as e:
        where = "a Ray on this machine" if address is None else f"Ray at {ray_address.VARIABLE} {address}"
        raise InfrastructureError(f"{where} does not start: {first_line(e)}; look into /tmp/ray, then try again") from e


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ray start whole before an interrupt is heard, and take it down then: half of one leaves processes behind.

    The second interrupt is heard at once. Afterwards the earlier handlers are restored: Ray's own of SIGTERM prints a
    stack and ends the process at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupts = 0

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 1:
            raise KeyboardInterrupt

    both = (signal.SIGINT, signal.SIGTERM)
    previous_handlers = {
        signal_number: signal.signal(signal_number, hear)
        for signal_number in both
        if signal.getsignal(signal_number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if interrupts:
            import ray

            ray.shutdown()
            raise KeyboardInterrupt


def _disconnect(fitting: threading.Thread) -> None:
    """Take Ray down, and with it the workers: the private one whole, elsewhere what belongs to this driver."""
    import ray

    ray.shutdown()
    fitting.join(10.0)


def require(train: Train, *, private: bool, deadline: float) -> bool:
    """Check that the workers fit; True: they compute on GPUs.

    Raises:
        SpecError: This machine has fewer CPUs or GPUs than workers need.
        InfrastructureError: The cluster's nodes did not join in time.
    """
    import ray

    workers, wanted = rank_resources.allowed(train)[0], train.use_gpu
    until = min(deadline, time.monotonic() + (0.0 if private else JOIN_SECONDS))
    while True:
        resources = ray.cluster_resources()
        cpus, gpus = rank_resources.fitting(resources, use_gpu=False), int(resources.get("GPU", 0))
        if cpus >= workers and (gpus >= workers or not wanted):
            return gpus >= workers if wanted is None else wanted
        if time.monotonic() >= until:
            break
        time.sleep(1.0)
    kind, have = ("CPUs", cpus) if cpus < workers else ("GPUs", gpus)
    location = "this machine" if private else "the cluster"
    message = f"train.num_workers: {workers} workers need {workers} {kind}, {location} has {have}"
    if private:
        remedy = f"write {have}" if have else "write use_gpu: false"
        raise SpecError(f"{message}; {remedy}, or num_workers: 0 to train without Ray")
    raise InfrastructureError(f"{message} after {JOIN_SECONDS:.0f} seconds; check that its nodes are running")


def _trainer(job: TrainingJob, *, digest: str, use_gpu: bool, private: bool) -> Any:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    allowed = rank_resources.allowed(job.spec.train)

    class Lean(TorchTrainer):  # type: ignore[misc]
        """On one machine, without datasets: leave out two actors that are not needed and take two seconds each."""

        def _initialize_and_run_controller(self, **options: Any) -> Any:
            if len(allowed) > 1:
                from graceful.training.elastic import DivisibleScaling

                options["scaling_policy"] = DivisibleScaling(self.scaling_config, allowed=allowed)
            return super()._initialize_and_run_controller(**options)

        def _create_default_callbacks(self) -> list[Any]:
            unneeded = {"DatasetsCallback", "PlacementGroupCleanerCallback"} if private else {"DatasetsCallback"}
            return [
                callback for callback in super()._create_default_callbacks() if type(callback).__name__ not in unneeded
            ]

    per_worker = rank_resources.per_rank(use_gpu=use_gpu)
    return Lean(
        worker,
        train_loop_config={"job": job.portable(), "digest": digest},
        scaling_config=ScalingConfig(
            num_workers=allowed[0] if len(allowed) == 1 else (allowed[0], allowed[-1]),
            use_gpu=use_gpu,
            resources_per_worker=per_worker,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=RunConfig(
            name=job.spec.run_id,
            **_storage(job),
            failure_config=FailureConfig(max_failures=job.spec.train.max_failures, controller_failure_limit=3),
            checkpoint_config=CheckpointConfig(num_to_keep=checkpoint.KEEP),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _storage(job: TrainingJob) -> dict[str, Any]:
    """Return where Ray keeps checkpoints: beside the run's other files, in the bucket if there is one."""
    folder = job.run_dir / "ray"
    if job.mirror.uri is None:
        return {"storage_path": str(folder.resolve())}
    from graceful.training.bucket import PatientS3

    return {"storage_path": job.mirror.copy_uri(folder).removeprefix("s3://"), "storage_filesystem": PatientS3.open()}


# --- errors -----------------------------------------------------------------------------------------------------------


def _recorded(path: Path) -> GracefulError:
    """Return the error that a worker wrote down."""
    document = json.loads(path.read_text(encoding="utf-8"))
    kind = getattr(errors, document["class"], None)
    if not (isinstance(kind, type) and issubclass(kind, GracefulError)):
        kind = TrainingError
    return kind(document["message"], document["facts"])


def _failed(job: TrainingJob, error: BaseException) -> TrainingError:
    """Return an error of one line for a job that Ray gave up; the whole text goes into the log."""
    text = redact.record("".join(traceback.format_exception(error)))
    log = write_text(job.run_dir / LOG, text)
    if "running low on memory" in text:
        used = re.search(r"was (\S+ used / \S+ limit)", text)
        return TrainingError(
            f"out of memory: a worker was killed{f' at {used[1]}' if used else ''}; give workers more memory, or lower"
            f" train.batch_size; see {log}"
        )
    by_rank = getattr(error, "worker_failures", None) or {}
    causes = {rank: redact.message(first_line(cause)) for rank, cause in by_rank.items()}
    first = next(iter(causes.items()), None)
    attempts = f"training failed after {job.spec.train.max_failures} restarts"
    what = f"{attempts}, rank {first[0]}: {first[1]}" if first else f"Ray Train failed, {first_line(error)}"
    return TrainingError(
        f"{what}; see {log}, then run it again",
        {"causes": {str(rank): cause for rank, cause in causes.items()}},
    )
