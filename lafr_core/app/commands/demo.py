"""``lafr demo``: what the restoration does, on a picture of the repository."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...models import DEVICES, choose_device
from ...settings import options
from ...store.outputs import Outputs
from ..arguments import Commands, add_models, add_overwrite, add_settings, models_of, settings_of


def add(commands: Commands) -> None:
    parser = commands.add_parser("demo", help="degrade and restore a public-domain portrait", description=run.__doc__)
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("lafr-demo"), metavar="DIR", help="folder for the pictures (%(default)s)"
    )
    parser.add_argument(
        "--severity", choices=("mild", "medium", "severe"), default="medium", help="how bad the input is (%(default)s)"
    )
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to compute (auto: CUDA, else MPS, else CPU)")
    add_overwrite(parser)
    add_models(parser)
    add_settings(parser, options())
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Degrades the repository's portrait (a person who does not exist), restores it, writes the pictures and a sheet, and
    prints PSNR, SSIM and identity of the face before and after."""
    from ..demo import PICTURES, run_demo

    settings = settings_of(args)
    outputs = Outputs(overwrite=args.overwrite)
    outputs.check(*(args.out / name for name in PICTURES))
    run_demo(args.out, models_of(args, settings, choose_device(args.device)), settings, args.severity, outputs)
    return 0
