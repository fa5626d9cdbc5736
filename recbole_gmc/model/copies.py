"""All weights a domain instead of an adapter: full fine-tuning, and recommenders that share nothing (Table 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from recbole_gmc.errors import GMCError
from recbole_gmc.files import new_folder, safe_name
from recbole_gmc.model.adapters import DomainAdapters, copy_into, fingerprint
from recbole_gmc.model.origin import read_signed, sign
from recbole_gmc.settings import LoraSettings, SharingSettings

WEIGHTS = "model.safetensors"


class DomainCopies:
    """One whole set of weights a domain, each at first a copy of the given T5, used as ``DomainAdapters`` are.

    The T5 given is the only network: ``activate`` changes which weights it holds, the others are kept beside it. The
    weights that it came with, the backbone, are held while no domain is active and never trained.

    Args:
        t5: the unified recommender, or a fresh one.
        domains: names; any text that can name a folder.
    """

    FOLDER: ClassVar[str] = "domains"  # in a checkpoint

    def __init__(self, t5: T5ForConditionalGeneration, domains: Sequence[str]) -> None:
        self.domains = tuple(safe_name(domain, "domain") for domain in domains)
        if not self.domains or len(set(self.domains)) != len(self.domains):
            raise GMCError(f"copies need distinct domains, not {list(self.domains)}")
        self.t5 = t5
        self.active: str | None = None
        self._kept: dict[str | None, dict[str, Tensor]] = {domain: _copied(t5.state_dict()) for domain in self.domains}

    def activate(self, domain: str | None) -> None:
        """Puts one domain's weights into the T5; ``None`` puts the backbone back."""
        if domain == self.active:
            return
        wanted = self._state(domain)
        self._kept[self.active] = _copied(self.t5.state_dict())
        self.t5.load_state_dict(wanted)
        self.active = domain
        del self._kept[domain]  # from here on the T5 holds them

    def train_parameters(self, domain: str) -> list[nn.Parameter]:
        """All parameters of the T5; the domain must be active."""
        if domain != self.active:
            raise GMCError(f"the T5 holds the weights of {self.active!r}, not of {domain!r}", mend="Activate it first")
        return list(self.t5.parameters())

    def backbone_fingerprint(self) -> str:
        return fingerprint(self._state(None))

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Replaces the backbone; raises CheckpointError where names or shapes differ."""
        self._put(None, state, "the weights of the unified recommender")

    def merged_state(self, domain: str | None) -> dict[str, Tensor]:
        """The domain's weights, which later changes do not reach; ``None`` asks for the backbone's."""
        return _copied(self._state(domain))

    def snapshot(self, domain: str) -> dict[str, Tensor]:
        """A copy of the domain's weights."""
        return self.merged_state(domain)

    def identity(self, domain: str) -> dict[str, Tensor]:
        """The weights that make the backbone of the domain's, its start."""
        return self.merged_state(None)

    def restore(self, domain: str, snapshot: Mapping[str, Tensor]) -> None:
        """Puts a ``snapshot`` back."""
        self._put(domain, snapshot, f"the weights of {domain}")

    def save(self, folder: str | Path) -> None:
        """Writes one folder a domain with all its weights as safetensors, whole or not at all."""
        backbone = self.backbone_fingerprint()
        with new_folder(folder) as work:
            for domain in self.domains:
                place = work / domain
                place.mkdir()
                state = {name: tensor.cpu().clone().contiguous() for name, tensor in self.merged_state(domain).items()}
                save_file(state, place / WEIGHTS, metadata={"format": "pt"})
                sign(place, WEIGHTS, domain, backbone)

    def load(self, folder: str | Path) -> None:
        """Reads every domain's weights back; none is changed unless all can be read.

        Raises:
            CheckpointError: weights are missing, damaged, of another shape, or were made for another domain or base.
        """
        backbone = self.backbone_fingerprint()
        found = {
            domain: read_signed(Path(folder) / domain, WEIGHTS, domain, backbone, f"recommender of {domain}")
            for domain in self.domains
        }
        for domain, weights in found.items():
            self.restore(domain, weights)

    def _state(self, domain: str | None) -> dict[str, Tensor]:
        if domain == self.active:
            return self.t5.state_dict()
        if domain not in self._kept:
            raise GMCError(f"no weights for the domain {domain!r}", mend=f"There are {', '.join(self.domains)}")
        return self._kept[domain]

    def _put(self, domain: str | None, weights: Mapping[str, Tensor], what: str) -> None:
        copy_into(dict(weights), self._state(domain), what)


DomainWeights = DomainAdapters | DomainCopies


def weights_of_domains(
    t5: T5ForConditionalGeneration, domains: Sequence[str], lora: LoraSettings, sharing: SharingSettings
) -> DomainWeights:
    """What the settings give each domain: an adapter on the T5, or all weights of its own."""
    if lora.kind == "full" or not sharing.recommender:
        return DomainCopies(t5, domains)
    return DomainAdapters(t5, domains, lora)


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy in which tied tensors stay tied."""
    seen: dict[int, Tensor] = {}
    for tensor in state.values():
        if tensor.data_ptr() not in seen:
            seen[tensor.data_ptr()] = tensor.detach().clone()
    return {name: seen[tensor.data_ptr()] for name, tensor in state.items()}
