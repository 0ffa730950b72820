"""insightface's SCRFD detectors (Guo et al. 2021), optional: an ONNX file that the user brings, run by insightface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError, MissingPackageError
from ...types import Face
from ..boxes import five, merge

FILES = (
    "det_10g.onnx", "scrfd_10g_bnkps.onnx", "scrfd_2.5g_bnkps.onnx", "det_2.5g.onnx", "det_500m.onnx", "scrfd_500m_bnkps.onnx",
)  # fmt: skip
"""SCRFD files with landmarks, best first (det_10g.onnx is the detector of insightface's buffalo_l pack)."""

URL = "https://github.com/deepinsight/insightface/releases/tag/v0.7"


class ScrfdDetector:
    """insightface's SCRFD as a :class:`~lafr_core.types.Detector`. onnxruntime takes the pixels from the CPU."""

    name = "scrfd"

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, image: Tensor, threshold: float) -> list[Face]:
        """(3, H, W) in [0, 1] -> faces with score >= threshold, best first."""
        height, width = image.shape[-2:]
        pixels = (image.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
        bgr = pixels.flip(0).permute(1, 2, 0).contiguous().numpy()
        found: list[Face] = []
        # SCRFD letterboxes to a square itself; a second, smaller look finds faces that fill the picture.
        native = _multiple(max(height, width))
        for side in sorted({native, min(native, 320)}, reverse=True):
            boxes, landmarks = self.model.detect(bgr, input_size=(side, side), det_thresh=threshold)
            if landmarks is None:
                continue
            for box, points in zip(boxes.tolist(), landmarks.tolist(), strict=True):
                found.append(Face((box[0], box[1], box[2], box[3]), five(points), min(1.0, max(0.0, box[4]))))
        return [face for face in merge(found) if face.score >= threshold]


def _multiple(side: int) -> int:
    return max(64, -(-side // 32) * 32)


def open_scrfd(path: Path) -> ScrfdDetector:
    """SCRFD from an ONNX file. ONNX is data: nothing in it is executed but its graph.

    Raises MissingPackageError without insightface and onnxruntime, CheckpointError when the file is missing, damaged or no
    SCRFD with landmarks.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: expected an SCRFD file such as {FILES[0]}, found no file; take it from insightface's packs ({URL})"
        )
    try:
        from insightface.model_zoo import model_zoo
    except ImportError as error:
        raise MissingPackageError(
            f"SCRFD needs insightface and onnxruntime, which cannot be imported ({error}); "
            "run 'pip install insightface onnxruntime' or use the starter detector"
        ) from error
    try:
        model = model_zoo.get_model(str(path))
    except Exception as error:  # onnxruntime and onnx raise a family of their own for damaged files
        raise CheckpointError(
            f"{path}: not a readable SCRFD file ({error}); take it again from insightface's packs ({URL})"
        ) from error
    if getattr(model, "taskname", None) != "detection" or not getattr(model, "use_kps", False):
        raise CheckpointError(f"{path}: expected an SCRFD detector with landmarks (a *_bnkps or det_* file), got another model")
    model.prepare(-1, input_size=(640, 640))
    return ScrfdDetector(model)
