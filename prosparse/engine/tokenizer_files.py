"""Finds and reads the tokenizer of a model folder."""

from __future__ import annotations

import json
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import MissingFileError, TokenizerError

importing = threading.Lock()  # a thread that imports transformers while another one does finds it half made


def load_pretrained(folder: Path) -> Any:
    """transformers' tokenizer for a folder; neither config.json nor code in the folder has a say.

    Raises:
        MissingFileError: no such folder.
        TokenizerError: no tokenizer files, or files that cannot be read.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder; give the folder that holds tokenizer.json")
    has_json = (folder / "tokenizer.json").is_file()
    has_sentencepiece = (folder / "tokenizer.model").is_file()
    has_pair = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    if not (has_json or has_sentencepiece or has_pair):
        raise TokenizerError(
            f"{folder}: no tokenizer; looked for tokenizer.json, tokenizer.model, and vocab.json with merges.txt; copy "
            "them from where the weights came from"
        )
    has_settings = (folder / "tokenizer_config.json").is_file()
    if not (has_json or has_sentencepiece or has_settings):
        raise TokenizerError(
            f"{folder}: vocab.json and merges.txt need the tokenizer_config.json that names their tokenizer class; "
            "copy it from where the weights came from"
        )
    if not has_json and has_sentencepiece:
        _need_sentencepiece(folder)

    with importing:  # 1 s
        from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        # A byte-level file is taken as it stands: transformers before 5.23 lose characters where tokenizer_config.json
        # claims that it is a LlamaTokenizer. So is MiniCPM-V's: its class is code in the folder, but adds no more than
        # names of special tokens.
        if has_json and (not has_settings or _is_minicpm_v(folder) or _is_byte_level(folder / "tokenizer.json")):
            pretrained = PreTrainedTokenizerFast.from_pretrained(folder, **local)
        elif has_settings:
            # An empty config, because the folder's own may name a model_type that transformers does not know, or none.
            pretrained = AutoTokenizer.from_pretrained(folder, config=PreTrainedConfig(), **local)
        else:
            # No settings to ask, and every model that came with a bare tokenizer.model was trained with a BOS.
            pretrained = LlamaTokenizer.from_pretrained(folder, add_bos_token=True, **local)
    except Exception as error:  # the tokenizers library raises bare Exception for a malformed file
        reason = (str(error).strip() or "no message").splitlines()[0]
        raise TokenizerError(
            f"{folder}: the tokenizer files cannot be read ({type(error).__name__}: {reason}); fetch "
            "tokenizer.json, tokenizer_config.json or tokenizer.model anew"
        ) from error
    if not hasattr(pretrained, "backend_tokenizer"):
        raise TokenizerError(
            f"{folder}: {type(pretrained).__name__} does not run in the tokenizers library; add a tokenizer.json"
        )
    return pretrained


def _is_minicpm_v(folder: Path) -> bool:
    return '"MiniCPMVTokenizer' in (folder / "tokenizer_config.json").read_text(encoding="utf-8")


def _is_byte_level(path: Path) -> bool:
    plan = json.loads(path.read_text(encoding="utf-8"))
    return '"ByteLevel"' in json.dumps([plan.get("pre_tokenizer"), plan.get("decoder")])


def _need_sentencepiece(folder: Path) -> None:
    missing = [package for package in ("sentencepiece", "protobuf") if not _installed(package)]
    if missing:
        raise TokenizerError(
            f"{folder}: reading tokenizer.model needs {' and '.join(missing)}; run `pip install {' '.join(missing)}`, "
            "or put a tokenizer.json next to it"
        )


def _installed(package: str) -> bool:
    if package == "protobuf":
        return find_spec("google") is not None and find_spec("google.protobuf") is not None
    return find_spec(package) is not None
