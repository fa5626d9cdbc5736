"""Training of the RQ-VAE: warm-up, k-means start, epochs over all domains mixed, restart of dead codes, early stop."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from logging import getLogger

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from recbole_gmc.errors import RunError, TokenizerError
from recbole_gmc.items import ItemIndex
from recbole_gmc.precision import use_bf16
from recbole_gmc.products import tokenizer_by_onednn
from recbole_gmc.settings import TokenizerSettings
from recbole_gmc.tokenizer.codebooks import restart_dead_codes, start_codebooks
from recbole_gmc.tokenizer.encoding import Encoded, encode_all
from recbole_gmc.tokenizer.kmeans import sample_size
from recbole_gmc.tokenizer.learned import Learned
from recbole_gmc.tokenizer.losses import domain_contrastive_loss, quantization_loss, reconstruction_loss
from recbole_gmc.tokenizer.quality import codes_used, perplexity
from recbole_gmc.tokenizer.rkmeans import moments
from recbole_gmc.tokenizer.rqvae import RQVAE
from recbole_gmc.vectors import Vectors, sample_rows

COLLAPSED = 0.25  # a level that uses a smaller share of the codes it could use has collapsed
NEGLIGIBLE = 1e-3  # a residual with a smaller share of the latents' variance has nothing left to code

logger = getLogger("recbole_gmc.tokenizer")


def fit_rqvae(
    items: ItemIndex,
    vectors: Vectors,
    settings: TokenizerSettings,
    *,
    seed: int,
    device: str = "cpu",
    progress: bool = True,
    enough: Callable[[dict], bool] | None = None,
) -> Learned:
    """Trains on ``vectors`` [items, D] and returns the best state's codes.

    The best state is the one with the least sum of reconstruction / variance and collision rate. Of the vectors, only
    a batch is read at a time; k-means, and the looks at a catalogue beyond ``tokenizer_epoch_items``, see a sample of
    bounded size. The caller's random state is neither read nor changed; equal seeds give equal codes on the CPU.

    Args:
        enough: asked after every look, given what ``Learned.history`` keeps of it; true ends the training there.

    Raises:
        TokenizerError: a level stays collapsed.
        RunError: the loss is not finite.
    """
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return _Training(items, vectors, settings, seed, torch.device(device), progress).run(enough)


@dataclass
class _Look:
    """What the current state is worth, on the items that are looked at; a figure a level of how it uses its codes."""

    reconstruction: float
    collision_rate: float
    codes_used: list[int]
    perplexity: list[float]

    @property
    def score(self) -> float:
        return self.reconstruction + self.collision_rate


class _Training:
    def __init__(
        self,
        items: ItemIndex,
        vectors: Vectors,
        settings: TokenizerSettings,
        seed: int,
        device: torch.device,
        progress: bool,
    ) -> None:
        self.items, self.settings, self.seed, self.device = items, settings, seed, device
        self.progress = progress
        self.domains = torch.from_numpy(items.domain_of_row)
        self.random = torch.Generator().manual_seed(seed)
        self.looked_at = sample_rows(len(items), settings.epoch_items, seed)
        mean, squares = moments(vectors)
        self.variance = squares / len(items)
        # one factor for all dimensions: the shape of the space, hence the optimum, stays the same
        scale = math.sqrt(self.variance / vectors.shape[1]) if settings.scale_input and self.variance > 0 else 1.0
        self.model = RQVAE(
            vectors.shape[1],
            settings.hidden_sizes,
            settings.dim,
            settings.levels,
            settings.codebook_size,
            rank=settings.rank,
            sinkhorn=settings.sinkhorn,
        ).to(device)
        by_onednn = tokenizer_by_onednn(settings.gemm, device)
        self.model.multiply_by(bf16=use_bf16(settings.precision, device), onednn=by_onednn)
        self.encoded = Encoded(self.model, vectors, mean if settings.scale_input else 0 * mean, scale)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.used = torch.zeros(settings.levels, settings.codebook_size, dtype=torch.bool, device=device)
        self.history: list[dict] = []

    # -- the whole -----------------------------------------------------------------------------------------------

    def run(self, enough: Callable[[dict], bool] | None = None) -> Learned:
        settings, best, best_epoch, waited = self.settings, None, 0, 0
        state: dict[str, Tensor] = {}  # the best one; the last epoch is always looked at
        bar = tqdm(total=settings.warmup_epochs + settings.epochs, desc="Tokenizer", disable=not self.progress)
        for _ in range(settings.warmup_epochs):
            self._set_learning_rate(settings.learning_rate)
            self._epoch(quantize=False)
            bar.update()
        if settings.kmeans_init:
            shown = sample_rows(len(self.items), sample_size(settings.codebook_size), self.seed)
            start_codebooks(self.model.quantizer.codebooks, torch.from_numpy(self.encoded[shown]), self.seed)
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
            now = self._look()
            self.history.append({"epoch": epoch, **losses, **asdict(now)})
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
            if enough is not None and enough(self.history[-1]):
                break
            if settings.stopping_step and waited >= settings.stopping_step:
                logger.info("Tokenizer: stopped at epoch %d, best epoch %d", epoch, best_epoch)
                break
            self._restart()
        bar.close()
        self.model.load_state_dict(state)
        return self._learned(epoch)

    def _learned(self, epochs: int) -> Learned:
        """The codes of all items by the current state."""
        found = encode_all(self.encoded, np.arange(len(self.items)), self.domains.numpy())
        reconstruction = self._over_variance(found.squared_error, len(self.items))
        self._refuse_collapse(found.codes, found.residual_share, reconstruction, found.collision_rate)
        codebooks = self.model.quantizer.codebooks.detach().cpu().numpy().copy()
        return Learned(found.codes, self.encoded, codebooks, reconstruction, epochs, self.history)

    # -- one epoch -----------------------------------------------------------------------------------------------

    def _epoch(self, quantize: bool) -> dict[str, float]:
        settings = self.settings
        self.model.train()
        self.used.zero_()
        sums: dict[str, Tensor] = {}
        count = 0
        for number, rows in enumerate(self._batches()):
            inputs = self.encoded.inputs(rows.numpy())
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
            count += len(rows)
        return {name: float(value) / count for name, value in sums.items()}

    def _batches(self) -> Iterator[Tensor]:
        """All items in a new order, or a new sample of ``epoch_items`` of a larger catalogue, cut into batches."""
        count, most = len(self.items), self.settings.epoch_items
        order = torch.randperm(min(count, most), generator=self.random)
        if count > most:
            seed = int(torch.randint(2**62, (1,), generator=self.random))
            order = torch.from_numpy(sample_rows(count, most, seed))[order]
        yield from order.split(self.settings.batch_size)

    def _losses(self, inputs: Tensor, domains: Tensor, quantize: bool) -> dict[str, Tensor]:
        """Equation 7: reconstruction, quantisation and domain-aware contrastive loss; the warm-up quantises nothing.

        The domain loss is there from the first step on: setting in with the codes, it would undo what the auto-encoder
        has learned.
        """
        settings, model = self.settings, self.model
        parts = {}
        if quantize:
            outputs, quantized = model(inputs)
            vectors = quantized.vectors
            for level, codes in enumerate(quantized.codes.T):
                self.used[level, codes] = True
            parts["quantization_loss"] = quantization_loss(
                quantized.residuals, quantized.chosen, settings.beta, settings.reduction
            )
        else:
            vectors = model.encoder(inputs)
            outputs = model.decoder(vectors)
        parts["reconstruction_loss"] = reconstruction_loss(inputs, outputs, settings.reduction)
        if settings.domain_weight and len(self.items.domains) > 1:
            parts["domain_loss"] = settings.domain_weight * domain_contrastive_loss(vectors, domains)
        return {"loss": sum(parts.values()), **parts}

    def _rate(self, epoch: int) -> float:
        rate = self.settings.learning_rate
        if self.settings.schedule == "constant":
            return rate
        return rate * (0.01 + 0.99 * (1 + math.cos(math.pi * (epoch - 1) / self.settings.epochs)) / 2)

    def _set_learning_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _restart(self) -> None:
        dead = int((~self.used).sum())
        if self.settings.restart_dead and dead:
            rows = torch.randint(len(self.items), (dead,), generator=self.random)
            latents = torch.from_numpy(self.encoded[rows.numpy()]).to(self.device)
            restart_dead_codes(self.model.quantizer.codebooks, self.used, latents, self.optimizer)

    # -- what it is worth ----------------------------------------------------------------------------------------

    def _look(self) -> _Look:
        found = encode_all(self.encoded, self.looked_at, self.domains.numpy())
        reconstruction = self._over_variance(found.squared_error, len(self.looked_at))
        return _Look(reconstruction, found.collision_rate, codes_used(found.codes), perplexity(found.codes))

    def _over_variance(self, squared_error: float, count: int) -> float:
        return squared_error / count / self.variance if self.variance > 0 else 0.0

    def _refuse_collapse(
        self, codes: np.ndarray, residual_share: list[float], reconstruction: float, collisions: float
    ) -> None:
        distinct = len(np.unique(self.encoded[self.looked_at], axis=0))
        usable = min(self.settings.codebook_size, distinct)
        used = codes_used(codes)
        for level, (count, share) in enumerate(zip(used, residual_share, strict=True)):
            if share > NEGLIGIBLE and count < COLLAPSED * usable:
                raise TokenizerError(
                    f"The codebook of level {level + 1} has collapsed: codes used per level {used} of {usable} usable, "
                    f"reconstruction / variance {reconstruction:.4f}, collisions {collisions:.2%}",
                    mend="Set tokenizer_kmeans_init and tokenizer_restart_dead to True, raise tokenizer_warmup_epochs, "
                    "lower tokenizer_learning_rate or tokenizer_domain_weight, or take tokenizer: rkmeans",
                )

    def _say_estimate(self, seconds: float) -> None:
        epochs = self.settings.epochs
        logger.info(
            "Tokenizer: %d items, %.2f s an epoch%s, at most %d epochs = %.1f min%s",
            len(self.items),
            seconds,
            f" of {self.settings.epoch_items}" if len(self.items) > self.settings.epoch_items else "",
            epochs,
            seconds * epochs / 60,
            " (stops earlier without improvement)" if self.settings.stopping_step else "",
        )
