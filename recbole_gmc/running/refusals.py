"""What RecBole, or the protocol, refuses of a model, said in one line before any work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from recbole.utils import ModelType, get_model

from recbole_gmc.errors import DependencyError, GMCError, SettingError

WITH_ENTITIES = ("GRU4RecKG", "KSR")  # sequential models that read a knowledge graph


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Says in one line what RecBole, before any work, finds wrong with settings or data."""
    try:
        yield
    except GMCError:
        raise
    except (ValueError, LookupError, AssertionError, RuntimeError) as error:
        found = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise SettingError(
            f"RecBole refuses this ({found})", what, "Mend the setting or column that it names"
        ) from error


def refuse_other_kinds(model: str, settings: Mapping[str, Any]) -> None:
    """Refuses models that cannot rank all items of a domain from its interactions alone.

    Args:
        settings: merged ones, those of the model's property file included.

    Raises:
        SettingError: a model that needs labels, a knowledge graph, or item columns that are not loaded.
        DependencyError: a model that needs a package which is not installed.
    """
    try:
        kind = get_model(model).type
    except ImportError as error:
        what = f"{model} needs a package that is not installed ({error})"
        raise DependencyError(what, "model", "Install it with pip, or choose another model") from error
    if kind not in (ModelType.GENERAL, ModelType.SEQUENTIAL, ModelType.TRADITIONAL) or model in WITH_ENTITIES:
        what = f"{model} needs labels or a knowledge graph, which the protocol of this command does not have"
        raise SettingError(what, "model", "Choose a general or sequential model, or call RecBole's run_recbole")
    if model == "BERT4Rec" and settings["mask_ratio"] * settings["MAX_ITEM_LIST_LENGTH"] < 1:
        what = f"{settings['mask_ratio']} of {settings['MAX_ITEM_LIST_LENGTH']} items is less than one masked item"
        raise SettingError(what, "mask_ratio", "Raise it, or MAX_ITEM_LIST_LENGTH")
    loaded = (settings.get("load_col") or {}).get("item") or ()
    for key in ("selected_features", "item_attribute"):
        names = settings.get(key) or ()
        for name in [names] if isinstance(names, str) else names:
            if name not in loaded:
                mend = "Name columns of .item, and load them: --load_col={inter: [...], item: [item_id, <columns>]}"
                raise SettingError(f"column {name!r} is not loaded", key, mend)
