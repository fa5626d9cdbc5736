"""Any transformers checkpoint as a text encoder: the masked mean of its last hidden state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from logging import getLogger
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from tqdm import tqdm
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from recbole_gmc.embed.embeddings import first_tokens, refuse_rows, tokens_at
from recbole_gmc.embed.partial import Partial
from recbole_gmc.errors import EmbeddingError
from recbole_gmc.files import hash_file
from recbole_gmc.settings import TextSettings

if TYPE_CHECKING:
    from recbole_gmc.data.text import ItemTexts

KEY = "text_encoder"
IDENTITY_FILES = ("*.json", "*.safetensors", "*.model", "*.txt")

logger = getLogger("recbole_gmc.embed")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found and identified, but not loaded yet.

    Args:
        name: a folder or a name on the hub.
        revision: the hub's commit; ``None`` for a folder.
        identity: what the embeddings depend on besides the texts.
    """

    name: str
    revision: str | None
    identity: dict
    settings: TextSettings
    device: str

    def encode(self, texts: ItemTexts, partial_folder: Path, progress: bool = True) -> np.ndarray:
        """float32 [items, D], going on from what ``partial_folder`` holds of an interrupted run.

        Batches are the same whatever was done before, so an interrupted run and a whole one give equal results.

        Raises:
            EmbeddingError: the checkpoint cannot be loaded, or gives NaN, or a text has no token.
        """
        partial = Partial(partial_folder)
        done = partial.load()
        encoder = Encoder.load(self)
        tokens = encoder.tokenize(texts.texts)
        if wordless := [row for row, ids in enumerate(tokens) if not ids]:
            names = first_tokens(tokens_at(texts.items, wordless))
            what = f"{len(wordless)} texts have no token for {self.name}: {names}"
            raise EmbeddingError(what, KEY, "Name an encoder that knows their words, or give them other texts")
        if done:
            logger.info("Text embeddings: going on from %d of %d items", len(done), len(tokens))
        try:
            with tqdm(total=sum(map(len, tokens)), unit="token", unit_scale=True, disable=not progress) as bar:
                bar.set_description("Text embeddings")
                for rows in batches([len(ids) for ids in tokens], self.settings.batch_tokens):
                    if not all(row in done for row in rows):
                        found = dict(zip(rows, encoder.vectors([tokens[row] for row in rows]), strict=True))
                        _refuse_nan(texts, found, self)
                        done.update(found)
                        partial.add(found)
                    bar.update(sum(len(tokens[row]) for row in rows))
        finally:
            partial.save()
        return np.stack([done[row] for row in range(len(tokens))])

    @staticmethod
    def clear(partial_folder: Path) -> None:
        """Removes the partial results once the whole is stored."""
        Partial(partial_folder).clear()


def find(settings: TextSettings, device: str) -> Checkpoint:
    """Looks a checkpoint up by folder or by name, without loading its weights.

    Its identity holds transformers' version, the length limit, the precision, and the checkpoint itself: a folder is
    known by the hashes of its configuration, tokenizer and weights, a name by the hub's commit. Code that comes with a
    checkpoint is never run, and weights are read from safetensors only.

    Raises:
        EmbeddingError: nothing there, an architecture that transformers lacks, or no safetensors in the folder.
    """
    name, dtype = settings.encoder, settings.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    identity: dict[str, Any] = {
        "encoder": "transformers",
        "transformers": transformers.__version__,
        "max_length": settings.max_length,
        "dtype": dtype,
    }
    source, config = located(name)
    if (folder := Path(source)).is_dir():
        files = sorted({file for pattern in IDENTITY_FILES for file in folder.glob(pattern) if file.is_file()})
        identity["files"] = {file.name: hash_file(file) for file in files}
        return Checkpoint(source, None, identity, settings, device)
    revision = getattr(config, "_commit_hash", None)
    identity |= {"name": name, "revision": revision}
    return Checkpoint(name, revision, identity, settings, device)


def located(name: str) -> tuple[str, Any]:
    """The folder or hub name that ``text_encoder`` means, and the checkpoint's configuration; weights stay unread.

    Raises:
        EmbeddingError: as ``find``.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() and (folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        what = f"no folder {name!r} (tried {folder.absolute()})"
        raise EmbeddingError(what, KEY, "Give lsa, an existing folder or a checkpoint's name")
    source = str(folder) if folder.is_dir() else name
    config = _configuration(source)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        mend = "Save the weights again with model.save_pretrained(folder), which writes safetensors"
        raise EmbeddingError("the folder has no .safetensors weights, and no other format is read", source, mend)
    return source, config


def _configuration(source: str) -> Any:
    """The checkpoint's configuration, if transformers itself has the architecture."""
    known = "Give lsa, a folder that save_pretrained wrote, or a name of the hub (without a connection: a folder)"
    try:
        declared, _ = transformers.PretrainedConfig.get_config_dict(source)
        kind = declared.get("model_type")
        # Asked before AutoConfig is: it would offer to run the code of a checkpoint that it does not know.
        if kind not in transformers.CONFIG_MAPPING:
            what = f"transformers has no architecture {kind!r}" if kind else "no config.json names a model"
            raise EmbeddingError(what, f"{KEY} {source}", known)
        config = transformers.AutoConfig.from_pretrained(source)
    except EmbeddingError:
        raise
    except Exception as error:  # many kinds: no connection, no such name, broken JSON
        reason = " ".join(str(error).split()).split(". ")[0]  # what follows is advice, with addresses
        what = f"no transformers checkpoint of this name or in this folder ({shorten(reason, 200)})"
        raise EmbeddingError(what, f"{KEY} {source}", known) from error
    if type(config) not in transformers.MODEL_MAPPING:
        raise EmbeddingError(f"architecture {kind!r} has no bare network", f"{KEY} {source}", known)
    tokenizer = get_tokenizer_config(source)
    own_class = tokenizer.get("tokenizer_class") or ""
    has_class = type(config) in transformers.TOKENIZER_MAPPING or (own_class and hasattr(transformers, own_class))
    if "auto_map" in tokenizer and not has_class:
        raise EmbeddingError("the tokenizer needs code of its own, which is never run", f"{KEY} {source}", known)
    return config


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Rows grouped by length, longest first (what does not fit in memory fails at once, not after hours).

    A batch padded to its longest row has at most ``batch_tokens`` tokens, or one row.
    """
    rows = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    start = 0
    while start < len(rows):
        count = max(1, batch_tokens // max(1, lengths[rows[start]]))
        yield rows[start : start + count]
        start += count


@dataclass(frozen=True)
class Encoder:
    """A loaded network with its tokenizer."""

    network: torch.nn.Module
    tokenizer: Any
    longest: int

    @classmethod
    def load(cls, checkpoint: Checkpoint) -> Encoder:
        """Loads tokenizer and weights.

        Raises:
            EmbeddingError: files missing, damaged or not of one model.
        """
        where = f"{KEY} {checkpoint.name}"
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint.name, revision=checkpoint.revision)
            network, report = _load_network(checkpoint)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # each library raises its own kinds
            reason = " ".join(str(error).split())[:300]
            mend = "Give a folder that save_pretrained wrote, with its tokenizer and .safetensors weights"
            raise EmbeddingError(f"the checkpoint cannot be loaded ({reason})", where, mend) from error
        # A pooler is not used here, and masked-language checkpoints have none.
        if missing := sorted(name for name in report["missing_keys"] if "pooler" not in name):
            mend = "Give the checkpoint of a whole model; adapters must be merged first"
            raise EmbeddingError(f"weights are missing: {first_tokens(missing)}", where, mend)
        if (words := len(tokenizer)) > (rows := network.get_input_embeddings().weight.shape[0]):
            raise EmbeddingError(f"the tokenizer has {words} tokens, the model {rows}", where, "Give a matching pair")
        longest = min(checkpoint.settings.max_length, tokenizer.model_max_length, _positions(network))
        return cls(network.eval(), tokenizer, int(longest))

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, cut at the limit, with the tokenizer's own special tokens."""
        ids = self.tokenizer(list(texts), truncation=True, max_length=self.longest, return_attention_mask=False)
        tokens = ids["input_ids"]
        if full := sum(len(row) >= self.longest for row in tokens):
            logger.info("Text embeddings: %d of %d texts fill or pass %d tokens", full, len(tokens), self.longest)
        return tokens

    def vectors(self, tokens: list[list[int]]) -> np.ndarray:
        """float32 [B, D]: the mean of the last hidden state over each row's own tokens."""
        try:
            return self._mean(tokens)
        except torch.OutOfMemoryError:
            if len(tokens) == 1:
                raise
        torch.cuda.empty_cache()
        half = (len(tokens) + 1) // 2
        return np.concatenate([self.vectors(tokens[:half]), self.vectors(tokens[half:])])

    @torch.inference_mode()
    def _mean(self, tokens: list[list[int]]) -> np.ndarray:
        # Padding on the right is masked, so its id is free: tokenizers without a padding token need no new one.
        pad = self.tokenizer.pad_token_id or 0
        length = max(map(len, tokens))
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in tokens])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in tokens])
        device = self.network.get_input_embeddings().weight.device
        hidden = self.network(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state
        weights = mask.to(hidden.device).unsqueeze(-1)
        # Masked by choice, not by product: padding may hold NaN. Summed in float32 whatever the network's type.
        total = hidden.float().masked_fill(weights == 0, 0.0).sum(dim=1)
        return (total / weights.sum(dim=1)).cpu().numpy()


def _load_network(checkpoint: Checkpoint) -> tuple[torch.nn.Module, dict]:
    config = transformers.AutoConfig.from_pretrained(checkpoint.name, revision=checkpoint.revision)
    kind = transformers.AutoModel
    if config.is_encoder_decoder and type(config) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING:
        kind = transformers.AutoModelForTextEncoding  # T5: only the encoder is built and read
    config.use_cache = False
    options: dict[str, Any] = {}
    on_cuda = checkpoint.device.startswith("cuda")
    if on_cuda and find_spec("accelerate"):
        # Straight to the device, and over several of them when none is named.
        options["device_map"] = "auto" if checkpoint.device == "cuda" else {"": checkpoint.device}
    network, report = kind.from_pretrained(
        checkpoint.name,
        config=config,
        revision=checkpoint.revision,
        dtype=getattr(torch, checkpoint.identity["dtype"]),
        use_safetensors=True,
        output_loading_info=True,
        **options,
    )
    if config.is_encoder_decoder and kind is transformers.AutoModel:
        network = network.get_encoder()
    return (network if options else network.to(checkpoint.device)), report


def _positions(network: torch.nn.Module) -> int:
    """How many tokens the network has positions for."""
    limit = getattr(network.config, "max_position_embeddings", None) or 2**31
    for name, module in network.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limit = min(limit, module.num_embeddings - module.padding_idx - 1)  # RoBERTa counts from after padding
    return limit


def _refuse_nan(texts: ItemTexts, found: dict[int, np.ndarray], checkpoint: Checkpoint) -> None:
    bad = np.zeros(len(texts.items), bool)
    bad[[row for row, vector in found.items() if not np.isfinite(vector).all()]] = True
    mend = f"Set text_dtype to float32 or bfloat16 (now {checkpoint.identity['dtype']}), or check the weights"
    refuse_rows(texts.items, bad, "with NaN or infinite values", f"{KEY} {checkpoint.name}", mend)
