"""A clip's faces found, followed and restored, frame by frame, in a window of fixed length: memory does not grow.

Two passes. The first looks for faces in every frame and joins them to tracks; the second restores. So a track is known to its
end before its first frame is restored: nothing lags, short phantoms never appear, and the pass can begin anywhere.
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile

import torch
from torch import Tensor

from ..errors import SettingsError
from ..faces import color, grain
from ..faces.crop import crop_faces, place
from ..faces.detect import search
from ..faces.masks import check_parser
from ..faces.paste import paste_into
from ..faces.people import nearest
from ..geometry import CROP_SIZE, scale_of
from ..pipeline import NO_REFERENCES, References, judged, restore_faces, restore_pixels
from ..settings import RestoreSettings
from ..types import Face, Models, Progress, ignore_progress
from .album import Album
from .frames import Clip, Frame
from .steady import calmed, fuse_at, reach_of, resized, without_lattice, working_side
from .tracks import Track, Tracker, chosen, fade, helping, smoothed

LANDMARK_REACH = 6
"""Frames to each side over which landmarks are smoothed at steadiness 1."""
FADE = 6
"""Frames over which a face that appears in the middle of a scene is blended in, at steadiness 1."""


@dataclass(frozen=True)
class Survey:
    """What the first pass finds out about a clip."""

    tracks: tuple[Track, ...]
    """The chosen ones, in the chosen order, smoothed."""
    times: Sequence[int]
    """When each frame is shown, in the clip's time base: 8 bytes a frame."""
    found: int = 0
    """How many tracks there were before the settings chose."""
    cuts: tuple[int, ...] = ()
    """Frames with which a new scene begins."""
    faults: tuple[tuple[int, str], ...] = ()
    """Frames that are damaged, and how: they are passed through."""
    best_frames: float = 0.0
    """How much a track's best frames lend where they lend most."""


@dataclass(frozen=True, eq=False)
class RestoredFrame:
    """One frame of the result."""

    frame: Frame
    """The frame to write."""
    faces: tuple[tuple[int, Face], ...] = ()
    """(number of the track, the face restored in this frame with its read-outs)."""
    mask: Tensor | None = None
    """(1, H, W) in [0, 1]: where the frame was changed, and how far; None where it was not."""


def survey(
    clip: Clip,
    models: Models,
    settings: RestoreSettings,
    steadiness: float,
    *,
    best_frames: float = 0.0,
    references: References = NO_REFERENCES,
    progress: Progress = ignore_progress,
) -> Survey:
    """The first pass: every frame looked at once. Raises ClipError, Cancelled through ``progress``.

    best_frames: how much a track's best frames are to lend to those that are clearly worse, 0 (nothing) to 1. references:
    people whose photos help; each track takes the one that its mean embedding is most like, if likely, and then lends itself
    nothing.
    """
    check_steadiness(steadiness)
    if not 0.0 <= best_frames <= 1.0:
        raise SettingsError(f"best_frames: expected 0 to 1, got {best_frames!r}")
    closely = steadiness > 0 and best_frames > 0 and models.embedder is not None
    tracker, times, faults = Tracker(closely), array("q"), []
    size = (0, 0)
    for frame in clip.frames():
        pixels = frame.pixels()
        if frame.fault:
            faults.append((frame.index, frame.fault))
        else:
            size = (pixels.shape[-2], pixels.shape[-1])
        faces = [] if frame.fault else search(pixels, models.detector, settings)

        def embed(face: Face, pixels: Tensor = pixels) -> Tensor | None:
            if models.embedder is None:
                return None
            with torch.no_grad():
                return models.embedder(crop_faces(pixels[None], [place(replace(face, image_index=0))]))[0].cpu()

        tracker.add(pixels, faces, embed)
        times.append(frame.time)
        progress("look", frame.index + 1, max(clip.info.frames, frame.index + 1))
    tracks = tracker.finish()
    wanted = [replace(track, lender=_lender(track, references)) for track in chosen(tracks, size, settings)]
    wanted = [helping(track) if closely and track.lender < 0 else track for track in wanted]
    reach = round(LANDMARK_REACH * steadiness)
    steady = tuple(smoothed(track, reach) for track in wanted)
    return Survey(steady, times, len(tracks), tracker.cuts, tuple(faults), best_frames)


def _lender(track: Track, references: References) -> int:
    if track.person is None or not references.people:
        return -1
    (person,) = nearest(track.person[None], references.people)
    return next((place for place, known in enumerate(references.people) if known is person), -1)


def check_steadiness(steadiness: float) -> None:
    """Raise SettingsError unless 0 <= steadiness <= 1."""
    if not 0.0 <= steadiness <= 1.0:
        raise SettingsError(f"steadiness: expected 0 to 1, got {steadiness!r}")


def restored_frames(
    clip: Clip,
    known: Survey,
    models: Models,
    settings: RestoreSettings,
    steadiness: float,
    *,
    start: int = 0,
    stop: int | None = None,
    references: References = NO_REFERENCES,
    progress: Progress = ignore_progress,
) -> Iterator[RestoredFrame]:
    """The second pass: frames ``start`` to ``stop`` (None = the end), restored, in order.

    Each frame's result depends on frames at most a few before and behind it, so that any part of a clip comes out the same
    whether it is done alone or as part of the whole. At steadiness 0 each frame is restored as a photo is, bit for bit.
    references: those that :func:`survey` was given.
    """
    check_steadiness(steadiness)
    check_parser(models.parser, settings)
    end = len(known.times) if stop is None else min(stop, len(known.times))
    if steadiness == 0:
        yield from _one_by_one(clip, known, models, settings, start, end, references, progress)
        return
    window = _Window(clip, known, models, settings, references, steadiness, start, end)
    for frame in clip.frames(window.first, known.times):
        if frame.index >= window.last:
            break
        for done in window.add(frame):
            progress("restore", done.frame.index + 1 - start, end - start)
            yield done
    for done in window.finish():
        progress("restore", done.frame.index + 1 - start, end - start)
        yield done


def _one_by_one(
    clip: Clip,
    known: Survey,
    models: Models,
    settings: RestoreSettings,
    start: int,
    end: int,
    references: References,
    progress: Progress,
) -> Iterator[RestoredFrame]:
    """Frames as photos: the detector's own faces, no track, no memory."""
    for frame in clip.frames(start, known.times):
        if frame.index >= end:
            return
        if frame.fault:
            yield RestoredFrame(frame)
            continue
        before = frame.pixels()
        result = restore_faces(before[None], models, settings, references=references)
        done = frame.restored(before, result.images[0]) if result.faces else frame
        progress("restore", frame.index + 1 - start, end - start)
        yield RestoredFrame(done, tuple(enumerate(result.faces)), result.masks[0] if result.faces else None)


# --- the window ---


def _enlarged(track: Track) -> float:
    """How many times as large as in the frames a track's face is in its crops, where it is largest of some 200 frames."""
    faces = (track.face(frame) for frame in range(track.start, track.stop, max(1, len(track.points) // 200)))
    matrices = [place(face).matrix for face in faces if face is not None]
    return min(scale_of(matrix) for matrix in matrices if matrix is not None)


def _seen_again(clip: Clip, times: Sequence[int], steadiness: float, track: Track, index: int) -> Tensor | None:
    """A track's crop (3, 512, 512) in frame ``index``, read anew and cleaned with its neighbours'; None where it is not to be
    had any more."""
    near = reach_of(steadiness)
    first, last = max(track.start, index - near), min(track.stop - 1, index + near)
    crops: dict[int, Tensor] = {}
    # A copy of the clip: the reader that is under way goes on counting its faults.
    for frame in takewhile(lambda frame: frame.index <= last, copy.copy(clip).frames(first, times)):
        face = track.face(frame.index)
        if face is not None and not frame.fault:
            crops[frame.index] = crop_faces(frame.pixels()[None], [place(face)])[0]
    if index not in crops:
        return None
    side = working_side(CROP_SIZE, _enlarged(track))
    return fuse_at(torch.stack(list(crops.values())), list(crops).index(index), steadiness, side)


@dataclass(eq=False)
class _Held:
    """One frame in the window, and what is known of each of its faces so far, by track number."""

    frame: Frame
    faces: dict[int, Face] = field(default_factory=dict)
    crops: dict[int, Tensor] = field(default_factory=dict)
    """Cut out of the frame."""
    fused: dict[int, Tensor] = field(default_factory=dict)
    """Cleaned with the neighbours' crops."""
    changes: dict[int, Tensor] = field(default_factory=dict)
    """What restoring adds to ``fused``, float16, not much finer than the frame can show."""


class _Window:
    """Frames pass through: cut out at the front, cleaned and restored in the middle, steadied and pasted at the back.

    To give frames start to end it wants to be fed frames ``first`` to ``last``.
    """

    def __init__(
        self, clip: Clip, known: Survey, models: Models, settings: RestoreSettings, references: References, steadiness: float,
        start: int, end: int,
    ) -> None:  # fmt: skip
        self.tracks = {track.number: track for track in known.tracks}
        people = references.people
        self.lenders = {n: people[track.lender] if track.lender >= 0 else None for n, track in self.tracks.items()}
        self.weight = references.weight
        self.enlarged = {n: _enlarged(track) for n, track in self.tracks.items()}
        self.known, self.models, self.settings, self.steadiness = known, models, settings, steadiness
        self.near = reach_of(steadiness)
        total = len(known.times)
        self.first, self.last = max(0, start - 2 * self.near), min(total, end + 2 * self.near)
        self.clean_end, self.end = min(total, end + self.near), end
        self.next_clean, self.next_done = max(0, start - self.near), start
        self.held: dict[int, _Held] = {}
        seen = partial(_seen_again, clip, known.times, steadiness)
        self.album = Album(seen, models.embedder, known.best_frames)

    def add(self, frame: Frame) -> Iterator[RestoredFrame]:
        """Take the next frame in; give those that are done."""
        self.held[frame.index] = self._cut_out(frame)
        yield from self._advance(frame.index + 1)

    def finish(self) -> Iterator[RestoredFrame]:
        """Give the rest: no further frames come."""
        yield from self._advance(self.last + self.near)

    def _advance(self, fed: int) -> Iterator[RestoredFrame]:
        """``fed``: number of the first frame that has not come in."""
        while self.next_clean < min(self.clean_end, fed - self.near) and self.next_clean in self.held:
            self._clean(self.next_clean)
            self.next_clean += 1
        over = self.next_clean >= self.clean_end
        while (
            self.next_done < self.end and (over or self.next_done < self.next_clean - self.near) and self.next_done in self.held
        ):
            yield self._finished(self.next_done)
            self.next_done += 1
            for index in [index for index in self.held if index < self.next_done - self.near]:
                del self.held[index]

    def _cut_out(self, frame: Frame) -> _Held:
        held = _Held(frame)
        if frame.fault:
            return held
        for track in self.known.tracks:
            face = track.face(frame.index)
            if face is not None:
                held.faces[track.number] = place(face)
        if held.faces:
            crops = crop_faces(frame.pixels()[None], list(held.faces.values()))
            held.crops = dict(zip(held.faces, crops, strict=True))
        return held

    def _clean(self, index: int) -> None:
        """Crops cleaned with their neighbours', and what restoring changes in them."""
        held = self.held[index]
        for number in held.crops:
            crops, middle = self._series(index, number, "crops")
            held.fused[number] = fuse_at(crops, middle, self.steadiness, self._side(number))
        self.album.forget(index)
        own = {
            number: lent
            for number, crop in held.fused.items()
            if (lent := self.album.lent(self.tracks[number], index, crop.to(self.models.device, torch.float32)))
        }
        numbers = [number for number in held.fused if number not in own]
        size = self.settings.batch_size
        batches = [numbers[at : at + size] for at in range(0, len(numbers), size)] + [[number] for number in own]
        for batch in batches:
            crops = torch.stack([held.fused[number] for number in batch]).to(self.models.device, torch.float32)
            lenders, weight = [self.lenders[number] for number in batch], self.weight
            if batch[0] in own:  # alone: each of these is lent differently
                lenders, weight = [own[batch[0]].person], own[batch[0]].weight
            with torch.no_grad():
                out = restore_pixels(
                    crops, self.models, self.settings.fidelity, self.settings.detail, lenders=lenders, weight=weight
                )
                changes = color.match_color(out, crops, self.settings.color) - crops
                changes = without_lattice(changes, self.models.vae.spec.factor)
            for number, change in zip(batch, changes, strict=True):
                # Twice as fine as the frame, so that shrinking costs no sharpness.
                side = min(CROP_SIZE, 2 * self._side(number))
                held.changes[number] = resized(change[None], side)[0].to("cpu", torch.float16)

    def _side(self, number: int) -> int:
        """The side at which a track's crops are worked on: one for all its frames, so that they fit together."""
        return working_side(CROP_SIZE, self.enlarged[number])

    def _series(self, index: int, number: int, what: str) -> tuple[Tensor, int]:
        """One track's crops or changes in the unbroken frames around ``index``, and which of them is its own."""
        low = high = index
        while low - 1 >= index - self.near and number in getattr(self.held.get(low - 1), what, {}):
            low -= 1
        while high + 1 <= index + self.near and number in getattr(self.held.get(high + 1), what, {}):
            high += 1
        return torch.stack([getattr(self.held[k], what)[number] for k in range(low, high + 1)]), index - low

    def _finished(self, index: int) -> RestoredFrame:
        """What restoring adds, steadied, put on the clean crops, pasted."""
        held, models, settings = self.held[index], self.models, self.settings
        if not held.changes:
            return RestoredFrame(held.frame)
        before = held.frame.pixels()
        after, masks = before.clone()[None], before.new_zeros((1, 1, *before.shape[-2:]))
        done: list[tuple[int, Face]] = []
        for number in held.changes:
            face, crop = held.faces[number], held.crops[number][None].to(models.device)
            changes, middle = self._series(index, number, "changes")
            clean, _ = self._series(index, number, "fused")
            change = calmed(changes.float(), clean, middle, self.steadiness)
            out = (held.fused[number] + resized(change[None], CROP_SIZE)).clamp(0, 1).to(models.device)
            with torch.no_grad():
                out = grain.match_grain(out, crop, settings.grain)
                (face,) = judged([face], crop, out, models, [self.lenders[number]])
            strength = settings.strength * fade(self.tracks[number], index, round(FADE * self.steadiness))
            pasting = replace(settings, strength=strength)
            paste_into(after, masks, [replace(face, image_index=0)], out.to(before), pasting, parser=models.parser)
            done.append((number, face))
        return RestoredFrame(held.frame.restored(before, after[0]), tuple(done), masks[0])
