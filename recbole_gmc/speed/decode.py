"""Decoding: this project's constrained beam search against transformers' ``generate`` on the same weights and users."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from recbole_gmc.decode.exact import score_all
from recbole_gmc.errors import CheckpointError
from recbole_gmc.model.seq2seq import encode_histories
from recbole_gmc.products import batched_is_exact, onednn_available, onednn_batched
from recbole_gmc.recommender import Ranking, Recommender
from recbole_gmc.speed.cases import Case, random_case, trained_case
from recbole_gmc.speed.measure import (
    Comparison,
    PartResult,
    ProductCount,
    Row,
    SpeedOptions,
    Stopwatch,
    gemm_rates,
    in_turn,
    timed,
)

BEAMS = 20
USERS = 512  # of our ways, where all histories are equally long and any number fills batches
MANY_USERS = 2048  # where they are not, as in an evaluation: enough that users of one length fill batches
USERS_OF_REFERENCE = 64  # it takes seconds for them, and its cost a user does not depend on their number
ORACLE_USERS = 56
BATCH = 32  # the reference's, as in the cost model
OTHER_BATCHES = (4, 8, 16, 32)
CLOSE = 1e-4
ALIKE = 0.99


def measure(options: SpeedOptions) -> Iterator[PartResult]:
    """All rows on random weights, histories of 20 and of realistic lengths; with ``run`` on trained ones, too.

    Raises:
        CheckpointError: the run's largest domain has fewer items than there are beams, which ``generate`` cannot do.
    """
    users, many = (8, 16) if options.tiny else (USERS, MANY_USERS)
    # before minutes of work, as a run can be unfit
    trained = None if options.run is None else trained_case(options.run, options.seed)
    if trained is not None and len(trained.codes) < BEAMS:
        what = f"its largest domain has {len(trained.codes)} items, fewer than {BEAMS} beams"
        raise CheckpointError(what, str(options.run), "Give a run on a larger domain")
    yield _compare(random_case(options, users, realistic=False), options, "")
    more = {"realistic": random_case(options, many, realistic=True)}
    if trained is not None:
        more["trained"] = trained.users(many)
    for name, case in more.items():
        compared = _compare(case, options, f"{name}: ")
        yield PartResult({name: compared.figures}, compared.rows)
        if case.target is not None:
            told = _trained(case, options)
            yield PartResult({name: compared.figures | told.figures}, told.rows)


class _Reference:
    """transformers on a case, with the batch size it likes best."""

    def __init__(self, case: Case, device: str) -> None:
        self.case, self.generate = case, case.reference(device)

    def lists(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        case, generate = self.case, self.generate
        found = []
        for begin in range(0, len(case), batch):
            part = slice(begin, begin + batch)
            tokens, mask = encode_histories(case.codes, case.history[part], case.length[part], generate.vocabulary)
            found.append(generate.search(tokens, mask, BEAMS))
        rows, scores = zip(*found, strict=True)
        return torch.cat(rows), torch.cat(scores)


def _lists(recommender: Recommender, case: Case) -> Ranking:
    return recommender.rank(case.domain, case.history, case.length)


def _compare(case: Case, options: SpeedOptions, title: str) -> PartResult:
    """Both ways, fp32 and bf16, with every choice of the reference's batches and GEMM that could matter."""
    device = options.device
    some = case.sample(4 if options.tiny else USERS_OF_REFERENCE)
    reference = _Reference(some, device)
    kinds = {"fp32": {}, "bf16": {"precision": "bf16"}, "torch": {"gemm": "torch"}}
    ours = {name: case.recommender(device, beam_size=BEAMS, **settings) for name, settings in kinds.items()}
    truth, checks = reference.lists(BATCH), {}
    for name, way in ours.items():
        checks[name] = _same(_lists(way, some), truth, exact=name != "bf16")
    best = min(OTHER_BATCHES, key=lambda batch: timed(lambda: reference.lists(batch), device))

    ways: dict[str, Callable[[], Any]] = {name: lambda way=way: _lists(way, case) for name, way in ours.items()}
    ways |= {"usual": lambda: reference.lists(BATCH), "usual, best batch": lambda: reference.lists(best)}
    if both := onednn_available(torch.device(device)) and batched_is_exact():
        ways["usual, onednn"] = lambda: _with_onednn(reference)
    spent = in_turn(ways, options.rounds, device, {name: len(case if name in ours else some) for name in ways})
    figures: dict[str, Any] = {}
    rows: list[Row] = []

    def row(key: str, way: str, usual: str, words: str) -> None:
        compared = Comparison(spent[way], spent[usual])
        figures[key] = {**compared.figures(), **checks[way]}
        here, there = (f"{1000 * seconds:.2f} ms/user" for seconds in compared.seconds)
        rows.append(Row(f"{title}{words}", here, there, compared.ratio, compared.spread, checks[way]["same"]))

    row("fp32", "fp32", "usual", f"fp32; generate in batches of {BATCH}")
    row("bf16", "bf16", "usual", "bf16; the same in fp32")
    row("fp32_best_batch", "fp32", "usual, best batch", f"fp32; generate in its best batches ({best})")
    row("bf16_best_batch", "bf16", "usual, best batch", "bf16; the same in fp32")
    row("same_backend_torch", "torch", "usual", "fp32; torch's GEMM on both sides")
    if both:
        row("same_backend_onednn", "fp32", "usual, onednn", "fp32; oneDNN's GEMM on both sides")
    for name in ("fp32", "bf16"):
        figures[name] |= (shares := _shares(ours[name], case, options, name))
        part = f"{100 * shares['bookkeeping']:.1f}% of time"
        rows.append(Row(f"{title}{name}: tree, masks, top-k, bookkeeping", part))
        rate = f"{shares['gflops']:.0f} GFLOP/s"
        best_rate = f"{100 * shares['roofline']:.0f}% of {shares['best_gflops']:.0f}"
        rows.append(Row(f"{title}{name}: rate of all products", rate, best_rate))
    return PartResult(figures, tuple(rows))


def _with_onednn(reference: _Reference) -> Any:
    with onednn_batched():
        return reference.lists(BATCH)


def _same(found: Ranking, truth: tuple[torch.Tensor, torch.Tensor], exact: bool) -> dict[str, Any]:
    """``same``: the same items in the same order with scores within 1e-4; if not ``exact``, 99% of the items."""
    rows, scores = (tensor.numpy() for tensor in truth)
    equal = np.array_equal(found.ranked, rows)
    difference = float(np.abs(found.scores - scores).max())
    overlap = _overlap(found.ranked, rows)
    return {
        "same": bool(equal and difference <= CLOSE) if exact else overlap >= ALIKE,
        "same_order": equal,
        "max_difference": difference,
        "overlap": overlap,
    }


def _overlap(left: np.ndarray, right: np.ndarray) -> float:
    """The mean share of a user's items in ``left`` [n, K] that are in ``right`` [n, K], too."""
    return float((left[:, :, None] == right[:, None]).any(2).mean())


def _shares(way: Recommender, case: Case, options: SpeedOptions, precision: str) -> dict[str, float]:
    """What part of the time is not spent in the network, and how near its products come to the machine's best rate."""
    with ProductCount() as count:
        _lists(way, case)
    search = way.searches[case.domain]
    seconds = [timed(lambda: _lists(way, case), options.device) for _ in range(options.rounds)]
    with Stopwatch(options.device) as inside:
        inside.add(search.network, "encode", "step")
        inside.leave_out(search.network, "_look")  # masks are bookkeeping
        watched = sum(timed(lambda: _lists(way, case), options.device) for _ in range(options.rounds))
    best = max(gemm_rates(precision, options.device, 0.01 if options.tiny else 0.15).values())
    rate = count.operations / statistics.median(seconds) / 1e9
    return {
        "bookkeeping": 1 - inside.seconds / watched,
        "mflop_a_user": count.operations / len(case) / 1e6,
        "gflops": rate,
        "best_gflops": best,
        "roofline": rate / best,
    }


def _trained(case: Case, options: SpeedOptions) -> PartResult:
    """What only a trained model tells: bf16's lists, what beam search misses, and what exact lists cost."""
    device = options.device
    kinds = {"fp32": {}, "bf16": {"precision": "bf16"}, "exact": {"search": "exact"}}
    ours = {name: case.recommender(device, beam_size=BEAMS, **settings) for name, settings in kinds.items()}
    ways = {name: lambda way=ours[name]: _lists(way, case) for name in ("fp32", "exact")}
    spent = in_turn(ways, options.rounds, device, dict.fromkeys(ways, len(case)))
    found = {name: _lists(way, case) for name, way in ours.items()}
    cost = Comparison(spent["fp32"], spent["exact"])
    ndcg = {name: _ndcg(lists.ranked, case) for name, lists in found.items()}
    equal = _equals_oracle(ours["exact"], case.users(4 if options.tiny else ORACLE_USERS))
    overlap = _overlap(found["bf16"].ranked, found["fp32"].ranked)
    figures = {
        "bf16_lists": {
            "users": len(case),
            "overlap": overlap,
            "ndcg@10": ndcg["bf16"],
            "ndcg@10_fp32": ndcg["fp32"],
            "ndcg_difference": abs(ndcg["bf16"] - ndcg["fp32"]),
        },
        "exact": {
            "users": len(case),
            "cost": cost.ratio,
            "cost_min": cost.spread[0],
            "cost_max": cost.spread[1],
            "same": equal,
            "certified": float(found["exact"].certified.mean()),
            "certified_by_beam": float(found["fp32"].certified.mean()),
            "beam_overlap": _overlap(found["fp32"].ranked, found["exact"].ranked),
            "ndcg@10": ndcg["exact"],
        },
    }
    rows = (
        Row(
            "trained: bf16, overlap with fp32 and NDCG@10",
            f"{overlap:.4f}, {ndcg['bf16']:.4f}",
            f"1, {ndcg['fp32']:.4f}",
            same=overlap >= ALIKE and figures["bf16_lists"]["ndcg_difference"] <= 1e-3,
        ),
        Row(
            f"trained: exact lists, certified by beam {100 * figures['exact']['certified_by_beam']:.0f}%",
            f"{1000 * cost.seconds[1]:.2f} ms/user",
            f"{cost.ratio:.1f}x the cost of beam {BEAMS}",
            same=equal,
        ),
    )
    return PartResult(figures, rows)


def _ndcg(ranked: np.ndarray, case: Case, k: int = 10) -> float:
    hits = ranked[:, :k] == case.target.numpy()[:, None]
    return float((hits / np.log2(np.arange(k) + 2.0)).sum(1).mean())


def _equals_oracle(way: Recommender, case: Case) -> bool:
    """Whether the lists are those of scoring every item of the tree; items as near as rounding may change places."""
    search = way.searches[case.domain]
    found = _lists(way, case)
    for user in range(len(case)):
        one = slice(user, user + 1)
        tokens, mask = encode_histories(case.codes, case.history[one], case.length[one], search.vocabulary)
        scores = score_all(search, tokens, mask)[0].cpu()
        best = scores.topk(min(BEAMS, len(scores))).values
        rows = torch.from_numpy(found.ranked[user][: len(best)])
        if len(set(rows.tolist())) < len(best) or float((scores[rows] - best).abs().max()) > CLOSE:
            return False
    return bool(found.certified.all())
