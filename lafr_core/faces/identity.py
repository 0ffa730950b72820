"""Who is it still? Cosine between the identity embeddings of two crops."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from ..geometry import ARCFACE_TEMPLATE
from ..store import assets, checkpoint
from ..types import Embedder
from .crop import template_crops
from .networks.embedder import INPUT_SIDE, StarterEmbedderNet


class StarterEmbedder:
    """StarterEmbedderNet as a :class:`~lafr_core.types.Embedder`: the crop is brought to the ArcFace template first.

    Differentiable with respect to the crops. It tells whether a face is still the same person after restoration; it is not made
    for recognising people.
    """

    name = "starter"

    def __init__(self, network: StarterEmbedderNet, device: torch.device) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.device = device

    def __call__(self, crops: Tensor) -> Tensor:
        """FFHQ-template crops (B, 3, S, S) in [0, 1] -> unit vectors (B, D) on the embedder's device."""
        if crops.ndim != 4 or crops.shape[1] != 3:
            raise InputError(f"embedder: expected RGB crops (B, 3, S, S), got {tuple(crops.shape)}")
        small = template_crops(crops.to(self.device, torch.float32), ARCFACE_TEMPLATE, INPUT_SIDE)
        embedding: Tensor = self.network(small)
        return embedding


def cosine(embedder: Embedder, a: Tensor, b: Tensor) -> list[float]:
    """How alike the faces of crops ``a`` and ``b`` (B, 3, 512, 512) are, pair by pair: cosines in [-1, 1].

    Raises InputError when the two are not of one shape. B may be 0.
    """
    if a.shape != b.shape:
        raise InputError(f"cosine: expected two batches of crops of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if a.shape[0] == 0:
        return []
    with torch.no_grad():
        first, second = embedder(a), embedder(b)
        return [float(v) for v in (first * second).sum(1).clamp(-1, 1)]


def likeness(embedder: Embedder, crop: Tensor, person: Tensor) -> float:
    """Cosine in [-1, 1] of the face in ``crop`` (1, 3, 512, 512) and a person's unit vector (D,)."""
    with torch.no_grad():
        return float((embedder(crop)[0] * person.to(crop.device)).sum().clamp(-1, 1))


def open_embedder(path: Path | None, device: torch.device | str) -> Embedder | None:
    """The embedder in the LAFR embedder file ``path``. None: the starter embedder of this repository, or None without it.

    Raises CheckpointError when a given file is missing, damaged or of another kind.
    """
    if path is None:
        path = assets.bundled("embedder")
        if not path.is_file():
            return None
    return StarterEmbedder(checkpoint.open_network(Path(path), "embedder", StarterEmbedderNet), torch.device(device))
