"""Faces to tracks: the same person goes on, phantoms go, nothing lags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import face_at
from torch import Tensor

from lafr_core.settings import RestoreSettings
from lafr_core.types import Face
from lafr_core.video.tracks import LONGEST_GAP, Track, Tracker, as_arrays, chosen, fade, from_arrays, smoothed

GRAY = torch.full((3, 48, 96), 0.5)


def followed(
    frames: Sequence[Sequence[Face]], pictures: Sequence[Tensor] | None = None, who: dict[float, int] | None = None
) -> list[Track]:
    """Tracks of faces given frame by frame; ``who``: score -> person, told apart by the embedder."""
    tracker = Tracker()
    for number, faces in enumerate(frames):
        embed = lambda face: None if who is None else torch.eye(4)[who[face.score]]
        tracker.add(GRAY if pictures is None else pictures[number], faces, embed)
    return tracker.finish()


def test_a_moving_face_is_one_track_and_two_faces_are_two() -> None:
    tracks = followed([[face_at(2 * k, 5, 30), face_at(60, 8, 20)] for k in range(12)])
    assert [(t.start, t.stop) for t in tracks] == [(0, 12), (0, 12)]
    face = tracks[0].face(7)
    assert (
        face is not None
        and face.box == (14, 5, 44, 35)
        and np.allclose(face.landmarks, face_at(14, 5, 30).landmarks, atol=1e-4)
    )
    assert tracks[1].face(7).box[0] == 60 and tracks[0].face(12) is None  # type: ignore[union-attr]


def test_missed_frames_are_interpolated() -> None:
    frames = [[] if k in (4, 5, 6) else [face_at(3 * k, 5, 30)] for k in range(12)]
    (track,) = followed(frames)
    assert track.found.tolist() == [k not in (4, 5, 6) for k in range(12)]
    assert [track.face(k).box[0] for k in range(12)] == pytest.approx([3 * k for k in range(12)], abs=1e-4)  # type: ignore[union-attr]


def test_short_phantoms_are_dropped_and_short_clips_are_not() -> None:
    frames = [[face_at(2, 5, 30)] + ([face_at(60, 8, 20)] if k in (5, 6) else []) for k in range(12)]
    assert [t.stop - t.start for t in followed(frames)] == [12]
    assert len(followed([[face_at(2, 5, 30)]] * 2)) == 1


def test_a_long_absence_ends_a_track_and_its_end_is_where_it_was_last_seen() -> None:
    away = LONGEST_GAP + 2
    frames = [[] if 8 <= k < 8 + away else [face_at(2, 5, 30)] for k in range(16 + away)]
    first, second = followed(frames)
    assert (first.start, first.stop, first.fade_in, first.fade_out) == (0, 8, False, True)
    assert (second.start, second.stop, second.fade_in, second.fade_out) == (8 + away, 16 + away, True, False)


def test_a_scene_cut_ends_tracks_even_in_the_same_place() -> None:
    pictures = [GRAY if k < 6 else torch.cat([torch.zeros(3, 48, 48), torch.ones(3, 48, 48)], -1) for k in range(12)]
    tracks = followed([[face_at(2, 5, 30)]] * 12, pictures)
    assert [(t.start, t.stop, t.fade_in, t.fade_out) for t in tracks] == [(0, 6, False, False), (6, 12, False, False)]


def test_who_it_is_decides_where_two_faces_cross() -> None:
    """Both boxes overlap both tracks; by place alone the nearer one would be taken."""
    a, b = 0.9, 0.8
    frames = [[face_at(10, 5, 30, a), face_at(26, 5, 30, b)]] * 6 + [[face_at(21, 5, 30, a), face_at(15, 5, 30, b)]] * 6
    tracks = followed(frames, who={a: 0, b: 1})
    assert [t.scores.round(1).tolist() for t in tracks] == [[pytest.approx(a)] * 12, [pytest.approx(b)] * 12]


def jittered(course: np.ndarray, amount: float, measured: bool = True, seed: int = 3) -> tuple[Track, np.ndarray]:
    """A face that moves along ``course`` (n, 2), seen with noise; its pixels' motion measured right, or unknown."""
    noise = np.random.default_rng(seed).normal(0, amount, (len(course), 7, 2))
    truth = course[:, None, :] + np.arange(14).reshape(7, 2) * 5.0
    steps = np.full((len(course), 2), np.nan, np.complex64)
    if measured:
        steps[1:] = np.stack([np.ones(len(course) - 1), np.diff(course[:, 0]) + 1j * np.diff(course[:, 1])], -1)
    return Track(0, 0, (truth + noise).astype(np.float32), np.ones(len(course), np.float32), steps), truth


def jitter(points: np.ndarray) -> float:
    """Spread of the second differences."""
    return float(np.diff(points, 2, axis=0).std())


SWAY = np.stack([30 * np.sin(np.arange(60) / 9), 10 * np.cos(np.arange(60) / 13)], -1)
JERK = np.stack([60 / (1 + np.exp(-(np.arange(60) - 30) / 0.8)), np.zeros(60)], -1)


@pytest.mark.parametrize("course", [SWAY, JERK], ids=["sway", "jerk"])
def test_smoothing_takes_jitter_out_and_does_not_lag(course: np.ndarray) -> None:
    track, truth = jittered(course, 0.8)
    calm = smoothed(track, 6)
    assert jitter(calm.points - truth) < 0.15 * jitter(track.points - truth)
    assert np.abs(calm.points - truth).mean() < 0.5 * np.abs(track.points - truth).mean()
    ahead, behind = (np.abs(calm.points[5:-5] - truth[5 + d : len(truth) - 5 + d]).mean() for d in (1, -1))
    assert abs(ahead - behind) < 0.15 * (ahead + behind)


def test_turning_and_growing_heads_are_brought_along() -> None:
    """A wrong order of turn and shift would tear the points apart."""
    turn = 1.03 * np.exp(0.05j)
    points = [np.asarray([3 + 4j, 20 + 6j, 11 + 15j, 5 + 22j, 18 + 23j, 0, 30 + 30j])]
    for k in range(14):
        points.append(turn * points[-1] + complex(k, 2))
    truth = np.stack([np.stack(points).real, np.stack(points).imag], -1)
    steps = np.asarray([(np.nan, np.nan)] + [(turn, complex(k, 2)) for k in range(14)], np.complex64)
    calm = smoothed(Track(0, 0, truth.astype(np.float32), np.ones(15, np.float32), steps), 6)
    assert np.allclose(calm.points, truth, atol=1e-3)


def test_where_the_motion_is_unknown_the_landmarks_own_is_used() -> None:
    track, truth = jittered(SWAY, 0.8, measured=False)
    calm = smoothed(track, 6)
    assert jitter(calm.points - truth) < 0.5 * jitter(track.points - truth)
    assert np.abs(calm.points - truth).mean() < 0.8 * np.abs(track.points - truth).mean()


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 9])
def test_tracks_shorter_than_the_window_are_smoothed_too(length: int) -> None:
    track, truth = jittered(np.stack([3.0 * np.arange(length), np.zeros(length)], -1), 0.0)
    assert np.allclose(smoothed(track, 8).points, truth, atol=1e-2)


def test_smoothing_drops_outliers_and_reach_0_changes_nothing() -> None:
    line = np.stack([2.0 * np.arange(30), np.zeros(30)], -1)
    track, truth = jittered(line, 0.0)
    assert smoothed(track, 0) is track
    assert np.allclose(smoothed(track, 8).points, truth, atol=1e-2)
    points, scores = track.points.copy(), track.scores.copy()
    points[12] += 25
    scores[20:24] = 0
    points[20:24] += 3
    calm = smoothed(replace(track, points=points, scores=scores), 8)
    assert np.abs(calm.points - truth)[:18].max() < 0.05 and np.abs(calm.points - truth).max() < 1.0


def test_settings_choose_tracks() -> None:
    tracks = followed([[face_at(2 + k, 5, 20), face_at(50, 8, 34)] for k in range(8)])
    choose = lambda **settings: [(t.number, t.points[0, 5, 0]) for t in chosen(tracks, (48, 96), RestoreSettings(**settings))]
    assert choose() == [(0, 50), (1, 2)]
    assert choose(sort="x", faces="1") == [(1, 50)]
    assert choose(top_k=1) == [(0, 50)] and choose(min_face=30) == [(0, 50)] and choose(max_face=30) == [(0, 2)]


STILL = np.tile(np.asarray([1, 0], np.complex64), (20, 1))


def test_a_face_that_appears_is_blended_in_and_one_that_was_there_is_not() -> None:
    track = Track(0, 10, np.zeros((20, 7, 2), np.float32), np.ones(20, np.float32), STILL, fade_in=True, fade_out=False)
    assert [fade(track, k, 3) for k in (10, 11, 12, 13, 29)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    gone = replace(track, fade_in=False, fade_out=True)
    assert [fade(gone, k, 3) for k in (10, 26, 27, 28, 29)] == [1.0, 1.0, 0.75, 0.5, 0.25]
    assert fade(gone, 29, 0) == 1.0


def test_tracks_survive_a_file() -> None:
    tracks = followed([[face_at(2 + k, 5, 20)] for k in range(8)])
    for kept in (tracks, []):
        again = from_arrays(as_arrays(kept))
        assert len(again) == len(kept)
        for a, b in zip(kept, again, strict=True):
            assert (a.start, a.fade_in, a.fade_out) == (b.start, b.fade_in, b.fade_out)
            assert np.array_equal(a.points, b.points) and np.array_equal(a.scores, b.scores)
            assert np.array_equal(a.steps, b.steps, equal_nan=True)
