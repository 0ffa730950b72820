"""Judged while it trains, and spoilt as the papers do it: the validation curve, its best step, stopping early, the recipes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from train_tiny import settings

from train import config
from train.data import degradation
from train.data.drawn import draw_face
from train.data.faces import Faces
from train.engine import checkpoints, journal, loop, run, validation
from train.tasks.codebook import CodebookTask

ONE = SimpleNamespace(is_main_process=True, num_processes=1, device=torch.device("cpu"))


def test_the_curve_knows_its_best_step_and_when_enough_is_enough(tmp_path: Path) -> None:
    settings_ = config.Log(best="identity", patience=2)
    curve = journal.Curve(tmp_path, settings_, 0, ONE)
    found = [
        curve.add(step, lambda v=value: {"identity": v, "psnr": 20.0}) for step, value in ((10, 0.5), (20, 0.7), (30, 0.6))
    ]
    assert found == [(True, False), (True, False), (False, False)] and curve.best == 20
    assert curve.add(40, lambda: {"identity": 0.65, "psnr": float("nan")}) == (False, True)  # two without a better one
    again = journal.Curve(tmp_path, settings_, 30, ONE)  # resumed at step 30: what came later is forgotten
    assert [int(row["step"]) for row in again.rows] == [10, 20, 30] and again.best == 20
    assert journal.Curve(tmp_path, replace(settings_, best="psnr"), 40, ONE).best == 10


def test_a_run_is_judged_keeps_its_best_and_stops_early(tmp_path: Path) -> None:
    conf = settings(tmp_path, "run", **{
        "data.validation": "drawn:2", "log.validate_every": 1, "log.validation_faces": 2, "log.patience": 2, "log.best": "psnr",
        "log.keep": 1, "log.save_every": 50, "codebook.steps": 30, "codebook.lr": 1e-9, "codebook.kmeans_at": [0],
    })  # fmt: skip
    run.run(CodebookTask, conf)
    out = Path(conf.log.out) / "codebook"
    rows = journal.read_rows(out / "validation.csv")
    assert (
        len(rows) < 30 and {"psnr", "ssim", "identity", "sharpness"} <= set(rows[0]) and all(r["sharpness"] <= 0 for r in rows)
    )
    best = max(rows, key=lambda row: row["psnr"])["step"]
    kept = [int(p.name.removeprefix("step_")) for p in checkpoints.steps(out)]
    assert best in kept and max(kept) == rows[-1]["step"] == best + 2
    # A resumed run goes on from the newest; what builds on the run takes the best.
    assert checkpoints.newest(out) == out / f"step_{best + 2:08d}"
    assert checkpoints.open_checkpoint(conf.log.out, "codebook")[0] == out / f"step_{best:08d}" == checkpoints.best(out)


def test_the_best_checkpoint_is_the_best_of_those_that_are_there(tmp_path: Path) -> None:
    conf = settings(tmp_path, "run", **{"log.best": "psnr"})
    out = tmp_path / "codebook"
    out.mkdir()
    assert checkpoints.best(out) is None
    for step in (10, 20, 30, 40):
        checkpoints.write(out, step, {}, conf, {"stage": "codebook"})
    step = lambda number: out / f"step_{number:08d}"
    assert checkpoints.best(out) == step(40)  # nothing was validated: the newest
    rows = [{"step": s, "psnr": v, "identity": -s} for s, v in ((10, 5.0), (15, 9.0), (20, 7.0), (30, 7.0))]
    journal.write_rows(out / journal.VALIDATION, rows)
    assert checkpoints.best(out) == step(30)  # 15 is gone, 40 was not validated, 30 is the newer of two equals
    assert checkpoints.open_checkpoint(step(10), "codebook")[0] == step(10)  # a checkpoint that is named is the one
    journal.write_rows(out / journal.VALIDATION, [{"step": 10, "identity": 1.0}])
    assert checkpoints.best(out) == step(40)  # not by the column that the run goes by


def test_every_column_is_best_for_the_same_picture_and_says_when_it_cannot_tell() -> None:
    judge = validation.Judge(Faces([], config.Data(), 0), 0)
    judge.opened = {
        "embedder": lambda x: x.flatten(1),
        "landmarks": lambda a, b: float((a - b).abs().mean()),
        "features": lambda x: [x],
    }
    judge.niqe = lambda picture: float(picture.mean())  # type: ignore[assignment]
    sharp = torch.from_numpy(draw_face(3, 128)).permute(2, 0, 1)[None]
    other = torch.from_numpy(draw_face(4, 128)).permute(2, 0, 1)[None]
    same, worse = judge.row(sharp, sharp), judge.row(other, sharp)
    assert tuple(same) == validation.COLUMNS
    assert all(same[name] > worse[name] for name in validation.COLUMNS if name != "niqe")
    assert same["landmarks"] == 0 and same["sharpness"] == 0 and same["niqe"] == pytest.approx(-float(sharp.mean()))
    judge.opened, judge.niqe = dict.fromkeys(("embedder", "landmarks", "features")), None
    unknown = judge.row(sharp, sharp)
    assert [name for name, value in unknown.items() if value != value] == ["identity", "landmarks", "perceptual", "niqe"]
    judge.niqe = pytest.fail  # type: ignore[assignment]
    assert judge.unnatural(sharp[..., :64]) != judge.unnatural(sharp[..., :64])  # smaller than a block: not asked


def test_a_held_rate_stays_before_it_falls() -> None:
    stage = config.Stage(steps=100, lr=1.0, warmup=1, final=0.1, hold=0.5)
    assert [loop.rate(step, stage) for step in (0, 25, 50)] == pytest.approx([1.0, 1.0, 1.0])
    assert loop.rate(75, stage) == pytest.approx(0.55) and loop.rate(100, stage) == pytest.approx(0.1)


@pytest.mark.parametrize("severity", degradation.KNOWN)
def test_every_severity_spoils_and_is_drawn_again_the_same(severity: str) -> None:
    face = draw_face(1, 128)
    one, drawn = degradation.spoil(face, np.random.default_rng(3), severity)
    two, _ = degradation.spoil(face, np.random.default_rng(3), severity)
    assert np.array_equal(one, two) and one.shape == face.shape and one.dtype == np.float32
    assert 0 <= one.min() <= one.max() <= 1 and not np.allclose(one, face, atol=0.02)
    if severity in degradation.RECIPES:
        recipe = degradation.RECIPES[severity]
        assert recipe.sigma[0] <= drawn.sigma_x <= recipe.sigma[1] and recipe.ratio[0] <= drawn.ratio <= recipe.ratio[1]
        assert recipe.quality[0] <= drawn.quality <= recipe.quality[1]


def test_the_papers_ranges() -> None:
    wanted = {
        "gfpgan": ((0.1, 10), (0.8, 8), (60, 100)),
        "codeformer": ((1, 15), (4, 30), (30, 80)),
        "osediff": ((1, 15), (1, 30), (30, 100)),
    }
    assert {name: (r.sigma, r.ratio, r.quality) for name, r in degradation.RECIPES.items()} == wanted


def test_the_41_tap_kernel_and_opencvs_interpolation() -> None:
    taps = degradation.kernel(2.0, 4.0, 0.0)
    assert taps.shape == (41, 41) and taps.sum() == pytest.approx(1, abs=1e-5)
    xs = np.arange(-20, 21)
    assert (taps.sum(0) * xs**2).sum() == pytest.approx(4, rel=0.01) and (taps.sum(1) * xs**2).sum() == pytest.approx(
        16, rel=0.01
    )
    dot = np.zeros((64, 64, 3), dtype=np.float32)
    dot[32, 32] = 1
    assert np.allclose(degradation.filtered(dot, taps)[12:53, 12:53, 0], taps[::-1, ::-1], atol=1e-6)
    ramp = np.repeat(np.arange(8, dtype=np.float32)[None, :, None], 8, 0).repeat(3, 2)
    # OpenCV's INTER_LINEAR to half the size: the mean of the two middle pixels, no wider filter.
    assert degradation.linear(ramp, (4, 4))[0, :, 0].tolist() == [0.5, 2.5, 4.5, 6.5]
