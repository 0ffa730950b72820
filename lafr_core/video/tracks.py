"""Faces of single frames -> tracks: one person's face from frame to frame, without jitter, gaps and phantoms.

Everything here looks to both sides in time, so that nothing lags: a clip is looked through once before it is restored.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..faces.boxes import five, overlap
from ..types import Face

SAME_PLACE = 0.3
"""Intersection over union from which a face is where the track was expected."""
SAME_PERSON = 0.35
"""Cosine of two embeddings above which a face found after a gap is taken for the track's."""
LONGEST_GAP = 15
"""Frames for which a face may be missed (a turn, a hand before it) and the track goes on."""
SHORTEST = 5
"""Tracks found in fewer frames than this are phantoms: what a detector sees for a moment in leaves and patterns."""
CUT_STEP = 0.12
"""Mean change of a small gray copy from which a new scene may have begun ..."""
CUT_RATIO = 4.0
"""... where it is also this many times the usual change: fast pans change much, but all the time."""
THUMB = 24
REMEMBERED = 0.9
"""How much of a track's embedding stays when a new one is mixed in."""
EMBED_EVERY = 12
"""Frames between two looks at who it is."""
GAP_WEIGHT = 0.05
"""How much an interpolated place counts against a seen one."""
POINTS = 7
"""Five landmarks and two corners of the box."""

Array = NDArray[np.float32]
Embed = Callable[[Face], Tensor | None]
"""One face of the current frame -> its unit vector (D,), or None when there is no embedder."""


@dataclass(frozen=True, eq=False)
class Track:
    """One face over consecutive frames: 65 bytes a frame, so that hours fit into memory."""

    number: int
    """Place in the chosen order, from 0: what the setting ``faces`` names."""
    start: int
    """Number of its first frame."""
    points: Array
    """(n, 7, 2): landmarks and box corners, frame by frame, interpolated where the face was missed."""
    scores: Array
    """(n,) detector's scores; 0 where the face was missed."""
    fade_in: bool = True
    """The face appears in the middle of a scene; False where a scene or the clip begins with it."""
    fade_out: bool = True
    person: Tensor | None = None
    """Mean embedding (D,), a unit vector; None without an embedder, and for tracks read from a file."""
    lender: int = -1
    """Place of its reference person among those given; -1 = nobody's."""

    @property
    def stop(self) -> int:
        """Number of the first frame behind it."""
        return self.start + len(self.points)

    @property
    def found(self) -> NDArray[np.bool_]:
        """(n,): in which frames the detector saw it."""
        return self.scores > 0

    def face(self, frame: int) -> Face | None:
        """The face in that frame, without matrix; None outside the track."""
        if not self.start <= frame < self.stop:
            return None
        row = self.points[frame - self.start].tolist()
        return Face(
            box=(row[5][0], row[5][1], row[6][0], row[6][1]),
            landmarks=five(row[:5]),
            score=float(self.scores[frame - self.start]),
        )


# --- following ---


@dataclass(eq=False)
class _Open:
    """A track that may still go on."""

    start: int
    fade_in: bool
    rows: list[Array] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    person: Tensor | None = None
    missed: int = 0
    fade_out: bool = False

    def expected(self) -> Face:
        """Where the face should be now: its last place, moved on by its last step."""
        last = self.rows[-1 - self.missed]
        steps = [row for row, score in zip(self.rows[-4:], self.scores[-4:], strict=True) if score > 0]
        step = (steps[-1] - steps[0]) / max(1, len(steps) - 1) if len(steps) > 1 else np.zeros_like(last)
        moved = last + step.mean(0) * min(self.missed + 1, 3)
        return _face(moved)


class Tracker:
    """Frames in, in order, one after the other; tracks out at the end."""

    def __init__(self) -> None:
        self._open: list[_Open] = []
        self._closed: list[_Open] = []
        self._cuts: list[int] = []
        self._thumb: Tensor | None = None
        self._usual = 0.02
        self.frames = 0

    def add(self, pixels: Tensor, faces: Sequence[Face], embed: Embed) -> None:
        """The next frame (3, H, W) and the faces found in it."""
        if self._is_cut(pixels):
            self._cuts.append(self.frames)
            self._close(self._open, fade_out=False)
            self._open = []
        pairs = self._matched(faces, embed)
        taken = {number for _, number in pairs}
        for track, number in pairs:
            self._extend(track, faces[number], embed)
        matched = {id(track) for track, _ in pairs}
        for track in self._open:
            if id(track) not in matched:
                track.rows.append(track.rows[-1])
                track.scores.append(0.0)
                track.missed += 1
        ended = [track for track in self._open if track.missed > LONGEST_GAP]
        self._close(ended, fade_out=True)
        self._open = [track for track in self._open if track.missed <= LONGEST_GAP]
        at_edge = self.frames == 0 or bool(self._cuts and self._cuts[-1] == self.frames)
        for number, face in enumerate(faces):
            if number not in taken:
                track = _Open(self.frames, fade_in=not at_edge)
                self._open.append(track)
                self._extend(track, face, embed)
        self.frames += 1

    def finish(self) -> list[Track]:
        """All tracks, in order of their first frame; phantoms dropped, gaps filled."""
        self._close(self._open, fade_out=False)
        self._open = []
        edges = [0, *self._cuts, self.frames]
        tracks: list[Track] = []
        for track in sorted(self._closed, key=lambda t: t.start):
            scene = next(b - a for a, b in itertools.pairwise(edges) if a <= track.start < b)
            if sum(score > 0 for score in track.scores) >= min(SHORTEST, scene):
                tracks.append(_filled(track, len(tracks)))
        return tracks

    @property
    def cuts(self) -> tuple[int, ...]:
        """Numbers of the frames with which new scenes begin."""
        return tuple(self._cuts)

    def _is_cut(self, pixels: Tensor) -> bool:
        thumb = F.interpolate(pixels.mean(0)[None, None], size=(THUMB, THUMB), mode="area")[0, 0]
        before, self._thumb = self._thumb, thumb
        if before is None:
            return False
        change = float((thumb - before).abs().mean())
        cut = change > CUT_STEP and change > CUT_RATIO * self._usual
        if not cut:
            self._usual = 0.8 * self._usual + 0.2 * max(change, 0.005)
        return cut

    def _matched(self, faces: Sequence[Face], embed: Embed) -> list[tuple[_Open, int]]:
        """(track, number of its face), the surest pairs first, each track and face once."""
        pairs = []
        for track in self._open:
            place = track.expected()
            for number, face in enumerate(faces):
                near = overlap(place.box, face.box)
                if near >= SAME_PLACE or (track.missed and _close_by(place, face)):
                    pairs.append((near, track, number))
        # Who it is decides only where the place does not: two faces in one place, or a face found again.
        rivals = [sum(p[1] is pair[1] or p[2] == pair[2] for p in pairs) > 1 for pair in pairs]
        scored = []
        for (near, track, number), rival in zip(pairs, rivals, strict=True):
            person = embed(faces[number]) if (rival or track.missed) and track.person is not None else None
            if person is None or track.person is None:
                if near >= SAME_PLACE:
                    scored.append((near, track, number))
                continue
            alike = float(person @ track.person)
            if near >= SAME_PLACE or alike >= SAME_PERSON:
                scored.append((near + alike, track, number))
        result: list[tuple[_Open, int]] = []
        for _, track, number in sorted(scored, key=lambda s: -s[0]):
            if all(track is not t and number != n for t, n in result):
                result.append((track, number))
        return result

    def _extend(self, track: _Open, face: Face, embed: Embed) -> None:
        if track.person is None or len(track.rows) % EMBED_EVERY == 0:
            seen = embed(face)
            if seen is not None:
                mixed = seen if track.person is None else REMEMBERED * track.person + (1 - REMEMBERED) * seen
                track.person = F.normalize(mixed, dim=0)
        track.rows.append(_row(face))
        track.scores.append(max(1e-6, face.score))
        track.missed = 0

    def _close(self, tracks: Sequence[_Open], fade_out: bool) -> None:
        for track in tracks:
            seen = len(track.rows) - track.missed
            track.rows, track.scores = track.rows[:seen], track.scores[:seen]
            track.fade_out = fade_out or track.missed > 0
            self._closed.append(track)


def _row(face: Face) -> Array:
    x0, y0, x1, y1 = face.box
    return np.asarray([*face.landmarks, (x0, y0), (x1, y1)], dtype=np.float32)


def _face(row: Array) -> Face:
    (x0, y0), (x1, y1) = row[5].tolist(), row[6].tolist()
    return Face((x0, y0, x1, y1), five(row[:5].tolist()), 1.0)


def _close_by(place: Face, face: Face) -> bool:
    """Whether two faces of about one size lie less than a face apart."""
    dx = (place.box[0] + place.box[2] - face.box[0] - face.box[2]) / 2
    dy = (place.box[1] + place.box[3] - face.box[1] - face.box[3]) / 2
    alike = 0.5 < place.size / max(face.size, 1e-6) < 2
    return alike and math.hypot(dx, dy) < max(place.size, face.size)


def _filled(track: _Open, number: int) -> Track:
    """The track with the frames in which it was missed interpolated linearly."""
    points, scores = np.stack(track.rows), np.asarray(track.scores, dtype=np.float32)
    known = np.flatnonzero(scores > 0)
    frames = np.arange(len(scores))
    flat = points.reshape(len(points), -1)
    filled = np.stack([np.interp(frames, known, flat[known, k]) for k in range(flat.shape[1])], axis=1)
    places = filled.reshape(points.shape).astype(np.float32)
    return Track(number, track.start, places, scores, track.fade_in, track.fade_out, track.person)


# --- smoothing ---


def smoothed(track: Track, reach: int) -> Track:
    """The track with the detector's jitter taken out, up to ``reach`` frames to each side; 0 returns it as it is.

    A parabola is fitted around each frame (Savitzky and Golay 1964, with Gaussian weights), so that steady motion and
    acceleration stay where they are in time; outliers weigh little. Where a long fit departs from a short one by more than the
    jitter explains, the face really moved so: there the short fit counts.
    """
    if reach < 1 or len(track.points) < 5:
        return track
    raw = track.points.astype(np.float64)
    weight = _trusted(raw, track.found)
    short, long = _parabolas(raw, weight, min(2, reach)), _parabolas(raw, weight, reach)
    # The spread of raw points around a short fit of 5: it takes about half of white jitter's variance away.
    jitter = np.median(np.abs(raw - short)[track.found]) * 2.0 + 1e-3
    away = np.linalg.norm(long - short, axis=-1).mean(1)
    away = np.convolve(np.pad(away, 2, mode="edge"), np.ones(5) / 5, mode="valid")
    departs = away**2 / (away**2 + (2.5 * jitter) ** 2)
    mixed = long + (short - long) * departs[:, None, None]
    return replace(track, points=mixed.astype(np.float32))


def _trusted(points: NDArray[np.float64], found: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weights (n, p) of points (n, p, 2): little where missed, near 0 for outliers (Tukey's biweight).

    An outlier lies away from the median of itself and the middles between its neighbours, one and two frames to each side.
    """
    middles = [points]
    for step in (1, 2):
        middle = points.copy()
        middle[step:-step] = (points[: -2 * step] + points[2 * step :]) / 2
        middles.append(middle)
    off = np.linalg.norm(points - np.median(middles, axis=0), axis=-1)
    scale = 4.7 * 1.4826 * np.median(off[found]) + 0.05 + 1e-3 * np.ptp(points[:, :5, 0], axis=1).mean()
    return np.where(found, 1.0, GAP_WEIGHT)[:, None] * (np.clip(1 - (off / scale) ** 2, 0.0, 1.0) ** 2 + 1e-6)


def _parabolas(points: NDArray[np.float64], weight: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """The value in the middle of the weighted least-squares parabola around each frame; weights (n, p)."""
    n = len(points)
    offsets = np.arange(-reach, reach + 1)
    bell = np.exp(-0.5 * (offsets / (0.5 * reach + 0.5)) ** 2)
    moments = np.zeros((*weight.shape, 5))
    sums = np.zeros((*weight.shape, 3, 2))
    for j, b in zip(offsets, bell, strict=True):
        low, high = max(0, -j), min(n, n - j)
        if low >= high:  # the track is shorter than the window
            continue
        w = b * weight[low + j : high + j]
        for power in range(5):
            moments[low:high, :, power] += w * float(j) ** power
        for power in range(3):
            sums[low:high, :, power] += (w * float(j) ** power)[..., None] * points[low + j : high + j]
    matrix = np.stack([moments[..., k : k + 3] for k in range(3)], axis=-2)
    # A trace of a ridge on slope and curvature: where fewer than three points are seen, the parabola is not determined.
    ridge = 1e-7 * moments[..., :1, None] * np.diag([0.0, reach**2, reach**4]) + 1e-12 * np.eye(3)
    return np.asarray(np.linalg.solve(matrix + ridge, sums)[..., 0, :])


# --- choosing ---


def fade(track: Track, frame: int, length: int) -> float:
    """Strength of the track in a frame, in (0, 1]: it rises and falls over ``length`` frames where the face comes and goes."""
    rise = (frame - track.start + 1) / (length + 1) if track.fade_in else 1.0
    fall = (track.stop - frame) / (length + 1) if track.fade_out else 1.0
    return max(0.0, min(1.0, rise, fall))


def chosen(tracks: Sequence[Track], size: tuple[int, int], settings: Any) -> list[Track]:
    """The tracks of a clip of ``size`` (h, w) upright that the settings want, numbered anew in the chosen order.

    What the settings say of faces holds for a track's middle face: the median of its boxes and its mean score.
    """
    from ..faces.detect import ordered

    middles = {}
    for track in tracks:
        row = np.median(track.points, axis=0).astype(np.float32)
        middles[replace(_face(row), score=float(track.scores[track.found].mean()), image_index=track.number)] = track
    kept = [f for f in middles if f.size >= settings.min_face and (not settings.max_face or f.size <= settings.max_face)]
    kept = ordered(kept, size, settings.sort)
    kept = kept[: settings.top_k] if settings.top_k else kept
    wanted = settings.face_indices()
    return [replace(middles[f], number=n) for n, f in enumerate(kept) if not wanted or n in wanted]


def as_arrays(tracks: Sequence[Track]) -> dict[str, NDArray[Any]]:
    """Tracks as named arrays for a file; :func:`from_arrays` is the inverse."""
    lengths = np.asarray([len(t.points) for t in tracks], dtype=np.int64)
    empty = np.zeros((0, POINTS, 2), dtype=np.float32)
    return {
        "start": np.asarray([t.start for t in tracks], dtype=np.int64),
        "length": lengths,
        "points": np.concatenate([t.points for t in tracks]) if tracks else empty,
        "scores": np.concatenate([t.scores for t in tracks]) if tracks else empty[:, 0, 0],
        "numbers": np.asarray([t.number for t in tracks], dtype=np.int64),
        "lenders": np.asarray([t.lender for t in tracks], dtype=np.int64),
        "fades": np.asarray([(t.fade_in, t.fade_out) for t in tracks], dtype=bool).reshape(-1, 2),
    }


def from_arrays(arrays: dict[str, NDArray[Any]]) -> list[Track]:
    """See :func:`as_arrays`."""
    tracks, at = [], 0
    rows = [arrays[name].tolist() for name in ("numbers", "start", "length", "fades", "lenders")]
    for number, start, length, (fade_in, fade_out), lender in zip(*rows, strict=True):
        part = slice(at, at + length)
        tracks.append(Track(number, start, arrays["points"][part], arrays["scores"][part], fade_in, fade_out, None, lender))
        at += length
    return tracks
