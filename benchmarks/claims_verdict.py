"""What benchmarks.claims has found: gains with intervals, curves flat or not, verdicts only where both sides were tested."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.claims_judge import METRICS
from benchmarks.claims_rival import ARMS, TRAINED
from lafr_core.store.atomic import atomic

Results = Mapping[str, Any]
ERRORS = (0.40, 0.38, 0.36, 0.34, 0.32)
"""Claim 2: seconds are compared where these mean L1 errors are first reached."""
FLAT = 0.03
"""Decibels: a curve is called flat when the best of its last quarter is no more above the best before it."""
DEFAULT = "0.75"
PAPER = 12.6
COMPARED = (
    ("1. Adapter and LoRA against the LoRA alone", "faces", "raw"),
    ("3a. All faces against a third of them", "faces", "faces_third"),
    ("3b. All faces against a ninth of them", "faces", "faces_ninth"),
    ("3c. All degraded views against a quarter of them", "faces", "faces_fewer_views"),
)


def gain(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], draws: int = 4000) -> tuple[float, float, float]:
    """Gain in per cent of the mean over seeds and faces, with its 95 % bootstrap interval: seeds drawn, then faces, paired."""
    a, b = np.asarray(ours), np.asarray(theirs)
    g = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        seeds, faces = g.integers(0, len(a), len(a)), g.integers(0, a.shape[1], a.shape[1])
        found.append(100 * (a[seeds][:, faces].mean() / b[seeds][:, faces].mean() - 1))
    low, high = np.percentile(found, [2.5, 97.5])
    return float(100 * (a.mean() / b.mean() - 1)), float(low), float(high)


def first(curve: Sequence[Sequence[float]], error: float) -> float:
    """Steps until the curve first reaches ``error``; infinite where it never does."""
    return next((steps for steps, value in curve if value <= error), math.inf)


def risen(curve: Sequence[Sequence[float]]) -> float:
    """How much better the best of a curve's last quarter is than the best before it; infinite for too short a one."""
    cut = len(curve) - len(curve) // 4
    if len(curve) < 4:
        return math.inf
    return max(value for _, value in curve[cut:]) - max(value for _, value in curve[:cut])


def write(out: Path, seeds: Sequence[int], results: Results) -> None:
    """``claims.md`` and, where there are curves and matplotlib, ``claims.png`` in ``out``."""
    with atomic(out / "claims.md") as part:
        Path(part).write_text(report(seeds, results), encoding="utf-8")
    curves(results, out / "claims.png")


def report(seeds: Sequence[int], results: Results) -> str:
    """Markdown of everything that is there."""
    lines = ["# The paper's claims", "", "Written by `python -m benchmarks.claims`.", ""]
    lines += arms_table(seeds, results)
    for title, ours, theirs in COMPARED:
        lines += [f"## {title}", "", *compared(seeds, results, ours, theirs), ""]
    return "\n".join([*lines, "## 2. Seconds to an error, adapter against encoder", "", *race(seeds, results), ""])


def arms_table(seeds: Sequence[int], results: Results) -> list[str]:
    """Every arm that was scored: means over seeds and faces, and whether its curve was flat."""
    rows = []
    for name in ("raw", "faces", "faces_third", "faces_ninth", "faces_fewer_views"):
        there = [s for s in seeds if f"scored_{name}_{s}" in results]
        found = [results[f"scored_{name}_{s}"] for s in there]
        for kind in found[0] if found else ():
            cells = []
            for metric in METRICS:
                values = [np.mean(f[kind][metric]) for f in found if f[kind][metric]]
                cells.append(f"{np.mean(values):.3f}" if values else "-")
            learned = curve_words([results[f"{name}_{s}"]["curve"] for s in there]) if kind == DEFAULT else ""
            rows.append(f"| {name}: {_word(kind)} | {len(there)} | " + " | ".join(cells) + f" | {learned} |")
    if not rows:
        return []
    return [
        "| arm | seeds | PSNR | SSIM | identity | LoRA: steps, gain of the last quarter |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _word(kind: str) -> str:
    return {"input": "the input, through the autoencoder", "adapter": "adapter alone"}.get(kind, f"fidelity {kind}")


def curve_words(curves: Sequence[Sequence[Sequence[float]]]) -> str:
    """Steps of the runs and how flat they ended."""
    ends = ", ".join(f"{curve[-1][0]:.0f}" if curve else "0" for curve in curves)
    rises = [risen(curve) for curve in curves]
    words = ", ".join("-" if math.isinf(r) else f"{r:+.3f}" for r in rises)
    return f"{ends}; {words} dB: {'flat' if max(rises, default=math.inf) < FLAT else 'not flat'}"


def compared(seeds: Sequence[int], results: Results, ours: str, theirs: str) -> list[str]:
    """One comparison of claims 1 and 3: gains in per cent with intervals, at every fidelity of both; raw latents have none."""
    there = [s for s in seeds if f"scored_{ours}_{s}" in results and f"scored_{theirs}_{s}" in results]
    if len(there) < len(seeds):
        return [f"**Not tested**: {len(there)} of {len(seeds)} seeds are done."]
    lines, usual = [], {}
    for kind in results[f"scored_{ours}_{there[0]}"]:
        rival = DEFAULT if theirs == "raw" else kind
        if kind == "adapter" or rival not in results[f"scored_{theirs}_{there[0]}"]:
            continue
        for metric in METRICS:
            a, b = ([results[f"scored_{n}_{s}"][k][metric] for s in there] for n, k in ((ours, kind), (theirs, rival)))
            if all(a) and all(b):
                mean, low, high = gain(a, b)
                lines.append(f"- fidelity {kind}, {metric}: {mean:+.1f} % [{low:+.1f}, {high:+.1f}]")
                if kind == DEFAULT:
                    usual[metric] = (mean, low, high)
    flat = all(risen(results[f"{n}_{s}"]["curve"]) < FLAT for n in (ours, theirs) for s in there)
    return [*lines, "", verdict(usual, theirs, flat)]


def verdict(found: Mapping[str, tuple[float, float, float]], theirs: str, flat: bool) -> str:
    """One sentence, at the default fidelity."""
    end = "" if flat else " The curves were not flat: more training may change this."
    if len(found) < len(METRICS):
        return "**Not decided**: identity was not measured." + end
    if theirs == "raw":
        identity, others = found["identity"], (found["psnr"], found["ssim"])
        up = all(low > 0 for _, low, _ in others)
        paper = "reached" if identity[0] >= PAPER else "not reached"
        sure = " for certain" if identity[1] >= PAPER or identity[2] < PAPER else ", the interval includes it"
        words = (
            f"PSNR and SSIM {'both up' if up else 'not both up'}; identity {identity[0]:+.1f} %: +{PAPER} % is {paper}{sure}."
        )
        return f"**{'Holds' if up and identity[0] >= PAPER else 'Does not hold'} here.** {words}{end}"
    better = [metric for metric, (_, low, _) in found.items() if low > 0]
    return f"Better with certainty: {', '.join(better) or 'nothing'}." + end


def race(seeds: Sequence[int], results: Results) -> list[str]:
    """Claim 2: steps to each error, times what a step costs; the codebook's steps are the adapter's."""
    lines: list[str] = []
    costs = results.get("costs")
    if costs:
        lines += [f"One step of {costs['adapter']['batch']:.0f} faces on {costs['device']}:", ""]
        lines += ["| | seconds | peak memory |", "|---|---|---|"]
        lines += [f"| {n} | {costs[n]['seconds']:.4f} | {costs[n]['bytes'] / 2**20:.0f} MiB |" for n in ("codebook", *ARMS)]
        lines.append("")
    there = [s for s in seeds if all(f"{arm}_{s}" in results for arm in (*TRAINED, "codebook"))]
    if not costs or len(there) < len(seeds):
        return [*lines, f"**Not tested**: {len(there)} of {len(seeds)} seeds are done."]
    learned = [results[f"{arm}_{s}"]["curve"] for arm in TRAINED for s in there]
    errors: tuple[float, ...] = ERRORS
    if not any(all(math.isfinite(first(curve, error)) for curve in learned) for error in ERRORS):
        lines += ["No error set beforehand was reached by every run: these are taken from the curves.", ""]
        errors = levels(learned)
    lines += ["| error | " + " | ".join(ARMS) + " | stored / encoder |", "|---|" + "---|" * (len(ARMS) + 1)]
    shares = []
    for error in errors:
        times = {arm: [seconds(results, costs, arm, s, error) for s in there] for arm in ARMS}
        cells = [", ".join("never" if math.isinf(t) else f"{t:.1f} s" for t in times[arm]) for arm in ARMS]
        ours, theirs = (float(np.mean(times[arm])) for arm in ("adapter", "encoder"))
        share = ours / theirs if math.isfinite(ours) and math.isfinite(theirs) else math.nan
        shares.append(share)
        words = f"{100 * share:.0f} %" if math.isfinite(share) else ("only the encoder" if math.isfinite(theirs) else "-")
        words = "only the adapter" if math.isfinite(ours) and not math.isfinite(theirs) else words
        lines.append(f"| {error:.4g} | " + " | ".join(cells) + f" | {words} |")
    for arm in TRAINED:
        ends = ", ".join(
            f"{min(v for _, v in c):.4f} in {c[-1][0]:.0f}" for c in (results[f"{arm}_{s}"]["curve"] for s in there)
        )
        lines.append(f"\nBest error and steps of {arm}: {ends}.")
    known = [share for share in shares if math.isfinite(share)]
    if not known:
        return [*lines, "", "**Not decided**: no error was reached by both."]
    holds = max(known) <= 0.3
    span = f"{100 * min(known):.0f} to {100 * max(known):.0f} % of the time"
    words = f"at {len(known)} of {len(errors)} errors both got there: {span}"
    return [*lines, "", f"**{'Holds' if holds else 'Does not hold'} here** (30 % or less): {words}."]


def levels(curves: Sequence[Sequence[Sequence[float]]], count: int = 5) -> tuple[float, ...]:
    """Evenly spaced errors from where the slowest curve's first validation stands down to the least that all of them reach."""
    return tuple(np.linspace(max(c[0][1] for c in curves), max(min(v for _, v in c) for c in curves), count).tolist())


def seconds(results: Results, costs: Results, arm: str, seed: int, error: float) -> float:
    """Seconds until an arm first reaches ``error``."""
    curve = results[f"{'encoder' if arm == 'encoder' else 'adapter'}_{seed}"]["curve"]
    before = 0.0 if arm == "encoder" else results[f"codebook_{seed}"]["steps"] * costs["codebook"]["seconds"]
    return before + first(curve, error) * float(costs[arm]["seconds"])


def curves(results: Results, path: Path) -> None:
    """Every validation curve, one panel a kind."""
    panels = {"diffusion (- error)": ["diffusion"], "adapters (dB)": [], "LoRAs (dB)": [], "claim 2 (error)": []}
    for name in results:
        stem = name.rpartition("_")[0]
        if name.startswith("aligned_"):
            panels["adapters (dB)"].append(name)
        elif stem in TRAINED:
            panels["claim 2 (error)"].append(name)
        elif stem and isinstance(results[name], dict) and "curve" in results[name]:
            panels["LoRAs (dB)"].append(name)
    drawn = {title: [n for n in names if results.get(n, {}).get("curve")] for title, names in panels.items()}
    if not any(drawn.values()):
        return
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(16, 4), layout="constrained")
    for number, (title, names) in enumerate(drawn.items()):
        axes = figure.add_subplot(1, len(drawn), number + 1)
        stems = sorted({n.rpartition("_")[0] for n in names})
        for name in names:
            stem, _, seed = name.rpartition("_")
            axes.plot(
                *zip(*results[name]["curve"], strict=True),
                color=f"C{stems.index(stem)}",
                lw=1,
                label=stem if seed in ("0", "diffusion") else None,
            )
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=6)
    figure.savefig(path, dpi=90)
