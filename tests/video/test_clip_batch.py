"""A host's batch as a clip."""

from __future__ import annotations

import torch
from fakes import face_at, parts

from lafr_core.pipeline import restore_faces
from lafr_core.settings import RestoreSettings
from lafr_core.video.batch import restore_batch

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
    assert torch.equal(steady.masks > 0, changed) and 0 < float(steady.masks.mean()) < 1


def test_a_batch_without_faces_is_unchanged() -> None:
    images = torch.rand(3, 3, 60, 72)
    result = restore_batch(images, parts(), SETTINGS, 0.8)
    assert torch.equal(result.images, images) and result.faces == () and float(result.masks.max()) == 0
