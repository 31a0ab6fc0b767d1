"""Models that are loaded at the same time by several threads of a fresh process, as a server does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import prosparse

MODEL = Path(__file__).parent.parent / "assets" / "relu-llama-1.5m"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(prosparse.__file__).parent.parent), "PYTHONSAFEPATH": "1"}

PROGRAM = """
import sys
import threading
from pathlib import Path

from prosparse.engine import tokenizer_files

sys.setswitchinterval(1e-5)
met, found = threading.Barrier(4), []


def work():
    met.wait()
    found.append(tokenizer_files.load_pretrained(Path(sys.argv[1])))


threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit(4 - len(found))
"""


def test_the_first_import_of_transformers_is_one_threads() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(MODEL)], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
