"""A model, a trainer and a data set of the smallest kind, registered by tests."""

import torch
from recbole.data.dataset import SequentialDataset
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.trainer import Trainer


class Toy(SequentialRecommender):
    """Scores an item by one learned number."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.score = torch.nn.Embedding(self.n_items, 1)

    def calculate_loss(self, interaction):
        scores = self.score.weight.T.expand(len(interaction), -1)
        return torch.nn.functional.cross_entropy(scores, interaction[self.POS_ITEM_ID])

    def predict(self, interaction):
        return self.score(interaction[self.ITEM_ID]).squeeze(-1)

    def full_sort_predict(self, interaction):
        return self.score.weight.T.expand(len(interaction), -1).clone()


class ToyTrainer(Trainer):
    pass


class ToyDataset(SequentialDataset):
    pass


def write_domain(folder, users=12, items=6, first=0):
    """A domain of cyclic histories of five items; gives its name."""
    folder.mkdir(parents=True)
    rows = [
        f"u{user}\ti{(user + step) % items}\t{first + 10 * user + step}" for user in range(users) for step in range(5)
    ]
    header = "user_id:token\titem_id:token\ttimestamp:float"
    (folder / f"{folder.name}.inter").write_text("\n".join([header, *rows]) + "\n")
    titles = "".join(f"i{item}\tItem number {item}\n" for item in range(items))
    (folder / f"{folder.name}.item").write_text(f"item_id:token\ttitle:token_seq\n{titles}")
    return folder.name
