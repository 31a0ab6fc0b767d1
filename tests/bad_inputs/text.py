"""Bad inputs: tokenizer and chat template, prompts, sampling options, the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bad_inputs.case import Case, Change, config, content, generate, removed

import prosparse

LIBRARY = r"(?<=cannot be read \().*(?=\); fetch)"
TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
CHAT = generate("--chat")


def _tokenizer(**keys: Any) -> Change:
    """Change keys of tokenizer.json's model part."""

    def change(folder: Path) -> None:
        data = json.loads((folder / TOKENIZER).read_text())
        data["model"] |= keys
        (folder / TOKENIZER).write_text(json.dumps(data))

    return change


def _added_token(folder: Path) -> None:
    data = json.loads((folder / TOKENIZER).read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    data["added_tokens"].append({"id": 300, "content": "<|extra|>", **flags})
    (folder / TOKENIZER).write_text(json.dumps(data))


def _no_special_tokens(folder: Path) -> None:
    data = json.loads((folder / TOKENIZER).read_text()) | {"post_processor": None}
    (folder / TOKENIZER).write_text(json.dumps(data))
    (folder / SETTINGS).write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    model = json.loads((folder / "config.json").read_text()) | {"bos_token_id": None, "eos_token_id": None}
    (folder / "config.json").write_text(json.dumps(model))


def _only_sentencepiece(folder: Path) -> None:
    (folder / TOKENIZER).unlink()
    (folder / "tokenizer.model").write_bytes(b"\x0a\x00")


def _template(text: str) -> Change:
    return content("chat_template.jinja", text)


def _option(name: str, value: str) -> tuple[str, ...]:
    return generate(f"--{name}={value}")


TEXT = {
    "45": [Case("no tokenizer", removed(TOKENIZER, SETTINGS))],
    "46": [
        Case("a tokenizer with more tokens than the model", model={"vocab": 200}),
        Case("a tokenizer with fewer tokens than the model", model={"vocab": 400}, status=0),
    ],
    "47": [
        Case("neither BOS nor EOS: generates until the length is reached", _no_special_tokens, status=0, shows="ab"),
        Case("no BOS and an empty prompt", _no_special_tokens, generate(prompt="")),
    ],
    "48": [Case("several EOS tokens: each of them ends the text", config(eos_token_id=[2, 5]), status=0)],
    "49": [
        Case("a tokenizer.json that is no JSON", content(TOKENIZER, "{{{"), library=LIBRARY),
        Case("a tokenizer.json without a model", content(TOKENIZER, '{"version": "1.0"}'), library=LIBRARY),
        Case("a tokenizer.json whose merges name no token", _tokenizer(merges=["a zz"]), library=LIBRARY),
    ],
    "50": [
        Case(
            "only tokenizer.model, and no sentencepiece package",
            _only_sentencepiece,
            patch={"prosparse.engine.tokenizer_files._installed": lambda package: False},
        )
    ],
    "51": [
        Case("--chat without a chat template", command=CHAT),
        Case("chat without a chat template", command=("chat", "MODEL")),
    ],
    "52": [
        Case("a template that does not compile", _template("{% for %}"), CHAT),
        Case("a template that refuses", _template("{{ raise_exception('roles must alternate') }}"), CHAT),
        Case("a template that reaches for Python", _template("{{ messages.__class__.__mro__ }}"), CHAT),
        Case("a template with a huge range", _template("{% for i in range(999999) %}x{% endfor %}"), CHAT),
    ],
    "53": [Case("text with a token beyond the model's", _added_token, generate(prompt="a <|extra|>"))],
}

PROMPTS = {
    "70": [
        Case("an empty prompt starts from BOS", command=generate("--max-new-tokens", "2", prompt=""), status=0),
        Case("no token ids", call=lambda engine: engine.generate([[]])),
        Case("no prompt at all", command=("generate", "MODEL")),
    ],
    "71": [Case("a prompt longer than the context", command=generate(prompt="ab" * 100))],
    "72": [
        Case("more tokens asked for than the context holds: ends at its length", status=0, shows="ab",
             command=generate("--max-new-tokens", "100000")),
        Case("a context beyond what the model was made for", command=generate("--context", "4096")),
    ],
    "73": [
        Case("a prompt file that is not UTF-8", content("prompt.txt", b"caf\xe9"),
             ("generate", "MODEL", "--prompt-file", "MODEL/prompt.txt")),
        Case("a lone surrogate in a prompt", command=generate(prompt="a\udce9")),
        Case("NUL in a prompt is a character", content("prompt.txt", b"a\0b"), status=0, shows="a\0b",
             command=("generate", "MODEL", "--prompt-file", "MODEL/prompt.txt", "--max-new-tokens", "2")),
        Case("no such prompt file", command=("generate", "MODEL", "--prompt-file", "MODEL/nowhere")),
    ],
    "74": [
        Case("names of special tokens in a prompt are text", status=0, shows="</s>b",
             command=generate("--max-new-tokens", "2", prompt="</s>b")),
    ],
    "75": [
        Case("a token id beyond the vocabulary", call=lambda engine: engine.generate([259])),
        Case("a negative token id", call=lambda engine: engine.logits([1, -1])),
    ],
    "76": [
        Case("no prompts", call=lambda engine: engine.generate([])),
        Case("prompts of different lengths are no error", status=0,
             call=lambda engine: engine.generate([[5], [5, 6, 7]], max_new_tokens=2)),
    ],
    "77": [
        Case("10 MB in one line", content("prompt.txt", b"ab " * 3_400_000),
             ("generate", "MODEL", "--prompt-file", "MODEL/prompt.txt")),
    ],
    "78": [
        Case("token ids that are not whole numbers", call=lambda engine: engine.generate([1.5, 2.0])),
        Case("a prompt of another type", call=lambda engine: engine.generate(7)),
    ],
}  # fmt: skip

SAMPLING = {
    "79": [Case("temperature 0 is greedy", command=_option("temperature", "0") + ("--max-new-tokens", "2"), status=0)],
    "80": [Case(f"temperature {value}", command=_option("temperature", value)) for value in ("-1", "nan", "inf")],
    "81": [Case("top_p above 1", command=_option("top-p", "1.5"))],
    "82": [
        Case("a negative top_k", command=_option("top-k", "-3")),
        Case("top_k above the vocabulary keeps all", status=0,
             command=_option("top-k", "9999") + ("--temperature", "1", "--seed", "1", "--max-new-tokens", "2")),
    ],
    "83": [
        Case("no new tokens", command=_option("max-new-tokens", "0")),
        Case("a negative number of new tokens", command=_option("max-new-tokens", "-1")),
    ],
    "85": [Case("an empty stop string", command=_option("stop", ""))],
    "87": [
        Case("a negative seed", command=_option("seed", "-1")),
        Case("a seed of 65 bits", command=_option("seed", str(2**64))),
    ],
    "88": [
        Case("repetition_penalty 0", command=_option("repetition-penalty", "0")),
        Case("more drafted tokens than a step takes", command=_option("prompt-lookup", "16")),
    ],
}  # fmt: skip


def _no_cuda() -> bool:
    return False


COMMAND_LINE = {
    "89": [
        Case("an option that is not known", command=generate("--max-tokens", "3")),
        Case("a command that is not known", command=("generat", "MODEL", "--prompt", "ab")),
        Case("a model in place of a command", command=("MODEL", "--prompt", "ab")),
    ],
    "90": [
        Case("two prompts", command=generate("--prompt-file", "MODEL/config.json")),
        Case("a model and a shape", command=("bench", "MODEL", "--shape", "tiny")),
        Case("two weight formats", call=lambda engine: prosparse.load(weights="fp32", dtype="bf16")),
    ],
    "91": [
        Case("an output folder that exists", command=("convert", "MODEL", "-o", "MODEL-copy"),
             change=lambda folder: Path(f"{folder}-copy").mkdir()),
        Case("an output folder below a file", command=("convert", "MODEL", "-o", "MODEL-file/x"), status=1,
             change=lambda folder: Path(f"{folder}-file").touch()),
        Case("a text that is not there", command=("perplexity", "MODEL", "--text", "MODEL/nowhere")),
    ],
    "92": [Case("--device cuda without a GPU", command=generate("--device", "cuda"), status=1,
                patch={"torch.cuda.is_available": _no_cuda, "torch.version.cuda": None})],
    "93": [Case("PROSPARSE_ISA names no instruction set", environment={"PROSPARSE_ISA": "mmx"}, alone=True)],
    "94": [Case("a reader of stdout that goes away ends the command without a word", status=1, closed_stdout=True)],
    "95": [Case("no terminal: no bars and no control characters", status=0, shows="ab")],
}  # fmt: skip
