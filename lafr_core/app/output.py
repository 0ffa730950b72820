"""What the results look like as files, and pictures that a command draws for people."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .. import __version__
from ..errors import InputError
from ..images import encode, photos
from ..images.photos import Photo
from ..store.outputs import Outputs

FORMATS = ("png", "jpg", "webp", "tiff", "same")
_SUFFIX = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tif"}


@dataclass(frozen=True)
class Style:
    """How results are written."""

    format: str = "png"
    """One of FORMATS; same = the source's, PNG where that cannot be written."""
    quality: int = encode.QUALITY
    """Of JPEG and WebP, 1 to 100."""
    record: bool = True
    """Whether a restored photo says so itself, in EXIF and XMP."""

    def suffix(self, source: Path) -> str:
        """What the name of the result of ``source`` ends with."""
        if self.format != "same":
            return _SUFFIX[self.format]
        return source.suffix if source.suffix.lower() in encode.KINDS else ".png"

    def finished(self, photo: Photo, what: Mapping[str, Any]) -> Photo:
        """The restored photo with its record, where that is wanted."""
        return photos.recorded(photo, f"LAFR {__version__}", what) if self.record else photo

    def losses(self, photo: Photo, output: Path) -> list[str]:
        """One sentence for each thing that came with the photo and that the result cannot hold."""
        return photos.losses(photo, encode.KINDS[output.suffix.lower()])

    def keeps_file(self, source: Path, output: Path) -> bool:
        """Whether an unchanged photo is copied as a file: writing a JPEG or WebP anew would change its pixels."""
        kind = encode.KINDS[output.suffix.lower()]
        return kind not in encode.LOSSLESS and self.format == "same" and encode.KINDS.get(source.suffix.lower()) == kind

    def save(self, path: Path, photo: Photo, output: Path) -> None:
        """Write to ``path`` what will be called ``output``."""
        photos.write(path, photo, encode.KINDS[output.suffix.lower()], quality=self.quality, called=output, overwrite=True)


def copy(source: Path, path: Path) -> None:
    """The source's bytes under another name."""
    shutil.copyfile(source, path)


def save_png(outputs: Outputs, path: Path, image: Image.Image) -> None:
    """Write ``image`` as PNG. Raises InputError when it may not or cannot be written."""
    try:
        with outputs.writing(path) as temporary:
            image.save(temporary, format="PNG")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
