"""Large catalogues by simulation: building the prefix tree, a step of beam search in it, tokenizing given vectors."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator
from typing import Any

import torch

from recbole_gmc.decode.beam import BeamSearch
from recbole_gmc.decode.trie import Trie
from recbole_gmc.model.seq2seq import build_t5, encode_histories, sequence_log_prob
from recbole_gmc.model.vocabulary import Vocabulary
from recbole_gmc.products import choose
from recbole_gmc.settings import T5Settings, TokenizerSettings
from recbole_gmc.speed.large import CODES, LEVELS, build, distinct_codes, tokenize_vectors
from recbole_gmc.speed.measure import PartResult, Row, SpeedOptions, Stopwatch, clock
from recbole_gmc.speed.memory import in_child

ITEMS = (1_000_000, 10_000_000)
FEW = 25_000
USERS, BEAMS, HISTORY = 32, 20, 20
SEARCHES = 4  # a round
WIDTH = 384  # of the vectors that are tokenized
SECONDS, BYTES, TOKENIZER_BYTES = 60, 1.5e9, 2e9  # what may be spent at ten million
FLAT = 1.2
CLOSE = 1e-4


def measure(options: SpeedOptions) -> Iterator[PartResult]:
    """Trees of 1 and 10 million items, the cost of a step in trees of 25,000 to 10 million, 10 million vectors."""
    for name, part in (("build", _build), ("step", _step), ("tokenize", _tokenize)):
        found = part(options)
        yield PartResult({name: found.figures}, found.rows)


def _sizes(options: SpeedOptions) -> tuple[int, ...]:
    return (200, 2000) if options.tiny else ITEMS


def _build(options: SpeedOptions) -> PartResult:
    figures: dict[str, Any] = {}
    rows = []
    for items in _sizes(options):
        found = in_child(build, items)
        figures[str(items)] = dataclasses.asdict(found)
        rows.append(
            Row(
                f"tree of {items:,} items",
                f"{found.seconds:.2f} s, {found.bytes / 1e9:.2f} GB",
                f"{SECONDS} s, {BYTES / 1e9:.1f} GB at most",
                same=found.same,
            )
        )
    less, more = (figures[str(items)] for items in _sizes(options))
    times = more["items"] / less["items"]
    figures["growth"] = {name: more[name] / max(less[name], 1e-9) / times for name in ("seconds", "bytes")}
    words = "{seconds:.2f} of the seconds, {bytes:.2f} of the bytes".format(**figures["growth"])
    rows.append(Row(f"an item of {more['items']:,} over one of {less['items']:,}", words, "1 is linear"))
    return PartResult(figures, tuple(rows))


def _step(options: SpeedOptions) -> PartResult:
    """The same users and weights in every tree; a search without its encoder, over the number of steps."""
    tiny, device = options.tiny, options.device
    vocabulary = Vocabulary(LEVELS, CODES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        t5 = build_t5(T5Settings(1, 1, 16, 16, 2, 8) if tiny else T5Settings(), vocabulary).eval()
        history = torch.randint(100, (2 if tiny else USERS, HISTORY))
    state = {name: tensor.to(device) for name, tensor in t5.state_dict().items()}
    products = choose("auto", "fp32", device, t5.config.d_model, t5.config.d_ff)
    sizes = (100 if tiny else FEW, *_sizes(options))
    codes = {items: distinct_codes(items) for items in sizes}
    searches = {
        items: BeamSearch(state, t5.config, Trie.build(codes[items], CODES), vocabulary, BEAMS, products)
        for items in sizes
    }
    tokens, mask = encode_histories(
        torch.from_numpy(codes[sizes[0]]), history, torch.full((len(history),), HISTORY), vocabulary
    )
    spent: dict[int, list[float]] = {items: [] for items in sizes}
    for number in range(options.rounds + 1):
        for items, search in searches.items():
            with Stopwatch(device) as watch:
                watch.leave_out(search.network, "encode")
                begin = clock(device)
                for _ in range(1 if tiny else SEARCHES):
                    found = search.search(tokens, mask)
                seconds = clock(device) - begin + watch.seconds
            if number:
                spent[items].append(seconds / (1 if tiny else SEARCHES) / LEVELS)
            del found
    figures: dict[str, Any] = {"users": len(history), "beams": BEAMS}
    rows = []
    for items in sizes:
        ratios = [seconds / few for seconds, few in zip(spent[items], spent[sizes[0]], strict=True)]
        found = searches[items].search(tokens[:1], mask[:1])
        labels = vocabulary.tokens(torch.from_numpy(codes[items])[found.items[0].cpu()])
        some = len(labels)
        with torch.no_grad():
            truth = sequence_log_prob(t5, tokens[:1].expand(some, -1), mask[:1].expand(some, -1), labels)
        difference = float((truth - found.scores[0].cpu()).abs().max())
        milliseconds = 1000 * statistics.median(spent[items])
        figures[str(items)] = {
            "milliseconds": milliseconds,
            "over_few": statistics.median(ratios),
            "over_few_min": min(ratios),
            "over_few_max": max(ratios),
            "same": difference <= CLOSE,
            "max_difference": difference,
        }
        over = figures[str(items)]["over_few"]
        rows.append(
            Row(
                f"a beam step of {len(history)} users, decoder included, {items:,} items",
                f"{milliseconds:.1f} ms",
                f"{over:.2f} of that with {sizes[0]:,} ({FLAT} at most)",
                same=difference <= CLOSE,
            )
        )
    return PartResult(figures, tuple(rows))


def _tokenize(options: SpeedOptions) -> PartResult:
    items, width = (3000, 16) if options.tiny else (ITEMS[-1], WIDTH)
    settings = TokenizerSettings(warmup_epochs=4, epochs=6)
    if options.tiny:
        settings = TokenizerSettings(warmup_epochs=1, epochs=2, codebook_size=16, hidden_sizes=(16,), dim=8)
    found = in_child(tokenize_vectors, items, width, options.seed, settings)
    rate = items / found.seconds
    whole = items / (found.seconds + found.repair_seconds)
    figures = {**dataclasses.asdict(found), "items_a_second": rate, "items_a_second_with_repair": whole}
    rows = (
        Row(
            f"codes of {items:,} vectors of {width}",
            f"{rate:,.0f} items/s, {found.bytes / 1e9:.2f} GB",
            f"{TOKENIZER_BYTES / 1e9:.0f} GB at most",
        ),
        Row(
            f"the same made unique ({100 * found.collisions:.1f}% shared an ID)",
            f"{whole:,.0f} items/s in all",
            same=found.unique,
        ),
    )
    return PartResult(figures, rows)
