"""The unified recommender's network: T5 from scratch over semantic IDs (paper section 4.2, equation 8)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import T5Config, T5ForConditionalGeneration

from recbole_gmc.errors import GMCError
from recbole_gmc.model.vocabulary import EOS, PAD, Vocabulary
from recbole_gmc.settings import T5Settings


def build_t5(settings: T5Settings, vocabulary: Vocabulary) -> T5ForConditionalGeneration:
    """A T5 with random weights drawn from torch's global generator, its head tied to the embedding.

    With the default settings and 4 x 256 codes it has 4,330,240 parameters.
    """
    config = T5Config(
        vocab_size=vocabulary.size,
        d_model=settings.d_model,
        d_kv=settings.d_kv,
        d_ff=settings.d_ff,
        num_layers=settings.encoder_layers,
        num_decoder_layers=settings.decoder_layers,
        num_heads=settings.heads,
        dropout_rate=settings.dropout,
        feed_forward_proj=settings.activation,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=PAD,
    )
    config._attn_implementation = "eager"  # the learned bias rules out sdpa's fast kernels
    return T5ForConditionalGeneration(config)


def encode_histories(
    codes: torch.Tensor,
    history: torch.Tensor,
    length: torch.Tensor,
    vocabulary: Vocabulary,
    max_items: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Histories of items as encoder input: the codes of each item, oldest item first, then one eos.

    Args:
        codes: int [items, L], the semantic ID of every item row.
        history: int64 [B, S], item rows oldest first, padded on the right (the padding is never read).
        length: int64 [B], how many items each history has.
        max_items: longer histories lose their oldest items, always whole ones.

    Returns:
        ``input_ids`` int64 [B, s * L + 1] and ``attention_mask`` int64 of the same shape, padded on the right, where s
        is the longest history of the batch after the cut.

    Raises:
        GMCError: a row inside a history that is no item, or a length beyond S.
    """
    size, width = history.shape
    device = history.device
    length = length.long()
    if size and (int(length.min()) < 0 or int(length.max()) > width):
        raise GMCError(f"history lengths from {int(length.min())} to {int(length.max())} do not fit {width} columns")
    kept = length if max_items is None else length.clamp(max=max_items)
    longest = int(kept.max()) if size else 0
    column = torch.arange(longest, device=device)
    inside = column < kept[:, None]
    rows = history.gather(1, (column + (length - kept)[:, None]).clamp(max=max(width - 1, 0)))
    rows = torch.where(inside, rows, 0)
    if rows.numel() and (int(rows.min()) < 0 or int(rows.max()) >= len(codes)):
        raise GMCError("a history holds an item that has no semantic ID", mend="Give every item of the catalogue an ID")
    levels = vocabulary.levels
    tokens = vocabulary.tokens(codes.to(device)[rows]) if rows.numel() else rows.new_zeros(size, longest, levels)
    tokens = tokens.masked_fill(~inside[..., None], PAD).flatten(1)
    input_ids = F.pad(tokens, (0, 1), value=PAD)
    input_ids.scatter_(1, (kept * levels)[:, None], EOS)
    mask = torch.arange(input_ids.shape[1], device=device) <= (kept * levels)[:, None]
    return input_ids, mask.long()


def sequence_logits(
    t5: T5ForConditionalGeneration, input_ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Teacher-forced logits [B, L, vocabulary] for label tokens [B, L]; no cache, no attention maps are kept."""
    if bool(mask.all()):
        mask = None
    encoded = t5.encoder(input_ids=input_ids, attention_mask=mask)[0]
    start = labels.new_full((len(labels), 1), t5.config.decoder_start_token_id)
    hidden = t5.decoder(
        input_ids=torch.cat([start, labels[:, :-1]], dim=1),
        encoder_hidden_states=encoded,
        encoder_attention_mask=mask,
        use_cache=False,
    )[0]
    return t5.lm_head(hidden * output_scale(t5.config))


def output_scale(config: T5Config) -> float:
    """The factor T5 puts before a tied head: d_model ** -0.5."""
    scaled = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
    return config.d_model**-0.5 if scaled else 1.0


def sequence_log_prob(
    t5: T5ForConditionalGeneration, input_ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """The log-probability [B] of each label sequence [B, L], normalised over the whole vocabulary at every level."""
    logits = sequence_logits(t5, input_ids, mask, labels).float()
    return logits.log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1).sum(-1)


def group_by_length(length: torch.Tensor) -> list[torch.Tensor]:
    """Groups rows of equal length, so that decoding needs no padding.

    Returns:
        int64 index tensors that together hold every row once, shortest first.
    """
    order = torch.argsort(length, stable=True)
    counts = torch.unique_consecutive(length[order], return_counts=True)[1]
    return list(order.split(counts.tolist()))
