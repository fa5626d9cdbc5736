"""The search with Ray Tune: trials side by side, the hopeless ones stopped early by ASHA."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import recbole_gmc
from recbole_gmc.errors import DependencyError
from recbole_gmc.running.planning import Plan
from recbole_gmc.tune.search import SearchOptions
from recbole_gmc.tune.space import Space
from recbole_gmc.tune.trial import Trial, id_of, run_trial

SCORE = "valid_score"
POINT = "settings"  # of a trial, in Ray's tables, too
PATIENCE = {  # Ray ends the whole process where its helpers take half a minute to start, as on a machine at work
    "agent_register_timeout_ms": 300_000,
    "worker_register_timeout_seconds": 300,
}


@dataclass(frozen=True)
class RayOptions:
    """Where and how wide.

    Attributes:
        address: of a running cluster; ``None`` starts a local one.
        cpus, gpus: of one trial.
        grace: validations that every trial gets before ASHA may stop it.
        reduction: of so many trials one goes on at each rung.
    """

    address: str | None = None
    cpus: float = 1
    gpus: float = 0
    grace: int = 2
    reduction: int = 3


def _objective(drawn: Mapping[str, Any], plan: Plan, trials: Path) -> None:
    """Runs in a worker. Returns nothing: Ray would take what is returned for one more report."""
    from ray.air import session

    def report(epoch: int, score: float) -> None:
        session.report({SCORE: score, "epoch": epoch, "state": "under way"})

    trial = run_trial(plan, drawn[POINT], trials, report)
    session.report({SCORE: trial.score or 0.0, "epoch": trial.epochs, "state": trial.state})


def require_ray() -> None:
    """Raises DependencyError if Ray Tune cannot be imported."""
    try:
        import ray.tune.schedulers
        import ray.tune.search  # noqa: F401
    except Exception as error:  # a ray that does not fit its neighbours fails in many ways
        raise DependencyError(
            f"Ray Tune cannot be imported ({type(error).__name__}: {error})",
            "--tool=ray",
            "Install a ray[tune] that fits this Python and its NumPy, or leave --tool out: hyperopt needs no ray",
        ) from error


def search(plan: Plan, space: Space, options: SearchOptions, ray_options: RayOptions, folder: Path) -> list[Trial]:
    """Runs the trials; every one leaves its folder and its entry, those that ASHA stopped included.

    The points are drawn here, each once: Ray repeats some, and trials side by side would share a folder.

    Raises:
        DependencyError: Ray Tune cannot be imported.
        KeyboardInterrupt: with nothing noted on trials that were under way.
    """
    require_ray()
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    trials = folder / "trials"
    points = space.sample(options.trials(space), options.seed)
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ray's handler would end as if all trials were over
    started_here = not ray.is_initialized()
    if started_here:
        _start(ray_options.address)
    try:
        analysis = tune.run(
            tune.with_resources(
                partial(_objective, plan=plan, trials=trials.absolute()),
                {"cpu": ray_options.cpus, "gpu": ray_options.gpus},
            ),
            name="ray",
            config={POINT: tune.grid_search(points)},
            scheduler=ASHAScheduler(
                metric=SCORE,
                mode="max",
                max_t=10**6,
                grace_period=ray_options.grace,
                reduction_factor=ray_options.reduction,
            ),
            storage_path=str(folder.absolute()),
            chdir_to_trial_dir=False,
            raise_on_failed_trial=False,
            verbose=1,
        )
        return [_read(trial, trials) for trial in analysis.trials]
    finally:
        if started_here:
            ray.shutdown()


def _start(address: str | None) -> None:
    """Joins a cluster, or starts one on this machine."""
    import ray

    here: dict[str, Any] = {}
    if address is None:
        # Workers start elsewhere: a bare checkout, or a relative path, would not be found from there.
        paths = [str(Path(recbole_gmc.__file__).parent.parent), *filter(None, map(os.path.abspath, sys.path))]
        variables = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
        here = {"num_cpus": os.cpu_count(), "include_dashboard": False, "runtime_env": {"env_vars": variables}}
        here["_system_config"] = PATIENCE
    ray.init(address=address, logging_level=logging.WARNING, **here)


def _read(trial: Any, trials: Path) -> Trial:
    """The entry that a trial wrote; one that ASHA stopped could not, so it is written here."""
    settings = trial.config[POINT]
    folder = trials / id_of(settings)
    if trial.status != "TERMINATED":  # its worker died; nothing is noted, so it is tried again
        return Trial(id_of(settings), settings, "failed", error=f"Ray ended it as {trial.status}: {trial.error_file}")
    if (done := Trial.read(folder)) is not None:
        return done
    last = trial.last_result or {}
    stopped = Trial(
        id=id_of(settings),
        settings=settings,
        state="stopped",
        score=trial.metric_analysis.get(SCORE, {}).get("max"),
        epochs=int(last.get("epoch", -1)) + 1,
        seconds=float(last.get("time_total_s", 0.0)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    stopped.write(folder)
    return stopped
