"""Do reference photos help, does guidance hurt, and does trust tell the truth?

    python benchmarks/identity.py sweep --people ../shared/data/faces_london --data ../shared/data/faces --json sweep.json
    python benchmarks/identity.py trust measured_val.npz --plot docs/images/trust.png
    python benchmarks/identity.py faceless --data ../shared/data/faces --others FOLDER --sheet passed.png
    python benchmarks/identity.py confidence --data ../shared/data/faces --picture docs/images/confidence.png

``sweep`` shrinks one photo of each validation person (or degrades it) and restores it with the person's other photo as
reference, lent and pulled, at several weights; dlib's descriptor (never guided with) says how like the person the result is.
Finished cases are kept in the JSON file: a run that was cut off goes on.

``trust`` compares the estimates with dlib's cosine for what ``python -m train trust measure --split val --fixed`` wrote.
``faceless`` cuts boxes without a face and says what trust calls them. ``confidence`` holds the adapter's map against the error
that its latents really have.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quality import DlibIdentity, cases
from lafr_core.faces import people, trust
from lafr_core.faces.color import match_color
from lafr_core.faces.crop import warp
from lafr_core.geometry import CROP_SIZE, FFHQ_TEMPLATE, as_matrix
from lafr_core.images.degrade import degrade
from lafr_core.images.metrics import psnr
from lafr_core.images.photos import read_rgb
from lafr_core.latent import guidance
from lafr_core.latent.adapter import Adapter
from lafr_core.models import open_models
from lafr_core.pipeline import Chain, restore_pixels
from lafr_core.settings import RestoreSettings
from lafr_core.store import assets, checkpoint
from lafr_core.types import Models
from train.data.drawn import draw_hand
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
            todo = [method for method in args.methods if f"{target.path.stem} {level} {method}" not in done]
            for method, result in restored(low, good, todo, models, settings):
                key = f"{target.path.stem} {level} {method}"
                out = match_color(result, low, settings.color)
                done[key] = {
                    "identity": float(judge(out, frame) @ known),
                    "psnr": float(psnr(out, sharp)),
                    "likeness": float((models.embedder(out) @ models.embedder(good).T)[0, 0]) if models.embedder else None,
                    "eyes": abs(unevenness(out) - unevenness(sharp)),
                }
                args.json.write_text(json.dumps(done, indent=1))
                if args.pictures:
                    args.pictures.mkdir(parents=True, exist_ok=True)
                    for name, image in ((key, out), (f"{target.path.stem} {level} input", low)):
                        save(image, args.pictures / f"{name.replace(' ', '_')}.png")
        print(f"{target.path.stem} done", flush=True)
    print(table(done, args.levels, args.methods))


def restored(
    low: Tensor, good: Tensor, methods: list[str], models: Models, settings: RestoreSettings
) -> Iterator[tuple[str, Tensor]]:
    """``none``, ``lend W`` (what the pipeline does with references) or ``pull W`` (identity guidance after the prior)."""
    if not methods:
        return
    assert models.embedder is not None, "expected the starter embedder"
    decode, person = models.vae.decode, people.known("reference", good, models.embedder)
    chain = Chain(models, settings.fidelity, settings.detail)
    aligned = chain.align(low)
    latents, lent = chain.finish(aligned), None
    for method in methods:
        kind, _, weight = method.partition(" ")
        out = latents
        if kind == "lend":
            lent = chain.lent(aligned, low, person) if lent is None else lent
            out = chain.help(latents, lent, person, float(weight))
        elif kind == "pull":
            out = guidance.guide(latents, decode, models.embedder, person.embedding, float(weight))
        yield method, decode(out)


def unevenness(face: Tensor) -> float:
    """Log ratio of the left and the right eye's edges in a crop (1, 3, 512, 512): 0 where both are as sharp."""
    luma = trust.luma(face)[0, 0]
    edges = []
    for x, y in FFHQ_TEMPLATE[:2]:
        eye = luma[round(y) - 30 : round(y) + 30, round(x) - 48 : round(x) + 48]
        edges.append(float(eye.diff(dim=0).abs().mean() + eye.diff(dim=1).abs().mean()))
    return float(np.log(edges[0] / edges[1]))


def table(done: dict[str, Any], levels: list[str], methods: list[str]) -> str:
    """Markdown: for each level and method the means, the change against ``none`` and the worst face."""
    lines = [
        "| input | method | faces | dlib | change | worst face | PSNR dB | change | starter likeness | eyes apart | worst |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
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
                f"| {ours['psnr'].mean():.2f} | {(ours['psnr'] - plain['psnr']).mean():+.2f} | {ours['likeness'].mean():.3f} "
                f"| {ours['eyes'].mean():.2f} | {ours['eyes'].max():.2f} |"
            )
    return "\n".join(lines)


def judge_trust(args: argparse.Namespace) -> None:
    """Prints the bars' figures, of the whole estimate and of its quality alone, and draws the reliability diagram."""
    stored = np.load(args.measured)
    net = checkpoint.open_network(args.weights, "trust", trust.Polynomial)
    quality = trust.supported(net, torch.from_numpy(stored["quality"])).detach()
    whole = trust.combined(quality, torch.from_numpy(stored["sure"])).numpy()
    true = stored["dlib"]
    for name, said in (("whole estimate", whole), ("quality alone", quality.clamp(-1, 1).numpy())):
        high = said >= trust.SUPPORTED
        print(
            f"{name}: {len(true)} faces; Spearman {rank_correlation(said, true):.3f}; "
            f"mean error {np.abs(said - true).mean():.3f}; supported {int(high.sum())}, "
            f"of them the same person for dlib: {(true[high] >= SAME_PERSON).mean():.3f}"
        )
    sure = stored["sure"]
    print(f"faces that lose trust for want of a face: {(sure < trust.SURE).sum()}, half of it: {(sure < trust.SURE / 2).sum()}")
    for level in np.unique(stored["level"]):
        rows = stored["level"] == level
        print(f"level {level:g}: trust {whole[rows].mean():.2f}, dlib {true[rows].mean():.2f} ({int(rows.sum())} faces)")
    if args.plot:
        diagram(whole, true).save(args.plot)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, ties ordered as they come."""
    return correlation(ranks(a), ranks(b))


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


# --- boxes without a face --------------------------------------------------------------------------------------------

OTHERS = ("coffee", "rocket", "motorcycle_left", "retina", "clock_motion", "logo", "microaneurysms", "brick")
"""scikit-image's pictures that boxes are cut from; all but the last were never seen in training."""
UNSEEN_HANDS = 1 << 31
"""Numbers from which drawn hands were never seen in training."""


def square(image: Tensor, middle: np.ndarray, side: float, angle: float) -> Tensor:
    """The crop (3, 512, 512) of a photo (3, H, W) that a box of ``side`` pixels at ``middle`` (x, y), turned, gives."""
    k, centre = CROP_SIZE / side, (CROP_SIZE - 1) / 2
    a, b = k * np.cos(angle), k * np.sin(angle)
    rows = [[a, -b, centre - a * middle[0] + b * middle[1]], [b, a, centre - b * middle[0] - a * middle[1]]]
    return warp(image, as_matrix(np.asarray(rows)), CROP_SIZE)


def no_face(pixels: np.ndarray, face: np.ndarray, generator: np.random.Generator) -> Tensor:
    """A 512 crop of the photo (H, W, 3) that a careless box would give: a cheek, a neck, clothes, background, at any size."""
    height, width = pixels.shape[:2]
    extent = float(np.linalg.norm(face[0] - face[1])) * 4
    while True:
        side = extent * float(np.exp(generator.uniform(np.log(0.08), np.log(0.8))))
        middle = generator.uniform((0, 0), (width, height))
        # Far from the face, or so small that it holds a piece of skin only.
        if np.linalg.norm(middle - face.mean(0)) > (extent + side) / 2.6 or side < extent * 0.16:
            return square(as_image(pixels), middle, side, float(generator.uniform(-0.5, 0.5)))


def anywhere(pixels: np.ndarray, generator: np.random.Generator) -> Tensor:
    """A square box of a fifth to all of a photo (H, W, 3) without faces."""
    height, width = pixels.shape[:2]
    side = min(height, width) * float(generator.uniform(0.2, 1.0))
    middle = generator.uniform((side / 2, side / 2), (width - side / 2 + 1e-6, height - side / 2 + 1e-6))
    return square(as_image(pixels), middle, side, float(generator.uniform(-0.5, 0.5)))


def as_image(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def boxes_without_faces(args: argparse.Namespace) -> Iterator[tuple[str, str, Tensor]]:
    """Kind, name and crop (3, 512, 512) of every box, each shrunk by up to twelve."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    sources: list[tuple[str, str, Callable[[np.random.Generator], Tensor]]] = []
    for photo in read_split(args.data, "val"):
        cut = lambda g, p=photo: no_face(load_pixels(p), np.asarray(p.landmarks), g)
        sources.append(("beside faces of faces/val", photo.path.stem, cut))
    for name in OTHERS:
        pixels = np.asarray(read_rgb(next(folder.glob(f"{name}.*"))))
        sources += [("scikit-image", f"{name} {i}", lambda g, p=pixels: anywhere(p, g)) for i in range(4)]
    for number in range(args.hands):
        hand = lambda g, n=number: torch.from_numpy(draw_hand(UNSEEN_HANDS + n, CROP_SIZE)).permute(2, 0, 1)
        sources.append(("drawn hands", str(number), hand))
    for patch, pixels in enumerate(np.load(folder / "lfw_subset.npy")[100:]):
        gray = torch.from_numpy(pixels).float()[None].expand(3, -1, -1)
        sources.append(("LFW's patches without a face", str(patch), lambda g, p=gray: enlarged(p)))
    for path in sorted(args.others.glob("*"))[: args.count] if args.others else ():
        sources.append((args.others.name, path.name, lambda g, p=path: anywhere(np.asarray(read_rgb(p)), g)))
    for number, (kind, name, cut) in enumerate(sources):
        g = np.random.default_rng([20261128, number])
        yield kind, name, people.shrunk(cut(g)[None], float(g.uniform(1, 12)))[0]


def enlarged(picture: Tensor) -> Tensor:
    return F.interpolate(picture[None], size=(CROP_SIZE, CROP_SIZE), mode="bicubic").clamp(0, 1)[0]


@torch.no_grad()
def faceless(args: argparse.Namespace) -> None:
    """How many boxes of each kind the whole estimate calls what; only those that might pass are restored for it."""
    torch.set_num_threads(1)
    settings, models = RestoreSettings(), open_models(device="cpu")
    assert models.embedder is not None, "expected the starter embedder"
    counts: dict[str, Counter[str]] = {}
    passed: list[Tensor] = []
    for kind, name, crop in boxes_without_faces(args):
        value = float(trust.combined(torch.ones(1), trust.sure(crop[None])))
        if value >= trust.GUESSED:
            out = match_color(
                restore_pixels(crop[None], models, settings.fidelity, settings.detail), crop[None], settings.color
            )
            (value,) = trust.estimate(crop[None], out, models.embedder) or [value]
        word = trust.verdict(value)
        counts.setdefault(kind, Counter())[word] += 1
        if word != trust.VERDICTS[-1]:
            print(f"{kind}, {name}: {value:.2f}, {word}", flush=True)
            passed.append(crop)
    total = sum(counts.values(), Counter())
    print("| boxes | number | " + " | ".join(reversed(trust.VERDICTS)) + " |\n|---|---|---|---|---|")
    for kind, found in [*counts.items(), ("all", total)]:
        print(f"| {kind} | {sum(found.values())} | " + " | ".join(str(found[word]) for word in reversed(trust.VERDICTS)) + " |")
    import skimage

    faces = np.load(Path(skimage.__file__).parent / "data" / "lfw_subset.npy")[:100]
    crops = torch.stack([enlarged(torch.from_numpy(face).float()[None].expand(3, -1, -1)) for face in faces])
    print(f"LFW's 100 faces of 25 pixels: {int((trust.sure(crops) >= 0.5).sum())} are taken for faces (they fill their square)")
    if args.sheet and passed:
        save(F.interpolate(torch.cat(passed, dim=-1)[None], scale_factor=0.25, mode="area"), args.sheet)


# --- the confidence map ----------------------------------------------------------------------------------------------


@torch.no_grad()
def confidence(args: argparse.Namespace) -> None:
    """Rank correlation of doubt and real error, cell by cell, for the learned map and for the distance to the codes."""
    torch.set_num_threads(1)
    models = open_models(device="cpu")
    adapter = models.aligner
    assert isinstance(adapter, Adapter) and adapter.judge is not None, "expected the starter adapter and its confidence file"
    bare = Adapter(adapter.network, adapter.spec)
    maps: dict[str, dict[str, list[np.ndarray]]] = {}
    shown: list[Tensor] = []
    for severity in SEVERITIES:
        for case in cases(args.data, severity, args.count):
            sharp, poor = models.vae.encode(case.sharp), models.vae.encode(case.low)
            aligned = adapter(poor, args.fidelity)
            error = (aligned.latents - sharp).abs().mean(1)
            row = {"error": error, "learned": aligned.confidence[:, 0], "codes": bare(poor, args.fidelity).confidence[:, 0]}
            for name, values in row.items():
                maps.setdefault(severity, {}).setdefault(name, []).append(values.numpy().ravel())
            if len(maps[severity]["error"]) <= args.shown:
                truth = (1 - error / adapter.judge.spread).clamp(0, 1)
                grays = [as_picture(values) for values in (row["codes"], row["learned"], truth)]
                shown.append(torch.cat([case.low, models.vae.decode(aligned.latents), *grays], dim=-1))
    unit = float(adapter.judge.spread)
    print("| input | faces | learned: all cells | within a face | mean said | mean true | codes: all cells | within a face |")
    print("|---|---|---|---|---|---|---|---|")
    everything = {name: [v for row in maps.values() for v in row[name]] for name in ("error", "learned", "codes")}
    for severity, row in [*maps.items(), ("all", everything)]:
        truth = [np.clip(1 - e / unit, 0, 1) for e in row["error"]]
        cells = []
        for name in ("learned", "codes"):
            cells += [rank_correlation(np.concatenate(row[name]), -np.concatenate(row["error"]))]
            cells += [float(np.mean([rank_correlation(a, -e) for a, e in zip(row[name], row["error"], strict=True)]))]
        said, true = np.concatenate(row["learned"]).mean(), np.concatenate(truth).mean()
        columns = (cells[0], cells[1], said, true, cells[2], cells[3])
        print(f"| {severity} | {len(truth)} | " + " | ".join(f"{value:.2f}" for value in columns) + " |")
    said, true = (
        np.concatenate(v) for v in (everything["learned"], [np.clip(1 - e / unit, 0, 1) for e in everything["error"]])
    )
    for low in np.arange(0, 1, 0.1):
        rows = (said >= low) & (said < low + 0.1 + 1e-9)
        if rows.sum() >= 100:
            print(f"confidence {low:.1f} to {low + 0.1:.1f}: true {true[rows].mean():.2f} ({rows.mean():.1%} of the cells)")
    if args.picture:
        save(F.interpolate(torch.cat(shown, dim=-2), scale_factor=0.5, mode="area"), args.picture)


def as_picture(values: Tensor) -> Tensor:
    """(1, h, w) in [0, 1] -> (1, 3, 512, 512) gray."""
    return F.interpolate(values[None], size=(CROP_SIZE, CROP_SIZE), mode="nearest").expand(-1, 3, -1, -1)


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
    one.add_argument("--methods", nargs="+", default=["none", "lend 0.25", "lend 0.5", "lend 0.75", "lend 1"])
    one.add_argument("--json", type=Path, required=True)
    one.add_argument("--pictures", type=Path)
    one.set_defaults(run=sweep)
    two = commands.add_parser("trust", help="estimates against dlib")
    two.add_argument("measured", type=Path)
    two.add_argument("--weights", type=Path, default=assets.bundled("trust"))
    two.add_argument("--plot", type=Path)
    two.set_defaults(run=judge_trust)
    three = commands.add_parser("faceless", help="what trust calls boxes without a face")
    three.add_argument("--data", type=Path, required=True, help="folder with faces.csv")
    three.add_argument("--others", type=Path, help="folder of pictures without faces")
    three.add_argument("--count", type=int, default=300, help="of them at most")
    three.add_argument("--hands", type=int, default=40)
    three.add_argument("--sheet", type=Path, help="picture of the boxes that were not called a guess")
    three.set_defaults(run=faceless)
    four = commands.add_parser("confidence", help="the adapter's map against the real error")
    four.add_argument("--data", type=Path, required=True, help="folder with faces.csv")
    four.add_argument("--count", type=int, default=24, help="faces a severity; 0 = all")
    four.add_argument("--shown", type=int, default=1, help="faces a severity in the picture")
    four.add_argument("--fidelity", type=float, default=RestoreSettings().fidelity)
    four.add_argument("--picture", type=Path)
    four.set_defaults(run=confidence)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
