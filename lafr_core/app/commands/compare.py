"""``lafr compare``: versions of a photo side by side, on one sheet."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...errors import InputError
from ...images import metrics, photos
from ...images.sheet import Row, sheet
from ...store.outputs import Outputs
from ..arguments import Commands, add_overwrite
from ..output import save_png
from ..terminal import show


def add(commands: Commands) -> None:
    parser = commands.add_parser("compare", help="put versions of a photo side by side", description=run.__doc__)
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="BEFORE AFTER [ORIGINAL]: files, or folders")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE.png", help="the sheet to write")
    add_overwrite(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes one sheet with BEFORE, AFTER and, where given, ORIGINAL side by side, zoomed to 100 % where the first two differ
    most. Folders are compared file by file, by name. With ORIGINAL, prints PSNR and SSIM of both against it."""
    titles = ("before", "after", "original")[: len(args.pictures)]
    if len(args.pictures) not in (2, 3):
        raise InputError(f"compare: expected BEFORE AFTER [ORIGINAL], got {len(args.pictures)} paths")
    if args.out.suffix.lower() != ".png":
        raise InputError(f"{args.out}: expected a name that ends with .png, the format of sheets; choose another -o")
    pairs = list(_matching(args.pictures))
    outputs = Outputs([path for _, paths in pairs for path in paths], overwrite=args.overwrite)
    outputs.check(args.out)
    rows = []
    for label, paths in pairs:
        pictures = tuple(photos.read(path).pixels for path in paths)
        rows.append(Row(label, pictures))
        if (
            len(pictures) == 3
            and len({picture.shape for picture in pictures}) == 1
            and min(pictures[0].shape[1:]) >= metrics.WINDOW
        ):
            for title, picture in zip(titles[:2], pictures, strict=False):
                quality = [float(measure(picture[None], pictures[2][None])) for measure in (metrics.psnr, metrics.ssim)]
                show(f"{label}: {title} PSNR {quality[0]:.2f} dB, SSIM {quality[1]:.4f}")
    save_png(outputs, args.out, sheet(titles, rows))
    return 0


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
