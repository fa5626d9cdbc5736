"""The search itself: RecBole's HyperTuning with hyperopt, one trial after another."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole.trainer import HyperTuning
from recbole.trainer.hyper_tuning import exhaustive_search

from recbole_gmc.errors import DependencyError
from recbole_gmc.running.planning import Plan
from recbole_gmc.tune.space import SMALL, Space
from recbole_gmc.tune.trial import Trial, id_of, run_trial

MANY = 100  # trials of an open space, as in RecBole
TRIES = 50  # draws for each point of a grid: one is missed with a probability of exp(-50)


def require_hyperopt() -> None:
    """Raises DependencyError if hyperopt is not installed."""
    try:
        import hyperopt  # noqa: F401
    except ImportError as error:
        raise DependencyError("hyperopt is not installed", "tune", "pip install 'recbole_gmc[tune]'") from error


@dataclass(frozen=True)
class SearchOptions:
    """How a search goes.

    Attributes:
        algo: ``exhaustive``, ``random`` or ``bayes``.
        max_evals: trials at most; ``None`` is the whole space if it can be counted, else 100.
        early_stop: ends the search after so many trials without a better one; ``None`` never does.
        seed: of the points that are drawn.
    """

    algo: str
    max_evals: int | None
    early_stop: int | None
    seed: int

    def trials(self, space: Space) -> int:
        wanted = self.max_evals or (space.size if self.algo == "exhaustive" else MANY)
        return wanted if self.algo == "bayes" else min(wanted, space.size or wanted)

    def each_once(self, space: Space) -> bool:
        """Whether hyperopt draws no point twice, by RecBole's way for a grid."""
        return self.algo == "exhaustive" or (self.algo == "random" and space.size is not None and space.size <= SMALL)


class Search(HyperTuning):
    """RecBole's HyperTuning, whose trials have no test result.

    The same seed draws the same points while the scores are the same; so a search that is started again reads the
    finished trials instead of running them, and goes on where it stopped.
    """

    def __init__(self, plan: Plan, space: Space, options: SearchOptions, trials: Path) -> None:
        require_hyperopt()
        most, drawn, algorithm = options.trials(space), space, options.algo
        if options.each_once(space):
            drawn, algorithm = space.listed(), partial(exhaustive_search, nbMaxSucessiveFailures=TRIES * space.size)
        super().__init__(
            self._run_one,
            space=drawn.for_hyperopt(),
            algo=algorithm,
            max_evals=most,
            early_stop=options.early_stop or most + 1,
        )
        self.plan, self.points, self.options, self.folder = plan, space, options, trials
        self.found: dict[str, Trial] = {}

    def _run_one(self, drawn: Mapping[str, Any], files: Sequence[str] | None = None) -> dict[str, Any]:
        settings = self.points.settings(drawn)
        trial = self.found.get(id_of(settings)) or run_trial(self.plan, settings, self.folder)
        self.found[trial.id] = trial
        score = trial.score if trial.score is not None else 0.0  # the worst there is: all metrics are shares
        return {
            "model": self.plan.model,
            "best_valid_score": score,
            "valid_score_bigger": True,
            "best_valid_result": dict(trial.valid),
            "test_result": {},
        }

    @staticmethod
    def _print_result(result_dict: Mapping[str, Any]) -> None:
        getLogger().info(f"Best validation score so far: {result_dict['best_valid_score']:.4f}")

    def trials(self) -> list[Trial]:
        """Runs the search; gives its trials in order."""
        with _hyperopt_seed(self.options.seed):
            self.run()
        return list(self.found.values())


@contextmanager
def _hyperopt_seed(seed: int) -> Iterator[None]:
    """RecBole calls ``fmin`` without a seed; this is where hyperopt then looks for one."""
    name = "HYPEROPT_FMIN_SEED"
    before = os.environ.get(name)
    os.environ[name] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
