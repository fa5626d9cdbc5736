"""A training epoch of GMC as its trainer runs it, and the share of it that is not the network's or the optimiser's."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.trainer import Trainer
from recbole.utils import get_model, get_trainer, init_seed

from recbole_gmc import logs
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.flags import only_program_name
from recbole_gmc.products import PRECISIONS
from recbole_gmc.speed.cases import CODES, LEVELS
from recbole_gmc.speed.measure import SpeedOptions, Stopwatch, timed
from recbole_gmc.tokenizer.semantic_ids import SemanticIds
from recbole_gmc.train.stage import Stage
from recbole_gmc.train.trainer import GMCTrainer

DOMAIN = "synthetic"
ITEMS, BATCH = 4344, 256
USERS = 1040  # an eighth of Scientific's, so that an epoch is short; what it costs once weighs eight times as much


def outside(lengths: Sequence[int], precision: str, options: SpeedOptions) -> dict[str, float]:
    """Trains epochs of the unified stage: of the whole time, what is not forward, backward, clipping and optimiser.

    The rest is: choosing rows, turning them into packed tokens, RecBole's loop, log and TensorBoard, and our checks.

    Args:
        lengths: how many training rows have 1, 2, ... items in their history.
        precision: ``fp32`` or ``bf16``.

    Returns:
        ``share`` of the time; ``rows`` of an epoch; ``samples`` a second of the whole epoch.
    """
    users, epochs = (12, 1) if options.tiny else (USERS, 2)
    with TemporaryDirectory() as folder, _log_in(Path(folder)), only_program_name():
        _write_domain(Path(folder), lengths, users, options.seed)
        trainer, rows = _trainer(Path(folder), precision, options)

        def epoch() -> None:
            Trainer.fit(trainer, rows, saved=False)

        trainer._enter(Stage.unified(trainer.config, trainer.settings), len(rows))
        epoch()  # first calls allocate
        network = trainer.model._packed(PRECISIONS[precision])
        with Stopwatch(options.device) as inside:
            inside.add(network, "backward")
            inside.leave_out(network, "_chunks")
            inside.add(trainer, "update")
            seconds = sum(timed(epoch, options.device) for _ in range(epochs))
        trainer.tensorboard.close()
    return {"share": 1 - inside.seconds / seconds, "rows": len(rows), "samples": epochs * len(rows) / seconds}


def _trainer(folder: Path, precision: str, options: SpeedOptions) -> tuple[GMCTrainer, SequenceRows]:
    """A trainer before its first epoch, its items with random IDs, and the training rows."""
    settings: dict[str, Any] = {
        "data_path": str(folder),
        "run_dir": str(folder / "run"),
        "cache_dir": str(folder / "cache"),
        "domains": [DOMAIN],
        "seed": options.seed,
        "precision": precision,
        "use_gpu": options.device != "cpu",
        "gpu_id": str(torch.device(options.device).index or 0),
        "epochs": 1,
        "train_batch_size": 16 if options.tiny else BATCH,
        "show_progress": False,
    }
    if options.tiny:
        settings |= {"num_encoder_layers": 1, "num_decoder_layers": 1, "d_model": 16, "d_ff": 16, "num_heads": 2}
    config = Config("GMC", DOMAIN, config_dict=settings)
    init_seed(config["seed"], config["reproducibility"])
    train = data_preparation(config, create_dataset(config))[0]._dataset
    model = get_model("GMC")(config, train).to(config["device"])
    draw = np.random.default_rng(options.seed)
    keys = draw.choice(CODES**LEVELS, len(model.items), replace=False, shuffle=False)
    paths = np.stack(np.unravel_index(keys, (CODES,) * LEVELS), axis=1)
    model.set_inputs(SemanticIds(model.items, paths, CODES))
    trainer = get_trainer(config["MODEL_TYPE"], "GMC")(config, model)
    return trainer, SequenceRows.of(train).to(config["device"])


def _write_domain(root: Path, lengths: Sequence[int], users: int, seed: int) -> None:
    """A domain whose training rows have histories in these proportions, items drawn at random.

    A user of n interactions has training rows with 1 to n - 3 items of history: the last two interactions are held out,
    and the first row needs one item before its target. The last of ``lengths`` counts all longer histories, too.
    """
    draw = random.Random(seed)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(users):
        at_least = (user + 0.5) / users * lengths[0]
        rows = sum(count > at_least for count in lengths[:-1])
        if rows == len(lengths) - 1:
            rows += round(lengths[-1] / lengths[-2])
        lines += [f"{user}\t{draw.randrange(ITEMS)}\t{time}" for time in range(rows + 3)]
    folder = root / DOMAIN
    folder.mkdir()
    (folder / f"{DOMAIN}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = [f"{item}\titem {item}" for item in range(ITEMS)]
    (folder / f"{DOMAIN}.item").write_text("\n".join(["item_id:token\ttitle:token_seq", *table]) + "\n")


@contextmanager
def _log_in(folder: Path) -> Iterator[None]:
    """Logs go to the run's folder only, as in a run that was started in the background; afterwards as before."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers = []
    root.setLevel(logging.INFO)
    file = logs.write_to(folder / "run")
    try:
        yield
    finally:
        file.close()
        root.handlers, root.level = before, level
