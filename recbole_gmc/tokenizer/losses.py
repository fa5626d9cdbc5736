"""The three losses of the RQ-VAE, one function an equation (paper section 4.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 1e-30  # of a sum of exponentials that float32 still holds with all its digits


def reconstruction_loss(inputs: Tensor, outputs: Tensor, reduction: str = "mean") -> Tensor:
    """Equation 4: ``||x - xhat||^2`` of ``inputs`` and ``outputs`` [B, D], averaged over the batch.

    ``reduction`` "sum" adds the squares of an item's dimensions, as printed; "mean" averages them, as the sibling
    systems (LETTER, LC-Rec) do.
    """
    return _reduce((inputs - outputs) ** 2, reduction)


def quantization_loss(residuals: Tensor, chosen: Tensor, beta: float, reduction: str = "mean") -> Tensor:
    """Equation 5: ``sum_l ||sg(r_{l-1}) - e^l||^2 + beta ||r_{l-1} - sg(e^l)||^2``, averaged over the batch.

    The paper prints ``r_l``; meant is the residual that enters level l, since ``r_l = r_{l-1} - e^l`` would compare the
    remainder with the code. The first term draws the codes to the residuals, the second commits the encoder to them.

    Args:
        residuals: [L, B, d], the input residual of every level.
        chosen: [L, B, d], the codebook vector chosen there.
        reduction: "sum" over levels and dimensions, or "mean" over both.
    """
    codebook = _reduce((residuals.detach() - chosen).pow(2).flatten(0, 1), reduction)
    commitment = _reduce((residuals - chosen.detach()).pow(2).flatten(0, 1), reduction)
    levels = len(residuals) if reduction == "sum" else 1  # _reduce has averaged over levels, too
    return levels * (codebook + beta * commitment)


def domain_contrastive_loss(quantized: Tensor, domains: Tensor) -> Tensor:
    """Equation 6: draws the quantised vectors of one domain together and those of other domains apart.

    ``-(1/B) sum_i log( sum_{j: t_j = t_i} exp(<zhat_i, zhat_j>) / sum_j exp(<zhat_i, zhat_j>) )``. Item i itself is in
    both sums; no temperature, no normalisation. In float32 and relative to the largest product, since raw ones
    overflow exp. A batch of one domain gives exactly 0.

    Args:
        quantized: [B, d], the straight-through zhat.
        domains: int64 [B].
    """
    quantized = quantized.float()
    with torch.autocast(quantized.device.type, enabled=False):
        products = quantized @ quantized.T
        members = F.one_hot(domains).to(products.dtype)
        # sums a domain by one product: an exp each for all and for the own would double the work of the largest matrix
        sums = (products - products.detach().amax(dim=1, keepdim=True)).exp() @ members
        own = sums.gather(1, domains[:, None])
        if bool((own > SMALLEST).all()):
            return (sums.sum(dim=1, keepdim=True).log() - own.log()).mean()
        # the own domain's products lie so far below the largest that their exp is lost
        others = domains[:, None] != domains[None, :]
        own = products.masked_fill(others, float("-inf"))
        return (products.logsumexp(dim=1) - own.logsumexp(dim=1)).mean()


def _reduce(squares: Tensor, reduction: str) -> Tensor:
    return squares.mean() if reduction == "mean" else squares.sum(dim=1).mean()
