"""``lafr restore``: the faces in photos, restored."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from ...errors import InputError
from ...faces.detectors import open_detector
from ...images.encode import QUALITY
from ...images.enlarge import FACTORS
from ...images.upscaler import open_upscaler
from ...pipeline import REFERENCE_WEIGHT, References
from ...settings import RestoreSettings, options
from ...store.outputs import Outputs
from .. import gallery
from ..arguments import (
    Commands,
    add_inputs,
    add_models,
    add_settings,
    box,
    jobs_of,
    lent,
    models_of,
    read_besides,
    reader,
    references_of,
    results_of,
    settings_of,
)
from ..batch import Reader, Run, Worker, check, conduct, restore_crop, restore_photo
from ..clips import ClipJob, add_clip_settings, find, restore_clips
from ..journal import Journal
from ..keep import KeepMasks
from ..output import FORMATS, Style
from ..processes import Processes, join
from ..report import absolutes, is_report_of
from ..signature import content, made_with
from ..terminal import show


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
        "--reference-weight",
        type=float,
        default=REFERENCE_WEIGHT,
        metavar="W",
        help="how much reference photos lend, 0 to 1 (%(default)s)",
    )
    parser.add_argument(
        "--keep-mask",
        type=Path,
        metavar="PATH",
        help="a picture of the photo's size, or a folder of them with the photos' names: white = leave the photo as it is",
    )
    _add_style(parser)
    add_models(parser)
    add_settings(parser, options())
    add_clip_settings(parser)
    parser.set_defaults(run=run)


def _add_style(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("results")
    group.add_argument(
        "--format", choices=FORMATS, default="png", help="of the results; same = each source's, else PNG (default: %(default)s)"
    )
    group.add_argument(
        "--quality",
        type=quality,
        default=QUALITY,
        metavar="1..100",
        help="of JPEG and WebP (100: lossless WebP; default: %(default)s)",
    )
    group.add_argument(
        "--upscale",
        type=int,
        choices=FACTORS,
        default=1,
        help="enlarge the photo so many times (Lanczos) and paste the faces at that size (default: %(default)s)",
    )
    group.add_argument(
        "--upscaler",
        type=Path,
        metavar="FILE",
        help="a network that enlarges instead of Lanczos, with --upscale: .safetensors or .pth of any kind that spandrel knows",
    )
    group.add_argument(
        "--gallery",
        type=Path,
        metavar="FILE.html",
        help="a page to look at: before and after of every photo, its faces, doubtful ones first",
    )
    group.add_argument(
        "--no-record", action="store_true", help="do not note the restoration and its settings in the result (EXIF, XMP)"
    )


def quality(text: str) -> int:
    """'90' -> 90, within 1 to 100."""
    if not (text.isdecimal() and text.isascii() and 1 <= int(text) <= 100):
        raise argparse.ArgumentTypeError(f"expected 1 to 100, got {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Restores the faces of every input and writes OUT/<relative path>.png (or --format): same size (or --upscale times as
    large), alpha, colour profile and metadata kept. A photo without a face is written unchanged. Clips (.mp4, .mov, .mkv, .avi,
    ...) become clips, with their sound."""
    settings, read = settings_of(args), reader(args)
    References(weight=args.reference_weight)  # refused before any work
    if args.aligned and args.box:
        raise InputError("--aligned and --box: expected one of them, got both; aligned crops need no boxes")
    if args.aligned and args.upscale != 1:
        raise InputError("--aligned and --upscale: expected one of them, got both; face crops keep their size")
    if args.aligned and args.keep_mask is not None:
        raise InputError("--aligned and --keep-mask: expected one of them, got both; masks belong to whole photos")
    if args.upscaler is not None and args.upscale == 1:
        raise InputError("--upscaler: expected --upscale 2 or 4 with it, got neither; say how many times as large")
    made = results_of(args, Journal.open(args.out)).made
    clips, args.inputs = find(args.inputs, args.out, recursive=args.recursive, sequence=args.sequence, is_result=made)
    if args.aligned or args.box or args.upscale != 1 or args.keep_mask is not None:  # for photos only
        asked = next((clip.source for clip in clips if clip.asked), None)
        if asked is not None and args.upscale != 1:
            raise InputError(f"{asked}: expected photos with --upscale, got a clip; restore clips in a run of their own")
        if asked is not None:
            raise InputError(
                f"{asked}: expected photos with --aligned, --box and --keep-mask, got a clip, whose faces are followed"
            )
        clips = []
    others = [*(clip.source for clip in clips), *read_besides(args)]
    if args.dry_run:
        for clip in clips:
            show(f"{clip.source}: a clip; its faces are found while it is restored")
        return (_conducted(_photos(args, settings, read, clips, others), args) or 0) if args.inputs else 0
    photos = _photos(args, settings, read, clips, others) if args.inputs else None
    inputs = others if photos is None else [*others, *(job.source for job in photos.jobs)]
    named = absolutes(inputs)
    written = args.resume  # the photos' part of the report, by this run or the resumed one
    outputs = Outputs(others, overwrite=args.overwrite, ours=lambda path: written and _is_ours(path, named))
    if clips:  # the clips' part of them is written beside what the photos of this run wrote
        outputs.check(*(path for path in (args.report, args.gallery) if path is not None))
    if clips and photos is not None:
        check(photos)  # clips take long: what is wrong with the photos is said before them
    done = restore_clips(args, clips, settings, inputs) if clips else None
    if done is not None and photos is not None:
        photos = replace(photos, clips=done.entries)
    code = _conducted(photos, args)
    if done is not None:
        written = written or code is not None
        done.report(args.report, outputs)
        if code is None and args.gallery is not None and done.first:
            gallery.write(args.gallery, done.header, done.entries, outputs, read)
        code = max(code or 0, int(done.failed))
    return code or 0


def _is_ours(path: Path, inputs: Collection[str]) -> bool:
    return is_report_of(path, inputs) or gallery.is_gallery_of(path, inputs)


def _photos(
    args: argparse.Namespace, settings: RestoreSettings, read: Reader, clips: Sequence[ClipJob], others: Sequence[Path]
) -> Run | None:
    """What is to be done to the photos; None where the inputs hold clips only. others: what else is read."""

    def open_worker(processes: Processes) -> Worker:
        models = models_of(args, settings, processes.device)
        references = references_of(args, models, settings)
        enlarge = None if args.upscaler is None else open_upscaler(args.upscaler, processes.device)
        if args.aligned:
            return lambda job: restore_crop(job, models, settings, read, references, style)
        return lambda job: restore_photo(
            job,
            models,
            settings,
            args.box,
            read,
            references,
            style,
            upscale=args.upscale,
            max_pixels=args.max_pixels,
            enlarge=enlarge,
            masks=masks,
        )

    style = Style(args.format, args.quality, not args.no_record)
    masks = None if args.keep_mask is None else KeepMasks(args.keep_mask, read)
    inputs = jobs_of(args, "restore", style.suffix, clips={clip.source: clip.named for clip in clips})
    if not inputs.jobs:
        return None
    signature = made_with(
        args,
        settings,
        aligned=args.aligned,
        salvage=args.salvage,
        boxes=args.box,
        reference=lent(args),
        quality=args.quality,
        record=style.record,
        **({} if args.upscale == 1 else {"upscale": args.upscale}),
        **({} if args.upscaler is None else {"upscaler": content(args.upscaler)}),
        **({} if args.keep_mask is None else {"keep": content(args.keep_mask)}),
    )
    return Run(
        "restore",
        inputs.jobs,
        settings,
        signature,
        open_worker,
        inputs.journal,
        args.report,
        args.resume,
        args.overwrite,
        gallery=args.gallery,
        read=read,
        upscale=args.upscale,
        reads=others,
    )


def _conducted(run: Run | None, args: argparse.Namespace) -> int | None:
    """The exit code of what was to be done."""
    if run is None:
        return None
    detector = lambda: open_detector(run.settings.detector, weights=args.detector_weights)
    return conduct(run, join(args.device), detector, dry=args.dry_run)
