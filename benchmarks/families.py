"""The adapters for SDXL, SD3 and FLUX.1 latents, judged with the TAESD siblings on faces they never saw.

    python benchmarks/families.py --tiny ../shared/weights --family sdxl --bf16

Cases and seeds are those of ``benchmarks/quality.py``. There is no prior for these families: the aligned latents are decoded as
they are. PSNR and SSIM gains are over the degraded face's round trip through the same autoencoder. 95 % intervals as in
``benchmarks/transfer.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quality import SEVERITIES, cases
from benchmarks.transfer import Estimate, mean, ratio
from lafr_core.faces.color import match_color
from lafr_core.images.metrics import psnr, ssim
from lafr_core.latent.adapter import Adapter, open_adapter
from lafr_core.latent.spec import FAMILIES
from lafr_core.latent.vae import open_tiny
from lafr_core.settings import RestoreSettings
from lafr_core.types import Vae

FIDELITIES = (0.0, 0.25, 0.5, 0.75, 1.0)
BARS = {"mild": 0.95, "medium": 0.70}
"""Largest latent L1 ratio at the best fidelity."""


class Sharp:
    """Latents of the sharp faces, encoded once for all severities."""

    def __init__(self, vae: Vae) -> None:
        self.vae, self.known = vae, dict[str, Tensor]()

    def __call__(self, name: str, picture: Tensor) -> Tensor:
        if name not in self.known:
            self.known[name] = self.vae.encode(picture)
        return self.known[name]


@torch.no_grad()
def figures(
    data: Path, severity: str, count: int, sharp: Sharp, adapter: Adapter, settings: RestoreSettings, pictures: int
) -> dict[str, Estimate]:
    """``ratio F`` for every fidelity F on ``count`` faces, and the decoded gains at the settings' on the first ``pictures``."""
    vae = sharp.vae
    errors: list[list[float]] = []
    quality: list[list[float]] = []
    for number, case in enumerate(cases(data, severity, count)):
        z_hq, z_lq = sharp(case.name, case.sharp), vae.encode(case.low)
        aligned = {f: adapter(z_lq, f).latents for f in (*FIDELITIES, settings.fidelity)}
        errors.append([float((z - z_hq).abs().mean()) for z in (z_lq, *(aligned[f] for f in FIDELITIES))])
        if number < pictures:
            trip, result = vae.decode(z_lq).float(), vae.decode(aligned[settings.fidelity]).float()
            result = match_color(result, case.low, settings.color)
            quality.append([float(m(p, case.sharp)) for m in (psnr, ssim) for p in (trip, result)])
    before, *after = np.asarray(errors).T
    table = {f"ratio {f:g}": ratio(column, before) for f, column in zip(FIDELITIES, after, strict=True)}
    if quality:
        q = np.asarray(quality).T
        table |= {"round trip": mean(q[0]), "psnr": mean(q[1] - q[0]), "ssim": mean(q[3] - q[2])}
    return table


def report(rows: dict[str, dict[str, Estimate]], faces: int, pictures: int) -> str:
    """A Markdown table, a line a severity."""
    lines = [
        "| severity | " + " | ".join(f"latent L1 ratio, fidelity {f:g}" for f in FIDELITIES)
        + " | PSNR of LQ's round trip | PSNR gain dB | SSIM gain |",
        "|" + "---|" * (len(FIDELITIES) + 4),
    ]  # fmt: skip
    for severity, row in rows.items():
        cells = [row[f"ratio {f:g}"].text(3) for f in FIDELITIES]
        if "psnr" in row:
            cells += [row["round trip"].text(2), row["psnr"].text(2, "+"), row["ssim"].text(4, "+")]
        lines.append(f"| {severity} | " + " | ".join(cells) + " |")
    for severity, bar in BARS.items():
        if severity in rows:
            best = min(rows[severity][f"ratio {f:g}"].value for f in FIDELITIES)
            lines.append(f"\n{severity}: {best:.3f} at the best fidelity, bar {bar:g}: {'met' if best <= bar else 'missed'}")
    return "\n".join(lines) + f"\n\nlatents of {faces} faces, pictures of {pictures} of them\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", type=Path, required=True, help="folder with the TAESD siblings' files")
    parser.add_argument("--family", choices=[name for name in FAMILIES if name != "sd"], required=True)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/faces"))
    parser.add_argument("--count", type=int, default=0, help="faces a severity; 0 = all")
    parser.add_argument("--pictures", type=int, default=12, help="of how many of them the latents are decoded as well")
    parser.add_argument("--fidelity", type=float, default=RestoreSettings().fidelity, help="of the decoded pictures")
    parser.add_argument("--bf16", action="store_true", help="encode and decode in bfloat16: twice as fast on some CPUs")
    parser.add_argument("--severity", choices=SEVERITIES, nargs="+", default=list(SEVERITIES))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)

    vae = open_tiny(args.tiny, args.family)
    vae.network.to(memory_format=torch.channels_last)  # type: ignore[attr-defined]
    adapter = open_adapter(args.adapter, latents=args.family)
    settings = RestoreSettings(fidelity=args.fidelity)
    sharp = Sharp(vae)
    with torch.autocast("cpu", torch.bfloat16) if args.bf16 else contextlib.nullcontext():
        rows = {s: figures(args.data, s, args.count, sharp, adapter, settings, args.pictures) for s in args.severity}
    faces = len(sharp.known)
    print(f"{args.family} adapter with {vae.spec.tiny}\n\n{report(rows, faces, min(args.pictures, faces))}")
    if args.json:
        figures_only = {s: {key: (e.value, e.half) for key, e in row.items()} for s, row in rows.items()}
        args.json.write_text(json.dumps({"family": args.family, "fidelity": args.fidelity, "figures": figures_only}, indent=1))


if __name__ == "__main__":
    main()
