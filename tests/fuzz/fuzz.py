"""One fuzzer in a process of its own: python fuzz.py GROUP SECONDS SEED FOLDER -> counts as JSON."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from frame import fuzz

MODULES = {
    "pictures": "readers", "checkpoints": "readers", "journal": "journals", "masks": "kept", "clips": "containers",
}  # fmt: skip
"""Group -> the module that has it in its GROUPS."""

if __name__ == "__main__":
    name, seconds, seed, folder = sys.argv[1:]
    group = importlib.import_module(MODULES[name]).GROUPS[name]
    print(json.dumps(fuzz(group, float(seconds), int(seed), Path(folder))))
