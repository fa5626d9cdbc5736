"""A tokenizer a domain, which shares no code with the others (paper, Table 4: without sharable codebook)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_gmc.items import ItemIndex
from recbole_gmc.settings import TokenizerSettings
from recbole_gmc.tokenizer import Tokenization, tokenize
from recbole_gmc.tokenizer.quality import weighted
from recbole_gmc.tokenizer.semantic_ids import SemanticIds

if TYPE_CHECKING:
    from recbole_gmc.embed.embeddings import TextEmbeddings


def tokenize_apart(embeddings: TextEmbeddings, settings: TokenizerSettings, **how: Any) -> Tokenization:
    """Learns every domain's IDs from its own items alone.

    Code c of domain number t becomes code ``t * N + c``, so that codes of different domains are different tokens; the
    IDs of T domains have a codebook size of T * N. The embeddings of one domain at a time are in memory.

    Args:
        how: as ``tokenize``.

    Raises:
        As ``tokenize``.
    """
    from recbole_gmc.embed.embeddings import TextEmbeddings

    items, size = embeddings.items, settings.codebook_size
    codes = np.empty((len(items), settings.levels), dtype=np.int32)
    found, residuals = {}, {}
    for position, (domain, tokens) in enumerate(items.tokens.items()):
        vectors = np.ascontiguousarray(embeddings.for_domain(domain), dtype=np.float32)
        made = tokenize(TextEmbeddings(ItemIndex({domain: tokens}), vectors), settings, **how)
        codes[items.rows(domain)] = made.ids.codes + position * size
        found[domain] = made.quality
        residuals |= made.residuals
    embeddings.refuse_change()
    return Tokenization(SemanticIds(items, codes, size * len(found)), _joined(items, found), residuals)


def _joined(items: ItemIndex, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures of ``tokenize`` for all domains together, and each domain's own as ``of_domain``."""
    first = next(iter(found.values()))
    share = {domain: len(tokens) / len(items) for domain, tokens in items.tokens.items()}
    rates = {domain: figures["collision_rate"] for domain, figures in found.items()}
    levels = range(len(first["codes_used"]))
    return {
        "method": first["method"],
        "levels": first["levels"],
        "codebook_size": sum(figures["codebook_size"] for figures in found.values()),
        "reconstruction_over_variance": weighted(
            items, {domain: figures["reconstruction_over_variance"] for domain, figures in found.items()}
        ),
        "collision_rate": weighted(items, rates),
        "collision_rate_by_domain": rates,
        "equal_embeddings": {domain: figures["equal_embeddings"][domain] for domain, figures in found.items()},
        "moved_items": sum(figures["moved_items"] for figures in found.values()),
        "unique_after": True,
        "codes_used": [sum(figures["codes_used"][level] for figures in found.values()) for level in levels],
        # no two domains share a code: the entropy is that of the domains plus the mean one within them
        "perplexity": [
            math.exp(sum(share[d] * (math.log(found[d]["perplexity"][level]) - math.log(share[d])) for d in found))
            for level in levels
        ],
        "domain_purity": [1.0 for _ in levels],
        "epochs": sum(figures["epochs"] for figures in found.values()),
        "seconds": round(sum(figures["seconds"] for figures in found.values()), 2),
        "of_domain": found,
    }
