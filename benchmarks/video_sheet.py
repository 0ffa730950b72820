"""Makes a grainy camcorder clip with sound, and shows eight consecutive frames of it before and after.

    python -m benchmarks.video_sheet clip ../shared/data/faces/val/portrait_male_45.jpg vhs.mp4 [--frames 24]
    python -m lafr_core restore vhs.mp4 -o steady
    python -m benchmarks.video_sheet sheet vhs.mp4 steady/vhs.mp4 docs/images/clip.jpg [--first 10]

The portrait moves as in benchmarks/video.py and becomes a tape: colours smeared sideways, trembling lines, grain that is new in
each frame. The sheet's rows: the clip, its frames restored one by one, the clip restored steadily.
"""

from __future__ import annotations

import argparse
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.video import motions, rendered
from lafr_core.faces.detect import detect_faces
from lafr_core.filters import gaussian
from lafr_core.geometry import FFHQ_TEMPLATE, similarity
from lafr_core.images.draw import font
from lafr_core.models import open_models
from lafr_core.pipeline import restore_faces
from lafr_core.settings import RestoreSettings
from lafr_core.video.clips import FileClip

SHOWN = 8
CELL = 176


def tape(frames: Tensor, generator: torch.Generator) -> Tensor:
    """(T, 3, H, W) as an old tape shows them."""
    gray = frames.mean(1, keepdim=True)
    colour = frames - gray
    sideways = torch.exp(-0.5 * (torch.arange(-12.0, 13.0) / 4.5) ** 2)
    kernel = (sideways / sideways.sum()).view(1, 1, 1, -1).expand(3, 1, 1, -1)
    colour = F.conv2d(F.pad(colour, (14, 10, 0, 0), mode="replicate"), kernel, groups=3)
    light = gaussian(gray, 1.1)
    noise = gaussian(torch.randn(light.shape, generator=generator), 0.8) * 0.14
    stain = gaussian(torch.randn(colour.shape, generator=generator), 3.0) * 0.22
    out = (light + noise + 0.85 * (colour + stain)).clamp(0, 1)
    count, _, height, width = out.shape
    tremble = gaussian(torch.randn((count, 1, height, 1), generator=generator).expand(-1, -1, -1, 9), 1.5)[..., 4] * 1.2
    x = torch.arange(width) + tremble[:, 0, :, None]
    y = torch.arange(height)[None, :, None].expand(count, -1, width)
    grid = torch.stack([(x + 0.5) * 2 / width - 1, (y + 0.5) * 2 / height - 1], dim=-1)
    return F.grid_sample(out, grid, mode="bilinear", padding_mode="border", align_corners=False)


def make_clip(portrait: Path, out: Path, frames: int) -> None:
    """The tape, with a tune, as MP4."""
    import av

    pixels = torch.tensor(np.asarray(Image.open(portrait).convert("RGB"))).permute(2, 0, 1).float() / 255
    face = detect_faces(pixels[None], open_models(device="cpu").detector, RestoreSettings(top_k=1))[0]
    matrix = similarity(face.landmarks, FFHQ_TEMPLATE)
    sharp = torch.stack([rendered(pixels, matrix, motion) for motion in motions(np.random.default_rng(5), frames)])
    old = tape(sharp, torch.Generator().manual_seed(5))
    with av.open(str(out), "w") as container:
        film = container.add_stream("libx264", rate=25, options={"crf": "24"})
        film.height, film.width, film.pix_fmt = old.shape[-2], old.shape[-1], "yuv420p"
        tune = container.add_stream("aac", rate=48000)
        for number, frame in enumerate(old):
            array = (frame.clamp(0, 1) * 255 + 0.5).byte().permute(1, 2, 0).contiguous().numpy()
            picture = av.VideoFrame.from_ndarray(array, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, 25)
            container.mux(film.encode(picture))
            time = (np.arange(1920) + 1920 * number) / 48000
            wave = 0.2 * np.sin(2 * np.pi * 220 * 2 ** (number // 6 * 4 / 12) * time)
            part = av.AudioFrame.from_ndarray(wave.astype(np.float32)[None].repeat(2, 0), format="fltp", layout="stereo")
            part.sample_rate, part.pts = 48000, 1920 * number
            container.mux(tune.encode(part))
        container.mux(film.encode(None))
        container.mux(tune.encode(None))


def make_sheet(before: Path, after: Path, out: Path, first: int) -> None:
    """Three rows of eight frames: the clip, each frame restored alone, the clip restored steadily."""
    old, new = (list(FileClip(path).frames())[first : first + SHOWN] for path in (before, after))
    settings = RestoreSettings()
    models = open_models(settings, device="cpu")
    pictures = torch.stack([frame.pixels() for frame in old])
    alone = torch.cat([restore_faces(picture[None], models, settings).images for picture in pictures])
    steady = torch.stack([frame.pixels() for frame in new])
    side = min(pictures.shape[-2:])
    margin = round(0.08 * side)
    rows = []
    for row in (pictures, alone, steady):
        cut = row[..., margin : side - margin, margin : side - margin]
        rows.append(F.interpolate(cut, size=(CELL, CELL), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1))
    sheet = Image.new("RGB", (SHOWN * CELL, 3 * (CELL + 20)), "white")
    pen, letters = ImageDraw.Draw(sheet), font(14)
    for number, (title, row) in enumerate(zip(("input", "frame by frame", "steady"), rows, strict=True)):
        top = number * (CELL + 20)
        pen.text((4, top + 2), title, fill="black", font=letters)
        for k, cell in enumerate(row):
            sheet.paste(Image.fromarray((cell * 255 + 0.5).byte().permute(1, 2, 0).numpy()), (k * CELL, top + 20))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, quality=88)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    clip = commands.add_parser("clip")
    clip.add_argument("portrait", type=Path)
    clip.add_argument("out", type=Path)
    clip.add_argument("--frames", type=int, default=24)
    sheet = commands.add_parser("sheet")
    sheet.add_argument("before", type=Path)
    sheet.add_argument("after", type=Path)
    sheet.add_argument("out", type=Path)
    sheet.add_argument("--first", type=int, default=10)
    args = parser.parse_args()
    if args.command == "clip":
        make_clip(args.portrait, args.out, args.frames)
    else:
        make_sheet(args.before, args.after, args.out, args.first)


if __name__ == "__main__":
    main()
