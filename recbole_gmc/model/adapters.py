"""One LoRA adapter a domain on one frozen T5 (paper section 4.3); the only module that knows peft."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from recbole_gmc.errors import CheckpointError, GMCError
from recbole_gmc.files import hash_of, new_folder, read_json, safe_name, write_json
from recbole_gmc.model.origin import REMEDY, read_signed, sign
from recbole_gmc.settings import LoraSettings

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def plain_state(t5: nn.Module) -> dict[str, Tensor]:
    """A T5's own weights under the names they have without adapters, whether it carries adapters or not."""
    state = t5.state_dict()
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}


def backbone_fingerprint(t5: nn.Module) -> str:
    """SHA-256 over names, shapes and bits of a T5's own weights; adapters do not enter."""
    return fingerprint(plain_state(t5))


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and bits."""
    return hash_of(*(part for name in sorted(state) for part in (name, state[name].detach().cpu().numpy())))


class DomainAdapters:
    """LoRA adapters on one T5, one a domain, at most one active.

    The T5 is changed in place: its attention matrices become peft layers, its own weights are frozen. A fresh adapter
    is the identity (its B is zero), and with none active the T5 computes what it did before.

    Args:
        t5: the unified recommender.
        domains: names; any text that can name a folder.
        settings: rank, alpha, dropout and target modules.

    Example:
        >>> adapters = DomainAdapters(t5, ("Books", "Films"), LoraSettings())   # doctest: +SKIP
        >>> adapters.activate("Films")                                          # doctest: +SKIP
        >>> optimiser = torch.optim.AdamW(adapters.train_parameters("Films"))   # doctest: +SKIP
    """

    FOLDER: ClassVar[str] = "adapters"  # in a checkpoint

    def __init__(self, t5: T5ForConditionalGeneration, domains: Sequence[str], settings: LoraSettings) -> None:
        self.domains = tuple(domains)
        if not self.domains or len(set(self.domains)) != len(self.domains):
            raise GMCError(f"adapters need distinct domains, not {list(self.domains)}")
        self._adapter = {safe_name(domain, "domain"): f"d{i}" for i, domain in enumerate(self.domains)}
        self._config = LoraConfig(
            task_type="SEQ_2_SEQ_LM" if isinstance(t5, T5ForConditionalGeneration) else None,
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=list(settings.target_modules),
        )
        self.t5 = t5
        with warnings.catch_warnings():  # of a name that peft asks transformers for; nobody else can change it
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            self.model = get_peft_model(t5, self._config, adapter_name="d0")
        for adapter in list(self._adapter.values())[1:]:
            self.model.add_adapter(adapter, self._config)
        self.model.train(t5.training)  # peft's new layers start in training mode
        self.activate(None)

    @property
    def parameters_per_adapter(self) -> int:
        return sum(parameter.numel() for parameter in self.train_parameters(self.domains[0]))

    def activate(self, domain: str | None) -> None:
        """Makes one domain's adapter the active and only trainable one; ``None`` gives the unified T5 back."""
        if domain is None:
            self.model.base_model.disable_adapter_layers()
        else:
            adapter = self._name(domain)
            self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(adapter)

    def train_parameters(self, domain: str) -> list[nn.Parameter]:
        return [parameter for _, parameter in self._parameters(domain)]

    def backbone_fingerprint(self) -> str:
        return backbone_fingerprint(self.t5)

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Puts the weights of a plain T5 under the adapters; raises CheckpointError where names or shapes differ."""
        copy_into(dict(state), plain_state(self.t5), "the weights of the unified recommender")

    def merged_state(self, domain: str | None) -> dict[str, Tensor]:
        """Weights of the plain T5 that equals backbone and adapter, W + alpha / r * B @ A; the backbone stays as it is.

        Tensors that no adapter changes are the live ones, not copies.
        """
        state = {name: tensor.detach() for name, tensor in plain_state(self.t5).items()}
        if domain is None:
            return state
        adapter = self._name(domain)
        for name, layer in self.t5.named_modules():
            if adapter in getattr(layer, "lora_A", {}):
                change = layer.lora_B[adapter].weight.detach() @ layer.lora_A[adapter].weight.detach()
                state[f"{name}.weight"] = state[f"{name}.weight"] + layer.scaling[adapter] * change
        return state

    def snapshot(self, domain: str) -> dict[str, Tensor]:
        """A copy of one adapter's weights."""
        return {name: parameter.detach().clone() for name, parameter in self._parameters(domain)}

    def identity(self, domain: str) -> dict[str, Tensor]:
        """One adapter's weights with B zero: ``restore`` makes the unified T5 of it."""
        weights = self.snapshot(domain)
        return {name: torch.zeros_like(w) if ".lora_B." in name else w for name, w in weights.items()}

    def restore(self, domain: str, snapshot: Mapping[str, Tensor]) -> None:
        """Puts a ``snapshot`` back."""
        copy_into(dict(snapshot), dict(self._parameters(domain)), f"the adapter of {domain}")

    def save(self, folder: str | Path) -> None:
        """Writes one folder a domain that ``peft.PeftModel.from_pretrained`` reads, whole or not at all."""
        facts = json.loads(json.dumps(self._config.to_dict() | {"inference_mode": True}, default=sorted))
        facts["target_modules"] = sorted(facts["target_modules"])  # peft holds a set, whose order differs a run
        backbone = self.backbone_fingerprint()
        with new_folder(folder) as work:
            for domain, adapter in self._adapter.items():
                place = work / domain
                place.mkdir()
                weights = get_peft_model_state_dict(self.model, adapter_name=adapter, save_embedding_layers=False)
                weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
                save_file(weights, place / WEIGHTS, metadata={"format": "pt"})
                write_json(place / CONFIG, facts)
                sign(place, WEIGHTS, domain, backbone)

    def load(self, folder: str | Path) -> None:
        """Reads every domain's adapter back; none is changed unless all fit.

        Raises:
            CheckpointError: an adapter is missing, damaged, of another shape, or was made for another domain or on
                another base model.
        """
        backbone = self.backbone_fingerprint()
        found = {domain: self._read(Path(folder) / domain, domain, backbone) for domain in self.domains}
        for domain, weights in found.items():
            self.restore(domain, weights)

    def _read(self, place: Path, domain: str, backbone: str) -> dict[str, Tensor]:
        weights = read_signed(
            place, WEIGHTS, domain, backbone, f"adapter of {domain}", lambda: self._other_shape(place / CONFIG)
        )
        adapter = f".{self._name(domain)}.weight"
        weights = {name.removeprefix("base_model.model."): tensor for name, tensor in weights.items()}
        return {f"{name.removesuffix('.weight')}{adapter}": tensor for name, tensor in weights.items()}

    def _other_shape(self, file: Path) -> dict[str, bool]:
        config = read_json(file)
        shape = {key: config[key] for key in ("r", "lora_alpha", "target_modules")}
        ours = {"r": self._config.r, "lora_alpha": self._config.lora_alpha}
        ours["target_modules"] = sorted(self._config.target_modules)
        return {f"its shape {shape} is not {ours}": shape != ours}

    def _parameters(self, domain: str) -> Iterator[tuple[str, nn.Parameter]]:
        ending = f".{self._name(domain)}.weight"
        for name, parameter in self.t5.named_parameters():
            if ".lora_" in name and name.endswith(ending):
                yield name, parameter

    def _name(self, domain: str) -> str:
        if domain not in self._adapter:
            raise GMCError(f"no adapter for the domain {domain!r}", mend=f"There are {', '.join(self.domains)}")
        return self._adapter[domain]


@torch.no_grad()
def copy_into(source: Mapping[str, Tensor], target: Mapping[str, Tensor], what: str) -> None:
    """Copies the values of equally named tensors; raises CheckpointError where names or shapes differ."""
    different = sorted(source.keys() ^ target.keys())
    different += [name for name in source.keys() & target.keys() if source[name].shape != target[name].shape]
    if different:
        raise CheckpointError(f"{what} do not fit: {', '.join(different[:3])}", mend=REMEDY)
    for name, tensor in source.items():
        target[name].copy_(tensor)
