"""How much better does the picture get? The starter pack judged on faces it never saw.

    python -m benchmarks.quality --data ../shared/data/faces [--landmarks ../shared/weights] [--json out.json] [--sheet out.png]
    python -m benchmarks.quality --rival-prior GENERATION3.safetensors --rival-detail 1 --ages ../shared/data/faces_london

Every validation face is degraded with a fixed seed at three severities, restored, and compared with its original.
Rows: the degraded input, its round trip through the VAE, the adapter alone, the full pipeline, and the original's own round
trip (the ceiling). Means with 95 % intervals (normal approximation over faces).

Identity is the cosine of dlib's face descriptors after the mean descriptor of 48 training originals is taken off: dlib's
vectors all point roughly one way, so that without this strangers score far above 0. No part of LAFR is trained against it.
The landmark error is the mean distance between the five points RetinaFace-mobile0.25 finds on the picture and on the
original, as a share of the eye distance; pictures on which it finds no face count as misses. Sharpness is the gradient
energy relative to the original's round trip. Perceptual is the distance to the original in HED's VGG16; the distributions
are kernel distances of all results to all originals; years is how much older the result looks than its original, for faces
whose original looks under 35 (benchmarks/judges.py). A rival is another prior, behind an adapter and with a decoder of its
own where one is given, in the same run.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.judges import Age, Lite0, VggDistance, kernel_distance, labelled_ages
from lafr_core.faces.color import match_color
from lafr_core.faces.identity import open_embedder
from lafr_core.images.degrade import degrade
from lafr_core.images.metrics import psnr, ssim
from lafr_core.latent.adapter import open_adapter
from lafr_core.latent.prior import open_prior
from lafr_core.latent.vae import open_vae
from lafr_core.settings import RestoreSettings
from lafr_core.types import Aligner, Embedder, Prior, Vae
from train.data.photos import aligned_crop, load_pixels, read_split
from train.judges.losses import edge_energy

SEVERITIES = ("mild", "medium", "severe")
VARIANTS = ("LQ input", "round trip of LQ", "adapter only", "rival", "full pipeline", "round trip of HQ")
METRICS = ("psnr", "ssim", "identity", "landmarks", "latent", "sharpness", "perceptual", "years")
YOUNG = 35
"""Faces whose original looks younger than this are watched for ageing."""
SEED = 20251


@dataclass(frozen=True)
class Case:
    """One degraded validation face."""

    name: str
    groups: tuple[str, ...]
    """What is told of it (:func:`told`)."""
    sharp: Tensor
    low: Tensor


def told(photo: Path, row: dict[str, str]) -> tuple[str, ...]:
    """Groups of a picture: gender, ethnicity and age where faces.csv gives them, else what its name tells:
    ``portrait_female``, ``portrait_male`` (AI-generated), ``house`` or ``senate`` (no labels).
    """
    if "ethnicity" not in row:
        return (photo.stem.rpartition("_")[0] if photo.stem.startswith("portrait") else photo.stem.split("_")[0],)
    given = [row[key] for key in ("gender", "ethnicity") if row[key] not in ("", "NA")]
    age = row.get("age", "NA")
    return (*given, *(() if age in ("", "NA") else (f"under {YOUNG}" if float(age) < YOUNG else f"{YOUNG} and older",)))


def cases(data: Path, severity: str, count: int) -> Iterator[Case]:
    """The first ``count`` validation faces (0 = all, spread evenly), each degraded with a seed of its own."""
    photos = list(enumerate(read_split(data, "val")))
    with (data / "faces.csv").open(encoding="utf-8", newline="") as file:
        told_of = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    chosen = np.unique(np.linspace(0, len(photos) - 1, min(count or len(photos), len(photos))).round().astype(int))
    for number, photo in (photos[index] for index in chosen):
        sharp = aligned_crop(load_pixels(photo), photo.matrix)
        generator = np.random.default_rng([SEED, SEVERITIES.index(severity), number])
        low, _ = degrade(sharp.permute(1, 2, 0).numpy(), generator, severity)
        groups = told(photo.path, told_of.get(photo.path.name, {}))
        yield Case(photo.path.stem, groups, sharp[None], torch.from_numpy(np.ascontiguousarray(low)).permute(2, 0, 1)[None])


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


@dataclass(frozen=True)
class Nets:
    """What is judged: the starter's networks, and a rival prior with its share of detail and its decoder."""

    vae: Vae
    adapter: Aligner
    prior: Prior
    rival: Prior | None = None
    rival_detail: float = 1.0
    rival_vae: Vae | None = None
    """Decodes the rival's latents; None = the starter's own."""
    rival_adapter: Aligner | None = None
    """Aligns for the rival; None = the starter's own."""


@dataclass
class Judges:
    """Who judges; None = not available. ``seen`` collects features: (judge, variant or "original") -> one row a face."""

    identity: DlibIdentity | None = None
    landmarker: Landmarker | None = None
    vgg: VggDistance | None = None
    lite0: Lite0 | None = None
    embedder: Embedder | None = None
    age: Age | None = None
    seen: dict[tuple[str, str], list[np.ndarray]] = field(default_factory=dict)

    def remember(self, variant: str, picture: Tensor) -> np.ndarray | None:
        """Note the picture's features for the distributions; returns Lite0's."""
        if self.embedder is not None:
            row = self.embedder(picture.clamp(0, 1))[0].double().numpy()
            self.seen.setdefault(("embedder", variant), []).append(row * len(row) ** 0.5)
        if self.lite0 is None:
            return None
        features = self.lite0(picture)
        self.seen.setdefault(("Lite0", variant), []).append(features)
        return features


@torch.no_grad()
def variants(case: Case, nets: Nets, settings: RestoreSettings) -> dict[str, tuple[Tensor, Tensor]]:
    """Variant -> (picture, its latents)."""
    vae = nets.vae
    z_lq, z_hq = vae.encode(case.low), vae.encode(case.sharp)
    z_al = nets.adapter(z_lq, settings.fidelity).latents
    z = torch.lerp(z_al, nets.prior(z_al), settings.detail)

    def finished(latents: Tensor, decoder: Vae = vae) -> Tensor:
        return match_color(decoder.decode(latents), case.low, settings.color)

    made = {
        "LQ input": (case.low, z_lq),
        "round trip of LQ": (vae.decode(z_lq), z_lq),
        "adapter only": (finished(z_al), z_al),
    }
    if nets.rival is not None:
        z_own = z_al if nets.rival_adapter is None else nets.rival_adapter(z_lq, settings.fidelity).latents
        z_rival = torch.lerp(z_own, nets.rival(z_own), nets.rival_detail)
        made["rival"] = (finished(z_rival, nets.rival_vae or vae), z_rival)
    return made | {"full pipeline": (finished(z), z), "round trip of HQ": (vae.decode(z_hq), z_hq)}


@torch.no_grad()
def measure(case: Case, pictures: dict[str, tuple[Tensor, Tensor]], judges: Judges) -> dict[str, dict[str, float]]:
    """Variant -> metric -> value (NaN where it could not be measured)."""
    identity, landmarker = judges.identity, judges.landmarker
    nothing = float("nan")
    truth = judges.vgg.features(case.sharp) if judges.vgg is not None else None
    original = judges.remember("original", case.sharp)
    old = judges.age(original) if judges.age is not None and original is not None else nothing
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
            "perceptual": nothing,
            "years": nothing,
        }
        if name == "round trip of LQ":
            continue
        if judges.vgg is not None and truth is not None:
            rows[name]["perceptual"] = judges.vgg(judges.vgg.features(image), truth)
        features = judges.remember(name, image)
        if judges.age is not None and features is not None and old < YOUNG:
            rows[name]["years"] = judges.age(features) - old
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
    present = [v for v in VARIANTS if v in rows[0]]
    data = {v: {m: summarise([row[v][m] for row in rows]) for m in METRICS} for v in present}
    lines = [
        f"### {severity} ({len(rows)} faces)",
        "",
        "| | PSNR dB | SSIM | identity | landmark error % | latent L1 | sharpness | perceptual | years |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for variant in present:
        cells = []
        for metric, digits, unit in zip(METRICS, (2, 3, 3, 2, 3, 2, 4, 1), (1, 1, 1, 100, 1, 1, 1, 1), strict=True):
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
        for group in sorted({group for case, _ in rows for group in case.groups}):
            mine = [row for case, row in rows if group in case.groups]
            full = [row["full pipeline"] for row in mine]
            gain, dev, _ = summarise([f["psnr"] - row["round trip of LQ"]["psnr"] for f, row in zip(full, mine, strict=True)])
            rise, half, _ = summarise([f["identity"] - row["LQ input"]["identity"] for f, row in zip(full, mine, strict=True)])
            mean, wide, _ = summarise([f["identity"] for f in full])
            lines.append(
                f"| {severity} | {group} | {len(mine)} | {gain:+.2f} ± {dev:.2f} dB | {rise:+.3f} ± {half:.3f} "
                f"| {mean:.3f} ± {wide:.3f} |"
            )
    return "\n".join(lines) + "\n"


def distributions(seen: dict[tuple[str, str], list[np.ndarray]]) -> str:
    """Kernel distances (times 1000) of every variant's features to the originals'."""
    lines = ["| distribution | " + " | ".join(v for v in VARIANTS if v != "round trip of LQ") + " |"]
    lines.append("|---" * (len(VARIANTS)) + "|")
    for judge in sorted({judge for judge, _ in seen}):
        truth = np.stack(seen[judge, "original"])
        cells = []
        for variant in VARIANTS:
            rows = seen.get((judge, variant))
            if variant != "round trip of LQ":
                cells.append(
                    "-" if rows is None or len(rows) < 2 else f"{kernel_distance(np.stack(rows), truth, paired=True):.2f}"
                )
        lines.append(f"| {judge} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def sheet(pictures: list[tuple[Tensor, ...]], path: Path, crop: int, columns: int) -> None:
    """Each face's pictures side by side (input, adapter only, full pipeline, original), the middle ``crop`` pixels at 100 %."""
    edge = (512 - crop) // 2
    middle = slice(edge, edge + crop)
    strips = [np.concatenate([to_pixels(image)[middle, middle] for image in images], axis=1) for images in pictures]
    strips += [np.full_like(strips[0], 255)] * (-len(strips) % columns)
    rows = [np.concatenate(strips[i : i + columns], axis=1) for i in range(0, len(strips), columns)]
    Image.fromarray(np.concatenate(rows, axis=0)).save(path, **({"quality": 82} if path.suffix == ".jpg" else {}))


def fitted_age(lite0: Lite0, folder: Path) -> Age:
    """The age judge fitted on ``folder``'s training people; its error on validation people is printed."""
    photos = {photo.path.name: photo for split in ("train", "val") for photo in read_split(folder, split)}

    def features(split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
        rows = labelled_ages(folder, split)
        crops = [aligned_crop(load_pixels(photos[path.name]), photos[path.name].matrix)[None] for path, _, _ in rows]
        return (
            np.stack([lite0(crop) for crop in crops]),
            np.asarray([age for _, age, _ in rows]),
            [who for _, _, who in rows],
        )

    known, ages, people = features("train")
    judge = Age(known, ages, people)
    unseen, truth, _ = features("val")
    error = float(np.mean([abs(judge(row) - age) for row, age in zip(unseen, truth, strict=True)]))
    print(
        f"age judge: {len(ages)} pictures, mean error {judge.error:.1f} years left-one-person-out, {error:.1f} on validation\n"
    )
    return judge


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
    parser.add_argument("--rival-prior", type=Path, help="another prior, judged beside it")
    parser.add_argument("--rival-vae", type=Path, help="an autoencoder of the same latents that decodes the rival's")
    parser.add_argument("--rival-adapter", type=Path, help="the adapter that the rival stands behind")
    parser.add_argument("--rival-detail", type=float, default=1.0)
    parser.add_argument(
        "--ages", type=Path, default=Path("../shared/data/faces_london"), help="folder whose faces.csv gives ages"
    )
    parser.add_argument("--detail", type=float, default=RestoreSettings().detail)
    parser.add_argument("--fidelity", type=float, default=RestoreSettings().fidelity)
    parser.add_argument("--count", type=int, default=0, help="faces a severity; 0 = all")
    parser.add_argument("--severity", choices=SEVERITIES, nargs="+", default=list(SEVERITIES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--sheet-crop", type=int, default=512, help="pixels shown of the middle of each face")
    parser.add_argument("--sheet-columns", type=int, default=1)
    parser.add_argument("--sheet-group", default="", help="only faces of groups that start so; portrait = the CC0 ones")
    args = parser.parse_args()

    rival = open_prior(args.rival_prior) if args.rival_prior is not None else None
    decoder = open_vae(args.rival_vae) if args.rival_vae is not None else None
    aligner = open_adapter(args.rival_adapter) if args.rival_adapter is not None else None
    vae, adapter, prior = open_vae(args.vae), open_adapter(args.adapter), open_prior(args.prior)
    nets = Nets(vae, adapter, prior, rival, args.rival_detail, decoder, aligner)
    settings = RestoreSettings(fidelity=args.fidelity, detail=args.detail)
    judges = Judges(
        identity=optional("identity", lambda: DlibIdentity(args.data)),
        landmarker=optional("landmark error", lambda: Landmarker(args.landmarks)),
        vgg=optional("perceptual distance", VggDistance),
        lite0=optional("Lite0", Lite0),
        embedder=open_embedder(None, "cpu"),
    )
    if judges.lite0 is not None and (args.ages / "faces.csv").is_file():
        judges.age = fitted_age(judges.lite0, args.ages)
    data, faces = {}, {}
    for severity in args.severity:
        rows, pictures = [], []
        judges.seen = {}
        for case in cases(args.data, severity, args.count):
            made = variants(case, nets, settings)
            rows.append(measure(case, made, judges))
            faces.setdefault(severity, []).append((case, rows[-1]))
            if args.sheet and any(group.startswith(args.sheet_group) for group in case.groups):
                shown = ("LQ input", "rival" if rival else "adapter only", "full pipeline")
                pictures.append((*(made[name][0] for name in shown), case.sharp))
        text, data[severity] = table(severity, rows)
        print(text, flush=True)
        print(distributions(judges.seen), flush=True)
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
