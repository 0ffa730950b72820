"""Work on any photo is bounded (TRIALS F7): memory grows by less than ten bytes a pixel, however a photo is stored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MEASURE = """
import json, resource, sys
from pathlib import Path
import numpy as np
from PIL import Image
from fakes import face_at, parts
import lafr_core
from lafr_core.app import batch
from lafr_core.app.jobs import Job
from lafr_core.images import png16
from lafr_core.settings import RestoreSettings

folder, kind, faces = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
models = parts([face_at(200, 200, 64)] * faces)
settings = RestoreSettings(small_faces=False, detect_side=320, rotate=False)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def picture(path, side):
    if kind == "16 bit":
        path.write_bytes(b"".join(png16.encode(np.full((side, side, 3), 30_000, np.uint16))))
        return
    exif = Image.Exif()
    exif[0x0112] = 6 if kind == "turned" else 1
    color = (120, 130, 140, 200) if kind == "alpha" else (120, 130, 140)
    Image.new("RGBA" if kind == "alpha" else "RGB", (side, side), color).save(path, compress_level=1, exif=exif)

def work(side):
    source, output = folder / f"{side}.png", folder / f"{side}_out.png"
    if kind == "python":
        lafr_core.restore(source, settings, models=models).save(output)
    else:
        batch.restore_photo(Job(source, output), models, settings).save(output)

small, large = 1000, 5000
work_small = [picture(folder / f"{side}.png", side) for side in (small, large)] and work(small)
before = peak()
work(large)
print(json.dumps((peak() - before) / (large**2 - small**2)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures the process as Linux does")
@pytest.mark.parametrize(
    ("kind", "faces"), [("plain", 0), ("plain", 1), ("turned", 0), ("alpha", 0), ("16 bit", 0), ("python", 1)]
)
def test_memory_grows_by_less_than_ten_bytes_a_pixel(kind: str, faces: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), kind, str(faces)],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "", "OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": "0"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) < 10
