"""IDGenRec: items are named by a few words, for one domain alone (arXiv 2403.19021)."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from recbole.config import Config
from recbole_gmc.baselines.keywords import keyword_candidates, keywords, text_ids, unique_texts

from recbole_gmc.cache import Cache
from recbole_gmc.data.domains import GMCDataset
from recbole_gmc.data.text import ItemTexts
from recbole_gmc.errors import SettingError
from recbole_gmc.files import hash_of, read_json, write_json
from recbole_gmc.items import ItemIndex
from recbole_gmc.model.gmc import GMC
from recbole_gmc.places import cache_dir
from recbole_gmc.settings import key, read
from recbole_gmc.tokenizer.semantic_ids import SemanticIds
from recbole_gmc.train.prepare import Prepared
from recbole_gmc.train.trainer import GMCTrainer

KIND = "text_ids"
VERSION = 1  # goes up when equal settings would give other IDs
RANKED = 12  # keywords that an item's texts are chosen from


@dataclass(frozen=True)
class IDGenRecSettings:
    """Where the texts come from."""

    checkpoint: str | None = key("idgen_checkpoint", None)
    min_words: int = key("idgen_min_words", 3, least=1)
    max_words: int = key("idgen_max_words", 5, least=2, most=15)
    beams: int = key("idgen_beams", 10, least=1)
    new_tokens: int = key("idgen_new_tokens", 10, least=1)
    max_length: int = key("idgen_max_length", 256, least=8)
    batch_size: int = key("idgen_batch_size", 32, least=1)


class IDGenRec(GMC):
    """A T5 over the words of textual IDs, each word one token wherever it stands."""

    own_settings: ClassVar[tuple[type, ...]] = (IDGenRecSettings,)

    def __init__(self, config: Config, dataset: GMCDataset) -> None:
        super().__init__(config, dataset)
        checkpoint = read(IDGenRecSettings, config).checkpoint
        self.label = f"small from-scratch setting, {f'ids by {checkpoint}' if checkpoint else 'fallback ids'}"


class IDGenRecTrainer(GMCTrainer):
    """GMC's trainer with words for IDs."""

    @classmethod
    def refuse_unfit(cls, config: Config, items: ItemIndex) -> None:
        settings = read(IDGenRecSettings, config)
        if settings.min_words > settings.max_words:
            what = f"{settings.min_words} is above idgen_max_words {settings.max_words}"
            raise SettingError(what, where="idgen_min_words", mend="Lower it")
        if settings.checkpoint is not None:
            from recbole_gmc.baselines import id_generator

            id_generator.find(settings.checkpoint, settings.max_length)

    def _make_ids(self, dataset: GMCDataset, show_progress: bool) -> Prepared:
        started = time.perf_counter()
        texts, settings = dataset.texts(), read(IDGenRecSettings, self.config)
        if settings.checkpoint is None:
            ids, figures = keyword_ids(texts, settings)
        else:
            ids, figures = self._generated(texts, settings, show_progress)
        figures["seconds"] = round(time.perf_counter() - started, 2)
        self.logger.info(
            f"Textual IDs ({figures['method']}): {figures['words']:,} words, {figures['median_words']:g} an item, "
            f"{figures['second_try']:.1%} of the items could not have their first choice"
        )
        inputs = {
            "items": ids.items.fingerprint,
            "texts": texts.fingerprint,
            "semantic_ids": ids.fingerprint,
        }
        return Prepared(ids, figures, inputs)

    def _generated(
        self, texts: ItemTexts, settings: IDGenRecSettings, show_progress: bool
    ) -> tuple[SemanticIds, dict[str, Any]]:
        """The checkpoint's texts, written once and then reused."""
        from recbole_gmc.baselines import id_generator

        found = id_generator.find(settings.checkpoint, settings.max_length)
        cache, made_of = Cache(cache_dir(self.config)), asdict(settings)
        for unused in ("checkpoint", "batch_size", "min_words", "max_words"):
            del made_of[unused]
        entry_key = hash_of(KIND, VERSION, texts.fingerprint, found.identity, made_of)
        if (entry := cache.get(KIND, entry_key)) is not None:
            self.logger.info(f"Textual IDs: reused from the cache ({entry})")
            return SemanticIds.load(entry / "ids"), read_json(entry / "quality.json")
        made = id_generator.generate(texts, found, settings, self.device, show_progress)
        ids = text_ids(texts.items, made[0])
        figures = _figures("generator", ids, made[1])
        with cache.put(KIND, entry_key) as folder:
            ids.save(folder / "ids")
            write_json(folder / "quality.json", figures)
        return ids, figures


def keyword_ids(texts: ItemTexts, settings: IDGenRecSettings) -> tuple[SemanticIds, dict[str, Any]]:
    """IDs of ``min_words`` to ``max_words`` keywords, unique by the first free choice; and their figures."""
    ranked, frequency = keywords(texts.texts, max(RANKED, settings.max_words))
    chosen, late = unique_texts(
        texts.items,
        lambda row: keyword_candidates(ranked[row], settings.min_words, settings.max_words, frequency.__getitem__),
        settings.max_words,
    )
    ids = text_ids(texts.items, chosen)
    return ids, _figures("keywords", ids, late)


def _figures(method: str, ids: SemanticIds, late: int) -> dict[str, Any]:
    return {
        "method": method,
        "levels": ids.levels,
        "codebook_size": ids.codebook_size,
        "words": ids.codebook_size - 1,
        "median_words": float(np.median((ids.codes > 0).sum(axis=1))),
        "second_try": late / max(1, len(ids.items)),
        "unique_after": True,
    }
