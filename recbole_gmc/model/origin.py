"""What a domain's saved weights were made for: they are put back for that domain, on that base model, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from recbole_gmc.errors import CheckpointError
from recbole_gmc.files import hash_file, read_json, write_json

FORMAT = 1
ORIGIN = "origin.json"
REMEDY = "Take the ones that were saved with this model"


def sign(place: Path, weights: str, domain: str, backbone: str) -> None:
    """Writes beside the file ``weights`` which domain and base model (its fingerprint) it is for, and its hash."""
    origin = {"domain": domain, "backbone": backbone, "weights": hash_file(place / weights)}
    write_json(place / ORIGIN, {"format": FORMAT, **origin})


def read_signed(
    place: Path,
    weights: str,
    domain: str,
    backbone: str,
    what: str,
    more: Callable[[], dict[str, bool]] = dict,
) -> dict[str, Tensor]:
    """The tensors of ``weights``, if they are what was signed for this domain and base model.

    Args:
        what: the name of it all in errors, such as "adapter of Books".
        more: further faults, each with whether it is there; called where files may be missing or damaged.

    Raises:
        CheckpointError: missing, damaged, or made for something else.
    """
    try:
        origin = read_json(place / ORIGIN)
        intact = origin["weights"] == hash_file(place / weights)
        made_for, made_on, version = origin["domain"], origin["backbone"], origin["format"]
        others = more()
    except FileNotFoundError as error:
        raise CheckpointError(f"no {what}", str(error.filename), REMEDY) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the {what} cannot be read ({error})", str(place), REMEDY) from error
    faults = {
        f"its format {version!r} is unknown": version != FORMAT,
        f"its weights are damaged or belong to another {what.partition(chr(32))[0]}": not intact,
        f"it was made for the domain {made_for!r}, not {domain!r}": made_for != domain,
        "it was made on another base model": made_on != backbone,
        **others,
    }
    for fault, found in faults.items():
        if found:
            raise CheckpointError(f"the {what} does not fit: {fault}", str(place), REMEDY)
    try:
        return load_file(place / weights)
    except Exception as error:  # safetensors raises its own kinds
        raise CheckpointError(f"the {what} is damaged ({error})", str(place), REMEDY) from error
