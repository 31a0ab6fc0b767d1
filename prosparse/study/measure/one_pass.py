"""One pass over the windows of a text: micro-batches, shares, and a state from which a killed pass goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from .collect import Collector, Predictor
from .counts import GROUP, Counts
from .storage import read_counts, write_counts
from .stream import Windows
from .subject import Subject

SAVE_EVERY_S = 20.0


@dataclass(frozen=True)
class Settings:
    """What two passes must have in common for their counts to be added.

    Args:
        window: tokens of a window.
        near_zero: |act(gate)| below this is near zero.
        tokens: stop after about so many, None at the end of the text.
    """

    window: int
    near_zero: float
    tokens: int | None = None


class Sample:
    """Up to `limit` windows, evenly spread over a text of unknown length."""

    def __init__(self, limit: int) -> None:
        self.limit, self.windows, self._stride = limit, list[Tensor](), 1

    def offer(self, number: int, window: Tensor) -> None:
        """Windows come in order, numbered from 0."""
        if self.limit and number % self._stride == 0:
            self.windows.append(window)
            if len(self.windows) > self.limit:
                self.windows, self._stride = self.windows[::2], self._stride * 2


class Pass:
    """Counts the windows of a share.

    Args:
        subject: the model.
        windows: of the text.
        settings: see there.
        batch: windows read at once, where the model can.
        share: (number, of): groups of `GROUP` windows are dealt out in turn.
        predictor: see `Collector`.
        state: file in which the pass is saved now and then, and from which it goes on; None for neither.
        sample: filled with windows of the text on the way.

    Raises:
        UserError: a state of another model, text or setting.
    """

    def __init__(
        self,
        subject: Subject,
        windows: Windows,
        settings: Settings,
        batch: int,
        share: tuple[int, int],
        predictor: Predictor | None = None,
        state: Path | None = None,
        sample: Sample | None = None,
    ) -> None:
        self.subject, self.windows, self.settings, self.share = subject, windows, settings, share
        self.batch = min(batch, GROUP) if subject.together else 1
        self.state, self.sample = state, sample
        facts = subject.facts
        self.counts = Counts.zeros(facts.layers, facts.neurons, settings.window)
        self.collector = Collector(self.counts, settings.near_zero, predictor)
        self._done, self._digest = 0, ""
        if state is not None and state.exists():
            self._go_on(state)

    def header(self) -> dict[str, Any]:
        """What the counts are of."""
        return {
            "model": asdict(self.subject.facts),
            "settings": asdict(self.settings),
            "share": list(self.share),
            "text": {"name": self.windows.name, "digest": self.windows.digest, "dropped_tokens": self.windows.dropped},
        }

    def run(self) -> Counts:
        """Read to the end.

        Raises:
            UserError: the text has changed since the state was written, is empty, or shorter than a window.
            MachineError: the state cannot be written.
        """
        saved = time.monotonic()
        for read, windows in self._batches():
            if read <= self._done:
                continue
            self.subject.read(windows, self.collector.view)
            self.collector.finish()
            if self.state is not None and time.monotonic() - saved > SAVE_EVERY_S:
                self._save(read)
                saved = time.monotonic()
        if self.windows.count < self._done:
            raise self._changed()
        self._check_read()
        if self.state is not None:
            self._save(self.windows.count)
        return self.counts

    def _batches(self) -> Iterator[tuple[int, Tensor]]:
        """Micro-batches of this share, and how many windows of the text have been taken when each is complete."""
        number, of = self.share
        limit = None if self.settings.tokens is None else -(-self.settings.tokens // self.settings.window)
        waiting: list[Tensor] = []
        taken = 0
        for taken, window in enumerate(self.windows, 1):
            if self.sample is not None:
                self.sample.offer(taken - 1, window)
            if taken == self._done and self.windows.digest != self._digest:
                raise self._changed()
            first_of_group = (taken - 1) % GROUP == 0
            if first_of_group and taken > self._done:
                self.collector.start_group()
            if (taken - 1) // GROUP % of == number - 1:
                waiting.append(window)
            last = taken % GROUP == 0 or taken == limit
            if waiting and (last or len(waiting) == self.batch):
                yield taken, torch.stack(waiting)
                waiting = []
            if taken == limit:
                return
        if waiting:
            yield taken, torch.stack(waiting)

    def _save(self, done: int) -> None:
        assert self.state is not None
        write_counts(self.state, self.counts, {**self.header(), "done": done}, self.collector.waiting)

    def _go_on(self, state: Path) -> None:
        counts, header, waiting = read_counts(state)
        mine = {key: self.header()[key] for key in ("model", "settings", "share")}
        theirs = {key: header.get(key) for key in mine}
        if theirs != mine or header["text"]["name"] != self.windows.name:
            what = next((key for key in mine if theirs[key] != mine[key]), "text")
            raise UserError(
                f"{state}: is the state of a pass with another {what}; finish that one, or delete it to start anew"
            )
        self.counts.add(counts)
        self.collector.waiting.update(waiting)
        self._done, self._digest = header["done"], header["text"]["digest"]

    def _changed(self) -> UserError:
        return UserError(
            f"{self.state}: the text has changed since this pass began; delete the file to start anew with it"
        )

    def _check_read(self) -> None:
        windows, dropped = self.windows, self.windows.dropped
        if windows.count:
            return  # if none for this share
        if not dropped:
            raise UserError(f"measure: {windows.name} holds no text; give a file with some paragraphs of prose")
        raise UserError(
            f"measure: {windows.name} has {dropped} tokens, fewer than one window of {windows.length}; give more text "
            "or a smaller window"
        )
