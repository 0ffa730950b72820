"""Whether there is a face: what the network is shown, and that it learns to tell."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from train_tiny import settings

from lafr_core.geometry import CROP_SIZE, FFHQ_TEMPLATE, transform
from lafr_core.store import checkpoint
from train.data.composites import Library
from train.data.drawn import draw_face, draw_hand
from train.data.photos import Portrait
from train.engine import checkpoints, loop
from train.tasks import presence

pytest.importorskip("skimage")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Four drawn portraits whose faces lie at the template."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("portraits")
    photos = []
    for number in range(4):
        path = folder / f"{number}.png"
        Image.fromarray((draw_face(number, CROP_SIZE) * 255).astype(np.uint8)).save(path)
        photos.append(Portrait(path, FFHQ_TEMPLATE, "drawn"))
    return Library(photos)


def test_samples_are_half_faces_and_the_same_every_time(library: Library, tmp_path: Path) -> None:
    boxes = presence.Boxes(settings(tmp_path, "run"), library)
    rows = [boxes[position] for position in range(200)]
    assert all(row["luma"].shape == (1, 48, 48) and row["luma"].min() >= 0 and row["luma"].max() <= 1 for row in rows)
    assert 0.4 < np.mean([float(row["face"]) for row in rows]) < 0.6
    assert torch.equal(boxes[7]["luma"], presence.Boxes(boxes_config(boxes), library)[7]["luma"])
    assert not torch.equal(rows[0]["luma"], rows[1]["luma"])


def boxes_config(boxes: presence.Boxes) -> presence.Config:
    return presence.Config(seed=boxes.seed)


def test_a_misplaced_face_is_turned_resized_or_beside_its_place() -> None:
    """No move leaves both eyes near where a detector would have put them."""
    for seed in range(200):
        moved = transform(presence.misplacing(np.random.default_rng(seed)), FFHQ_TEMPLATE[:2])
        (lx, ly), (rx, ry) = moved
        length, turn = math.hypot(rx - lx, ry - ly), abs(math.degrees(math.atan2(ry - ly, rx - lx)))
        wanted = math.dist(*FFHQ_TEMPLATE[:2])
        off = math.dist(((lx + rx) / 2, (ly + ry) / 2), (255.9, 240.1))
        assert turn > 45 or not 0.5 < length / wanted < 2.0 or off > 60


def test_drawn_hands_differ_and_hold_skin() -> None:
    a, b = draw_hand(1, 64), draw_hand(2, 64)
    assert a.shape == (64, 64, 3) and a.dtype == np.float32 and a.min() >= 0 and a.max() <= 1
    assert np.array_equal(a, draw_hand(1, 64)) and np.abs(a - b).mean() > 0.05


def test_it_learns_to_tell_and_leaves_a_file(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "open_library", lambda data: library)
    conf = settings(tmp_path, "run", **{"presence.steps": 40, "presence.batch": 32, "presence.lr": 0.004, "presence.warmup": 2})
    network = checkpoint.open_network(presence.run(conf), "presence", presence.PresenceNet)
    boxes = presence.Boxes(presence.Config(seed=9), library)
    rows = [boxes[position] for position in range(96)]
    odds = network(torch.stack([row["luma"] for row in rows]))
    truth = torch.stack([row["face"] for row in rows]) > 0.5
    assert float(((odds > 0) == truth).float().mean()) > 0.8
    assert checkpoints.steps(Path(conf.log.out) / "presence") and loop.learning_line(presence.PresenceTask(conf))
