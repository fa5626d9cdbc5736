"""VQRec (Hou et al., TheWebConf 2023): items as product-quantised codes of their text, code vectors that transfer."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from recbole.config import Config
from recbole_gmc.baselines import opq
from recbole_gmc.baselines.dense import DenseNetwork, EncoderSettings, SequenceEncoder, contrast
from recbole_gmc.baselines.transfer import Inputs, TransferModel, TransferSettings
from torch import Tensor, nn

from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.embed import embed, refuse_missing
from recbole_gmc.items import ItemIndex
from recbole_gmc.places import cache_dir
from recbole_gmc.settings import Lookup, TextSettings, key, read
from recbole_gmc.tokenizer.kmeans import require_faiss
from recbole_gmc.train.stage import Stage

REASSIGN = "reassign:"


@dataclass(frozen=True)
class VQRecSettings:
    """Codes, losses and how code vectors find their place in a domain."""

    digits: int = key("vq_digits", 32, least=1)
    bits: int = key("vq_bits", 8, least=1, most=8)
    temperature: float = key("temperature", 0.07, above=0.0)
    fake_ratio: float = key("fake_idx_ratio", 0.75, least=0.0, most=1.0)
    negatives: str = key("same_target_negatives", "exclude", choices=("exclude", "zero"))
    freeze: bool = key("freeze_encoder", True)
    codes: str = key("finetune_codes", "domain", choices=("domain", "union"))
    permutation: str = key("perm_mode", "straight_through", choices=("straight_through", "faithful", "none"))
    reassign_epochs: int = key("reassign_steps", 5, least=0)
    sinkhorn_iterations: int = key("sinkhorn_iter", 3, least=1)
    sinkhorn_temperature: float = key("sinkhorn_temperature", 0.7, above=0.0)


class VQRecNetwork(DenseNetwork):
    """An item's vector is the mean of its codes' vectors, one of ``table`` [digits, codes, d] for each digit.

    ``choice`` [digits, codes, codes], only while codes are assigned anew, tells which old code's vector a code takes.
    """

    def __init__(self, settings: VQRecSettings, encoder: EncoderSettings, max_items: int) -> None:
        super().__init__()
        self.temperature = settings.temperature
        shape = settings.digits, 2**settings.bits, encoder.hidden_size
        self.table = nn.Parameter(torch.empty(shape).normal_(std=encoder.init))
        self.encoder = SequenceEncoder(encoder, max_items)
        self.choice: nn.Parameter | None = None

    def add_choice(self) -> None:
        digits, codes, _ = self.table.shape
        self.choice = nn.Parameter(torch.randn(digits, codes, codes))

    def item_vectors(self, features: Tensor, table: Tensor | None = None) -> Tensor:
        """[n, d] from codes int64 [n, digits], by another table if one is given."""
        table = self.table if table is None else table
        digits, codes, _ = table.shape
        offset = torch.arange(digits, device=features.device) * codes
        return F.embedding_bag(features + offset, table.flatten(0, 1), mode="mean")

    def history_vectors(self, features: Tensor, vectors: Tensor, history: Tensor, length: Tensor) -> Tensor:
        return self.encoder(vectors[history], length)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        if f"{prefix}choice" not in state_dict:  # saved after the codes were assigned
            self.choice = None
        super()._load_from_state_dict(state_dict, prefix, *args)


def assign(choice: Tensor, iterations: int, temperature: float, faithful: bool = False, noise: bool = True) -> Tensor:
    """For every code the old code whose vector it takes, as rows with a single one: [digits, codes, codes].

    Gumbel-Sinkhorn (paper section 3.4): rows and columns are normalised in turn, then each row's largest entry is
    chosen. Two codes may choose the same one.

    Args:
        faithful: as published: ceil of the chosen entry's softmax, whose gradient is zero everywhere, so that nothing
            is learned. Otherwise the gradient is that of the Sinkhorn matrix (straight-through).
        noise: Gumbel noise; without it the choice is the most likely one.
    """
    logits = choice
    if noise:
        uniform = torch.rand_like(choice).clamp(1e-6, 1 - 1e-6)
        logits = logits - torch.log(-torch.log(uniform))
    logits = logits / temperature
    for _ in range(iterations):
        logits = logits - logits.logsumexp(dim=2, keepdim=True)
        logits = logits - logits.logsumexp(dim=1, keepdim=True)
    soft = logits.exp()
    if faithful:
        value, place = soft.softmax(dim=-1).max(dim=-1, keepdim=True)
        return torch.zeros_like(soft).scatter(-1, place, value).ceil()
    hard = torch.zeros_like(soft).scatter(-1, soft.argmax(dim=-1, keepdim=True), 1.0)
    return hard + (soft - soft.detach())


class VQRec(TransferModel):
    """Registered as ``VQRec``; see ``properties/model/VQRec.yaml``."""

    own_settings: ClassVar[tuple[type, ...]] = (TransferSettings, EncoderSettings, VQRecSettings)

    def __init__(self, config: Config, dataset: GMCDataset) -> None:
        self.settings = read(VQRecSettings, config)
        super().__init__(config, dataset)
        own = self.settings.codes == "domain"
        self.label = f"setting with perm_mode {self.settings.permutation}" if own else "setting with the union's codes"

    # ---- inputs and networks -------------------------------------------------------------------------------------

    @classmethod
    def placeholder(cls, config: Lookup, items: ItemIndex) -> Inputs:
        return Inputs(torch.zeros(len(items), read(VQRecSettings, config).digits, dtype=torch.int64))

    @classmethod
    def refuse_unfit(cls, config: Config, items: ItemIndex) -> None:
        require_faiss()
        refuse_missing(items, read(TextSettings, config))

    @classmethod
    def make_inputs(cls, config: Config, dataset: GMCDataset, train: SequenceRows, progress: bool) -> Inputs:
        """Codes of one quantiser for all domains and, unless ``finetune_codes`` is ``union``, of one a domain."""
        settings, texts, cache = read(VQRecSettings, config), dataset.texts(), cache_dir(config)
        embeddings = embed(texts, read(TextSettings, config), cache, device=config["device"], progress=progress)
        seen = np.zeros(len(dataset.items), bool)
        seen[train.target.cpu().numpy()] = True
        seen[train.history[train.history >= 0].cpu().numpy()] = True
        where = settings.digits, settings.bits, cache
        vectors = np.array(embeddings.vectors)
        embeddings.refuse_change()
        union = opq.encode(vectors, seen, *where, "all domains")
        about, domains = {"all": union.facts}, {}
        if settings.codes == "domain":
            for domain in dataset.domains:
                rows = dataset.items.rows(domain)
                made = opq.encode(vectors[rows], seen[rows], *where, domain)
                about[domain], domains[domain] = made.facts, torch.from_numpy(made.codes)
        hashes = {"texts": texts.fingerprint, "embeddings": embeddings.fingerprint}
        return Inputs(torch.from_numpy(union.codes), domains, hashes=hashes, about=about)

    @classmethod
    def network(cls, config: Lookup, inputs: Inputs) -> VQRecNetwork:
        settings, encoder = read(VQRecSettings, config), read(EncoderSettings, config)
        return VQRecNetwork(settings, encoder, config["MAX_ITEM_LIST_LENGTH"])

    @classmethod
    def network_of_domain(cls, config: Lookup, pretrained: DenseNetwork, features: Tensor) -> VQRecNetwork:
        network: VQRecNetwork = copy.deepcopy(pretrained)
        if _reassigns(config):
            network.add_choice()
        return network

    def stages(self, domain: str) -> list[Stage]:
        tune = self.tune_stage(f"finetune:{domain}", domain)
        if not _reassigns(self.config):
            return [tune]
        epochs = self.settings.reassign_epochs
        return [self.tune_stage(f"{REASSIGN}{domain}", domain, epochs=epochs, eval_step=0), tune]

    def trained(self, stage: Stage) -> list[nn.Parameter]:
        """All in pre-training, only the choice of codes at first, then all but position embedding and blocks."""
        if stage.domain is None:
            return list(self.pretrained.parameters())
        network = self.of_domain(stage.domain)
        if stage.name.startswith(REASSIGN):
            return [network.choice]
        frozen = ("encoder.position.", "encoder.blocks.") if self.settings.freeze and self.transfer.epochs else ()
        return [parameter for name, parameter in network.named_parameters() if not name.startswith(frozen)]

    @torch.no_grad()
    def finish_stage(self, stage: Stage) -> dict[str, Any]:
        """Writes the chosen vectors into the table: the most likely choice or, in ``faithful``, one more draw."""
        if not stage.name.startswith(REASSIGN):
            return {}
        network: VQRecNetwork = self.of_domain(stage.domain)
        before, noise = network.table.clone(), self.settings.permutation == "faithful"
        chosen = self._assigned(network, noise).argmax(dim=-1, keepdim=True)
        network.table.copy_(before.gather(1, chosen.expand_as(before)))
        network.choice = None
        return {"changed_rows": int((network.table != before).any(-1).sum()), "rows": before[..., 0].numel()}

    def _assigned(self, network: VQRecNetwork, noise: bool = True) -> Tensor:
        settings = self.settings
        how = settings.sinkhorn_iterations, settings.sinkhorn_temperature, settings.permutation == "faithful", noise
        return assign(network.choice, *how)

    # ---- losses --------------------------------------------------------------------------------------------------

    def pretrain_loss(self, rows: SequenceRows) -> Tensor:
        """Sequence to item, with one made-up item a row as a further negative (paper section 3.3)."""
        network, settings, codes = self.pretrained, self.settings, self.inputs.items
        history = rows.history.clamp(min=0)
        used, place = torch.cat([history.flatten(), rows.target]).unique(return_inverse=True)
        vectors = network.item_vectors(codes[used])[place]
        items, target = vectors[: history.numel()].view(*history.shape, -1), vectors[history.numel() :]
        sequence = network.encoder(items, rows.length)
        fake = network.item_vectors(made_up(codes[rows.target], network.table.shape[1], settings.fake_ratio))
        how = {"target": rows.target, "negatives": settings.negatives}
        return contrast(sequence, target, settings.temperature, extra=fake, **how)

    def tune_loss(self, rows: SequenceRows, domain: str, stage: str) -> Tensor:
        """Cross-entropy over all items of the domain."""
        network, codes = self.of_domain(domain), self.features(domain)
        table = self._assigned(network) @ network.table if stage.startswith(REASSIGN) else None
        vectors = network.item_vectors(codes, table)
        histories = network.encoder(vectors[rows.history], rows.length)
        return F.cross_entropy(network.logits(histories, vectors).float(), rows.target)


def _reassigns(config: Lookup) -> bool:
    """Whether there are new codes for vectors that were pre-trained with others."""
    settings = read(VQRecSettings, config)
    moved = settings.codes == "domain" and settings.permutation != "none" and settings.reassign_epochs
    return bool(moved and read(TransferSettings, config).epochs)


def made_up(codes: Tensor, count: int, ratio: float) -> Tensor:
    """Codes [B, digits] with each digit replaced, with probability ``ratio``, by any of ``count`` codes."""
    return torch.where(torch.rand(codes.shape, device=codes.device) < ratio, torch.randint_like(codes, count), codes)
