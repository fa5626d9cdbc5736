"""What ``fit`` leaves: best weights in memory, an untouched backbone, lists that do not depend on file order."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_logger, init_seed
from run_help import run, tiny, write_planted

from recbole_gmc.data.rows import SequenceRows
from recbole_gmc.errors import RunError
from recbole_gmc.files import locked, read_json
from recbole_gmc.train.checkpoint import Checkpoint

pytestmark = pytest.mark.usefixtures("own_arguments")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("fit")
    write_planted(root, "Big", seed=1, users=40)
    write_planted(root, "Small", seed=2, users=25, items=12)
    return root


LONG = {"valid_users": 0, "epochs": 60, "stopping_step": 2, "learning_rate": 0.03}


def prepared(root, name, **changes) -> SimpleNamespace:
    settings = tiny(root, root / name, **changes)
    config = Config("GMC", "tiny", config_dict={**settings, "cache_dir": str(root / f"cache-{name}")})
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    model = get_model("GMC")(config, train._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "GMC")(config, model)
    return SimpleNamespace(trainer=trainer, model=model, train=train, valid=valid, test=test, folder=root / name)


def fitted(root, name, saved=False, **changes) -> SimpleNamespace:
    made = prepared(root, name, **changes)
    made.score, made.result = made.trainer.fit(made.train, made.valid, saved=saved)
    made.curve = made.trainer.record.curve
    return made


@pytest.fixture(scope="module")
def unified(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["test"])
        return fitted(root, "unified", lora=False, **LONG)


@pytest.fixture(scope="module")
def harmful(root):
    """Adapters that only do damage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["test"])
        patch.setattr("recbole_gmc.model.gmc.GMC.backward", damaging())
        return fitted(root, "harmful", lora_epochs=2, lora_learning_rate=2.0, **LONG)


def damaging():
    from recbole_gmc.model.gmc import GMC

    backward = GMC.backward

    def reversed_once_there_are_adapters(self, *args):
        loss = backward(self, *args)
        if self.adapters is not None:
            for parameter in self.t5.parameters():
                if parameter.grad is not None:
                    parameter.grad.neg_()
        return loss

    return reversed_once_there_are_adapters


def unified_curve(made) -> list[float]:
    return [entry["valid"] for entry in made.curve if entry["stage"] == "unified"]


def test_a_stage_stops_early_with_its_best_weights_in_memory(unified):
    assert not (unified.folder / "checkpoint").exists()
    curve = unified_curve(unified)
    best = max(range(len(curve)), key=lambda epoch: (curve[epoch], epoch))  # a tie counts as better, as in RecBole
    assert len(curve) < 60 and len(curve) - 1 - best == 3, "RecBole stops when the count passes stopping_step"
    assert unified.score == pytest.approx(curve[best], abs=1e-12) and curve[best] > curve[-1]
    measured = unified.trainer.evaluate(unified.valid, load_best_model=False)
    assert measured == unified.result and unified.result["ndcg@10"] == round(unified.score, 4)


def test_without_lora_there_are_no_adapters(unified):
    assert unified.model.adapters is None and unified.trainer.record.done == ["unified"]
    assert {entry["stage"] for entry in unified.curve} == {"unified"}


def test_an_adapter_that_does_not_help_is_not_kept(unified, harmful):
    assert harmful.trainer.record.done == ["unified", "lora:Big", "lora:Small"]
    plain = harmful.model.plain_state(None)
    for domain in ("Big", "Small"):
        start, *trained = [entry["valid"] for entry in harmful.curve if entry["stage"] == f"lora:{domain}"]
        assert trained and max(trained) < start
        merged = harmful.model.plain_state(domain)
        assert all(torch.equal(merged[name], plain[name]) for name in plain)
        assert f"Adapter of {domain} not kept" in (harmful.folder / "run.log").read_text()
    assert harmful.score == unified.score and harmful.result == unified.result


def test_the_backbone_is_the_unified_recommender_bit_for_bit(unified, harmful):
    before, after = unified.model.plain_state(), harmful.model.plain_state(None)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_anomaly_detection_stays_off(unified):
    """Importing RecBole's SINE switches it on for the whole process, and training takes half as long again."""
    assert "recbole.model.sequential_recommender.sine" in sys.modules and not torch.is_anomaly_enabled()


def test_few_users_watch_and_all_decide(root):
    made = prepared(root, "watched", valid_users=7, epochs=2, lora_epochs=1)
    seen = []
    metrics = made.trainer._metrics

    def counted(table):
        seen.append((made.trainer.stage and made.trainer.stage.name, len(table)))
        return metrics(table)

    made.trainer._metrics = counted
    made.trainer.fit(made.train, made.valid, saved=False)
    adapter = [7, 7]  # as it starts, and after its epoch; then all users, with the adapter and without
    assert seen == [
        *[("unified", 14)] * 2,
        *[("lora:Big", n) for n in (*adapter, 40, 40)],
        *[("lora:Small", n) for n in (*adapter, 25, 25)],
        (None, 65),
    ]
    rows = made.trainer._watched(None)
    assert rows is None


def test_a_loss_that_is_no_number_ends_the_run(root, monkeypatch):
    made = prepared(root, "nan")
    made.trainer.backward = lambda rows: torch.tensor(torch.nan)
    with pytest.raises(RunError, match="loss is nan in stage unified, epoch 0.*learning rate"):
        made.trainer.fit(made.train, made.valid, saved=False)


def test_a_gradient_that_is_no_number_leaves_the_last_good_checkpoint(root):
    """Row 14 of the fault matrix: in the last batch of an epoch that nothing validates."""
    made = prepared(root, "nan-gradient", eval_step=2)
    trainer = made.trainer
    whole, last = trainer.backward, -(-len(SequenceRows.of(made.train._dataset)) // trainer.plan[0].batch_size) - 1

    def spoiled(rows):
        loss = whole(rows)
        if trainer.stage is not None and trainer.scheduler.last_epoch == last:
            trainer._trained()[0].grad.view(-1)[3] = torch.nan
        return loss

    trainer.backward = spoiled
    where = f"gradient's norm is nan in stage unified, epoch 0, batch {last}, seed {made.trainer.config['seed']}"
    with pytest.raises(RunError, match=f"{where}.*learning rate.*last good"):
        trainer.fit(made.train, made.valid)
    found = Checkpoint(made.folder)
    tensors = [*found.weights().values(), *found.progress().tensors.values()]
    assert all(tensor.isfinite().all() for tensor in tensors)


def test_chunks_are_halved_where_memory_does_not_suffice(root, monkeypatch):
    """Row 19 of the fault matrix: the same gradient, although the first chunks of a batch had gone well."""
    made = prepared(root, "scarce", dropout_rate=0.0, chunk_tokens=2048)
    made.trainer._prepare(made.train._dataset, SequenceRows.of(made.train._dataset), None, False)
    rows, model, whole = SequenceRows.of(made.train._dataset), made.model.eval(), made.model.backward
    loss = made.trainer.backward(rows)
    wanted = {name: parameter.grad.clone() for name, parameter in model.network.named_parameters()}

    def scarce(rows, dtype, chunk_tokens):
        loss = whole(rows, dtype, chunk_tokens)
        if chunk_tokens > most:
            raise torch.OutOfMemoryError("too large")
        return loss

    monkeypatch.setattr(model, "backward", scarce)
    most = 700
    model.zero_grad()
    assert made.trainer.backward(rows).item() == pytest.approx(loss.item(), rel=1e-6)
    assert made.trainer.settings.chunk_tokens == 512
    for name, parameter in model.network.named_parameters():
        assert torch.allclose(parameter.grad, wanted[name], atol=1e-6), name
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        made.trainer.backward(rows)


def test_a_second_process_in_the_same_folder_is_refused(root):
    """Row 20 of the fault matrix."""
    made = prepared(root, "alone", epochs=1, lora=False)
    with locked(made.folder / ".lock") as lock:
        assert lock is not None
        with pytest.raises(RunError, match="another process is at work in it"):
            made.trainer.fit(made.train, made.valid)
    made.trainer.fit(made.train, made.valid)
    with locked(made.folder / ".lock"):
        with pytest.raises(RunError, match="another process is at work in it"):
            made.trainer.evaluate(made.test)
        made.trainer.evaluate(made.valid)  # which writes nothing
    assert not (made.folder / "result.json").exists()
    made.trainer.evaluate(made.test)
    assert (made.folder / "result.json").is_file()


def test_a_checkpoint_without_adapters_leaves_none_of_before(root):
    plain = fitted(root, "plain", saved=True, lora=False, epochs=2)
    adapted = fitted(root, "adapted", saved=True, epochs=1, lora_epochs=3, lora_learning_rate=0.3)
    adapters = adapted.model.adapters
    adapters.restore("Big", {name: torch.ones_like(w) for name, w in adapters.snapshot("Big").items()})
    found = adapted.trainer.evaluate(adapted.valid, model_file=plain.folder)
    assert found == plain.trainer.evaluate(plain.valid)


def three_each(root, domain, users=12):
    folder = root / domain
    folder.mkdir()
    rows = [f"u{u}\ti{(u + t) % 5}\t{t}" for u in range(users) for t in range(3)]
    (folder / f"{domain}.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "\n".join(rows) + "\n")
    items = "".join(f"i{i}\tstate{i} thing{i}\n" for i in range(5))
    (folder / f"{domain}.item").write_text("item_id:token\ttitle:token_seq\n" + items)


def test_a_domain_without_validation_users(tmp_path):
    write_planted(tmp_path, "Big", seed=1, users=20)
    three_each(tmp_path, "Short")
    settings = tiny(tmp_path, domains=["Big", "Short"], epochs=2, lora_epochs=2)
    result = run(settings)
    report = read_json(tmp_path / "run/result.json")
    assert report["domains"]["Short"]["users"] == 12 and report["domains"]["Big"]["users"] == 20
    assert not any(name.startswith("Short/") for name in report["validation"]["metrics"])
    assert result["best_valid_score"] == report["validation"]["score"] > 0


def test_no_validation_users_at_all(tmp_path):
    three_each(tmp_path, "Short")
    run(tiny(tmp_path, domains=["Short"], epochs=2, lora_epochs=1))
    report = read_json(tmp_path / "run/result.json")
    assert report["domains"]["Short"]["users"] == 12 and report["validation"] == {"score": None, "metrics": {}}


def test_a_catalogue_below_the_beam_gives_distinct_items_and_then_none(tmp_path):
    """Rows 7 and 29 of the fault matrix, in a whole run."""
    write_planted(tmp_path, "Big", seed=3, users=20)
    write_planted(tmp_path, "Small", seed=4, users=15, items=6)
    run(tiny(tmp_path, epochs=1, lora_epochs=1))
    lines = [line.split("\t") for line in (tmp_path / "run/topk.tsv").read_text().splitlines()]
    assert len(lines[0]) == 4 + 2 * 20
    for line in lines[1:]:
        n = 6 if line[0] == "Small" else 18
        items, scores = line[4::2], line[5::2]
        assert len(set(items[:n])) == n and all(item.startswith(line[0].lower()) for item in items[:n])
        assert items[n:] == ["-1"] * (20 - n) and scores[n:] == [""] * (20 - n) and all(scores[:n])
        assert [float(score) for score in scores[:n]] == sorted(map(float, scores[:n]), reverse=True)
        assert line[3] != "-1", "every item of the domain is ranked, so none is missed"
    log = (tmp_path / "run/run.log").read_text()
    assert "Small has 6 items: its lists end before 10" in log and "Big has" not in log


def test_held_out_items_that_are_no_candidates_are_counted_aloud(root):
    """Row 30 of the fault matrix; their ranks are tested with the metrics."""
    made, said = prepared(root, "outside"), []
    rows = SequenceRows.of(made.test._dataset).select(torch.arange(5))
    rows.target[:2] = -1
    made.trainer.logger = SimpleNamespace(warning=said.append)
    table = made.trainer.rank(rows)
    made.trainer._say_what_is_short(table)
    assert said == ["2 held-out items are not in the catalogue and count as misses"]
    assert table.rank[:2].tolist() == [-1, -1]


def test_threads_are_as_many_as_the_settings_say(root):
    before = torch.get_num_threads()
    try:
        prepared(root, "threads", cpu_threads=before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_two_threads_give_the_same_run_twice(tmp_path):
    """Sums are split by threads, so hashes are equal for equal threads; caches are apart, so both are trained."""
    write_planted(tmp_path, "Big", seed=1, users=20)
    before, made = torch.get_num_threads(), []
    try:
        for name in ("one", "two"):
            keys = {"domains": ["Big"], "epochs": 1, "lora_epochs": 1, "cache_dir": str(tmp_path / f"cache-{name}")}
            run(tiny(tmp_path, tmp_path / name, cpu_threads=2, **keys))
            assert torch.get_num_threads() == 2
            made.append(read_json(tmp_path / name / "result.json"))
    finally:
        torch.set_num_threads(before)
    assert not made[1]["reused"] and made[0]["hashes"] == made[1]["hashes"]


def test_a_unified_recommender_is_reused_where_all_that_made_it_is_equal(tmp_path):
    write_planted(tmp_path, "Big", seed=1, users=20)

    def reused(name, **changes):
        run(tiny(tmp_path, tmp_path / name, domains=["Big"], epochs=1, lora=False, **changes))
        return read_json(tmp_path / name / "result.json")["reused"]

    assert reused("one") == [] and reused("two") == ["unified"]
    assert reused("three", beam_search="exact") == [], "other lists may choose another epoch"
    assert reused("four", gemm="torch") == [], "other sums, other weights"


def test_the_order_of_item_rows_changes_nothing(tmp_path):
    """Row 8 of the fault matrix, in a whole run."""
    made = []
    for name, order in (("one", None), ("two", 9)):
        write_planted(tmp_path / name, "Big", seed=1, users=20, order=order)
        write_planted(tmp_path / name, "Small", seed=2, users=15, items=12, order=order)
        run(tiny(tmp_path / name, epochs=2, lora_epochs=1))
        made.append(read_json(tmp_path / name / "run/result.json"))
    assert made[0]["hashes"].pop("Big.item") != made[1]["hashes"].pop("Big.item")
    assert made[0]["hashes"].pop("Small.item") != made[1]["hashes"].pop("Small.item")
    assert made[0]["hashes"] == made[1]["hashes"] and made[0]["domains"] == made[1]["domains"]
    first, second = (tmp_path / name / "run" for name in ("one", "two"))
    assert (first / "topk.tsv").read_bytes() == (second / "topk.tsv").read_bytes()
    for domain in ("Big", "Small"):
        name = f"semantic_ids/{domain}.index.json"
        assert (first / name).read_bytes() == (second / name).read_bytes()
