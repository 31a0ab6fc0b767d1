"""The floors of the house: a module imports from its own room or from a lower floor, never from a higher one.

Also what keeps it habitable: small files, no cycles, and a package that is light to import.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOOR = {
    "errors": 0,
    "kernels": 0,
    "config": 1,
    "machine": 1,
    "plan": 2,  # it speaks of a ModelConfig
    "weights": 2,
    "model": 2,
    "hardware": 3,  # it times kernels over weights
    "sparsity": 3,
    "placement": 4,
    "engine": 5,
    "serve": 6,
    "hf": 6,
    "study": 6,
    "bench": 7,  # it times what study measures and what hf runs
    "cli": 8,
    "__init__": 8,
    "__main__": 9,
}  # a new room must be given a floor here
MAX_LINES = 300

PACKAGE = sorted(path for room in ("prosparse", "kernels", "bench") for path in (ROOT / room).rglob("*.py"))
SOURCES = sorted(
    path
    for path in [
        *PACKAGE,
        *(ROOT / "tests").rglob("*.py"),
        *(ROOT / "tools").rglob("*.py"),
        *(path for path in (ROOT / "kernels" / "cpu" / "csrc").iterdir() if path.is_file()),
        ROOT / "setup.py",
    ]
)


def module_name(path: Path) -> str:
    """The name a file is imported by: kernels/ and bench/ are installed inside prosparse."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts if parts[0] == "prosparse" else ("prosparse", *parts))


MODULES = {module_name(path): path for path in PACKAGE}


def room(module: str) -> str:
    return (module.split(".") + ["__init__"])[1]


def imports_of(path: Path, top_level: bool = False) -> set[str]:
    """Modules of ours that a file imports, by full name: `from . import name` is the module `name` if there is one.

    The version is a word, not a house: anybody may import `__version__` from the top.
    """
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = set()
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                if (source, alias.name) == ("prosparse", "__version__"):
                    continue
                inner = f"{source}.{alias.name}"
                found.add(inner if inner in MODULES else source)
    return {name for name in found if name.split(".")[0] in ("prosparse", "kernels", "bench")}


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PACKAGE, ids=label)
def test_imports_point_downstairs(path):
    here = room(module_name(path))
    for module in imports_of(path):
        first = module.split(".")[0]
        assert first == "prosparse", f"write prosparse.{first}: in a checkout, {first} may be somebody else's package"
        there = room(module)
        assert there == here or FLOOR[there] < FLOOR[here], (
            f"{here} (floor {FLOOR[here]}) imports {module} (floor {FLOOR[there]})"
        )


def test_no_import_cycles():
    graph = {name: imports_of(path, top_level=True) & MODULES.keys() - {name} for name, path in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_files_are_small(path):
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{label(path)} has {lines} lines; at most {MAX_LINES}: split it by subject"


def test_nobody_imports_kernels_by_its_checkout_name():
    for path in SOURCES:
        if path.suffix == ".py":
            assert not {m for m in imports_of(path) if m.split(".")[0] == "kernels"}, label(path)


def test_importing_the_package_is_light():
    code = "import sys, prosparse; print([m for m in ('torch', 'transformers', 'triton', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]", f"import prosparse imports {result.stdout.strip()}"
