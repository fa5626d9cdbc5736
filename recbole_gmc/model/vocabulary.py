"""The tokens of the recommender: the only place that knows where a level's codes begin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from recbole_gmc.errors import GMCError

if TYPE_CHECKING:
    from recbole_gmc.tokenizer.semantic_ids import SemanticIds

PAD = 0
EOS = 1
SPECIAL = 2


@dataclass(frozen=True)
class Vocabulary:
    """Padding, end of sequence, and ``levels`` x ``codebook_size`` codes, each level with tokens of its own.

    Code ``c`` of level ``l`` (both from 0) is token ``2 + l * codebook_size + c``; where the levels share their codes
    (``shared``, for IDs that are words) it is token ``2 + c``. There is no token for a domain or a user. Decoding
    starts with the padding token, as T5 does.

    Example:
        >>> words = Vocabulary(levels=2, codebook_size=4)
        >>> words.size, words.tokens(torch.tensor([[3, 0]])).tolist(), words.codes(torch.tensor([[5, 6]])).tolist()
        (10, [[5, 6]], [[3, 0]])
    """

    levels: int
    codebook_size: int
    shared: bool = False

    @classmethod
    def of(cls, ids: SemanticIds) -> Vocabulary:
        """The tokens that these IDs need."""
        return cls(ids.levels, ids.codebook_size, ids.words is not None)

    @property
    def size(self) -> int:
        return SPECIAL + self.codebook_size * (1 if self.shared else self.levels)

    def level(self, number: int) -> slice:
        """The tokens of one level, as a slice of the vocabulary."""
        start = SPECIAL + (0 if self.shared else number * self.codebook_size)
        return slice(start, start + self.codebook_size)

    def tokens(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes int [..., L] to tokens int64 [..., L].

        Raises:
            GMCError: the last axis is not L, or a code lies outside the codebook.
        """
        self._check_levels(codes)
        codes = codes.long()
        if codes.numel() and (codes.min() < 0 or codes.max() >= self.codebook_size):
            raise GMCError(
                f"codes from {int(codes.min())} to {int(codes.max())} do not fit a codebook of {self.codebook_size}",
                mend="Use the codebook_size that the semantic IDs were made with",
            )
        return codes + self._offsets(codes.device)

    def codes(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens int [..., L] back to codes int64 [..., L]; raises GMCError for a token of another level."""
        self._check_levels(tokens)
        codes = tokens.long() - self._offsets(tokens.device)
        if codes.numel() and (codes.min() < 0 or codes.max() >= self.codebook_size):
            raise GMCError("a token does not belong to the level at its position")
        return codes

    def _offsets(self, device: torch.device) -> torch.Tensor:
        return SPECIAL + (0 if self.shared else self.codebook_size) * torch.arange(self.levels, device=device)

    def _check_levels(self, values: torch.Tensor) -> None:
        if values.dim() == 0 or values.shape[-1] != self.levels:
            raise GMCError(f"semantic IDs of shape {tuple(values.shape)} do not have {self.levels} levels")
