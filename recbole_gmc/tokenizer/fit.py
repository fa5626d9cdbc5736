"""Training of the RQ-VAE: warm-up, k-means start, epochs over all domains mixed, restart of dead codes, early stop."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from logging import getLogger

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from recbole_gmc.errors import RunError, TokenizerError
from recbole_gmc.items import ItemIndex
from recbole_gmc.settings import TokenizerSettings
from recbole_gmc.tokenizer.codebooks import restart_dead_codes, start_codebooks
from recbole_gmc.tokenizer.learned import Learned
from recbole_gmc.tokenizer.losses import domain_contrastive_loss, quantization_loss, reconstruction_loss
from recbole_gmc.tokenizer.quality import codes_used, collision_rates, weighted
from recbole_gmc.tokenizer.rqvae import RQVAE

COLLAPSED = 0.25  # a level that uses a smaller share of the codes it could use has collapsed
NEGLIGIBLE = 1e-3  # a residual with a smaller share of the latents' variance has nothing left to code
EVALUATION_ROWS = 4096

logger = getLogger("recbole_gmc.tokenizer")


def fit_rqvae(
    items: ItemIndex,
    vectors: np.ndarray,
    settings: TokenizerSettings,
    *,
    seed: int,
    device: str = "cpu",
    progress: bool = True,
) -> Learned:
    """Trains on ``vectors`` [items, D] and returns the best state's codes.

    The best state is the one with the least sum of reconstruction / variance and collision rate. The caller's random
    state is neither read nor changed; equal seeds give equal codes on the CPU.

    Raises:
        TokenizerError: a level stays collapsed.
        RunError: the loss is not finite.
    """
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return _Training(items, vectors, settings, seed, torch.device(device), progress).run()


@dataclass
class _Evaluation:
    codes: np.ndarray
    latents: np.ndarray
    residual_share: list[float]  # a level: variance of its input residual over that of the latents
    reconstruction: float
    collision_rate: float

    @property
    def score(self) -> float:
        return self.reconstruction + self.collision_rate


class _Training:
    def __init__(
        self,
        items: ItemIndex,
        vectors: np.ndarray,
        settings: TokenizerSettings,
        seed: int,
        device: torch.device,
        progress: bool,
    ) -> None:
        self.items, self.vectors, self.settings, self.seed, self.device = items, vectors, settings, seed, device
        self.progress = progress
        self.domains = torch.from_numpy(items.domain_of_row)
        self.random = torch.Generator().manual_seed(seed)
        mean, self.variance = _moments(vectors)
        self.mean = torch.from_numpy(mean.astype(np.float32)) if settings.scale_input else torch.zeros(len(mean))
        # one factor for all dimensions: the shape of the space, hence the optimum, stays the same
        per_value = math.sqrt(self.variance / vectors.shape[1])
        self.scale = per_value if settings.scale_input and per_value > 0 else 1.0
        self.model = RQVAE(
            vectors.shape[1],
            settings.hidden_sizes,
            settings.dim,
            settings.levels,
            settings.codebook_size,
            rank=settings.rank,
            sinkhorn=settings.sinkhorn,
        ).to(device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.used = torch.zeros(settings.levels, settings.codebook_size, dtype=torch.bool, device=device)
        self.history: list[dict] = []

    # -- the whole -----------------------------------------------------------------------------------------------

    def run(self) -> Learned:
        settings, best, best_epoch, waited = self.settings, None, 0, 0
        state = copy.deepcopy(self.model.state_dict())
        bar = tqdm(total=settings.warmup_epochs + settings.epochs, desc="Tokenizer", disable=not self.progress)
        for _ in range(settings.warmup_epochs):
            self._set_learning_rate(settings.learning_rate)
            self._epoch(quantize=False)
            bar.update()
        if settings.kmeans_init:
            start_codebooks(self.model.quantizer.codebooks, self._encode(), self.seed)
        for epoch in range(1, settings.epochs + 1):
            self._set_learning_rate(self._rate(epoch))
            begun = time.perf_counter()
            losses = self._epoch(quantize=True)
            if epoch == 1:
                self._say_estimate(time.perf_counter() - begun)
            bar.update()
            if epoch % settings.eval_step and epoch != settings.epochs:
                self._restart()
                continue
            now = self._evaluate()
            entry = {"epoch": epoch, **losses, "reconstruction": now.reconstruction}
            self.history.append(entry | {"collision_rate": now.collision_rate})
            bar.set_postfix(
                loss=f"{losses['loss']:.4f}",
                reconstruction=f"{now.reconstruction:.4f}",
                collisions=f"{now.collision_rate:.2%}",
            )
            if best is None or now.score < best.score - 1e-4:
                best, best_epoch, waited = now, epoch, 0
                state = copy.deepcopy(self.model.state_dict())
            else:
                waited += 1
            if settings.stopping_step and waited >= settings.stopping_step:
                logger.info("Tokenizer: stopped at epoch %d, best epoch %d", epoch, best_epoch)
                break
            self._restart()
        bar.close()
        self.model.load_state_dict(state)
        self._refuse_collapse(best)
        codebooks = self.model.quantizer.codebooks.detach().cpu().numpy().copy()
        return Learned(best.codes, best.latents, codebooks, best.reconstruction, epoch, self.history)

    # -- one epoch -----------------------------------------------------------------------------------------------

    def _epoch(self, quantize: bool) -> dict[str, float]:
        settings = self.settings
        self.model.train()
        self.used.zero_()
        sums: dict[str, Tensor] = {}
        order = torch.randperm(len(self.items), generator=self.random)
        batches = order.split(settings.batch_size)
        for number, rows in enumerate(batches):
            inputs = self._inputs(rows.numpy())
            parts = self._losses(inputs, self.domains[rows].to(self.device), quantize)
            loss = parts["loss"]
            if not torch.isfinite(loss):
                raise RunError(
                    f"The tokenizer's loss is {loss.item()} in batch {number} (seed {self.seed})",
                    mend="Lower tokenizer_learning_rate, or check the text embeddings",
                )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if settings.clip_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_grad_norm)
            self.optimizer.step()
            for name, value in parts.items():
                sums[name] = sums.get(name, 0) + value.detach() * len(rows)
        return {name: float(value) / len(order) for name, value in sums.items()}

    def _losses(self, inputs: Tensor, domains: Tensor, quantize: bool) -> dict[str, Tensor]:
        """Equation 7: reconstruction + quantisation + domain-aware contrastive loss; in the warm-up the first alone."""
        settings, model = self.settings, self.model
        if not quantize:
            outputs = model.decoder(model.encoder(inputs))
            return {"loss": reconstruction_loss(inputs, outputs, settings.reduction)}
        outputs, quantized = model(inputs)
        for level, codes in enumerate(quantized.codes.T):
            self.used[level, codes] = True
        parts = {
            "reconstruction_loss": reconstruction_loss(inputs, outputs, settings.reduction),
            "quantization_loss": quantization_loss(
                quantized.residuals, quantized.chosen, settings.beta, settings.reduction
            ),
        }
        if settings.domain_weight and len(self.items.domains) > 1:
            contrast = domain_contrastive_loss(quantized.vectors, domains)
            parts["domain_loss"] = settings.domain_weight * contrast
        return {"loss": sum(parts.values()), **parts}

    def _inputs(self, rows: np.ndarray) -> Tensor:
        block = torch.from_numpy(np.asarray(self.vectors[rows], dtype=np.float32))
        return ((block - self.mean) / self.scale).to(self.device)

    def _rate(self, epoch: int) -> float:
        rate = self.settings.learning_rate
        if self.settings.schedule == "constant":
            return rate
        return rate * (0.01 + 0.99 * (1 + math.cos(math.pi * (epoch - 1) / self.settings.epochs)) / 2)

    def _set_learning_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _restart(self) -> None:
        if self.settings.restart_dead and not bool(self.used.all()):
            codebooks = self.model.quantizer.codebooks
            restart_dead_codes(codebooks, self.used, self._encode(), self.random, self.optimizer)

    @torch.no_grad()
    def _encode(self) -> Tensor:
        """Latents [items, d] on the CPU."""
        blocks = np.array_split(np.arange(len(self.items)), -(-len(self.items) // EVALUATION_ROWS))
        return torch.cat([self.model.encoder(self._inputs(rows)).cpu() for rows in blocks])

    # -- evaluation ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _evaluate(self) -> _Evaluation:
        self.model.eval()
        codes, latents, error = [], [], 0.0
        energy = np.zeros(self.settings.levels)
        for rows in np.array_split(np.arange(len(self.items)), -(-len(self.items) // EVALUATION_ROWS)):
            inputs = self._inputs(rows)
            latent = self.model.encoder(inputs)
            quantized = self.model.quantizer(latent)
            outputs = self.model.decoder(quantized.vectors)
            error += float((inputs - outputs).double().pow(2).sum()) * self.scale**2
            energy += quantized.residuals.double().pow(2).sum(dim=(1, 2)).cpu().numpy()
            codes.append(quantized.codes.cpu().numpy())
            latents.append(latent.cpu().numpy())
        all_codes = np.concatenate(codes).astype(np.int32)
        return _Evaluation(
            codes=all_codes,
            latents=np.concatenate(latents),
            residual_share=(energy / max(energy[0], 1e-30)).tolist(),
            reconstruction=error / len(self.items) / self.variance if self.variance > 0 else 0.0,
            collision_rate=weighted(self.items, collision_rates(self.items, all_codes)),
        )

    def _refuse_collapse(self, best: _Evaluation) -> None:
        distinct = len(np.unique(best.latents, axis=0))
        usable = min(self.settings.codebook_size, distinct)
        used = codes_used(best.codes)
        for level, (count, share) in enumerate(zip(used, best.residual_share, strict=True)):
            if share > NEGLIGIBLE and count < COLLAPSED * usable:
                raise TokenizerError(
                    f"The codebook of level {level + 1} has collapsed: codes used per level {used} of {usable} usable, "
                    f"reconstruction / variance {best.reconstruction:.4f}, collisions {best.collision_rate:.2%}",
                    mend="Set tokenizer_kmeans_init and tokenizer_restart_dead to True, raise tokenizer_warmup_epochs, "
                    "lower tokenizer_learning_rate or tokenizer_domain_weight, or take tokenizer: rkmeans",
                )

    def _say_estimate(self, seconds: float) -> None:
        epochs = self.settings.epochs
        logger.info(
            "Tokenizer: %d items, %.2f s an epoch, at most %d epochs = %.1f min%s",
            len(self.items),
            seconds,
            epochs,
            seconds * epochs / 60,
            " (stops earlier without improvement)" if self.settings.stopping_step else "",
        )


def _moments(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean [D] and the mean squared distance from it."""
    starts = range(0, len(vectors), 8192)
    mean = sum(vectors[s : s + 8192].sum(axis=0, dtype=np.float64) for s in starts) / len(vectors)
    return mean, float(sum(((vectors[s : s + 8192] - mean) ** 2).sum() for s in starts) / len(vectors))
