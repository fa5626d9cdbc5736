"""The tune command."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole.utils import get_local_time

from recbole_gmc import keys, quick
from recbole_gmc.errors import CheckpointError, RunError, SettingError
from recbole_gmc.files import read_json, safe_name, write_json
from recbole_gmc.flags import flags_of
from recbole_gmc.running import planning
from recbole_gmc.tune import outcome, ray_search, search
from recbole_gmc.tune.ray_search import RayOptions
from recbole_gmc.tune.search import SearchOptions
from recbole_gmc.tune.space import Space, read_space

TOOLS = ("hyperopt", "ray")
ALGORITHMS = ("exhaustive", "random", "bayes")
OWN = (
    "params_file tool algo max_evals early_stop output ray_address cpus_per_trial gpus_per_trial grace_validations "
    "reduction_factor"
).split()
FACTS = "search.json"

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


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    plan: planning.Plan
    space: Space
    tool: str
    options: SearchOptions
    ray: RayOptions
    folder: Path
    files: tuple[str, ...]
    given: Mapping[str, Any]


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
    folder = request.folder
    _claim(request)
    count = request.options.trials(request.space)
    getLogger().info(f"{count} trials at most of {request.plan.model} on {request.plan.dataset}, in {folder}")
    if request.tool == "ray":
        trials = ray_search.search(request.plan, request.space, request.options, request.ray, folder)
    else:
        trials = search.Search(request.plan, request.space, request.options, folder / "trials").trials()
    metric = str(request.plan.merged().get("valid_metric") or "NDCG@10")
    outcome.write(folder, trials, metric, f"recbole-gmc tune {' '.join(arguments)}")
    print(outcome.draw(trials, metric))
    best = outcome.best_of(trials)
    if best is None:
        raise RunError("no trial was finished", str(folder / outcome.TABLE), "Its last column says why")
    print(f"Best: trial {best.id}; its settings are in {folder / outcome.BEST}. Now its test, the only one:")
    _run_best(request, dict(best.settings))


def parse(arguments: Sequence[str]) -> Request:
    """Raises SettingError for what cannot be meant."""
    flags = flags_of(arguments, OWN)
    own = {name: flags.pop(name) for name in OWN if name in flags}
    if "params_file" not in own:
        mend = "Give --params_file=properties/search/GMC.yaml or a file of your own"
        raise SettingError("no search space is named", "--params_file", mend)
    for name in ("run_dir", "resume"):
        if name in flags:
            raise SettingError("the search gives every trial a folder of its own", f"--{name}", "Use --output")
    try:
        space = read_space(own["params_file"])
    except SettingError as error:
        where = "--params_file" if error.where == "config_files" else error.where
        raise SettingError(error.what, where, error.mend) from None
    model, dataset = flags.pop("model", None), flags.pop("dataset", None)
    files = tuple(flags.pop("config_files", "").split())
    plan = planning.plan(model, dataset, files, flags)
    tool = _one_of(own.get("tool", "hyperopt"), TOOLS, "--tool")
    algo = _one_of(own.get("algo") or ("random" if space.size is None else "exhaustive"), ALGORITHMS, "--algo")
    _refuse_unfit(tool, algo, space, own)
    seed = plan.merged().get("seed", planning.SEED)
    options = SearchOptions(algo, _count(own, "max_evals"), _count(own, "early_stop"), int(seed))
    usual = RayOptions()
    ray = RayOptions(
        own.get("ray_address"),
        _amount(own, "cpus_per_trial", usual.cpus),
        _amount(own, "gpus_per_trial", usual.gpus),
        _count(own, "grace_validations") or usual.grace,
        _count(own, "reduction_factor", least=2) or usual.reduction,
    )
    name = f"tune-{plan.model}-{safe_name(plan.dataset, 'dataset')}-{get_local_time()}"
    folder = Path(own.get("output") or Path("runs") / name)
    return Request(plan, space, tool, options, ray, folder, files, flags)


def _refuse_unfit(tool: str, algo: str, space: Space, own: Mapping[str, str]) -> None:
    if algo == "exhaustive" and space.size is None:
        open_ones = ", ".join(name for name, part in space.ranges.items() if part.size is None)
        raise SettingError(f"{open_ones} has no list of values", "--algo", "Choose random or bayes")
    if tool == "ray":
        if algo == "bayes":
            raise SettingError("bayes is hyperopt's", "--algo", "Choose --tool=hyperopt, or random")
        if "early_stop" in own:
            raise SettingError("ASHA stops trials, not the search", "--early_stop", "Leave it out with --tool=ray")
        if algo == "exhaustive" and "max_evals" in own:
            raise SettingError("a grid is run whole", "--max_evals", "Choose --algo=random, or leave it out")
        return
    for name in ("ray_address", "cpus_per_trial", "gpus_per_trial", "grace_validations", "reduction_factor"):
        if name in own:
            raise SettingError("means nothing to hyperopt", f"--{name}", "Add --tool=ray")


def _one_of(word: str, known: Sequence[str], where: str) -> str:
    if word.lower() not in known:
        what = f"{word!r} is not known{keys.nearest(word, known)}"
        raise SettingError(what, where, f"Choose from {', '.join(known)}")
    return word.lower()


def _count(own: Mapping[str, str], name: str, least: int = 1) -> int | None:
    if name not in own:
        return None
    if not own[name].isdecimal() or int(own[name]) < least:
        raise SettingError(f"{own[name]!r} is not a number >= {least}", f"--{name}", f"Write --{name}=10")
    return int(own[name])


def _amount(own: Mapping[str, str], name: str, usual: float) -> float:
    try:
        amount = float(own.get(name, usual))
    except ValueError:
        amount = math.nan
    if not 0 <= amount < math.inf:
        raise SettingError(f"{own[name]!r} is not a number >= 0", f"--{name}", f"Write --{name}=1")
    return amount


def refuse_bad_points(request: Request) -> None:
    """Shows every value of the space to the checks of a run, so that none is found bad after hours of search."""
    plan = request.plan
    for point in request.space.corners():
        ((name, value),) = point.items()
        try:
            again = planning.plan(plan.model, plan.dataset, request.files, {**request.given, **point})
            again.refuse_bad(request.folder)
        except SettingError as error:
            raise SettingError(f"{value!r} is in the search space, but: {error}", name) from error


def _claim(request: Request) -> None:
    """Makes the folder, or refuses one that holds another search."""
    plan, folder = request.plan, request.folder
    facts = {
        "model": plan.model,
        "dataset": plan.dataset,
        "space": request.space.facts(),
        "settings": {name: str(value) for name, value in sorted(plan.settings.items())},
        "files": list(request.files),
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
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FACTS, facts)


def _run_best(request: Request, settings: dict[str, Any]) -> None:
    """The best settings as an ordinary run, which shares the stages that the search kept."""
    folder = request.folder / "best"
    if (folder / "result.json").is_file():
        print(f"Done before: {folder}")
        return
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped; the stages that it finished are kept
    given = {**request.given, **settings, "run_dir": str(folder)}
    quick.run(request.plan.model, request.plan.dataset, request.files, given)
