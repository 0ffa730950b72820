"""Arguments that several commands share, and what they become: settings, models, boxes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any

import torch

from ..api import open_references
from ..images import photos
from ..images.photos import MAX_PIXELS, Photo
from ..latent.sd_prior import DENOISE, MODES, STEPS
from ..models import DEVICES, open_models, prior_note
from ..pipeline import References
from ..settings import RestoreSettings, options
from ..types import Box, Models
from .jobs import Job, plan
from .journal import Journal, Results, absolute
from .signature import MODELS, content
from .terminal import say

Commands = Any
"""What ``add_subparsers`` returns; argparse keeps the type to itself."""


def add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="photos, folders or quoted globs")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="folder for the results")
    parser.add_argument("-r", "--recursive", action="store_true", help="search folders to the bottom")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to compute (auto: CUDA, else MPS, else CPU)")
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="write what happened to each input")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with an earlier run: what was made of the same source with the same settings and models is left alone",
    )
    add_overwrite(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, with the faces found; write nothing")
    parser.add_argument("--salvage", action="store_true", help="of files that are cut short, restore what can be decoded")
    parser.add_argument(
        "--max-pixels",
        type=pixels,
        metavar="N",
        help=f"refuse larger photos; megapixels with an M, such as 400M (default: {MAX_PIXELS // 1_000_000}M)",
    )


TAKEN = "--overwrite replaces it, or choose another -o"
"""What to do where a file is there already."""


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already (an input never is)")


_NO_CLIPS: Mapping[Path, PurePath] = MappingProxyType({})


def jobs_of(
    args: argparse.Namespace,
    command: str,
    suffix: Callable[[Path], str] = lambda source: ".png",
    clips: Mapping[Path, PurePath] = _NO_CLIPS,
) -> Inputs:
    """What the inputs name, less what earlier runs have made and less the ``clips`` among them, whose results' names below OUT
    are given, and the journal of OUT."""
    journal = Journal.open(args.out)
    before = journal.outputs_by_source(command)
    results = results_of(args, journal)
    jobs = plan(
        args.inputs,
        args.out,
        recursive=args.recursive,
        suffix=suffix,
        earlier=lambda source: before.get(absolute(source)),
        is_result=lambda path: path in clips or results.made(path),
        may_be_none=bool(clips),
        reserved=clips.values(),
    )
    return Inputs(jobs, journal)


def results_of(args: argparse.Namespace, journal: Journal) -> Results:
    """What earlier runs made of what, among the folders that the inputs name."""
    return Results(journal, [Path(text) for text in args.inputs if Path(text).is_dir()])


@dataclass(frozen=True)
class Inputs:
    """What a command works on."""

    jobs: list[Job]
    journal: Journal


def add_models(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("models", "each one: a file or folder of yours instead of the starter's")
    group.add_argument(
        "--vae", type=Path, metavar="PATH", help="diffusers AutoencoderKL or AutoencoderTiny, folder or single file"
    )
    group.add_argument("--adapter", type=Path, metavar="PATH", help="LAFR adapter file for the VAE's latents")
    group.add_argument("--prior", type=Path, metavar="PATH", help="LAFR prior file, or a diffusers UNet folder")
    add_checkpoint(group)
    group.add_argument("--detector-weights", type=Path, metavar="PATH", help="the detector's weight file")
    group.add_argument("--embedder", type=Path, metavar="PATH", help="LAFR face embedder file, for the identity read-out")


def add_checkpoint(group: argparse._ArgumentGroup) -> None:
    """The user's own Stable Diffusion checkpoint, and how its UNet finishes a face."""
    group.add_argument(
        "--checkpoint", type=Path, metavar="PATH", help="your SD 1.5 or 2.1: a .safetensors file or a diffusers pipeline folder"
    )
    group.add_argument("--lora", type=Path, metavar="PATH", help="the LAFR LoRA trained for the checkpoint")
    group.add_argument(
        "--mode",
        choices=MODES,
        default="auto",
        help="how the checkpoint finishes: one-step needs --lora; auto: one step with a LoRA, a few without",
    )
    group.add_argument("--steps", type=int, metavar="N", help=f"few-step mode: UNet evaluations (default: {STEPS})")
    group.add_argument("--denoise", type=float, metavar="D", help=f"few-step mode: share of the schedule (default: {DENOISE})")


def add_settings(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    group = parser.add_argument_group("settings")
    known = options()
    for name in names:
        option, default = known[name]
        flag = "--" + name.replace("_", "-")
        shown = repr(default) if isinstance(default, str) else default
        text = f"{option.help} (default: {shown})".replace("%", "%%")
        if isinstance(default, bool):
            group.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            group.add_argument(
                flag,
                dest=name,
                type=type(default),
                choices=option.choices,
                metavar=None if option.choices else name.upper(),
                default=argparse.SUPPRESS,
                help=text,
            )


def reader(args: argparse.Namespace) -> Callable[[Path], Photo]:
    """What reads a photo the way the arguments say."""
    return lambda path: photos.read(path, salvage=args.salvage, max_pixels=args.max_pixels)


def settings_of(args: argparse.Namespace) -> RestoreSettings:
    """The settings that the arguments name; the others are the defaults."""
    return RestoreSettings.from_mapping({name: value for name, value in vars(args).items() if name in options()})


def models_of(args: argparse.Namespace, settings: RestoreSettings, device: torch.device) -> Models:
    """The models that the arguments name, opened on ``device``; says where a stage is left out."""
    models = open_models(
        settings,
        device=device,
        vae=args.vae,
        adapter=args.adapter,
        prior=args.prior,
        checkpoint=args.checkpoint,
        lora=args.lora,
        mode=args.mode,
        steps=args.steps,
        denoise=args.denoise,
        detector_weights=args.detector_weights,
        embedder=args.embedder,
    )
    if note := prior_note(models):
        say(f"lafr: {note}")
    return models


def read_besides(args: argparse.Namespace) -> list[Path]:
    """The files that the arguments name besides photos and clips, each file of a folder: references, masks, models. No result
    may replace them."""
    named = [getattr(args, name, None) for name in ("reference", "keep_mask", "upscaler", *MODELS)]
    paths = [Path(path) for path in named if path is not None]
    return [file for path in paths for file in (path, *(path.rglob("*") if path.is_dir() else ()))]


def pixels(text: str) -> int:
    """'400M' or '400000000' -> 400000000."""
    number = text[:-1] if text[-1:] in ("M", "m") else text
    if not (number.isdecimal() and number.isascii() and 0 < int(number) <= 10**12):
        raise argparse.ArgumentTypeError(f"expected a number of pixels such as 400M, got {text!r}")
    return int(number) * (1 if number == text else 1_000_000)


def references_of(args: argparse.Namespace, models: Models, settings: RestoreSettings) -> References:
    """The people that the arguments name."""
    people = () if args.reference is None else open_references(args.reference, models, settings)
    return References(people, args.reference_weight)


def lent(args: argparse.Namespace) -> list[Any] | None:
    """What reference photos say of a result: their content and weight, None without them."""
    return None if args.reference is None else [content(args.reference), args.reference_weight]


def box(text: str) -> Box:
    """'10,20,110,140' -> a box. argparse turns the error into its usage message."""
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected X0,Y0,X1,Y1, got {text!r}") from None
    if not (x0 < x1 and y0 < y1):
        raise argparse.ArgumentTypeError(f"expected x0 < x1 and y0 < y1, got {text!r}")
    return x0, y0, x1, y1
