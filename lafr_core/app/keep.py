"""The masks that ``--keep-mask`` names: where photos stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import InputError
from ..images.keep import keep_mask
from ..images.photos import Photo


@dataclass(frozen=True)
class KeepMasks:
    """A mask file for every photo, or a folder of masks that have their photos' names (``album/a.jpg``: ``masks/a.png``)."""

    root: Path
    read: Callable[[Path], Photo]

    def __post_init__(self) -> None:
        if not self.root.exists():
            raise InputError(f"--keep-mask: expected a mask file or a folder of masks, found nothing at {self.root}")

    def of(self, source: Path, photo: Photo, factor: int = 1) -> Tensor | None:
        """The mask of one photo, ``factor`` times enlarged; None where the folder has none of its name. Raises LafrError."""
        path = self._path(source)
        if path is None:
            return None
        height, width = photo.stored.shape[-2:]
        try:
            return keep_mask(self.read(path), (height, width), factor)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def _path(self, source: Path) -> Path | None:
        if not self.root.is_dir():
            return self.root
        return next((path for path in sorted(self.root.iterdir()) if path.stem == source.stem and path.is_file()), None)
