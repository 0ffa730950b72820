"""What a clip is made of, whatever it came from: frames that can be looked at and, changed, written again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..images.photos import Photo
from . import planes


@dataclass(frozen=True)
class ClipInfo:
    """What is known of a clip before its frames are read."""

    name: str
    """What messages call it: the path."""
    size: tuple[int, int]
    """(h, w) as stored, before ``rotation``."""
    rate: Fraction
    """Frames a second, the mean where it varies."""
    time_base: Fraction
    """Seconds per unit of the frames' times."""
    frames: int = 0
    """How many frames the file promises; 0 = it does not say."""
    rotation: int = 0
    """Degrees counter-clockwise by which players turn the stored picture: 0, 90, 180 or 270."""
    notes: tuple[str, ...] = ()
    """Sentences for a person: what is special about the file."""


class Frame(Protocol):
    """One picture of a clip."""

    @property
    def index(self) -> int:
        """Number in the clip, from 0."""
        ...

    @property
    def time(self) -> int:
        """When it is shown, in units of the clip's time base; rises strictly from frame to frame."""
        ...

    @property
    def fault(self) -> str:
        """Why the frame should be left alone ('' = sound): the file is damaged there."""
        ...

    def pixels(self) -> Tensor:
        """(3, H, W) float32 RGB in [0, 1], upright, decoded anew at each call."""
        ...

    def restored(self, before: Tensor, after: Tensor) -> Frame:
        """The frame with the difference of two (3, H, W) upright pictures added; where they are equal it keeps its bits."""
        ...


class Clip(Protocol):
    """Frames in the order in which they are shown."""

    info: ClipInfo

    def frames(self, start: int = 0, times: Sequence[int] = ()) -> Iterator[Frame]:
        """The frames from number ``start`` on, one in memory at a time. ``times`` of all frames, from an earlier pass, allow
        the reader to jump. Raises ClipError when the file cannot be read."""
        ...


@dataclass(frozen=True, eq=False)
class CodedFrame:
    """A frame that PyAV decoded."""

    index: int
    time: int
    coded: Any
    rotation: int = 0
    fault: str = ""

    def pixels(self) -> Tensor:
        return torch.rot90(planes.to_rgb(self.coded), self.rotation // 90, (-2, -1)).contiguous()

    def restored(self, before: Tensor, after: Tensor) -> CodedFrame:
        change = torch.rot90(after - before, -(self.rotation // 90), (-2, -1)).contiguous()
        return replace(self, coded=planes.changed(self.coded, change))


@dataclass(frozen=True, eq=False)
class PhotoFrame:
    """A frame that is a picture of its own: a file of a folder, a picture of an animation, a row of a batch."""

    index: int
    time: int
    photo: Photo
    source: Path | None = None
    duration: int = 0
    """How long it is shown, in units of the time base; 0 where the clip does not say."""
    fault: str = ""

    def pixels(self) -> Tensor:
        return self.photo.pixels

    def restored(self, before: Tensor, after: Tensor) -> PhotoFrame:
        return replace(self, photo=replace(self.photo, pixels=torch.where(after == before, self.photo.pixels, after)))
