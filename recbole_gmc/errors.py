"""Typed errors: what is wrong, where, and how to mend it, in one line."""

from __future__ import annotations


class GMCError(ValueError):
    """Base of every error the plugin raises on purpose.

    Args:
        what: what is wrong, with the offending value.
        where: ``file:line``, a settings key or a folder; ``None`` where there is none.
        mend: what the user can do about it.

    ``exit_status`` is what the command line returns: 2 for bad input, 1 for a run that failed.
    """

    exit_status = 2

    def __init__(self, what: str, where: str | None = None, mend: str | None = None) -> None:
        self.what, self.where, self.mend = what, where, mend
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}. {self.mend}" if self.mend else head

    def __reduce__(self):  # keeps the three parts when an error crosses a process
        return type(self), (self.what, self.where, self.mend)


class SettingError(GMCError):
    """A settings key that is unknown, of the wrong type or out of range."""


class DataError(GMCError):
    """An atomic file or domain that cannot be used as it is."""


class EmbeddingError(GMCError):
    """Text embeddings that do not fit the catalogue, or cannot be made."""


class TokenizerError(GMCError):
    """Semantic IDs that cannot be learned, repaired, imported or told apart."""


class CheckpointError(GMCError):
    """A checkpoint that is missing, damaged or made for something else."""


class DependencyError(GMCError):
    """A package that this step needs and the environment lacks."""


class RunError(GMCError):
    """A run that failed on the way, with everything saved so far kept."""

    exit_status = 1
