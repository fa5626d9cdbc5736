"""Which settings there are, and whether those of a run make sense, before any work starts."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from recbole_gmc import lookup, recbole_keys, registry
from recbole_gmc.errors import SettingError
from recbole_gmc.files import refuse_unwritable, safe_name
from recbole_gmc.settings import (
    GROUPS,
    DataSettings,
    DecodeSettings,
    LoraSettings,
    SharingSettings,
    T5Settings,
    TrainSettings,
    keys_of,
    read,
)

FINISHED = "finished_domains"  # domain -> a run with equal settings that has it, for a model run once a domain
RUN_KEYS = frozenset(
    "model dataset config_files config_file_list run_dir cache_dir resume embedded_data worker encoding "
    "nproc ip port world_size group_offset offset local_rank gpu_id device".split()
) | {FINISHED}
METRICS = ("recall", "ndcg", "mrr", "hit", "precision", "map")
LEAVE_ONE_OUT = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}

# Keys of RecBole that mean something to its own models alone: users are ranked in groups of ``decode_batch_users``,
# rows stay on the device, and of columns only users, items and times are read, and those of ``text_fields``.
NOT_READ = frozenset("eval_batch_size worker seq_len unused_col load_col unload_col".split())

# Keys of RecBole that a run of ours cannot honour: the values that mean "not used", and the reason.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "benchmark_filename": ((None,), "the split is leave-one-out over whole histories, made by the plugin"),
    "additional_feat_suffix": ((None, []), "domains are .inter and .item"),
    "train_neg_sample_args": ((None,), "the loss is a softmax over codes, without negatives"),
    "learner": ((None, "adam", "adamw", "sgd", "adagrad", "rmsprop"), "no gradient here is sparse"),
    "loss_type": ((None, "CE"), "the loss is a softmax over codes"),
    "enable_scaler": ((None, False), "mixed precision is set by `precision`, and bf16 needs no scaling"),
    "transform": ((None,), "histories are used as they are"),
    "repeatable": ((None, True), "sequential models rank all items, repeats included"),
    "save_dataset": ((None, False), "the plugin keeps no pickles; its cache does the work"),
    "dataset_save_path": ((None,), "the plugin reads no pickles; its cache does the work"),
    "save_dataloaders": ((None, False), "the plugin keeps no pickles; its cache does the work"),
    "dataloaders_save_path": ((None,), "the plugin reads no pickles; its cache does the work"),
    "threshold": ((None,), "every interaction counts, whatever its rating"),
    "numerical_features": ((None, []), "only users, items and times are read"),
    "alias_of_user_id": ((None,), "only users, items and times are read"),
    "alias_of_item_id": ((None,), "only users, items and times are read"),
    "preload_weight": ((None,), "only users, items and times are read"),
    "discretization": ((None,), "only users, items and times are read"),
    "encoding": ((None, "utf-8", "utf8", "UTF-8"), "files are read as UTF-8"),
    "device": ((None,), "it follows from use_gpu and gpu_id"),
}


def known_keys() -> frozenset[str]:
    """Every key that means something to RecBole, to a registered model or to a run."""
    known = set(recbole_keys.known() | RUN_KEYS)
    for group in GROUPS:
        known |= set(keys_of(group))
    for entry in registry.entries().values():
        if entry.properties is not None and entry.properties.is_file():
            known |= recbole_keys.names_in(entry.properties)
    return frozenset(known)


def unread(model: str, given: Iterable[str]) -> tuple[str, ...]:
    """The keys among those given that other models read, but not this one; of RecBole's own models only keys of ours.

    RecBole's property files leave out some of what its models read, so nothing is said of its keys there.
    """
    entry = registry.entry(model)
    if entry is None:
        own = recbole_keys.known() | {"budget_minutes", "cpu_threads", "max_prefixes", "domains", "text_fields"}
        if file := lookup.packaged(f"properties/benchmark/{model}.yaml"):  # S3Rec's first stage has keys of its own
            own |= recbole_keys.names_in(file)
    elif entry.properties is not None and entry.properties.is_file():
        own = recbole_keys.defaults(None).keys() | recbole_keys.arguments() | recbole_keys.names_in(entry.properties)
        own = (own | keys_of(DataSettings).keys()) - NOT_READ
    else:
        return ()
    return tuple(sorted((known_keys() & set(given)) - own - (RUN_KEYS - NOT_READ)))


def nearest(word: str, known: Iterable[str]) -> str:
    """`` (nearest: 'x')`` with the nearest of the known words, or nothing."""
    folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.6)
    return f" (nearest: {folded[close[0]]!r})" if close else ""


def refuse_unknown(given: Iterable[str], more: Iterable[str] = (), near: Iterable[str] = ()) -> None:
    """Raises ``SettingError`` for the first key that nothing knows, with the nearest one, or model, that is known.

    Args:
        more: keys that are known here beside those of a run.
        near: words that are no keys, but may have been meant.
    """
    known = known_keys() | set(more)
    for name in given:
        if name not in known:
            close = known | registry.all_names() | set(near)  # a model may have a section in a file
            raise SettingError(
                f"unknown setting{nearest(str(name), close)}",
                where=str(name),
                mend="`recbole-gmc models` lists the property files, in which every key is explained",
            )


def check(
    settings: Mapping[str, Any], dataset: str, groups: Iterable[type] = (), usual: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Checks the merged settings of a run of a registered model, and fills in what RecBole would complete otherwise.

    Args:
        groups: settings classes of the model's own.
        usual: what settings mean where the user leaves them out.

    Raises:
        SettingError: a value of the wrong type or range, or one that the plugin cannot honour, with the reason.
    """
    settings = dict(settings)
    if isinstance(settings.get("learner"), str):
        settings["learner"] = settings["learner"].lower()  # as RecBole takes it
    safe_name(dataset, "dataset")
    if isinstance(settings.get("domains"), str):
        settings["domains"] = [settings["domains"]]
    for group in (*GROUPS, *groups):
        read(group, settings, usual or {})
    recbole_keys.check(None, settings, usual or {})
    _check_places(settings)
    if settings.get("enable_amp") and read(TrainSettings, settings, usual or {}).precision == "fp32":
        what = "asks for mixed precision, but precision is fp32"
        raise SettingError(what, where="enable_amp", mend="Set precision: bf16 instead")
    _check_adapted(read(LoraSettings, settings), read(T5Settings, settings))
    if settings.get("semantic_ids_path") is not None and not read(SharingSettings, settings).tokenizer:
        what = "False makes a tokenizer a domain, but the IDs are imported from semantic_ids_path"
        raise SettingError(what, where="shared_tokenizer", mend="Leave one of the two out")
    _check_wandb(settings)
    _refuse_unusable(settings, REFUSED)
    if (settings.get("nproc") or 1) != 1:
        raise SettingError("more than one process is not supported", where="nproc", mend="Leave the key out")
    settings["eval_args"] = protocol(settings.get("eval_args"))
    _check_metrics(settings, read(DecodeSettings, settings).beam_size)
    return settings


def check_single(model: str, settings: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    """Checks the merged settings of one of RecBole's own models that our command line runs once a domain.

    Args:
        usual: what settings mean where the user leaves them out.

    Raises:
        SettingError: as ``check``; what a model's own keys may be is known from RecBole's property files.
    """
    recbole_keys.check(model, settings, usual)
    read(TrainSettings, settings, usual)
    read(DataSettings, settings, usual)
    _check_places(settings)
    names = ("benchmark_filename", "encoding", "device", *(name for name in REFUSED if "save" in name))
    _check_wandb(settings)
    _refuse_unusable(settings, names)
    protocol(settings.get("eval_args"))
    _check_metrics(settings)


def refuse_absent_gpu(given: Mapping[str, Any]) -> None:
    """Raises ``SettingError`` if a user asks for a GPU where there is none; RecBole would take the CPU in silence."""
    if not recbole_keys.GPUS.fullmatch(str(given.get("gpu_id") or "")):
        return  # refused for that
    asked = next((name for name in ("use_gpu", "gpu_id") if given.get(name) not in (None, "", False)), None)
    if asked and given.get("use_gpu") is not False and not torch.cuda.is_available():
        raise SettingError(f"{given[asked]!r}, but torch finds no GPU", asked, "Leave the key out to use the CPU")


def _check_wandb(settings: Mapping[str, Any]) -> None:
    if settings.get("log_wandb") and importlib.util.find_spec("wandb") is None:
        raise SettingError("wandb is not installed", where="log_wandb", mend="pip install wandb, or leave the key out")


def _refuse_unusable(settings: Mapping[str, Any], names: Iterable[str]) -> None:
    for name in names:
        unused, reason = REFUSED[name]
        if not any(settings.get(name) is value or settings.get(name) == value for value in unused):
            raise SettingError(f"{settings[name]!r} cannot be used: {reason}", where=name, mend="Leave the key out")


def _check_places(settings: Mapping[str, Any]) -> None:
    """Places are paths, and those that a run is told to write to are folders, or can be."""
    lookup.place(settings, "data_path")
    for name in ("run_dir", "cache_dir", "checkpoint_dir"):
        if (place := lookup.place(settings, name)) is not None:
            refuse_unwritable(place.expanduser(), name, "Name another place, or leave the key out")


def _check_adapted(lora: LoraSettings, network: T5Settings) -> None:
    """Adapters are asked for on matrices that this T5 has; peft would pass over the others."""
    lacking = {"relu": ("wi_0", "wi_1"), "gated-gelu": ("wi",)}[network.activation]
    for name in lora.target_modules if lora.enabled else ():
        if name in lacking:
            what = f"{name!r} is no matrix of a T5 with feed_forward_proj {network.activation}"
            mend = f"Leave it out, or take {'wi' if network.activation == 'relu' else 'wi_0 and wi_1'}"
            raise SettingError(what, "lora_target_modules", mend)


def protocol(given: Any) -> dict[str, Any]:
    """The whole of ``eval_args``, of which the parts given may only say what holds anyway.

    Raises:
        SettingError: another split, order or way of ranking.
    """
    mend = (
        "Leave the key out: it is leave-one-out in order of time (split: {LS: valid_and_test}, order: TO), mode: full"
    )
    if given is not None and not isinstance(given, dict):
        raise SettingError(f"{given!r} is not a mapping", where="eval_args", mend=mend)
    for part, value in (given or {}).items():
        full = part == "mode" and isinstance(value, dict) and set(value) <= {"valid", "test"}
        value = "full" if full and set(value.values()) == {"full"} else value
        allowed = {"group_by": ("user", "none", None)}.get(part, (LEAVE_ONE_OUT.get(part),))
        if part not in LEAVE_ONE_OUT or value not in allowed:
            raise SettingError(f"{part}: {value!r} is not the protocol of this model", where="eval_args", mend=mend)
    return dict(LEAVE_ONE_OUT)


def _check_metrics(settings: Mapping[str, Any], beam: int | None = None) -> None:
    metrics = settings.get("metrics") or []
    metrics = [metrics] if isinstance(metrics, str) else metrics
    for metric in metrics if isinstance(metrics, list) else [metrics]:
        if str(metric).lower() not in METRICS:
            mend = f"Choose from {', '.join(METRICS)}"
            raise SettingError(f"{metric!r} is not computed from top-k lists", where="metrics", mend=mend)
    topk = settings.get("topk")
    topk = topk if isinstance(topk, list) and topk else [topk]
    for k in topk:
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise SettingError(f"{k!r} is not a whole number from 1", where="topk", mend="Write topk: [5, 10]")
    if max(topk) > (beam or max(topk)):
        raise SettingError(
            f"{max(topk)} is above beam_size {beam}: a list cannot be longer than the beam",
            where="topk",
            mend=f"Set beam_size: {max(topk)} or a smaller topk",
        )
    metric, _, k = str(settings.get("valid_metric")).partition("@")
    if metric.lower() not in [m.lower() for m in metrics] or k not in map(str, topk):
        raise SettingError(
            f"{settings.get('valid_metric')!r} is not among the metrics {metrics} at {topk}",
            where="valid_metric",
            mend="Choose one that is computed, such as NDCG@10",
        )
