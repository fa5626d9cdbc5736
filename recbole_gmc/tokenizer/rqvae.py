"""RQ-VAE: an encoder, a residual quantiser and a decoder (paper section 4.1, equations 1 to 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recbole_gmc.tokenizer.linear import Linear

SINKHORN_EPSILON = 0.003
SINKHORN_ITERATIONS = 50


@dataclass(frozen=True)
class Quantized:
    """A batch of latents and its codes.

    Attributes:
        codes: int64 [B, L].
        residuals: [L, B, d], what enters each level.
        chosen: [L, B, d], the codebook vector taken there.
        vectors: [B, d], zhat; a gradient passes through it to the encoder unchanged.
    """

    codes: Tensor
    residuals: Tensor
    chosen: Tensor
    vectors: Tensor


class MLP(nn.Sequential):
    """Linear layers with ReLU between them (none after the last), xavier-normal weights, zero biases.

    With ``bf16`` the products of a step of training are made in it; inputs, outputs and weights stay float32, and so
    does all that needs no gradient: latents and codes of a trained network do not depend on it.
    """

    bf16 = False

    def __init__(self, *sizes: int) -> None:
        layers: list[nn.Module] = []
        for number, (width, following) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            layer = Linear(width, following)
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
            layers += [nn.ReLU(), layer] if number else [layer]
        super().__init__(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        if not (self.bf16 and torch.is_grad_enabled()):
            return super().forward(inputs)
        with torch.autocast(inputs.device.type, torch.bfloat16):
            return super().forward(inputs).float()


class ResidualQuantizer(nn.Module):
    """L codebooks of N vectors: each level takes the code nearest to what the levels before left over (eq. 2, 3)."""

    def __init__(self, levels: int, codebook_size: int, dim: int, sinkhorn: bool = False) -> None:
        super().__init__()
        self.codebooks = nn.Parameter(torch.randn(levels, codebook_size, dim) / dim**0.5)
        self.sinkhorn = sinkhorn

    def forward(self, latents: Tensor) -> Quantized:
        """Quantises ``latents`` [B, d]; with ``sinkhorn``, training balances the last level's codes over the batch."""
        residual, total = latents, torch.zeros_like(latents)
        codes, residuals, chosen = [], [], []
        last = len(self.codebooks) - 1
        for level, codebook in enumerate(self.codebooks):
            with torch.no_grad():
                distances = squared_distances(residual, codebook)
                if self.sinkhorn and self.training and level == last:
                    of_row = residual.square().sum(dim=1, keepdim=True)
                    picked = balanced_assignment(distances + of_row).argmax(dim=1)
                else:
                    picked = distances.argmin(dim=1)
            vectors = codebook[picked]
            codes.append(picked)
            residuals.append(residual)
            chosen.append(vectors)
            total = total + vectors.detach()
            residual = residual - vectors.detach()
        # straight-through: the value of zhat, the gradient of the latents
        vectors = latents + (total - latents).detach()
        return Quantized(torch.stack(codes, 1), torch.stack(residuals), torch.stack(chosen), vectors)


def squared_distances(points: Tensor, codebook: Tensor) -> Tensor:
    """[B, N]: squared distances of ``points`` [B, d] to ``codebook`` [N, d], up to what is the same for a row."""
    return torch.addmm(codebook.square().sum(dim=1), points, codebook.T, alpha=-2)


def balanced_assignment(distances: Tensor) -> Tensor:
    """Sinkhorn-Knopp: the transport plan [B, N] under which every code gets an equal share of the batch.

    Squared distances, whole ones, are centred to [-1, 1] and the plan is computed in float64 (as LC-Rec does), here in
    the log domain.
    """
    low, high = distances.min(), distances.max()
    centred = (distances - (low + high) / 2) / ((high - low) / 2 + 1e-5)
    plan = -centred.double() / SINKHORN_EPSILON
    for _ in range(SINKHORN_ITERATIONS):
        plan = plan - plan.logsumexp(dim=0, keepdim=True)
        plan = plan - plan.logsumexp(dim=1, keepdim=True)
    return plan.exp()


class RQVAE(nn.Module):
    """Encoder D -> hidden -> d, residual quantiser, mirrored decoder (eq. 1).

    With ``rank`` the encoder's last matrix is a product [d, rank] x [rank, hidden], so latents fill only ``rank`` of
    the d dimensions. L codes hold L log2(N) bits; spread over all d dimensions these cannot tell similar items apart.
    """

    def __init__(
        self,
        width: int,
        hidden: Sequence[int],
        dim: int,
        levels: int,
        codebook_size: int,
        *,
        rank: int | None = None,
        sinkhorn: bool = False,
    ) -> None:
        super().__init__()
        sizes = [width, *hidden, dim]
        self.encoder = MLP(*sizes) if rank is None else nn.Sequential(MLP(width, *hidden, rank), MLP(rank, dim))
        self.decoder = MLP(*sizes[::-1])
        self.quantizer = ResidualQuantizer(levels, codebook_size, dim, sinkhorn)

    def multiply_by(self, *, bf16: bool, onednn: bool) -> None:
        """How the encoder and the decoder multiply; bf16 is torch's alone."""
        for module in self.modules():
            if isinstance(module, MLP):
                module.bf16 = bf16
            elif isinstance(module, Linear):
                module.onednn = onednn and not bf16

    def forward(self, inputs: Tensor) -> tuple[Tensor, Quantized]:
        """Returns the reconstruction [B, D] of ``inputs`` and how it was quantised."""
        quantized = self.quantizer(self.encoder(inputs))
        return self.decoder(quantized.vectors), quantized
