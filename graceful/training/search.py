"""Run many independent fits at a time: here one after the other, or as Ray Tune trials. Driver.

Ray Tune starts them, spreads them over the machines, and starts one again whose process was lost. What to try next and
what came out is the caller's business: `ask` and `tell` are called in this process, one at a time.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from graceful import startup
from graceful.training import rank_resources
from graceful.training.ray_fit import connect

Told = Mapping[str, Any]
Ask = Callable[[], Told | None]
"""What to run next, as JSON values with a text `key`; None: nothing any more."""
Tell = Callable[[str, Told | None], None]
"""Called with the key and what the function returned; None: its process was lost, again and again."""

ENDED = "ended"
RESTARTS = 2
"""How often a trial is started again whose process or node was lost."""
BESIDE_US = 0.001
"""Amount of the resource that every node has under its own name."""
_KNOBS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def here(function: Callable[[Told], Told], *, ask: Ask, tell: Tell) -> None:
    """Run one after the other in this process, without Ray."""
    while (question := ask()) is not None:
        tell(str(question["key"]), function(question))


def concurrency(workers: int, *, gpus: bool = False) -> int:
    """Return how many trials of so many Ray Train workers (0: one process) run at a time where Ray is; starts it.

    Args:
        workers: The workers of a trial.
        gpus: Each worker takes a GPU, if there are any.
    """
    connect()  # before ray is imported: it reads the environment once
    import ray

    resources = ray.cluster_resources()
    return rank_resources.groups(resources, size=max(workers, 1), use_gpu=gpus and resources.get("GPU", 0) > 0)


def on_ray(
    function: Callable[[Told], Told], *, ask: Ask, tell: Tell, at_once: int, workers: int = 0, gpus: int = 0
) -> None:
    """Run as Ray Tune trials; processes are kept from one trial to the next.

    Args:
        function: Importable; gets what `ask` returned, returns JSON values.
        ask: See above.
        tell: See above.
        at_once: Trials at a time.
        workers: Ray Train workers that each trial starts itself, wherever there is room; its own process stays on this
            machine, whose files it shares. 0: it computes in its own process.
        gpus: The GPUs of a trial's own process.
    """
    for name, value in _KNOBS.items():
        os.environ.setdefault(name, value)
    connect()
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"ray(\.|$)")
    import ray
    from ray import tune

    def trial(config: dict[str, Any]) -> None:
        startup.return_to_working_directory()
        answer = function(json.loads(config["told"]))
        tune.report({ENDED: 1, "answer": json.dumps(dict(answer))})

    failed: list[Exception] = []
    here = f"node:{ray.util.get_node_ip_address()}"
    needs = {here: BESIDE_US} if workers else {"CPU": 1, **({"GPU": gpus} if gpus else {})}
    with tempfile.TemporaryDirectory(prefix="graceful-tune-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(trial, needs),
            tune_config=tune.TuneConfig(
                search_alg=_asking(ask, tell, failed),
                num_samples=-1,
                max_concurrent_trials=at_once,
                reuse_actors=True,
                metric=ENDED,
                mode="min",
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(Path(scratch)),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=RESTARTS),
            ),
        )
        tuner.fit()
    if failed:
        raise failed[0]


def _asking(ask: Ask, tell: Tell, failed: list[Exception]) -> Any:
    """Present `ask` and `tell` to Ray Tune: it keeps no state, so there is nothing to pickle and to restore.

    What they raise goes into `failed` and ends the search; Ray Tune would make a text of it.
    """
    from ray.tune.search import Searcher

    class Asking(Searcher):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(metric=ENDED, mode="min")
            self._keys: dict[str, str] = {}

        def suggest(self, trial_id: str) -> Any:
            question = None
            try:
                question = None if failed else ask()
            except Exception as e:  # noqa: BLE001  raised again after the trials have ended
                failed.append(e)
            if question is None:
                return Searcher.FINISHED
            self._keys[trial_id] = str(question["key"])
            return {"told": json.dumps(dict(question))}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            answer = None if error or not result else result.get("answer")
            try:
                tell(self._keys.pop(trial_id), None if answer is None else json.loads(answer))
            except Exception as e:  # noqa: BLE001  as above
                failed.append(e)

        def __reduce__(self) -> tuple[Any, ...]:
            """Reduce to a plain searcher: Ray Tune pickles its configuration into its folder, and nothing reads it."""
            return Searcher, ()

        def __deepcopy__(self, memo: object) -> Any:
            return self

        def save(self, checkpoint_path: str) -> None:
            """Save nothing."""

        def restore(self, checkpoint_path: str) -> None:
            """Restore nothing."""

    return Asking()
