"""Write docs/errors.md anew: run every case of tests/bad_inputs and note what is said.

python tools/make_errors.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the cases are part of the tests


def main() -> None:
    from bad_inputs.outcome import CASES, document, run

    outcomes = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(CASES):
            outcomes[case.title] = run(case, Path(folder) / str(number))
    (ROOT / "docs" / "errors.md").write_text(document(outcomes), encoding="utf-8")


if __name__ == "__main__":
    main()
