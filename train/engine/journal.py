"""What a run leaves for people: progress bar, log.csv, a tracker's curves, plots as PNG and sample sheets."""

from __future__ import annotations

import csv
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from lafr_core.errors import CheckpointError
from train.config import Config, Log, Stage, to_mapping
from train.data.faces import DRAWN_PARAMETERS, Faces

log = logging.getLogger("train.journal")
SHEET_ROWS = 6
VALIDATION = "validation.csv"
"""The validation curve of a stage, in its folder."""


class Journal:
    """Collects the terms of every micro-batch and writes their means over ``log.every`` steps and all processes."""

    def __init__(self, folder: Path, config: Config, stage: Stage, step: int, accelerator: Any) -> None:
        self.folder, self.config, self.stage, self.accelerator = folder, config, stage, accelerator
        self.main = bool(accelerator.is_main_process)
        self.rows = [row for row in read_rows(folder / "log.csv") if row["step"] <= step]
        self.sums: dict[str, Tensor] = {}
        self.micro, self.first, self.started = 0, step, time.monotonic()
        if self.main:
            write_rows(folder / "log.csv", self.rows)  # without the steps that a killed run logged but did not save
            accelerator.init_trackers(folder.name, config=_flat(to_mapping(config)))
        self.bar = _bar(stage.steps, step) if self.main else None

    def add(self, terms: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> None:
        """Take in one micro-batch: its terms and, where it tells them, the degradations drawn for it."""
        values = {name: value.detach().float() for name, value in terms.items()}
        values["loss"] = torch.stack(list(values.values())).sum()
        if "drawn" in batch:
            values.update(zip([f"drawn_{name}" for name in DRAWN_PARAMETERS], batch["drawn"].float().mean(0), strict=True))
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.micro += 1

    def step(self, step: int, rate: float, readings: Mapping[str, float | Tensor]) -> None:
        """Close optimiser ``step`` (counted from 1). ``readings`` are logged as they are."""
        if self.bar is not None:
            self.bar.update(1)
        if step % self.config.log.every and step != self.stage.steps:
            return
        names = sorted(self.sums)
        means = self.accelerator.reduce(
            torch.stack([self.sums[name] for name in names]) / self.micro, reduction="mean"
        ).tolist()
        self.sums, self.micro = {}, 0
        if not self.main:
            return
        pictures = (step - self.first) * self.stage.batch * self.stage.accumulate * self.accelerator.num_processes
        speed = pictures / max(1e-9, time.monotonic() - self.started)
        row = {"step": step, "lr": rate, "images_per_second": speed, **dict(zip(names, means, strict=True))}
        row |= {name: float(value) for name, value in readings.items()}
        self.rows.append(row)
        append_row(self.folder / "log.csv", self.rows)
        self.accelerator.log({key: value for key, value in row.items() if key != "step"}, step=step)
        if self.bar is not None:
            self.bar.set_postfix({"loss": f"{row['loss']:.4f}", "img/s": f"{speed:.1f}"})
            if self.bar.disable:  # no terminal: say it in the log instead
                left = (self.stage.steps - step) * (time.monotonic() - self.started) / max(1, step - self.first)
                log.info("step %d/%d loss %.4f %.1f images/s, %d s left", step, self.stage.steps, row["loss"], speed, left)

    def sheet(self, step: int, task: Any, validation: Faces, device: torch.device) -> None:
        """Save ``samples/<step>.png``: one row a validation picture, degraded, restored and clean."""
        rows = [validation[i] for i in range(min(SHEET_ROWS, len(validation)))]
        batch = {name: value.to(device) for name, value in default_collate(rows).items()}
        restored = task.sample(batch)
        if restored is None:
            return
        columns = torch.stack([batch["lq"], restored.float().clamp(0, 1), batch["hq"]], dim=1)
        path = self.folder / "samples" / f"{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        picture = grid(columns)
        Image.fromarray(picture).save(path)
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.writer.add_image("samples", picture, step, dataformats="HWC")
            elif tracker.name == "wandb":
                tracker.log_images({"samples": [picture]}, step=step)

    def plot(self) -> None:
        """Draw every logged curve into ``curves.png``."""
        plot_rows(self.rows, self.folder / "curves.png")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.accelerator.end_training()


class Curve:
    """The validation curve of a run: validation.csv, validation.png, and which step is the best so far."""

    def __init__(self, folder: Path, settings: Log, step: int, accelerator: Any) -> None:
        self.folder, self.settings, self.accelerator = folder, settings, accelerator
        self.rows = [row for row in read_rows(folder / VALIDATION) if row["step"] <= step]

    @property
    def best(self) -> int | None:
        """The step with the best settings.best column, or None before the first validation."""
        found = [row for row in self.rows if self.settings.best in row]
        return int(max(found, key=lambda row: row[self.settings.best])["step"]) if found else None

    def add(self, step: int, measure: Callable[[], dict[str, float]]) -> tuple[bool, bool]:
        """Validate on the main process; returns whether ``step`` is the best so far, and whether the run has had enough."""
        verdict = torch.zeros(2, device=self.accelerator.device)
        if self.accelerator.is_main_process:
            self.rows.append({"step": step, **{name: value for name, value in measure().items() if math.isfinite(value)}})
            write_rows(self.folder / VALIDATION, self.rows)
            plot_rows(self.rows, self.folder / "validation.png")
            log.info("validation %s", self.rows[-1])
            later = sum(row["step"] > (self.best or 0) for row in self.rows)
            verdict = torch.tensor([self.best == step, bool(self.settings.patience) and later >= self.settings.patience])
            verdict = verdict.float().to(self.accelerator.device)
        if self.accelerator.num_processes > 1:
            verdict = self.accelerator.reduce(verdict, reduction="sum")
        better, enough = (bool(v) for v in verdict)
        return better, enough


def grid(columns: Tensor) -> np.ndarray[Any, Any]:
    """(R, C, 3, S, S) in [0, 1] -> one (R*S, C*S, 3) uint8 picture."""
    rows, count, channels, height, width = columns.shape
    picture = columns.permute(0, 3, 1, 4, 2).reshape(rows * height, count * width, channels)
    return (picture.cpu().numpy() * 255 + 0.5).clip(0, 255).astype(np.uint8)


def plot_rows(rows: list[dict[str, float]], path: Path) -> None:
    """Curves of all columns over the steps, one small panel each. Without matplotlib the log says so and nothing is drawn."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        log.warning(
            "no plots: matplotlib is not installed (pip install matplotlib); %s has the numbers", path.parent / "log.csv"
        )
        return
    names = [name for name in (rows[-1] if rows else {}) if name != "step" and not name.startswith("drawn_")]
    if not names:
        return
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * lines), layout="constrained")
    for number, name in enumerate(names):
        axes = figure.add_subplot(lines, columns, number + 1)
        points = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot([p[0] for p in points], [p[1] for p in points], linewidth=1)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
    figure.savefig(path, dpi=90)


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a log.csv; none when there is no file. Raises CheckpointError for what is no table of numbers by step."""
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [
                {key: int(float(value)) if key == "step" else float(value) for key, value in row.items() if key and value}
                for row in csv.DictReader(file)
            ]
    except (ValueError, TypeError, csv.Error) as error:
        raise CheckpointError(f"{path}: expected a table of numbers ({error}); move it away") from error
    if not all("step" in row for row in rows):
        raise CheckpointError(f"{path}: expected a table of numbers with a column step, found a row without; move it away")
    return rows


def write_rows(path: Path, rows: list[dict[str, float]]) -> None:
    """Rewrite a log.csv; columns that came later are empty in earlier rows."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    temporary = path.with_suffix(".csv.part")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def append_row(path: Path, rows: list[dict[str, float]]) -> None:
    """Add the last of ``rows`` to a log.csv that holds the others; rewrite it where the columns changed."""
    names = list(rows[0])
    if len(rows) < 2 or list(rows[-1]) != names:
        write_rows(path, rows)
        return
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.DictWriter(file, names, restval="").writerow(rows[-1])


def available_tracker(name: str) -> str | None:
    """``name``, or None (with a line in the log) when its package is missing or it is "none"."""
    from accelerate.utils import is_tensorboard_available, is_wandb_available

    found = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}.get(name)
    if found is None:
        return None
    if not found():
        log.warning("tracker %s is not installed; log.csv and curves.png are written all the same", name)
        return None
    return name


def _bar(total: int, done: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, initial=done, unit="step", dynamic_ncols=True, disable=None)  # None: off where no terminal is


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections -> ``section.name``, with what trackers cannot take as text."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out.update(_flat(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return out
