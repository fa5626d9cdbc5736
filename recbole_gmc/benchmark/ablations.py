"""The paper's ablations (Table 4) as variants of GMC in a benchmark; each is a property file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recbole_gmc import keys, lookup, registry
from recbole_gmc.errors import SettingError
from recbole_gmc.values import read_yaml

MODEL = "GMC"
ALL = "all"
TITLES = {
    "without_shared_codebook": "without shared codebook",
    "without_unified": "without unified recommender",
    "without_domain_loss": "without domain loss",
    "without_lora": "without LoRA",
    "full_finetuning": "with full fine-tuning",
}


@dataclass(frozen=True)
class Variant:
    """GMC with the settings of one file of ``properties/ablation``; ``title`` is what tables show behind its name."""

    name: str
    settings: Mapping[str, Any]

    @property
    def title(self) -> str:
        return TITLES[self.name]


def chosen(text: str, models: Sequence[str]) -> tuple[Variant, ...]:
    """The variants that ``--ablations`` names.

    Args:
        text: ``all``, names joined by commas, or nothing.
        models: those of the benchmark, which must have GMC to compare with.

    Raises:
        SettingError: an unknown name (the nearest is told), one named twice, or no GMC.
    """
    names = list(TITLES) if text == ALL else [name for name in text.split(",") if name]
    for name in names:
        if name not in TITLES:
            what = f"no ablation is called {name!r}{keys.nearest(name, (ALL, *TITLES))}"
            raise SettingError(what, "--ablations", f"Choose from {', '.join((ALL, *TITLES))}")
    if len(set(names)) != len(names):
        raise SettingError("names an ablation twice", "--ablations", "Name each one once")
    if names and MODEL not in models:
        raise SettingError(f"ablations are compared with {MODEL}", "--models", f"Name {MODEL} among the models")
    return tuple(Variant(name, lookup.read_files(f"properties/ablation/{name}.yaml")) for name in names)


def refuse_idle(variants: Sequence[Variant], given: Mapping[str, Any]) -> None:
    """Refuses variants that would be GMC itself, or nothing that can run, with these settings of it.

    Raises:
        SettingError: which one, and the names that are left.
    """
    settings = {**read_yaml(registry.entry(MODEL).properties), **given}
    for variant in variants:
        own = variant.settings
        why = ""
        if all(settings[key] == value for key, value in own.items()):
            why = "it is GMC itself: " + ", ".join(f"{key} is {value} already" for key, value in own.items())
        elif "tokenizer_domain_weight" in own and settings["tokenizer"] != "rqvae":
            why = f"it is GMC itself: tokenizer {settings['tokenizer']} has no domain loss"
        elif "adaptation" in own and not settings["lora"]:
            why = "it is GMC itself: with lora False nothing is trained a domain"
        elif settings["semantic_ids_path"] is not None and own.keys() & {"shared_tokenizer", "tokenizer_domain_weight"}:
            why = "semantic_ids_path imports IDs, so no tokenizer is trained"
        if why:
            left = ",".join(other.name for other in variants if other is not variant)
            mend = f"Write --ablations={left}" if left else "Leave --ablations out"
            raise SettingError(f"{variant.name}: {why}", "--ablations", mend)
