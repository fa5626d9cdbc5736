"""RecBole's own settings: their names, types and ranges, as its property files give them."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

import recbole
from recbole.utils import argument_list

from recbole_gmc.errors import SettingError
from recbole_gmc.settings import key, read
from recbole_gmc.values import read_yaml

PROPERTIES = Path(recbole.__file__).parent / "properties"
SHARED = ("overall.yaml", "dataset/sample.yaml")
PLACES = ("data_path", "checkpoint_dir", "gpu_id")  # paths and numbers are as good as text here
SIZES = ("_size", "n_heads", "num_heads")  # ends of names whose numbers start at 1
LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")
STATES = ("debug", "info", "warning", "error", "critical")
CLIP = ("max_norm", "norm_type", "error_if_nonfinite", "foreach")  # of torch's clip_grad_norm_
_GPU = r"\s*(-?\d+|(GPU|MIG)-[\w/-]+)\s*"  # as in CUDA_VISIBLE_DEVICES
GPUS = re.compile(rf"\s*|{_GPU}(,{_GPU})*")
_END = r"\s*[-+]?(inf|\d+\.?\d*|\.\d+)\s*"
INTERVAL = re.compile(rf"\s*[\[(]{_END},{_END}[\])]\s*")

# `epochs: 300  # (int) ...` is how RecBole explains a setting. Some of these types are wrong: its value's counts, too.
EXPLAINED = re.compile(r"^([A-Za-z_]\w*)\s*:[^#\n]*#\s*\(([^)]*)\)", re.MULTILINE)
KINDS: dict[str, Any] = {
    **{"int": int, "float": float, "str": str, "string": str, "list": list, "dict": dict},
    **{"bool": bool | int, "None": type(None), "optional": type(None)},  # RecBole takes 0 and 1 for False and True
}


@dataclass(frozen=True)
class RecBoleSettings:
    """Those of RecBole's keys that every run uses, with their types and ranges."""

    seed: int = key("seed", 2020, least=0, most=2**32 - 1)
    worker: int = key("worker", 0, least=0)
    epochs: int = key("epochs", 300, least=0)
    train_batch_size: int = key("train_batch_size", 2048, least=1)
    eval_batch_size: int = key("eval_batch_size", 4096, least=1)
    learning_rate: float = key("learning_rate", 1e-3, above=0.0)
    weight_decay: float = key("weight_decay", 0.0, least=0.0)
    eval_step: int = key("eval_step", 1, least=0)
    stopping_step: int = key("stopping_step", 10, least=0)
    learner: str = key("learner", "adam", choices=LEARNERS)
    clip_grad_norm: dict | None = key("clip_grad_norm", None)
    history: int = key("MAX_ITEM_LIST_LENGTH", 50, least=1)
    rm_dup_inter: str | None = key("rm_dup_inter", None, choices=("first", "last"))
    metric_decimal_place: int = key("metric_decimal_place", 4, least=0)
    loss_decimal_place: int = key("loss_decimal_place", 4, least=0)


def seed_of(settings: Mapping[str, Any]) -> int:
    """The seed of a run, or RecBole's own; raises ``SettingError`` for one that cannot be."""
    return read(RecBoleSettings, {name: settings[name] for name in ("seed",) if name in settings}).seed


def names_in(file: Path) -> set[str]:
    """The settings that a property file names."""
    return set(re.findall(r"^([A-Za-z_]\w*)\s*:", file.read_text(encoding="utf-8"), re.MULTILINE))


def arguments() -> frozenset[str]:
    """Every setting that RecBole lists for all its models."""
    lists = (argument_list.general_arguments, argument_list.training_arguments)
    lists += (argument_list.evaluation_arguments, argument_list.dataset_arguments)
    return frozenset(name for names in lists for name in names)


@functools.cache
def known() -> frozenset[str]:
    """Every setting that RecBole or one of its models knows."""
    names = set(arguments())
    files = [*map(PROPERTIES.joinpath, SHARED), *PROPERTIES.glob("model/*.yaml")]
    for file in [*files, *PROPERTIES.glob("quick_start_config/*.yaml")]:
        names |= names_in(file)
    return frozenset(names)


def _files(model: str | None) -> list[Path]:
    files = [PROPERTIES / name for name in (*SHARED, f"model/{model}.yaml")]
    return [file for file in files if file.is_file()]


def defaults(model: str | None) -> dict[str, Any]:
    """What RecBole's property files give: those for all models, then that of its own model of this name."""
    return {name: value for file in _files(model) for name, value in read_yaml(file).items()}


def check(model: str | None, settings: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    """Refuses a value of another type than RecBole's property files give, or out of its range.

    Args:
        model: one of RecBole's own, whose keys are checked, too.
        usual: what settings mean where the user leaves them out.

    Raises:
        SettingError: the first such value, with its key.
    """
    learner = settings.get("learner")
    lower = {"learner": learner.lower()} if isinstance(learner, str) else {}  # as RecBole takes it
    read(RecBoleSettings, {**settings, **lower}, usual)
    read(_typed(model), settings, usual)
    _check_texts(settings)


def _check_texts(settings: Mapping[str, Any]) -> None:
    """What RecBole would pass over in silence or fail on later."""
    intervals = {name: value for name, value in settings.items() if name.endswith("_num_interval") and value}
    ranges = (settings.get("val_interval") or {}).items()
    intervals.update((f"val_interval: {field}", value) for field, value in ranges if isinstance(value, str))
    for name, value in intervals.items():
        if not all(INTERVAL.fullmatch(part) for part in value.split(";")):
            raise SettingError(f"{value!r} is no interval", where=name, mend="Write one such as [5,inf) or (0,1];[3,4]")
    if str(settings.get("state") or "info").lower() not in STATES:
        mend = f"Choose one of: {', '.join(STATES)}"
        raise SettingError(f"{settings['state']!r} is no level of logging", where="state", mend=mend)
    for name, value in settings.items():
        if value == "" and name.endswith(("_FIELD", "_SUFFIX", "_PREFIX", "_separator")):
            raise SettingError("the name is empty", where=name, mend="Leave the key out")
    count = (settings.get("train_neg_sample_args") or {}).get("sample_num", 1)
    if count != "none" and (not isinstance(count, int) or count < 1):
        mend = "Write train_neg_sample_args: {distribution: uniform, sample_num: 1}"
        raise SettingError(f"sample_num {count!r} is out of range", where="train_neg_sample_args", mend=mend)
    _check_clipping(settings.get("clip_grad_norm") or {})
    if not GPUS.fullmatch(str(settings.get("gpu_id") or "")):
        raise SettingError(f"{settings['gpu_id']!r} names no GPU", where="gpu_id", mend="Write gpu_id: 0, or 0,1")


def _check_clipping(clip: Mapping[str, Any]) -> None:
    """A bound below zero would turn every gradient round."""
    mend = "Write clip_grad_norm: {max_norm: 1.0}"
    for part, value in clip.items():
        if part not in CLIP:
            raise SettingError(f"{part!r} is unknown", where="clip_grad_norm", mend=mend)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if part in ("max_norm", "norm_type") and not (number and value > 0):
            raise SettingError(f"{part} {value!r} is no number above 0", where="clip_grad_norm", mend=mend)
    if clip and "max_norm" not in clip:
        raise SettingError("max_norm is missing", where="clip_grad_norm", mend=mend)


@functools.cache
def _typed(model: str | None) -> type:
    """A settings class of those keys in RecBole's property files whose type is known."""
    explained: dict[str, str] = {}
    for file in _files(model):
        explained.update(EXPLAINED.findall(file.read_text(encoding="utf-8")))
    fields: list[tuple[str, Any, Any]] = []
    for name, value in defaults(model).items():
        told = explained.get(name, "")
        kinds = [KINDS.get(part.split()[0]) for part in re.split(r",| or ", told) if part.strip()]
        kinds.append(KINDS["None" if value is None else type(value).__name__])
        sizes = told == "list of int" and name.endswith(SIZES)
        if sizes:
            kinds = [tuple]  # whose elements are checked
        if None not in kinds and name not in PLACES:
            rules = _range(name, value, kinds, sizes)
            fields.append((f"key_{len(fields)}", _union(kinds), key(name, value, **rules)))
    return make_dataclass("RecBoleKeys", fields, frozen=True)


def _union(kinds: list[Any]) -> Any:
    if {str, list, tuple, dict} & set(kinds):
        kinds = [*kinds, type(None)]  # `~` switches such a setting off
    if float in kinds:
        kinds = [kind for kind in kinds if kind is not int]  # a whole number is a float, too
    return functools.reduce(operator.or_, kinds)


def _range(name: str, value: Any, kinds: list[Any], sizes: bool) -> dict[str, Any]:
    if float in kinds:
        return {"least": 0.0, "most": 1.0} if "drop" in name else {}
    if sizes or (int in kinds and name.endswith(SIZES)):
        return {"least": 1}
    return {"least": 0} if kinds == [int, int] and value >= 0 else {}  # a count
