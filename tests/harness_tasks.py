"""Tasks of the lm-evaluation-harness made of local files: which words go on in a book, and texts of random words."""

from __future__ import annotations

import json
import lzma
import random
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from prosparse.study.windows import HELD_OUT

ITEMS = 200
SHOWN, ASKED = 6, 2  # words
TASKS: dict[str, dict[str, Any]] = {
    "local_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "local_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "local_answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["e"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def book_items() -> list[dict[str, Any]]:
    """Beginnings of paragraphs that no packaged model was trained on, each with its own next words and others'."""
    with lzma.open(HELD_OUT, "rt", encoding="utf-8") as file:
        paragraphs = [line.split() for line in file if "<|endoftext|>" not in line]
    rng = random.Random(0)
    items = []
    chosen = rng.sample([words for words in paragraphs if len(words) >= SHOWN + ASKED], 2 * ITEMS)
    for own, other in zip(chosen[:ITEMS], chosen[ITEMS:], strict=True):
        choices = [" " + " ".join(words[SHOWN : SHOWN + ASKED]) for words in (own, other)]
        answer = rng.randrange(2)
        items.append({"question": " ".join(own[:SHOWN]), "choices": choices[:: 1 - 2 * answer], "answer": answer})
    return items


def word_items() -> list[dict[str, Any]]:
    """For models that cannot read."""
    rng = random.Random(0)
    words = ["stone", "river", "seven", "cloud", "iron", "moss", "lamp", "a tree", "night"]
    return [
        {"question": " ".join(rng.sample(words, 4)), "choices": [" " + rng.choice(words)] * 2, "answer": 0}
        for _ in range(20)
    ]


def write_tasks(folder: Path, items: list[dict[str, Any]]) -> TaskManager:
    """The tasks over these items."""
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    for name, task in TASKS.items():
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "items.jsonl")}}}
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, "test_split": "test", **source, **task}))
    return TaskManager(include_path=str(folder), include_defaults=False)
