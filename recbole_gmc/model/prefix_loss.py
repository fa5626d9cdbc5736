"""Cross-entropy that also counts prefixes of a semantic ID (APAO, arXiv 2603.02730, its pointwise form).

Beam search drops an item as soon as one of its prefixes scores low, while cross-entropy asks only for the whole ID.
"""

from __future__ import annotations

import torch
from torch import Tensor


def prefix_aware_loss(log_prob: Tensor, beta: float, eta: float) -> Tensor:
    """[n]: the cross-entropy of each row's L codes, and L * beta times the weighted loss of its prefixes.

    With ``log_prob`` p_1 ... p_L, the loss of the prefix of m codes is P_m = -(p_1 + ... + p_m) / m and

        loss = -(p_1 + ... + p_L) + L * beta * sum_m w_m P_m,    w_m = P_m exp(eta P_m) / sum_k P_k exp(eta P_k).

    Divided by L and averaged over rows this is cross-entropy per code plus beta times the prefix loss. No gradient
    goes through w. The authors' code takes w from the batch's mean P; here each row has its own, so that a batch
    may be cut into chunks. With ``beta`` 0 it is the plain cross-entropy.

    Args:
        log_prob: [n, L], each code's log-probability given those before it.
    """
    return -(level_weights(log_prob, beta, eta) * log_prob).sum(1)


@torch.no_grad()
def level_weights(log_prob: Tensor, beta: float, eta: float) -> Tensor:
    """[n, L]: how often each level counts in ``prefix_aware_loss``, 1 + L * beta * sum_{m >= l} w_m / m.

    Example: two codes of which the second is certain, so P is (a, a / 2): at eta 0 the weights w are 2/3 and 1/3, and
    with beta 1 the levels count 1 + 2 * (2/3 + 1/6) = 8/3 and 1 + 2 * 1/6 = 4/3.
    """
    levels = log_prob.shape[1]
    size = torch.arange(1, levels + 1, device=log_prob.device, dtype=log_prob.dtype)
    loss = -log_prob.cumsum(1) / size
    weight = (loss.clamp_min(torch.finfo(loss.dtype).tiny).log() + eta * loss).softmax(1)
    return 1 + levels * beta * (weight / size).flip(1).cumsum(1).flip(1)
