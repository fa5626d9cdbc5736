"""GMC, generative multi-target cross-domain recommendation, for RecBole: importing registers the models.

Import this package before RecBole (``import recbole_gmc``, then ``from recbole.quick_start import run_recbole``):
RecBole itself imports a package that today's stack lacks.
"""

from pathlib import Path
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# In a checkout properties/ and baselines/ lie beside this package, not in it.
_root = Path(__file__).resolve().parent.parent
if not (Path(__file__).parent / "properties").exists() and (_root / "properties/__init__.py").is_file():
    __path__.append(str(_root))

from recbole_gmc import compat  # noqa: E402

compat.apply()

from recbole_gmc import hooks, registry  # noqa: E402

registry.register(
    "GMC",
    "recbole_gmc.model.gmc:GMC",
    trainer="recbole_gmc.train.trainer:GMCTrainer",
    dataset="recbole_gmc.data.domains:GMCDataset",
)
registry.register(
    "GMCPlus",
    "recbole_gmc.model.gmcplus:GMCPlus",
    trainer="recbole_gmc.train.gmcplus_trainer:GMCPlusTrainer",
    dataset="recbole_gmc.data.domains:GMCDataset",
)
registry.register(
    "TIGER",
    "recbole_gmc.baselines.tiger:TIGER",
    trainer="recbole_gmc.train.trainer:GMCTrainer",
    dataset="recbole_gmc.data.domains:GMCDataset",
    union=False,
)
registry.register(
    "P5CID",
    "recbole_gmc.baselines.p5cid:P5CID",
    trainer="recbole_gmc.baselines.p5cid:P5CIDTrainer",
    dataset="recbole_gmc.data.domains:GMCDataset",
    union=False,
)
registry.register(
    "IDGenRec",
    "recbole_gmc.baselines.idgenrec:IDGenRec",
    trainer="recbole_gmc.baselines.idgenrec:IDGenRecTrainer",
    dataset="recbole_gmc.data.domains:GMCDataset",
    union=False,
)
for _dense in ("UniSRec", "VQRec", "RecFormer"):
    registry.register(
        _dense,
        f"recbole_gmc.baselines.{_dense.lower()}:{_dense}",
        trainer="recbole_gmc.baselines.transfer_trainer:TransferTrainer",
        dataset="recbole_gmc.data.domains:GMCDataset",
    )
registry.install()
hooks.install()

from recbole_gmc.launch import objective_function, run, run_recbole, run_recboles  # noqa: E402
from recbole_gmc.registry import register  # noqa: E402

if TYPE_CHECKING:
    import torch

    from recbole_gmc.recommender import ListRecommender


def load(folder: "str | Path", device: "torch.device | str" = "cpu") -> "ListRecommender":
    """The trained model of a run folder, ready to recommend; see ``recbole_gmc.loading.load``."""
    from recbole_gmc import loading

    return loading.load(folder, device)


__all__ = ["__version__", "load", "objective_function", "register", "run", "run_recbole", "run_recboles"]
