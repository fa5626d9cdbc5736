"""TIGER: semantic IDs and a T5 for one domain alone (arXiv 2305.05065, as the GMC paper runs it)."""

from __future__ import annotations

from recbole_gmc.model.gmc import GMC


class TIGER(GMC):
    """GMC on a single domain: an RQ-VAE without the domain loss, a T5 without adapters.

    All that differs stands in ``properties/model/TIGER.yaml``; ``properties/preset/tiger_orig.yaml`` is the original
    recipe.
    """
