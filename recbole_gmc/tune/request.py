"""What the command line of a search asks for, checked before any work."""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole.utils import get_local_time

from recbole_gmc import keys, recbole_keys
from recbole_gmc.errors import SettingError
from recbole_gmc.files import refuse_unwritable, safe_name
from recbole_gmc.flags import flags_of
from recbole_gmc.running import planning
from recbole_gmc.tune.ray_search import RayOptions
from recbole_gmc.tune.search import SearchOptions
from recbole_gmc.tune.space import Space, read_space

TOOLS = ("hyperopt", "ray")
ALGORITHMS = ("exhaustive", "random", "bayes")
OWN = (
    "params_file tool algo max_evals early_stop output ray_address cpus_per_trial gpus_per_trial grace_validations "
    "reduction_factor"
).split()


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
    _refuse_idle(space, plan.model, flags)
    tool = _one_of(own.get("tool", "hyperopt"), TOOLS, "--tool")
    algo = _one_of(own.get("algo") or ("random" if space.size is None else "exhaustive"), ALGORITHMS, "--algo")
    _refuse_unfit(tool, algo, space, own)
    seed = recbole_keys.seed_of(plan.merged())
    options = SearchOptions(algo, _count(own, "max_evals"), _count(own, "early_stop"), seed)
    usual = RayOptions()
    ray = RayOptions(
        _reached(own.get("ray_address")),
        _amount(own, "cpus_per_trial", usual.cpus),
        _amount(own, "gpus_per_trial", usual.gpus),
        _count(own, "grace_validations") or usual.grace,
        _count(own, "reduction_factor", least=2) or usual.reduction,
    )
    name = f"tune-{plan.model}-{safe_name(plan.dataset, 'dataset')}-{get_local_time()}"
    folder = Path(own.get("output") or Path("runs") / name)
    refuse_unwritable(folder, "--output")
    return Request(plan, space, tool, options, ray, folder, files, flags)


def _refuse_idle(space: Space, model: str, flags: Mapping[str, str]) -> None:
    """Refuses a setting that is fixed by a flag, too, or that the model does not read."""
    unread = keys.unread(model, space.ranges)
    for name in space.ranges:
        if name in flags:
            raise SettingError("is fixed by a flag and in the search space, too", f"--{name}", "Leave one of them out")
        if name in unread:
            raise SettingError(f"{model} does not read it, so all trials would be equal", name, "Leave it out")


def _reached(address: str | None) -> str | None:
    """The address of a cluster, if something answers there: Ray itself waits for minutes."""
    found = re.fullmatch(r"(?:ray://)?([\w.-]+):(\d{1,5})", address or "")
    if found:
        try:
            socket.create_connection((found[1], int(found[2])), timeout=10).close()
        except (OSError, OverflowError) as error:
            what, mend = f"nothing answers at {address} ({error})", "Start one by `ray start --head`, or leave it out"
            raise SettingError(what, "--ray_address", mend) from error
    return address


def _refuse_unfit(tool: str, algo: str, space: Space, own: Mapping[str, str]) -> None:
    if algo == "exhaustive" and space.size is None:
        open_ones = ", ".join(name for name, part in space.ranges.items() if part.size is None)
        raise SettingError(f"{open_ones} has no list of values", "--algo", "Choose random or bayes")
    if tool == "ray":
        if algo == "bayes":
            raise SettingError("bayes is hyperopt's", "--algo", "Choose --tool=hyperopt, or random")
        if "early_stop" in own:
            raise SettingError("ASHA stops trials, not the search", "--early_stop", "Leave it out with --tool=ray")
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
    for point in request.space.corners():
        ((name, value),) = point.items()
        try:
            _check(request, point)
        except SettingError as error:
            _check(request, {})  # what the space has no part in is said by itself
            raise SettingError(f"{value!r} is in the search space, but: {error}", name) from error


def _check(request: Request, point: Mapping[str, Any]) -> None:
    plan = request.plan
    again = planning.plan(plan.model, plan.dataset, request.files, {**request.given, **point})
    again.refuse_bad(request.folder)
