"""``lafr detect``: the found faces, drawn on the photos and as figures."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...faces.detect import choice_note, find_faces
from ...faces.detectors import open_detector
from ...images import photos
from ...images.draw import draw_faces
from ..arguments import Commands, add_inputs, add_settings, settings_of
from ..batch import Run, Worker, carry_out, record
from ..jobs import Job, plan
from ..output import save_png
from ..processes import Processes, join
from ..report import Record

SETTINGS = ("detector", "threshold", "min_face", "max_face", "sort", "top_k", "faces", "rotate", "detect_side", "small_faces")
"""The settings that ``detect`` takes; ``restore`` and ``demo`` take all."""


def add(commands: Commands) -> None:
    parser = commands.add_parser("detect", help="draw the found faces on photos", description=run.__doc__)
    add_inputs(parser)
    parser.add_argument("--detector-weights", type=Path, metavar="PATH", help="the detector's weight file")
    add_settings(parser, SETTINGS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Finds faces and writes OUT/<relative path>.png with boxes, landmarks and numbers drawn, and OUT/faces.json (or --report)
    with the figures."""
    settings = settings_of(args)

    def open_worker(processes: Processes) -> Worker:
        detector = open_detector(settings.detector, weights=args.detector_weights, device=processes.device)

        def work(job: Job) -> Record:
            photo = photos.read(job.source)
            found = find_faces(photo.pixels[None], detector, settings)
            faces = found.faces
            chosen = choice_note(sum(found.counts), len(faces), settings)
            save_png(job.output, draw_faces(photos.to_pil(photo), faces))
            return record(job, "detected" if faces else "no_face", faces, [*photo.notes, *([chosen] if chosen else [])])

        return work

    jobs = plan(args.inputs, args.out, recursive=args.recursive)
    report = args.report or args.out / "faces.json"
    return carry_out(Run("detect", jobs, settings, open_worker, report, args.resume), join(args.device))
