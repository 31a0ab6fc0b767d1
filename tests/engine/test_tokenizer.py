"""Loading tokenizers from folders as they are published, and text to ids and back."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from trained_tokenizers import model_config
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from prosparse.engine import tokenizer_files
from prosparse.engine.tokenizer import Tokenizer
from prosparse.errors import MissingFileError, TokenizerError, UserError

LLAMA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CONFIGS = [
    {"model_type": "llama"},
    {"model_type": "sparsellama", "auto_map": {"AutoConfig": "configuration_sparsellama.SparseLlamaConfig"}},
    {"model_type": "bamboo"},
    {"architectures": ["MiniCPMForCausalLM"], "auto_map": {"AutoConfig": "configuration_minicpm.MiniCPMConfig"}},
    {"model_type": 7},
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: str(config.get("model_type")))
def test_config_json_has_no_say(folder_of: Callable[..., Path], config: dict) -> None:
    folder = folder_of("sentencepiece", LLAMA, config)
    tokenizer = Tokenizer.load(folder, model_config(1000))
    folder_of("sentencepiece", LLAMA, {"model_type": "llama"})
    expected = AutoTokenizer.from_pretrained(folder)
    text = "The quick  brown 你好 😀\n"
    ids = tokenizer.encode(text)
    assert ids == expected(text).input_ids
    assert ids[0] == tokenizer.bos_id == 1
    assert tokenizer.decode(ids) == expected.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.eos_ids == {2}


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_tokenizer_json_alone(folder_of: Callable[..., Path], kind: str) -> None:
    folder = folder_of(kind)
    tokenizer = Tokenizer.load(folder, model_config(1000, bos_token_id=1, eos_token_ids=(2, 5)))
    expected = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    text = " lazy dog,  “quotes” 世界"
    assert tokenizer.encode(text) == expected(text).input_ids
    assert tokenizer.encode(text, add_special=False) == expected(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, {2, 5})


def test_truncation_and_padding_of_the_file_are_ignored(folder_of: Callable[..., Path]) -> None:
    folder = folder_of("byte_level")
    plan = json.loads((folder / "tokenizer.json").read_text())
    plan["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    plan["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
    plan["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}
    (folder / "tokenizer.json").write_text(json.dumps(plan))
    tokenizer = Tokenizer.load(folder, model_config(1000))
    assert [len(tokenizer.encode(text)) for text in ("x", "xyxyxyxyxyxyxyxy")] == [1, 16]


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_special_tokens_in_a_prompt_are_text(folder_of: Callable[..., Path], kind: str) -> None:
    tokenizer = Tokenizer.load(folder_of(kind, LLAMA), model_config(1000))
    ids = tokenizer.encode("stop</s> <s>go", add_special=False)
    assert not {0, 1, 2} & set(ids)
    assert tokenizer.decode(ids) == "stop</s> <s>go"


def test_minicpm_begins_with_one_bos(folder_of: Callable[..., Path]) -> None:
    for kind in ("byte_level", "sentencepiece"):  # one that adds no BOS itself, one that does
        tokenizer = Tokenizer.load(folder_of(kind), model_config(1000, "minicpm"))
        for text in ("", "dog", "<s>dog"):
            assert tokenizer.encode(text) == [1, *tokenizer.encode(text, add_special=False)]
    other = Tokenizer.load(folder_of("byte_level"), model_config(1000, "minicpm", bos_token_id=0))
    assert other.encode("x")[0] == 0


def test_has_text(folder_of: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.load(folder_of("byte_level"), model_config(1000))
    assert [tokenizer.has_text(i) for i in (2, 3, 999)] == [False, True, False]
    assert tokenizer.decode([2, *tokenizer.encode("dog"), 999]) == "dog"


def test_text_that_is_not_unicode(folder_of: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.load(folder_of("byte_level"), model_config(1000))
    with pytest.raises(UserError, match=r"character 2 is the lone surrogate U\+DC80"):
        tokenizer.encode("ab\udc80")
    assert tokenizer.decode(tokenizer.encode("a\0b")) == "a\0b"


def test_a_vocabulary_larger_than_the_model(folder_of: Callable[..., Path]) -> None:
    with pytest.raises(TokenizerError, match=r"ids up to \d+, but the model has 300 "):
        Tokenizer.load(folder_of("byte_level"), model_config(300))


def test_an_added_token_beyond_the_model_is_an_error_only_in_use(folder_of: Callable[..., Path]) -> None:
    folder = folder_of("byte_level")
    beyond = Tokenizer.load(folder, model_config(1000)).encode("<|turn|>")[0]
    tokenizer = Tokenizer.load(folder, model_config(beyond))
    assert max(tokenizer.encode("turn")) < beyond
    with pytest.raises(TokenizerError, match=rf"token '<\|turn\|>' with id {beyond}"):
        tokenizer.encode("my <|turn|>")


def test_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(LLAMA))  # transformers would make an empty vocabulary
    with pytest.raises(TokenizerError, match="looked for tokenizer.json, tokenizer.model"):
        Tokenizer.load(tmp_path, model_config(10))
    with pytest.raises(MissingFileError, match="no such folder"):
        Tokenizer.load(tmp_path / "absent", model_config(10))
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(TokenizerError, match="need the tokenizer_config.json"):
        Tokenizer.load(tmp_path, model_config(10))


@pytest.mark.parametrize("contents", ["{", "[]", '{"version": "1.0"}', ""])
@pytest.mark.parametrize("settings", [None, LLAMA])
def test_a_corrupt_file(tmp_path: Path, contents: str, settings: dict | None) -> None:
    (tmp_path / "tokenizer.json").write_text(contents)
    if settings:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(TokenizerError, match="the tokenizer files cannot be read") as caught:
        Tokenizer.load(tmp_path, model_config(10))
    assert "\n" not in str(caught.value)


def test_minicpm_v_s_tokenizer_is_complete_without_its_code(folder_of: Callable[..., Path]) -> None:
    settings = {"tokenizer_class": "MiniCPMVTokenizer", "bos_token": "<s>", "eos_token": "</s>",
                "auto_map": {"AutoTokenizer": ["tokenization_minicpmv.MiniCPMVTokenizer", None]}}  # fmt: skip
    tokenizer = Tokenizer.load(folder_of("sentencepiece", settings), model_config(1000))
    ids = tokenizer.encode("the dog")
    assert ids[0] == 1 and tokenizer.decode(ids) == "the dog" and tokenizer.eos_ids == {2}


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_code_in_the_folder_is_not_run(folder_of: Callable[..., Path], kind: str) -> None:
    settings = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    folder = folder_of(kind, settings)
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass OwnTokenizer: pass\n")
    if kind == "byte_level":  # complete without the code
        assert Tokenizer.load(folder, model_config(1000)).encode("dog")
    else:
        with pytest.raises(TokenizerError, match="cannot be read"):
            Tokenizer.load(folder, model_config(1000))
    assert not (folder / "ran").exists()


def test_sentencepiece_without_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    monkeypatch.setattr(tokenizer_files, "find_spec", lambda name: None)
    with pytest.raises(TokenizerError, match="pip install sentencepiece protobuf"):
        Tokenizer.load(tmp_path, model_config(10))
    found = importlib.util.find_spec("json")
    present = {"google": found, "google.protobuf": found}
    monkeypatch.setattr(tokenizer_files, "find_spec", present.get)
    with pytest.raises(TokenizerError, match="needs sentencepiece; run `pip install sentencepiece`"):
        Tokenizer.load(tmp_path, model_config(10))


def test_a_tokenizer_outside_the_library(folder_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *args, **options: SimpleNamespace())
    with pytest.raises(TokenizerError, match="SimpleNamespace does not run in the tokenizers library"):
        Tokenizer.load(folder_of("sentencepiece", LLAMA), model_config(1000))
