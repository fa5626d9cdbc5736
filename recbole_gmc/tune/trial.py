"""One trial: a model trained with one point of the search space and scored on validation, never on test."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from logging import getLogger
from pathlib import Path
from time import perf_counter
from typing import Any

from recbole_gmc import logs
from recbole_gmc.errors import CheckpointError, DataError, DependencyError, GMCError, RunError
from recbole_gmc.evaluate.split import VALIDATED
from recbole_gmc.files import hash_of, read_json, write_json
from recbole_gmc.flags import only_program_name
from recbole_gmc.running.planning import DomainPlan, Plan
from recbole_gmc.settings import TrainSettings, read
from recbole_gmc.train.budget import Budget

FILE = "trial.json"
Report = Callable[[int, float], None]  # epoch, validation score


@dataclass(frozen=True)
class Trial:
    """What a trial gave.

    Attributes:
        id: names its folder; made of the settings tried.
        settings: the point of the space.
        state: ``done``, ``stopped`` early by the search, or ``failed``.
        score: the validation metric, of RecBole's own models as RecBole rounds it; ``None`` for a failed one.
        valid: validation metrics, rounded, by domain.
        epochs: all stages and domains together.
        seconds: of training and validation.
        reused: stages that an earlier run had trained with the same input.
        error: why it failed.
    """

    id: str
    settings: Mapping[str, Any]
    state: str
    score: float | None = None
    valid: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 0
    seconds: float = 0.0
    reused: tuple[str, ...] = ()
    error: str = ""

    @classmethod
    def read(cls, folder: Path) -> Trial | None:
        """The finished trial in a folder, if there is one."""
        file = folder / FILE
        if not file.is_file():
            return None
        try:
            facts = read_json(file)
            return cls(**{**facts, "reused": tuple(facts["reused"])})
        except (ValueError, KeyError, TypeError) as error:
            mend = "Remove it; the trial is then run again"
            raise CheckpointError(f"the note on a trial is damaged ({error})", str(file), mend) from error

    def write(self, folder: Path) -> None:
        write_json(folder / FILE, asdict(self))


def id_of(settings: Mapping[str, Any]) -> str:
    return hash_of(dict(settings))[:12]


def run_trial(plan: Plan, settings: Mapping[str, Any], trials: Path, report: Report | None = None) -> Trial:
    """Runs one trial in a folder of its own, or reads it there if it was finished before.

    A trial that was interrupted goes on from its checkpoint where its model leaves one, else from its beginning.

    Args:
        plan: the run that the settings change.
        trials: the folder of all trials.
        report: told of every validation of the whole model: not of adapters, whose scores are of one domain.

    Raises:
        DataError, DependencyError: what no other point would mend. Other errors make a failed trial.
    """
    name = id_of(settings)
    folder = trials / name
    done = Trial.read(folder)
    if done is not None and done.state != "failed":  # what made it fail may be mended
        getLogger().info(f"Trial {name}: done before, score {done.score}")
        return done
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).unlink(missing_ok=True)
    started = perf_counter()
    trial = Trial(name, dict(settings), "done")
    try:
        with only_program_name(), logs.tables_later():
            found = _fit(plan.having(**settings), folder, report)
        trial = replace(trial, **found)
    except (DataError, DependencyError):  # no other point would do better
        raise
    except Exception as error:  # a loss that is not finite, sizes that do not fit: the search goes on without it
        planned = isinstance(error, GMCError)
        why = str(error) if planned else f"{type(error).__name__}: {error}"
        trial = replace(trial, state="failed", error=" ".join(why.split()))
        getLogger().error(f"Trial {name} failed: {trial.error}", exc_info=not planned)
    trial = replace(trial, seconds=perf_counter() - started)
    trial.write(folder)
    return trial


def _fit(plan: Plan, folder: Path, report: Report | None) -> dict[str, Any]:
    if plan.whole:
        settings = {**plan.settings, "run_dir": str(folder)}
        found = _fit_whole(plan.model, plan.dataset, plan.files, settings, report, alone=True)
        return {name: value for name, value in found.items() if name != "users"}
    parts: dict[str, dict[str, Any]] = {}
    budget = Budget(read(TrainSettings, plan.settings).budget_minutes)
    for left, domain in zip(range(len(plan.domains), 0, -1), plan.domains, strict=True):
        share, own = budget.share(left), plan.of_domain(domain, folder)
        if plan.ours:  # with more than one domain, whose scores are not those of all
            settings = dict(own.within(share).settings)
            parts[domain] = _fit_whole(plan.model, domain, (), settings, None, alone=False)
        else:
            parts[domain] = _fit_single(own, report if len(plan.domains) == 1 else None, share)
    users = {domain: part.pop("users") for domain, part in parts.items()}
    _refuse_unscored(sum(users.values()))
    scored = {domain: part for domain, part in parts.items() if users[domain]}
    return {
        "score": sum(users[domain] * part["score"] for domain, part in scored.items()) / sum(users.values()),
        "valid": {domain: part["valid"] for domain, part in parts.items()},
        "epochs": sum(part["epochs"] for part in parts.values()),
        "reused": tuple(f"{domain}/{stage}" for domain, part in parts.items() for stage in part.get("reused", ())),
    }


def _refuse_unscored(users: int) -> None:
    if not users:
        what = f"no user has {VALIDATED} interactions, so nothing tells which settings are better"
        raise DataError(what, "validation", "Add data")


def _fit_whole(
    model: str, dataset: str, files: tuple[Any, ...], settings: dict[str, Any], report: Report | None, alone: bool
) -> dict[str, Any]:
    """RecBole's own steps of a run, up to its test; ``alone``: no other run is scored with it."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_logger, init_seed

    config = Config(model, dataset, list(files), {**settings, **_go_on(Path(settings["run_dir"]))})
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    train, valid, _ = data_preparation(config, create_dataset(config))
    if alone:
        _refuse_unscored(len(valid._dataset))
    init_seed(config["seed"], config["reproducibility"])
    network = get_model(config["model"])(config, train._dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, network)

    def told(epoch: int, score: float) -> None:
        if trainer.stage.domain is None:
            report(epoch, score)

    callback = told if report else None
    score, result = trainer.fit(train, valid, show_progress=config["show_progress"], callback_fn=callback)
    return {
        "score": float(score),
        "valid": dict(result or {}),
        "epochs": sum("loss" in e and e["stage"] not in trainer.record.reused for e in trainer.record.curve),
        "reused": tuple(trainer.record.reused),
        "users": len(valid._dataset),
    }


def _go_on(folder: Path) -> dict[str, str]:
    """What makes a run go on from its checkpoint in ``folder``; where there is none, what else is there makes way."""
    from recbole_gmc.train.checkpoint import Checkpoint

    found = Checkpoint.found(folder)
    if found is None:
        shutil.rmtree(folder, ignore_errors=True)
        return {}
    return {"resume": str(found.folder)}


def _fit_single(plan: DomainPlan, report: Report | None, budget: Budget) -> dict[str, Any]:
    from recbole_gmc.running import single

    fitted = single.fit_domain(plan, report, budget)
    if fitted.users and not math.isfinite(fitted.score):
        raise RunError("its time was up before the first validation", plan.domain, "Raise budget_minutes")
    epochs = len(fitted.trainer.train_loss_dict)
    return {"score": float(fitted.score), "valid": dict(fitted.valid), "epochs": epochs, "users": fitted.users}
