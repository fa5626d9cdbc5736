"""Care of the codebooks: where they start, and what becomes of codes that nobody uses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recbole_gmc.tokenizer.kmeans import fit_codebook
from recbole_gmc.tokenizer.rqvae import squared_distances


@torch.no_grad()
def start_codebooks(codebooks: nn.Parameter, latents: Tensor, seed: int) -> None:
    """Fills ``codebooks`` [L, N, d] by k-means on what each level has to code of ``latents`` [n, d] (on the CPU).

    Before the encoder has learned anything this would copy the noise of its random weights, hence the warm-up.
    """
    residual, scale = latents, float(latents.std()) if latents.numel() > 1 else 0.0
    for level in range(len(codebooks)):
        codebook = torch.from_numpy(fit_codebook(residual.numpy(), codebooks.shape[1], seed + level, scale))
        codebooks[level].copy_(codebook)
        residual = residual - _nearest(residual, codebook)


@torch.no_grad()
def restart_dead_codes(
    codebooks: nn.Parameter, used: Tensor, latents: Tensor, optimizer: torch.optim.Optimizer
) -> None:
    """Puts every code that is not ``used`` (bool [L, N]) onto the current residual of an item.

    The optimizer's running means of such a code go back to 0, as they belong to the vector it was.

    Args:
        latents: [n, d] of items drawn at random, one for each code that is not used.
    """
    residual, taken = latents, 0
    state = optimizer.state.get(codebooks, {})
    for level, codebook in enumerate(codebooks):
        dead = (~used[level]).nonzero()[:, 0]
        # items of its own for each level: on an item that a code was just put onto, nothing is left to code
        codebook[dead] = residual[taken : taken + len(dead)]
        taken += len(dead)
        for name in ("exp_avg", "exp_avg_sq"):
            if name in state:
                state[name][level, dead] = 0
        residual = residual - _nearest(residual, codebook)


def _nearest(residual: Tensor, codebook: Tensor) -> Tensor:
    blocks = residual.split(8192)
    return codebook[torch.cat([squared_distances(block, codebook).argmin(dim=1) for block in blocks])]
