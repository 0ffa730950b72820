"""``lafr detect``: the found faces, drawn on the photos and as figures."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...faces.detect import choice_note, find_faces
from ...faces.detectors import open_detector
from ...images import photos
from ...images.draw import draw_faces
from ..arguments import Commands, add_inputs, add_settings, jobs_of, read_besides, reader, settings_of
from ..batch import Made, Run, Worker, conduct, record
from ..jobs import Job
from ..processes import Processes, join
from ..signature import made_with

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
    settings, read = settings_of(args), reader(args)

    def open_worker(processes: Processes) -> Worker:
        detector = open_detector(settings.detector, weights=args.detector_weights, device=processes.device)

        def work(job: Job) -> Made:
            photo = read(job.source)
            found = find_faces(photo.pixels[None], detector, settings)
            faces = found.faces
            chosen = choice_note(sum(found.counts), len(faces), settings)
            drawn = draw_faces(photos.to_pil(photo), faces)
            made = record(job, "detected" if faces else "no_face", faces, [*photo.notes, *([chosen] if chosen else [])])
            return Made(made, lambda path: drawn.save(path, format="PNG"))

        return work

    inputs = jobs_of(args, "detect")
    signature = made_with(args, settings, SETTINGS, salvage=args.salvage)
    report = args.report or args.out / "faces.json"
    run = Run(
        "detect",
        inputs.jobs,
        settings,
        signature,
        open_worker,
        inputs.journal,
        report,
        args.resume,
        args.overwrite,
        read=read,
        reads=read_besides(args),
    )
    detector = lambda: open_detector(settings.detector, weights=args.detector_weights)
    return conduct(run, join(args.device), detector, dry=args.dry_run)
