"""From what a user calls a model to a folder on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import MachineError, MissingFileError, UnsupportedError, UserError
from .gguf import looks_like_gguf

# owner/name on the Hugging Face Hub
MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
PICKLED_FILES = ["*.bin", "*.pt", "*.pth"]


def resolve_model(model: str | Path, pickled: bool = False, gguf: bool = False) -> Path:
    """The folder of a model.

    Args:
        model: a folder, or an id of the Hugging Face Hub, which is downloaded into its cache first.
        pickled: download .bin weights as well, to convert them.
        gguf: a GGUF file is a model too.

    Raises:
        MissingFileError: neither a folder nor an id.
        UnsupportedError: a GGUF file where only folders will do, or an id of a model without safetensors.
        UserError: some other file, or an id that the Hub refuses.
        MachineError: the Hub cannot be reached and the cache does not hold the model.
    """
    path = Path(model)
    try:
        exists, is_gguf = path.exists(), path.is_file() and looks_like_gguf(path)
        if path.is_dir():
            next(path.iterdir(), None)
            return path
    except OSError as fault:
        raise UserError(f"{path}: cannot be read: {fault.strerror}") from None
    if exists:
        if is_gguf and gguf:
            return path
        if is_gguf:
            raise UnsupportedError(
                f"{path}: a GGUF file is run as it is, but not converted or evaluated from; use the folder of the "
                "original model in safetensors"
            )
        raise UserError(f"{path}: is a file; give the folder that holds config.json and the weights")
    if not MODEL_ID.fullmatch(str(model)):
        raise MissingFileError(
            f"{model}: no such folder, and no Hugging Face id either (owner/name, for example openbmb/MiniCPM-S-1B-sft)"
        )
    found = _download(str(model), FILES + PICKLED_FILES if pickled else FILES)
    if not pickled and not any(found.glob("*.safetensors")):
        name = str(model).split("/")[1]
        raise UnsupportedError(
            f"{model}: has no safetensors weights; if it has .bin files, convert them once with `prosparse convert "
            f"{model} -o {name}-safetensors`"
        )
    return found


def _download(model_id: str, patterns: list[str]) -> Path:
    import huggingface_hub  # only a model that is not on this machine needs it
    from huggingface_hub import errors

    try:
        # files in subfolders are other formats of the same weights
        found = huggingface_hub.snapshot_download(model_id, allow_patterns=patterns, ignore_patterns=["*/*"])
    except errors.GatedRepoError:
        raise UserError(
            f"{model_id}: its owner asks users to accept a licence; accept it on the model's page, then `hf auth login`"
        ) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise MissingFileError(
            f"{model_id}: no such folder here, and no such model on the Hugging Face Hub (a private one needs "
            "`hf auth login`)"
        ) from None
    except errors.HFValidationError as fault:
        raise UserError(f"{model_id}: is no Hugging Face id: {fault}") from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as fault:
        reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        raise MachineError(
            f"{model_id}: not on this machine, and the Hugging Face Hub cannot be reached ({reason}); "
            "check the network, or download the model elsewhere and give its folder"
        ) from fault
    return Path(found)
