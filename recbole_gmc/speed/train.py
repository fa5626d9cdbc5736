"""Training: this project's packed step against a padded step of transformers on the same weights and i.i.d. batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from recbole_gmc.model.forward import PackedT5
from recbole_gmc.model.seq2seq import encode_histories
from recbole_gmc.model.vocabulary import Vocabulary
from recbole_gmc.products import onednn_batched, trains_by_onednn
from recbole_gmc.speed.cases import MOST, Case, random_case
from recbole_gmc.speed.epoch import outside
from recbole_gmc.speed.measure import (
    Comparison,
    PartResult,
    ProductCount,
    Row,
    SpeedOptions,
    gemm_rates,
    in_turn,
    timed,
)
from recbole_gmc.speed.reference import TrainStep, plain_t5

# Training rows of Scientific (33,541: all prefixes under leave-one-out) by the items in their history: 1, 2, ... 20,
# where 20 counts the longer ones, too; 3.8 on average.
LENGTHS = (8317, 8317, 5056, 3188, 2118, 1476, 1099, 804, 606, 476, 366, 297, 240, 189, 149, 124, 102, 80, 63, 474)
BATCH = 256  # of properties/preset/cpu.yaml
BATCHES = 8
OTHER_BATCHES = (8, 16, 32, 64)
CHUNK_TOKENS = 16_384
CLOSE = 1e-5
NEAR = 3  # bf16 gradients are as near to fp32 ones as those of transformers in autocast, up to this factor


@dataclass(frozen=True)
class Batch:
    """Rows as a data loader gives them: items int64 [B, S], how many count [B], and the target's row [B]."""

    history: Tensor
    length: Tensor
    target: Tensor

    def parts(self, size: int) -> Iterator[Batch]:
        for parts in zip(self.history.split(size), self.length.split(size), self.target.split(size), strict=True):
            yield Batch(*parts)


class PackedStep:
    """This project's step: what a trainer of ours does with a batch."""

    def __init__(self, case: Case, device: str, dtype: torch.dtype, dropout: float) -> None:
        self.t5 = plain_t5(case.state, case.config, device, attn_implementation="eager", dropout_rate=dropout).train()
        if dtype == torch.float64:
            self.t5.double()
        self.by_onednn = trains_by_onednn("auto", torch.device(device))
        self.network = PackedT5(self.t5, dtype)
        self.parameters = list(self.t5.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, weight_decay=0.01)

    def backward(self, input_ids: Tensor, sizes: Tensor, labels: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        with onednn_batched() if self.by_onednn else nullcontext():
            return self.network.backward(input_ids, sizes, labels, CHUNK_TOKENS)

    def __call__(self, input_ids: Tensor, sizes: Tensor, labels: Tensor) -> Tensor:
        loss = self.backward(input_ids, sizes, labels)
        clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return loss


def measure(options: SpeedOptions) -> Iterator[PartResult]:
    """Samples a second of both ways with the length mix of Scientific, and what of an epoch is outside the network."""
    compared = _Steps(options).compare()
    yield compared
    for precision in ("fp32", "bf16"):
        shares = outside(LENGTHS, precision, options)
        row = Row(
            f"{precision}: epoch outside forward, backward and optimiser", f"{100 * shares['share']:.1f}% of time"
        )
        yield PartResult({precision: compared.figures[precision] | {"outside": shares}}, (row,))


class _Steps:
    """All ways that are compared, on the same batches in the same order."""

    def __init__(self, options: SpeedOptions) -> None:
        self.options, self.size = options, 8 if options.tiny else BATCH
        self.case = random_case(options, 1, realistic=False)
        self.codes = self.case.codes.to(options.device)
        self.vocabulary = Vocabulary.of(self.case.ids)
        self.batches = self._draw(2 if options.tiny else BATCHES)

    def _draw(self, count: int) -> list[Batch]:
        draw = torch.Generator().manual_seed(self.options.seed)
        rows, items = count * self.size, len(self.codes)
        length = 1 + torch.multinomial(torch.tensor(LENGTHS).float(), rows, replacement=True, generator=draw)
        history = torch.randint(items, (rows, MOST), generator=draw)
        target = torch.randint(items, (rows,), generator=draw)
        parts = (part.to(self.options.device).split(self.size) for part in (history, length, target))
        return [Batch(*part) for part in zip(*parts, strict=True)]

    # ---- the ways ----------------------------------------------------------------------------------------------------

    def ours(self, dtype: torch.dtype, dropout: float = 0.0) -> PackedStep:
        return PackedStep(self.case, self.options.device, dtype, dropout)

    def usual(self, dropout: float = 0.0, autocast: bool = False, attention: str = "eager") -> TrainStep:
        changes = {"dropout_rate": dropout, "attn_implementation": attention}
        return TrainStep(self.case.state, self.case.config, self.options.device, autocast, **changes)

    def inputs(self, batch: Batch, way: PackedStep | TrainStep) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens padded to the batch's longest, their mask (for ours their number), and labels."""
        tokens, mask = encode_histories(self.codes, batch.history, batch.length, self.vocabulary)
        labels = self.vocabulary.tokens(self.codes[batch.target])
        return tokens, (mask if isinstance(way, TrainStep) else mask.sum(1)), labels

    def steps(self, way: PackedStep | TrainStep, size: int | None = None) -> Callable[[], None]:
        """Each call trains on the next batch, in steps of ``size`` rows (default: one step)."""
        batches = cycle(self.batches)

        def work() -> None:
            for part in next(batches).parts(size or self.size):
                way(*self.inputs(part, way))

        return work

    # ---- the comparison ----------------------------------------------------------------------------------------------

    def gradients(self, way: PackedStep | TrainStep, batch: Batch) -> dict[str, Tensor]:
        """Of the mean loss of a batch."""
        way.backward(*self.inputs(batch, way))
        found = {name: parameter.grad.clone() for name, parameter in way.t5.named_parameters()}
        way.optimizer.zero_grad()
        return found

    def difference(self, way: PackedStep | TrainStep, other: PackedStep | TrainStep, batch: Batch) -> float:
        """The largest |found - truth| / |truth| of the gradients of any parameter, in Euclidean norms."""
        found, truth = self.gradients(way, batch), self.gradients(other, batch)
        return max(float((found[name] - truth[name]).norm() / truth[name].norm()) for name in truth)

    def checks(self) -> dict[str, dict[str, Any]]:
        """Whether ours gives the gradients of transformers, on the first batch cut into eight parts.

        Among millions of relus a few have an input within rounding of 0, and the two ways may see it on different
        sides. So a part that differs in fp32 is done again in float64, where it must not; more than half must agree.
        """
        parts = list(self.batches[0].parts(max(1, self.size // 8)))
        usual, fp32 = self.usual(), self.ours(torch.float32)
        found = [self.difference(fp32, usual, part) for part in parts]
        apart = [number for number, difference in enumerate(found) if difference > CLOSE]
        again = self.usual()
        again.t5.double()
        double = self.ours(torch.float64)
        real = [number for number in apart if self.difference(double, again, parts[number]) > CLOSE]
        agreed = [difference for number, difference in enumerate(found) if number not in apart or number in real]
        bf16 = self.difference(self.ours(torch.bfloat16), usual, parts[0])
        autocast = self.difference(self.usual(autocast=True), usual, parts[0])
        return {
            "fp32": {
                "same": not real and 2 * len(apart) < len(parts),
                "max_difference": max(agreed, default=max(found)),
                "parts": len(parts),
                "parts_with_a_relu_at_zero": len(apart) - len(real),
            },
            "bf16": {"same": bf16 <= NEAR * autocast, "max_difference": bf16, "max_difference_autocast": autocast},
        }

    def compare(self) -> PartResult:
        device, rate = self.options.device, self.case.config.dropout_rate
        checks = self.checks()
        usual = self.usual()
        batches = [size for size in (*OTHER_BATCHES, self.size) if size <= self.size]
        best = min(batches, key=lambda size: timed(self.steps(usual, size), device))
        ways = {
            "fp32": self.steps(self.ours(torch.float32)),
            "bf16": self.steps(self.ours(torch.bfloat16)),
            "fp32, dropout": self.steps(self.ours(torch.float32, rate)),
            "bf16, dropout": self.steps(self.ours(torch.bfloat16, rate)),
            "usual": self.steps(usual),
            "usual, best batch": self.steps(usual, best),
            "usual, sdpa": self.steps(self.usual(attention="sdpa")),
            "usual, autocast": self.steps(self.usual(autocast=True)),
            "usual, dropout": self.steps(self.usual(rate)),
        }
        spent = in_turn(ways, self.options.rounds, device, dict.fromkeys(ways, self.size))
        figures: dict[str, Any] = {"batch": self.size}
        rows: list[Row] = []

        def row(key: str, way: str, other: str, words: str) -> None:
            compared, check = Comparison(spent[way], spent[other]), checks.get(key, {})
            here, there = (1 / seconds for seconds in compared.seconds)
            figures[key] = {**compared.figures(), "samples": here, "reference_samples": there, **check}
            rates = f"{here:.0f} samples/s", f"{there:.0f} samples/s"
            rows.append(Row(words, *rates, compared.ratio, compared.spread, check.get("same")))

        row("fp32", "fp32", "usual", f"fp32; padded eager step, batch of {self.size}")
        row("bf16", "bf16", "usual", "bf16; the same in fp32")
        row("bf16_autocast", "bf16", "usual, autocast", "bf16; the same in bf16 autocast")
        row("fp32_dropout", "fp32, dropout", "usual, dropout", "fp32; the same, dropout on in both")
        row("bf16_dropout", "bf16, dropout", "usual, dropout", "bf16; the same in fp32, dropout on in both")
        row("fp32_sdpa", "fp32", "usual, sdpa", "fp32; the same with sdpa")
        row("fp32_best_batch", "fp32", "usual, best batch", f"fp32; the same in its best batches ({best})")
        row("bf16_best_batch", "bf16", "usual, best batch", "bf16; the same in fp32")
        return PartResult(figures, (*rows, *self.products(figures, ways)))

    def products(self, figures: dict[str, Any], ways: dict[str, Callable[[], None]]) -> Iterator[Row]:
        """What each way multiplies and how fast, without dropout: what is saved, and what is left to gain.

        Adds to the figures of both precisions.
        """
        there = self.operations(ways["usual"])
        for precision in ("fp32", "bf16"):
            found, here = figures[precision], self.operations(ways[precision])
            best = max(gemm_rates(precision, self.options.device, 0.01 if self.options.tiny else 0.15).values())
            rate, other = here * found["samples"] / 1e9, there * found["reference_samples"] / 1e9
            found |= {"mflop_a_sample": here / 1e6, "reference_mflop_a_sample": there / 1e6, "gflops": rate}
            found |= {"reference_gflops": other, "best_gflops": best, "roofline": rate / best}
            yield Row(f"{precision}: products", f"{here / 1e6:.0f} MFLOP/sample", f"{there / 1e6:.0f} MFLOP/sample")
            share = f"{rate:.0f} GFLOP/s, {100 * rate / best:.0f}% of {best:.0f}"
            yield Row(f"{precision}: their rate, of the machine's best", share, f"{other:.0f} GFLOP/s")

    def operations(self, work: Callable[[], None]) -> float:
        """Floating-point operations a sample of a way's products, over all batches."""
        with ProductCount() as count:
            for _ in self.batches:
                work()
        return count.operations / (self.size * len(self.batches))
