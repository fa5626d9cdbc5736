"""A dense network pre-trained on the mixture of all domains, then fine-tuned once a domain: what its models share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole_gmc.baselines.dense import DenseNetwork, DenseRecommender
from torch import Tensor, nn

from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.files import hash_of
from recbole_gmc.items import ItemIndex
from recbole_gmc.model.of_domains import DomainsRecommender
from recbole_gmc.settings import Lookup, TrainSettings, key, read
from recbole_gmc.train.stage import Stage

PRETRAIN = "pretrain"


@dataclass(frozen=True)
class TransferSettings:
    """Pre-training; ``epochs``, ``learning_rate`` and the other keys of RecBole are those of fine-tuning."""

    epochs: int = key("pretrain_epochs", 300, least=0)
    batch_size: int = key("pretrain_train_batch_size", 2048, least=2)
    learning_rate: float = key("pretrain_learning_rate", 1e-3, above=0.0)
    weight_decay: float = key("pretrain_weight_decay", 0.0, least=0.0)
    eval_step: int = key("pretrain_eval_step", 5, least=0)
    stopping_step: int = key("pretrain_stopping_step", 5, least=0)
    schedule: str = key("pretrain_lr_schedule", "constant", choices=("cosine", "linear", "constant"))


@dataclass(frozen=True)
class Inputs:
    """What a model is told of the items before it trains.

    Attributes:
        items: [all items, ...], the features of every row of the ``ItemIndex``.
        domains: domain -> features of its own items, where they are others than its rows of ``items``.
        more: name -> further tensors that training needs.
        facts: JSON-able: what else decides the shape of the network.
        hashes: what the features were made of, for the results.
        about: figures on how they were made, for the results.
    """

    items: Tensor
    domains: Mapping[str, Tensor] = field(default_factory=dict)
    more: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all features."""
        own = [part for name in sorted(self.domains) for part in (name, self.domains[name].cpu().numpy())]
        more = [part for name in sorted(self.more) for part in (name, self.more[name].cpu().numpy())]
        return hash_of(self.items.cpu().numpy(), *own, len(own), *more)

    def of_domain(self, domain: str, items: ItemIndex) -> Tensor:
        """[items of the domain, ...]."""
        return self.domains[domain] if domain in self.domains else self.items[items.rows(domain)]

    def to(self, device: torch.device | str) -> Inputs:
        domains, more = ({k: v.to(device) for k, v in part.items()} for part in (self.domains, self.more))
        return replace(self, items=self.items.to(device), domains=domains, more=more)


class TransferModel(DomainsRecommender, ABC):
    """One network for all domains, and a fine-tuned copy of it for each.

    RecBole builds the model before there are any inputs and calls ``predict`` to count FLOPs, so it starts with
    placeholders; ``set_inputs`` gives the real ones and builds the network anew.

    Attributes:
        pretrained: the network of all domains.
        tuned: position of the domain, as text -> its own network.
    """

    own_settings: ClassVar[tuple[type, ...]] = (TransferSettings,)

    def __init__(self, config: Config, dataset: GMCDataset) -> None:
        super().__init__(config, dataset)
        self.config = dict(config.final_config_dict)
        self.transfer = read(TransferSettings, config)
        self.set_inputs(self.placeholder(config, self.items))

    # ---- what a model gives --------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def placeholder(cls, config: Lookup, items: ItemIndex) -> Inputs:
        """Inputs of the right kind for as long as there are no real ones."""

    @classmethod
    @abstractmethod
    def make_inputs(cls, config: Config, dataset: GMCDataset, train: SequenceRows, progress: bool) -> Inputs:
        """Reads and computes what the model is told of the items."""

    @classmethod
    @abstractmethod
    def network(cls, config: Lookup, inputs: Inputs) -> DenseNetwork:
        """The network to pre-train, with random weights from torch's global generator."""

    @classmethod
    @abstractmethod
    def network_of_domain(cls, config: Lookup, pretrained: DenseNetwork, features: Tensor) -> DenseNetwork:
        """The network to fine-tune on a domain with these features: a copy, with what it has of its own."""

    @abstractmethod
    def pretrain_loss(self, rows: SequenceRows) -> Tensor:
        """Mean loss of a batch from all domains."""

    @abstractmethod
    def tune_loss(self, rows: SequenceRows, domain: str, stage: str) -> Tensor:
        """Mean loss of a batch of one domain."""

    @abstractmethod
    def trained(self, stage: Stage) -> list[nn.Parameter]:
        """The parameters that a stage trains."""

    @classmethod
    def refuse_unfit(cls, config: Config, items: ItemIndex) -> None:
        """Refuses files that are to be read and packages that are needed, before any work."""

    def start_weights(self) -> None:
        """Gives a fresh network weights that are not random, where there are any."""

    def stages(self, domain: str) -> list[Stage]:
        """How a domain is fine-tuned."""
        return [self.tune_stage(f"finetune:{domain}", domain)]

    def start_stage(self, stage: Stage) -> None:
        """Before a stage's first epoch, also of a resumed one."""

    def finish_stage(self, stage: Stage) -> dict[str, Any]:
        """After a stage's last epoch, its best weights in place; returns figures for the results."""
        return {}

    def start_epoch(self, rows: SequenceRows, stage: Stage, draw: torch.Generator) -> SequenceRows:
        """The rows that an epoch takes."""
        return rows

    def rows_an_epoch(self, rows: SequenceRows, stage: Stage) -> int:
        return len(rows)

    def parts(self, rows: SequenceRows, stage: Stage) -> list[SequenceRows]:
        """A batch as parts whose mean losses, weighted by their rows, make the batch's."""
        return [rows]

    # ---- networks ------------------------------------------------------------------------------------------------

    def set_inputs(self, inputs: Inputs) -> None:
        """Takes inputs for exactly this model's items, with a fresh network and no domain's own."""
        self.inputs = inputs.to(self.row_of_item.device)
        self.pretrained = self.network(self.config, inputs).to(self.row_of_item.device)
        self.tuned = nn.ModuleDict()

    def add_domain(self, domain: str) -> DenseNetwork:
        """The domain's own network, a copy of the pre-trained one unless there is one already."""
        name = self._position(domain)
        if name not in self.tuned:
            network = self.network_of_domain(self.config, self.pretrained, self.features(domain))
            self.tuned[name] = network.to(self.row_of_item.device)
        return self.tuned[name]

    def of_domain(self, domain: str) -> DenseNetwork:
        """The network that ranks for a domain: its own, or the pre-trained one."""
        name = self._position(domain)
        return self.tuned[name] if name in self.tuned else self.pretrained

    def _position(self, domain: str) -> str:
        return str(self.items.domains.index(domain))

    def features(self, domain: str) -> Tensor:
        """What the network that ranks for the domain is told of its items."""
        return self.inputs.of_domain(domain, self.items)

    def _features_now(self, domain: str) -> Tensor:
        """Until a domain has its own network, it is ranked by the pre-trained one, which knows the common features."""
        own = self._position(domain) in self.tuned
        return self.features(domain) if own else self.inputs.items[self.items.rows(domain)]

    # ---- stages --------------------------------------------------------------------------------------------------

    def pretrain_stage(self) -> Stage:
        transfer = self.transfer
        return Stage(
            name=PRETRAIN,
            domain=None,
            epochs=transfer.epochs,
            batch_size=transfer.batch_size,
            learning_rate=transfer.learning_rate,
            weight_decay=transfer.weight_decay,
            eval_step=transfer.eval_step,
            stopping_step=transfer.stopping_step,
            schedule=transfer.schedule,
        )

    def tune_stage(self, name: str, domain: str, **changes: Any) -> Stage:
        config, train = self.config, read(TrainSettings, self.config)
        values = {
            "epochs": config["epochs"],
            "batch_size": config["train_batch_size"],
            "learning_rate": config["learning_rate"],
            "weight_decay": config["weight_decay"],
            "eval_step": config["eval_step"],
            "stopping_step": config["stopping_step"],
            "warmup_ratio": train.warmup_ratio,
            "schedule": train.schedule,
        }
        return Stage(name=name, domain=domain, **{**values, **changes})

    def loss(self, rows: SequenceRows, stage: Stage) -> Tensor:
        if stage.domain is None:
            return self.pretrain_loss(rows)
        return self.tune_loss(self.local(rows, stage.domain), stage.domain, stage.name)

    def local(self, rows: SequenceRows, domain: str) -> SequenceRows:
        """Rows of one domain with positions in its own catalogue; what lies past a history becomes 0."""
        start = self.items.rows(domain).start
        history = (rows.history - start).clamp(min=0)
        return SequenceRows(history, rows.length, rows.target - start, rows.domain, rows.user)

    # ---- ranking -------------------------------------------------------------------------------------------------

    def recommender(self, domains: tuple[str, ...] | None = None) -> DenseRecommender:
        """What the weights of this moment recommend."""
        networks = {d: (self.of_domain(d).eval(), self._features_now(d)) for d in domains or self.items.domains}
        return DenseRecommender(self.items, networks, max_items=self.max_items, decode=self.decode)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """The loss of pre-training."""
        return self.pretrain_loss(self._rows(interaction))

    @torch.no_grad()
    def predict(self, interaction: Interaction) -> Tensor:
        """[B]: each row's item's cosine / temperature, -inf for an item of another domain."""
        return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID][:, None]).squeeze(1)

    def _scored(
        self, recommender: DenseRecommender, domain: str, history: Tensor, length: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All items of the domain, with cosine / temperature."""
        return self.item_of_row[self.items.rows(domain)], recommender.scores(domain, history, length)
