"""How the next token is chosen."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UserError

MOST_STOPS, LONGEST_STOP = 64, 1024  # every new piece of text is compared with all of them
MOST_DRAFTED = 15  # a decode step takes 16 tokens


@dataclass(frozen=True)
class SamplingParams:
    """Options of one request. The defaults are greedy.

    Args:
        max_new_tokens: stop after this many; None means until the context is full.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches p; 1 keeps all.
        min_p: drop tokens less likely than min_p times the likeliest; 0 drops none.
        repetition_penalty: divide positive and multiply negative logits of tokens already seen; 1 changes nothing.
        seed: of this request's own generator; None draws one. The same seed gives the same text, alone or in a batch.
        stop: strings that end the text; they are not part of it.
        ignore_eos: go on after an end-of-sequence token.
        prompt_lookup: try up to this many tokens more in a step where the latest ones stood before in prompt or text,
            as those that came next there (Saxena, "Prompt Lookup Decoding", 2023); 0 tries none. What is tried is
            checked: modes dense and exact write the same text, sooner where it repeats itself. At most 15.

    Raises:
        UserError: a value outside its range.
    """

    max_new_tokens: int | None = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    prompt_lookup: int = 0

    def __post_init__(self) -> None:
        def check(name: str, holds: bool, rule: str) -> None:
            if not holds:
                raise UserError(f"sampling: {name} must be {rule}, got {getattr(self, name)!r}")

        def whole(value: object) -> bool:
            return isinstance(value, int) and not isinstance(value, bool)

        def finite(value: object) -> bool:
            try:
                return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
            except OverflowError:  # a whole number beyond any float
                return False

        n = self.max_new_tokens
        check("max_new_tokens", n is None or (whole(n) and n >= 1), "a whole number of at least 1, or None")
        check("temperature", finite(self.temperature) and self.temperature >= 0, "a finite number of at least 0")
        check("top_k", whole(self.top_k) and self.top_k >= 0, "a whole number of at least 0 (0 keeps all)")
        check("top_p", finite(self.top_p) and 0 < self.top_p <= 1, "above 0 and at most 1")
        check("min_p", finite(self.min_p) and 0 <= self.min_p <= 1, "from 0 to 1")
        penalty = self.repetition_penalty
        check("repetition_penalty", finite(penalty) and penalty > 0, "a finite number above 0")
        check("seed", self.seed is None or (whole(self.seed) and 0 <= self.seed < 2**63), "from 0 to 2^63 - 1, or None")
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        elif isinstance(self.stop, Iterable):
            object.__setattr__(self, "stop", tuple(self.stop))
        stop = self.stop
        strings = isinstance(stop, tuple) and all(isinstance(s, str) and 0 < len(s) <= LONGEST_STOP for s in stop)
        check(
            "stop", strings and len(stop) <= MOST_STOPS, f"up to {MOST_STOPS} strings of 1 to {LONGEST_STOP} characters"
        )
        lookup = self.prompt_lookup
        check(
            "prompt_lookup", whole(lookup) and 0 <= lookup <= MOST_DRAFTED, f"a whole number from 0 to {MOST_DRAFTED}"
        )
        check("ignore_eos", isinstance(self.ignore_eos, bool), "True or False")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @classmethod
    def from_hf(cls, folder: Path) -> SamplingParams:
        """What a model folder's generation_config.json recommends; greedy where it does not sample.

        Raises:
            ConfigError: the file is not JSON, or a value is out of range.
        """
        path = folder / "generation_config.json"
        if not path.is_file():
            return cls()
        try:
            given: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            chosen = {name: given[name] for name in MODEL_OPTIONS if given.get(name) is not None}
            if not given.get("do_sample", False):  # greedy: of the filters only the penalty changes what is likeliest
                return cls(repetition_penalty=chosen.get("repetition_penalty", 1.0))
            return cls(**{"temperature": 1.0, **chosen})
        except (ValueError, TypeError, AttributeError, RecursionError, OSError) as error:
            raise ConfigError(f"{path}: not usable ({error}); correct or delete it") from error


MODEL_OPTIONS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
