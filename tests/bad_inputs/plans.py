"""Bad inputs: budgets, plans for a GPU and a CPU, their profiles and machines."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from bad_inputs.case import Case, Change, content, generate
from placed_plans import placed, some_profile

from prosparse.engine import load
from prosparse.hardware import PRESETS

PLAN, PROFILE, MACHINE = "plan.json", "p.safetensors", "machine.json"
KEY = r"\b[0-9a-f]{16}\b"
RUN = generate("--device", "cpu", "--max-new-tokens", "2", "--plan", f"MODEL/{PLAN}", "--profile", f"MODEL/{PROFILE}")
WITHIN = generate("--device", "cpu", "--profile", f"MODEL/{PROFILE}", "--machine", "8gb-pcie4", "--budget")
PLACE = ("plan", "MODEL", "--profile", f"MODEL/{PROFILE}", "--machine", "8gb-pcie4", "-o", f"MODEL/{PLAN}")
DESCRIBED = ("plan", "--shape", "tiny", "--machine", f"MODEL/{MACHINE}")


def _made(seed: int = 1, **changed: Any) -> Change:
    """A plan of the model with keys that differ, and a profile of this seed, where 1 is the plan's."""

    def change(folder: Path) -> None:
        engine = load(folder, weights="fp32")
        plan = json.loads(placed(engine, some_profile(engine), [(40, 10), (0, 0, False)], weights="bf16").to_json())
        (folder / PLAN).write_text(json.dumps(plan | changed))
        some_profile(engine, seed).save(folder / PROFILE)

    return change


def _of_other_weights(folder: Path) -> None:
    _made()(folder)
    engine = load(folder, weights="fp32")
    profile = some_profile(engine)
    object.__setattr__(profile, "content", "0" * 16)
    profile.save(folder / PROFILE)


def _layers(*splits: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"mode": "exact", "layout": "rows", "split": split} for split in splits]


def _described(**changed: Any) -> Change:
    data = json.loads(PRESETS["8gb-pcie4"].to_json()) | changed
    return content(MACHINE, json.dumps({key: value for key, value in data.items() if value is not None}))


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


NO_GPU = {"torch.cuda.is_available": lambda: False, "torch.version.cuda": None}
ROWS = {"gate": 96, "hot": 96, "attention": True}

PLANS = {
    "62": [
        Case("no such plan", command=generate("--plan", "MODEL/nowhere")),
        Case("a plan that is no JSON", content(PLAN, "{"), generate("--plan", f"MODEL/{PLAN}")),
        Case("a profile in place of a plan", _made(), generate("--plan", f"MODEL/{PROFILE}")),
        Case("a plan of another version", _made(schema_version=9), RUN),
        Case("a plan for another model", _made(model="0" * 16), RUN, library=KEY),
        Case("a plan with a layer too many", _made(layers=_layers(ROWS, ROWS, ROWS)), RUN, library=KEY),
        Case("a plan for more neurons", _made(layers=_layers(ROWS, ROWS | {"gate": 97})), RUN),
        Case("a plan with more up rows than gate rows", _made(layers=_layers(ROWS, ROWS | {"gate": 5})), RUN),
        Case("a plan for another context", _made(), (*RUN, "--context", "65")),
        Case("a plan for other weights", _made(), (*RUN, "--weights", "int8")),
        Case("a plan and a budget", _made(), (*RUN, "--budget", "4GiB")),
    ],
    "63": [
        Case("a plan without its profile", _made(), RUN[:-2], environment={"PROSPARSE_CACHE": "/nowhere"}, library=KEY),
        Case("a stale profile: another one than the plan's", _made(seed=2), RUN, library=KEY),
        Case("a profile of other weights", _of_other_weights, RUN, library=KEY),
        Case("a file that is no profile", content(PROFILE, b"{}" * 50), (*WITHIN, "4GiB")),
    ],
    "64": [
        Case("a budget that is no size", _made(), (*WITHIN, "much")),
        Case("a budget below nothing", command=generate("--budget=-1GiB"), patch=NO_GPU),
        Case("a budget too small for attention", _made(), (*WITHIN, "64MiB")),
        Case("a budget, and no GPU", command=generate("--budget", "4GiB"), status=1, patch=NO_GPU),
        Case("a plan for this machine, which has no GPU", command=("plan", "--shape", "tiny"), status=1, patch=NO_GPU),
        Case("memory that shrank since the plan was made", _made(), RUN, status=1,
             patch={"prosparse.machine.available_memory": lambda: 1 << 20}, library=r"(?<=takes )[\d.]+"),
        Case("a full disk", _made(), (*PLACE, "--overwrite"), status=1,
             patch={"prosparse.weights.whole_files.os.fsync": _full}),
    ],
    "65": [
        Case("a machine that is not known", command=("plan", "--shape", "tiny", "--machine", "nowhere")),
        Case("a description without a speed", _described(cpu_stream=None), DESCRIBED),
        Case("a speed of zero", _described(to_gpu=0), DESCRIBED),
        Case("a machine, and no budget", _made(), (*WITHIN[:-1],)),
    ],
}  # fmt: skip
