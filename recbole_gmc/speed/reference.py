"""The usual way: transformers' own T5, its ``generate`` and a prefix tree of Python dicts, a padded training step.

With nothing slowed down.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import T5Config, T5ForConditionalGeneration

from recbole_gmc.model.vocabulary import Vocabulary


def plain_t5(
    state: Mapping[str, torch.Tensor], config: Any, device: str = "cpu", **changes: Any
) -> T5ForConditionalGeneration:
    """A T5 as transformers builds it, with its choice of attention, and these weights; ``changes``: of its config."""
    facts = {name: value for name, value in config.to_dict().items() if not name.startswith("_")}
    with torch.random.fork_rng(devices=[]):
        t5 = T5ForConditionalGeneration(T5Config(**facts | changes))
    t5.load_state_dict(dict(state))
    return t5.to(device)


class Generate:
    """Constrained beam search by ``generate`` with a ``prefix_allowed_tokens_fn``, the way of LETTER and LC-Rec.

    Args:
        state, config: weights of a plain T5 by their transformers names, and its shape.
        codes: int [items, L], the semantic IDs of the catalogue.
        vocabulary: their tokens.
    """

    def __init__(
        self,
        state: Mapping[str, torch.Tensor],
        config: Any,
        codes: torch.Tensor,
        vocabulary: Vocabulary,
        device: str = "cpu",
    ) -> None:
        self.t5 = plain_t5(state, config, device).eval()
        self.vocabulary, self.device = vocabulary, device
        paths = vocabulary.tokens(codes).tolist()
        self.row_of = {tuple(path): row for row, path in enumerate(paths)}
        children: dict[tuple[int, ...], set[int]] = {}
        for path in paths:
            for level, token in enumerate(path):
                children.setdefault(tuple(path[:level]), set()).add(token)
        self.children = {prefix: sorted(tokens) for prefix, tokens in children.items()}

    @torch.inference_mode()
    def search(self, input_ids: torch.Tensor, mask: torch.Tensor, beams: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows int64 [B, K] and scores [B, K] of the best items for histories int64 [B, S]."""
        levels = self.vocabulary.levels
        found = self.t5.generate(
            input_ids=input_ids.to(self.device),
            attention_mask=mask.to(self.device),
            num_beams=beams,
            num_return_sequences=beams,
            prefix_allowed_tokens_fn=lambda _, seen: self.children[tuple(seen[1:].tolist())],
            do_sample=False,
            early_stopping=False,
            length_penalty=0.0,
            min_new_tokens=levels,
            max_new_tokens=levels,
            return_dict_in_generate=True,
            output_scores=True,
        )
        paths = found.sequences[:, 1:].tolist()
        rows = torch.tensor([self.row_of[tuple(path)] for path in paths]).view(len(input_ids), beams)
        return rows, found.sequences_scores.view(len(input_ids), beams).cpu()


class TrainStep:
    """A step of training as a plain user writes it: a padded batch, its loss, the gradients, clipping and AdamW.

    Args:
        state, config: weights of a plain T5 by their transformers names, and its shape.
        autocast: bf16 for what torch's autocast takes to it; the weights stay fp32.
        changes: of its config, as in ``attn_implementation="eager"`` or ``dropout_rate=0.0``.
    """

    def __init__(
        self,
        state: Mapping[str, torch.Tensor],
        config: Any,
        device: str = "cpu",
        autocast: bool = False,
        **changes: Any,
    ) -> None:
        self.t5 = plain_t5(state, config, device, **changes).train()
        self.kind, self.autocast = torch.device(device).type, autocast
        self.optimizer = torch.optim.AdamW(self.t5.parameters(), lr=1e-3, weight_decay=0.01)

    def backward(self, input_ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Puts the gradient of the mean loss of labels [B, L] on the parameters; gives that loss."""
        self.optimizer.zero_grad()
        with torch.autocast(self.kind, torch.bfloat16, enabled=self.autocast):
            loss = self.t5(input_ids=input_ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        return loss.detach()

    def __call__(self, input_ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = self.backward(input_ids, mask, labels)
        torch.nn.utils.clip_grad_norm_(self.t5.parameters(), 1.0)
        self.optimizer.step()
        return loss
