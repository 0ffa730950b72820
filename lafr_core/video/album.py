"""The best frames of the tracks that are at hand, as reference photos of the people in them.

From the first pass only their numbers are known. They are read again when a frame of their track first needs them, and let go
with the track's last: memory does not grow with the clip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..faces import people
from ..types import Embedder, Person
from .tracks import Track

UNLIKE, ALIKE = 0.35, 0.55
"""Cosine of a frame's face and the best frames' up to which it is lent nothing, and from which on all: a track may have gone
from one person to another."""

Seen = Callable[[Track, int], Tensor | None]
"""(track, one of its frames) -> its crop (3, 512, 512) there, as clean as it can be had; None where it is gone."""


@dataclass(frozen=True, eq=False)
class Lent:
    """What a track's best frames give to one of its frames."""

    person: Person
    weight: float
    """In (0, 1]."""


class Album:
    """The people of the present tracks. weight: how much is lent where most is."""

    def __init__(self, seen: Seen, embedder: Embedder | None, weight: float) -> None:
        self.seen, self.embedder, self.weight = seen, embedder, weight
        self.people: dict[int, tuple[Track, Person | None]] = {}

    def lent(self, track: Track, frame: int, crop: Tensor) -> Lent | None:
        """What helps the track's face in that frame, seen in ``crop`` (3, 512, 512); None where nothing does."""
        share = float(track.helped[frame - track.start]) if track.best else 0.0
        if share == 0.0 or self.embedder is None:
            return None
        person = self._person(track, self.embedder, crop)
        if person is None:
            return None
        with torch.no_grad():
            alike = float(self.embedder(crop[None])[0] @ person.embedding)
        share *= min(1.0, max(0.0, (alike - UNLIKE) / (ALIKE - UNLIKE)))
        return Lent(person, self.weight * share) if share > 0 else None

    def forget(self, frame: int) -> None:
        """Let go of tracks that are over before that frame."""
        self.people = {number: known for number, known in self.people.items() if known[0].stop > frame}

    def _person(self, track: Track, embedder: Embedder, like: Tensor) -> Person | None:
        """Who is seen in the best frames, on the device of ``like``."""
        if track.number not in self.people:
            crops = [crop.to(like) for frame in track.best if (crop := self.seen(track, frame)) is not None]
            person = people.known(f"track {track.number}", torch.stack(crops), embedder) if crops else None
            self.people[track.number] = track, person
        return self.people[track.number][1]
