"""Frames restored through the window: bit-identical to photos at 0, calmer above, the same wherever a part begins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from fakes import FixedDetector, face_at, parts
from torch import Tensor

from lafr_core.errors import SettingsError
from lafr_core.images.photos import Photo
from lafr_core.pipeline import restore_faces
from lafr_core.settings import RestoreSettings
from lafr_core.types import Face
from lafr_core.video import restore
from lafr_core.video.frames import ClipInfo, PhotoFrame

SIZE = (72, 96)


class Batch:
    """Pictures (T, 3, H, W) as a clip; counts how many are looked at together."""

    def __init__(self, pictures: Tensor, faults: dict[int, str] | None = None) -> None:
        self.pictures, self.faults = pictures, faults or {}
        self.info = ClipInfo("batch", (pictures.shape[-2], pictures.shape[-1]), Fraction(25), Fraction(1, 25), len(pictures))

    def frames(self, start: int = 0, times: Any = ()) -> Iterator[PhotoFrame]:
        for k in range(start, len(self.pictures)):
            yield PhotoFrame(k, k, Photo(self.pictures[k]), fault=self.faults.get(k, ""))


class Jittery(FixedDetector):
    """Sees the face a little off, each time elsewhere."""

    def __call__(self, image: Tensor, threshold: float) -> list[Face]:
        dx, dy = (torch.rand(2) - 0.5).tolist()
        return [face_at(20 + 2 * dx, 14 + 2 * dy, 40)]


def still(frames: int, noise: float = 0.05) -> Tensor:
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    picture = torch.stack([0.5 + 0.3 * torch.sin(x / 5), 0.5 + 0.3 * torch.cos(y / 7), 0.4 + 0.2 * torch.sin((x + y) / 6)])
    return (picture + noise * torch.randn(frames, *picture.shape)).clamp(0, 1)


def run(clip: Batch, steadiness: float, models: Any = None, start: int = 0, stop: int | None = None, **settings: Any) -> Tensor:
    models = models or parts([face_at(20, 14, 40)])
    chosen = RestoreSettings(detect_side=128, **settings)
    known = restore.survey(clip, models, chosen, steadiness)
    return torch.stack(
        [
            done.frame.pixels()
            for done in restore.restored_frames(clip, known, models, chosen, steadiness, start=start, stop=stop)
        ]
    )


def test_steadiness_0_is_bit_identical_to_photos() -> None:
    pictures, models = still(4), parts([face_at(20, 14, 40)])
    out = run(Batch(pictures), 0.0, models)
    alone = [restore_faces(p[None], models, RestoreSettings(detect_side=128)).images[0] for p in pictures]
    assert torch.equal(out, torch.stack(alone)) and not torch.equal(out, pictures)


def flicker(frames: Tensor) -> float:
    return float((frames[1:] - frames[:-1])[..., 24:44, 30:50].abs().mean())


def test_steadier_is_calmer() -> None:
    pictures = still(12)
    models = replace(parts(), detector=Jittery([]))
    by_steadiness = [flicker(run(Batch(pictures), steadiness, models)) for steadiness in (0.0, 0.5, 1.0)]
    assert by_steadiness[0] > 1.5 * by_steadiness[1] > 1.5 * by_steadiness[2]


def test_a_part_comes_out_as_it_does_in_the_whole() -> None:
    clip = Batch(still(18))
    whole = run(clip, 0.5)
    assert torch.equal(run(clip, 0.5, start=7, stop=11), whole[7:11])
    assert torch.equal(run(clip, 0.5, start=15), whole[15:])


def test_nothing_outside_the_face_changes() -> None:
    pictures = still(8)
    out = run(Batch(pictures), 1.0)
    assert torch.equal(out[..., :4], pictures[..., :4]) and torch.equal(out[..., 90:], pictures[..., 90:])
    assert not torch.equal(out, pictures)


def test_clips_without_faces_and_damaged_frames_pass_through() -> None:
    pictures = still(8)
    assert torch.equal(run(Batch(pictures), 0.7, parts([])), pictures)
    out = run(Batch(pictures, {3: "damaged in the file"}), 0.7)
    assert torch.equal(out[3], pictures[3]) and not torch.equal(out[4], pictures[4])


def test_a_blink_keeps_its_time() -> None:
    """What only one frame shows is neither lost there nor seen in its neighbours."""
    pictures = still(11, noise=0.01)
    pictures[5, :, 26:34, 26:46] = 0.05
    models = parts([face_at(20, 14, 40)])
    steady, alone = run(Batch(pictures), 1.0, models, color=0.0), run(Batch(pictures), 0.0, models, color=0.0)
    dark = slice(None), slice(28, 32), slice(30, 42)
    for k in range(11):
        assert abs(float(steady[k][dark].mean() - alone[k][dark].mean())) < 0.03


def test_the_window_holds_a_fixed_number_of_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    most: list[int] = []
    finished = restore._Window._finished
    monkeypatch.setattr(restore._Window, "_finished", lambda self, index: most.append(len(self.held)) or finished(self, index))
    run(Batch(still(30)), 0.5)
    assert len(most) == 30 and max(most) <= 4 * restore.reach_of(0.5) + 1


def test_settings_name_tracks() -> None:
    pictures = still(6)
    models = parts([face_at(4, 14, 30), face_at(50, 20, 40)])
    left = run(Batch(pictures), 0.5, models, sort="x", faces="0")
    assert not torch.equal(left[..., 10:24], pictures[..., 10:24]) and torch.equal(left[..., 60:], pictures[..., 60:])


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_steadiness_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(SettingsError, match="steadiness: expected 0 to 1"):
        restore.survey(Batch(still(2)), parts(), RestoreSettings(), value)
