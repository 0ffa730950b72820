"""The blind-face degradation of training: :mod:`lafr_core.images.degrade`, under the name that training code knows it by.

    python -m train preview --preview --source drawn:64 --out preview.png

draws a picture of 64 samples and, beside it, a CSV of what was drawn for each.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from lafr_core.images.degrade import SEVERITIES, Array, Drawn, Ranges, apply, blur, degrade, draw, resize

__all__ = ["SEVERITIES", "Array", "Drawn", "Ranges", "apply", "blur", "degrade", "draw", "resize"]


def preview(
    source: str, out: Path, *, severity: str = "full", seed: int = 0, count: int = 64, side: int = 128, overwrite: bool = False
) -> Path:
    """Save ``count`` degraded faces as one PNG, eight a row, exactly as training would draw them; returns the CSV's path.

    Raises InputError, before any work, where a file that is there would be replaced, unless ``overwrite``.
    """
    import numpy as np
    import torch
    from PIL import Image

    from lafr_core.errors import InputError
    from lafr_core.store.outputs import Outputs
    from train.config import Data
    from train.data.faces import DRAWN_PARAMETERS, open_faces
    from train.engine.journal import grid

    if count < 1:
        raise InputError(f"--count: expected 1 or more, got {count}")
    table = out.with_suffix(".csv")
    outputs = Outputs(overwrite=overwrite)
    outputs.check(out, table)
    faces, _ = open_faces(Data(source=source, size=512 if not source.startswith("drawn:") else 256, severity=severity), seed)
    samples = [faces[position] for position in range(count)]
    small = [
        torch.nn.functional.interpolate(s["lq"][None], size=(side, side), mode="bilinear", antialias=True)[0] for s in samples
    ]
    small += [torch.ones_like(small[0])] * (-len(small) % 8)
    with outputs.writing(out) as part:
        Image.fromarray(grid(torch.stack(small).view(-1, 8, 3, side, side)).astype(np.uint8)).save(part, "PNG")
    with outputs.writing(table) as part, part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["sample", "picture", *DRAWN_PARAMETERS])
        for number, sample in enumerate(samples):
            name = faces.pictures[int(sample["index"])].name
            writer.writerow([number, name, *(f"{value:.4g}" for value in sample["drawn"].tolist())])
    return table


def main(given: Sequence[str] | None = None) -> None:
    from lafr_core.errors import LafrError

    parser = argparse.ArgumentParser(prog="python -m train preview", description="Look at what training degrades faces to.")
    parser.add_argument("--preview", action="store_true", required=True, help="draw the picture")
    parser.add_argument("--source", default="drawn:64", help="face folder, or drawn:N")
    parser.add_argument("--out", type=Path, default=Path("preview.png"))
    parser.add_argument("--severity", choices=tuple(SEVERITIES), default="full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")
    args = parser.parse_args(given)
    try:
        table = preview(
            args.source, args.out, severity=args.severity, seed=args.seed, count=args.count, overwrite=args.overwrite
        )
    except LafrError as error:
        print(f"degrade: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"{args.out}\n{table}")
