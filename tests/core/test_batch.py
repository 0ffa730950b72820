"""One photo file, one result: what the command line does to a picture around the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import parts
from PIL import Image

from lafr_core.app import batch
from lafr_core.app.jobs import Job
from lafr_core.settings import RestoreSettings


@pytest.mark.parametrize("side", [300, 512, 700])
def test_an_aligned_crop_that_nothing_changes_stays_as_sharp_as_it_was(
    side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change is scaled back to the picture's size, not the picture: no change, no blur."""
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    monkeypatch.setattr(batch, "restore_crops", lambda crops, faces, *_, **__: (crops.clone(), list(faces)))
    made = batch.restore_crop(Job(tmp_path / "in.png", tmp_path / "out.png"), parts(), RestoreSettings())
    made.save(tmp_path / "out.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), pixels)


def test_the_change_of_an_aligned_crop_lands_where_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.full((256, 256, 3), 100, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")

    def brighter(crops: torch.Tensor, faces: Any, *_: Any, **__: Any) -> Any:
        changed = crops.clone()
        changed[..., 100:200, 300:400] += 0.2  # rows 50..100, columns 150..200 of the picture
        return changed, list(faces)

    monkeypatch.setattr(batch, "restore_crops", brighter)
    made = batch.restore_crop(Job(tmp_path / "in.png", tmp_path / "out.png"), parts(), RestoreSettings(strength=0.5))
    made.save(tmp_path / "out.png")
    result = np.asarray(Image.open(tmp_path / "out.png")).astype(int)
    assert (result[60:90, 160:190] == 100 + round(0.2 * 0.5 * 255)).all() and (result[:, :140] == 100).all()
