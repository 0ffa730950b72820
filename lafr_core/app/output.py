"""Pictures that a command draws for people, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ..errors import InputError
from ..store.outputs import Outputs


def save_png(outputs: Outputs, path: Path, image: Image.Image) -> None:
    """Write ``image`` as PNG. Raises InputError when it may not or cannot be written."""
    try:
        with outputs.writing(path) as temporary:
            image.save(temporary, format="PNG")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
