"""LAFR among the webui's face restorers: "Restore faces" in txt2img and img2img, and ``/sdapi/v1/face-restorers``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import options, restorer


class LafrFaceRestorer:
    """The two methods the webui asks of a face restorer."""

    cmd_dir = str(Path(__file__).parent.parent / "lafr_core" / "weights")

    def name(self) -> str:
        return "LAFR"

    def restore(self, np_image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) RGB uint8 -> the same shape; the input itself where no face was restored. Uses the settings page. Never
        raises.
        """
        image = Image.fromarray(np_image)
        result = restorer.restore(image, options.request())
        return np_image if result.image is image else np.asarray(result.image.convert("RGB"))


def register(restorers: list[Any]) -> None:
    """Put LAFR on the webui's list, once: "Reload UI" runs scripts again but keeps the list."""
    restorers[:] = [entry for entry in restorers if entry.name() != "LAFR"] + [LafrFaceRestorer()]
