"""The packaged text: complete, as described, and cut by the rule that its README states."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import lzma
import re
from pathlib import Path
from types import ModuleType

import pytest
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "prosparse" / "assets"
NAMES = ("calibration", "held_out")
END = "<|endoftext|>"


def read(name: str) -> str:
    return lzma.decompress((ASSETS / "text" / f"{name}.txt.xz").read_bytes()).decode()


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_excerpts", ROOT / "tools" / "make_excerpts.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_readme_describes_the_file(name: str) -> None:
    text = read(name)
    readme = (ASSETS / "text" / "README.md").read_text()
    row = re.search(rf"\| `{name}\.txt\.xz` \| (\d+) \| (\d+) \| (\d+) \| `([0-9a-f]+)` \|", readme)
    assert row, f"no row for {name}"
    tokenizer = Tokenizer.from_file(str(ASSETS / "relu-llama-14m" / "tokenizer.json"))
    raw = text.encode()
    found = (text.count(END), len(raw), len(tokenizer.encode(text).ids), hashlib.sha256(raw).hexdigest())
    assert tuple(map(str, found)) == row.groups()


def test_excerpts_share_no_paragraph() -> None:
    calibration, held_out = ({p for p in re.split(rf"\n|{re.escape(END)}", read(n)) if len(p) > 60} for n in NAMES)
    assert calibration
    assert not calibration & held_out


def test_as_many_books_as_the_list_allows() -> None:
    with (ASSETS / "text" / "books.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len({row["opening"] for row in rows}) == len(rows) == 220
    assert all(row["author"] and row["title"] and row["used"] for row in rows)
    assert sum(row["used"] == "yes" for row in rows) == sum(read(name).count(END) for name in NAMES)


def test_a_tail_begins_after_the_trained_share(tool: ModuleType) -> None:
    assert tool.untrained_tail("\n".join(map(str, range(1000)))) == "".join(f"{n}\n" for n in range(985, 1000))
    assert tool.untrained_tail("one\ntwo\nthree") == "three\n"


def test_every_third_used_book_is_held_out(tool: ModuleType) -> None:
    books = [f"head {n}\ntail {n}" for n in range(7)]
    used = {tool.opening(book): book != books[1] for book in books}
    assert tool.split(books, used) == {
        "calibration": "".join(f"tail {n}\n{END}" for n in (0, 2, 4, 5)),
        "held_out": "".join(f"tail {n}\n{END}" for n in (3, 6)),
    }


def test_a_book_that_is_not_listed_is_refused(tool: ModuleType) -> None:
    with pytest.raises(SystemExit, match="opens 'head tail'.*add a row"):
        tool.split(["head\ntail"], {})
