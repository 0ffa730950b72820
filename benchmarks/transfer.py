"""Do the adapter and the prior keep their gains with another autoencoder than the one they were trained with?

    python benchmarks/transfer.py --taesd ../shared/weights    # TAESD's two files
    python benchmarks/transfer.py --vae /models/sd15/vae       # AutoencoderKL or AutoencoderTiny, folder or file

Degraded validation faces (``benchmarks/quality.py``'s, same seeds) go through the starter VAE and through the other one, with
the same adapter and prior at the same settings. Gains are over the round trip of the degraded face through the same VAE. 95 %
intervals: normal approximation over faces, for ratios of means by the delta method (Cochran 1977, section 6.3), for the share
of a gain that is kept by the paired bootstrap.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quality import SEVERITIES, Case, cases
from lafr_core.faces.color import match_color
from lafr_core.images.metrics import psnr, ssim
from lafr_core.latent.adapter import open_adapter
from lafr_core.latent.prior import open_prior
from lafr_core.latent.vae import open_tiny, open_vae
from lafr_core.settings import RestoreSettings
from lafr_core.types import Aligner, Prior, Vae

BAR = 0.9
"""The share of the starter VAE's gain that another VAE of the family must keep."""
Measured = NDArray[np.float64]
"""(faces, len(COLUMNS)): one row a face."""
COLUMNS = ("before", "aligned", "psnr before", "psnr", "ssim before", "ssim")
"""Latent L1 to the sharp face's latents before and after the adapter; PSNR and SSIM of the round trip and of the result."""


@dataclass(frozen=True)
class Side:
    """One autoencoder with the nets that work on its latents."""

    name: str
    vae: Vae
    adapter: Aligner
    prior: Prior | None
    """None = the aligned latents are decoded as they are."""


@dataclass(frozen=True)
class Estimate:
    """A figure and half of its 95 % interval."""

    value: float
    half: float

    def text(self, digits: int, sign: str = "") -> str:
        return f"{self.value:{sign}.{digits}f} ± {self.half:.{digits}f}"


@torch.no_grad()
def measure(case: Case, side: Side, settings: RestoreSettings, z_hq: Tensor) -> list[float]:
    """One face's row of COLUMNS."""
    z_lq = side.vae.encode(case.low)
    z_al = side.adapter(z_lq, settings.fidelity).latents
    z = z_al if side.prior is None else torch.lerp(z_al, side.prior(z_al), settings.detail)
    trip = side.vae.decode(z_lq).float()
    result = match_color(side.vae.decode(z).float(), case.low, settings.color)
    return [
        float((z_lq - z_hq).abs().mean()), float((z_al - z_hq).abs().mean()),
        float(psnr(trip, case.sharp)), float(psnr(result, case.sharp)),
        float(ssim(trip, case.sharp)), float(ssim(result, case.sharp)),
    ]  # fmt: skip


def measure_all(
    data: Path, severities: Sequence[str], count: int, sides: Sequence[Side], settings: RestoreSettings
) -> dict[str, dict[str, Measured]]:
    """Severity -> side's name -> rows. Every side sees the same faces."""
    sharp: dict[tuple[str, str], Tensor] = {}
    rows: dict[str, dict[str, Measured]] = {}
    for severity in severities:
        lists: dict[str, list[list[float]]] = {side.name: [] for side in sides}
        for case in cases(data, severity, count):
            for side in sides:
                key = (side.name, case.name)
                if key not in sharp:
                    with torch.no_grad():
                        sharp[key] = side.vae.encode(case.sharp)
                lists[side.name].append(measure(case, side, settings, sharp[key]))
        rows[severity] = {name: np.asarray(values) for name, values in lists.items()}
    return rows


def mean(values: Measured) -> Estimate:
    """Mean of (faces,)."""
    return Estimate(float(values.mean()), 1.96 * _deviation(values))


def ratio(above: Measured, below: Measured) -> Estimate:
    """Mean of ``above`` over mean of ``below``, face by face the same."""
    value = float(above.mean() / below.mean())
    return Estimate(value, 1.96 * _deviation(above - value * below) / float(below.mean()))


def kept(other: Measured, starter: Measured, draws: int = 2000, seed: int = 0) -> Estimate | None:
    """Share of the starter's mean gain that the other VAE keeps; None unless the starter's gain is surely above 0."""
    gain = mean(starter)
    if gain.value - gain.half <= 0:
        return None
    rows = np.random.default_rng(seed).integers(len(starter), size=(draws, len(starter)))
    shares = other[rows].mean(1) / starter[rows].mean(1)
    low, high = np.quantile(shares, (0.025, 0.975))
    return Estimate(float(other.mean() / starter.mean()), float(high - low) / 2)


def _deviation(values: Measured) -> float:
    """Standard error of the mean; NaN for one face."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def gains(rows: Measured) -> dict[str, Measured]:
    """What the shares are about, a number a face: the drop of the latent error, PSNR and SSIM over the round trip."""
    column = dict(zip(COLUMNS, rows.T, strict=True))
    return {
        "latent": 1 - column["aligned"] / column["before"],
        "psnr": column["psnr"] - column["psnr before"],
        "ssim": column["ssim"] - column["ssim before"],
    }


def figures(rows: Measured) -> dict[str, Estimate]:
    """One line of the first table."""
    column, gained = dict(zip(COLUMNS, rows.T, strict=True)), gains(rows)
    return {
        "ratio": ratio(column["aligned"], column["before"]),
        "round trip": mean(column["psnr before"]),
        "psnr": mean(gained["psnr"]),
        "ssim": mean(gained["ssim"]),
    }


def report(rows: dict[str, dict[str, Measured]]) -> tuple[str, dict[str, object]]:
    """Two Markdown tables and the same numbers as data."""
    lines = [
        "| severity | VAE | faces | latent L1 ratio | PSNR of LQ's round trip | PSNR gain dB | SSIM gain |",
        "|---|---|---|---|---|---|---|",
    ]
    shares = ["| severity | VAE | latent error's drop kept | PSNR gain kept | SSIM gain kept |", "|---|---|---|---|---|"]
    data: dict[str, object] = {}
    for severity, sides in rows.items():
        (first, starter), *others = sides.items()
        for name, measured in sides.items():
            f = figures(measured)
            lines.append(
                f"| {severity} | {name} | {len(measured)} | {f['ratio'].text(3)} | {f['round trip'].text(2)} "
                f"| {f['psnr'].text(2, '+')} | {f['ssim'].text(4, '+')} |"
            )
            data[f"{severity} {name}"] = {key: (e.value, e.half) for key, e in f.items()}
        for name, measured in others:
            share = {key: kept(gain, gains(starter)[key]) for key, gain in gains(measured).items()}
            shares.append(f"| {severity} | {name} | " + " | ".join(_share(share[k]) for k in ("latent", "psnr", "ssim")) + " |")
            data[f"{severity} {name} kept of {first}"] = {k: None if e is None else (e.value, e.half) for k, e in share.items()}
    return "\n".join(lines + (["", *shares] if len(shares) > 2 else [])) + "\n", data


def _share(share: Estimate | None) -> str:
    if share is None:
        return "the starter gains nothing to keep"
    return f"{100 * share.value:.0f} ± {100 * share.half:.0f} % {'(met)' if share.value >= BAR else '(missed)'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    other = parser.add_mutually_exclusive_group(required=True)
    other.add_argument("--vae", type=Path, help="AutoencoderKL or AutoencoderTiny: a diffusers folder or a single file")
    other.add_argument("--taesd", type=Path, help="folder with taesd_encoder.safetensors and taesd_decoder.safetensors")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/faces"))
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--prior", type=Path)
    parser.add_argument("--fidelity", type=float, default=RestoreSettings().fidelity)
    parser.add_argument("--count", type=int, default=0, help="faces a severity; 0 = all")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16: twice as fast on some CPUs")
    parser.add_argument("--severity", choices=SEVERITIES, nargs="+", default=list(SEVERITIES))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    vae = open_tiny(args.taesd, "sd") if args.taesd else open_vae(args.vae)
    adapter, prior = open_adapter(args.adapter), open_prior(args.prior)
    name = args.vae.name if args.vae else vae.spec.tiny
    sides = [Side("starter", open_vae(), adapter, prior), Side(name, vae, adapter, prior)]
    with torch.autocast("cpu", torch.bfloat16) if args.bf16 else contextlib.nullcontext():
        rows = measure_all(args.data, args.severity, args.count, sides, RestoreSettings(fidelity=args.fidelity))
    text, data = report(rows)
    print(f"{name} against the starter VAE at fidelity {args.fidelity:g}, bar: {BAR:.0%} of each gain kept\n\n{text}")
    if args.json:
        args.json.write_text(json.dumps({"fidelity": args.fidelity, "figures": data}, indent=1))


if __name__ == "__main__":
    main()
