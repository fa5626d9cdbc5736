"""RecBole's entry points, defined here so that a spawned process that looks one up imports the plugin first."""

from __future__ import annotations

from typing import Any

from recbole.quick_start import quick_start


def run_recbole(
    model: Any = None,
    dataset: str | None = None,
    config_file_list: list | None = None,
    config_dict: dict | None = None,
    saved: bool = True,
    queue: Any = None,
) -> dict[str, Any]:
    """RecBole's ``run_recbole``."""
    return quick_start.run_recbole(model, dataset, config_file_list, config_dict, saved, queue)


def run_recboles(rank: int, *args: Any) -> None:
    """RecBole's ``run_recboles``: one process of a run in several; the last argument holds the keyword arguments."""
    *positional, keywords = args
    settings = dict(keywords.get("config_dict") or {}, local_rank=rank)
    run_recbole(*positional[:3], **{**keywords, "config_dict": settings})


def run(*args: Any, **kwargs: Any) -> Any:
    """RecBole's ``run``."""
    return quick_start.run(*args, **kwargs)


def objective_function(
    config_dict: dict | None = None, config_file_list: list | None = None, saved: bool = True
) -> dict[str, Any]:
    """RecBole's ``objective_function``, for ``HyperTuning``."""
    return original_objective(config_dict, config_file_list, saved)


original_objective = quick_start.objective_function
