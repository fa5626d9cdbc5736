"""The speed command: what it writes, what its figures rest on, and how it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from recbole_gmc import cli
from recbole_gmc.decode.trie import Trie
from recbole_gmc.model.forward import PackedT5
from recbole_gmc.speed import epoch, large, memory, train
from recbole_gmc.speed.command import run
from recbole_gmc.speed.measure import PartResult, Row, SpeedOptions, Stopwatch

HELD = 1 << 29  # bytes
TINY = SpeedOptions(tiny=True, rounds=1)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """speed.json of three parts (the tokenizer has tests of its own), and the bytes of this process meanwhile."""
    folder = tmp_path_factory.mktemp("speed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        held = np.ones(HELD // 8)
        assert cli.main(["speed", "trie,train", "decode", "--tiny", "--rounds=2", "--output=out/here"]) == 0
    assert [place.name for place in folder.iterdir()] == ["out"]  # nothing else is written
    found = json.loads((folder / "out/here/speed.json").read_text())
    return {**found, "here": memory.resident()[0]} if held.all() else {}


def named(report, key):
    """All values under a key, however deep, with their paths."""
    found = {}
    for name, value in report.items():
        if name == key:
            found[name] = value
        elif isinstance(value, dict):
            found |= {f"{name}.{path}": inner for path, inner in named(value, key).items()}
    return found


def test_the_parts_that_were_asked_for_are_reported_in_the_usual_order(report):
    assert list(report)[:-1] == ["decode", "train", "trie", "machine"]
    assert set(report["machine"]) >= {"device", "threads", "torch", "gflops"} and report["machine"]["threads"] == 1


@pytest.mark.parametrize("part", ["decode", "train"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_precision_has_a_ratio_with_its_spread_and_a_check(report, part, precision):
    entry = report[part][precision]
    assert entry["ratio_min"] <= entry["ratio"] <= entry["ratio_max"] and entry["rounds"] == 2
    assert entry["max_difference"] >= 0
    share = entry["bookkeeping"] if part == "decode" else entry["outside"]["share"]
    assert 0 < share < 1


def test_both_ways_gave_the_same_answer_everywhere(report):
    same = named(report, "same")
    assert {"decode.fp32.same", "train.fp32.same", "train.bf16.same", "trie.build.2000.same"} <= set(same)
    lists_in_bf16 = {path for path in same if path.startswith("decode") and "bf16" in path}  # of random weights
    assert all(value for path, value in same.items() if path not in lists_in_bf16), same
    assert report["train"]["fp32"]["max_difference"] < 1e-5
    assert report["trie"]["tokenize"]["unique"] is True


def test_a_wrong_gradient_is_noticed(monkeypatch):
    """One part of the gradient 1% too long is not the same."""
    steps, right = train._Steps(TINY), PackedT5.backward

    def wrong(self, *arguments):
        loss = right(self, *arguments)
        self.t5.decoder.block[0].layer[2].DenseReluDense.wo.weight.grad *= 1.01
        return loss

    assert steps.checks()["fp32"]["same"]
    monkeypatch.setattr(PackedT5, "backward", wrong)
    found = steps.checks()["fp32"]
    assert not found["same"] and found["max_difference"] == pytest.approx(0.01, rel=0.01)


def test_rounding_of_one_part_is_told_from_a_wrong_gradient(monkeypatch):
    """What differs in fp32 and not in float64 is a relu at zero, as long as it is the exception."""
    right = PackedT5.backward
    steps = train._Steps(TINY)

    def rounded(bad):
        calls = []

        def backward(self, *arguments):
            loss = right(self, *arguments)
            calls.append(self.dtype)
            if self.dtype == torch.float32 and len(calls) in bad:
                self.t5.decoder.block[0].layer[2].DenseReluDense.wi.weight.grad[3] *= 1.01
            return loss

        monkeypatch.setattr(PackedT5, "backward", backward)
        return steps.checks()["fp32"]

    once = rounded({2})
    assert once["same"] and once["parts_with_a_relu_at_zero"] == 1 and once["max_difference"] < 1e-5
    assert not rounded(set(range(1, 6)))["same"]


def test_what_was_found_before_a_stop_is_kept(tmp_path, monkeypatch, capsys):
    def measure(options):
        yield PartResult({"first": {"same": True}}, (Row("the first", "1 s", "2 s"),))
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        run(["train", "--tiny", f"--output={tmp_path}"])
    assert json.loads((tmp_path / "speed.json").read_text()) == {"train": {"first": {"same": True}}}
    assert capsys.readouterr().err == "train: the first: 1 s | 2 s\n"


def test_products_are_counted_as_torch_counts_them(report):
    steps = train._Steps(TINY)
    with FlopCounterMode(display=False) as truth:
        for batch in steps.batches:
            way = steps.usual()
            way(*steps.inputs(batch, way))
    rows = steps.size * len(steps.batches)
    found = report["train"]["fp32"]
    assert found["reference_mflop_a_sample"] == pytest.approx(truth.get_total_flops() / rows / 1e6)
    assert 0 < found["mflop_a_sample"] < found["reference_mflop_a_sample"], "no padding is multiplied"
    assert found["roofline"] == pytest.approx(found["gflops"] / found["best_gflops"])


def test_every_way_trains_on_the_same_batches():
    """After two rounds, also in smaller steps, ours and transformers' saw the same rows."""
    steps = train._Steps(TINY)
    seen = {}

    class Watching(train.PackedStep):
        def __call__(self, input_ids, sizes, labels):
            seen.setdefault(self, []).extend(
                tuple(row[:size].tolist()) for row, size in zip(input_ids, sizes.tolist(), strict=True)
            )

    ways = [Watching(steps.case, "cpu", torch.float32, 0.0) for _ in range(2)]
    for way, size in zip(ways, (None, 3), strict=True):
        work = steps.steps(way, size)
        work()
        work()
    assert seen[ways[0]] == seen[ways[1]] and len(seen[ways[0]]) == 16


def test_the_synthetic_domain_has_the_given_mix_of_lengths(tmp_path):
    epoch._write_domain(tmp_path, train.LENGTHS, 800, seed=1)
    lines = (tmp_path / epoch.DOMAIN / f"{epoch.DOMAIN}.inter").read_text().splitlines()[1:]
    users = np.unique([line.split("\t")[0] for line in lines], return_counts=True)[1]
    rows = np.bincount([min(length, 20) for count in users for length in range(1, count - 2)], minlength=21)[1:]
    wanted = np.array(train.LENGTHS) * 800 / train.LENGTHS[0]
    assert np.abs(rows - wanted)[:19].max() <= 1 and abs(rows[19] - wanted[19]) <= 8
    assert sum(train.LENGTHS) == 33_541  # all training rows of Scientific


def test_a_stopwatch_counts_the_methods_it_was_told_and_lets_go():
    class Worker:
        def inner(self):
            return sum(range(200_000))

        def outer(self):
            return self.inner() + self.inner()

    worker = Worker()
    with Stopwatch("cpu") as whole:
        whole.add(worker, "outer")
        worker.inner()
        assert whole.seconds == 0
        worker.outer()
    with Stopwatch("cpu") as rest:
        rest.add(worker, "outer")
        rest.leave_out(worker, "inner")
        worker.outer()
    assert 0 <= rest.seconds < 0.5 * whole.seconds
    assert "outer" not in vars(worker) and "inner" not in vars(worker)


def test_synthetic_ids_are_distinct_and_a_wrong_tree_is_noticed():
    codes = large.distinct_codes(300_000)
    assert len(np.unique(codes, axis=0)) == 300_000 and codes[:, 0].max() == 255
    few = codes[:500]
    tree = Trie.build(few, large.CODES)
    assert large._leaves_are(tree, few)
    tree.items[[3, 4]] = tree.items[[4, 3]]
    assert not large._leaves_are(tree, few)


def test_vectors_made_when_asked_for_are_always_the_same():
    vectors = large.Clusters(1000, 8, seed=3)
    whole = vectors[slice(0, 1000)]
    assert np.array_equal(vectors[np.array([999, 5, 5])], whole[[999, 5, 5]]) and vectors[slice(7, 9)].shape == (2, 8)
    assert np.array_equal(large.Clusters(1000, 8, seed=3)[slice(990, None)], whole[990:])
    assert len(np.unique(whole, axis=0)) == 1000


def test_memory_of_a_child_is_its_own(report):
    """What this process held meanwhile is not counted."""
    assert report["trie"]["tokenize"]["bytes"] < report["here"] - HELD // 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown part 'trian' (nearest: 'train')"),
        (["decode,tri"], "unknown part 'tri'"),
        (["--thread=2"], "unknown flag '--thread=2' (nearest: 'threads')"),
        (["-tiny"], "unknown flag '-tiny'"),
        (["--rounds"], "--rounds: has no value"),
        (["--rounds=0"], "--rounds: '0' is not a number from 1 to"),
        (["--threads=two"], "--threads: 'two' is not a number from 1 to 4096"),
        (["--seed=99999999999999999999"], "--seed: '99999999999999999999' is not a number from 0 to"),
        (["--seed=1", "--seed=2"], "--seed: given twice"),
        (["--tiny=false"], "--tiny: takes no value"),
        (["--device=tpu"], "--device: 'tpu' is no device of this machine"),
        (["--run=nowhere"], "--run: no folder 'nowhere'"),
        (["--run=."], "checkpoint"),
        (["--data_path=nowhere"], "--data_path: no folder 'nowhere'"),
        (["--output=file/below"], "/file' is no folder that can be written"),
    ],
)
def test_bad_use_is_one_line_before_any_work(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert cli.main(["speed", *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and not out
    assert [place.name for place in tmp_path.iterdir()] == ["file"]


def test_help_names_every_part_and_flag(capsys):
    assert cli.main(["speed", "--help"]) == 0
    text = capsys.readouterr().out
    from recbole_gmc.speed.command import FLAGS, PARTS

    assert all(part in text for part in PARTS) and all(f"--{flag}" in text for flag in FLAGS)
