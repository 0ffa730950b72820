"""A host's batch as a clip."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from fakes import face_at, parts
from torch import Tensor

from lafr_core.errors import InputError
from lafr_core.pipeline import restore_faces
from lafr_core.settings import RestoreSettings
from lafr_core.video.batch import restore_batch, restore_sequence

SETTINGS = RestoreSettings(detect_side=128)


def test_a_batch_is_restored_in_its_order_and_at_0_as_photos() -> None:
    images, models = torch.rand(5, 3, 60, 72), parts([face_at(10, 8, 40)])
    photos = restore_faces(images, models, SETTINGS)
    alone = restore_batch(images, models, SETTINGS, 0.0)
    assert torch.equal(alone.images, photos.images)
    assert [face.image_index for face in alone.faces] == list(range(5)) and alone.faces[2].change == photos.faces[2].change
    steady = restore_batch(images, models, SETTINGS, 0.8)
    assert not torch.equal(steady.images, photos.images) and len(steady.faces) == 5
    changed = (steady.images != images).any(1, keepdim=True)
    assert not bool((changed & (steady.masks == 0)).any()) and torch.equal(alone.masks, photos.masks)
    assert float(changed.float().mean()) > 0.9 * float((steady.masks > 0).float().mean()) > 0.1


def test_a_batch_without_faces_is_unchanged() -> None:
    images = torch.rand(3, 3, 60, 72)
    result = restore_batch(images, parts(), SETTINGS, 0.8)
    assert torch.equal(result.images, images) and result.faces == () and float(result.masks.max()) == 0


class Drawn(Sequence[Tensor]):
    """Frames that are drawn when they are asked for."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.asked = images, []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        self.asked.append(index)
        return self.images[index].clone()


def test_frames_asked_for_one_at_a_time_give_what_the_batch_gives() -> None:
    images, models = torch.rand(6, 3, 60, 72), parts([face_at(10, 8, 40)])
    whole, drawn = restore_batch(images, models, SETTINGS, 0.3), Drawn(images)
    rows = list(restore_sequence(drawn, models, SETTINGS, 0.3))
    assert torch.equal(torch.cat([row.images for row in rows]), whole.images)
    assert torch.equal(torch.cat([row.masks for row in rows]), whole.masks)
    assert [len(row.faces) for row in rows] == [1] * 6 and drawn.asked == [0, *range(6), *range(6)]


def test_frames_of_two_sizes_and_none_are_refused_by_number() -> None:
    with pytest.raises(InputError, match=r"frame 1: expected \(3, 60, 72\) as the first, got \(3, 50, 72\)"):
        list(restore_sequence([torch.rand(3, 60, 72), torch.rand(3, 50, 72)], parts(), SETTINGS, 0.5))
    with pytest.raises(InputError, match="frames: expected at least one, got none"):
        list(restore_sequence([], parts(), SETTINGS, 0.5))
