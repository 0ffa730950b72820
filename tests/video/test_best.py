"""A track's best frames: chosen where a face is seen clearly better, lent to those that are clearly worse, and to no others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import face_at, parts
from test_restore import Batch
from torch import Tensor
from torch.nn import functional as F

from lafr_core.errors import SettingsError
from lafr_core.faces import people
from lafr_core.filters import gaussian
from lafr_core.pipeline import References
from lafr_core.settings import RestoreSettings
from lafr_core.video import restore
from lafr_core.video.album import Album
from lafr_core.video.best import AS_GOOD, MOST, MUCH_WORSE, WORSE, fineness, helpers
from lafr_core.video.motion import Motion
from lafr_core.video.tracks import Track, as_arrays, from_arrays

MODELS = parts([face_at(10, 8, 48)])
SETTINGS = RestoreSettings(detect_side=128)


def values(*parts: tuple[int, float]) -> Any:
    """(length, value) ... -> one float32 row."""
    return np.concatenate([np.full(length, value, np.float32) for length, value in parts])


# --- which frames ---


def test_nobody_is_helped_where_all_frames_are_about_alike() -> None:
    alike = values((40, -2.0)) + np.random.default_rng(1).normal(0, 0.05, 40).astype(np.float32)
    for row in (alike, values((40, np.nan)), values((0, 0.0))):
        best, helped = helpers(row)
        assert best == () and helped.shape == row.shape and not helped.any()


def test_the_finest_frames_help_those_that_are_much_worse() -> None:
    best, helped = helpers(values((30, -3.0), (30, -2.0)))
    assert len(best) == MOST and min(best) >= 30 and min(abs(a - b) for a in best for b in best if a != b) >= 8
    assert np.array_equal(helped[:20], np.ones(20)) and not helped[40:].any()
    assert (np.diff(helped) <= 0).all() and np.abs(np.diff(helped)).max() < 0.5  # no step where the face comes nearer


@pytest.mark.parametrize(("worse", "share"), [(WORSE, 0.0), ((WORSE + MUCH_WORSE) / 2, 0.5), (MUCH_WORSE, 1.0)])
def test_how_much_is_lent_grows_with_how_much_worse_a_frame_is(worse: float, share: float) -> None:
    _, helped = helpers(values((30, -2.0 - worse), (30, -2.0)))
    assert helped[5] == pytest.approx(share, abs=1e-5)


def test_a_flash_is_not_the_best_frame_and_the_best_are_about_as_good() -> None:
    row = values((20, -3.0), (20, -2.0), (20, -2.0 - 2 * AS_GOOD))
    row[5], row[25] = 0.0, np.nan
    best, _ = helpers(row)
    assert 5 not in best and 25 not in best and all(20 <= frame < 40 for frame in best)


def test_blur_takes_fineness_and_grain_gives_none() -> None:
    generator = torch.Generator().manual_seed(3)
    coarse = F.interpolate(torch.rand(1, 3, 8, 8, generator=generator), size=(256, 256), mode="bicubic")
    sharp = (0.7 * coarse + 0.3 * torch.rand(1, 3, 256, 256, generator=generator)).clamp(0, 1)
    sharp, soft = gaussian(sharp, 1.0)[0], gaussian(sharp, 4.0)[0]
    still = Motion()
    fine, blurred = fineness(sharp, sharp, still, still), fineness(soft, soft, still, still)
    assert fine > blurred + 0.5
    first, second = (soft + 0.04 * torch.randn(2, 3, 256, 256, generator=generator)).clamp(0, 1)
    grainy, twice = fineness(first, second, still, still), fineness(first, first, still, still)
    assert grainy < blurred + 0.3 < twice - 0.3
    moved = torch.roll(sharp, (3, 5), (-2, -1))
    assert fineness(sharp, moved, still, Motion(shift=5 + 3j)) == pytest.approx(fine, abs=0.05)


# --- what they do ---


def approaching(soft: int = 6, sharp: int = 10) -> Tensor:
    """One face-sized pattern, so many frames blurred, then so many sharp."""
    generator = torch.Generator().manual_seed(8)
    picture = gaussian(torch.rand(1, 3, 72, 72, generator=generator), 0.6)
    picture = (0.25 * picture + 0.75 * F.interpolate(torch.rand(1, 3, 6, 6, generator=generator), size=(72, 72))).clamp(0, 1)
    clip = torch.cat([gaussian(picture, 2.5).expand(soft, -1, -1, -1), picture.expand(sharp, -1, -1, -1)])
    return (clip + 0.01 * torch.randn(clip.shape, generator=generator)).clamp(0, 1)


def run(pictures: Tensor, best_frames: float, start: int, stop: int, steadiness: float = 0.2, **more: Any) -> Tensor:
    """Frames ``start`` to ``stop``, restored."""
    clip, models = Batch(pictures), more.pop("models", MODELS)
    known = restore.survey(clip, models, SETTINGS, steadiness, best_frames=best_frames, **more)
    frames = restore.restored_frames(clip, known, models, SETTINGS, steadiness, start=start, stop=stop, **more)
    return torch.stack([done.frame.pixels() for done in frames])


def test_the_best_frames_change_the_worse_ones_and_no_others() -> None:
    pictures = approaching()
    off, half, full = (run(pictures, weight, 2, 3) for weight in (0.0, 0.5, 1.0))
    assert not torch.equal(off, half) and not torch.equal(half, full)
    assert torch.equal(run(pictures, 0.0, 14, 16), run(pictures, 1.0, 14, 16))


def test_frames_that_are_alike_come_out_bit_identical() -> None:
    pictures = approaching(0)
    assert torch.equal(run(pictures, 0.0, 2, 5), run(pictures, 1.0, 2, 5))


def test_steadiness_0_and_no_embedder_know_no_best_frames() -> None:
    pictures = approaching()
    assert torch.equal(run(pictures, 0.0, 2, 3, 0.0), run(pictures, 1.0, 2, 3, 0.0))
    blind = replace(MODELS, embedder=None)
    assert torch.equal(run(pictures, 0.0, 2, 3, models=blind), run(pictures, 1.0, 2, 3, models=blind))


def test_a_part_comes_out_as_it_does_in_the_whole() -> None:
    pictures = approaching()
    assert torch.equal(run(pictures, 1.0, 3, 4), run(pictures, 1.0, 2, 5)[1:2])


def test_a_given_reference_goes_first() -> None:
    pictures = approaching()
    crops = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(2))
    crops = 0.02 * crops + 0.98 * F.interpolate(pictures[-1:, :, 8:56, 10:58], size=(512, 512))
    assert MODELS.embedder is not None
    given = References((people.known("anna", crops, MODELS.embedder),), 1.0)
    known = restore.survey(Batch(pictures), MODELS, SETTINGS, 0.2, best_frames=1.0, references=given)
    assert [(track.lender, track.best) for track in known.tracks] == [(0, ())]
    assert torch.equal(run(pictures, 0.0, 2, 3, references=given), run(pictures, 1.0, 2, 3, references=given))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(SettingsError, match="best_frames: expected 0 to 1"):
        restore.survey(Batch(approaching(1, 1)), MODELS, SETTINGS, 0.5, best_frames=value)


# --- the album ---


def track(number: int = 0) -> Track:
    points = np.zeros((10, 7, 2), np.float32)
    helped = np.asarray([1.0, 0.5, *[0.0] * 8], np.float32)
    return Track(number, 20, points, np.ones(10, np.float32), np.zeros((10, 2), np.complex64), best=(25,), helped=helped)


class Facing:
    """An embedder whose vector is the crop's mean colour."""

    name = "facing"

    def __call__(self, crops: Tensor) -> Tensor:
        return F.normalize(crops.mean((-2, -1)), dim=1)


def test_the_album_reads_a_track_once_and_lets_it_go() -> None:
    read: list[tuple[int, int]] = []

    def seen(of: Track, frame: int) -> Tensor:
        read.append((of.number, frame))
        return torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 8, 8)

    album, alike = Album(seen, Facing(), 0.8), torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 8, 8)
    weights = [None if (lent := album.lent(track(), frame, alike)) is None else lent.weight for frame in (20, 21, 22)]
    assert weights == [pytest.approx(0.8), pytest.approx(0.4), None] and read == [(0, 25)]
    assert album.lent(track(), 20, torch.tensor([0.0, 1.0, 0.0])[:, None, None].expand(3, 8, 8)) is None  # somebody else
    album.forget(29)
    assert list(album.people) == [0]
    album.forget(30)
    assert not album.people


def test_the_choice_survives_a_file() -> None:
    plain = Track(1, 3, np.zeros((4, 7, 2), np.float32), np.ones(4, np.float32), np.zeros((4, 2), np.complex64))
    for kept in ([plain, track(2), plain, track(3)], []):
        again = from_arrays(as_arrays(kept))
        assert [(t.best, t.helped.tolist()) for t in again] == [(t.best, t.helped.tolist()) for t in kept]
