"""Animated pictures (GIF, WebP, PNG) as clips: frames, the time that each is shown, how often it all plays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import ClipError, ImageFileError
from ..images import photos
from ..images.formats import canvas_limit, open_image, regular_file
from ..store.atomic import atomic
from .frames import ClipInfo, PhotoFrame
from .settings import ClipSettings
from .target import Seal, no_seal

SUFFIXES = {"GIF": ".gif", "WEBP": ".webp", "PNG": ".png"}
"""Pillow's name of a format that moves -> the suffix of its files."""
MOST_PIXELS = 1 << 28
"""All frames together; Pillow holds an animation's frames at once while it writes them (1 GB at this size)."""
CLOCK = Fraction(1, 1000)


def is_animation(path: Path) -> bool:
    """Whether the file is a picture of several frames; only its head is read."""
    if path.suffix.lower() not in (*SUFFIXES.values(), ".apng") or regular_file(path) is not None:
        return False
    try:
        with path.open("rb") as stream, open_image(stream, MOST_PIXELS) as image:
            return image.format in SUFFIXES and getattr(image, "n_frames", 1) > 1
    except Exception:  # damaged files make Pillow raise nearly anything; who reads the photo will say so
        return False


class AnimationClip:
    """One animated picture. Raises ClipError, path and one sentence, unless it can be read."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.faults: list[str] = []
        try:
            with self.path.open("rb") as stream, open_image(stream, MOST_PIXELS) as image:
                width, height = image.size
                self.kind, count = str(image.format), int(getattr(image, "n_frames", 1))
                if width * height * count > MOST_PIXELS:
                    raise ImageFileError(
                        f"{count} pictures of {width}x{height}; an animation may have {MOST_PIXELS // 1_000_000} megapixels "
                        "in all, convert it to MP4 first"
                    )
                image.load()
                self.loop = {"loop": int(image.info["loop"])} if "loop" in image.info else {}
                """How often it plays, as Pillow writes it; {} where the file does not say (a GIF then plays once)."""
                shown = _shown(image)
        except (ImageFileError, OSError) as error:
            raise ClipError(f"{self.path}: {getattr(error, 'strerror', None) or error}") from error
        except Exception as error:
            raise ClipError(f"{self.path}: damaged or cut short ({error or type(error).__name__}); copy it again") from error
        self.info = ClipInfo(str(self.path), (height, width), Fraction(1000, max(1, shown)), CLOCK, count)

    def frames(self, start: int = 0, times: Sequence[int] = ()) -> Iterator[PhotoFrame]:
        """See :class:`~lafr_core.video.frames.Clip`."""
        self.faults = []
        time = 0
        height, width = self.info.size
        with self.path.open("rb") as stream, open_image(stream, MOST_PIXELS) as image:
            for index in range(self.info.frames):
                try:
                    with canvas_limit(MOST_PIXELS // self.info.frames):
                        image.seek(index)
                    image.load()
                    shown = _shown(image)
                    # A GIF's picture may reach beyond the first one's canvas: players cut it off, Pillow lets the canvas grow.
                    photo = photos.from_pil(image.crop((0, 0, width, height))) if index >= start else None
                except Exception as error:  # as in photos.decode
                    large = isinstance(error, Image.DecompressionBombError)
                    why = "it reaches far beyond the first one" if large else error or type(error).__name__
                    self.faults.append(f"the file ends early, at picture {index} ({why})")
                    return
                if photo is not None:
                    yield PhotoFrame(index, time, photo, duration=shown)
                time += max(1, shown)


def _shown(image: Image.Image) -> int:
    """Milliseconds that the loaded frame is shown."""
    return round(float(image.info.get("duration", 0) or 0))


@dataclass(frozen=True)
class Animation:
    """An animated picture of the source's kind."""

    clip: AnimationClip
    how: ClipSettings

    @property
    def suffix(self) -> str:
        return SUFFIXES[self.clip.kind]

    @property
    def notes(self) -> tuple[str, ...]:
        if self.clip.kind == "GIF":
            return ("GIF files hold 256 colours a picture: restored faces may show steps",)
        return ()

    def segment(self, path: Path) -> Drawer:
        return Drawer(path)

    def join(
        self, segments: Sequence[Path], out: Path, *, whole: bool = True, replace: bool = False, seal: Seal = no_seal
    ) -> None:
        """See :class:`~lafr_core.video.target.Target`."""
        files = [file for segment in segments for file in sorted(segment.iterdir())]
        durations = [int(file.stem.partition("-")[2]) for file in files]
        try:
            with atomic(out, replace=replace) as temporary:
                _opened(files[0], self.clip.kind).save(
                    temporary, format=self.clip.kind, save_all=True, append_images=_Rest(files[1:], self.clip.kind),
                    duration=durations, **self._options(),
                )  # fmt: skip
                seal(self.clip.path, temporary, out)
        except (OSError, ValueError) as error:
            raise ClipError(f"{out}: cannot be written ({getattr(error, 'strerror', None) or error})") from error

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = dict(self.clip.loop)
        if self.clip.kind == "GIF":
            options |= {"disposal": 2, "optimize": False}
        if self.clip.kind == "WEBP":
            options |= {"lossless": self.how.codec == "ffv1" or self.how.crf == 0, "quality": 100 - round(0.3 * self.how.crf)}
        return options


@dataclass(frozen=True)
class _Rest:
    """Frames' files, opened when it is their turn, as often as Pillow asks."""

    files: Sequence[Path]
    kind: str

    def __iter__(self) -> Iterator[Image.Image]:
        return (_opened(file, self.kind) for file in self.files)


def _opened(file: Path, kind: str) -> Image.Image:
    image = photos.to_pil(photos.read(file))
    if kind != "GIF":
        return image.convert("RGBA" if "A" in image.mode else "RGB")
    if "A" in image.mode:
        return image.convert("RGBA").quantize(256, method=Image.Quantize.FASTOCTREE)
    return image.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT)


class Drawer:
    """Frames as PNG files in a folder, their number and duration in their names."""

    def __init__(self, path: Path) -> None:
        self.path, self.frames = path, 0
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ClipError(f"{path}: cannot be written ({error.strerror or error})") from error

    def write(self, frame: PhotoFrame) -> None:
        """Add one frame."""
        photos.write(self.path / f"{frame.index:06d}-{frame.duration}.png", frame.photo)
        self.frames += 1

    def close(self) -> None:
        """Nothing is held back."""

    def abandon(self) -> None:
        """Nothing is held back."""
