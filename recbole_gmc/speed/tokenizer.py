"""The tokenizer: what the RQ-VAE's codes are worth, and what its start saves against codebooks of random vectors."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_gmc.errors import TokenizerError
from recbole_gmc.precision import resolved
from recbole_gmc.settings import TokenizerSettings, read
from recbole_gmc.speed.catalogues import Catalogue, read_clusters, real_domains, write_clusters
from recbole_gmc.speed.measure import PartResult, Row, SpeedOptions, clock, timed
from recbole_gmc.speed.memory import peak_bytes
from recbole_gmc.tokenizer.assign import make_unique
from recbole_gmc.tokenizer.fit import fit_rqvae
from recbole_gmc.tokenizer.learned import Learned
from recbole_gmc.tokenizer.quality import codes_used, collision_rates, weighted
from recbole_gmc.tokenizer.rkmeans import fit_rkmeans

ITEMS, WIDTHS = 66_000, (384, 4096)
EPOCH_ITEMS = 16_384  # of the synthetic ones, as four trainings with epochs of all 66,000 would take hours
TINY_ITEMS, TINY_WIDTHS = 600, (24, 48)
TINY = TokenizerSettings(
    levels=3, codebook_size=16, dim=8, rank=4, hidden_sizes=(32, 16), batch_size=64, warmup_epochs=2, epochs=8,
    eval_step=2,
)  # fmt: skip
CODES, COLLISIONS = 240, 0.015  # of 256 codes at least; before the repair at most
PATIENCE = 2.2  # times the epochs that this project's way takes, in which the random start may get as far
HALF = 2.0  # what the random start needs over what this project's way takes: at least
GROWTH = 0.1  # of the bytes of more vectors: what peak memory may grow by


def measure(options: SpeedOptions) -> Iterator[PartResult]:
    """Synthetic clusters in two widths, the real domains where there are any, and the growth of peak memory."""
    settings = settings_of(options)
    count, widths = (TINY_ITEMS, TINY_WIDTHS) if options.tiny else (ITEMS, WIDTHS)
    widths = widths if options.width is None else (options.width,)
    shorter = replace(settings, epoch_items=min(EPOCH_ITEMS, settings.epoch_items))
    for width in widths[:-1]:
        yield from _of_clusters(count, width, shorter, options)
    if options.data_path is not None and (catalogue := real_domains(options.data_path)) is not None:
        yield from _of_catalogue("real", catalogue, settings, options)
    found = _memory(count, widths[-1], shorter, options)
    yield PartResult({"memory": found.figures}, found.rows)
    yield from _of_clusters(count, widths[-1], shorter, options)  # takes longest by far


def settings_of(options: SpeedOptions) -> TokenizerSettings:
    """The defaults, or those of a test, with what the user's files say on top."""
    given = read(TokenizerSettings, options.settings)
    names = [item.name for item in fields(given) if item.metadata["key"] in options.settings]
    made = replace(TINY if options.tiny else TokenizerSettings(), **{name: getattr(given, name) for name in names})
    return replace(made, precision=resolved(made.precision, torch.device(options.device)))


def _of_clusters(count: int, width: int, settings: TokenizerSettings, options: SpeedOptions) -> Iterator[PartResult]:
    with _clusters(count, width, options.seed) as file:
        yield from _of_catalogue(f"synthetic_{width}", read_clusters(file), settings, options)


@contextmanager
def _clusters(count: int, width: int, seed: int) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="recbole_gmc-"))
    try:
        write_clusters(folder / "vectors.npy", count, width, seed)
        yield folder / "vectors.npy"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Training:
    """One training of the network.

    Attributes:
        seconds: CPU seconds from the start to each look at reconstruction and collisions.
        looks: reconstruction / variance by look, all on the same items.
        collisions: share of items that share their codes, by look.
        best: reconstruction / variance of the state which is kept.
        learned: ``None`` where the codebooks stayed collapsed.
    """

    seconds: tuple[float, ...]
    looks: tuple[float, ...]
    collisions: tuple[float, ...]
    best: float
    learned: Learned | None

    def seconds_to(self, reconstruction: float) -> float:
        """CPU seconds to the first look that is at least as good, or to the last one where none is."""
        found = (spent for spent, look in zip(self.seconds, self.looks, strict=True) if look <= reconstruction)
        return next(found, self.seconds[-1])


def _train(catalogue: Catalogue, settings: TokenizerSettings, options: SpeedOptions, until: float = 0.0) -> Training:
    """Trains until a look finds reconstruction / variance at ``until``, or to the end."""
    looks: list[dict] = []
    seconds: list[float] = []
    begin = clock(options.device)

    def enough(look: dict) -> bool:
        looks.append(look)
        seconds.append(clock(options.device) - begin)
        return look["reconstruction"] <= until

    try:
        learned = fit_rqvae(
            catalogue.items, catalogue.vectors, settings, seed=options.seed, device=options.device, progress=False,
            enough=enough,
        )  # fmt: skip
    except TokenizerError:
        learned = None
    best = min(looks, key=lambda look: look["reconstruction"] + look["collision_rate"])
    found, collisions = (tuple(look[name] for look in looks) for name in ("reconstruction", "collision_rate"))
    return Training(tuple(seconds), found, collisions, best["reconstruction"], learned)


def _of_catalogue(
    name: str, catalogue: Catalogue, settings: TokenizerSettings, options: SpeedOptions
) -> Iterator[PartResult]:
    ours = _train(catalogue, settings, options)
    if ours.learned is None:
        raise TokenizerError(f"The codebooks stayed collapsed on {catalogue.name}")
    sizes = {"items": len(catalogue.items), "epoch_items": min(settings.epoch_items, len(catalogue.items))}
    quality = sizes | _quality(catalogue, settings, ours.learned, options)
    title, used = catalogue.name, quality["codes_used"]
    least = f"at least {CODES}" if settings.codebook_size == TokenizerSettings().codebook_size else ""
    before, after = quality["collision_rate"], quality["collision_rate_after"]
    rows = (
        Row(f"{title}: codes used per level", " ".join(map(str, used)), least),
        Row(
            f"{title}: collisions before and after the repair",
            f"{before:.2%}, {after:.0%}; {quality['moved_items']} items moved in {quality['repair_seconds']:.1f} s",
            f"at most {COLLISIONS:.1%}, 0%",
        ),
        Row(
            f"{title}: reconstruction / variance; PCA + residual k-means",
            f"{quality['reconstruction']:.4f}",
            f"{quality['rkmeans_reconstruction']:.4f}, collisions {quality['rkmeans_collision_rate']:.2%}",
        ),
    )
    yield PartResult({name: quality}, rows)
    start = _against_random(catalogue, settings, options, ours)
    missed = "" if start["reached"] else f", not reached: {start['reference_reconstruction']:.4f}"
    rows = (
        Row(
            f"{title}: the same reconstruction from random codebooks",
            f"{start['seconds']:.1f} s",
            f"{start['reference_seconds']:.1f} s{missed}, collisions {start['reference_collision_rate']:.2%}",
            start["ratio"] if start["reached"] else None,
        ),
        Row(
            f"{title}: from random codebooks with restarts of dead codes, as many epochs",
            f"{start['seconds']:.1f} s to {ours.best:.4f}",
            f"{start['restarts_seconds']:.1f} s to {start['restarts_reconstruction']:.4f}",
        ),
    )
    yield PartResult({name: quality | start}, rows)
    if (lighter := replace(settings, precision=resolved("auto", torch.device(options.device)))) == settings:
        return
    quick = _against_lighter(catalogue, lighter, options, ours)
    spent, collisions = quick["all_seconds"], quick["collision_rate"]
    after = f"{quick['reconstruction']:.4f} after {spent:.1f} s, collisions {collisions:.2%}"
    row = Row(
        f"{title}: the same reconstruction in {quick['precision']}",
        f"{start['seconds']:.1f} s",
        f"{quick['seconds']:.1f} s{'' if quick['reached'] else ', not reached'}; {after}",
    )
    yield PartResult({name: quality | start | {"quick": quick}}, (row,))


def _against_lighter(
    catalogue: Catalogue, settings: TokenizerSettings, options: SpeedOptions, ours: Training
) -> dict[str, Any]:
    """What ``settings``, of the precision that the hardware multiplies fastest, need to get as far as ``ours``, and
    where they end."""
    quick = _train(catalogue, settings, options)
    if quick.learned is None:
        raise TokenizerError(f"The codebooks stayed collapsed on {catalogue.name} in {settings.precision}")
    return {
        "precision": settings.precision,
        "seconds": quick.seconds_to(ours.best),
        "reached": min(quick.looks) <= ours.best,
        "all_seconds": quick.seconds[-1],
        "reconstruction": quick.best,
        "collision_rate": _collisions(catalogue, quick.learned.codes),
    }


def _collisions(catalogue: Catalogue, codes: np.ndarray) -> float:
    return weighted(catalogue.items, collision_rates(catalogue.items, codes))


def _quality(
    catalogue: Catalogue, settings: TokenizerSettings, learned: Learned, options: SpeedOptions
) -> dict[str, Any]:
    items = catalogue.items
    bar: list[Learned] = []
    bar_seconds = timed(lambda: bar.append(fit_rkmeans(catalogue.vectors, settings, options.seed)))
    begin = clock("cpu")
    made = make_unique(items, learned.codes, learned.latents, learned.codebooks)
    repair_seconds = clock("cpu") - begin
    used, before = codes_used(learned.codes), _collisions(catalogue, learned.codes)
    return {
        "codes_used": used,
        "collision_rate": before,
        "collision_rate_after": _collisions(catalogue, made.codes),
        "moved_items": int(made.moved.sum()),
        "repair_seconds": repair_seconds,
        "reconstruction": learned.reconstruction,
        "rkmeans_reconstruction": bar[0].reconstruction,
        "rkmeans_collision_rate": _collisions(catalogue, bar[0].codes),
        "rkmeans_seconds": bar_seconds,
        "enough_codes": min(used) >= CODES,
        "few_collisions": before <= COLLISIONS,
        "below_rkmeans": learned.reconstruction < bar[0].reconstruction,
    }


def _against_random(
    catalogue: Catalogue, settings: TokenizerSettings, options: SpeedOptions, ours: Training
) -> dict[str, Any]:
    """What codebooks of random vectors, trained with the network from the first step on, need to get as far.

    They are given ``PATIENCE`` times the epochs, warm-up included, the learning rate falling over all of these. Where
    that is enough, they are given the epochs once, too, as less time may do. Neither has dead codes restarted; a third
    training, of as many epochs, has, which tells what the restarts do alone.
    """
    epochs = settings.warmup_epochs + settings.epochs
    start = replace(settings, kmeans_init=False, warmup_epochs=0, restart_dead=False, stopping_step=0)
    plain = _train(catalogue, replace(start, epochs=round(PATIENCE * epochs)), options, ours.best)
    reached = plain.looks[-1] <= ours.best
    if reached:
        short = _train(catalogue, replace(start, epochs=epochs), options, ours.best)
        if short.looks[-1] <= ours.best and short.seconds[-1] < plain.seconds[-1]:
            plain = short
    restarts = _train(catalogue, replace(start, epochs=epochs, restart_dead=True), options, ours.best)
    seconds = ours.seconds_to(ours.best)  # as the random start's: to the first look that is good enough
    ratio = plain.seconds[-1] / seconds
    return {
        "ratio": ratio,  # a lower bound where the reconstruction was not reached
        "reached": reached,
        "half_the_time": ratio >= HALF,
        "seconds": seconds,
        "reference_seconds": plain.seconds[-1],
        "reference_reconstruction": min(plain.looks),
        "reference_collision_rate": plain.collisions[-1],  # the same reconstruction need not tell items apart
        "reference_codes_used": None if plain.learned is None else codes_used(plain.learned.codes),
        "restarts_seconds": restarts.seconds[-1],
        "restarts_reconstruction": min(restarts.looks),
        "restarts_reached": restarts.looks[-1] <= ours.best,
    }


def _memory(count: int, width: int, settings: TokenizerSettings, options: SpeedOptions) -> PartResult:
    """Peak memory of a process that learns codes for ``count`` vectors, and of one for twice as many."""
    # An epoch holds no more after many than after one. So early the domain loss would collapse the codebooks.
    few = replace(settings, warmup_epochs=1, epochs=1, domain_weight=0.0)
    peaks = []
    for number in (count, 2 * count):
        with _clusters(number, width, options.seed) as file:
            peaks.append(peak_bytes(unique_codes, file, few, options.seed))
    grown, more = peaks[1] - peaks[0], 2 * count * width  # float16
    figures = {
        "items": count,
        "width": width,
        "peak_bytes": peaks[0],
        "peak_bytes_of_twice_as_many": peaks[1],
        "vector_bytes": more,
        "bounded": grown <= GROWTH * more,
    }
    megabytes = [f"{number / 2**20:.0f}" for number in (*peaks, grown, more)]
    row = Row(
        f"peak memory, {count:,} and {2 * count:,} vectors, {width} dims",
        f"{megabytes[0]} and {megabytes[1]} MiB: {megabytes[2]} MiB more",
        f"{megabytes[3]} MiB more vectors (float16)",
    )
    return PartResult(figures, (row,))


def unique_codes(file: Path, settings: TokenizerSettings, seed: int) -> np.ndarray:
    """int32 [items, L]: the codes of the vectors in ``file``, unique inside each domain; for a process of its own."""
    catalogue = read_clusters(file)
    learned = fit_rqvae(catalogue.items, catalogue.vectors, settings, seed=seed, progress=False)
    return make_unique(catalogue.items, learned.codes, learned.latents, learned.codebooks).codes
