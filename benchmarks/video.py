"""Does the face hold still? Clips with known motion, restored frame by frame and steadily, measured against the truth.

    python benchmarks/video.py --data ../shared/data/faces [--clips 6] [--frames 48] [--json out.json]

Each clip is a validation portrait that never took part in training: the head moves (pan, turn, tilt, nod, a fast jerk), eyes
blink, the mouth opens, the light changes, a film of 320 pixels is made of it, blurred, made noisy frame by frame and coded by
H.264 at a low rate. Since the motion is known, each pixel of the face can be followed through the clip exactly:

- flicker: mean change of the followed face pixels, light taken out, from one frame to the next (x 1000), of the restored and of
  the sharp clip;
- identity: variance of dlib's face descriptor over the track (sum over its 128 numbers, x 1000);
- landmark jitter: mean second difference of the landmarks less that of the true ones, as a share of the eye distance (%): of
  the detector's under "alone", of the track's under "steady";
- PSNR of the face against the sharp clip, of all frames, of the sixth with the fastest motion, and of the eyes in blinks; blink
  depth: how far the eyes change in blinks, as a share of the sharp clip's change (ghosts of open eyes would lower it).

Printed: frame by frame, steady, and the ratio of both, with counts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lafr_core.geometry import FFHQ_TEMPLATE, compose, invert, similarity
from lafr_core.models import open_models
from lafr_core.settings import RestoreSettings
from lafr_core.types import Matrix, Models
from lafr_core.video import restore
from lafr_core.video.batch import BatchClip
from lafr_core.video.settings import ClipSettings
from train.data.photos import load_pixels, read_split

SIDE = 320
FACE = (0.36, 0.42)
"""Eye distance of the heads as a share of an eye distance at which the FFHQ crop fills the frame, smallest and largest."""
LEFT_EYE, RIGHT_EYE, MOUTH = FFHQ_TEMPLATE[0], FFHQ_TEMPLATE[1], (256.0, 371.3)


@dataclass(frozen=True)
class Motion:
    """One moment of a clip. Lengths in pixels of the 512 template, angles in radians."""

    place: Matrix
    """Template -> frame."""
    turn: float
    nod: float
    blink: float
    """0 = open, 1 = as closed as the warp makes it."""
    mouth: float
    gain: float
    tilt: float
    """Light from the side: difference of the gain between left and right."""


def motions(generator: np.random.Generator, frames: int, approach: float = 1.0) -> list[Motion]:
    """A head's course: slow sway, a jerk in the middle third, two blinks, speech, light.

    approach: how many times as small as at its end the face is at its beginning, where it stays for a third of the clip.
    """
    t = np.arange(frames) / 25.0
    phase = generator.uniform(0, 2 * math.pi, 8)
    jerk = 1 / (1 + np.exp(-(np.arange(frames) - frames * 0.55) / 1.3))
    back = 1 / (1 + np.exp(-(np.arange(frames) - frames * 0.75) / 1.6))
    dx = 14 * np.sin(1.3 * t + phase[0]) + 60 * (jerk - back)
    dy = 8 * np.sin(1.9 * t + phase[1]) + 16 * (jerk - back)
    roll = 0.08 * np.sin(1.1 * t + phase[2]) + 0.06 * (jerk - back)
    size = generator.uniform(*FACE) * (1 + 0.05 * np.sin(0.8 * t + phase[3]))
    nearer = np.clip((np.arange(frames) / frames - 0.33) / 0.45, 0, 1)
    size = size * approach ** (nearer - 1)
    turn, nod = 7 * np.sin(1.5 * t + phase[4]) + 7 * (jerk - back), 5 * np.sin(1.7 * t + phase[5])
    blink = sum(np.exp(-(((np.arange(frames) - frames * at) / 2.0) ** 2)) for at in (0.22, 0.66))
    mouth = np.clip(np.sin(9 * t + phase[6]), 0, 1) * (0.5 + 0.5 * np.sin(2.3 * t))
    gain = 1 + 0.08 * np.sin(2.1 * t + phase[7]) + 0.06 * (np.arange(frames) > frames * 0.4)
    tilt = 0.08 * np.sin(0.9 * t + phase[3])
    course = []
    for k in range(frames):
        s = size[k] * SIDE / 200
        a, b = s * math.cos(roll[k]), s * math.sin(roll[k])
        cx, cy = SIDE / 2 + dx[k] * SIDE / 320, SIDE / 2 + 6 + dy[k] * SIDE / 320
        place = ((a, -b, cx - a * 256 + b * 280), (b, a, cy - b * 256 - a * 280))
        course.append(
            Motion(place, float(turn[k]), float(nod[k]), float(blink[k]), float(mouth[k]), float(gain[k]), float(tilt[k]))
        )
    return course


def shape(points: Tensor, motion: Motion) -> Tensor:
    """Where points (..., 2) of the moving face, in template pixels, come from in the portrait's own template."""
    x, y = points[..., 0], points[..., 1]
    near = torch.exp(-(((x - 256) / 120) ** 2 + ((y - 290) / 150) ** 2))  # the nose stands out: it moves most when a head turns
    dx, dy = -motion.turn * near, -motion.nod * near
    for cx, cy in (LEFT_EYE, RIGHT_EYE):
        u, v = x - cx, y - cy
        dy = dy + 1.5 * motion.blink * v * torch.exp(-((u / 42) ** 2) - (v / 17) ** 2)
    u, v = x - MOUTH[0], y - MOUTH[1]
    dy = dy - 0.3 * motion.mouth * v * torch.exp(-((u / 60) ** 2) - (v / 36) ** 2)
    return torch.stack([x + dx, y + dy], -1)


def unshaped(points: Tensor, motion: Motion) -> Tensor:
    """Inverse of :func:`shape`, by fixed-point steps."""
    seen = points.clone()
    for _ in range(40):
        seen = seen - 0.6 * (shape(seen, motion) - points)
    return seen


def applied(matrix: Matrix, points: Tensor) -> Tensor:
    m = torch.tensor(matrix, dtype=points.dtype)
    return points @ m[:, :2].T + m[:, 2]


def sampled(image: Tensor, points: Tensor) -> Tensor:
    """(3, H, W) at points (h, w, 2) in pixels -> (3, h, w)."""
    height, width = image.shape[-2:]
    scale = torch.tensor([2 / width, 2 / height])
    return F.grid_sample(
        image[None], ((points + 0.5) * scale - 1)[None], mode="bicubic", padding_mode="border", align_corners=False
    )[0]


def grid(side: int, step: float = 1.0, origin: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    axis = torch.arange(side, dtype=torch.float32) * step
    y, x = torch.meshgrid(axis + origin[1], axis + origin[0], indexing="ij")
    return torch.stack([x, y], -1)


def rendered(portrait: Tensor, to_template: Matrix, motion: Motion) -> Tensor:
    """The sharp frame (3, SIDE, SIDE): twice as fine, then averaged."""
    points = grid(2 * SIDE, 0.5, (-0.25, -0.25))
    source = applied(invert(to_template), shape(applied(invert(motion.place), points), motion))
    side = 2 * SIDE
    fine = 0.85 * sampled(portrait, source).clamp(0, 1) * light(motion, (torch.arange(side) + 0.5) / side)
    return F.avg_pool2d(fine[None], 2)[0].clamp(0, 1)


def light(motion: Motion, across: Tensor) -> Tensor:
    """What the portrait's brightness is multiplied with, ``across`` the frame from 0 (left) to 1."""
    return motion.gain * (1 + motion.tilt * (across - 0.5))


@dataclass(frozen=True, eq=False)
class Sample:
    """A clip with its truth."""

    name: str
    course: list[Motion]
    sharp: Tensor
    """(T, 3, SIDE, SIDE)."""
    low: Tensor

    def followed(self, frames: Tensor, step: float = 2.0, lids: bool = True) -> Tensor:
        """(T, 3, H, W) -> the face's pixels followed through the clip (T, 3, 160, 160), in even light, on the template.

        lids: False follows the head only, so that eyes and mouth are seen to move.
        """
        points = grid(160, step, (96.0, 110.0))
        rows = []
        for frame, motion in zip(frames, self.course, strict=True):
            places = applied(motion.place, unshaped(points, motion) if lids else points)
            rows.append(sampled(frame, places) / light(motion, places[..., 0] / SIDE))
        return torch.stack(rows)

    def landmarks(self, k: int) -> np.ndarray:
        """The true five points in frame k."""
        points = torch.tensor(FFHQ_TEMPLATE, dtype=torch.float32)
        return applied(self.course[k].place, unshaped(points, self.course[k])).numpy()


def coded(frames: Tensor, crf: int) -> Tensor:
    """Frames through H.264 and back."""
    import av

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mkv"
        write_clip(path, frames, crf=crf)
        with av.open(str(path)) as container:
            back = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(back)).permute(0, 3, 1, 2).float() / 255


def write_clip(path: Path, frames: Tensor, crf: int = 16, rate: int = 25) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": "medium"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[-2], frames.shape[-1], "yuv420p"
        for number, frame in enumerate(frames):
            array = (frame.clamp(0, 1) * 255 + 0.5).byte().permute(1, 2, 0).contiguous().numpy()
            picture = av.VideoFrame.from_ndarray(array, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def spoiled(sharp: Tensor, generator: torch.Generator, noise: float, blur: float, crf: int) -> Tensor:
    """A camcorder's picture: soft, noisy anew in each frame, coded thriftily."""
    from lafr_core.filters import gaussian

    low = gaussian(sharp, blur)
    grain = torch.randn(low.shape, generator=generator)
    grain = 0.7 * grain + 0.6 * gaussian(torch.randn(low.shape, generator=generator), 1.2) * 3
    return coded((low + noise * grain).clamp(0, 1), crf)


def samples(data: Path, count: int, frames: int, only: int = -1, approach: float = 1.0) -> Iterator[Sample]:
    """``count`` clips, spread over the validation photos: in turn mildly, fairly and badly spoiled; or just one of them."""
    photos = read_split(data, "val")
    for number, photo in enumerate(photos[:: max(1, len(photos) // count)][:count]):
        if only not in (-1, number):
            continue
        generator = np.random.default_rng([417, number])
        course = motions(generator, frames, approach)
        portrait = torch.tensor(load_pixels(photo)).permute(2, 0, 1).float() / 255
        sharp = torch.stack([rendered(portrait, photo.matrix, motion) for motion in course])
        hard = number % 3
        noise, blur, crf = ((0.02, 0.7, 24), (0.04, 1.2, 28), (0.06, 1.8, 30))[hard]
        low = spoiled(sharp, torch.Generator().manual_seed(number), noise, blur, crf)
        yield Sample(photo.path.stem, course, sharp, low)


def restored(sample: Sample, models: Models, settings: RestoreSettings, steadiness: float) -> tuple[Tensor, Any, float]:
    """(frames, survey, seconds of CPU)."""
    clip, begin = BatchClip(sample.low), time.process_time()
    known = restore.survey(clip, models, settings, steadiness)
    done = [frame.frame.pixels() for frame in restore.restored_frames(clip, known, models, settings, steadiness)]
    return torch.stack(done), known, time.process_time() - begin


INNER = (slice(None), slice(None), slice(12, 148), slice(16, 144))
"""The face without the mask's soft edge, of what :meth:`Sample.followed` gives."""
EYES = (slice(None), slice(None), slice(40, 76), slice(16, 112))
"""The eyes, of INNER."""


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean()))


def flicker(face: Tensor) -> float:
    """Mean change of followed pixels (T, 3, h, w) from frame to frame, x 1000."""
    return float((face[1:] - face[:-1]).abs().mean()) * 1000


def measured(sample: Sample, frames: Tensor) -> dict[str, float]:
    """What can be said of a clip's pictures (T, 3, SIDE, SIDE)."""
    truth, face = sample.followed(sample.sharp)[INNER], sample.followed(frames)[INNER]
    places = np.stack([sample.landmarks(k).mean(0) for k in range(len(frames))])
    speed = np.linalg.norm(np.diff(places, axis=0, prepend=places[:1]), axis=1)
    fast = torch.from_numpy(np.argsort(-speed)[: max(3, len(speed) // 6)].copy())
    blink = torch.tensor([m.blink > 0.4 for m in sample.course])
    # How far the eyes follow the lids: 1 = as in the sharp clip, less = ghosts of open eyes in closed ones.
    closing = [
        eyes[blink].mean(0) - eyes[~blink].mean(0)
        for eyes in (sample.followed(clip, lids=False)[INNER][EYES] for clip in (frames, sample.sharp))
    ]
    return {
        "flicker": flicker(face),
        "flicker, sharp": flicker(truth),
        "PSNR": psnr(face, truth),
        "PSNR, fastest sixth": psnr(face[fast], truth[fast]),
        "PSNR, eyes in blinks": psnr(face[EYES][blink], truth[EYES][blink]),
        "blink depth": float((closing[0] * closing[1]).mean() / closing[1].square().mean()),
    }


def jitter(sample: Sample, known: restore.Survey) -> float:
    """Mean length of the second difference of the longest track's landmarks less the true one's, % of the eye distance."""
    track = max(known.tracks, key=lambda t: len(t.points))
    truth = np.stack([sample.landmarks(k) for k in range(track.start, track.stop)])
    error = track.points[:, :5] - truth
    eyes = np.linalg.norm(truth[:, 1] - truth[:, 0], axis=-1).mean()
    return float(np.linalg.norm(np.diff(error, 2, axis=0), axis=-1).mean() / eyes) * 100


class Descriptor:
    """dlib's face descriptor, against which no part of LAFR is trained, on chips cut where the head truly is."""

    def __init__(self) -> None:
        import dlib

        spec = importlib.util.find_spec("face_recognition_models")
        if spec is None or not spec.submodule_search_locations:
            raise ImportError("face_recognition_models is not installed")
        folder = Path(next(iter(spec.submodule_search_locations))) / "models"
        self.network = dlib.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat"))

    def __call__(self, sample: Sample, frames: Tensor) -> np.ndarray:
        """(T, 128). dlib's chip has the eyes at 0.335 and 0.665 of the width, 0.36 from the top, near enough."""
        chip = similarity([FFHQ_TEMPLATE[0], FFHQ_TEMPLATE[1]], [(50.0, 56.0), (99.0, 56.0)])
        found = []
        for frame, motion in zip(frames, sample.course, strict=True):
            crop = sampled(frame, applied(compose(motion.place, invert(chip)), grid(150)))
            pixels = (crop.clamp(0, 1) * 255 + 0.5).byte().permute(1, 2, 0).contiguous().numpy()
            found.append(np.asarray(self.network.compute_face_descriptor(pixels)))
        return np.stack(found)


SHARP = (("sharp", "identity variance"), ("sharp as a file", "flicker"), ("steady as a file", "flicker"))


def wander(vectors: np.ndarray) -> float:
    """Variance of descriptors over a track, sum over their numbers, x 1000."""
    return float(vectors.var(0).sum()) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--steadiness", type=float, default=ClipSettings().steadiness)
    parser.add_argument("--only", type=int, default=-1, metavar="K", help="only clip K of those, from 0")
    parser.add_argument("--approach", type=float, default=1.0, help="how many times as large the face becomes in a clip")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    settings, rows = RestoreSettings(), []
    models, describe = open_models(settings, device="cpu"), Descriptor()
    for sample in samples(args.data, args.clips, args.frames, args.only, args.approach):
        row: dict[str, Any] = {"clip": sample.name, "frames": args.frames}
        for name, steadiness in (("frame by frame", 0.0), ("steady", args.steadiness)):
            frames, known, seconds = restored(sample, models, settings, steadiness)
            vectors = describe(sample, frames)
            values = measured(sample, frames) | {"landmark jitter": jitter(sample, known), "identity variance": wander(vectors)}
            row[name] = values | {"CPU seconds a frame": seconds / args.frames}
        row["input"] = measured(sample, sample.low) | {"identity variance": wander(describe(sample, sample.low))}
        row["sharp"] = {"identity variance": wander(describe(sample, sample.sharp))}
        # Flicker of both as files: 8 bits, 4:2:0 and a codec's trembling brightness are in every clip that people see.
        files = {"sharp as a file": sample.sharp, "steady as a file": frames}
        row |= {name: {"flicker": measured(sample, coded(clip, ClipSettings().crf))["flicker"]} for name, clip in files.items()}
        rows.append(row)
        print(json.dumps(row), flush=True)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"\n{len(rows)} clips of {args.frames} frames, steadiness {args.steadiness}; means over clips")
    print(f"{'':24}{'input':>10}{'alone':>10}{'steady':>10}{'steady/alone':>14}")
    for name in rows[0]["steady"]:
        mean = {kind: np.mean([row[kind].get(name, np.nan) for row in rows]) for kind in ("input", "frame by frame", "steady")}
        ratio = mean["steady"] / mean["frame by frame"]
        print(f"{name:24}{mean['input']:10.3f}{mean['frame by frame']:10.3f}{mean['steady']:10.3f}{ratio:14.3f}")
    sharp, file, steady = (np.mean([row[kind][name] for row in rows]) for kind, name in SHARP)
    print(f"identity variance of the sharp clip {sharp:.2f}; flicker as files: sharp {file:.2f}, steady {steady:.2f}")


if __name__ == "__main__":
    main()
