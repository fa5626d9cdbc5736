"""From a run's folder back to something that recommends, in a fresh process, with nothing unpickled."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path
from typing import Any

import torch

from recbole_gmc import registry
from recbole_gmc.model.copies import weights_of_domains
from recbole_gmc.recommender import ListRecommender
from recbole_gmc.settings import DecodeSettings, LoraSettings, SharingSettings, read
from recbole_gmc.train.checkpoint import Checkpoint


def load(folder: str | Path, device: torch.device | str = "cpu") -> ListRecommender:
    """The trained model of a run folder or checkpoint folder, without the data set.

    Raises:
        CheckpointError: the folder is missing, damaged or was made for something else.
    """
    found = Checkpoint(folder)
    if not found.has_ids:
        from recbole_gmc.baselines import transfer_trainer

        return transfer_trainer.load(found, device)
    kind: Any = registry.load(registry.entry(found.config["model"]).model)
    with torch.random.fork_rng(devices=[]):
        network = kind.rebuilt(found.config, found.ids, found.text)
        found.load_into(network)
        states = dict.fromkeys(found.ids.items.domains, network.state_dict())
        if found.adapters is not None:
            lora, sharing = read(LoraSettings, found.config), read(SharingSettings, found.config)
            adapters = weights_of_domains(network, found.ids.items.domains, lora, sharing)
            adapters.load(found.adapters)
            states = {domain: adapters.merged_state(domain) for domain in states}
    return kind.serving(
        network,
        {domain: {name: tensor.to(device) for name, tensor in state.items()} for domain, state in states.items()},
        ids=found.ids,
        text=found.text,
        mix=found.mix,
        max_items=found.config["MAX_ITEM_LIST_LENGTH"],
        decode=read(DecodeSettings, found.config),
        device=device,
    )


def load_data_and_model(folder: str | Path) -> tuple[Any, ...]:
    """RecBole's function of that name for a checkpoint folder: config, model, dataset, and the three loaders."""
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, init_logger, init_seed

    from recbole_gmc.train import config_json, run_files

    found = Checkpoint(folder)
    config = config_json.from_json(found.here())
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    getLogger().info(config)
    dataset = create_dataset(config)
    getLogger().info(dataset)
    loaders = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, loaders[0]._dataset).to(config["device"])
    if found.has_ids:
        run_files.put(found, model)
    else:
        from recbole_gmc.baselines import transfer_trainer

        transfer_trainer.put(found, model)
    return config, model, dataset, *loaders
