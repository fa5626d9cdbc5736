"""Variants of a model in a benchmark, each a property file: the paper's ablations (Table 4), the steps to GMCPlus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recbole_gmc import keys, lookup, registry
from recbole_gmc.errors import SettingError
from recbole_gmc.values import read_yaml

ALL = "all"
# Keys that mean nothing where IDs are imported.
OF_TOKENIZER = frozenset("tokenizer shared_tokenizer tokenizer_domain_weight tokenizer_cooccurrence_weight".split())


@dataclass(frozen=True)
class Family:
    """Variants of ``model`` that the flag ``--<flag>`` names; ``properties/<folder>`` has a file for each.

    Attributes:
        titles: name -> what tables show behind the model's name, in the order of the tables.
        steps: they lead to the model as its property file has it, so what they change must be so in the benchmark.
    """

    flag: str
    model: str
    folder: str
    titles: Mapping[str, str]
    steps: bool = False

    def chosen(self, text: str, models: Sequence[str]) -> tuple[Variant, ...]:
        """The variants that the flag's value names.

        Args:
            text: ``all``, names joined by commas, or nothing.
            models: those of the benchmark, which must have the one to compare with.

        Raises:
            SettingError: an unknown name (the nearest is told), one named twice, or a model that is not there.
        """
        flag, names = f"--{self.flag}", list(self.titles) if text == ALL else [name for name in text.split(",") if name]
        for name in names:
            if name not in self.titles:
                what = f"{name!r} is not known{keys.nearest(name, (ALL, *self.titles))}"
                raise SettingError(what, flag, f"Choose from {', '.join((ALL, *self.titles))}")
        if len(set(names)) != len(names):
            raise SettingError("names a variant twice", flag, "Name each one once")
        if names and self.model not in models:
            raise SettingError(f"variants are compared with {self.model}", "--models", f"Name {self.model}, too")
        files = {name: f"properties/{self.folder}/{name}.yaml" for name in names}
        return tuple(Variant(self, name, lookup.read_files(file)) for name, file in files.items())

    def refuse_idle(self, named: Sequence[Variant], given: Mapping[str, Any]) -> None:
        """Refuses variants that would be the model itself, or nothing that can run, with these settings of it.

        Raises:
            SettingError: which one, and the names that are left.
        """
        usual = read_yaml(registry.entry(self.model).properties)
        for variant in named:
            if why := self._idle(variant.settings, {**usual, **given}, usual):
                left = ",".join(other.name for other in named if other is not variant)
                mend = f"Write --{self.flag}={left}" if left else f"Leave --{self.flag} out"
                raise SettingError(f"{variant.name}: {why}", f"--{self.flag}", mend)

    def _idle(self, own: Mapping[str, Any], settings: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
        same = f"it is {self.model} itself"
        if self.steps and (changed := [key for key in own if settings[key] != usual[key]]):
            other = f"{changed[0]} {settings[changed[0]]}"
            return f"it leads to {self.model} as its property file has it, not with {other}"
        if all(settings[key] == value for key, value in own.items()):
            return f"{same}: " + ", ".join(f"{key} is {value} already" for key, value in own.items())
        if own.get("tokenizer_domain_weight") == 0 and settings["tokenizer"] != "rqvae":
            return f"{same}: tokenizer {settings['tokenizer']} has no domain loss"
        if "adaptation" in own and not settings["lora"]:
            return f"{same}: with lora False nothing is trained a domain"
        if settings["semantic_ids_path"] is not None and own.keys() & OF_TOKENIZER:
            return "semantic_ids_path imports IDs, so no tokenizer is trained"
        return ""


@dataclass(frozen=True)
class Variant:
    """A model with the settings of one file."""

    family: Family
    name: str
    settings: Mapping[str, Any]

    @property
    def model(self) -> str:
        return self.family.model

    @property
    def title(self) -> str:
        return self.family.titles[self.name]


ABLATIONS = {
    "without_shared_codebook": "without shared codebook",
    "without_unified": "without unified recommender",
    "without_domain_loss": "without domain loss",
    "without_lora": "without LoRA",
    "full_finetuning": "with full fine-tuning",
}
LADDER = {
    "codes": "step 1, codes alone",
    "tree_softmax": "step 2, among the tree's codes",
    "text_and_vectors": "step 3, text and item vectors read",
    "dense_head": "step 4, dense head",
    "light_codes": "step 5, codes' loss at a tenth",
    "repeat_bias": "step 6, items of the history",
    "prefix_loss": "and prefix loss",
    "cooccurrence": "and co-occurrence in the codes",
    "rqvae": "and RQ-VAE",
}
FAMILIES = (
    Family("ablations", "GMC", "ablation", ABLATIONS),
    Family("ladder", "GMCPlus", "ladder", LADDER, steps=True),
)
