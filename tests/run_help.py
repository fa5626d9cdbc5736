"""Tiny domains whose next item follows from the text of the last one, and the settings of runs that take seconds."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STATES = 6


def write_planted(
    root: Path,
    domain: str,
    *,
    seed: int,
    users: int = 40,
    items: int = 18,
    length: tuple[int, int] = (5, 9),
    states: int = STATES,
    noise: float = 0.1,
    rule: bool = True,
    order: int | None = None,
) -> Path:
    """A domain in which every item is in a state that its text names, and state s is followed by state 5s + 1.

    The words of a state are the same in every domain; items and users have tokens of their own.

    With 6 or 12 states each state follows exactly one, so every item is about as popular as any other.

    Args:
        noise: share of steps to a random item.
        rule: ``False`` draws every next item at random.
        order: shuffles the rows of ``.item`` with this seed.
    """
    draw = random.Random(seed)
    state_of = {f"{domain.lower()}-{i}": i % states for i in range(items)}
    members = [[item for item, state in state_of.items() if state == wanted] for wanted in range(states)]
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(users):
        item = draw.choice(list(state_of))
        for time in range(draw.randint(*length)):
            lines.append(f"u{user}\t{item}\t{time}")
            free = not rule or draw.random() < noise
            item = draw.choice(list(state_of) if free else members[(5 * state_of[item] + 1) % states])
    rows = [f"{item}\tstate{s} shade{s} thing{i}\tbrand{s}" for i, (item, s) in enumerate(state_of.items())]
    if order is not None:
        random.Random(order).shuffle(rows)
    folder = root / domain
    folder.mkdir(parents=True)
    (folder / f"{domain}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = ["item_id:token\ttitle:token_seq\tbrand:token", *rows]
    (folder / f"{domain}.item").write_text("\n".join(table) + "\n", encoding="utf-8")
    return folder


def write_both(root: Path) -> None:
    """The two domains of ``tiny``, one larger than the other."""
    write_planted(root, "Big", seed=1, users=30)
    write_planted(root, "Small", seed=2, users=20, items=12)


def histories(root: Path, domain: str) -> dict[str, list[str]]:
    """User -> items in order of time."""
    found: dict[str, list[str]] = {}
    for line in (root / domain / f"{domain}.inter").read_text().splitlines()[1:]:
        user, item, _ = line.split("\t")
        found.setdefault(user, []).append(item)
    return found


def tiny(root: Path, run_dir: Path | None = None, **changes: Any) -> dict[str, Any]:
    """Settings of a run that takes a few seconds on one core; ``root`` holds the domains and the cache."""
    return {
        "data_path": str(root),
        "cache_dir": str(root / "cache"),
        "run_dir": str(run_dir or root / "run"),
        "domains": ["Big", "Small"],
        "show_progress": False,
        "text_lsa_dim": 8,
        "tokenizer": "rkmeans",
        "code_levels": 3,
        "codebook_size": 8,
        "code_dim": 8,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "d_model": 16,
        "d_ff": 32,
        "num_heads": 2,
        "d_kv": 8,
        "MAX_ITEM_LIST_LENGTH": 6,
        "epochs": 4,
        "eval_step": 1,
        "train_batch_size": 64,
        "learning_rate": 0.01,
        "lora_epochs": 3,
        "lora_r": 2,
        "lora_train_batch_size": 64,
        "lora_learning_rate": 0.01,
        "precision": "fp32",
        **changes,
    }


def run(settings: Mapping[str, Any], dataset: str = "tiny", **more: Any) -> dict[str, Any]:
    """RecBole's ``run_recbole`` of GMC."""
    from recbole_gmc import run_recbole

    return run_recbole("GMC", dataset, None, dict(settings), **more)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


def python(*arguments: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A fresh Python process that finds the package and the helpers of the tests."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done
