"""Training from text to a folder: it learns, goes on after a kill to the same bits, and tells the truth in its card."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

import pytest
import torch
import train_embedded
from make_excerpts import END
from tokenizers import Tokenizer
from training import prepare
from training.export import choose
from training.model import Shape, fatrelu
from training.run import CHECKPOINT, LOG
from training.text import Windows, text_windows, train_tokenizer, trained_paragraphs, training_tokens, untrained_texts

import prosparse

SIZES = "--vocab 300 --hidden 64 --layers 2 --heads 2 --kv-heads 1 --neurons 96 --context 128"
STEPS = "--tokens 20480 --warmup 512 --step-windows 4 --micro-windows 2 --muon-lr 5e-3 --adam-lr 5e-3 --device cpu"
L1 = "--l1 1e-6,1e-5 --l1-ends 0.3,0.5,0.8"


def make_text(seed: int, sentences: int) -> str:
    rng = random.Random(seed)
    cast = ["the cat", "the old dog", "a bird", "my aunt", "the miller"]
    acts = ["saw", "followed", "fed", "forgot", "painted"]
    return "\n".join(f"{rng.choice(cast)} {rng.choice(acts)} {rng.choice(cast)}." for _ in range(sentences))


def call(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train_embedded.py", *arguments])
        train_embedded.main()


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `whole`, trained to its end."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "text").mkdir()
    for name, seed in (("one", 1), ("two", 2)):
        (folder / "text" / f"{name}.txt").write_text(make_text(seed, 150) + END + make_text(seed + 10, 150))
    for name, seed in (("calibration", 3), ("held_out", 4)):
        (folder / f"{name}.txt").write_text(make_text(seed, 60))
    start(folder, "whole")
    return folder


def start(folder: Path, name: str, *more: str) -> None:
    texts = f"--text {folder}/text --calibration {folder}/calibration.txt --held-out {folder}/held_out.txt"
    call("start", str(folder / name), *f"{texts} {SIZES} {STEPS} {L1}".split(), *more)


def test_the_loss_falls(begun: Path) -> None:
    log = [json.loads(line) for line in (begun / "whole" / LOG).read_text().splitlines()]
    assert log[-1]["tokens"] == 20480
    assert log[-1]["held_out_loss"] < 0.6 * math.log(300)


def test_a_killed_run_goes_on_to_the_same_bits(begun: Path) -> None:
    start(begun, "killed", "--stop-at", "10240")
    lost = prepare.resume(begun / "killed")
    for _ in range(3):  # steps that no checkpoint has seen
        lost.step()
    call("resume", str(begun / "killed"))
    whole, killed = (torch.load(begun / name / CHECKPOINT, weights_only=True) for name in ("whole", "killed"))
    assert whole["tokens"] == killed["tokens"] == 20480
    assert whole["network"].keys() == killed["network"].keys()
    for name, tensor in whole["network"].items():
        assert torch.equal(tensor, killed["network"][name]), name


def test_a_run_told_to_decay_ends_sooner(begun: Path) -> None:
    start(begun, "told", "--stop-at", "5120")
    call("decay", str(begun / "told"), "--tokens", "2048")
    call("resume", str(begun / "told"))
    run = prepare.resume(begun / "told")
    assert run.tokens == run.schedule.total == 7168
    assert run.schedule.lr_factor(run.tokens) == 0


def test_the_exported_folder_is_what_its_card_says(begun: Path) -> None:
    model = begun / "model"
    call("finish", str(begun / "whole"), "-o", str(model), "--prompt", "the cat", "--tolerance", "0.05")
    card = json.loads((model / "card.json").read_text())
    engine = prosparse.load(str(model), mode="exact", weights="fp32", device="cpu")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    windows = text_windows(tokenizer, (begun / "held_out.txt").read_text(), 128)
    loss = sum(
        torch.nn.functional.cross_entropy(engine.logits(row[:-1].tolist()), row[1:]).item() for row in windows
    ) / len(windows)
    full = card["full"]["fatrelu"]
    assert full["nats_per_token"] == pytest.approx(loss, abs=1e-4)
    assert full["threshold"] == json.loads((model / "metrics.json").read_text())["threshold"]
    assert card["full"]["predictions"] == windows[:, 1:].numel()
    assert card["generated"][0]["text"].startswith("the cat")
    assert card["made"]["tokens"] == 20480 and card["made"]["command"].startswith("python")
    assert len(card["books"]) == 4
    readme = (model / "README.md").read_text()
    assert "| | full text, ReLU |" in readme and f"| {full['nats_per_token']} |" in readme
    stats = engine.generate("the cat", max_new_tokens=60).stats
    assert 0 < stats["activation_sparsity"]["mean"] < 1


def test_an_exported_folder_starts_another_run(begun: Path) -> None:
    texts = f"--text {begun}/text --calibration {begun}/calibration.txt --held-out {begun}/held_out.txt"
    call("finish", str(begun / "whole"), "-o", str(begun / "base"), "--prompt", "a bird")
    call(
        "start", str(begun / "next"), *texts.split(), *STEPS.split(), "--init", str(begun / "base"), "--stop-at", "512"
    )
    run = prepare.resume(begun / "next")
    assert run.settings.shape == Shape(300, 64, 2, 2, 1, 96, 128)
    log = json.loads((begun / "next" / LOG).read_text().splitlines()[-1])
    assert log["held_out_loss"] < 0.6 * math.log(300)  # random weights would begin at 1.0


def test_an_unfinished_run_is_not_exported(begun: Path) -> None:
    start(begun, "half", "--stop-at", "1024")
    with pytest.raises(SystemExit, match="19456 tokens of its schedule are left; `resume` it"):
        call("finish", str(begun / "half"), "-o", str(begun / "never"))
    with pytest.raises(SystemExit, match="a run has begun there; go on with `resume`"):
        start(begun, "half")


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_a_neuron_is_active_unless_its_gate_is_below_the_threshold(threshold: float) -> None:
    edge = torch.tensor(threshold)
    gate = torch.stack([edge, edge.nextafter(edge - 1), edge.nextafter(edge + 1), -edge - 1, torch.tensor(math.nan)])
    active = ~(gate <= 0) if threshold == 0 else ~(gate < edge)
    assert ((fatrelu(gate, threshold) != 0) == active).all()
    assert active.tolist() == [threshold > 0, False, True, False, True]


def test_the_largest_threshold_within_both_limits_is_chosen() -> None:
    rows = [(0.0, 3.0, [0.8, 0.9]), (0.1, 3.004, [0.85, 0.95]), (0.2, 3.009, [0.9, 0.96]), (0.3, 3.02, [0.95, 0.97])]
    assert choose(rows, 0.01, 1.0) == 0.2
    assert choose(rows, 0.01, 0.91) == 0.1
    assert choose(rows, 0.1, 1.0) == 0.3
    assert choose(rows, 0.01, 0.5) == 0.0


def test_training_never_reads_a_tail() -> None:
    books = ["\n".join(f"book {b} line {n}" for n in range(200)) for b in range(3)]
    tokenizer = train_tokenizer(books, 300)
    read = tokenizer.decode(training_tokens(tokenizer, books).tolist(), skip_special_tokens=False)
    untrained = untrained_texts(books)
    assert read == "".join("".join(trained_paragraphs(book)) + END for book in books)
    for book, name in ((0, "calibration"), (1, "calibration"), (2, "held_out")):
        for line in range(197, 200):
            assert f"book {book} line {line}\n" not in read
            assert f"book {book} line {line}\n" in untrained[name]


def test_windows_come_in_a_fixed_order_each_once_an_epoch() -> None:
    windows = Windows(torch.arange(100).numpy(), 10, seed=0)
    assert windows.per_epoch == 8
    epoch = windows.take(0, 8)
    assert sorted(epoch[:, 0] - epoch[:, 0].min()) == list(range(0, 80, 10))
    again = Windows(torch.arange(100).numpy(), 10, seed=0)
    assert torch.equal(again.take(5, 6), windows.take(0, 11)[5:])
