"""The loss of prefixes: by hand, by its definition, and in the training forward of our own against transformers'."""

from __future__ import annotations

from functools import partial
from math import exp, log

import pytest
import torch
from test_model_forward import batch, difference, gradients, network

from recbole_gmc.model.forward import PackedT5
from recbole_gmc.model.prefix_loss import level_weights, prefix_aware_loss
from recbole_gmc.model.seq2seq import sequence_logits


def defined(log_prob: torch.Tensor, beta: float, eta: float) -> torch.Tensor:
    """[n]: cross-entropy a code plus beta times the weighted prefix losses, times L: row by row."""
    losses = []
    for row in log_prob:
        prefixes = [-row[:m].sum() / m for m in range(1, len(row) + 1)]
        raw = [p.item() * exp(eta * p.item()) for p in prefixes]
        part = sum(w / sum(raw) * p for w, p in zip(raw, prefixes, strict=True))
        losses.append(len(row) * (-row.mean() + beta * part))
    return torch.stack(losses)


def test_two_codes_by_hand():
    """p = (1/2, 1): prefix losses log 2 and log 2 / 2, weights 2/3 and 1/3."""
    log_prob = torch.tensor([[0.5, 1.0]], dtype=torch.float64).log()
    assert level_weights(log_prob, 1.0, 0.0)[0].tolist() == pytest.approx([8 / 3, 4 / 3])
    prefixes = 2 / 3 * log(2) + 1 / 3 * log(2) / 2
    assert prefix_aware_loss(log_prob, 1.0, 0.0).item() == pytest.approx(log(2) + 2 * prefixes)
    assert prefix_aware_loss(log_prob, 0.3, 0.0).item() == pytest.approx(log(2) + 0.3 * 2 * prefixes)
    harder = exp(log(2)) * 2 / (exp(log(2)) * 2 + exp(log(2) / 2))  # eta 1: the worse prefix counts more
    assert prefix_aware_loss(log_prob, 1.0, 1.0).item() == pytest.approx(log(2) + log(2) * (2 * harder + 1 - harder))


@pytest.mark.parametrize("beta, eta", [(0.1, 1e-4), (0.4, 0.5), (0.0, 3.0)])
def test_value_and_gradient_are_those_of_the_definition(beta, eta):
    torch.manual_seed(0)
    log_prob = torch.randn(5, 4, dtype=torch.float64).sub(3).requires_grad_()
    wanted, found = defined(log_prob, beta, eta), prefix_aware_loss(log_prob, beta, eta)
    assert torch.allclose(found, wanted)
    ours, theirs = (torch.autograd.grad(value.sum(), log_prob, retain_graph=True)[0] for value in (found, wanted))
    assert torch.allclose(ours, theirs)


def test_without_beta_it_is_cross_entropy_and_certainty_is_no_number_lost():
    log_prob = torch.tensor([[-1.0, -2.0, -3.0], [0.0, 0.0, 0.0], [0.0, 0.0, -1e4]])
    assert prefix_aware_loss(log_prob, 0.0, 0.0).tolist() == [6, 0, 1e4]
    assert bool(level_weights(log_prob, 0.4, 1e-4).isfinite().all())


def test_earlier_levels_count_more_and_in_all_as_beta_says():
    torch.manual_seed(1)
    weights = level_weights(torch.randn(50, 4).sub(4), 0.2, 1e-4)
    assert bool((weights[:, :-1] > weights[:, 1:]).all()) and bool((weights > 1).all())
    assert torch.allclose((weights - 1).sum(1), torch.full((50,), 4 * 0.2))  # every prefix shares its weight out


@pytest.mark.parametrize("lora", [False, True])
def test_the_packed_forward_is_transformers_with_this_loss(lora, monkeypatch):
    t5 = network(lora=lora).train()
    tokens, mask, sizes, labels = batch()
    log_prob = sequence_logits(t5, tokens, mask, labels).log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
    loss = prefix_aware_loss(log_prob, 0.3, 0.5).mean() / labels.shape[1]
    t5.zero_grad()
    loss.backward()
    wanted = gradients(t5)
    ours = PackedT5(t5, torch.float64, partial(level_weights, beta=0.3, eta=0.5))
    for most_tokens in (None, 100):
        t5.zero_grad()
        found = ours.backward(tokens, sizes, labels, most_tokens)
        assert found.item() == pytest.approx(loss.item(), rel=1e-6)
        assert difference(gradients(t5), wanted) < 1e-5
    t5.zero_grad()
    ours.loss(tokens, sizes, labels).backward()
    assert difference(gradients(t5), wanted) < 1e-5


def test_the_model_takes_it_from_its_settings(tmp_path, monkeypatch):
    """The keys reach the loss of GMC, and reach the key of the cache."""
    import sys

    from data_help import config_of
    from run_help import tiny, write_planted

    from recbole_gmc.data.domains import GMCDataset
    from recbole_gmc.data.rows import SequenceRows
    from recbole_gmc.model.gmc import GMC
    from recbole_gmc.train.unified_cache import SETTINGS

    monkeypatch.setattr(sys, "argv", ["test"])
    write_planted(tmp_path, "Big", seed=1)
    losses = []
    for beta in (0.0, 0.4):
        keys = tiny(tmp_path, domains=["Big"], prefix_beta=beta, seed=3)
        config = config_of(tmp_path, "Big", **{k: v for k, v in keys.items() if k != "data_path"})
        data = GMCDataset(config)
        torch.manual_seed(1)
        model = GMC(config, data).eval()
        losses.append(model.loss(SequenceRows.of(data.build()[0])).item())
    assert losses[1] > losses[0] * 1.3 and {"prefix_beta", "prefix_eta"} <= set(SETTINGS)
