"""Work on any photo is bounded: memory and time of ``lafr restore`` on pictures of growing size, without a face and with one.

    python -m benchmarks.bounded [--largest 13000]

Prints, for each picture, seconds (wall and of this process), the detection's share, and the most memory that the process held,
beside the bars: 0.8 GB + 10 bytes a pixel, detection at most 3 times that of a 4-megapixel photo, 30 s for the largest flat
one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from lafr_core.store.assets import sample

MEASURE = """
import json, resource, sys, time
from lafr_core.app import cli
from lafr_core.faces import detect
spent = 0.0
search = detect.search
def timed(*rest):
    global spent
    start = time.process_time()
    found = search(*rest)
    spent += time.process_time() - start
    return found
detect.search = timed
wall, own = time.perf_counter(), time.process_time()
code = cli.main(sys.argv[1:])
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
wall, own = time.perf_counter() - wall, time.process_time() - own
print(json.dumps({"code": code, "wall": wall, "own": own, "detect": spent, "most": most}))
"""


def picture(path: Path, side: int, face: bool) -> None:
    """A flat gray square, or one with the repository's portrait in its middle."""
    page = Image.new("RGB", (side, side), (120, 130, 140))
    if face:
        with Image.open(sample("portrait")) as portrait:
            page.paste(portrait.convert("RGB"), ((side - portrait.width) // 2, (side - portrait.height) // 2))
    page.save(path, compress_level=1)


def measure(path: Path, out: Path) -> dict[str, float]:
    command = [sys.executable, "-c", MEASURE, "restore", str(path), "-o", str(out), "--device", "cpu"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(result.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=13_000, help="side of the largest picture in pixels")
    options = parser.parse_args()
    print(f"{'picture':>22} {'wall s':>8} {'cpu s':>8} {'detect s':>9} {'times 4 MP':>11} {'GB':>6} {'bar GB':>7}")
    with tempfile.TemporaryDirectory() as folder:
        base = 0.0
        for side, face in ((2000, True), (2000, False), (8000, True), (8000, False), (options.largest, False)):
            path = Path(folder) / f"{side}{'face' if face else 'flat'}.png"
            picture(path, side, face)
            seen = measure(path, Path(folder) / "out")
            base = base or seen["detect"]
            bar = 0.8 + 10 * side**2 / 1e9
            name = f"{side}x{side} {'one face' if face else 'flat'}"
            print(
                f"{name:>22} {seen['wall']:8.1f} {seen['own']:8.1f} {seen['detect']:9.2f} {seen['detect'] / base:11.2f}"
                f" {seen['most'] / 1e9:6.2f} {bar:7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
