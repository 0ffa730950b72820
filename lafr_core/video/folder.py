"""A folder of numbered pictures as a clip: what renderers and editors hand over. Results keep the pictures' names."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch

from ..errors import ClipError, LafrError
from ..images import photos
from ..images.formats import SUFFIXES
from ..images.photos import Photo
from ..store.atomic import temporary_name
from .frames import ClipInfo, PhotoFrame
from .target import Seal, no_seal

RATE = Fraction(25)
"""Frames a second; a folder does not say, and nothing depends on it."""
Reader = Callable[[Path], Photo]
"""Gives the picture in a file, or raises LafrError: path and one sentence."""


class PictureFiles:
    """Picture files as a :class:`~lafr_core.video.frames.Clip`: one frame each, in the order given; times are their numbers.

    A file that cannot be read or has another size than the clip is a frame with a fault. The last sound picture stands in for
    its pixels, gray before the first: where nothing moves no cut is seen, and faces are followed across the hole.
    """

    def __init__(self, paths: Sequence[Path], size: tuple[int, int], read: Reader = photos.read) -> None:
        """``size``: (h, w) of the frames."""
        self.paths, self.read = tuple(paths), read
        self.info = ClipInfo(str(self.paths[0].parent), size, RATE, 1 / RATE, len(self.paths))

    def frames(self, start: int = 0, times: Sequence[int] = ()) -> Iterator[PhotoFrame]:
        """See :class:`~lafr_core.video.frames.Clip`."""
        height, width = self.info.size
        last = Photo(torch.full((3, height, width), 0.5))  # type: ignore[arg-type]
        for index in range(start, len(self.paths)):
            path, fault = self.paths[index], ""
            photo = _tried(path, self.read)
            if isinstance(photo, str):
                fault = f"{path.name}: {photo}"
            elif tuple(photo.stored.shape[-2:]) != self.info.size:
                was = "x".join(map(str, reversed(photo.stored.shape[-2:])))
                fault = f"{path.name}: {was} pixels where the first frame has {width}x{height}"
            else:
                last = photo
            yield PhotoFrame(index, index, last, path, fault=fault)


def _tried(path: Path, read: Reader) -> Photo | str:
    """The picture, or why there is none."""
    try:
        return read(path)
    except LafrError as error:
        return str(error).removeprefix(f"{path}: ")


class FolderClip(PictureFiles):
    """The pictures of a folder, in the order of their names, numbers by their value. Raises ClipError where there are none."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.faults: list[str] = []
        try:
            names = [entry.name for entry in os.scandir(self.path) if not entry.name.startswith(".") and entry.is_file()]
        except OSError as error:
            raise ClipError(f"{self.path}: the folder cannot be read ({error.strerror or error})") from error
        self.names = sorted((name for name in names if Path(name).suffix.lower() in SUFFIXES), key=_in_order)
        if not self.names:
            raise ClipError(f"{self.path}: expected a folder of frames, found no pictures in it")
        self._stems = Counter(Path(name).stem.casefold() for name in self.names)
        paths = [self.path / name for name in self.names]
        tried = (_tried(path, photos.read) for path in paths)
        size = next((photo.stored.shape[-2:] for photo in tried if isinstance(photo, Photo)), None)
        if size is None:
            raise ClipError(f"{self.path}: expected a folder of frames, found no picture that can be decoded; copy it again")
        super().__init__(paths, (size[0], size[1]))

    def result_name(self, index: int) -> str:
        """What a frame's result is called: PNG, with the old suffix before it where two frames would get one name."""
        name = self.names[index]
        return f"{name if self._stems[Path(name).stem.casefold()] > 1 else Path(name).stem}.png"


def _in_order(name: str) -> tuple[tuple[int, str, int], ...]:
    """'frame10.png' after 'frame9.png'."""
    parts = re.findall(r"\d+|\D+", name.casefold())
    return tuple((0, "", int(part)) if part.isdecimal() else (1, part, 0) for part in parts)


@dataclass(frozen=True)
class Folder:
    """A folder of PNG files; a frame that could not be read is copied as it is."""

    clip: FolderClip
    suffix: str = ""
    notes: tuple[str, ...] = ()

    def segment(self, path: Path) -> Shelf:
        return Shelf(path, self.clip)

    def join(
        self, segments: Sequence[Path], out: Path, *, whole: bool = True, replace: bool = False, seal: Seal = no_seal
    ) -> None:
        """See :class:`~lafr_core.video.target.Target`. In a folder that may be replaced, files of the same names are."""
        sources = {self.clip.result_name(index): name for index, name in enumerate(self.clip.names)}
        temporary = temporary_name(out)
        try:
            temporary.mkdir(parents=True)
            files = [file for segment in segments for file in sorted(segment.iterdir())]
            for file in files:
                written = temporary / file.name
                shutil.copy2(file, written)
                seal(self.clip.path / sources.get(file.name, file.name), written, out / file.name)
            if replace and out.is_dir():
                for file in temporary.iterdir():
                    os.replace(file, out / file.name)
                temporary.rmdir()
            else:
                os.replace(temporary, out)
        except OSError as error:
            raise ClipError(f"{out}: cannot be written ({error.strerror or error})") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


class Shelf:
    """The results of some frames in a folder, under their names."""

    def __init__(self, path: Path, clip: FolderClip) -> None:
        self.path, self.clip, self.frames = path, clip, 0
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ClipError(f"{path}: cannot be written ({error.strerror or error})") from error

    def write(self, frame: PhotoFrame) -> None:
        """Add one frame."""
        if frame.fault and frame.source is not None:
            try:
                shutil.copy2(frame.source, self.path / frame.source.name)
            except OSError as error:
                raise ClipError(f"{frame.source}: cannot be copied ({error.strerror or error})") from error
        else:
            photos.write(self.path / self.clip.result_name(frame.index), frame.photo)
        self.frames += 1

    def close(self) -> None:
        """Nothing is held back."""

    def abandon(self) -> None:
        """Nothing is held back."""
