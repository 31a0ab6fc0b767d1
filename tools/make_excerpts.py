"""Cut the packaged text excerpts from the parts of the books that the packaged models were not trained on.

    python tools/make_excerpts.py LIST.txt.xz ... --books prosparse/assets/text/books.tsv -o prosparse/assets/text

The input files hold books separated by `<|endoftext|>`, one paragraph a line. Training read the first int(0.985 * n) of
a book's n paragraphs; the rest, its tail, is untrained. `books.tsv` says of every book whether it may be used. In input
order, the tail of every third used book goes to held_out.txt.xz and the others to calibration.txt.xz. In the excerpts
every paragraph ends with a newline and every book with `<|endoftext|>`, as in the token stream that training made.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import lzma
import sys
from pathlib import Path

END = "<|endoftext|>"
TRAINED_SHARE = 0.985
HELD_OUT_EVERY = 3
OPENING = 40  # characters that tell the books apart


def read_text(path: Path) -> str:
    """A text file, plain or .xz."""
    raw = path.read_bytes()
    return (lzma.decompress(raw) if path.suffix == ".xz" else raw).decode()


def read_books(path: Path) -> list[str]:
    """The non-empty books of a text file, plain or .xz."""
    return [book.strip() for book in read_text(path).split(END) if book.strip()]


def opening(book: str) -> str:
    """What identifies a book in books.tsv."""
    return book[:OPENING].replace("\n", " ").replace("\t", " ").rstrip()


def untrained_tail(book: str) -> str:
    """The paragraphs that training held out, each ended by a newline."""
    paragraphs = book.split("\n")
    return "".join(f"{paragraph}\n" for paragraph in paragraphs[int(len(paragraphs) * TRAINED_SHARE) :])


def read_used(path: Path) -> dict[str, bool]:
    """books.tsv as {opening: may be used}."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {row["opening"]: row["used"] == "yes" for row in rows}


def split(books: list[str], used: dict[str, bool]) -> dict[str, str]:
    """{excerpt name: text}. Raises SystemExit for a book that books.tsv does not list."""
    unknown = [opening(book) for book in books if opening(book) not in used]
    if unknown:
        sys.exit(f"make_excerpts: {len(unknown)} books are not in --books, the first opens {unknown[0]!r}; add a row")
    kept = [book for book in books if used[opening(book)]]
    held_out = kept[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    calibration = [book for i, book in enumerate(kept, start=1) if i % HELD_OUT_EVERY]
    return {
        name: "".join(untrained_tail(book) + END for book in part)
        for name, part in (("calibration", calibration), ("held_out", held_out))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="+", type=Path, help="files of books, in the order that training read them")
    parser.add_argument("--books", type=Path, required=True, help="books.tsv: opening, author, title, used")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the two .txt.xz files")
    arguments = parser.parse_args()

    books = [book for path in arguments.text for book in read_books(path)]
    for name, text in split(books, read_used(arguments.books)).items():
        raw = text.encode()
        path = arguments.output / f"{name}.txt.xz"
        path.write_bytes(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))
        sys.stdout.write(
            f"{path.name}: {text.count(END)} books, {len(raw)} bytes, {path.stat().st_size} compressed, "
            f"sha256 of the text {hashlib.sha256(raw).hexdigest()}\n"
        )


if __name__ == "__main__":
    main()
