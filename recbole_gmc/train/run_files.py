"""A run's folder: what is written there, and how a model is read back from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole.config import Config

from recbole_gmc.data import atomic
from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.errors import CheckpointError
from recbole_gmc.evaluate import results
from recbole_gmc.evaluate.topk import LISTS, VALID_LISTS, TopKTable
from recbole_gmc.files import hash_of, telling_where, write_json
from recbole_gmc.items import ItemIndex
from recbole_gmc.logs import TABLES
from recbole_gmc.model.copies import DomainCopies
from recbole_gmc.model.generative import GenerativeRecommender
from recbole_gmc.tokenizer import residuals
from recbole_gmc.tokenizer.semantic_ids import SemanticIds
from recbole_gmc.train.checkpoint import Checkpoint
from recbole_gmc.train.config_json import to_json
from recbole_gmc.train.state import RunRecord

AGAIN = "The checkpoint is whole: free some space, then --resume tests again"


def input_hashes(dataset: GMCDataset) -> dict[str, str]:
    """``<domain>.inter`` and ``<domain>.item`` -> SHA-256 of the file."""
    return atomic.hash_domains(Path(dataset.dataset_path).parent, dataset.domains)


def refuse_changed(dataset: GMCDataset, before: Mapping[str, str]) -> None:
    """Raises CheckpointError if a file of the data is not the one that a resumed run began with."""
    atomic.refuse_changed(Path(dataset.dataset_path).parent, dataset.domains, before)


def write_residuals(folder: Path, found: residuals.Residuals) -> None:
    """What a report shows of the tokenizer's levels; the network itself is not kept."""
    with telling_where(folder, "Free some space, or name another run_dir"):
        residuals.write(folder / residuals.NAME, found)


def refuse_other_items(found: Checkpoint, here: ItemIndex) -> None:
    """Raises CheckpointError if a checkpoint is for other items than these."""
    there = found.items
    if there.fingerprint != here.fingerprint:
        raise CheckpointError(
            f"it was made for other items ({len(there):,} in {', '.join(there.domains)}; here {len(here):,} in "
            f"{', '.join(here.domains)})",
            str(found.folder),
            "Use the same data and domains",
        )


def put(found: Checkpoint, model: GenerativeRecommender) -> None:
    """Loads a checkpoint's IDs, unified weights and adapters into a model made for the same items.

    Raises:
        CheckpointError: the checkpoint is for other items, its adapters for other weights, or its IDs are not those
            that the model's adapters were trained on.
    """
    refuse_other_items(found, model.items)
    if model.adapters is None:
        model.set_inputs(found.ids, found.text)
        found.load_into(model.network)
    else:  # they hold the network, which must stay the one that it is
        if found.ids.fingerprint != model.semantic_ids.fingerprint:
            raise CheckpointError("it has other semantic IDs", str(found.folder), "Load it into a new model")
        model.adapters.load_backbone(found.weights())
    model.mix = found.mix
    if found.adapters is not None:
        (model.adapters or model.add_adapters()).load(found.adapters)
    elif model.adapters is not None:  # those of what was loaded before
        for domain in model.adapters.domains:
            model.adapters.restore(domain, model.adapters.identity(domain))


def write_ids(folder: Path, ids: SemanticIds) -> None:
    """semantic_ids/ in the run's folder."""
    with telling_where(folder, AGAIN):
        ids.export(folder / "semantic_ids")


def write_valid(folder: Path, table: TopKTable) -> None:
    """valid_topk.tsv: the lists of all validation users by the weights that are tested, for choices between runs."""
    with telling_where(folder, AGAIN):
        table.write(folder / VALID_LISTS)


def publish(folder: Path, table: TopKTable, report: Mapping[str, Any]) -> None:
    """Writes topk.tsv and result.json into the run's folder, and shows the table on the terminal."""
    with telling_where(folder, AGAIN):
        folder.mkdir(parents=True, exist_ok=True)
        table.write(folder / LISTS)
        write_json(folder / "result.json", dict(report))
    TABLES.info(results.told(report, folder))


def summary(
    config: Config,
    record: RunRecord,
    table: TopKTable,
    result: Mapping[str, float],
    weights: str,
    **more: Any,
) -> dict[str, Any]:
    """What result.json says of a run in stages.

    Args:
        weights: one hash over all weights.
        more: what the record does not know.
    """
    return {
        **results.head(config["model"], config["dataset"], config["seed"], table, result),
        "budget_limited": record.limited,
        "certified": results.certified(table),
        **more,
        "seconds": record.seconds,
        "reused": record.reused,
        "epochs": {stage: sum(e["stage"] == stage and "loss" in e for e in record.curve) for stage in record.done},
        "curve": record.curve,
        "hashes": {**record.inputs, **results.hashes(table), "weights": weights},
        "versions": results.versions(),
        "settings": to_json(config),
    }


def parameters(model: GenerativeRecommender) -> dict[str, Any]:
    """How many parameters the plain network has, and what comes with each domain."""
    distinct = {tensor.data_ptr(): tensor for tensor in model.plain_state().values()}  # tied ones count once
    whole = sum(tensor.numel() for tensor in distinct.values())
    if isinstance(model.adapters, DomainCopies):
        return {"model": whole, "adapter": 0, "domains": dict.fromkeys(model.items.domains, whole)}
    return {"model": whole, "adapter": model.adapters.parameters_per_adapter if model.adapters is not None else 0}


def hash_of_weights(states: Mapping[str, Mapping[str, Any]]) -> str:
    """One hash over the weights of every domain."""
    parts: list[Any] = []
    for domain, state in states.items():
        for name, tensor in sorted(state.items()):
            parts += [domain, name, tensor.detach().cpu().numpy()]
    return hash_of(*parts)
