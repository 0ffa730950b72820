"""``lafr restore``: the faces in photos, restored."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...api import open_references
from ...errors import InputError
from ...pipeline import References
from ...settings import options
from ..arguments import Commands, add_inputs, add_models, add_settings, box, jobs_of, models_of, reader, settings_of
from ..batch import Run, Worker, carry_out, restore_crop, restore_photo
from ..processes import Processes, join
from ..signature import content, made_with


def add(commands: Commands) -> None:
    parser = commands.add_parser("restore", help="restore the faces in photos", description=run.__doc__)
    add_inputs(parser)
    parser.add_argument(
        "--aligned", action="store_true", help="inputs are face crops at the FFHQ template already; no detection"
    )
    parser.add_argument(
        "--box",
        action="append",
        type=box,
        metavar="X0,Y0,X1,Y1",
        help="a face box in pixels instead of detection; may be repeated",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="PATH",
        help="a good photo of the person, a folder of them, or a folder with one folder a person: their photos help",
    )
    parser.add_argument(
        "--reference-weight", type=float, default=1.0, metavar="W", help="how much reference photos lend, 0 to 1 (%(default)s)"
    )
    add_models(parser)
    add_settings(parser, options())
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Restores the faces of every input and writes OUT/<relative path>.png: same size, alpha and colour profile kept. A photo
    without a face is written unchanged."""
    settings, read = settings_of(args), reader(args)
    References(weight=args.reference_weight)  # refused before any work
    if args.aligned and args.box:
        raise InputError("--aligned and --box: expected one of them, got both; aligned crops need no boxes")

    def open_worker(processes: Processes) -> Worker:
        models = models_of(args, settings, processes.device)
        people = () if args.reference is None else open_references(args.reference, models, settings)
        references = References(people, args.reference_weight)
        if args.aligned:
            return lambda job: restore_crop(job, models, settings, read, references)
        return lambda job: restore_photo(job, models, settings, args.box, read, references)

    inputs = jobs_of(args, "restore")
    lent = None if args.reference is None else [content(args.reference), args.reference_weight]
    signature = made_with(args, settings, aligned=args.aligned, salvage=args.salvage, boxes=args.box, reference=lent)
    run = Run(
        "restore", inputs.jobs, settings, signature, open_worker, inputs.journal, args.report, args.resume, args.overwrite
    )
    return carry_out(run, join(args.device))
