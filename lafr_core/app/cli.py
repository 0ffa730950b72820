"""The command line: ``python -m lafr_core restore | detect | compare | demo``.

Exit codes: 0 = every input done (a photo without a face is done), 1 = some inputs failed, 2 = nothing was done: wrong usage,
or a model that cannot be opened, 130 = stopped by Ctrl-C or SIGTERM. Results go to files, messages to stderr.
"""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image

from .. import __version__
from ..errors import InputError, LafrError
from ..faces.detect import detect_faces
from ..faces.detectors import open_detector
from ..images import metrics, photos
from ..images.draw import draw_faces
from ..images.sheet import Row, sheet
from ..models import DEVICES, choose_device, open_models, prior_note
from ..settings import RestoreSettings, options
from ..store.atomic import atomic
from ..types import Box, Models
from .batch import Run, Worker, carry_out, record, restore_crop, restore_photo, say
from .jobs import Job, plan
from .processes import Processes, join
from .report import Record

DETECTION = ("detector", "threshold", "min_face", "max_face", "sort", "top_k", "faces", "rotate", "detect_side", "small_faces")
"""The settings that ``detect`` takes; ``restore`` and ``demo`` take all."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (argparse itself exits with 2 on wrong usage)."""
    args = build_parser().parse_args(arguments)
    try:
        with _stoppable():
            return int(args.run(args))
    except LafrError as error:
        say(f"lafr: {error}")
        return 2
    except KeyboardInterrupt:
        say("lafr: stopped")
        return 130


def build_parser() -> argparse.ArgumentParser:
    """All four commands. Setting options are drawn from ``settings.options()``."""
    parser = argparse.ArgumentParser(prog="lafr", description="Restores degraded faces in photos.")
    parser.add_argument("--version", action="version", version=f"lafr {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    restore = commands.add_parser("restore", help="restore the faces in photos", description=restore_command.__doc__)
    _add_inputs(restore)
    restore.add_argument(
        "--aligned", action="store_true", help="inputs are face crops at the FFHQ template already; no detection"
    )
    restore.add_argument(
        "--box",
        action="append",
        type=_box,
        metavar="X0,Y0,X1,Y1",
        help="a face box in pixels instead of detection; may be repeated",
    )
    _add_models(restore)
    _add_settings(restore, options())
    restore.set_defaults(run=restore_command)

    detect = commands.add_parser("detect", help="draw the found faces on photos", description=detect_command.__doc__)
    _add_inputs(detect)
    detect.add_argument("--detector-weights", type=Path, metavar="PATH", help="the detector's weight file")
    _add_settings(detect, DETECTION)
    detect.set_defaults(run=detect_command)

    compare = commands.add_parser("compare", help="put versions of a photo side by side", description=compare_command.__doc__)
    compare.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="BEFORE AFTER [ORIGINAL]: files, or folders")
    compare.add_argument("-o", "--out", type=Path, required=True, metavar="FILE.png", help="the sheet to write")
    compare.set_defaults(run=compare_command)

    demo = commands.add_parser("demo", help="degrade and restore a public-domain portrait", description=demo_command.__doc__)
    demo.add_argument(
        "-o", "--out", type=Path, default=Path("lafr-demo"), metavar="DIR", help="folder for the pictures (%(default)s)"
    )
    demo.add_argument(
        "--severity", choices=("mild", "medium", "severe"), default="medium", help="how bad the input is (%(default)s)"
    )
    demo.add_argument("--device", choices=DEVICES, default="auto", help="where to compute (auto: CUDA, else MPS, else CPU)")
    _add_models(demo)
    _add_settings(demo, options())
    demo.set_defaults(run=demo_command)
    return parser


# --- the commands ---


def restore_command(args: argparse.Namespace) -> int:
    """Restores the faces of every input and writes OUT/<relative path>.png: same size, alpha and colour profile kept. A photo
    without a face is written unchanged."""
    settings = _settings(args)
    if args.aligned and args.box:
        raise InputError("--aligned and --box: expected one of them, got both; aligned crops need no boxes")

    def open_worker(processes: Processes) -> Worker:
        models = _models(args, settings, processes.device)
        if args.aligned:
            return lambda job: restore_crop(job, models, settings)
        return lambda job: restore_photo(job, models, settings, args.box)

    return _run("restore", args, settings, open_worker)


def detect_command(args: argparse.Namespace) -> int:
    """Finds faces and writes OUT/<relative path>.png with boxes, landmarks and numbers drawn, and OUT/faces.json (or --report)
    with the figures."""
    settings = _settings(args)
    args.report = args.report or args.out / "faces.json"

    def open_worker(processes: Processes) -> Worker:
        detector = open_detector(settings.detector, weights=args.detector_weights, device=processes.device)

        def work(job: Job) -> Record:
            photo = photos.read(job.source)
            faces = detect_faces(photo.pixels[None], detector, settings)
            _save_png(job.output, draw_faces(photos.to_pil(photo), faces))
            return record(job, "detected" if faces else "no_face", faces, photo.notes)

        return work

    return _run("detect", args, settings, open_worker)


def compare_command(args: argparse.Namespace) -> int:
    """Writes one sheet with BEFORE, AFTER and, where given, ORIGINAL side by side, zoomed to 100 % where the first two differ
    most. Folders are compared file by file, by name. With ORIGINAL, prints PSNR and SSIM of both against it."""
    titles = ("before", "after", "original")[: len(args.pictures)]
    if len(args.pictures) not in (2, 3):
        raise InputError(f"compare: expected BEFORE AFTER [ORIGINAL], got {len(args.pictures)} paths")
    rows = []
    for label, paths in _matching(args.pictures):
        pictures = tuple(photos.read(path).pixels for path in paths)
        rows.append(Row(label, pictures))
        if (
            len(pictures) == 3
            and len({picture.shape for picture in pictures}) == 1
            and min(pictures[0].shape[1:]) >= metrics.WINDOW
        ):
            for title, picture in zip(titles[:2], pictures, strict=False):
                quality = [float(measure(picture[None], pictures[2][None])) for measure in (metrics.psnr, metrics.ssim)]
                print(f"{label}: {title} PSNR {quality[0]:.2f} dB, SSIM {quality[1]:.4f}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    _save_png(args.out, sheet(titles, rows))
    return 0


def demo_command(args: argparse.Namespace) -> int:
    """Degrades scikit-image's astronaut portrait (NASA, public domain), restores it, writes the pictures and a sheet, and
    prints PSNR, SSIM and identity of the face before and after."""
    from .demo import run_demo

    settings = _settings(args)
    run_demo(args.out, _models(args, settings, choose_device(args.device)), settings, args.severity)
    return 0


def _run(command: str, args: argparse.Namespace, settings: RestoreSettings, open_worker: Callable[[Processes], Worker]) -> int:
    jobs = plan(args.inputs, args.out, recursive=args.recursive)
    return carry_out(Run(command, jobs, settings, open_worker, args.report, args.resume), join(args.device))


def _models(args: argparse.Namespace, settings: RestoreSettings, device: torch.device) -> Models:
    models = open_models(
        settings,
        device=device,
        vae=args.vae,
        adapter=args.adapter,
        prior=args.prior,
        detector_weights=args.detector_weights,
        embedder=args.embedder,
    )
    if note := prior_note(models):
        say(f"lafr: {note}")
    return models


# --- arguments ---


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="photos, folders or quoted globs")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="folder for the results")
    parser.add_argument("-r", "--recursive", action="store_true", help="search folders to the bottom")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to compute (auto: CUDA, else MPS, else CPU)")
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="write what happened to each input")
    parser.add_argument(
        "--resume", action="store_true", help="skip inputs whose result is there (and recorded as done in --report)"
    )


def _add_models(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("models", "each one: a file or folder of yours instead of the starter's")
    group.add_argument(
        "--vae", type=Path, metavar="PATH", help="diffusers AutoencoderKL or AutoencoderTiny, folder or single file"
    )
    group.add_argument("--adapter", type=Path, metavar="PATH", help="LAFR adapter file for the VAE's latents")
    group.add_argument("--prior", type=Path, metavar="PATH", help="LAFR prior file, or a diffusers UNet folder")
    group.add_argument("--detector-weights", type=Path, metavar="PATH", help="the detector's weight file")
    group.add_argument("--embedder", type=Path, metavar="PATH", help="LAFR face embedder file, for the identity read-out")


def _add_settings(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
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


def _settings(args: argparse.Namespace) -> RestoreSettings:
    return RestoreSettings.from_mapping({name: value for name, value in vars(args).items() if name in options()})


def _box(text: str) -> Box:
    """'10,20,110,140' -> a box. argparse turns the error into its usage message."""
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected X0,Y0,X1,Y1, got {text!r}") from None
    if not (x0 < x1 and y0 < y1):
        raise argparse.ArgumentTypeError(f"expected x0 < x1 and y0 < y1, got {text!r}")
    return x0, y0, x1, y1


def _matching(paths: Sequence[Path]) -> Iterator[tuple[str, list[Path]]]:
    """(label, one path for each version): the paths themselves, or the folders' files that share a name without suffix."""
    if not any(path.is_dir() for path in paths):
        yield paths[0].name, list(paths)
        return
    if not all(path.is_dir() for path in paths):
        raise InputError("compare: expected files only or folders only, got both")
    files = [
        {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in photos.SUFFIXES} for folder in paths
    ]
    common = [stem for stem in files[0] if all(stem in names for names in files)]
    if not common:
        raise InputError(f"compare: no picture of the same name in {', '.join(map(str, paths))}")
    for stem in common:
        yield stem, [names[stem] for names in files]


# --- the terminal ---


def _save_png(path: Path, image: Image.Image) -> None:
    try:
        with atomic(path) as temporary:
            image.save(temporary, format="PNG")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM stops like Ctrl-C: the report is written, no file is left half done. The old handler comes back afterwards."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
