"""How much better does the picture get? The starter pack judged on faces it never saw.

    python benchmarks/quality.py --data ../shared/data/faces [--landmarks ../shared/weights] [--json out.json] [--sheet out.png]

Every validation face is degraded with a fixed seed at three severities, restored, and compared with its original.
Rows: the degraded input, its round trip through the VAE, the adapter alone, the full pipeline, and the original's own round
trip (the ceiling). Means with 95 % intervals (normal approximation over faces).

Identity is the cosine of dlib's face descriptors after the mean descriptor of 48 training originals is taken off: dlib's
vectors all point roughly one way, so that without this strangers score far above 0. No part of LAFR is trained against it.
The landmark error is the mean distance between the five points RetinaFace-mobile0.25 finds on the picture and on the
original, as a share of the eye distance; pictures on which it finds no face count as misses. Sharpness is the gradient
energy relative to the original's round trip.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lafr_core.faces.color import match_color
from lafr_core.images.degrade import degrade
from lafr_core.images.metrics import psnr, ssim
from lafr_core.latent.adapter import open_adapter
from lafr_core.latent.prior import open_prior
from lafr_core.latent.vae import open_vae
from lafr_core.settings import RestoreSettings
from lafr_core.types import Aligner, Prior, Vae
from train.data.photos import aligned_crop, load_pixels, read_split
from train.judges.losses import edge_energy

SEVERITIES = ("mild", "medium", "severe")
VARIANTS = ("LQ input", "round trip of LQ", "adapter only", "full pipeline", "round trip of HQ")
METRICS = ("psnr", "ssim", "identity", "landmarks", "latent", "sharpness")
SEED = 20251


@dataclass(frozen=True)
class Case:
    """One degraded validation face."""

    name: str
    group: str
    """What its file tells of it: ``portrait_female``, ``portrait_male`` (AI-generated), ``house`` or ``senate`` (no labels)."""
    sharp: Tensor
    low: Tensor


def cases(data: Path, severity: str, count: int) -> Iterator[Case]:
    """The first ``count`` validation faces (0 = all, spread evenly), each degraded with a seed of its own."""
    photos = read_split(data, "val")
    step = max(1, len(photos) // count) if count else 1
    for number, photo in list(enumerate(photos))[::step][: count or None]:
        sharp = aligned_crop(load_pixels(photo), photo.matrix)
        generator = np.random.default_rng([SEED, SEVERITIES.index(severity), number])
        low, _ = degrade(sharp.permute(1, 2, 0).numpy(), generator, severity)
        group = photo.path.stem.rpartition("_")[0] if photo.path.stem.startswith("portrait") else photo.path.stem.split("_")[0]
        yield Case(photo.path.stem, group, sharp[None], torch.from_numpy(np.ascontiguousarray(low)).permute(2, 0, 1)[None])


class DlibIdentity:
    """dlib's 128-d descriptor (CC0 weights from face_recognition_models) on a chip cut where the *original's* face is."""

    def __init__(self, data: Path) -> None:
        import dlib

        # Found by its folder: the package's own __init__ imports pkg_resources, which new setuptools no longer has.
        spec = importlib.util.find_spec("face_recognition_models")
        if spec is None or not spec.submodule_search_locations:
            raise ImportError("face_recognition_models is not installed")
        folder = Path(next(iter(spec.submodule_search_locations))) / "models"
        self.dlib = dlib
        self.detector = dlib.get_frontal_face_detector()
        self.shape = dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat"))
        self.network = dlib.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat"))
        self.mean = np.zeros(128)
        photos = read_split(data, "train")
        crops = [aligned_crop(load_pixels(photo), photo.matrix)[None] for photo in photos[:: max(1, len(photos) // 48)]]
        self.mean = np.mean([self.describe(crop, self.frame(crop)) for crop in crops], axis=0)

    def frame(self, sharp: Tensor) -> Any:
        """Where dlib sees the face on the original; the FFHQ template's face box when its detector finds none."""
        pixels = to_pixels(sharp)
        found = self.detector(pixels, 0)
        box = max(found, key=lambda r: r.area()) if found else self.dlib.rectangle(110, 130, 402, 422)
        return self.shape(pixels, box)

    def describe(self, image: Tensor, frame: Any) -> np.ndarray:
        chip = self.dlib.get_face_chip(to_pixels(image), frame, size=150, padding=0.25)
        return np.asarray(self.network.compute_face_descriptor(chip))

    def __call__(self, image: Tensor, frame: Any) -> np.ndarray:
        vector = self.describe(image, frame) - self.mean
        return vector / np.linalg.norm(vector)


class Landmarker:
    """Five points by RetinaFace-mobile0.25 (never trained with LAFR)."""

    def __init__(self, folder: Path) -> None:
        from lafr_core.faces.detectors import open_detector

        self.detector = open_detector(
            "retinaface-mobile0.25", weights=folder / "retinaface_mobile0.25.pth", device=torch.device("cpu")
        )

    def __call__(self, image: Tensor) -> np.ndarray | None:
        found = self.detector(image[0], 0.3)
        return np.asarray(max(found, key=lambda f: f.size).landmarks) if found else None


def to_pixels(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray((image[0].permute(1, 2, 0).clamp(0, 1) * 255 + 0.5).to(torch.uint8).numpy())


def gradient_energy(image: Tensor) -> float:
    """Mean squared luma gradient of the face's middle 320 pixels."""
    return float(edge_energy(image[..., 96:416, 96:416]))


@torch.no_grad()
def variants(
    case: Case, vae: Vae, adapter: Aligner, prior: Prior, settings: RestoreSettings
) -> dict[str, tuple[Tensor, Tensor]]:
    """Variant -> (picture, its latents)."""
    z_lq, z_hq = vae.encode(case.low), vae.encode(case.sharp)
    z_al = adapter(z_lq, settings.fidelity).latents
    z = torch.lerp(z_al, prior(z_al), settings.detail)

    def finished(latents: Tensor) -> Tensor:
        return match_color(vae.decode(latents), case.low, settings.color)

    return {
        "LQ input": (case.low, z_lq),
        "round trip of LQ": (vae.decode(z_lq), z_lq),
        "adapter only": (finished(z_al), z_al),
        "full pipeline": (finished(z), z),
        "round trip of HQ": (vae.decode(z_hq), z_hq),
    }


def measure(
    case: Case, pictures: dict[str, tuple[Tensor, Tensor]], identity: DlibIdentity | None, landmarker: Landmarker | None
) -> dict[str, dict[str, float]]:
    """Variant -> metric -> value (NaN where it could not be measured)."""
    z_hq = pictures["round trip of HQ"][1]
    ceiling = gradient_energy(pictures["round trip of HQ"][0])
    frame = identity.frame(case.sharp) if identity else None
    known = identity(case.sharp, frame) if identity else None
    points = landmarker(case.sharp) if landmarker else None
    rows: dict[str, dict[str, float]] = {}
    for name, (image, latents) in pictures.items():
        found = landmarker(image) if landmarker and points is not None else None
        error = float("nan")
        if found is not None and points is not None:
            error = float(np.linalg.norm(found - points, axis=1).mean() / np.linalg.norm(points[0] - points[1]))
        rows[name] = {
            "psnr": float(psnr(image, case.sharp)),
            "ssim": float(ssim(image, case.sharp)),
            "identity": float(identity(image, frame) @ known) if identity else float("nan"),
            "landmarks": error,
            "latent": float((latents - z_hq).abs().mean()),
            "sharpness": gradient_energy(image) / ceiling,
        }
    return rows


def summarise(values: list[float]) -> tuple[float, float, int]:
    """Mean, half of its 95 % interval and the number of values left out because they could not be measured."""
    array = np.asarray([v for v in values if np.isfinite(v)])
    if not len(array):
        return float("nan"), float("nan"), len(values)
    half = 1.96 * array.std(ddof=1) / np.sqrt(len(array)) if len(array) > 1 else float("nan")
    return float(array.mean()), float(half), len(values) - len(array)


def table(severity: str, rows: list[dict[str, dict[str, float]]]) -> tuple[str, dict[str, dict[str, tuple[float, float, int]]]]:
    """A Markdown table and the same numbers as data."""
    data = {v: {m: summarise([row[v][m] for row in rows]) for m in METRICS} for v in VARIANTS}
    lines = [
        f"### {severity} ({len(rows)} faces)",
        "",
        "| | PSNR dB | SSIM | identity | landmark error % | latent L1 | sharpness |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant in VARIANTS:
        cells = []
        for metric, digits, unit in zip(METRICS, (2, 3, 3, 2, 3, 2), (1, 1, 1, 100, 1, 1), strict=True):
            mean, half, missing = data[variant][metric]
            text = f"{mean * unit:.{digits}f} ± {half * unit:.{digits}f}" if np.isfinite(mean) else "not available"
            cells.append(text + (f" ({missing} missed)" if metric == "landmarks" and missing and np.isfinite(mean) else ""))
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n", data


def gains(data: dict[str, dict[str, dict[str, tuple[float, float, int]]]]) -> str:
    """The differences the bars are about."""
    lines = [
        "### gains",
        "",
        "| | latent L1 ratio (adapter) | PSNR over round trip of LQ | SSIM over it | identity over LQ input "
        "| identity over round trip of LQ |",
        "|---|---|---|---|---|---|",
    ]
    for severity, rows in data.items():
        full, trip, low, aligned = (rows[v] for v in ("full pipeline", "round trip of LQ", "LQ input", "adapter only"))
        lines.append(
            f"| {severity} | {aligned['latent'][0] / trip['latent'][0]:.3f} | {full['psnr'][0] - trip['psnr'][0]:+.2f} dB "
            f"| {full['ssim'][0] - trip['ssim'][0]:+.3f} | {full['identity'][0] - low['identity'][0]:+.3f} "
            f"| {full['identity'][0] - trip['identity'][0]:+.3f} |"
        )
    return "\n".join(lines) + "\n"


def groups(faces: dict[str, list[tuple[Case, dict[str, dict[str, float]]]]]) -> str:
    """Gains of the full pipeline by group of faces, means with 95 % intervals."""
    lines = ["### by group", "", "| | group | faces | PSNR over round trip of LQ | identity over LQ input | identity |"]
    lines.append("|---|---|---|---|---|---|")
    for severity, rows in faces.items():
        for group in sorted({case.group for case, _ in rows}):
            mine = [row for case, row in rows if case.group == group]
            full = [row["full pipeline"] for row in mine]
            gain, dev, _ = summarise([f["psnr"] - row["round trip of LQ"]["psnr"] for f, row in zip(full, mine, strict=True)])
            rise, half, _ = summarise([f["identity"] - row["LQ input"]["identity"] for f, row in zip(full, mine, strict=True)])
            mean, wide, _ = summarise([f["identity"] for f in full])
            lines.append(
                f"| {severity} | {group} | {len(mine)} | {gain:+.2f} ± {dev:.2f} dB | {rise:+.3f} ± {half:.3f} "
                f"| {mean:.3f} ± {wide:.3f} |"
            )
    return "\n".join(lines) + "\n"


def sheet(pictures: list[tuple[Tensor, ...]], path: Path, crop: int, columns: int) -> None:
    """Each face's pictures side by side (input, adapter only, full pipeline, original), the middle ``crop`` pixels at 100 %."""
    edge = (512 - crop) // 2
    middle = slice(edge, edge + crop)
    strips = [np.concatenate([to_pixels(image)[middle, middle] for image in images], axis=1) for images in pictures]
    strips += [np.full_like(strips[0], 255)] * (-len(strips) % columns)
    rows = [np.concatenate(strips[i : i + columns], axis=1) for i in range(0, len(strips), columns)]
    Image.fromarray(np.concatenate(rows, axis=0)).save(path, **({"quality": 82} if path.suffix == ".jpg" else {}))


def optional(what: str, make: Callable[[], Any]) -> Any:
    """The object, or None with a printed reason: a metric that cannot run is reported as not available."""
    try:
        return make()
    except Exception as error:
        print(f"{what}: not available ({error})")
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/faces"))
    parser.add_argument(
        "--landmarks", type=Path, default=Path("../shared/weights"), help="folder with retinaface_mobile0.25.pth"
    )
    parser.add_argument("--vae", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--prior", type=Path)
    parser.add_argument("--fidelity", type=float, default=RestoreSettings().fidelity)
    parser.add_argument("--count", type=int, default=0, help="faces a severity; 0 = all")
    parser.add_argument("--severity", choices=SEVERITIES, nargs="+", default=list(SEVERITIES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--sheet-crop", type=int, default=512, help="pixels shown of the middle of each face")
    parser.add_argument("--sheet-columns", type=int, default=1)
    parser.add_argument("--sheet-group", default="", help="only faces of groups that start so; portrait = the CC0 ones")
    args = parser.parse_args()

    vae, adapter, prior = open_vae(args.vae), open_adapter(args.adapter), open_prior(args.prior)
    settings = RestoreSettings(fidelity=args.fidelity)
    identity = optional("identity", lambda: DlibIdentity(args.data))
    landmarker = optional("landmark error", lambda: Landmarker(args.landmarks))
    data, faces = {}, {}
    for severity in args.severity:
        rows, pictures = [], []
        for case in cases(args.data, severity, args.count):
            made = variants(case, vae, adapter, prior, settings)
            rows.append(measure(case, made, identity, landmarker))
            faces.setdefault(severity, []).append((case, rows[-1]))
            if args.sheet and case.group.startswith(args.sheet_group):
                pictures.append((*(made[name][0] for name in ("LQ input", "adapter only", "full pipeline")), case.sharp))
        text, data[severity] = table(severity, rows)
        print(text, flush=True)
        if args.sheet:
            file = args.sheet.with_stem(f"{args.sheet.stem}_{severity}")
            sheet(pictures, file, args.sheet_crop, args.sheet_columns)
    print(gains(data))
    print(groups(faces))
    if args.json:
        single = {severity: {case.name: row for case, row in rows} for severity, rows in faces.items()}
        args.json.write_text(json.dumps({"fidelity": args.fidelity, "severities": data, "faces": single}, indent=1))


if __name__ == "__main__":
    main()
