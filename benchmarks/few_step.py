"""How much denoising does a plain checkpoint, without our LoRA, do good? Few-step restoration at several denoise strengths.

    python -m benchmarks.few_step --unet runs/diffusion/unet --data ../shared/data/faces [--json out.json] [--sheet out.png]

Validation faces are degraded and aligned as benchmarks.quality does it, then noised to ``denoise`` of the schedule and
denoised in ``--steps`` deterministic steps by the UNet (a diffusers folder or one SD file), as `restore --mode few-step` does.
The colours are the photo's. Columns are benchmarks.quality's; denoise 0 is the adapter alone. Means over faces, beside the
paired difference of the identity to denoise 0 with its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.judges import VggDistance
from benchmarks.quality import (
    METRICS,
    SEVERITIES,
    Case,
    DlibIdentity,
    Judges,
    Landmarker,
    cases,
    measure,
    optional,
    sheet,
    summarise,
)
from lafr_core.faces.color import match_color
from lafr_core.latent.adapter import open_adapter
from lafr_core.latent.sd_prior import open_sd_finisher
from lafr_core.latent.vae import open_vae
from lafr_core.settings import RestoreSettings
from lafr_core.types import Aligner, Prior, Vae

SHOWN = tuple(name for name in METRICS if name not in ("latent", "years"))
Rows = dict[str, dict[str, float]]


@torch.no_grad()
def finished(case: Case, vae: Vae, adapter: Aligner, priors: dict[str, Prior], settings: RestoreSettings) -> dict[str, Tensor]:
    """Restored pictures (1, 3, 512, 512) by denoise, "0" first."""
    aligned = adapter(vae.encode(case.low), settings.fidelity).latents
    latents = {"0": aligned} | {name: prior(aligned) for name, prior in priors.items()}
    return {name: match_color(vae.decode(z), case.low, settings.color) for name, z in latents.items()}


def table(severity: str, rows: Sequence[Rows]) -> str:
    """Markdown: a line for each denoise."""
    columns = (f"{severity}, {len(rows)} faces: denoise", "PSNR dB", "SSIM", "identity", "against 0", "landmark error")
    lines = ["| " + " | ".join((*columns, "sharpness", "perceptual")) + " |", "|---|---|---|---|---|---|---|---|"]
    for name in rows[0]:
        mean = {metric: summarise([row[name][metric] for row in rows])[0] for metric in SHOWN}
        gain, half, _ = summarise([row[name]["identity"] - row["0"]["identity"] for row in rows])
        lines.append(
            f"| {name} | {mean['psnr']:.2f} | {mean['ssim']:.3f} | {mean['identity']:.3f} | {gain:+.3f} ± {half:.3f} "
            f"| {100 * mean['landmarks']:.1f} % | {mean['sharpness']:.2f} | {mean['perceptual']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unet", type=Path, required=True, help="a diffusers folder or one SD 1.x/2.x file")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/faces"))
    parser.add_argument("--landmarks", type=Path, default=Path("../shared/weights"), help="folder with RetinaFace's file")
    parser.add_argument("--vae", type=Path, help="the autoencoder; the starter's by default")
    parser.add_argument("--denoise", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.3, 0.4, 0.5])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--count", type=int, default=24, help="faces a severity; 0 = all")
    parser.add_argument("--severity", choices=SEVERITIES, nargs="+", default=["medium", "severe"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path, help="PNG: input, every denoise, original; CC0 portraits only")
    args = parser.parse_args()

    settings = RestoreSettings()
    vae, adapter = open_vae(args.vae), open_adapter()
    priors: dict[str, Prior] = {
        f"{value:g}": open_sd_finisher(args.unet, mode="few-step", steps=args.steps, denoise=value) for value in args.denoise
    }
    judges = Judges(
        identity=optional("identity", lambda: DlibIdentity(args.data)),
        landmarker=optional("landmark error", lambda: Landmarker(args.landmarks)),
        vgg=optional("perceptual distance", VggDistance),
    )
    found: dict[str, list[Rows]] = {}
    for severity in args.severity:
        pictures: list[tuple[Tensor, ...]] = []
        for case in cases(args.data, severity, args.count):
            made = finished(case, vae, adapter, priors, settings)
            with torch.no_grad():
                ceiling = vae.encode(case.sharp)
                known = {"round trip of HQ": (vae.decode(ceiling), ceiling)}
            judged = measure(case, known | {name: (image, ceiling) for name, image in made.items()}, judges)
            found.setdefault(severity, []).append({name: {m: judged[name][m] for m in SHOWN} for name in made})
            if args.sheet and any(group.startswith("portrait") for group in case.groups):
                pictures.append((case.low, *made.values(), case.sharp))
        print(table(severity, found[severity]), flush=True)
        if args.sheet:
            sheet(pictures, args.sheet.with_stem(f"{args.sheet.stem}_{severity}"), 512, 1)
    if args.json:
        args.json.write_text(json.dumps({"steps": args.steps, "severities": found}, indent=1))


if __name__ == "__main__":
    main()
