"""The plugin's own keys as typed, checked values, read from any mapping (RecBole's Config among them)."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Protocol, TypeVar

from recbole_gmc.errors import SettingError
from recbole_gmc.files import safe_name

_WORDS = {type(None): "~", tuple: "list"}  # as they are written in YAML


class Lookup(Protocol):
    """What settings are read from: RecBole's ``Config`` or a dict; an absent key raises or gives ``None``."""

    def __getitem__(self, key: str, /) -> Any: ...

    def __contains__(self, key: Any, /) -> bool: ...


def key(name: str, default: Any, **rules: Any) -> Any:
    """A field: its key in property files, its default, and rules ``least``, ``most``, ``above``, ``choices``.

    ``example`` shows how a value is written where the default does not.
    """
    factory = {"default_factory": lambda: default} if isinstance(default, (list, dict)) else {"default": default}
    return field(metadata={"key": name, **rules}, **factory)


Settings = TypeVar("Settings")


def read(kind: type[Settings], source: Lookup, usual: Mapping[str, Any] = types.MappingProxyType({})) -> Settings:
    """Builds a settings object from the keys it names; a key that is absent keeps its default.

    Args:
        usual: what keys mean where the user leaves them out (the model's property file), for the error's advice.

    Raises:
        SettingError: a value of the wrong type or out of its range, naming the key.
    """
    hints = typing.get_type_hints(kind)
    values = {}
    for item in fields(kind):  # type: ignore[arg-type]
        name = item.metadata["key"]
        if name in source:
            values[item.name] = _checked(source[name], hints[item.name], item, usual)
    return kind(**values)


def keys_of(kind: type) -> dict[str, Any]:
    """The keys a settings class reads, with their defaults."""
    blank = kind()
    return {item.metadata["key"]: getattr(blank, item.name) for item in fields(kind)}


def _checked(value: Any, hint: Any, item: Field, usual: Mapping[str, Any]) -> Any:
    name = item.metadata["key"]
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in allowed:
        return None
    for kind in allowed:
        origin = typing.get_origin(kind) or kind
        if origin is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if origin is tuple and isinstance(value, (list, str)):
            value = (value,) if isinstance(value, str) else tuple(value)  # one word is a list of one
        if isinstance(value, origin) and not (isinstance(value, bool) and origin is not bool):
            _within(value, item, name)
            return value
    named = [kind for kind in allowed if not (kind is int and bool in allowed)]
    wanted = " or ".join(_WORDS.get(kind) or getattr(kind, "__name__", str(kind)) for kind in named)
    mend = None
    if "example" in item.metadata:
        mend = f"Write {name}: {item.metadata['example']}"
    elif name in usual and usual[name] != value:
        mend = f"The default is {_shown(usual[name])}"
    raise SettingError(f"{_shown(value)} is not of type {wanted}", where=name, mend=mend)


def _shown(value: Any) -> str:
    return "~" if value is None else repr(value)


def _within(value: Any, item: Field, name: str) -> None:
    rules = item.metadata
    if "choices" in rules and value == ():
        raise SettingError("the list is empty", where=name, mend=f"Choose from: {', '.join(rules['choices'])}")
    for part in value if isinstance(value, tuple) else (value,):
        if "choices" in rules and part not in rules["choices"]:
            raise SettingError(f"{part!r} is unknown", where=name, mend=f"Choose one of: {', '.join(rules['choices'])}")
        if {"least", "above", "most"} & set(rules):
            if isinstance(value, tuple) and (not isinstance(part, int) or isinstance(part, bool)):
                raise SettingError(f"{part!r} is not a whole number", where=name, mend="Write a list such as [64, 32]")
            low = "least" in rules and part < rules["least"]
            low = low or ("above" in rules and part <= rules["above"])
            high = "most" in rules and part > rules["most"]
            if low or high or not math.isfinite(part):
                bounds = [f">= {rules['least']}"] if "least" in rules else []
                bounds += [f"> {rules['above']}"] if "above" in rules else []
                bounds += [f"<= {rules['most']}"] if "most" in rules else []
                raise SettingError(f"{value!r} is out of range", where=name, mend=f"It must be {' and '.join(bounds)}")


@dataclass(frozen=True)
class TextSettings:
    """Item text to embeddings."""

    encoder: str = key("text_encoder", "lsa")
    path: dict | None = key("text_embedding_path", None, example="{<domain>: <file>.npy}")
    lsa_dim: int = key("text_lsa_dim", 256, least=2)
    lsa_features: int = key("text_lsa_features", 50_000, least=16)
    batch_tokens: int = key("text_batch_tokens", 16_384, least=16)
    max_length: int = key("text_max_length", 2048, least=8)
    dtype: str = key("text_dtype", "auto", choices=("auto", "float32", "bfloat16", "float16"))
    normalize: str = key("text_normalize", "none", choices=("none", "l2", "standardize"))


@dataclass(frozen=True)
class TokenizerSettings:
    """Embeddings to semantic IDs (paper section 4.1)."""

    kind: str = key("tokenizer", "rqvae", choices=("rqvae", "rkmeans"))
    levels: int = key("code_levels", 4, least=1, most=16)
    codebook_size: int = key("codebook_size", 256, least=2, most=65_536)
    dim: int = key("code_dim", 32, least=1)
    hidden_sizes: tuple = key("tokenizer_hidden_sizes", (512, 256, 128, 64), least=1)
    rank: int | None = key("tokenizer_latent_rank", 5, least=1)
    beta: float = key("tokenizer_beta", 0.25, least=0.0)
    domain_weight: float = key("tokenizer_domain_weight", 1.0, least=0.0)
    reduction: str = key("tokenizer_reduction", "mean", choices=("mean", "sum"))
    learning_rate: float = key("tokenizer_learning_rate", 2e-3, above=0.0)
    weight_decay: float = key("tokenizer_weight_decay", 1e-4, least=0.0)
    batch_size: int = key("tokenizer_train_batch_size", 1024, least=2)
    epochs: int = key("tokenizer_epochs", 120, least=1)
    epoch_items: int = key("tokenizer_epoch_items", 131_072, least=2)
    warmup_epochs: int = key("tokenizer_warmup_epochs", 20, least=0)
    kmeans_init: bool = key("tokenizer_kmeans_init", True)
    restart_dead: bool = key("tokenizer_restart_dead", True)
    sinkhorn: bool = key("tokenizer_sinkhorn", False)
    eval_step: int = key("tokenizer_eval_step", 10, least=1)
    stopping_step: int = key("tokenizer_stopping_step", 10, least=0)
    scale_input: bool = key("tokenizer_scale_input", True)
    schedule: str = key("tokenizer_lr_schedule", "cosine", choices=("cosine", "constant"))
    clip_grad_norm: float | None = key("tokenizer_clip_grad_norm", 1.0, above=0.0)
    gemm: str = key("gemm", "auto", choices=("auto", "torch", "onednn"))
    precision: str = key("tokenizer_precision", "fp32", choices=("auto", "fp32", "bf16"))
    collisions: str = key("tokenizer_collisions", "move", choices=("move", "count"))
    ids_path: str | None = key("semantic_ids_path", None)
    ids_repair: bool = key("semantic_ids_repair", False)


@dataclass(frozen=True)
class CooccurrenceSettings:
    """What users take one after the other, beside the text that becomes IDs (not in the paper)."""

    weight: float = key("tokenizer_cooccurrence_weight", 0.0, least=0.0)
    window: int = key("tokenizer_cooccurrence_window", 5, least=1)
    dim: int = key("tokenizer_cooccurrence_dim", 64, least=1)


@dataclass(frozen=True)
class T5Settings:
    """The unified recommender's network (paper section 4.2)."""

    encoder_layers: int = key("num_encoder_layers", 4, least=1)
    decoder_layers: int = key("num_decoder_layers", 4, least=1)
    d_model: int = key("d_model", 192, least=2)
    d_ff: int = key("d_ff", 576, least=1)
    heads: int = key("num_heads", 4, least=1)
    d_kv: int = key("d_kv", 64, least=1)
    dropout: float = key("dropout_rate", 0.1, least=0.0, most=0.9)
    activation: str = key("feed_forward_proj", "relu", choices=("relu", "gated-gelu"))


@dataclass(frozen=True)
class PrefixSettings:
    """A loss of the IDs' prefixes beside that of the whole IDs (not in the paper)."""

    beta: float = key("prefix_beta", 0.0, least=0.0)
    eta: float = key("prefix_eta", 0.0, least=0.0)


LAYERS = ("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo")  # T5's names for its matrices


@dataclass(frozen=True)
class LoraSettings:
    """One adapter a domain (paper section 4.3)."""

    enabled: bool = key("lora", True)
    kind: str = key("adaptation", "lora", choices=("lora", "full"))
    rank: int = key("lora_r", 8, least=1)
    alpha: int = key("lora_alpha", 16, least=1)
    dropout: float = key("lora_dropout", 0.05, least=0.0, most=0.9)
    target_modules: tuple = key("lora_target_modules", ("q", "k", "v", "o"), choices=LAYERS)
    learning_rate: float = key("lora_learning_rate", 5e-4, above=0.0)
    weight_decay: float = key("lora_weight_decay", 0.0, least=0.0)
    batch_size: int = key("lora_train_batch_size", 512, least=1)
    epochs: int = key("lora_epochs", 50, least=0)
    eval_step: int = key("lora_eval_step", 1, least=1)
    stopping_step: int = key("lora_stopping_step", 5, least=0)


@dataclass(frozen=True)
class SharingSettings:
    """What the domains have in common; all of it in the method as published (Table 4 for less)."""

    tokenizer: bool = key("shared_tokenizer", True)
    recommender: bool = key("unified_recommender", True)


@dataclass(frozen=True)
class TrainSettings:
    """How the stages of the recommender are trained."""

    warmup_ratio: float = key("warmup_ratio", 0.01, least=0.0, most=1.0)
    schedule: str = key("lr_schedule", "cosine", choices=("cosine", "linear", "constant"))
    precision: str = key("precision", "auto", choices=("auto", "fp32", "bf16"))
    chunk_tokens: int = key("chunk_tokens", 16384, least=8)
    max_prefixes: int | None = key("max_prefixes", None, least=1)
    valid_users: int = key("valid_users", 2000, least=0)
    budget_minutes: float | None = key("budget_minutes", None, above=0.0)
    cpu_threads: int | None = key("cpu_threads", None, least=1)


@dataclass(frozen=True)
class DecodeSettings:
    """Constrained beam search."""

    beam_size: int = key("beam_size", 20, least=1)
    search: str = key("beam_search", "beam", choices=("auto", "beam", "exact"))
    precision: str = key("decode_precision", "fp32", choices=("fp32", "bf16"))
    gemm: str = key("gemm", "auto", choices=("auto", "torch", "onednn"))
    memory_mb: int = key("decode_memory_mb", 256, least=1)
    batch_users: int = key("decode_batch_users", 256, least=1)


@dataclass(frozen=True)
class DataSettings:
    """Several RecBole datasets as one."""

    domains: tuple | None = key("domains", None)
    text_fields: tuple | dict | None = key("text_fields", None)
    missing_text: str = key("missing_text", "placeholder", choices=("placeholder", "error", "drop"))

    def __post_init__(self) -> None:
        """The names of the domains are different and can be folders'."""
        if self.domains is None:
            return
        if not self.domains:
            raise SettingError("the list is empty", "domains", "Name at least one domain, or leave the key out")
        for domain in self.domains:
            if not isinstance(domain, str):
                raise SettingError(f"{domain!r} is not a name", "domains", f"Put it in quotes: '{domain}'")
            safe_name(domain, "domain")
        if len(set(self.domains)) != len(self.domains):
            raise SettingError(f"{list(self.domains)} names a domain twice", "domains", "Name each one once")


GROUPS = (
    *(DataSettings, TextSettings, TokenizerSettings, T5Settings, LoraSettings, SharingSettings, TrainSettings),
    *(CooccurrenceSettings, PrefixSettings, DecodeSettings),
)
