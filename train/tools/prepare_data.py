"""Photos -> aligned FFHQ-512 faces with a manifest.

    python -m train prepare SRC DST [--min-face 160] [--min-sharpness 0.0002] [--detector auto]

Every face of every photo is detected, cropped at the FFHQ template and written as PNG, unless it is too small or too blurred
to learn from. ``manifest.csv`` in DST lists file, sha256, source, its sha256, face size, sharpness and landmarks;
``dropped.csv`` lists what was left out and why. Corrupt files and photos without a face are among the latter, by name.
Files that are in DST already are kept: what would replace one is refused, the lists before any work (``--overwrite``).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import torch
from torch import Tensor
from torch.nn import functional as F

from lafr_core.errors import ImageFileError, InputError, LafrError
from lafr_core.faces.crop import crop, place
from lafr_core.faces.detect import detect_faces
from lafr_core.faces.detectors import open_detector
from lafr_core.images.formats import SUFFIXES
from lafr_core.images.photos import Photo, to_pil
from lafr_core.images.photos import read as read_photo
from lafr_core.settings import RestoreSettings
from lafr_core.store.outputs import Outputs
from lafr_core.types import Detector, Face
from train.data.faces import shortened

log = logging.getLogger("train.tools.prepare_data")
COLUMNS = ("file", "sha256", "source", "source_sha256", "size", "sharpness", "landmarks")


@dataclass(frozen=True)
class Limits:
    """What a face must have to be worth learning from."""

    size: float = 160.0
    """Longer side of the face's box in the photo, pixels."""
    sharpness: float = 2e-4
    """See :func:`sharpness`."""


def sharpness(crop: Tensor) -> float:
    """Variance of the Laplacian of the luma of a crop (3, S, S) in [0, 1] (Pech-Pacheco et al. 2000): about 1e-3 for a sharp
    face, below 1e-4 for a blurred or enlarged one.
    """
    luma = (crop * crop.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)[None, None]
    kernel = crop.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
    return float(F.conv2d(luma, kernel).var())


def photos(source: Path) -> list[Path]:
    """All pictures below ``source``, sorted. Raises InputError when there are none."""
    found = sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise InputError(f"{source}: no pictures in it or below ({', '.join(SUFFIXES)}); check the folder")
    return found


def read(path: Path) -> Tensor:
    """(1, 3, H, W) in [0, 1], upright. Raises ImageFileError for a file that is no whole picture."""
    return read_photo(path).pixels[None]


def faces_of(path: Path, detector: Detector, limits: Limits) -> Iterator[tuple[Face, Tensor, float, str]]:
    """Every face of a photo: the placed face, its crop, its sharpness, and why it is dropped ("" = kept)."""
    image = read(path)
    for face in detect_faces(image, detector, RestoreSettings()):
        placed = place(face)
        pixels = crop(image[0], placed)
        sharp = sharpness(pixels)
        reason = ""
        if face.size < limits.size:
            reason = f"face of {face.size:.0f} px, less than {limits.size:.0f}"
        elif sharp < limits.sharpness:
            reason = f"sharpness {sharp:.6f}, less than {limits.sharpness}"
        yield placed, pixels, sharp, reason


def prepare(source: Path, target: Path, detector: Detector, limits: Limits, overwrite: bool = False) -> Counter[str]:
    """Fill ``target``; returns how many faces and photos were kept and dropped, by kind.

    Raises InputError where a file that is there would be replaced, unless ``overwrite``; a photo of ``source`` never is.
    """
    found = photos(source)
    outputs = Outputs(found, overwrite=overwrite)
    outputs.check(target / "manifest.csv", target / "dropped.csv")
    names = face_names([path.relative_to(source) for path in found])
    kept: list[dict[str, object]] = []
    dropped: list[tuple[str, str]] = []
    count: Counter[str] = Counter()
    for path, stem in zip(found, names, strict=True):
        name = path.relative_to(source).as_posix()
        try:
            faces = list(faces_of(path, detector, limits))
        except (OSError, ValueError, ImageFileError) as error:
            dropped.append((name, f"cannot be decoded ({error})"))
            count["corrupt"] += 1
            continue
        if not faces:
            dropped.append((name, "no face found"))
            count["without a face"] += 1
        for number, (face, pixels, sharp, reason) in enumerate(faces):
            if reason:
                dropped.append((f"{name} face {number}", reason))
                count["too small" if reason.startswith("face of") else "too blurred"] += 1
                continue
            file = f"{stem}_{number}.png"
            with outputs.writing(target / file) as part:
                to_pil(Photo(pixels)).save(part, "PNG")
            landmarks = " ".join(f"{x:.2f},{y:.2f}" for x, y in face.landmarks)
            values = (file, digest(target / file), name, digest(path), f"{face.size:.1f}", f"{sharp:.6f}", landmarks)
            kept.append(dict(zip(COLUMNS, values, strict=True)))
            count["kept"] += 1
    _write_table(outputs, target / "manifest.csv", [COLUMNS, *([row[name] for name in COLUMNS] for row in kept)])
    _write_table(outputs, target / "dropped.csv", [("source", "reason"), *dropped])
    return count


def _write_table(outputs: Outputs, path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Rows as CSV; names that are no UTF-8 keep their bytes."""
    with (
        outputs.writing(path) as part,
        part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as handle,
    ):
        csv.writer(handle).writerows(rows)


def face_names(files: Sequence[PurePath]) -> list[str]:
    """What the faces of each photo are called, without their number: folders joined by ``__``, no suffix unless two photos
    differ in it or in its spelling only; no two are alike on any disk. The folders of a name that is too long are left out."""
    short = [_fitting(file.with_suffix("")) for file in files]
    uses = Counter(name.casefold() for name in short)
    long = [_fitting(file) if uses[name.casefold()] > 1 else name for file, name in zip(files, short, strict=True)]
    seen: Counter[str] = Counter()
    names = []
    for name in long:
        seen[name.casefold()] += 1
        names.append(name if seen[name.casefold()] == 1 else f"{name}__{seen[name.casefold()]}")
    return names


def _fitting(file: PurePath) -> str:
    parts = list(file.parts)
    while len(parts) > 1 and shortened("__".join(parts)) != "__".join(parts):
        del parts[0]
    return shortened("__".join(parts))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m train prepare", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--min-face", type=float, default=Limits.size, help="smallest face in the photo, pixels")
    parser.add_argument("--min-sharpness", type=float, default=Limits.sharpness, help="smallest variance of the Laplacian")
    parser.add_argument("--detector", default="auto")
    parser.add_argument("--detector-weights", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already (an input never is)")
    args = parser.parse_args(given)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        detector = open_detector(args.detector, weights=args.detector_weights, device=torch.device(args.device))
        count = prepare(args.source, args.target, detector, Limits(args.min_face, args.min_sharpness), args.overwrite)
    except LafrError as error:
        print(f"prepare_data: {error}", file=sys.stderr)
        sys.exit(1)
    print(", ".join(f"{number} {kind}" for kind, number in sorted(count.items())), f"-> {args.target}")
    if not count["kept"]:
        sys.exit("prepare_data: no face was kept; dropped.csv says why for each photo")
