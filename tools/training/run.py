"""A training run: a folder with tokens, tokenizer, log and one checkpoint, from which it goes on to the same bits."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .export import evaluate
from .model import Network, Shape
from .schedule import Schedule
from .text import Windows

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
DECAY_REQUEST = "decay-now"  # a file with a number of tokens: decay over so many from the next step on


@dataclass
class Settings:
    """What a run keeps for its whole life; goes into its checkpoint."""

    shape: Shape
    micro_windows: int = 8  # windows of one forward pass
    step_windows: int = 16  # windows of one optimizer step
    muon_lr: float = 2e-3
    adam_lr: float = 2e-3
    weight_decay: float = 0.1
    seed: int = 0
    device: str = "cpu"
    compiled: bool = False
    every_s: float = 180.0  # seconds of process time between checkpoints
    provenance: dict[str, Any] = field(default_factory=dict)


def make_optimizers(network: Network, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers (Jordan et al., 2024), AdamW for embedding and norms."""
    matrices = [p for p in network.layers.parameters() if p.dim() == 2]
    vectors = [p for p in network.parameters() if p.dim() == 1]
    adam = torch.optim.AdamW(
        [
            {"params": [network.embed_tokens.weight], "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=settings.adam_lr,
        betas=(0.9, 0.95),
        fused=True,
    )
    muon = torch.optim.Muon(
        matrices, lr=settings.muon_lr, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, adam]


def write_atomically(path: Path, state: Any) -> None:
    """torch.save next to `path`, then rename: a kill leaves the old file or the new one."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


class Run:
    """A network in training. `tokens` counts what it has read; everything else follows from it and the seed."""

    def __init__(self, folder: Path, settings: Settings, schedule: Schedule, windows: Windows, sample: Tensor) -> None:
        self.folder, self.settings, self.schedule, self.windows = folder, settings, schedule, windows
        self.sample = sample  # held-out windows, for the log only
        self.network = Network(settings.shape).to(settings.device)
        self.network.initialize(torch.Generator().manual_seed(settings.seed))
        self.optimizers = make_optimizers(self.network, settings)
        self.forward: nn.Module = torch.compile(self.network) if settings.compiled else self.network  # type: ignore
        self.tokens = 0
        self.cpu_s = 0.0  # process time of earlier processes of this run

    @property
    def step_tokens(self) -> int:
        return self.settings.step_windows * self.settings.shape.context

    def save(self) -> None:
        state = {
            "settings": {**vars(self.settings), "shape": self.settings.shape.as_dict()},
            "schedule": self.schedule.as_dict(),
            "tokens": self.tokens,
            "cpu_s": self.cpu_s + time.process_time(),
            "network": self.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        write_atomically(self.folder / CHECKPOINT, state)

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `save` wrote."""
        self.network.load_state_dict(state["network"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.tokens, self.cpu_s = state["tokens"], state["cpu_s"]

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.settings.device, torch.bfloat16)

    def step(self) -> dict[str, float]:
        """One optimizer step. Returns loss, l1 (if it is penalised), and the factors in force."""
        lr, l1 = self.schedule.lr_factor(self.tokens), self.schedule.l1_factor(self.tokens)
        settings = self.settings
        windows = self.windows.take(self.tokens // settings.shape.context, settings.step_windows).to(settings.device)
        parts = windows.split(settings.micro_windows)
        said = {"loss": 0.0, "lr_factor": lr, "l1_factor": l1}
        for part in parts:
            with self.autocast():
                result = self.forward(part, with_l1=l1 > 0)
            weight = len(part) / len(windows)
            ((result["loss"] + l1 * result.get("l1", 0.0)) * weight).backward()
            for key in result:
                said[key] = said.get(key, 0.0) + float(result[key].detach()) * weight
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer, peak in zip(self.optimizers, (settings.muon_lr, settings.adam_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.tokens += self.step_tokens
        return said

    def log(self, said: dict[str, float], rate: float) -> None:
        """One line of LOG: where the run is, what the last step said, and the held-out sample now."""
        with self.autocast():
            loss, counts = evaluate(self.network, self.sample, self.settings.micro_windows)
        predictions = self.sample[:, 1:].numel()
        line = {
            "tokens": self.tokens,
            "of": self.schedule.total,
            "cpu_s": round(self.cpu_s + time.process_time(), 1),
            "tokens_per_s": round(rate, 1),
            **{key: round(value, 7) for key, value in said.items()},
            "held_out_loss": round(loss, 4),
            "activation_sparsity": [round(x, 4) for x in (1 - counts.mean(1) / predictions).tolist()],
            "never_active": (counts == 0).sum(1).tolist(),
        }
        with (self.folder / LOG).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def obey_decay_request(self) -> None:
        request = self.folder / DECAY_REQUEST
        if request.exists():
            self.schedule = self.schedule.decayed_from(self.tokens, int(request.read_text()))
            request.unlink()

    def train(self, stop_at: int | None = None) -> None:
        """Go on to the end of the schedule, or to `stop_at` tokens; save and log now and then."""
        saved_at, since, before = time.process_time(), time.monotonic(), self.tokens
        said: dict[str, float] = {}
        while self.tokens < min(self.schedule.total, stop_at or self.schedule.total):
            self.obey_decay_request()
            said = self.step()
            if time.process_time() - saved_at > self.settings.every_s:
                self.save()
                self.log(said, (self.tokens - before) / (time.monotonic() - since))
                saved_at, since, before = time.process_time(), time.monotonic(), self.tokens
        if self.tokens > before:
            self.save()
            self.log(said, (self.tokens - before) / (time.monotonic() - since))
