"""The command line: what goes to stdout and stderr, exit status, and errors in one line."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import prosparse
from prosparse.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent.parent
MODEL = str(ROOT / "tests" / "assets" / "relu-llama-1.5m")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
PROMPT = "Once upon a time"
NAMES = [command.NAME for command in COMMANDS]
HEAVY = ("torch", "transformers", "tokenizers", "numpy", "rich", "safetensors", "tqdm")


def spawn(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "prosparse", *arguments]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, **{"env": ENVIRONMENT, **streams, **options})  # type: ignore[call-overload]


def hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def expected() -> prosparse.Generation:
    return prosparse.load(MODEL).generate(PROMPT, max_new_tokens=20)


def test_generate_writes_prompt_and_text(capsys: pytest.CaptureFixture[str], expected: prosparse.Generation) -> None:
    assert main(["generate", MODEL, "--prompt", PROMPT, "--max-new-tokens", "20"]) == 0
    out, err = capsys.readouterr()
    assert out == PROMPT + expected.text + "\n"
    assert "mode exact" in err and "tokens/s" not in err


def test_generate_reads_a_file_or_stdin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, expected: prosparse.Generation
) -> None:
    (tmp_path / "prompt.txt").write_text(PROMPT)
    assert main(["generate", MODEL, "--prompt-file", str(tmp_path / "prompt.txt"), "--max-new-tokens", "20"]) == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PROMPT.encode())))
    assert main(["generate", MODEL, "--prompt", "-", "--max-new-tokens", "20"]) == 0
    assert capsys.readouterr().out == (PROMPT + expected.text + "\n") * 2


def test_json_is_one_document(capsys: pytest.CaptureFixture[str], expected: prosparse.Generation) -> None:
    assert main(["generate", MODEL, "--prompt", PROMPT, "--max-new-tokens", "20", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["prompt"] == PROMPT and document["text"] == expected.text
    assert document["token_ids"] == list(expected.token_ids) and document["finish_reason"] == expected.finish_reason
    assert document["stats"]["activation_sparsity"] == expected.stats["activation_sparsity"]


def test_stats_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", MODEL, "--prompt", PROMPT, "--max-new-tokens", "20", "--stats"]) == 0
    out, err = capsys.readouterr()
    assert "activation sparsity" in err and "19 decode tokens" in err and "activation sparsity" not in out
    assert main(["generate", MODEL, "--prompt", PROMPT * 2, "--prompt-lookup", "4", "--stats"]) == 0
    assert "tokens tried ahead were right" in capsys.readouterr().err
    assert main(["generate", MODEL, "--prompt", PROMPT, "--max-new-tokens", "1", "--stats"]) == 0
    assert "first token after" in capsys.readouterr().err


def test_every_option_reaches_the_engine(capsys: pytest.CaptureFixture[str]) -> None:
    loading = {
        "mode": "dense", "weights": "int8", "lm_head": "fp32", "device": "cpu", "context": 64, "fatrelu_threshold": 0.1,
    }  # fmt: skip
    sampling = {
        "max_new_tokens": 15, "temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2,
        "seed": 3, "stop": ["xyzzy", "qqqq"], "prompt_lookup": 3,
    }  # fmt: skip
    arguments = []
    for name, value in {**loading, **sampling}.items():
        for one in value if isinstance(value, list) else [value]:
            arguments += ["--" + name.replace("_", "-"), str(one)]
    assert main(["generate", MODEL, "--prompt", PROMPT, *arguments]) == 0
    text = prosparse.load(MODEL, **loading).generate(PROMPT, **sampling).text  # type: ignore[arg-type]
    assert capsys.readouterr().out == PROMPT + text + "\n"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["generate"], 2, "one of the arguments --prompt --prompt-file is required"),
        (["generate", "--prompt", "a", "--prompt-file", "b"], 2, "not allowed with argument --prompt"),
        (
            ["generate", "--prompt", "a", "--max-tokens", "3"],
            2,
            "unknown option --max-tokens; did you mean --max-new-tokens?",
        ),
        (["generate", "--prompt", "a", "--tempratur=3"], 2, "did you mean --temperature?"),
        (["generate", "--prompt", "a", "--xyzzy"], 2, "unknown option --xyzzy; see prosparse generate --help"),
        (["generate", MODEL, "extra", "--prompt", "a"], 2, "unexpected argument extra"),
        (["--wibble"], 2, "unknown option --wibble; see prosparse --help"),
        (["generat"], 2, "there is no command generat; did you mean generate?"),
        (["generate", "--prompt", "a", "--max-new-tokens", "x"], 2, "invalid int value: 'x'"),
        (["generate", MODEL, "--prompt", "a", "--max-new-tokens", "0"], 2, "max_new_tokens must be a whole number"),
        (["generate", MODEL, "--prompt", "a", "--temperature", "nan"], 2, "temperature must be a finite number"),
        (["generate", MODEL, "--prompt", "a", "--mode", "quick"], 2, "mode is 'quick'"),
        (["generate", MODEL, "--prompt", "a", "--weights", "fp4"], 2, "weights is 'fp4'"),
        (["generate", MODEL, "--prompt", "a", "--device", "tpu"], 2, "device is 'tpu'"),
        (["generate", MODEL, "--prompt", "a", "--threads", "0"], 2, "threads must be from 1"),
        (["generate", MODEL, "--prompt", "a", "--context", "99999"], 2, "context must be from 2 to 256"),
        (["generate", MODEL, "--prompt", "a", "--plan", "/no/such/plan.json"], 2, "cannot read the plan"),
        (["generate", MODEL, "--prompt", "a", "--plan", str(ROOT / "setup.py")], 2, "not a plan"),
        (["generate", MODEL, "--prompt", "a\udce9"], 2, "lone surrogate"),
        (["generate", MODEL, "--prompt", "word " * 400], 2, "no room in the context of 256"),
        (["generate", MODEL, "--prompt-file", "/no/such/file"], 2, "/no/such/file: cannot read the prompt"),
        (["generate", MODEL, "--prompt-file", "/"], 2, "/: cannot read the prompt"),
        (["generate", MODEL, "--chat", "--prompt", "a"], 2, "no chat template"),
        (["generate", "/no/such/model", "--prompt", "a"], 2, "/no/such/model"),
        (["generate", str(ROOT / "tests"), "--prompt", "a"], 2, "config.json"),
    ],
)
def test_wrong_input_is_status_2_and_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, message: str
) -> None:
    assert main(arguments) == status
    out, err = capsys.readouterr()
    error = err.splitlines()[-1]
    assert out == "" and message in error and error.startswith("prosparse: ")
    assert "Traceback" not in err


def test_text_that_is_not_utf8_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    assert main(["generate", MODEL, "--prompt-file", str(tmp_path / "latin.txt")]) == 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("café".encode("latin-1"))))
    assert main(["generate", MODEL, "--prompt", "-"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [("not UTF-8 text" in line and "byte 3" in line) for line in lines] == [True, True]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the test says is missing")
def test_a_machine_that_cannot_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", MODEL, "--prompt", "a", "--device", "cuda"]) == 1
    assert "device cuda is not available" in capsys.readouterr().err


def test_a_traceback_only_with_debug(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("prosparse.engine.load", broken)
    assert main(["generate", "--prompt", "a"]) == 1
    err = capsys.readouterr().err
    assert "unexpected ZeroDivisionError: boom" in err and "--debug" in err and "Traceback" not in err
    for arguments in (["generate", "--prompt", "a", "--debug"], ["--debug", "generate", "--prompt", "a"]):
        assert main(arguments) == 1
        assert "Traceback" in capsys.readouterr().err


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in NAMES)


@pytest.mark.parametrize("command", ["", *NAMES])
def test_help_is_light(command: str) -> None:
    """Under a second of processor time, and nothing heavy imported."""
    code = (
        "import sys; from prosparse.cli import main\n"
        "try: main(sys.argv[1:])\n"
        f"finally: sys.stderr.write(' '.join(set(sys.modules) & set({HEAVY!r})))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    arguments = [command, "--help"] if command else ["--help"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=ENVIRONMENT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and done.stderr == "" and "usage: prosparse" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_text_of_any_language_in_the_c_locale() -> None:
    process = spawn(
        "generate", MODEL, "--prompt", "你好 é", "--max-new-tokens", "2", env={**ENVIRONMENT, "LC_ALL": "C"}
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    assert out.decode().startswith("你好 é")


def test_what_a_terminal_cannot_show_is_a_question_mark() -> None:
    process = spawn(
        "generate", MODEL, "--prompt", "a é", "--max-new-tokens", "1", env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    assert out.startswith(b"a ?")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a disk that is always full is Linux's")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        process = spawn("generate", MODEL, "--prompt", PROMPT, "--max-new-tokens", "1", stdout=full)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.decode().splitlines()[1:] == [
        "prosparse: stdout: cannot be written: the disk is full; free some space, or write elsewhere"
    ]


def test_a_value_outside_its_range_is_told_before_a_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["generate", MODEL, "--prompt", PROMPT], ["chat", MODEL]):
        assert main([*command, "--top-p", "2"]) == 2
        assert capsys.readouterr().err == "prosparse: sampling: top_p must be above 0 and at most 1, got 2.0\n"


def test_ctrl_c_is_status_130() -> None:
    slow = (
        "--weights",
        "fp32",
        "--mode",
        "dense",
        "--threads",
        "1",
    )  # seconds, so that it cannot end before the signal
    sampled = ("--temperature", "1", "--seed", "1", "--max-new-tokens", "500")
    # a shell's background jobs, and what they start, ignore the signal
    process = spawn("generate", "--prompt", PROMPT, *slow, *sampled, preexec_fn=hear_interrupts)
    assert process.stdout is not None
    assert process.stdout.read(len(PROMPT) + 3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.decode().endswith("prosparse: interrupted\n") and b"Traceback" not in err


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    process = spawn("generate", MODEL, "--prompt", PROMPT, "--temperature", "1", "--max-new-tokens", "200")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(len(PROMPT) + 1)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=120) == 1
    assert b"Traceback" not in err and b"BrokenPipe" not in err


def test_demo_shows_dense_and_exact_writing_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--no-speed", "--max-new-tokens", "6", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["same_tokens"] is True
    assert all(pair["dense"]["text"] == pair["exact"]["text"] != "" for pair in document["texts"])


def test_convert_writes_a_model_that_generates_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, expected: prosparse.Generation
) -> None:
    folder = str(tmp_path / "converted")
    assert main(["convert", MODEL, "-o", folder]) == 0
    assert main(["generate", folder, "--prompt", PROMPT, "--max-new-tokens", "20"]) == 0
    assert capsys.readouterr().out.endswith(PROMPT + expected.text + "\n")
    assert main(["convert", MODEL, "-o", folder]) == 2
    assert folder in capsys.readouterr().err
