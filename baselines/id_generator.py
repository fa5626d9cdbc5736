"""Textual IDs written by a sequence-to-sequence checkpoint (IDGenRec, arXiv 2403.19021, section 3.1)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from recbole_gmc.baselines.keywords import Words, unique_texts
from tqdm import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from recbole_gmc.embed import pretrained
from recbole_gmc.errors import EmbeddingError, SettingError
from recbole_gmc.settings import TextSettings

if TYPE_CHECKING:
    from recbole_gmc.baselines.idgenrec import IDGenRecSettings

    from recbole_gmc.data.text import ItemTexts

KEY = "idgen_checkpoint"
MOST_WORDS = 15
PENALTIES = range(1, 10)  # of the diverse search, tried in turn while every text is taken
LEAST_TOKENS = (1, 11)  # then longer texts


def find(name: str, max_length: int) -> pretrained.Checkpoint:
    """Looks the checkpoint up without loading its weights.

    Raises:
        SettingError: nothing there, no safetensors, or no sequence-to-sequence network.
    """
    mend = "Give a folder that save_pretrained wrote, or ~ for keywords"
    try:
        found = pretrained.find(TextSettings(encoder=name, max_length=max_length, dtype="float32"), "cpu")
        _, config = pretrained.located(name)
    except EmbeddingError as error:
        raise SettingError(error.what, where=f"{KEY} {name}", mend=mend) from error
    if not config.is_encoder_decoder:
        raise SettingError("the network writes no text from text", where=f"{KEY} {name}", mend=mend)
    return found


def generate(
    texts: ItemTexts, found: pretrained.Checkpoint, settings: IDGenRecSettings, device: torch.device, progress: bool
) -> tuple[dict[int, Words], int]:
    """Item row -> words, and how many items could not have their first text.

    The published rule: the texts of a diverse beam search in turn; if all are taken, a greater diversity penalty, up
    to 9, and then longer texts. (Then a number, which the published rule never reaches.) Items are asked in the order
    of their tokens; the first search runs in batches, which changes nothing.
    """
    writer = Writer.load(found, settings, device)
    batches = _ahead(writer, texts.texts, settings.batch_size, progress)
    first: dict[int, list[Words]] = {}

    def candidates(row: int) -> Iterator[Words]:
        while row not in first:
            first.update(next(batches))
        yield from first.pop(row)
        for least in LEAST_TOKENS:
            for penalty in PENALTIES:
                if (least, penalty) != (LEAST_TOKENS[0], PENALTIES[0]):
                    yield from writer.write([texts.texts[row]], penalty, least)[0]

    return unique_texts(texts.items, candidates, MOST_WORDS)


def _ahead(writer: Writer, texts: Sequence[str], size: int, progress: bool) -> Iterator[dict[int, list[Words]]]:
    for start in tqdm(range(0, len(texts), size), desc="Textual IDs", ncols=100, disable=not progress):
        made = writer.write(texts[start : start + size], PENALTIES[0], LEAST_TOKENS[0])
        yield dict(enumerate(made, start))


@dataclass(frozen=True)
class Writer:
    """A loaded checkpoint."""

    network: Any
    tokenizer: Any
    settings: IDGenRecSettings

    @classmethod
    def load(cls, found: pretrained.Checkpoint, settings: IDGenRecSettings, device: torch.device) -> Writer:
        """Weights come from safetensors only, and code of a checkpoint's own is never run."""
        tokenizer = AutoTokenizer.from_pretrained(found.name, revision=found.revision)
        network = AutoModelForSeq2SeqLM.from_pretrained(
            found.name, revision=found.revision, use_safetensors=True, dtype=torch.float32
        )
        return cls(network.to(device).eval(), tokenizer, settings)

    @torch.no_grad()
    def write(self, texts: Sequence[str], penalty: float, least: int) -> list[list[Words]]:
        """For each text the words of ``idgen_beams`` outputs of ``least`` to ``least + idgen_new_tokens`` tokens.

        Diverse beam search (arXiv 1610.02424) with groups of one beam: at every step a group chooses after the ones
        before it, and each of these lowers the log-probability of the token it took by ``penalty``. The first group
        is plain greedy search.
        """
        made = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.settings.max_length, return_tensors="pt"
        ).to(self.network.device)
        groups, size = self.settings.beams, len(texts)
        encoded = self.network.get_encoder()(input_ids=made.input_ids, attention_mask=made.attention_mask)
        encoded.last_hidden_state = encoded.last_hidden_state.repeat_interleave(groups, 0)
        mask = made.attention_mask.repeat_interleave(groups, 0)
        config = self.network.config
        eos, pad = config.eos_token_id, config.pad_token_id
        last = mask.new_full((size * groups, 1), config.decoder_start_token_id)
        done = torch.zeros(size, groups, dtype=torch.bool, device=mask.device)
        past, written = None, []
        for step in range(least + self.settings.new_tokens):
            out = self.network(
                encoder_outputs=encoded,
                attention_mask=mask,
                decoder_input_ids=last,
                past_key_values=past,
                use_cache=True,
            )
            past = out.past_key_values
            scores = out.logits[:, -1].float().log_softmax(-1).view(size, groups, -1)
            scores[..., pad] = -torch.inf
            if step < least:
                scores[..., eos] = -torch.inf
            chosen = _in_turn(scores, done, penalty).masked_fill(done, pad)
            written.append(chosen)
            done = done | (chosen == eos)
            if bool(done.all()):
                break
            last = chosen.view(-1, 1)
        outputs = self.tokenizer.batch_decode(torch.stack(written, -1).flatten(0, 1), skip_special_tokens=True)
        words = [tuple(re.findall(r"\b\w+\b", output.lower())) for output in outputs]
        return [words[start : start + groups] for start in range(0, len(words), groups)]


def _in_turn(scores: torch.Tensor, done: torch.Tensor, penalty: float) -> torch.Tensor:
    """The token int64 [B, groups] that each group takes, by scores [B, groups, vocabulary]."""
    taken = torch.zeros_like(scores[:, 0])
    chosen = []
    for group in range(scores.shape[1]):
        token = (scores[:, group] - penalty * taken).argmax(-1, keepdim=True)
        taken.scatter_add_(1, token, (~done[:, group : group + 1]).to(taken.dtype))
        chosen.append(token)
    return torch.cat(chosen, dim=1)
