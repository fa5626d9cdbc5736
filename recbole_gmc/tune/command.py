"""The tune command."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from logging import getLogger
from pathlib import Path

from recbole_gmc import quick
from recbole_gmc.data.atomic import hash_domains
from recbole_gmc.data.named import hash_named
from recbole_gmc.errors import CheckpointError, RunError, SettingError
from recbole_gmc.files import locked, read_json, write_json
from recbole_gmc.settings import DataSettings, read
from recbole_gmc.tune import outcome, ray_search, search
from recbole_gmc.tune.request import Request, parse, refuse_bad_points
from recbole_gmc.tune.trial import Trial

FACTS, LOCK, TESTED = "search.json", ".lock", "tested.json"
FORMAT = 3  # goes up when the same search would draw other points, or its note holds other facts

HELP = """\
usage: recbole-gmc tune --model=<model> --dataset=<name> --params_file=<file> [--<flag or key>=<value> ...]

Searches settings by the validation score; the test is run once, for the best ones. The search space is a YAML file:

  learning_rate: {loguniform: [0.0003, 0.003]}
  dropout_rate: {choice: [0.1, 0.2, 0.3]}       or in short: dropout_rate: [0.1, 0.2, 0.3]
  d_ff: {quniform: [256, 1024, 256]}
  weight_decay: {uniform: [0, 0.1]}

or a file in RecBole's lines, such as `learning_rate choice [0.01,0.001]`. Stages that a trial does not change are
reused.

  --params_file         the search space; a path, or a packaged one such as properties/search/GMC.yaml
  --tool                hyperopt (default; RecBole's HyperTuning, one trial after another) or ray (Ray Tune with ASHA)
  --algo                exhaustive (default where all values are listed), random (default else) or bayes (hyperopt only)
  --max_evals           trials at most (default the whole space, or 100)
  --early_stop          ends the search after so many trials without a better one (default never; hyperopt only)
  --output              the folder of the search (default runs/tune-<model>-<dataset>-<time>); name it again to go on
  --ray_address         a running cluster (default: one on this machine for the time of the search)
  --cpus_per_trial      of one trial with ray (default 1); likewise --gpus_per_trial (default 0)
  --grace_validations   ASHA: validations that each trial gets (default 2)
  --reduction_factor    ASHA: of so many trials one goes on (default 3)
  --config_files        as in a run, like every --<key>=<value>; they hold for every trial

The folder holds best.yaml (for --config_files), trials.csv, history.html, parallel.html, trials/<id>/ and best/, the
run of the best settings.
"""


def run(arguments: Sequence[str]) -> None:
    """Runs a search and then the best settings.

    Raises:
        SettingError: bad flags, a bad space, or a value in it that the model refuses, before any work.
        DependencyError: the tool is not there, before any work.
        RunError: no trial was finished.
    """
    request = parse(arguments)
    (ray_search.require_ray if request.tool == "ray" else search.require_hyperopt)()
    refuse_bad_points(request)
    with locked(request.folder / LOCK) as lock:
        if lock is None:
            raise SettingError("another search is at work in it", str(request.folder), "Name another --output")
        _search(request, shlex.join(["recbole-gmc", "tune", *arguments]))


def _search(request: Request, command: str) -> None:
    folder = request.folder
    _claim(request)
    count = request.options.trials(request.space)
    getLogger().info(f"{count} trials at most of {request.plan.model} on {request.plan.dataset}, in {folder}")
    if request.tool == "ray":
        trials = ray_search.search(request.plan, request.space, request.options, request.ray, folder)
    else:
        trials = search.Search(request.plan, request.space, request.options, folder / "trials").trials()
    metric = str(request.plan.merged().get("valid_metric") or "NDCG@10")
    outcome.write(folder, trials, metric, command, _again(request))
    print(outcome.draw(trials, metric))
    best = outcome.best_of(trials)
    if best is None:
        first = next((f", the first because of: {trial.error}" for trial in trials if trial.error), "")
        raise RunError(f"no trial was finished{first}", str(folder / outcome.TABLE), "Its last column says why")
    print(f"Best: trial {best.id}; its settings are in {folder / outcome.BEST}. Now its test, the only one:")
    _run_best(request, best)


def _claim(request: Request) -> None:
    """Makes the folder, or refuses one that holds another search."""
    plan, folder = request.plan, request.folder
    settings = plan.decisive()
    domains = read(DataSettings, settings).domains or (plan.dataset,)
    facts = {
        "format": FORMAT,
        "model": plan.model,
        "dataset": plan.dataset,
        "space": request.space.facts(),
        "settings": {name: str(value) for name, value in sorted(settings.items())},
        "data": {**hash_domains(Path(settings.get("data_path") or "dataset"), domains), **hash_named(settings)},
        "algo": request.options.algo,
        "seed": request.options.seed,
    }
    if (folder / FACTS).is_file():
        try:
            before = dict(read_json(folder / FACTS))
        except (ValueError, TypeError) as error:
            mend = "Name another --output, or remove the folder"
            raise CheckpointError(f"the note on the search is damaged ({error})", str(folder / FACTS), mend) from error
        for name, value in facts.items():
            if before.get(name) != value:
                what = f"holds a search with another {name}"
                raise CheckpointError(what, str(folder), "Name another --output, or the same search")
        getLogger().info(f"Going on with the search in {folder}")
        return
    if there := [name for name in ("result.json", "checkpoint", "trials") if (folder / name).exists()]:
        raise SettingError(f"holds {there[0]}, but no search", str(folder), "Name another --output")
    write_json(folder / FACTS, facts)


def _again(request: Request) -> str:
    """The command of a run with the best settings on top of those that all trials had."""
    files = " ".join([*request.files, str(request.folder / outcome.BEST)])
    named = {"model": request.plan.model, "dataset": request.plan.dataset, "config_files": files, **request.given}
    return shlex.join(["recbole-gmc", *(f"--{name}={value}" for name, value in named.items())])


def _run_best(request: Request, best: Trial) -> None:
    """The best settings as an ordinary run, which shares the stages that the search kept."""
    folder, note = request.folder / "best", request.folder / TESTED
    if (folder / "result.json").is_file() and note.is_file() and read_json(note) == best.id:
        print(f"Done before: {folder}")
        return
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped; the stages that it finished are kept
    given = {**request.given, **best.settings, "run_dir": str(folder)}
    quick.run(request.plan.model, request.plan.dataset, request.files, given)
    write_json(note, best.id)
