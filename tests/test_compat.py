"""Each patch that RecBole needs, and that it reaches RecBole only."""

import io
import os
import pickle
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from recbole.config import Config
from recbole.data import create_dataset
from recbole.quick_start import run_recbole
from scipy.sparse import dok_matrix
from toy_model import write_domain

import recbole_gmc  # noqa: F401
from recbole_gmc import compat
from recbole_gmc.errors import DependencyError, SettingError
from recbole_gmc.values import load_yaml, parse

ROOT = Path(__file__).parent.parent


def python(code, cwd, *arguments):
    """Runs code in a fresh interpreter and gives what it printed."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["test"])
    return tmp_path


def test_numpy_names_are_there(monkeypatch):
    monkeypatch.delattr(np, "float_")  # as NumPy 2 has it
    compat.restore_numpy_names()
    assert np.__dict__["float"] is np.float64 or np.float is float
    assert np.__dict__["float_"] is np.float64
    Config.compatibility_settings(None)


def test_applying_twice_changes_nothing():
    from recbole.trainer import trainer

    seen = trainer.torch
    compat.apply()
    compat.let_recbole_read_its_checkpoints()
    assert trainer.torch is seen


def test_recbole_works_where_ray_and_pkg_resources_are_missing(tmp_path):
    printed = python(
        """
        import sys

        class Block:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("ray", "pkg_resources"):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Block())
        import recbole_gmc
        from recbole.quick_start import run_recbole, quick_start
        from recbole_gmc.errors import DependencyError

        assert "ray" not in sys.modules
        assert quick_start.tune.report(recall=1.0) is None  # what RecBole's objective says after every trial
        try:
            quick_start.tune.run(None)
        except DependencyError as error:
            print(error)
        """,
        tmp_path,
    )
    assert "ray.tune cannot be imported" in printed and "pip install" in printed


def test_a_broken_ray_is_named_when_it_is_used(monkeypatch):
    broken = type(sys)("ray")
    broken.__path__ = []
    monkeypatch.setitem(sys.modules, "ray", broken)
    monkeypatch.delitem(sys.modules, "ray.tune", raising=False)
    with pytest.raises(DependencyError, match="ray.tune cannot be imported"):
        compat.RayTune("ray.tune").run  # noqa: B018


class Exploit:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


def test_safe_loading_stays_on_for_other_code(tmp_path):
    marker = tmp_path / "marker"
    torch.save({"x": Exploit(marker)}, tmp_path / "file.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "file.pt")
    assert not marker.exists()
    assert os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD") is None


def test_recbole_s_trainer_and_pretrained_models_read_whole_checkpoints():
    from recbole.trainer import trainer
    from recbole.utils import get_model

    buffer = io.BytesIO()
    torch.save({"config": Path("x")}, buffer, pickle_protocol=4)
    s3rec = sys.modules[get_model("S3Rec").__module__]
    for module in (trainer, s3rec):
        buffer.seek(0)
        assert module.torch.load(buffer) == {"config": Path("x")}
        assert module.torch.nn is torch.nn


def test_only_what_recbole_s_own_lines_cause_is_silent(alone):
    write_domain(alone / "data/A", items=9)
    rows = "".join(f"i{item}\t{'' if item else 'one two'}\t{item or ''}\n" for item in range(9))
    (alone / "data/A/A.item").write_text(f"item_id:token\ttitle:token_seq\tprice:float\n{rows}")
    settings = {"data_path": "data", "epochs": 1, "show_progress": False, "topk": 3, "valid_metric": "NDCG@3"}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        filters = list(warnings.filters)
        run_recbole("BPR", "A", config_dict=settings | {"load_col": None, "embedding_size": 4})
        left = [one for one in warnings.filters if one not in filters and issubclass(FutureWarning, one[2])]
        assert left == [], "nothing is silenced for good"
        warnings.warn("mine", FutureWarning, stacklevel=1)
    assert [str(one.message) for one in seen if issubclass(one.category, FutureWarning)] == ["mine"]


def test_a_recbole_checkpoint_is_tested_again_in_a_fresh_process(alone):
    write_domain(alone / "data/A")
    settings = {"data_path": "data", "epochs": 1, "show_progress": False, "topk": 3, "train_neg_sample_args": None}
    settings |= {"load_col": None, "valid_metric": "NDCG@3", "hidden_size": 8, "inner_size": 8}
    result = run_recbole("SASRec", "A", config_dict=settings)["test_result"]
    (file,) = (alone / "saved").glob("*.pth")
    code = """
    import sys
    import recbole_gmc
    from recbole.quick_start import load_data_and_model
    from recbole.utils import get_trainer

    file, sys.argv = sys.argv[1], sys.argv[:1]
    config, model, _, _, _, test = load_data_and_model(file)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    print(dict(trainer.evaluate(test, load_best_model=True, model_file=file)))
    """
    assert python(code, alone, str(file)).splitlines()[-1] == str(dict(result))


def test_tokens_are_read_as_they_are_written(alone):
    (alone / "data/raw").mkdir(parents=True)
    users, items = ["NA", "null", '"quoted', "N/A", "x"], ["nan", 'say "hi"', "None", "'", "-inf", "007"]
    rows = [f"{user}\t{item}\t{n}" for n, (user, item) in enumerate((u, i) for u in users for i in items)]
    header = "\ufeffuser_id:token\titem_id:token\ttimestamp:float\n"
    (alone / "data/raw/raw.inter").write_bytes((header + "\n".join(rows) + "\n").replace("\n", "\r\n").encode())
    (alone / "data/raw/raw.item").write_text(
        "item_id:token\tprice:float\n"
        + "".join(f"{item}\t{'NA' if n == 2 else '' if n else 1.5}\n" for n, item in enumerate(items))
    )
    columns = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "price"]}
    settings = {"data_path": "data", "load_col": columns, "train_neg_sample_args": None}
    dataset = create_dataset(Config("SASRec", "raw", config_dict=settings))
    assert dataset.inter_num == len(rows)
    assert set(dataset.field2id_token["user_id"][1:]) == set(users)
    assert set(dataset.field2id_token["item_id"][1:]) == set(items)
    assert (dataset.item_feat["price"] == 1.5).all(), "missing numbers, which RecBole fills with the mean"


def test_dok_matrix_has_the_update_that_graph_models_use():
    matrix = dok_matrix((2, 2))
    matrix._update({(0, 1): 1.0})
    assert matrix[0, 1] == 1.0


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("domains", "A,B", ["A", "B"]),
        ("domains", "[A, B]", ["A", "B"]),
        ("domains", "A", ["A"]),
        ("domains", "007,08", ["007", "08"]),
        ("domains", "~", None),
        ("topk", "5,10", [5, 10]),
        ("topk", "[5,10]", [5, 10]),
        ("topk", "(5, 10)", [5, 10]),
        ("topk", "5", 5),
        ("x", "~", None),
        ("x", "None", None),
        ("x", "1e-3", 0.001),
        ("x", "-.5", -0.5),
        ("x", "true", True),
        ("x", "False", False),
        ("x", "{a: 1, b: [c, 2.5]}", {"a": 1, "b": ["c", 2.5]}),
        ("x", "{'max_norm': 5}", {"max_norm": 5}),
        ("x", "'12'", "12"),
        ("x", "title,brand", ["title", "brand"]),
        ("x", "a, b", "a, b"),
        ("x", "[5,inf)", "[5,inf)"),
        ("user_inter_num_interval", "[5,10]", "[5,10]"),
        ("x", "a=b", "a=b"),
        ("x", "2020-01-01", "2020-01-01"),
        ("x", "10:30", "10:30"),
        ("x", "007", "007"),
        ("x", "", ""),
        ("x", "#tag", "#tag"),
        ("x", "*anchor", "*anchor"),
        ("x", "[1, 2", "[1, 2"),
        ("x", "b'raw'", "b'raw'"),
        ("dataset", "2019", "2019"),
        ("gpu_id", "0,1", "0,1"),
        ("data_path", "a,b", "a,b"),
        ("x", "__import__('os')", "__import__('os')"),
        ("x", "[!!python/object/apply:os.getcwd []]", "[!!python/object/apply:os.getcwd []]"),
    ],
)
def test_text_becomes_the_value_that_it_means(key, text, value):
    parsed = parse(key, text)
    assert parsed == value and type(parsed) is type(value)


def test_code_in_values_never_runs(alone, monkeypatch):
    write_domain(alone / "data/A")
    monkeypatch.setattr(sys, "argv", ["test", '--require_pow=open("argv","w")', "--hidden_size=1=2"])
    config = Config("SASRec", "A", config_dict={"data_path": "data", "x": 'open("dict", "w")', "loss_type": "BPR"})
    assert config["require_pow"] == 'open("argv","w")' and config["x"] == 'open("dict", "w")'
    assert config["hidden_size"] == "1=2"
    assert not (alone / "argv").exists() and not (alone / "dict").exists()


def test_yaml_files_build_plain_values_only(alone):
    (alone / "bad.yaml").write_text("epochs: 1\nx: !!python/object/apply:pathlib.Path.touch [marker]\n")
    with pytest.raises(SettingError, match=r"bad\.yaml:2.*not plain YAML"):
        Config("Pop", "ml-100k", config_file_list=["bad.yaml"])
    assert load_yaml("a: 1e-3\nb: [1, .inf]\nc: 1_0") == {"a": 0.001, "b": [1, float("inf")], "c": 10}
    assert yaml.safe_load("a: 1e-3") == {"a": "1e-3"}, "PyYAML's own loaders stay as they were"
    assert yaml.full_load("a: 1e-3") == {"a": "1e-3"}


def test_foreign_arguments_only_warn(alone, monkeypatch, caplog):
    monkeypatch.setattr(sys, "argv", ["test", "-q", "tests/x.py", "--verbose"])
    Config("Pop", "ml-100k")
    assert "command line args [-q tests/x.py --verbose]" in caplog.text
    monkeypatch.setattr(sys, "argv", ["test", "--epochs=1", "--epochs=2"])
    with pytest.raises(SettingError, match="given twice"):
        Config("Pop", "ml-100k")


def test_recbole_s_own_models_are_left_alone():
    config = Config("BPR", "ml-100k")
    assert config["eval_args"]["split"] == {"RS": [0.8, 0.1, 0.1]} and config["topk"] == [10]
    assert "beam_size" not in config and "run_dir" not in config
