"""Turns what benchmarks.claims measured into docs/claims.md and docs/images/claims.png.

Variants that were not run are listed as such.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.claims import FIDELITIES, METRICS, SETUPS, interval, relative, time_to

if TYPE_CHECKING:
    from benchmarks.claims import Budget

Result = dict[str, list[float]]
LABELS = {
    "base": "adapter + prior (all terms, all data)",
    "no_adapter": "no adapter: the same prior on raw z_lq",
    "no_adapter_longer": "no adapter, prior trained for the steps of all three stages",
    "third": "a third of the data (the 0.3 % equivalent)",
    "tenth": "a ninth of the data (0.1 %)",
    "no_pixel": "without the pixel terms",
    "no_identity": "without the identity term",
    "no_latent": "without the latent term",
    "topk": "adapter with soft top-4 codes",
}


def load(cache: Path) -> dict[str, Result]:
    """Every result in the cache by its file's name."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(cache.glob("*.json"))}


def cell(values: list[float]) -> str:
    mean, low, high = interval(np.asarray(values))
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def row(label: str, result: Result | None) -> str:
    if result is None:
        return f"| {label} | not run | | |"
    return f"| {label} | " + " | ".join(cell(result[metric]) for metric in METRICS) + " |"


def table(rows: list[str]) -> list[str]:
    return ["| variant | PSNR (dB) | SSIM | identity (dlib, centred) |", "|---|---|---|---|", *rows, ""]


def gain(a: Result, b: Result, metric: str) -> str:
    mean, low, high = relative(a[metric], b[metric])
    return f"{mean:+.1f} % [{low:+.1f}, {high:+.1f}]"


def with_adapter(results: dict[str, Result]) -> list[str]:
    """Claim 1."""
    names = ("base", "no_adapter", "no_adapter_longer")
    lines = ["## 1. With the adapter against without", ""]
    lines += table([row(LABELS[name], results.get(f"prior_{name}")) for name in names])
    base, without = results.get("prior_base"), results.get("prior_no_adapter")
    if base is None or without is None:
        return [*lines, "Not measured: the run did not get that far.", ""]
    gains = {metric: relative(base[metric], without[metric]) for metric in METRICS}
    lines.append("Relative gain of the adapter: " + ", ".join(f"{m} {gain(base, without, m)}" for m in METRICS) + ".")
    holds = gains["identity"][0] >= 12.6 and gains["psnr"][1] > 0 and gains["ssim"][1] > 0
    verdict = "holds" if holds else "does not hold"
    lines.append(f"The paper's claim (identity +12.6 % or more, PSNR and SSIM up) **{verdict}** here.")
    return [*lines, ""]


def encoder_against_adapter(cache: Path, results: dict[str, Any]) -> list[str]:
    """Claim 2."""
    lines = ["## 2. Adapter against fine-tuning the VAE encoder", ""]
    file = cache / "adapter_base.pt"
    if not file.is_file() or "encoder" not in results:
        return [*lines, "Not measured: the run did not get that far.", ""]
    adapter, encoder = torch.load(file, weights_only=True)["curve"], results["encoder"]
    lines += ["| | error at the start | best error | CPU seconds | bytes a training step |", "|---|---|---|---|---|"]
    memory = results.get("memory", {})
    for name, curve in (("adapter", adapter), ("encoder", encoder)):
        best = min(value for _, value in curve)
        held = f"{memory[name] / 2**20:.0f} MiB" if name in memory else "not measured"
        lines.append(f"| {name} | {curve[0][1]:.4f} | {best:.4f} | {curve[-1][0]:.1f} | {held} |")
    goal = max(min(value for _, value in curve) for curve in (adapter, encoder))
    times = [time_to(curve, goal) for curve in (adapter, encoder)]
    assert times[0] is not None and times[1] is not None
    share = 100 * times[0] / max(times[1], 1e-9)
    took = f"adapter {times[0]:.1f} s, encoder {times[1]:.1f} s: {share:.0f} %."
    lines += ["", f"To reach an error of {goal:.4f}, which both reach: {took}"]
    lines.append(f"The claim (30 % of the time or less) **{'holds' if share <= 30 else 'does not hold'}** here.")
    lines.append("The error is the mean L1 between aligned and clean latents of the validation faces. One seed: no interval.")
    return [*lines, ""]


def data_and_levels(results: dict[str, Result]) -> list[str]:
    """Claims 3 and 4."""
    lines = ["## 3. How quality grows with the data", "", "All 630 faces are 0.9 % of FFHQ; more (2.7 %) are not here.", ""]
    lines += table([row(LABELS[name], results.get(f"prior_{name}")) for name in ("base", "third", "tenth")])
    lines += ["## 4. Levels of the loss, matching and fidelity", ""]
    lines += ["The structure level needs facexlib's weights, which are not here.", ""]
    variants = ("base", "no_latent", "no_pixel", "no_identity", "topk")
    lines += table([row(LABELS[name], results.get(f"prior_{name}")) for name in variants])
    lines += table([row(f"fidelity {value}", results.get(f"fidelity_{value}")) for value in FIDELITIES])
    return lines


def plot(results: dict[str, Result], path: Path) -> None:
    """All variants side by side, 95 % intervals."""
    from matplotlib.figure import Figure

    names = [s.name for s in SETUPS if f"prior_{s.name}" in results]
    figure = Figure(figsize=(11, 1.2 + 0.4 * len(names)), layout="constrained")
    for number, metric in enumerate(METRICS):
        axes = figure.add_subplot(1, len(METRICS), number + 1)
        for place, name in enumerate(reversed(names)):
            mean, low, high = interval(np.asarray(results[f"prior_{name}"][metric]))
            axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", capsize=3, color="C0")
        labels = [LABELS[name].split(":")[0] for name in reversed(names)]
        axes.set_yticks(range(len(names)), labels if number == 0 else [""] * len(names))
        axes.set_title(metric)
    figure.savefig(path, dpi=100)


def write_report(cache: Path, out: Path, budget: Budget, vae: str) -> None:
    """``out/claims.md`` and ``out/images/claims.png`` from whatever the cache holds."""
    results = load(cache)
    (out / "images").mkdir(parents=True, exist_ok=True)
    done = [s.name for s in SETUPS if f"prior_{s.name}" in results]
    lines = [
        "# The paper's claims, on 630 real FFHQ faces at 256 pixels",
        "",
        "Written by `python -m benchmarks.claims`. Small networks and a very small budget on one CPU thread: "
        f"codebook {budget.codebook}, adapter {budget.adapter}, prior {budget.prior} steps of {budget.batch} faces, "
        f"{budget.validation} validation faces, VAE {vae}. Brackets are 95 % bootstrap intervals over faces; "
        "all variants see the same faces and degradations.",
        "Identity: cosine of dlib descriptors less their mean (0 = strangers), a network nothing was trained against.",
        "",
        *with_adapter(results),
        *encoder_against_adapter(cache, results),
        *data_and_levels(results),
    ]
    if done:
        plot(results, out / "images" / "claims.png")
        lines += ["![All variants](images/claims.png)", ""]
    (out / "claims.md").write_text("\n".join(lines), encoding="utf-8")
