"""Recall, false positives, landmark error and time of the starter detector beside RetinaFace-mobile0.25.

    python benchmarks/detector.py --data FACES [--retinaface FILE] [--weights FILE] [--photos N] [--faceless FOLDER] [--no-time]
        [--json FILE]

Photos: ``faces/val`` (one labelled face each), degraded whole with a fixed seed a photo at three severities.
Both detectors run through the same :func:`lafr_core.faces.detect.detect_faces`. A detection is right when its box overlaps the
box that belongs to the labelled landmarks by 0.35 or more (intersection over union); every other detection is a false positive.
The pictures of ``--faceless``, of which the user vouches that there is no face in them, are looked at as a user would, at the
default settings, with turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lafr_core.faces.boxes import face_box, overlap
from lafr_core.faces.detect import detect_faces
from lafr_core.faces.detectors import open_detector
from lafr_core.images import photos
from lafr_core.images.degrade import degrade
from lafr_core.images.formats import SUFFIXES
from lafr_core.settings import RestoreSettings
from lafr_core.types import Detector, Face, Point
from train.data.composites import faceless_pictures
from train.data.photos import load_pixels, read_split

SEVERITIES = ("sharp", "mild", "medium", "severe")
LOWEST = 0.3
"""Nothing below this score is looked at: the default threshold is twice that."""
SAME = 0.35
HELD_OUT = (
    "coffee", "rocket", "retina", "motorcycle_left", "motorcycle_right", "clock_motion", "chessboard_RGB", "logo",
    "microaneurysms", "phantom",
)  # fmt: skip
"""scikit-image pictures without faces that training did not see."""


@dataclass(frozen=True)
class Outcome:
    """What one detector did on one picture: score and landmark error of the right detection, scores of the wrong ones."""

    right: float | None
    error: float
    wrong: tuple[float, ...]


def degraded(pixels: NDArray[np.uint8], severity: str, seed: int) -> Tensor:
    """The photo as a tensor (3, H, W), degraded with its own fixed seed."""
    image = pixels.astype(np.float32) / 255
    if severity != "sharp":
        image, _ = degrade(image, np.random.default_rng([seed, SEVERITIES.index(severity)]), severity)
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def judge(faces: list[Face], landmarks: tuple[Point, ...] | None) -> Outcome:
    """Sort detections into the right one and wrong ones. ``landmarks`` None: the picture has no face."""
    if landmarks is None:
        return Outcome(None, float("nan"), tuple(f.score for f in faces))
    truth = face_box(landmarks)
    right = [f for f in faces if overlap(f.box, truth) >= SAME]
    best = max(right, key=lambda f: f.score, default=None)
    wrong = tuple(f.score for f in faces if f is not best)
    if best is None:
        return Outcome(None, float("nan"), wrong)
    points = np.asarray(landmarks)
    error = np.linalg.norm(np.asarray(best.landmarks) - points, axis=1).mean() / np.linalg.norm(points[0] - points[1])
    return Outcome(best.score, float(error), wrong)


def run(detector: Detector, image: Tensor) -> list[Face]:
    """Every face down to the lowest score, without turning."""
    return detect_faces(image[None], detector, RestoreSettings(threshold=LOWEST, rotate=False))


def recall(outcomes: list[Outcome], threshold: float) -> float:
    return sum(o.right is not None and o.right >= threshold for o in outcomes) / max(1, len(outcomes))


def wrong(outcomes: list[Outcome], threshold: float) -> int:
    return sum(score >= threshold for o in outcomes for score in o.wrong)


def landmark_error(outcomes: list[Outcome], threshold: float) -> tuple[float, float]:
    """Mean and median error as a share of the eye distance, over the faces found."""
    errors = [o.error for o in outcomes if o.right is not None and o.right >= threshold]
    return (float(np.mean(errors)), float(np.median(errors))) if errors else (float("nan"), float("nan"))


def threshold_for(outcomes: list[Outcome], most: int) -> float:
    """The lowest threshold with at most ``most`` false positives."""
    scores = sorted((score for o in outcomes for score in o.wrong), reverse=True)
    return LOWEST if len(scores) <= most else float(np.nextafter(scores[most], 1))


def faceless(photos: list[tuple[NDArray[np.uint8], tuple[Point, ...]]]) -> list[Tensor]:
    """Pictures without a face: scikit-image's that training did not see, and parts of validation photos beside the face."""
    pictures = [degraded(np.asarray(picture), "sharp", 0) for picture in faceless_pictures(HELD_OUT, 1024)]
    for seed, (pixels, landmarks) in enumerate(photos):
        x0, _, x1, y1 = (round(v) for v in face_box(landmarks))
        strips = [pixels[y1 + 8 :, :], pixels[:, : x0 - 8] if x0 > 8 else pixels[:, :0], pixels[:, x1 + 8 :]]
        best = max(strips, key=lambda s: s.shape[0] * s.shape[1])
        if min(best.shape[:2]) >= 48:
            pictures.append(degraded(best, SEVERITIES[seed % 4], seed))
    return pictures


def false_faces(detector: Detector, folder: Path) -> tuple[int, dict[str, list[float]]]:
    """How many pictures the folder has, and those of them in which a face is found at the default settings: its scores."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    found = {}
    for path in paths:
        image = photos.read(path).stored.expand(3, -1, -1)[None]
        if faces := detect_faces(image, detector, RestoreSettings()):
            found[path.name] = [round(face.score, 3) for face in faces]
    return len(paths), found


def seconds(
    detectors: dict[str, Detector], image: Tensor, settings: RestoreSettings, repeats: int
) -> dict[str, list[tuple[float, float]]]:
    """Paired times (wall, processor time of all threads), each repeat running every detector once.

    On a shared machine wall time measures the neighbours; processor time is what the detector itself costs.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in detectors}
    for repeat in range(repeats + 1):
        for name, detector in detectors.items():
            wall, processor = time.perf_counter(), time.process_time()
            detect_faces(image[None], detector, settings)
            if repeat:
                times[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the starter detector with RetinaFace-mobile0.25")
    parser.add_argument("--weights", type=Path, help="starter weights (default: the bundled ones)")
    parser.add_argument("--data", type=Path, required=True, help="folder with faces.csv")
    parser.add_argument("--retinaface", type=Path, help="retinaface_mobile0.25.pth; without it the starter runs alone")
    parser.add_argument("--photos", type=int, default=0, help="about N photos, evenly picked (0 = all)")
    parser.add_argument("--faceless", type=Path, metavar="FOLDER", help="pictures without a face, for false ones")
    parser.add_argument("--no-time", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    detectors: dict[str, Detector] = {"starter": open_detector("starter", weights=options.weights)}
    if options.retinaface:
        detectors["retinaface"] = open_detector("retinaface-mobile0.25", weights=options.retinaface)
    faces = [(load_pixels(p), p.landmarks) for p in read_split(options.data, "val")]
    faces = faces[:: max(1, len(faces) // options.photos)] if options.photos else faces
    results: dict[str, dict[str, list[Outcome]]] = {name: {} for name in detectors}
    for severity in SEVERITIES:
        for name in detectors:
            results[name][severity] = []
        for seed, (pixels, landmarks) in enumerate(faces):
            image = degraded(pixels, severity, seed)
            for name, detector in detectors.items():
                results[name][severity].append(judge(run(detector, image), landmarks))
    empty = faceless(faces)
    for name, detector in detectors.items():
        results[name]["faceless"] = [judge(run(detector, image), None) for image in empty]

    table: dict[str, object] = {"photos": len(faces), "faceless": len(empty)}
    pools = {name: [o for s in SEVERITIES[1:] for o in r[s]] + r["faceless"] for name, r in results.items()}
    print(f"{len(faces)} validation photos, {len(empty)} pictures without faces; landmark error: share of the eye distance")
    default = RestoreSettings().threshold
    print(f"\nStarter at the default threshold {default} and 0.1 about it, and where nothing is a mistake")
    for threshold in (default - 0.1, default, default + 0.1, threshold_for(pools["starter"], 0)):
        table[f"starter@{threshold:.2f}"] = report("starter", results["starter"], threshold)
    if "retinaface" in results:
        print("\nRetinaFace, and the starter with no more false positives")
        for reference in (0.5, 0.8, 0.95):
            most = wrong(pools["retinaface"], reference)
            for name in detectors:
                threshold = reference if name == "retinaface" else threshold_for(pools[name], most)
                table[f"{name} against retinaface@{reference}"] = report(name, results[name], threshold)
        print()
        found = [o.right is not None and o.right >= 0.5 for o in results["retinaface"]["sharp"]]
        for severity in SEVERITIES[1:]:
            kept = [o for o, ok in zip(results["starter"][severity], found, strict=True) if ok]
            share = recall(kept, default)
            table[f"recall_where_retinaface_{severity}"] = share
            print(f"starter recall at {severity} where RetinaFace finds the sharp original: {share:.3f} of {len(kept)}")
        both = [
            (a.error, b.error)
            for s in SEVERITIES[1:]
            for a, b in zip(results["starter"][s], results["retinaface"][s], strict=True)
            if a.right is not None and b.right is not None and a.right >= default and b.right >= 0.5
        ]
        ours, theirs = (float(np.mean(v)) for v in zip(*both, strict=True))
        table["landmark_error_both"] = {"starter": ours, "retinaface": theirs, "faces": len(both)}
        print(f"landmark error on the {len(both)} degraded faces both find: starter {ours:.4f}, retinaface {theirs:.4f}")
    if options.faceless:
        for name, detector in detectors.items():
            count, mistaken = false_faces(detector, options.faceless)
            table[f"false_faces_{name}"] = {"pictures": count, "with_a_face": mistaken}
            share = 100 * len(mistaken) / max(1, count)
            print(f"\n{name}: a face in {len(mistaken)} of {count} pictures of {options.faceless} ({share:.2f} %)")
            print("  " + ", ".join(f"{picture} {max(scores):.2f}" for picture, scores in mistaken.items()))
    if not options.no_time:
        pixels = np.asarray(Image.fromarray(faces[0][0]).resize((1024, 1024), Image.Resampling.BICUBIC))
        times = seconds(detectors, degraded(pixels, "sharp", 0), RestoreSettings(), 9)
        print(f"\nseconds for a 1024x1024 photo, median of 9 paired runs, {torch.get_num_threads()} threads")
        for name, values in times.items():
            wall, processor = (statistics.median(column) for column in zip(*values, strict=True))
            table[f"seconds_{name}"] = {"wall": wall, "processor": processor}
            print(f"  {name:12s} wall {wall:.3f}, processor {processor:.3f}")
    if options.json:
        options.json.write_text(json.dumps(table, indent=1))


def report(name: str, result: dict[str, list[Outcome]], threshold: float) -> dict[str, object]:
    """Print and return one detector's figures at one threshold."""
    row: dict[str, object] = {"threshold": threshold}
    cells = []
    for severity in SEVERITIES:
        outcomes = result[severity]
        mean, median = landmark_error(outcomes, threshold)
        row[severity] = {
            "recall": recall(outcomes, threshold),
            "wrong": wrong(outcomes, threshold),
            "error": mean,
            "median": median,
        }
        cells.append(f"{severity} {recall(outcomes, threshold):.3f}/{wrong(outcomes, threshold)}/{mean:.3f}")
    row["faceless_wrong"] = wrong(result["faceless"], threshold)
    print(f"  {name:11s} t={threshold:.3f}  recall/wrong/error: {'  '.join(cells)}  wrong on faceless: {row['faceless_wrong']}")
    return row


if __name__ == "__main__":
    main()
