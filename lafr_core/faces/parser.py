"""Face parsing with facexlib's networks, when their weights are at hand: which pixels of a crop are face or hair."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, MissingPackageError
from ..store import assets
from ..types import Parser

FILES = ("parsing_parsenet.pth", "parsing_bisenet.pth")
"""facexlib's own file names, the better network first."""

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Layout:
    """What tells one parsing network's weights, input and labels from another's."""

    name: str
    key: str
    """A tensor only this network has: weights are told apart by their keys, never by the file name."""
    mean: Triple
    std: Triple
    face: tuple[int, ...]
    """Labels that belong to the pasted face: everything from skin to lips, and hair, which the prior restores as well."""


# Label tables: CelebAMask-HQ order for ParseNet (facexlib's paste takes the same), face-parsing.PyTorch order for BiSeNet.
PARSENET = Layout("parsenet", "out_mask_conv.conv2d.weight", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (*range(1, 14), 15))
BISENET = Layout("bisenet", "ffm.convblk.conv.weight", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (*range(1, 14), 17))


class FacexlibParser:
    """A :class:`~lafr_core.types.Parser` over one of facexlib's 19-label networks."""

    def __init__(self, network: nn.Module, layout: Layout, device: torch.device) -> None:
        self.name = layout.name
        self.network = network
        self.layout = layout
        self.device = device

    def __call__(self, crops: Tensor) -> Tensor:
        """Crops (B, 3, 512, 512) in [0, 1] -> (B, 1, 512, 512) float32 on the crops' device: 1 on face and hair, else 0."""
        mean = torch.tensor(self.layout.mean, device=self.device).view(1, 3, 1, 1)
        std = torch.tensor(self.layout.std, device=self.device).view(1, 3, 1, 1)
        with torch.no_grad():
            scores = self.network((crops.to(self.device, torch.float32) - mean) / std)[0]  # (B, 19, 512, 512)
        labels = scores.argmax(dim=1, keepdim=True)
        face = torch.tensor(self.layout.face, device=labels.device)
        return torch.isin(labels, face).float().to(crops.device)


def open_parser(path: Path | None, device: torch.device, folders: Sequence[Path] = ()) -> Parser | None:
    """The face parser, or None when neither weights nor facexlib are at hand.

    path None: the first of ``parsing_parsenet.pth`` and ``parsing_bisenet.pth`` in ``folders`` or the usual model folders; its
    sha256 must be facexlib's. A given ``path`` must work: CheckpointError when it is missing, damaged or of another network,
    MissingPackageError without facexlib.
    """
    if path is None:
        found = next((path for file in FILES if (path := assets.find(file, folders)) is not None), None)
        if found is None:
            return None
        try:
            return _load(assets.check(found, assets.ASSETS[found.name]), device)
        except MissingPackageError:
            return None
    return _load(Path(path), device)


def _load(path: Path, device: torch.device) -> FacexlibParser:
    tensors = _read(path)
    layout = next((layout for layout in (PARSENET, BISENET) if layout.key in tensors), None)
    if layout is None:
        raise CheckpointError(
            f"{path}: expected the weights of facexlib's ParseNet or BiSeNet, got a file with neither "
            f"{PARSENET.key!r} nor {BISENET.key!r}; use one of {', '.join(FILES)}"
        )
    network = _build(layout)
    try:
        network.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: tensors do not fit facexlib's {layout.name} ({error}); fetch the file again") from error
    return FacexlibParser(network.eval().requires_grad_(False).to(device), layout, device)


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(
            f"{path}: expected face parser weights ({' or '.join(FILES)}), found no file there; check the path"
        )
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: not a readable weight file ({error}); fetch it again") from error
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(
            f"{path}: expected a plain table of tensors, got {type(tensors).__name__}; use one of {', '.join(FILES)}"
        )
    return tensors


def _build(layout: Layout) -> nn.Module:
    """facexlib's network with the constructor arguments of its published weights."""
    try:
        from facexlib.parsing.bisenet import BiSeNet
        from facexlib.parsing.parsenet import ParseNet
    except ImportError as error:
        raise MissingPackageError(
            f"face parsing needs facexlib ({error}); pip install facexlib, or choose mask 'oval'"
        ) from error
    network: nn.Module = BiSeNet(num_class=19) if layout is BISENET else ParseNet(in_size=512, out_size=512, parsing_ch=19)
    return network
