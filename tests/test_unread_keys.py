"""Settings that a model does not read are said, or refused where work would be wasted; losses get fitting negatives."""

from __future__ import annotations

import logging

import pytest
from recbole.quick_start import load_data_and_model
from run_help import tiny, write_both
from test_benchmark import data, plan_of  # noqa: F401 - a fixture

from recbole_gmc import keys, quick, run_recbole
from recbole_gmc.errors import SettingError
from recbole_gmc.running import planning


@pytest.mark.parametrize(
    ("model", "unread"),
    [
        ("GMC", ("code_loss_weight", "hidden_size", "n_layers", "pretrain_train_batch_size")),
        ("GMCPlus", ("d_model", "pretrain_train_batch_size")),
        ("UniSRec", ("code_loss_weight", "d_model")),
        ("SASRec", ("code_loss_weight", "d_model", "pretrain_train_batch_size")),
        ("S3Rec", ("code_loss_weight", "d_model")),
    ],
)
def test_keys_of_other_models_are_told_apart(model, unread):
    given = "hidden_size n_layers d_model code_loss_weight epochs seed topk text_fields gpu_id run_dir val_interval"
    assert keys.unread(model, [*given.split(), "pretrain_train_batch_size", "no_key_at_all"]) == unread


@pytest.mark.parametrize("by_command", [True, False])
def test_a_run_says_what_it_does_not_read(tmp_path, caplog, by_command, own_arguments):
    write_both(tmp_path)
    settings = tiny(tmp_path, epochs=1, lora_epochs=0, hidden_size=256)
    with caplog.at_level(logging.WARNING):
        (quick.run if by_command else run_recbole)("GMC", "tiny", [], settings)
    assert caplog.text.count("GMC does not read hidden_size") == 1
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load_data_and_model(tmp_path / "run")  # whose settings are all that RecBole has
    assert [record.message for record in caplog.records if "does not read" in record.message] == [
        "GMC does not read hidden_size"
    ]


@pytest.mark.parametrize("model", ["GMC", "HGN"])
def test_a_key_of_a_file_that_nothing_knows_is_refused_for_every_model(tmp_path, model):
    """In a file as on the command line; a model's name typed wrong is such a key, too."""
    write_both(tmp_path)
    (tmp_path / "a.yaml").write_text("epochz: 3\n")
    (tmp_path / "b.yaml").write_text("UniSRek: {epochs: 3}\n")
    for file, message in (("a", "epochz: unknown setting .nearest: 'epochs'"), ("b", "UniSRek.*nearest: 'UniSRec'")):
        with pytest.raises(SettingError, match=message):
            quick.run(model, "Big", [str(tmp_path / f"{file}.yaml")], {"data_path": str(tmp_path)})


def test_what_a_model_of_recbole_s_does_not_read_is_not_handed_on(tmp_path):
    write_both(tmp_path)
    given = {"data_path": str(tmp_path), "code_loss_weight": 0.5, "missing_text": "drop", "hidden_size": 32}
    found = planning.plan("SASRec", "Big", (), given)
    assert found.unread == ("code_loss_weight", "missing_text")
    assert found.settings["hidden_size"] == 32 and not {"code_loss_weight", "missing_text"} & found.settings.keys()


@pytest.mark.parametrize("as_trial", [True, False])
def test_a_loss_gets_the_negatives_that_recbole_asks_for(tmp_path, as_trial):
    """In a search, too, where the loss changes after the plan was made."""
    write_both(tmp_path)

    def of(loss: str, usual: str, **given) -> dict:
        first = usual if as_trial else loss
        found = planning.plan("SASRec", "Big", (), {"data_path": str(tmp_path), "loss_type": first, **given})
        return dict(found.having(loss_type=loss).of_domain("Big", tmp_path / "run").settings)

    assert of("CE", "BPR")["train_neg_sample_args"] is None
    assert "train_neg_sample_args" not in of("BPR", "CE"), "RecBole's default: one, uniform"
    mine = {"distribution": "popularity", "sample_num": 1}
    assert of("BPR", "CE", train_neg_sample_args=mine)["train_neg_sample_args"] == mine


def test_sasrec_trains_with_bpr(tmp_path):
    write_both(tmp_path)
    settings = {"data_path": str(tmp_path), "run_dir": str(tmp_path / "run"), "epochs": 1, "show_progress": False}
    runs = quick.run("SASRec", "Big", [], {**settings, "loss_type": "BPR", "topk": [5, 10]})
    assert runs["Big"].epochs == 1


def test_mixed_precision_that_would_not_come_is_refused(tmp_path):
    write_both(tmp_path)
    with pytest.raises(SettingError, match="enable_amp: asks for mixed precision, but precision is fp32"):
        run_recbole("UniSRec", "tiny", None, {"data_path": str(tmp_path), "domains": ["Big"], "enable_amp": True})


@pytest.mark.parametrize("place", ["", "SASRec: "])
def test_a_benchmark_refuses_what_its_check_of_the_raw_files_does_not_know(data, place):  # noqa: F811
    file = data / "b.yaml"
    file.write_text(f"{place}{{missing_text: drop}}\n" if place else "missing_text: drop\n")
    with pytest.raises(SettingError, match="missing_text: "):
        plan_of(data, f"--config_files={file}")
