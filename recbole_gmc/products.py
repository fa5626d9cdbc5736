"""Matrix products: which of torch's ways is taken, in which precision, and how it was chosen.

torch multiplies float32 matrices by its default library. On some processors oneDNN, which torch carries as well, is
more than twice as fast; on others they are about equal. So the way is a setting, or oneDNN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F

from recbole_gmc.errors import SettingError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROWS = 640  # 32 users of 20 beams: the products that decoding makes most
WORTH_CHOOSING = 16e6  # floating-point operations; below it the choice saves nothing that could be noticed
EXACT = 1e-5  # largest relative error of a product that counts as float32


class Products:
    """torch's own products, on any device.

    Args:
        precision: ``fp32``, or ``bf16``: inputs and weights are rounded to it, sums are float32.
    """

    name = "torch"

    def __init__(self, precision: str = "fp32") -> None:
        self.precision = precision
        self.dtype = PRECISIONS[precision]

    def prepare(self, weight: torch.Tensor) -> torch.Tensor:
        """A matrix [out, in] as ``linear`` takes it."""
        return weight.to(self.dtype).contiguous()

    def linear(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """``rows`` [n, in] times a prepared weight: [n, out]."""
        return F.linear(rows.to(self.dtype), weight)

    def linear_relu(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self.linear(rows, weight).relu_()

    def prepare_parts(self, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """Matrices [out, in] as ``parts`` takes them."""
        return torch.stack([weight.to(self.dtype).t().contiguous() for weight in weights])

    def parts(self, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """``rows`` [n, in] times each of P prepared matrices: [P, n, out], each part in one piece.

        What one product of all parts would save is less than what it costs to take its result apart.
        """
        rows = rows.to(self.dtype)
        if rows.is_cuda:
            return torch.matmul(rows, weights)
        found = rows.new_empty(len(weights), len(rows), weights.shape[2])
        for weight, part in zip(weights, found, strict=True):
            torch.mm(rows, weight, out=part)
        return found

    def batched(self) -> Any:
        """A context in which ``parts`` and ``torch.bmm`` take this way, too."""
        return nullcontext()

    def in_float32(self) -> Products:
        """The same way in float32."""
        return self if self.precision == "fp32" else type(self)()


class OneDnnProducts(Products):
    """oneDNN's products on a CPU, weights in its own layout.

    Args:
        precision: as above.
        exact_batched: whether oneDNN's batched products hold float32 here (see ``batched_is_exact``).
    """

    name = "onednn"

    def __init__(self, precision: str = "fp32", exact_batched: bool = False) -> None:
        super().__init__(precision)
        self.exact_batched = exact_batched

    def prepare(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(super().prepare(weight), ROWS)

    def linear(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows.to(self.dtype), weight, None, "none", [], "")

    def linear_relu(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows.to(self.dtype), weight, None, "relu", [], "")

    def batched(self) -> Any:
        return onednn_batched() if self.exact_batched else nullcontext()


@contextmanager
def onednn_batched() -> Iterator[None]:
    """Lets torch hand float32 products to oneDNN, which it only does when told that less precision is welcome."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def batched_is_exact() -> bool:
    """Whether oneDNN, when allowed to round float32 products to bfloat16, computes them in float32 nevertheless.

    It does on processors where rounding would save nothing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, right = torch.randn(4, 96, 64), torch.randn(4, 64, 96)
    with onednn_batched():
        found = torch.bmm(left, right)
    return _agrees(found, left.double() @ right.double())


def trains_by_onednn(gemm: str, device: torch.device) -> bool:
    """Whether training in float32 hands its products to oneDNN (``onednn_batched``): nothing is measured.

    A measurement could fall out one way in a run and the other way when it is resumed, and the last digits with it.
    """
    return gemm != "torch" and onednn_available(device) and batched_is_exact()


def tokenizer_by_onednn(gemm: str, device: torch.device) -> bool:
    """Whether the RQ-VAE's products are oneDNN's: where it was asked for, and nothing is measured.

    Last digits decide which codes items get, and IDs follow from data, settings and seed, not from a stopwatch.

    Raises:
        SettingError: ``onednn`` was asked for and is not to be had.
    """
    return gemm == "onednn" and choose(gemm, "fp32", device, 1, 1).name == "onednn"


def onednn_available(device: torch.device, precision: str = "fp32") -> bool:
    """Whether torch has oneDNN and multiplies packed weights by it here; not every processor takes bf16."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    try:
        products = OneDnnProducts(precision)
        products.linear(torch.ones(2, 16), products.prepare(torch.ones(16, 16)))
    except (RuntimeError, AttributeError):
        return False
    return True


def choose(gemm: str, precision: str, device: torch.device | str, inner: int, outer: int) -> Products:
    """The products for a network.

    Args:
        gemm: ``torch``, ``onednn``, or ``auto``: oneDNN where it is to be had and holds float32, for all but the
            smallest networks. No stopwatch: it would change last digits, hence hashes, from run to run.
        precision: ``fp32`` or ``bf16``.
        device: where the network computes.
        inner, outer: the sides of its matrix.

    Raises:
        SettingError: ``onednn`` was asked for and is not to be had.
    """
    device = torch.device(device)
    here = gemm != "torch" and onednn_available(device, precision)
    if gemm == "onednn" and not here:
        what = f"oneDNN in this build of torch does not multiply {precision} on this {device.type}"
        raise SettingError(what, where="gemm", mend="Set gemm: auto or torch")
    plain = Products(precision)
    if not here:
        return plain
    other = OneDnnProducts(precision, exact_batched=precision == "fp32" and batched_is_exact())
    if gemm == "onednn":
        return other
    if 2 * ROWS * inner * outer < WORTH_CHOOSING:
        return plain
    return other if precision == "bf16" or _holds_float32(other, inner, outer) else plain


def _holds_float32(way: Products, inner: int, outer: int) -> bool:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rows, weight = torch.randn(ROWS, inner), torch.randn(outer, inner)
    return _agrees(way.linear(rows, way.prepare(weight)), rows.double() @ weight.double().T)


def _agrees(found: torch.Tensor, truth: torch.Tensor) -> bool:
    return float((found - truth).abs().max()) <= EXACT * float(truth.abs().max())
