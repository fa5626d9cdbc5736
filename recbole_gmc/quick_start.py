"""The quick start: GMC on films, beside popularity and SASRec on the same training rows."""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from recbole.config import Config
from texttable import Texttable

from recbole_gmc import launch, lookup, quick, values
from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.evaluate import dense_lists, per_user
from recbole_gmc.evaluate.popularity import popular
from recbole_gmc.evaluate.topk import TopKTable
from recbole_gmc.flags import only_program_name
from recbole_gmc.running import domain_run

FILE = "properties/quick_start.yaml"
SASREC = "properties/quick_start_sasrec.yaml"
K = 10


def quick_start(flags: Mapping[str, Any]) -> dict[str, TopKTable]:
    """Runs GMC, then SASRec a domain and popularity, and prints them side by side.

    Args:
        flags: settings that change those of ``properties/quick_start.yaml``, for all models.

    Returns:
        Model -> its test lists.
    """
    changed = values.parse_all(dict(flags))
    settings = {**lookup.read_files([lookup.find_yaml(FILE)]), **changed}
    model, dataset = settings.pop("model"), settings.pop("dataset")
    folder = quick.run_folder(settings, model, dataset)
    settings["run_dir"] = str(folder)
    with only_program_name():
        launch.run_recbole(model, dataset, None, dict(settings))
        config = Config(model, dataset, None, dict(settings))
    data = GMCDataset(config)
    train, _, test = data.build()
    tables = {"popularity": _popularity(data, train, test, settings)}
    runs = quick.run("SASRec", dataset, [], _for_sasrec(settings, changed, folder))
    tables["SASRec"] = domain_run.union({domain: run.table for domain, run in runs.items()})
    tables[model] = TopKTable.read(folder / "topk.tsv", data.items)
    getLogger().info(f"All models on the same training rows and all test users:\n{side_by_side(tables)}")
    return tables


def _popularity(data: GMCDataset, train: Any, test: Any, settings: Mapping[str, Any]) -> TopKTable:
    rows, held_out = SequenceRows.of(train), SequenceRows.of(test)
    if settings.get("max_prefixes"):
        rows = rows.last_prefixes(settings["max_prefixes"])
    return popular(data.items, rows, held_out, tuple(data.original_user_token(held_out.user)), dense_lists.WIDTH)


def _for_sasrec(settings: Mapping[str, Any], changed: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """SASRec's own settings on the same rows and histories; a change of ``epochs`` reaches it, too."""
    shared = "seed max_prefixes MAX_ITEM_LIST_LENGTH domains data_path cache_dir show_progress gpu_id use_gpu state "
    filters = "user_inter_num_interval item_inter_num_interval val_interval rm_dup_inter"
    same = {key: settings[key] for key in (shared + filters).split() if key in settings}
    limits = {"epochs": changed["epochs"]} if "epochs" in changed else {}
    return {**lookup.read_files(SASREC), **same, **limits, "run_dir": str(folder / "SASRec")}


def side_by_side(tables: Mapping[str, TopKTable]) -> str:
    """NDCG@10 of each model, a row a domain, and what the last gains on the first with its paired standard error."""
    names = list(tables)
    first = tables[names[0]]
    drawn = Texttable(max_width=0)
    drawn.set_deco(Texttable.HEADER)
    drawn.set_cols_dtype(["t"] * (len(names) + 3))
    drawn.set_cols_align(["l"] + ["r"] * (len(names) + 2))
    drawn.header([f"ndcg@{K}", "users", *names, f"{names[-1]} - {names[0]}"])
    groups = [(name, first.domain == i) for i, name in enumerate(first.items.domains)]
    scores = {name: per_user.ndcg(table.rank, K) for name, table in tables.items()}
    order = {name: _by_user(table) for name, table in tables.items()}
    for label, mine in [*groups, ("average", np.ones(len(first), bool))]:
        keep = mine[order[names[0]]]
        values_ = {name: scores[name][order[name]][keep] for name in names}
        gain = values_[names[-1]] - values_[names[0]]
        error = f"{gain.mean():+.4f} ± {per_user.standard_error(gain):.4f}"
        drawn.add_row([label, f"{keep.sum():,}", *(f"{values_[name].mean():.4f}" for name in names), error])
    return drawn.draw()


def _by_user(table: TopKTable) -> np.ndarray:
    """The order in which every model's rows name the same users."""
    return np.lexsort((np.array(table.user), table.domain))
