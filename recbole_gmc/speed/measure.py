"""How the speed command measures: two ways in turn, in seconds of this process, and the machine they ran on."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_gmc.products import PRECISIONS, onednn_available

GEMM_SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 192, 768), (4096, 576, 576))


@dataclass(frozen=True)
class SpeedOptions:
    """What a part may use.

    Attributes:
        device: ``cpu`` or a cuda device.
        threads: torch's threads, already set when a part runs.
        rounds: times that each way is measured; a part may take fewer where one round takes minutes.
        seed: of weights and synthetic data.
        run: a run folder with a trained checkpoint, or ``None`` for random weights only.
        data_path: the folder of real domains, or ``None`` where there is none.
        width: D of the synthetic embeddings, or ``None`` for both usual ones.
        settings: keys with values, of which the tokenizer takes its own.
        tiny: sizes that take a second, for tests; the figures then mean nothing.
    """

    device: str = "cpu"
    threads: int = 1
    rounds: int = 5
    seed: int = 2020
    run: Path | None = None
    data_path: Path | None = None
    width: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    tiny: bool = False


@dataclass(frozen=True)
class Row:
    """A line of the printed table.

    Attributes:
        title: what was measured.
        ours: this project's way, with its unit, as in ``4.3 ms/user``.
        reference: the usual way, or what the figure is held against.
        ratio: reference over ours, or ``None`` where the figure is no ratio.
        spread: smallest and largest ratio of all rounds, or ``None``.
        same: whether both gave the same answer, or ``None`` where there is nothing to compare.
    """

    title: str
    ours: str
    reference: str = ""
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    same: bool | None = None


@dataclass(frozen=True)
class PartResult:
    """What a part has just found: entries of speed.json (numbers, words, lists and dicts only), lines of the table."""

    figures: dict[str, Any]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Comparison:
    """Seconds a unit of work, one number a round, of both ways."""

    ours: tuple[float, ...]
    reference: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        return tuple(there / here for here, there in zip(self.ours, self.reference, strict=True))

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        return min(self.ratios), max(self.ratios)

    @property
    def seconds(self) -> tuple[float, float]:
        """Median seconds a unit: ours, the reference's."""
        return statistics.median(self.ours), statistics.median(self.reference)

    def figures(self) -> dict[str, float]:
        """``ratio``, ``ratio_min``, ``ratio_max`` and both medians, as they stand in speed.json."""
        ours, reference = self.seconds
        low, high = self.spread
        return {
            "ratio": self.ratio,
            "ratio_min": low,
            "ratio_max": high,
            "seconds": ours,
            "reference_seconds": reference,
            "rounds": len(self.ours),
        }


def clock(device: str) -> float:
    """Seconds of CPU of this process, all threads together; on cuda seconds of time with the device at rest."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def timed(work: Callable[[], Any], device: str = "cpu") -> float:
    """Seconds (see ``clock``) that ``work`` takes."""
    begin = clock(device)
    work()
    return clock(device) - begin


class Stopwatch:
    """How many seconds (see ``clock``) some methods of some objects took.

    Example:
        >>> with Stopwatch("cpu") as watch:                                     # doctest: +SKIP
        ...     watch.add(network, "encode", "step")
        ...     search()
        >>> watch.seconds                                                       # doctest: +SKIP
    """

    def __init__(self, device: str) -> None:
        self.device, self.seconds = device, 0.0
        self._watched: list[tuple[Any, str]] = []

    def add(self, owner: Any, *names: str) -> None:
        """Counts the time of these methods of ``owner``; none of them may call another that counts."""
        self._watch(owner, names, 1)

    def leave_out(self, owner: Any, *names: str) -> None:
        """Takes the time of methods away again that are called by others that count."""
        self._watch(owner, names, -1)

    def _watch(self, owner: Any, names: tuple[str, ...], sign: int) -> None:
        for name in names:
            setattr(owner, name, self._counted(getattr(owner, name), sign))
            self._watched.append((owner, name))

    def _counted(self, work: Callable[..., Any], sign: int) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            begin = clock(self.device)
            result = work(*args, **kwargs)
            self.seconds += sign * (clock(self.device) - begin)
            return result

        return counted

    def __enter__(self) -> Stopwatch:
        return self

    def __exit__(self, *_: Any) -> None:
        for owner, name in self._watched:
            delattr(owner, name)


def in_turn(
    ways: Mapping[str, Callable[[], Any]], rounds: int, device: str = "cpu", units: Mapping[str, float] | None = None
) -> dict[str, tuple[float, ...]]:
    """Seconds a unit of several ways, each measured once a round, after one round that does not count.

    Args:
        ways: one round of work of each.
        rounds: how many rounds count.
        units: how much work a round of each does, 1 where not named.
    """
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, work in ways.items():
            seconds = timed(work, device) / (units or {}).get(name, 1)
            if number:
                spent[name].append(seconds)
    return {name: tuple(seconds) for name, seconds in spent.items()}


class ProductCount(TorchDispatchMode):
    """Floating-point operations of matrix products; a multiplication and an addition are two."""

    PRODUCTS = ("aten::mm", "aten::bmm", "aten::matmul", "aten::linear", "mkldnn::_linear_pointwise")

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name in self.PRODUCTS:
            self.operations += 2 * result.numel() * args[0].shape[-1]
        elif func._schema.name in ("aten::addmm", "aten::baddbmm"):
            self.operations += 2 * result.numel() * args[1].shape[-1]
        return result


def gemm_rates(precision: str, device: str, seconds: float = 0.15) -> dict[str, float]:
    """The best GFLOP/s of each matrix product that torch offers here, over several shapes.

    Args:
        precision: ``fp32`` or ``bf16``; products of another precision do not count.
        seconds: how long each shape and way is measured.
    """
    rates: dict[str, float] = {}
    for rows, inner, columns in GEMM_SHAPES:
        left = torch.randn(rows, inner, device=device).to(PRECISIONS[precision])
        weight = torch.randn(columns, inner, device=device).to(PRECISIONS[precision])
        for name, product in _products(left, weight, precision).items():
            product()
            count, begin = 0, clock(device)
            while (spent := clock(device) - begin) < seconds:
                product()
                count += 1
            rates[name] = max(rates.get(name, 0.0), 2e-9 * rows * inner * columns * count / spent)
    return rates


def _products(left: torch.Tensor, weight: torch.Tensor, precision: str) -> dict[str, Callable[[], Any]]:
    ways: dict[str, Callable[[], Any]] = {"torch": lambda: F.linear(left, weight)}
    if onednn_available(left.device, precision):
        ways["onednn"] = lambda: torch.ops.mkldnn._linear_pointwise(left, weight, None, "none", [], "")
    return ways


def machine(options: SpeedOptions) -> dict[str, Any]:
    """What the figures were measured on: processor, instructions, threads, versions, GEMM rates in GFLOP/s."""
    cuda = options.device.startswith("cuda")
    seconds = 0.01 if options.tiny else 0.15
    return {
        "device": torch.cuda.get_device_name(options.device) if cuda else _processor(),
        "instructions": None if cuda else torch.backends.cpu.get_cpu_capability(),
        "threads": options.threads,
        "clock": "seconds" if cuda else "CPU seconds",
        "gflops": {precision: gemm_rates(precision, options.device, seconds) for precision in PRECISIONS},
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
