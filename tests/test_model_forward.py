"""The training forward of our own against transformers': loss, gradients, dropout, adapters, chunks, precision."""

from __future__ import annotations

import pytest
import torch

from recbole_gmc.model.adapters import DomainAdapters
from recbole_gmc.model.forward import PackedT5
from recbole_gmc.model.masks import DropoutMasks
from recbole_gmc.model.packing import LANES, Chunk, pack
from recbole_gmc.model.primitives import row_length, unit, unit_backward, unit_backward_anywhere
from recbole_gmc.model.seq2seq import build_t5, encode_histories
from recbole_gmc.model.vocabulary import PAD, Vocabulary
from recbole_gmc.settings import LoraSettings, T5Settings

SMALL = {"encoder_layers": 2, "decoder_layers": 2, "d_model": 24, "d_ff": 32, "heads": 2, "d_kv": 8}
WORDS = Vocabulary(3, 7)
TARGETS = {"relu": ("q", "v", "o", "wi", "wo"), "gated-gelu": ("k", "wi_0", "wo")}


def network(activation: str = "relu", lora: bool = False, dropout: float = 0.0, words: Vocabulary = WORDS):
    """A T5 in double precision whose norms and adapters are no identities."""
    torch.manual_seed(0)
    t5 = build_t5(T5Settings(**SMALL, activation=activation, dropout=dropout), words)
    if lora:
        settings = LoraSettings(rank=3, dropout=dropout, target_modules=TARGETS[activation])
        DomainAdapters(t5, ("A", "B"), settings).activate("B")
    for name, parameter in t5.named_parameters():
        if parameter.dim() == 1:
            parameter.data.uniform_(0.5, 1.5)
        elif "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    return t5.double()


def batch(words: Vocabulary = WORDS, rows: int = 23, longest: int = 12, same: bool = False):
    """Encoder tokens, their mask and sizes, and labels."""
    torch.manual_seed(5)
    codes = torch.randint(words.codebook_size, (40, words.levels))
    history = torch.randint(40, (rows, longest))
    length = torch.full((rows,), longest) if same else torch.randint(1, longest + 1, (rows,))
    tokens, mask = encode_histories(codes, history, length, words)
    return tokens, mask, length * words.levels + 1, words.tokens(codes[torch.randint(40, (rows,))])


def gradients(t5) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in t5.named_parameters() if p.grad is not None}


def reference(t5, tokens, mask, labels) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    t5.zero_grad()
    loss = t5(input_ids=tokens, attention_mask=mask, labels=labels).loss
    loss.backward()
    return loss.detach(), gradients(t5)


def ours(t5, tokens, sizes, labels, most_tokens=None, dtype=torch.float64):
    t5.zero_grad()
    loss = PackedT5(t5, dtype).backward(tokens, sizes, labels, most_tokens)
    return loss, gradients(t5)


def difference(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).norm() / two[name].norm()) for name in two)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gated-gelu"])
def test_loss_and_gradients_are_those_of_transformers(activation, lora, same, monkeypatch):
    t5 = network(activation, lora).train()
    tokens, mask, sizes, labels = batch(same=same)
    # transformers computes its cross-entropy here in fp32; in double precision nothing hides behind rounding.
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    loss, wanted = reference(t5, tokens, mask, labels)
    for most_tokens in (None, 100):
        found, got = ours(t5, tokens, sizes, labels, most_tokens)
        assert found.item() == pytest.approx(loss.item(), rel=1e-6)
        assert difference(got, wanted) < 1e-5


def test_float32_holds_the_promised_accuracy():
    t5 = network().float()
    tokens, mask, sizes, labels = batch()
    loss, wanted = reference(t5, tokens, mask, labels)
    found, got = ours(t5, tokens, sizes, labels, dtype=torch.float32)
    assert found.item() == pytest.approx(loss.item(), abs=1e-5)
    assert difference(got, wanted) < 1e-5


def test_bfloat16_is_near_and_sums_in_float32():
    t5 = network().float()
    tokens, mask, sizes, labels = batch()
    _, wanted = reference(t5, tokens, mask, labels)
    for most_tokens in (None, 64):
        _, got = ours(t5, tokens, sizes, labels, most_tokens, dtype=torch.bfloat16)
        assert all(gradient.dtype == torch.float32 for gradient in got.values())
        assert difference(got, wanted) < 0.1


def test_loss_with_its_graph_gives_the_same_gradient():
    t5 = network()
    tokens, _, sizes, labels = batch()
    value, wanted = ours(t5, tokens, sizes, labels)
    t5.zero_grad()
    loss = PackedT5(t5, torch.float64).loss(tokens, sizes, labels)
    loss.backward()
    assert loss.item() == pytest.approx(value.item())
    assert difference(gradients(t5), wanted) < 1e-12


def test_only_the_active_adapter_gets_a_gradient():
    t5 = network(lora=True)
    tokens, _, sizes, labels = batch()
    _, got = ours(t5, tokens, sizes, labels)
    assert got and all(".lora_" in name and ".d1." in name for name in got)


# ---- dropout: transformers with our masks in its own places computes the same --------------------------------------


class Recorded:
    """Replays in transformers' forward, call by call, the masks that our forward took."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.masks: list[torch.Tensor] = []
        self.monkeypatch = monkeypatch
        take = DropoutMasks.take

        def recording(source: DropoutMasks, *shape: int) -> torch.Tensor:
            self.masks.append(take(source, *shape))
            return self.masks[-1]

        monkeypatch.setattr(DropoutMasks, "take", recording)

    def replay(self, masks: list[torch.Tensor]) -> None:
        left = iter(masks)

        def dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
            return x * (next(left) != 0).view(x.shape) / (1 - p) if training and p else x

        self.monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
        self.left = left


@pytest.mark.parametrize("activation", ["relu", "gated-gelu"])
def test_dropout_stands_where_transformers_has_it(activation, monkeypatch):
    """Sequences that fill a bin each, so that all masks but those of the decoder's own attention have equal shapes."""
    words = Vocabulary(1, 30)
    t5 = network(activation, dropout=0.4, words=words).train()
    tokens, mask, sizes, labels = batch(words, rows=LANES, longest=LANES - 1, same=True)
    recorded = Recorded(monkeypatch)
    loss, got = ours(t5, tokens, sizes, labels)
    # Our rows are in the order of the bins; one level a group leaves the diagonal of the decoder's own attention.
    order = torch.tensor([row for (row,) in pack(sizes.tolist())[0][0].sequences])
    square = (SMALL["heads"], LANES, LANES)
    masks = [m.diagonal(dim1=1, dim2=2).T if m.shape == square else m for m in recorded.masks]
    recorded.replay(masks)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    wanted_loss, wanted = reference(t5, tokens[order], mask[order], labels[order])
    assert next(recorded.left, None) is None and len(masks) == 4 + 2 * 4 + 2 * 6
    assert loss.item() == pytest.approx(wanted_loss.item(), rel=1e-6)
    assert difference(got, wanted) < 1e-5


def test_adapters_drop_their_own_input_each(monkeypatch):
    """With dropout before the adapters alone: our masks, replayed in peft's layers."""
    words = Vocabulary(1, 30)
    t5 = network("relu", lora=True, dropout=0.4, words=words).train()
    t5.config.dropout_rate = 0.0
    for module in t5.modules():
        if type(module).__name__ == "T5Attention":
            module.dropout = 0.0
    lora = {id(m.lora_dropout["d1"]) for m in t5.modules() if hasattr(m, "lora_A")}
    for module in t5.modules():
        if isinstance(module, torch.nn.Dropout) and id(module) not in lora:
            module.p = 0.0
    tokens, mask, sizes, labels = batch(words, rows=LANES, longest=LANES - 1, same=True)
    recorded = Recorded(monkeypatch)
    loss, got = ours(t5, tokens, sizes, labels)
    order = torch.tensor([row for (row,) in pack(sizes.tolist())[0][0].sequences])
    # Ours: (q, v), o, wi, wo a layer; then v of all cross-attentions at once; then the decoder with its cross q and o.
    encoder, memory, decoder = recorded.masks[:8], recorded.masks[8], recorded.masks[9:]
    masks = [mask for group in encoder for mask in group.unbind(0)]
    for number in range(2):
        own, own_o, cross_q, cross_o, wi, wo = (group.unbind(0) for group in decoder[6 * number : 6 * number + 6])
        masks += [*own, *own_o, *cross_q, memory[number], *cross_o, *wi, *wo]
    recorded.replay(masks)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    wanted_loss, wanted = reference(t5, tokens[order], mask[order], labels[order])
    assert next(recorded.left, None) is None
    assert loss.item() == pytest.approx(wanted_loss.item(), rel=1e-6)
    assert difference(got, wanted) < 1e-5


def test_equal_seeds_give_equal_steps_and_others_do_not():
    t5 = network(dropout=0.3).train()
    tokens, _, sizes, labels = batch()
    network_ = PackedT5(t5, torch.float64)

    def steps(net: PackedT5, seed: int) -> list[float]:
        torch.manual_seed(seed)
        return [net.backward(tokens, sizes, labels).item() for _ in range(2)]

    first = steps(network_, 1)
    assert first == steps(network_, 1) == steps(PackedT5(t5, torch.float64), 1)
    assert len({*first, *steps(network_, 2)}) == 4
    t5.eval()
    assert len(set(steps(network_, 1))) == 1


@pytest.mark.parametrize("name", ["shared.weight", "encoder.block.0.layer.1.DenseReluDense.wi.weight"])
def test_a_weight_that_is_no_number_shows_in_the_loss(name):
    t5 = network(dropout=0.1).train()
    dict(t5.named_parameters())[name].data.fill_(torch.nan)
    tokens, _, sizes, labels = batch()
    assert ours(t5, tokens, sizes, labels)[0].isnan()


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_masks_drop_the_right_share_independently(p):
    torch.manual_seed(3)
    masks = DropoutMasks(p, torch.bfloat16, "cpu", places=1 << 16)
    draws = []
    for seed in range(200):
        masks.renew(seed)
        draws += [masks.take(40, 50), masks.take(40, 50)]
    drawn = torch.stack(draws)
    assert set(drawn.unique().tolist()) == {0, -1}
    keep = -drawn.double().view(200, 2, 2000)
    error = (p * (1 - p) / keep.numel()) ** 0.5
    assert keep.mean().item() == pytest.approx(1 - p, abs=6 * error)
    # Every place by itself, neighbours, and the two uses of a batch: as independent draws would scatter.
    assert keep.mean((0, 1)).var().item() == pytest.approx(p * (1 - p) / 400, rel=0.2)
    scatter = p * (1 - p) / (200 * 2000) ** 0.5
    for one, two in ((keep[:, 0, 1:], keep[:, 0, :-1]), (keep[:, 0], keep[:, 1]), (keep[1:, 0], keep[:-1, 0])):
        covariance = ((one - (1 - p)) * (two - (1 - p))).mean().item()
        assert abs(covariance) < 6 * scatter


def test_masks_larger_than_the_source_and_of_other_types():
    masks = DropoutMasks(0.25, torch.float32, "cpu", places=1 << 10)
    mask = masks.take(100, 100)
    assert mask.dtype == torch.int32 and -mask.double().mean().item() == pytest.approx(0.75, abs=0.1)
    earlier = masks.take(30)
    copy = earlier.clone()
    masks.renew(9)
    assert torch.equal(earlier, copy)


# ---- packing and the parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("most_tokens", [None, 1, 70, 200])
def test_bins_hold_every_sequence_once(most_tokens):
    torch.manual_seed(1)
    sizes = (torch.randint(0, 21, (150,)) * 4 + 1).tolist()
    chunks = pack(sizes, most_tokens)
    assert sorted(n for chunk in chunks for bins in chunk for inside in bins.sequences for n in inside) == [*range(150)]
    for chunk in chunks:
        assert most_tokens is None or len(chunk) == 1 == chunk[0].count or sum(b.slots for b in chunk) <= most_tokens
        for bins in chunk:
            assert bins.width % LANES == 0
            assert all(0 < sum(sizes[n] for n in inside) <= bins.width for inside in bins.sequences)
    assert pack([], most_tokens) == []


def test_little_of_a_bin_is_padding():
    torch.manual_seed(1)
    sizes = (torch.distributions.Geometric(0.25).sample((500,)).clamp(0, 19).long() * 4 + 5).tolist()
    (chunk,) = pack(sizes)
    assert sum(sizes) > 0.9 * sum(bins.slots for bins in chunk)


def test_a_chunk_holds_the_tokens_of_its_rows():
    tokens, mask, sizes, _ = batch()
    for bins in pack(sizes.tolist(), 150):
        chunk = Chunk.of(bins, tokens, sizes, PAD)
        number = 0
        for block in chunk.blocks:
            span = chunk.tokens[block.start : block.stop].view(block.count, block.width)
            assert bool((span[block.segment < 0] == PAD).all())
            for place in block.places.tolist():
                row = chunk.order[number]
                assert block.rows[place] == number
                inside = span[place // block.most][block.segment[place // block.most] == number]
                assert torch.equal(inside, tokens[row, : sizes[row]])
                number += 1
        assert number == len(chunk.order)


def test_norm_is_that_of_t5_and_its_gradient_that_of_autograd():
    torch.manual_seed(0)
    x = (0.01 * torch.randn(6, 10, dtype=torch.float64)).requires_grad_()
    wanted = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    length = row_length(x.detach(), 1e-6)
    assert torch.allclose(unit(x.detach(), length) * 10**0.5, wanted.detach(), rtol=1e-6)
    arriving = torch.randn_like(wanted)
    (gradient,) = torch.autograd.grad(wanted, x, arriving)
    for backward in (unit_backward, unit_backward_anywhere):
        assert torch.allclose(backward(arriving, x.detach(), length) * 10**0.5, gradient, rtol=1e-6)
