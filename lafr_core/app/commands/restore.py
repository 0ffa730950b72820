"""``lafr restore``: the faces in photos, restored."""

from __future__ import annotations

import argparse

from ...errors import InputError
from ...settings import options
from ..arguments import Commands, add_inputs, add_models, add_settings, box, jobs_of, models_of, reader, settings_of
from ..batch import Run, Worker, carry_out, restore_crop, restore_photo
from ..processes import Processes, join
from ..signature import made_with


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
    add_models(parser)
    add_settings(parser, options())
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Restores the faces of every input and writes OUT/<relative path>.png: same size, alpha and colour profile kept. A photo
    without a face is written unchanged."""
    settings, read = settings_of(args), reader(args)
    if args.aligned and args.box:
        raise InputError("--aligned and --box: expected one of them, got both; aligned crops need no boxes")

    def open_worker(processes: Processes) -> Worker:
        models = models_of(args, settings, processes.device)
        if args.aligned:
            return lambda job: restore_crop(job, models, settings, read)
        return lambda job: restore_photo(job, models, settings, args.box, read)

    inputs = jobs_of(args, "restore")
    signature = made_with(args, settings, aligned=args.aligned, salvage=args.salvage, boxes=args.box)
    run = Run(
        "restore", inputs.jobs, settings, signature, open_worker, inputs.journal, args.report, args.resume, args.overwrite
    )
    return carry_out(run, join(args.device))
