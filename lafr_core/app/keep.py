"""The masks that ``--keep-mask`` names: where photos stay as they are."""

from __future__ import annotations

import functools
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
        if not self.root.is_dir():
            return
        try:
            named = self.named
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"--keep-mask: {self.root}: cannot be read ({reason}); change its permissions") from error
        if not named:
            raise InputError(f"--keep-mask: {self.root}: expected masks with the photos' names in this folder, found no file")

    def of(self, source: Path, photo: Photo, factor: int = 1) -> Tensor | None:
        """The mask of one photo, ``factor`` times enlarged; None where the folder has none of its name. Raises LafrError."""
        path = self.named.get(source.stem) if self.root.is_dir() else self.root
        if path is None:
            return None
        try:
            return keep_mask(self.read(path), photo, factor)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    @functools.cached_property
    def named(self) -> dict[str, Path]:
        """The folder's files by their names without the suffix; of several the first."""
        return {path.stem: path for path in sorted(self.root.iterdir(), reverse=True) if path.is_file()}
