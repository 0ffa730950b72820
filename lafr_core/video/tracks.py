"""Faces of single frames -> tracks: one person's face from frame to frame, without jitter, gaps and phantoms.

Everything here looks to both sides in time, so that nothing lags: a clip is looked through once before it is restored.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..faces.boxes import five, overlap
from ..types import Face
from .best import MOST, SIDE, fineness, helpers
from .motion import Glimpse, between, glimpse

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
Steps = NDArray[np.complex64]
UNKNOWN = (complex("nan"), complex("nan"))
Embed = Callable[[Face], Tensor | None]
"""One face of the current frame -> its unit vector (D,), or None when there is no embedder."""


def _nothing() -> Array:
    return np.zeros(0, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Track:
    """One face over consecutive frames: 81 bytes a frame, so that hours fit into memory."""

    number: int
    """Place in the chosen order, from 0: what the setting ``faces`` names."""
    start: int
    """Number of its first frame."""
    points: Array
    """(n, 7, 2): landmarks and box corners, frame by frame, interpolated where the face was missed."""
    scores: Array
    """(n,) detector's scores; 0 where the face was missed."""
    steps: Steps
    """(n, 2): how the face's pixels moved from the frame before, turn and shift of ``motion.Motion``; NaN where unknown."""
    fade_in: bool = True
    """The face appears in the middle of a scene; False where a scene or the clip begins with it."""
    fade_out: bool = True
    person: Tensor | None = None
    """Mean embedding (D,), a unit vector; None without an embedder, and for tracks read from a file."""
    lender: int = -1
    """Place of its reference person among those given; -1 = nobody's."""
    fineness: Array = field(default_factory=_nothing)
    """(n,) :func:`~lafr_core.video.best.fineness`, NaN where unknown; empty where nobody looked, and later on."""
    best: tuple[int, ...] = ()
    """Numbers of those of its frames that help others."""
    helped: Array = field(default_factory=_nothing)
    """(n,) in [0, 1]: how much they lend to each frame; empty where none helps."""

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

    def begins_at(self, frames: int = 16) -> tuple[float, float, float, float]:
        """The median box of its first frames, rounded for people."""
        (x0, y0), (x1, y1) = np.median(self.points[:frames, 5:], axis=0).round(1).tolist()
        return x0, y0, x1, y1


# --- following ---


@dataclass(eq=False)
class _Open:
    """A track that may still go on."""

    start: int
    fade_in: bool
    rows: list[Array] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    steps: list[tuple[complex, complex]] = field(default_factory=list)
    fineness: list[float] = field(default_factory=list)
    last: Glimpse | None = None
    """What was seen of the face in the frame before this one."""
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
    """Frames in, in order, one after the other; tracks out at the end.

    closely: whether it is measured, too, how much of the face each frame shows.
    """

    def __init__(self, closely: bool = False) -> None:
        self._closely = closely
        self._before: Tensor | None = None
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
            self._extend(track, faces[number], embed, pixels)
        matched = {id(track) for track, _ in pairs}
        for track in self._open:
            if id(track) not in matched:
                track.rows.append(track.rows[-1])
                track.scores.append(0.0)
                track.steps.append(UNKNOWN)
                track.fineness.append(math.nan)
                track.last = None
                track.missed += 1
        ended = [track for track in self._open if track.missed > LONGEST_GAP]
        self._close(ended, fade_out=True)
        self._open = [track for track in self._open if track.missed <= LONGEST_GAP]
        at_edge = self.frames == 0 or bool(self._cuts and self._cuts[-1] == self.frames)
        for number, face in enumerate(faces):
            if number not in taken:
                track = _Open(self.frames, fade_in=not at_edge)
                self._open.append(track)
                self._extend(track, face, embed, pixels)
        self._before = pixels if self._closely else None
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

    def _extend(self, track: _Open, face: Face, embed: Embed, pixels: Tensor) -> None:
        if track.person is None or len(track.rows) % EMBED_EVERY == 0:
            seen = embed(face)
            if seen is not None:
                mixed = seen if track.person is None else REMEMBERED * track.person + (1 - REMEMBERED) * seen
                track.person = F.normalize(mixed, dim=0)
        seen_now = glimpse(pixels, face)
        step = None if track.last is None else between(track.last, seen_now)
        track.steps.append(UNKNOWN if step is None else (step.turn, step.shift))
        if step is None or self._before is None:
            track.fineness.append(math.nan)
        else:
            track.fineness.append(fineness(self._before, pixels, seen_now.at(SIDE), step))
        track.last = seen_now
        track.rows.append(_row(face))
        track.scores.append(max(1e-6, face.score))
        track.missed = 0

    def _close(self, tracks: Sequence[_Open], fade_out: bool) -> None:
        for track in tracks:
            seen = len(track.rows) - track.missed
            track.rows, track.scores, track.steps = track.rows[:seen], track.scores[:seen], track.steps[:seen]
            track.fineness = track.fineness[:seen]
            track.last = None
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
    steps = np.asarray(track.steps, dtype=np.complex64)
    fine = np.asarray(track.fineness, dtype=np.float32)
    return Track(number, track.start, places, scores, steps, track.fade_in, track.fade_out, track.person, fineness=fine)


# --- smoothing ---

Points = NDArray[np.complex128]
"""(n, p): x + iy."""


def smoothed(track: Track, reach: int) -> Track:
    """The track with the detector's jitter taken out, up to ``reach`` frames to each side; 0 returns it as it is.

    What the neighbours show is first moved along with the face's pixels, so that however the head moves, landmarks that stand
    still on it are averaged (Gaussian weights; outliers weigh little). It looks to both sides: nothing lags.
    """
    if reach < 1 or len(track.points) < 3:
        return track
    raw = track.points[..., 0].astype(np.float64) + 1j * track.points[..., 1]
    steps = _known_steps(raw, track.steps)
    calm = _mean(raw, steps, _trusted(raw, steps, track.found), reach)
    return replace(track, points=_flat(calm).astype(np.float32))


def _flat(points: Points) -> NDArray[np.float64]:
    """Complex (n, p) -> (n, p, 2)."""
    return np.stack([points.real, points.imag], axis=-1)


def _mean(points: Points, steps: Points, weight: NDArray[np.float64], reach: int) -> Points:
    """Around each frame the weighted mean of points brought there; weights (n, p)."""
    sums, total = weight * points, weight.copy()
    for offset, here, there, moved in _brought(points, steps, reach):
        share = math.exp(-0.5 * (offset / (0.6 * reach)) ** 2) * weight[there]
        sums[here] += share * moved
        total[here] += share
    return sums / total


def _brought(points: Points, steps: Points, reach: int) -> Iterator[tuple[int, slice, slice, Points]]:
    """For each offset within ``reach`` but 0: the frames ``here`` that have one so far away, those ``there``, and the points
    there moved along the steps (n, 2) to where the same places of the face are here."""
    n = len(points)
    on, back = steps, np.stack([1 / steps[:, 0], -steps[:, 1] / steps[:, 0]], axis=1)
    for sign in (1, -1):
        turn, shift = np.ones(n, dtype=np.complex128), np.zeros(n, dtype=np.complex128)
        for distance in range(1, min(reach, n - 1) + 1):
            early, late = slice(0, n - distance), slice(distance, n)
            # The way here grows by its far end: the step into the frame ahead, backwards, or the one out of the frame behind.
            more, kept = (back[late], slice(0, n - distance)) if sign > 0 else (on[1 : n - distance + 1], slice(1, None))
            turn, shift = turn[kept], shift[kept]
            turn, shift = turn * more[:, 0], turn * more[:, 1] + shift
            here, there = (early, late) if sign > 0 else (late, early)
            yield sign * distance, here, there, turn[:, None] * points[there] + shift[:, None]


def _known_steps(raw: Points, steps: Steps) -> Points:
    """The steps (n, 2), and where they are unknown those of the landmarks, a little calmed in place."""
    still = np.tile(np.asarray([1.0 + 0j, 0j]), (len(raw), 1))
    calm = _mean(raw, still, np.ones(raw.shape), 2)
    here, there = calm[:-1, :5], calm[1:, :5]
    here_middle, there_middle = here.mean(1, keepdims=True), there.mean(1, keepdims=True)
    away = here - here_middle
    turn = (away.conj() * (there - there_middle)).sum(1) / np.maximum((np.abs(away) ** 2).sum(1), 1e-9)
    still[1:] = np.stack([turn, there_middle[:, 0] - turn * here_middle[:, 0]], axis=1)
    unknown = np.isnan(steps.real).any(axis=1, keepdims=True)
    return np.where(unknown, still, steps.astype(np.complex128))


def _trusted(points: Points, steps: Points, found: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weights (n, p) of points: little where missed, near 0 for outliers (Tukey's biweight).

    An outlier lies away from the median of itself and the middles between its neighbours, one and two frames to each side.
    """
    brought = {offset: moved for offset, _, _, moved in _brought(points, steps, 2)}
    middles = [_flat(points)]
    for step in (1, 2):
        middle = points.copy()
        if len(points) > 2 * step:
            middle[step:-step] = (brought[step][step:] + brought[-step][: len(points) - 2 * step]) / 2
        middles.append(_flat(middle))
    off = np.linalg.norm(_flat(points) - np.median(middles, axis=0), axis=-1)
    scale = 4.7 * 1.4826 * np.median(off[found]) + 0.05 + 1e-3 * np.ptp(points[:, :5].real, axis=1).mean()
    return np.where(found, 1.0, GAP_WEIGHT)[:, None] * (np.clip(1 - (off / scale) ** 2, 0.0, 1.0) ** 2 + 1e-6)


# --- choosing ---


def helping(track: Track) -> Track:
    """The track with its best frames chosen, and how much they are to lend to each frame; it forgets what was measured."""
    best, helped = helpers(track.fineness)
    return replace(
        track,
        best=tuple(track.start + frame for frame in best),
        helped=helped if best else _nothing(),
        fineness=_nothing(),
    )


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
        "steps": np.concatenate([t.steps for t in tracks]) if tracks else empty[:, 0].astype(np.complex64),
        "numbers": np.asarray([t.number for t in tracks], dtype=np.int64),
        "lenders": np.asarray([t.lender for t in tracks], dtype=np.int64),
        "fades": np.asarray([(t.fade_in, t.fade_out) for t in tracks], dtype=bool).reshape(-1, 2),
        "best": np.asarray([(*t.best, *[-1] * MOST)[:MOST] for t in tracks], dtype=np.int64).reshape(-1, MOST),
        "helped": np.concatenate([_nothing(), *(t.helped for t in tracks)]),
    }


def from_arrays(arrays: dict[str, NDArray[Any]]) -> list[Track]:
    """See :func:`as_arrays`."""
    tracks, at, helped_at = [], 0, 0
    rows = [arrays[name].tolist() for name in ("numbers", "start", "length", "fades", "lenders", "best")]
    for number, start, length, (fade_in, fade_out), lender, best in zip(*rows, strict=True):
        part = slice(at, at + length)
        points, scores, steps = (arrays[name][part] for name in ("points", "scores", "steps"))
        kept = tuple(frame for frame in best if frame >= 0)
        helped = arrays["helped"][helped_at : helped_at + (length if kept else 0)]
        track = Track(number, start, points, scores, steps, fade_in, fade_out, None, lender, best=kept, helped=helped)
        tracks.append(track)
        at, helped_at = at + length, helped_at + len(helped)
    return tracks
