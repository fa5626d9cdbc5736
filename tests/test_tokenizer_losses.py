"""The RQ-VAE's losses against numbers worked out by hand, and where their gradients go."""

from __future__ import annotations

import math

import pytest
import torch

from recbole_gmc.products import onednn_available
from recbole_gmc.tokenizer.losses import domain_contrastive_loss, quantization_loss, reconstruction_loss
from recbole_gmc.tokenizer.rqvae import RQVAE, ResidualQuantizer, balanced_assignment


def test_reconstruction_loss_by_hand():
    inputs, outputs = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 1.0]])
    # squared norms 1 + 4 and 1
    assert reconstruction_loss(inputs, outputs, "sum").item() == pytest.approx((5 + 1) / 2)
    assert reconstruction_loss(inputs, outputs, "mean").item() == pytest.approx((5 + 1) / 4)


def test_quantization_loss_takes_the_input_residual():
    quantizer = ResidualQuantizer(levels=2, codebook_size=2, dim=2)
    with torch.no_grad():
        quantizer.codebooks.copy_(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [-1.0, 0.0]]]))
    found = quantizer(torch.tensor([[2.0, 1.0]]))
    # level 1: (2,1) is nearest to (1,0), distance 1 + 1; level 2: (1,1) is nearest to (.5,.5), distance .25 + .25
    assert found.codes.tolist() == [[0, 0]]
    assert found.vectors.tolist() == [[1.5, 0.5]]
    total = quantization_loss(found.residuals, found.chosen, beta=0.25, reduction="sum")
    assert total.item() == pytest.approx(1.25 * (2.0 + 0.5))
    mean = quantization_loss(found.residuals, found.chosen, beta=0.25, reduction="mean")
    assert mean.item() == pytest.approx(1.25 * (2.0 + 0.5) / 4)


def test_quantization_loss_sum_adds_levels_and_averages_the_batch():
    residuals, chosen = torch.randn(3, 5, 2), torch.randn(3, 5, 2)
    by_hand = 0.0
    for item in range(5):
        for level in range(3):
            by_hand += sum((residuals[level, item] - chosen[level, item]).tolist()[k] ** 2 for k in range(2)) / 5
    assert quantization_loss(residuals, chosen, beta=0.5, reduction="sum").item() == pytest.approx(1.5 * by_hand)


def test_quantization_loss_moves_codes_by_the_first_term_and_latents_by_beta():
    residuals = torch.tensor([[[2.0]]], requires_grad=True)
    chosen = torch.tensor([[[1.0]]], requires_grad=True)
    quantization_loss(residuals, chosen, beta=0.25, reduction="sum").backward()
    assert chosen.grad.item() == pytest.approx(-2.0)
    assert residuals.grad.item() == pytest.approx(0.25 * 2.0)


def test_domain_loss_by_hand():
    vectors = [[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]
    domains = [0, 1, 0]
    dot = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in vectors] for x in vectors]
    by_hand = 0.0
    for i in range(3):
        own = sum(math.exp(dot[i][j]) for j in range(3) if domains[j] == domains[i])  # j = i is in it
        by_hand -= math.log(own / sum(math.exp(dot[i][j]) for j in range(3))) / 3
    found = domain_contrastive_loss(torch.tensor(vectors), torch.tensor(domains))
    assert found.item() == pytest.approx(by_hand, rel=1e-6)


def test_domain_loss_of_one_domain_is_zero_and_large_products_do_not_overflow():
    vectors = torch.randn(16, 4)
    assert domain_contrastive_loss(vectors, torch.zeros(16, dtype=torch.long)).item() == 0.0
    large = torch.tensor([[300.0, 0.0], [0.0, 300.0]], requires_grad=True)  # exp(90,000) is past float64
    loss = domain_contrastive_loss(large, torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(0.0) and torch.isfinite(large.grad).all()


def test_domain_loss_at_random_start_is_near_the_entropy_of_the_domains():
    torch.manual_seed(0)
    sizes = [400, 200, 200, 224]
    domains = torch.repeat_interleave(torch.arange(4), torch.tensor(sizes))
    model = RQVAE(24, (16, 12), 8, levels=3, codebook_size=16)
    with torch.no_grad():
        model.quantizer.codebooks.mul_(0.1)
        latents = model.encoder(0.1 * torch.randn(1024, 24))
        loss = domain_contrastive_loss(model.quantizer(latents).vectors, domains)
    share = [size / 1024 for size in sizes]
    assert loss.item() == pytest.approx(-sum(p * math.log(p) for p in share), abs=0.02)


def test_straight_through_gives_the_encoder_the_decoders_gradient_and_the_codebooks_none():
    torch.manual_seed(0)
    model = RQVAE(6, (5,), 3, levels=2, codebook_size=4)
    inputs = torch.randn(7, 6)
    latents = model.encoder(inputs)
    latents.retain_grad()
    quantized = model.quantizer(latents)
    quantized.vectors.retain_grad()
    reconstruction_loss(inputs, model.decoder(quantized.vectors)).backward()
    assert torch.equal(latents.grad, quantized.vectors.grad) and latents.grad.abs().sum() > 0
    assert model.quantizer.codebooks.grad is None
    assert torch.allclose(quantized.vectors, quantized.chosen.sum(dim=0), atol=1e-6)


def test_quantization_loss_reaches_every_level_of_codebooks_and_the_encoder():
    torch.manual_seed(0)
    model = RQVAE(6, (5,), 3, levels=3, codebook_size=4)
    _, quantized = model(torch.randn(9, 6))
    quantization_loss(quantized.residuals, quantized.chosen, 0.25).backward()
    assert (model.quantizer.codebooks.grad.abs().sum(dim=(1, 2)) > 0).all()
    assert model.encoder[0].weight.grad.abs().sum() > 0


def test_residual_quantizer_takes_the_nearest_code_at_every_level():
    torch.manual_seed(1)
    quantizer = ResidualQuantizer(levels=3, codebook_size=9, dim=4)
    latents = torch.randn(20, 4)
    codes = quantizer(latents).codes.tolist()
    books = quantizer.codebooks.tolist()
    for item, row in zip(latents.tolist(), codes, strict=True):
        for level, code in enumerate(row):
            distances = [sum((a - b) ** 2 for a, b in zip(item, vector, strict=True)) for vector in books[level]]
            assert code == distances.index(min(distances))
            item = [a - b for a, b in zip(item, books[level][code], strict=True)]


def test_sinkhorn_balances_the_last_level_in_training_only():
    torch.manual_seed(2)
    quantizer = ResidualQuantizer(levels=2, codebook_size=4, dim=2, sinkhorn=True)
    with torch.no_grad():
        quantizer.codebooks[1] = torch.tensor([[0.0, 0.0], [9.0, 9.0], [9.0, 8.0], [8.0, 9.0]])
    latents = torch.randn(64, 2)
    trained = quantizer(latents).codes
    quantizer.eval()
    assert torch.equal(trained[:, 0], quantizer(latents).codes[:, 0])
    assert len(trained[:, 1].unique()) > len(quantizer(latents).codes[:, 1].unique())
    plan = balanced_assignment(torch.rand(32, 4))
    assert torch.allclose(plan.sum(dim=1), torch.ones(32, dtype=torch.float64))
    assert torch.allclose(plan.sum(dim=0), torch.full((4,), 8.0, dtype=torch.float64), rtol=0.15)


def test_rank_bounds_the_space_of_the_latents():
    torch.manual_seed(3)
    model = RQVAE(20, (16,), 10, levels=2, codebook_size=4, rank=3)
    latents = model.encoder(torch.randn(50, 20))
    assert torch.linalg.matrix_rank(latents - latents.mean(dim=0), atol=1e-4).item() == 3


@pytest.mark.skipif(not onednn_available(torch.device("cpu")), reason="torch has no oneDNN here")
def test_onednn_gives_the_same_outputs_and_gradients():
    torch.manual_seed(4)
    model = RQVAE(40, (32, 24), 6, levels=2, codebook_size=8, rank=3)
    inputs, found = torch.randn(50, 40), []
    for on in (False, True):
        model.multiply_by(bf16=False, onednn=on)
        model.zero_grad()
        outputs, quantized = model(inputs)
        loss = reconstruction_loss(inputs, outputs) + quantization_loss(quantized.residuals, quantized.chosen, 0.25)
        loss.backward()
        found.append([outputs.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-6) for one, other in zip(*found, strict=True))


def test_bf16_rounds_the_products_of_training_alone():
    """Gradients are within a few of bf16's 2^-8 of float32's; outputs without a gradient equal them to the bit."""
    torch.manual_seed(5)
    model = RQVAE(40, (32, 24), 6, levels=2, codebook_size=8, rank=3)
    inputs, gradients, outputs = torch.randn(50, 40), [], []
    for bf16 in (False, True):
        model.multiply_by(bf16=bf16, onednn=False)
        model.zero_grad()
        trained = model.decoder(model.encoder(inputs))
        assert trained.dtype == torch.float32
        trained.square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        with torch.no_grad():
            outputs.append(model.decoder(model.encoder(inputs)))
    assert torch.equal(*outputs)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert 0 < (gradients[0] - gradients[1]).norm() < 0.03 * gradients[0].norm()


def test_domain_loss_where_the_own_domain_is_lost_beside_others():
    """The first item's product with itself is 1, with one of the other domain 200: exp(-199) is 0 in float32."""
    vectors = torch.tensor([[1.0, 0.0], [0.0, 0.1], [200.0, 0.0], [0.0, 0.2]], requires_grad=True)
    domains = torch.tensor([0, 0, 1, 1])
    loss = domain_contrastive_loss(vectors, domains)
    loss.backward()
    products = vectors.detach().double() @ vectors.detach().double().T
    own = products.masked_fill(domains[:, None] != domains, float("-inf"))
    by_hand = (products.logsumexp(dim=1) - own.logsumexp(dim=1)).mean().item()
    assert by_hand > 40 and loss.item() == pytest.approx(by_hand, rel=1e-6)
    assert torch.isfinite(vectors.grad).all()
