"""Pre-training on all domains, then fine-tuning once a domain, in one ``fit``; and the checkpoint of such a model."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from recbole.config import Config
from recbole.utils import set_color
from recbole_gmc.baselines.dense import DenseRecommender
from recbole_gmc.baselines.transfer import Inputs, TransferModel
from torch import Tensor, nn

from recbole_gmc import registry
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.evaluate.topk import TopKTable
from recbole_gmc.files import write_json
from recbole_gmc.items import ItemIndex
from recbole_gmc.places import run_dir
from recbole_gmc.settings import DecodeSettings, read
from recbole_gmc.train import checkpoint, run_files, writing
from recbole_gmc.train.checkpoint import Checkpoint
from recbole_gmc.train.config_json import to_json
from recbole_gmc.train.ranking_trainer import Result
from recbole_gmc.train.stages import StageTrainer
from recbole_gmc.train.state import Progress, seed_of, under
from recbole_gmc.train.writing import Constant

FACTS = "inputs.json"
FEATURES = "inputs.safetensors"


class TransferTrainer(StageTrainer):
    """Stage ``pretrain``, then the stages of each domain, each from the same pre-trained weights."""

    model: TransferModel

    def __init__(self, config: Config, model: TransferModel) -> None:
        if not config["resume"]:
            model.refuse_unfit(config, model.items)  # before RecBole's Trainer makes the run's folder
        super().__init__(config, model)

    def _prepare(self, dataset: Any, train: SequenceRows, watched: SequenceRows | None, show_progress: bool) -> None:
        if self.model.label:
            self.logger.info(f"{self.config['model']} in a {self.model.label}")
        if self.record.inputs:  # resumed: the inputs came with the checkpoint
            run_files.refuse_changed(dataset, self.record.inputs)
            return
        started = perf_counter()
        made = self.model.make_inputs(self.config, dataset, train, show_progress)
        self._seed("network")
        self.model.set_inputs(made)
        self.model.start_weights()
        self.record.tokenizer = dict(made.about)
        self.record.inputs = {"items": dataset.items.fingerprint, **made.hashes, **run_files.input_hashes(dataset)}
        self.record.spend("inputs", perf_counter() - started)
        self.logger.info(set_color("Network", "blue") + f": {_count(self.model.pretrained):,} parameters")

    def _stages(
        self, train: SequenceRows, valid: SequenceRows | None, watched: SequenceRows | None, loop: dict[str, Any]
    ) -> None:
        domains, whole = self.model.items.domains, self.budget
        if self.model.transfer.epochs:
            stage = self.model.pretrain_stage()
            parts = 2 if self.config["epochs"] else 1  # fine-tuning gets the other half
            self.budget = self._share(whole, parts, stage.name)
            self._run(stage, train, watched, loop)
        if not self.config["epochs"]:
            return
        for position, domain in enumerate(domains):
            own = self._share(whole, len(domains) - position, domain)
            self._seed(f"copy:{domain}")
            self.model.add_domain(domain)
            # A domain without validation users is trained as RecBole does without validation data: all epochs.
            seen = (watched and watched.of_domain(position)) or None
            stages = self.model.stages(domain)
            for number, stage in enumerate(stages):
                self.budget = self._share(own, len(stages) - number, stage.name)
                self._run(stage, train.of_domain(position), seen, loop)

    def _network(self) -> nn.Module:
        return self.model.pretrained if self.stage.domain is None else self.model.of_domain(self.stage.domain)

    def _trained(self) -> list[nn.Parameter]:
        return self.model.trained(self.stage)

    def _rows_an_epoch(self, train: SequenceRows) -> int:
        return self.model.rows_an_epoch(train, self.stage)

    def _enter(self, stage: Any, rows: int) -> None:
        super()._enter(stage, rows)
        chosen = {id(parameter) for parameter in self._trained()}
        for parameter in self.model.parameters():
            parameter.requires_grad_(id(parameter) in chosen)
        self.model.start_stage(stage)

    def _begin(self, watched: SequenceRows | None) -> None:
        """What the pre-trained weights give without fine-tuning is measured, and is a candidate."""
        if self.stage.domain is not None and self.stage.eval_step and watched is not None and self.start_epoch == 0:
            self.best_valid_score, self.best_valid_result = self._valid_epoch(watched)

    def _end(self, every: SequenceRows | None) -> None:
        if about := self.model.finish_stage(self.stage):
            self.record.tokenizer[self.stage.name] = about

    def _train_epoch(
        self, train_data: SequenceRows, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float:
        # A generator of its own for each epoch: a resumed run draws the same rows.
        draw = torch.Generator().manual_seed(seed_of(self.config["seed"], self.stage.name, epoch_idx))
        rows = self.model.start_epoch(train_data, self.stage, draw)
        return super()._train_epoch(rows, epoch_idx, loss_func, show_progress)

    def backward(self, rows: SequenceRows) -> Tensor:
        total = torch.zeros((), device=self.device)
        for part in self.model.parts(rows, self.stage):
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                loss = self.model.loss(part, self.stage) * (len(part) / len(rows))
            loss.backward()
            total += loss.detach()
        return total

    def snapshot(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._network().state_dict().items()}

    def restore(self, weights: dict[str, Tensor]) -> None:
        self._network().load_state_dict(weights)

    # ---- files ---------------------------------------------------------------------------------------------------

    def _save(self, progress: Progress) -> None:
        model = self.model
        writing.point(run_dir(self.config), Path(self.saved_model_file))

        def parts(work: Path) -> None:
            write_json(work / checkpoint.ITEMS, {domain: list(names) for domain, names in model.items.tokens.items()})
            write_json(work / FACTS, dict(model.inputs.facts))

        writing.write(
            Path(self.saved_model_file),
            config=to_json(self.config),
            weights=_weights(model),
            progress=progress,
            parts=parts,
            constants={FEATURES: Constant(model.inputs.fingerprint, lambda: _tensors(model.inputs, model.items))},
        )

    def _put(self, found: Checkpoint) -> None:
        put(found, self.model)

    def _write_results(self, table: TopKTable, result: Result, rows: SequenceRows) -> None:
        model = self.model
        networks = {domain: model.of_domain(domain) for domain in model.items.domains}
        parameters = {
            "model": _count(model.pretrained),
            "adapter": 0,
            "domains": {domain: _count(network) for domain, network in networks.items()},
        }
        weights = run_files.hash_of_weights({domain: network.state_dict() for domain, network in networks.items()})
        about = {"inputs": self.record.tokenizer} if self.record.tokenizer else {}
        self._publish(table, result, weights, parameters=parameters, **about)


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _weights(model: TransferModel) -> dict[str, Tensor]:
    return {
        name: tensor for name, tensor in model.state_dict().items() if name.split(".")[0] in ("pretrained", "tuned")
    }


def _tensors(inputs: Inputs, items: ItemIndex) -> dict[str, Tensor]:
    own = {f"domain.{items.domains.index(domain)}": part for domain, part in inputs.domains.items()}
    return {"items": inputs.items, **own, **{f"more.{name}": part for name, part in inputs.more.items()}}


def _inputs(found: Checkpoint) -> Inputs:
    tensors, domains = found.tensors(FEATURES), found.items.domains
    own = {domains[int(position)]: part for position, part in under(tensors, "domain.").items()}
    return Inputs(tensors["items"], own, under(tensors, "more."), found.json(FACTS))


def put(found: Checkpoint, model: TransferModel) -> None:
    """Loads a checkpoint's inputs and weights into a model made for the same items.

    Raises:
        CheckpointError: the checkpoint is for other items or another network.
    """
    run_files.refuse_other_items(found, model.items)
    weights = found.weights()
    model.set_inputs(_inputs(found))
    for position in sorted({int(name.split(".")[1]) for name in weights if name.startswith("tuned.")}):
        model.add_domain(model.items.domains[position])
    found.load_into(model, weights)


def load(found: Checkpoint, device: torch.device | str = "cpu") -> DenseRecommender:
    """What the trained model of a checkpoint recommends, without its data set."""
    kind: Any = registry.load(registry.entry(found.config["model"]).model)
    inputs, items, weights = _inputs(found), found.items, found.weights()
    networks = {}
    with torch.random.fork_rng(devices=[]):
        pretrained = kind.network(found.config, inputs)
        found.load_into(pretrained, under(weights, "pretrained."))
        for position, domain in enumerate(items.domains):
            network, features = pretrained, inputs.items[items.rows(domain)]
            if own := under(weights, f"tuned.{position}."):
                features = inputs.of_domain(domain, items)
                network = kind.network_of_domain(found.config, pretrained, features)
                found.load_into(network, own)
            networks[domain] = (network.to(device).eval(), features.to(device))
    decode, max_items = read(DecodeSettings, found.config), found.config["MAX_ITEM_LIST_LENGTH"]
    return DenseRecommender(items, networks, max_items=max_items, decode=decode)
