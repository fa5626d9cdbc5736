"""The README's section "Your own data in five minutes", run as printed but for the length of the training."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHORT = "--epochs=1 --lora_epochs=1 --tokenizer_epochs=20 --cache_dir=cache --run_dir=runs/mine"


def block(marker: str) -> str:
    """The fenced block after ``<!-- marker -->``."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- {re.escape(marker)} -->\n```\w+\n(.*?)```", text, re.DOTALL)
    assert found, f"README.md has no block {marker!r}"
    return found[1]


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two CSV files: 30 customers a shop, quotes, commas and a line break in titles."""
    folder, draw = tmp_path_factory.mktemp("shop"), random.Random(5)
    with (folder / "products.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["shop", "product", "title", "brand"])
        for domain, letter in (("Films", "f"), ("Books", "b")):
            for i in range(24):
                rows.writerow([domain, f"{letter}{i}", f'The "{i % 6}", part {i}\nof many', f"maker {i % 4}"])
    with (folder / "purchases.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["shop", "customer", "product", "time"])
        for domain, letter in (("Films", "f"), ("Books", "b")):
            for customer in range(30):
                for time in range(draw.randint(4, 9)):
                    rows.writerow(
                        [domain, f"c{customer}", f"{letter}{draw.randrange(24)}", 1_700_000_000 + 1000 * time]
                    )
    return folder


@pytest.fixture(scope="module")
def converted(shop: Path) -> Path:
    (shop / "convert.py").write_text(block("convert.py"), encoding="utf-8")
    done = python("convert.py", cwd=shop)
    assert done.returncode == 0, done.stderr
    return shop


@pytest.fixture(scope="module")
def trained(converted: Path) -> str:
    """What the README's command printed."""
    program, *arguments = shlex.split(block("own data"))
    assert program == "recbole-gmc"
    done = python("-m", "recbole_gmc", *arguments, *SHORT.split(), cwd=converted)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_csv_files_become_atomic_files(converted: Path) -> None:
    data = converted / "dataset"
    assert (data / "shops.yaml").read_text() == "domains: [Books, Films]\n"
    head, first = (data / "Films" / "Films.item").read_text(encoding="utf-8").splitlines()[:2]
    assert head == "item_id:token\ttitle:token_seq\tbrand:token_seq"
    assert first == 'f0\tThe "0", part 0 of many\tmaker 0'
    with (converted / "purchases.csv").open(newline="", encoding="utf-8") as file:
        count = sum(row["shop"] == "Books" for row in csv.DictReader(file))
    assert len((data / "Books" / "Books.inter").read_text().splitlines()) == 1 + count


def test_the_run_prints_what_the_readme_says(converted: Path, trained: str) -> None:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", trained)
    for words in ("Books: 30 users, 24 items", "Semantic IDs (rqvae)", "Estimated time", "Results are in runs/mine"):
        assert words in plain, words
    table = plain[plain.index("GMC on shops, test:") :].splitlines()
    assert [line.split()[0] for line in table[3:6]] == ["Books", "Films", "average"]
    result = json.loads((converted / "runs/mine/result.json").read_text())
    assert table[5].split()[1] == "60" == str(sum(part["users"] for part in result["domains"].values()))


def test_the_trained_model_recommends(converted: Path, trained: str) -> None:
    code = block("recommend").replace("runs/<the folder that the run printed>", "runs/mine")
    done = python("-c", code, cwd=converted)
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"\('(\w+)', (-[\d.]+)\)", done.stdout)
    assert len(listed) == 5 == len({item for item, _ in listed})
    assert all(re.fullmatch(r"b\d+", item) for item, _ in listed)
    scores = [float(score) for _, score in listed]
    assert scores == sorted(scores, reverse=True)


def test_a_mistake_in_a_file_is_refused_with_file_and_line(converted: Path, tmp_path: Path) -> None:
    source = (converted / "dataset/Books/Books.inter").read_text().splitlines()
    (tmp_path / "dataset/Books").mkdir(parents=True)
    (tmp_path / "dataset/Books/Books.item").write_bytes((converted / "dataset/Books/Books.item").read_bytes())
    source[11] = "c1\tb1\tyesterday"
    (tmp_path / "dataset/Books/Books.inter").write_text("\n".join(source) + "\n")
    done = python("-m", "recbole_gmc", "--model=GMC", "--dataset=Books", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("recbole-gmc: dataset/Books/Books.inter:12: ")
