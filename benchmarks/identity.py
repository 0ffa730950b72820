"""Do reference photos help, does guidance hurt, and does trust tell the truth?

    python benchmarks/identity.py sweep --people ../shared/data/faces_london --data ../shared/data/faces --json sweep.json
    python benchmarks/identity.py trust measured_val.npz --plot docs/images/trust.png

``sweep`` shrinks one photo of each validation person (or degrades it) and restores it with the person's other photo as
reference, lent and pulled, at several weights; dlib's descriptor (never guided with) says how like the person the result is.
Finished cases are kept in the JSON file: a run that was cut off goes on.

``trust`` compares the estimates with dlib's cosine for what ``python -m train trust measure --split val --fixed`` wrote.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quality import DlibIdentity
from lafr_core.faces import people, trust
from lafr_core.faces.color import match_color
from lafr_core.images.degrade import degrade
from lafr_core.images.metrics import psnr
from lafr_core.latent import guidance
from lafr_core.models import open_models
from lafr_core.pipeline import restore_pixels
from lafr_core.settings import RestoreSettings
from lafr_core.store import assets, checkpoint
from lafr_core.types import Models
from train.data.photos import aligned_crop, load_pixels, read_split

SEVERITIES = ("mild", "medium", "severe")
SAME_PERSON = 0.5
"""dlib's own threshold (distance 0.6) as a cosine with the mean taken off, read off the pairs of ``faces_london/val``."""


def poor(sharp: Tensor, level: str, seed: int) -> Tensor:
    """A crop (1, 3, 512, 512) shrunk by a factor ("12"), or degraded at a severity."""
    if level in SEVERITIES:
        generator = np.random.default_rng([20261126, SEVERITIES.index(level), seed])
        low, _ = degrade(sharp[0].permute(1, 2, 0).numpy(), generator, level)
        return torch.from_numpy(np.ascontiguousarray(low)).permute(2, 0, 1)[None]
    return people.shrunk(sharp, float(level))


@torch.no_grad()
def sweep(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    settings = RestoreSettings()
    models = open_models(settings, device="cpu")
    judge = DlibIdentity(args.data)
    photos = read_split(args.people, "val")
    pairs = list(zip(photos[::2], photos[1::2], strict=True))[: args.count or None]
    done: dict[str, Any] = json.loads(args.json.read_text()) if args.json.is_file() else {}
    for number, pair in enumerate(pairs):
        target, other = pair[:: 1 - 2 * (number % 2)]  # the neutral and the smiling photo in turn
        sharp, good = (aligned_crop(load_pixels(photo), photo.matrix)[None] for photo in (target, other))
        frame = judge.frame(sharp)
        known = judge(sharp, frame)
        for level in args.levels:
            low = poor(sharp, level, number)
            for method in args.methods:
                key = f"{target.path.stem} {level} {method}"
                if key in done:
                    continue
                out = match_color(restored(low, good, method, models, settings), low, settings.color)
                done[key] = {
                    "identity": float(judge(out, frame) @ known),
                    "psnr": float(psnr(out, sharp)),
                    "likeness": float((models.embedder(out) @ models.embedder(good).T)[0, 0]) if models.embedder else None,
                }
                args.json.write_text(json.dumps(done, indent=1))
                if args.pictures:
                    args.pictures.mkdir(parents=True, exist_ok=True)
                    for name, image in ((key, out), (f"{target.path.stem} {level} input", low)):
                        save(image, args.pictures / f"{name.replace(' ', '_')}.png")
        print(f"{target.path.stem} done", flush=True)
    print(table(done, args.levels, args.methods))


def restored(low: Tensor, good: Tensor, method: str, models: Models, settings: RestoreSettings) -> Tensor:
    """``none``, ``lend W`` (what the pipeline does with references) or ``pull W`` (identity guidance after the prior)."""
    kind, _, weight = method.partition(" ")
    assert models.embedder is not None, "expected the starter embedder"
    person = people.known("reference", good, models.embedder)
    if kind == "lend":
        return restore_pixels(low, models, settings.fidelity, settings.detail, lenders=[person], weight=float(weight))
    out = restore_pixels(low, models, settings.fidelity, settings.detail)
    if kind == "pull":
        assert models.aligner is not None and models.prior is not None, "expected the starter's adapter and prior"
        aligned = models.aligner(models.vae.encode(low), settings.fidelity).latents
        latents = torch.lerp(aligned, models.prior(aligned), settings.detail)
        out = models.vae.decode(guidance.guide(latents, models.vae.decode, models.embedder, person.embedding, float(weight)))
    return out


def table(done: dict[str, Any], levels: list[str], methods: list[str]) -> str:
    """Markdown: for each level and method the means, the change against ``none`` and the worst face."""
    lines = [
        "| input | method | faces | dlib cosine | change | worst face | PSNR dB | change | starter likeness |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for level in levels:
        names = [key.split(" ", 2)[0] for key in done if key.split(" ", 2)[1:] == [level, "none"]]
        for method in methods:
            both = [
                (done[f"{n} {level} {method}"], done[f"{n} {level} none"]) for n in names if f"{n} {level} {method}" in done
            ]
            if not both:
                continue
            ours, plain = ({k: np.asarray([row[k] for row in rows]) for k in rows[0]} for rows in zip(*both, strict=True))
            gain = ours["identity"] - plain["identity"]
            lines.append(
                f"| {level} | {method} | {len(both)} | {ours['identity'].mean():.3f} | {gain.mean():+.3f} | {gain.min():+.3f} "
                f"| {ours['psnr'].mean():.2f} | {(ours['psnr'] - plain['psnr']).mean():+.2f} | {ours['likeness'].mean():.3f} |"
            )
    return "\n".join(lines)


def judge_trust(args: argparse.Namespace) -> None:
    """Prints the bars' figures and draws the reliability diagram."""
    stored = np.load(args.measured)
    net = checkpoint.open_network(args.weights, "trust", trust.TrustNet)
    said = net.quality(torch.from_numpy(stored["quality"])).clamp(-1, 1).detach().numpy()
    true = stored["dlib"]
    sure = said >= trust.SUPPORTED
    print(
        f"{len(true)} faces; Spearman {correlation(ranks(said), ranks(true)):.3f}; mean error {np.abs(said - true).mean():.3f}"
    )
    print(f"supported: {int(sure.sum())}, of them the same person for dlib: {(true[sure] >= SAME_PERSON).mean():.3f}")
    for level in np.unique(stored["level"]):
        rows = stored["level"] == level
        print(f"level {level:g}: trust {said[rows].mean():.2f}, dlib {true[rows].mean():.2f} ({int(rows.sum())} faces)")
    if args.plot:
        diagram(said, true).save(args.plot)


def ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values)).astype(float)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def diagram(said: np.ndarray, true: np.ndarray, side: int = 440, margin: int = 48) -> Image.Image:
    """Estimate across, truth upwards: a point a face, the mean of each tenth of the scale as a square, the verdicts' bounds."""
    image = Image.new("RGB", (side + 2 * margin, side + 2 * margin), "white")
    pen = ImageDraw.Draw(image)

    def at(x: float, y: float) -> tuple[float, float]:
        return margin + x * side, margin + (1 - y) * side

    pen.rectangle((*at(0, 1), *at(1, 0)), outline="black")
    pen.line((*at(0, 0), *at(1, 1)), fill="gray")
    for tenth in range(0, 11, 2):
        pen.text((at(tenth / 10, 0)[0] - 8, margin + side + 6), f"{tenth / 10:.1f}", fill="black")
        pen.text((margin - 26, at(0, tenth / 10)[1] - 6), f"{tenth / 10:.1f}", fill="black")
    for bound in (trust.GUESSED, trust.SUPPORTED):
        pen.line((*at(bound, 0), *at(bound, 1)), fill="orange")
    for x, word in zip((0.1, trust.GUESSED + 0.01, trust.SUPPORTED + 0.01), reversed(trust.VERDICTS), strict=True):
        pen.text((at(x, 1)[0], margin - 16), word, fill="black")
    for x, y in zip(np.clip(said, 0, 1), np.clip(true, 0, 1), strict=True):
        px, py = at(x, y)
        pen.ellipse((px - 3, py - 3, px + 3, py + 3), outline="steelblue")
    for low in np.arange(0, 1, 0.1):
        rows = (said >= low) & (said < low + 0.1 + 1e-9)
        if rows.any():
            px, py = at(float(said[rows].mean()), float(true[rows].mean()))
            pen.rectangle((px - 5, py - 5, px + 5, py + 5), fill="firebrick")
    pen.text((margin + side / 2 - 60, margin + side + 26), "trust (estimated cosine)", fill="black")
    pen.text((4, 8), "dlib's cosine to the original", fill="black")
    return image


def save(image: Tensor, path: Path) -> None:
    Image.fromarray((image[0].permute(1, 2, 0).clamp(0, 1) * 255 + 0.5).to(torch.uint8).numpy()).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("sweep", help="references and guidance against dlib")
    one.add_argument("--people", type=Path, required=True, help="folder with two photos a person and faces.csv")
    one.add_argument("--data", type=Path, required=True, help="faces whose mean descriptor is taken off")
    one.add_argument("--count", type=int, default=0, help="people; 0 = all")
    one.add_argument("--levels", nargs="+", default=["6", "12", "20", "28", *SEVERITIES])
    one.add_argument("--methods", nargs="+", default=["none", "lend 0.5", "lend 1", "pull 0.5", "pull 1"])
    one.add_argument("--json", type=Path, required=True)
    one.add_argument("--pictures", type=Path)
    one.set_defaults(run=sweep)
    two = commands.add_parser("trust", help="estimates against dlib")
    two.add_argument("measured", type=Path)
    two.add_argument("--weights", type=Path, default=assets.bundled("trust"))
    two.add_argument("--plot", type=Path)
    two.set_defaults(run=judge_trust)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
