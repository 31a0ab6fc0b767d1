"""The passes beyond the first: threshold sweep, CETT and CETT-PPL-p%, on models small enough to work them out."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_engine import make_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import prosparse
from prosparse.engine import load

# act(up x) of neurons 0 to 3 at tokens 0 and 1; down adds neuron i to channel i, with these lengths
VALUES = [[4.0, 0.0], [2.0, 1.0], [0.5, 3.0], [0.0, 0.1]]
LENGTHS = [1.0, 2.0, 1.0, 10.0]


class HandMade(nn.Module):
    """logits = scale * (x + fc2(relu(fc1 x))), x one-hot."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(torch.eye(2, 4))
        self.fc1, self.fc2 = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.activation_fn = nn.ReLU()
        self.fc1.weight.data = torch.cat([torch.tensor(VALUES), torch.zeros(4, 2)], dim=1)
        self.fc2.weight.data = torch.diag(torch.tensor(LENGTHS))
        self.config = SimpleNamespace(vocab_size=2, max_position_embeddings=64)

    def forward(self, ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        x = self.embed(ids)
        return SimpleNamespace(logits=(x + self.fc2(self.activation_fn(self.fc1(x))))[..., :2])


TOKENS = [[0, 1, 1, 0, 1, 0, 0, 0]]


def loss_of(logits: dict[int, list[float]]) -> float:
    """Mean cross entropy over the row, each token predicted from the one before."""
    row = TOKENS[0]
    losses = [math.log(sum(math.exp(z) for z in logits[a])) - logits[a][b] for a, b in zip(row, row[1:], strict=False)]
    return sum(losses) / len(losses)


def test_threshold_sweep_by_hand() -> None:
    document = prosparse.measure(HandMade(), TOKENS, thresholds=[0.0, 1.5, 10.0]).document
    sweep = document["threshold_sweep"]
    # channels 0 and 1 of x + fc2(..): token 0 gives 1 + 4, 2 * 2; token 1 gives 0, 1 + 2 * 1
    before = loss_of({0: [5.0, 4.0], 1: [0.0, 3.0]})
    assert sweep["sample"] == {
        "windows": 1,
        "tokens": 8,
        "loss": pytest.approx(before, abs=1e-6),
        "perplexity": pytest.approx(math.exp(before), abs=1e-5),
    }
    zero, middle, all_closed = sweep["rows"]
    # losses read 7 of the 8 tokens: 4 times token 0 with 3 open neurons, 3 times token 1 with 3
    assert zero["activation_sparsity"] == pytest.approx(1 - 21 / 28, abs=1e-6)
    assert zero["perplexity_ratio"] == 1.0
    # below 1.5 go 0.5 of token 0, and 1.0 and 0.1 of token 1
    assert middle["activation_sparsity"] == pytest.approx(1 - (4 * 2 + 3 * 1) / 28, abs=1e-6)
    assert middle["loss"] == pytest.approx(loss_of({0: [5.0, 4.0], 1: [0.0, 1.0]}), abs=1e-6)
    assert all_closed["activation_sparsity"] == 1.0
    assert all_closed["loss"] == pytest.approx(loss_of({0: [1.0, 0.0], 1: [0.0, 1.0]}), abs=1e-6)
    assert all_closed["perplexity_ratio"] == pytest.approx(math.exp(all_closed["loss"] - before), abs=1e-5)


def test_cett_by_hand() -> None:
    # |n_i|: token 0: 4, 4, 0.5, 0; token 1: 0, 2, 3, 1; five tokens 0 and three tokens 1
    def cett(eps: float) -> float:
        tails = [[n for n in ns if n < eps] for ns in ([4, 4, 0.5, 0], [0, 2, 3, 1])]
        whole = [math.sqrt(32.25), math.sqrt(14)]
        found = [math.sqrt(sum(n * n for n in tail)) / all_ for tail, all_ in zip(tails, whole, strict=True)]
        return (5 * found[0] + 3 * found[1]) / 8

    targets = [cett(0.7), cett(1.5), cett(2.5)]  # values that CETT takes between |n_i| = 0.5, 1, 2 and 3
    found = prosparse.measure(HandMade(), TOKENS, cett=targets).document["cett"]
    limits = [(0.5, 1), (1, 2), (2, 3)]
    # of 8 tokens times 4 neurons these stay: above 0.5, above 1, above 2
    losses_read_open = [4 * 2 + 3 * 3, 4 * 2 + 3 * 2, 4 * 2 + 3 * 1]
    for row, target, (low, high), still_open in zip(found["targets"], targets, limits, losses_read_open, strict=True):
        assert row["cett_layers"] == [pytest.approx(target, abs=1e-6)]
        assert low < row["thresholds"][0] <= high
        assert row["activation_sparsity"] == pytest.approx(1 - still_open / 28, abs=1e-6)
    assert found["targets"][1]["loss"] == pytest.approx(loss_of({0: [5.0, 4.0], 1: [0.0, 3.0]}), abs=1e-6)
    assert found["targets"][2]["loss"] == pytest.approx(loss_of({0: [5.0, 4.0], 1: [0.0, 1.0]}), abs=1e-6)


@pytest.mark.parametrize("act", ["silu", "relu"])
def test_cett_ppl_is_the_largest_that_perplexity_allows(act: str) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 32}
    config = LlamaConfig(**sizes, num_attention_heads=2, initializer_range=0.3, hidden_act=act)
    tokens = torch.randint(0, 32, (4, 32))
    report = prosparse.measure(LlamaForCausalLM(config), [tokens], cett=[0.0, 0.2], cett_ppl=[1, 5], sample=128)
    zero, fifth = report.document["cett"]["targets"]
    assert zero["perplexity_ratio"] == 1.0 and zero["thresholds"] == [0.0, 0.0]
    assert fifth["cett_layers"] == [pytest.approx(0.2, rel=0.02)] * 2
    one, five = report.document["cett"]["ppl"]
    assert zero["activation_sparsity"] <= one["activation_sparsity"] <= five["activation_sparsity"]
    for row in (one, five):
        assert row["perplexity_ratio"] <= 1 + row["percent"] / 100 + 3e-4
    if act == "silu":
        assert zero["activation_sparsity"] < 0.01 < 0.1 < one["activation_sparsity"]


def test_a_sweep_starts_from_relu_in_a_fatrelu_model(tmp_path: Path) -> None:
    """At the model's own threshold nothing changes, and at 0 the closed gates open."""
    folder = make_model(tmp_path / "tiny", family="sparsellama")
    tokens = torch.randint(3, 250, (3, 40), generator=torch.Generator().manual_seed(1))
    engine = load(folder, weights="fp32")
    rows = prosparse.measure(engine, [tokens], thresholds=[0.0, 0.25, 1.0], sample=120).document["threshold_sweep"][
        "rows"
    ]
    relu = prosparse.measure(load(folder, weights="fp32", fatrelu_threshold=0.0), [tokens[:, :-1]])
    own = prosparse.measure(engine, [tokens[:, :-1]])
    assert rows[0]["activation_sparsity"] == pytest.approx(relu.document["mean"]["activation_sparsity"], abs=1e-5)
    assert rows[1]["activation_sparsity"] == pytest.approx(own.document["mean"]["activation_sparsity"], abs=1e-5)
    assert rows[1]["perplexity_ratio"] == pytest.approx(1, abs=1e-5)
    assert rows[2]["activation_sparsity"] > rows[1]["activation_sparsity"] > rows[0]["activation_sparsity"]


def test_progress_of_every_stage() -> None:
    seen: list[tuple[str, int, int]] = []
    prosparse.measure(
        HandMade(), TOKENS, second=TOKENS, thresholds=[0.1], cett=[0.2], progress=lambda *s: seen.append(s)
    )
    stages = ["reading", "closing below a threshold", "searching the tails", "reading the second text"]
    assert list(dict.fromkeys(what for what, _, _ in seen)) == stages
    assert ("reading", 1, 1) in seen
