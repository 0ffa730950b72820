"""Damaged files of every kind are refused in a sentence or read; for hours with LAFR_FUZZ_SECONDS=7200 pytest -s."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("LAFR_FUZZ_SECONDS", "4"))
SEED = int(os.environ.get("LAFR_FUZZ_SEED", "0"))

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the process as Linux does")


@pytest.mark.parametrize(
    ("group", "least"), [("pictures", 100), ("checkpoints", 100), ("journal", 8), ("masks", 30), ("clips", 60)]
)
def test_damaged_files_are_refused_or_read(group: str, least: int, tmp_path: Path) -> None:
    """least: cases in four seconds, on a machine that has little time for us."""
    if group == "clips":
        pytest.importorskip("av", reason="clips need PyAV")
    kept, home = tmp_path / "cases", tmp_path / "home"
    kept.mkdir()
    home.mkdir()
    places = {"HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fuzz.py")), group, str(SECONDS), str(SEED), str(kept)],
        cwd=home,
        env={**os.environ, **places, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS + 120,
    )
    left = sorted(map(str, kept.iterdir()))
    assert done.returncode == 0, f"the process ended with {done.returncode} over {left}: {done.stderr[-2000:]}"
    counts = json.loads(done.stdout.splitlines()[-1])
    print(f"\n{group}: {counts}")
    assert counts["faults"] == [] and left == []
    assert list(home.rglob("*")) == []  # what C libraries would have written there
    # Mutations that all fail, or all pass, would test nothing.
    assert counts["refused"] > counts["cases"] / 20 and counts["read"] > counts["cases"] / 100 and counts["cases"] >= least
