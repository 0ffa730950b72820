"""The terms of the multi-level loss: appearance, identity, facial structure, and the adapter's latent terms.

Each term is a function of named tensors and returns a scalar; pictures are (B, 3, S, S) RGB, about [0, 1], faces at the FFHQ
template. Networks that judge pictures are frozen and come in as arguments; :func:`open_critics` loads the ones a config asks
for and refuses the run when their weights are not there.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lafr_core.errors import CheckpointError, InputError, MissingPackageError
from lafr_core.faces.crop import template_crops
from lafr_core.geometry import ARCFACE_TEMPLATE
from train.config import Loss
from train.judges.mobilefacenet import FILE as MOBILEFACENET_FILE
from train.judges.mobilefacenet import load_mobilefacenet

log = logging.getLogger("train.losses")
Network = Callable[[Tensor], Any]


def pixel(result: Tensor, target: Tensor) -> Tensor:
    """L1 over pixels: the appearance term of LAFR (arXiv 2505.23462, multi-level loss)."""
    return (result - target).abs().mean()


def gradient(result: Tensor, target: Tensor) -> Tensor:
    """L1 of horizontal and vertical pixel differences (Mathieu et al. 2016, arXiv 1511.05440, section 3.2, alpha = 1)."""
    dx = (result - target).diff(dim=-1).abs().mean()
    dy = (result - target).diff(dim=-2).abs().mean()
    return dx + dy


def window_ssim(result: Tensor, target: Tensor) -> Tensor:
    """Mean SSIM over uniform 8x8 windows, one every 4 pixels: cheaper than the Gaussian ones and close enough to train by.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004, eq. 13.
    """
    mean = lambda x: nn.functional.avg_pool2d(x, 8, stride=4)
    a, b = mean(result), mean(target)
    var_a, var_b = mean(result.square()) - a.square(), mean(target.square()) - b.square()
    cov = mean(result * target) - a * b
    return ((2 * a * b + 1e-4) * (2 * cov + 9e-4) / ((a.square() + b.square() + 1e-4) * (var_a + var_b + 9e-4))).mean()


def decibel(result: Tensor, target: Tensor) -> Tensor:
    """Mean over samples of the log of each picture's mean squared error: PSNR, so that hard and easy samples count alike."""
    return (result - target).square().mean((1, 2, 3)).clamp_min(1e-5).log().mean()


def edge_energy(pictures: Tensor) -> Tensor:
    """(B, 3, S, S) -> (B,): mean squared differences of neighbouring luma pixels, horizontal and vertical ones added."""
    luma = (pictures * pictures.new_tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)).sum(1)
    return luma.diff(dim=-2).square().mean((1, 2)) + luma.diff(dim=-1).square().mean((1, 2))


def sharpness(result: Tensor, target: Tensor) -> Tensor:
    """|log ratio| of the pictures' :func:`edge_energy`, mean over samples.

    Regression keeps what is certain and loses energy; this asks for the energy back and leaves open where it goes. After the
    gradient variance loss (Abrahamyan et al. 2022, arXiv 2202.00997), on the logarithm and over a whole window. Below about
    1/255 a difference is noise and counts for little.
    """
    ours, theirs = (edge_energy(x) + (1 / 255) ** 2 for x in (result, target))
    return (ours.log() - theirs.log()).abs().mean()


def perceptual(result: Tensor, target: Tensor, features: Callable[[Tensor], list[Tensor]]) -> Tensor:
    """Mean L1 between feature maps of a fixed network (Johnson et al. 2016, arXiv 1603.08155, eq. 2, with L1 as in ESRGAN)."""
    pairs = zip(features(result), features(target.detach()), strict=True)
    terms = [(a - b).abs().mean() for a, b in pairs]
    return torch.stack(terms).mean()


def identity(result: Tensor, target: Tensor, embed: Network) -> Tensor:
    """1 - cos of face embeddings (ArcFace, Deng et al. 2019, arXiv 1801.07698; as a loss in GFPGAN, arXiv 2101.04061, eq.
    5).
    """
    return (1 - F.cosine_similarity(embed(result), embed(target.detach()), dim=1)).mean()


def structure_landmarks(result: Tensor, target: Tensor, heatmaps: Network) -> Tensor:
    """Mean squared difference of landmark heat-maps (AWing FAN, Wang et al. 2019, arXiv 1904.07399)."""
    return (heatmaps(result) - heatmaps(target.detach())).square().mean()


def structure_parsing(result: Tensor, target: Tensor, logits: Network) -> Tensor:
    """KL divergence of the per-pixel class distributions of a face parser, target from result (nats a pixel).

    Parsing guidance as in PSFR-GAN (Chen et al. 2021, arXiv 2009.08709), with soft instead of hard labels.
    """
    wanted = F.log_softmax(logits(target.detach()), dim=1).detach()
    found = F.log_softmax(logits(result), dim=1)
    return (wanted.exp() * (wanted - found)).sum(1).mean()


def latent(aligned: Tensor, target: Tensor) -> Tensor:
    """L1 between aligned and high-quality latents (LAFR, alignment stage)."""
    return (aligned - target).abs().mean()


def commitment(features: Tensor, entries: Tensor) -> Tensor:
    """Mean squared distance of features (B, D, h, w) to their codebook entries, which stay fixed (arXiv 1711.00937, eq. 3)."""
    return (features - entries.detach()).square().sum(1).mean()


def code(features: Tensor, codes: Tensor, spread: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy of softmax(-|f - c|^2 / (2 spread / D)) over the codebook (N, D) against the wanted indices (B, h, w).

    CodeFormer's code prediction (arXiv 2206.11253, eq. 4) with distances as logits: the density of a Gaussian around each
    entry. ``spread`` is the mean squared distance over all D channels, a D-th of it the variance of one: with the whole of it,
    a feature right on its entry cost 5.7 of ln 1024 = 6.9.
    """
    flat = features.permute(0, 2, 3, 1).flatten(0, 2)
    distance = flat.square().sum(1, keepdim=True) - 2 * flat @ codes.t() + codes.square().sum(1)
    return F.cross_entropy(-distance * flat.shape[1] / (2 * spread.clamp_min(1e-8)), wanted.flatten())


def relative(latents: Tensor, target: Tensor, before: Tensor) -> Tensor:
    """Mean over samples of the L1 to ``target`` as a share of what it was ``before``: mild and severe samples count alike."""
    distance, start = ((z - target).abs().mean((1, 2, 3)) for z in (latents, before))
    return (distance / start.clamp_min(0.05)).mean()


def feature_distance(ours: Tensor, theirs: Tensor, maps: Callable[[Tensor], list[Tensor]]) -> Tensor:
    """L1 between a network's feature maps of two pictures, each as a share of the second's mean size."""
    terms = []
    for a, b in zip(maps(ours), maps(theirs.detach()), strict=True):
        terms.append((a.float() - b.float()).abs().mean() / b.float().abs().mean().clamp_min(1e-6))
    return torch.stack(terms).mean()


def stay(aligned: Tensor, source: Tensor, fidelity: Tensor) -> Tensor:
    """L1 to the input's latents, weighted by each sample's fidelity (B,): what fidelity 1 asks for."""
    return (fidelity.view(-1, 1, 1, 1) * (aligned - source).abs()).mean()


@dataclass(frozen=True)
class Critics:
    """The frozen networks of the picture terms; None where the term is off."""

    perceptual: Callable[[Tensor], list[Tensor]] | None = None
    identity: Network | None = None
    landmarks: Network | None = None
    parsing: Network | None = None
    features: Callable[[Tensor], list[Tensor]] | None = None

    def needed(self, weights: Loss) -> bool:
        """Whether any term looks at decoded pixels."""
        return any(getattr(weights, name) > 0 for name in PICTURE_TERMS)


LOCAL_TERMS = ("pixel", "gradient", "decibel", "ssim", "sharpness", "perceptual")
"""Terms that a window of a face is enough for."""
FACE_TERMS = ("identity", "features")
"""Terms that want a whole face, and for whom a thumbnail does."""
WHOLE_TERMS = (*FACE_TERMS, "structure_landmarks", "structure_parsing")
PICTURE_TERMS = (*LOCAL_TERMS, *WHOLE_TERMS)


def picture_terms(
    result: Tensor,
    target: Tensor,
    critics: Critics,
    weights: Loss,
    *,
    names: Sequence[str] = PICTURE_TERMS,
    own: Tensor | None = None,
) -> dict[str, Tensor]:
    """All picture terms of ``names`` whose weight is above 0, each multiplied by it.

    ``own``: the decoded clean latents. What the decoder cannot show, the sharpness term does not ask for.
    """
    measures: dict[str, Callable[[], Tensor]] = {
        "pixel": lambda: pixel(result, target),
        "gradient": lambda: gradient(result, target),
        "decibel": lambda: decibel(result, target),
        "ssim": lambda: 1 - window_ssim(result, target),
        "sharpness": lambda: sharpness(result, target if own is None else own),
        "perceptual": lambda: perceptual(result, target, _there(critics.perceptual)),
        "identity": lambda: identity(result, target, _there(critics.identity)),
        "features": lambda: feature_distance(result, target, _there(critics.features)),
        "structure_landmarks": lambda: structure_landmarks(result, target, _there(critics.landmarks)),
        "structure_parsing": lambda: structure_parsing(result, target, _there(critics.parsing)),
    }
    return {name: getattr(weights, name) * measures[name]() for name in names if getattr(weights, name) > 0}


def open_critics(weights: Loss, device: torch.device) -> Critics:
    """The networks the config's terms need. Raises InputError naming the term, the file it wants and how to go on without
    it.
    """
    perceptual = (
        VggFeatures(_file(weights, "perceptual", "torchvision's vgg16-397923af.pth")) if weights.perceptual > 0 else None
    )
    landmarks = (
        Landmarks(_file(weights, "structure_landmarks", "facexlib's alignment_WFLW_4HG.pth"), device)
        if weights.structure_landmarks > 0
        else None
    )
    parsing = (
        Parsing(_file(weights, "structure_parsing", "facexlib's parsing_parsenet.pth"))
        if weights.structure_parsing > 0
        else None
    )
    embed = open_identity(weights, device) if weights.identity > 0 or weights.features > 0 else None
    maps = getattr(embed, "maps", None)
    if weights.features > 0 and maps is None:
        raise InputError(
            f"features loss: needs {MOBILEFACENET_FILE} as loss.identity_weights, got {weights.identity_weights!r}; "
            "give the file, or switch the term off with --loss.features 0"
        )
    networks = [n.to(device) if n is not None else None for n in (perceptual, landmarks, parsing)]
    return Critics(networks[0], embed, networks[1], networks[2], maps)  # type: ignore[arg-type]


class VggFeatures(nn.Module):
    """VGG-16's relu1_2, relu2_2, relu3_3 and relu4_3 (Simonyan and Zisserman 2015) of pictures in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        from torchvision.models import vgg16

        network = vgg16(weights=None)
        tensors = {name: t for name, t in read_weights(path).items() if name.startswith("features.")}
        _load(network.features, {name.removeprefix("features."): t for name, t in tensors.items()}, path)
        self.stages = nn.ModuleList(network.features[a:b] for a, b in ((0, 4), (4, 9), (9, 16), (16, 23)))
        for module in self.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        # torchvision's ImageNet statistics
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        x = (pictures - self.mean) / self.std
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Landmarks(nn.Module):
    """facexlib's AWing FAN: 98 heat-maps (B, 98, 64, 64) of face crops in [0, 1], which it wants at 256 pixels."""

    def __init__(self, path: Path, device: torch.device) -> None:
        super().__init__()
        fan = _facexlib("alignment.awing_arch").FAN(num_modules=4, num_landmarks=98, device=str(device))
        _load(fan, read_weights(path), path)
        self.fan = fan.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        x = F.interpolate(pictures, size=(256, 256), mode="bilinear", antialias=True, align_corners=False)
        outputs, _ = self.fan(x)
        return outputs[-1][:, :-1]  # the last map is the face's boundary


class Parsing(nn.Module):
    """facexlib's ParseNet or BiSeNet, told apart by their keys: class logits (B, 19, 512, 512) of face crops in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        tensors = read_weights(path)
        self.bisenet = any(name.startswith("cp.") for name in tensors)
        if self.bisenet:
            network = _facexlib("parsing.bisenet").BiSeNet(num_class=19)
            mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        else:
            network = _facexlib("parsing.parsenet").ParseNet(in_size=512, out_size=512, parsing_ch=19)
            mean, std = [0.5] * 3, [0.5] * 3
        _load(network, tensors, path)
        self.network = network.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        x = F.interpolate(pictures, size=(512, 512), mode="bilinear", align_corners=False)
        return self.network((x - self.mean) / self.std)[0]


class TemplateEmbedder(nn.Module):
    """A face embedder that wants 112 crops at the ArcFace template: FFHQ crops of any side in, (B, D) out."""

    def __init__(self, network: nn.Module, *, signed: bool) -> None:
        super().__init__()
        self.network, self.signed = network, signed

    def forward(self, pictures: Tensor) -> Tensor:
        x = template_crops(pictures, ARCFACE_TEMPLATE, 112)
        return self.network(x * 2 - 1 if self.signed else x)


class MobileFaceEmbedder(TemplateEmbedder):
    """The same around MobileFaceNet, whose feature maps can be asked for too."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, signed=False)

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """The feature maps of faces (B, 3, S, S), coarse ones last."""
        return list(self.network.with_features(template_crops(pictures, ARCFACE_TEMPLATE, 112))[1])  # type: ignore[operator]


def open_identity(weights: Loss, device: torch.device) -> Network:
    """The embedder that loss.identity_weights names: (B, 3, S, S) in [0, 1] -> (B, D). Raises InputError, CheckpointError."""
    if weights.identity_weights == "starter":
        from lafr_core.faces.identity import open_embedder

        embedder = open_embedder(None, device)
        if embedder is None:
            raise InputError(
                "identity loss: this checkout has no starter embedder; give loss.identity_weights or set loss.identity 0"
            )
        # It wants 512 crops; smaller training crops are enlarged.
        return lambda pictures: embedder(F.interpolate(pictures, size=(512, 512), mode="bilinear", align_corners=False))
    path = _file(
        weights, "identity", "facexlib's recognition_arcface_ir_se50.pth, mobilefacenet_foamliu.pt, or the word starter"
    )
    if path.name == MOBILEFACENET_FILE:
        return MobileFaceEmbedder(load_mobilefacenet(path.parent)).to(device)
    backbone = _facexlib("recognition.arcface_arch").Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se")
    _load(backbone, read_weights(path), path)
    return TemplateEmbedder(backbone.eval().requires_grad_(False), signed=True).to(device)


def _file(weights: Loss, term: str, wanted: str) -> Path:
    key = {"structure_landmarks": "landmark_weights", "structure_parsing": "parsing_weights"}.get(term, f"{term}_weights")
    given = getattr(weights, key)
    if not given or not Path(given).is_file():
        found = f"found no file at {given!r}" if given else f"loss.{key} is empty"
        raise InputError(f"{term} loss: needs {wanted}; {found}. Give the file, or switch the term off with --loss.{term} 0")
    return Path(given)


def read_weights(path: Path) -> dict[str, Tensor]:
    """A third-party state dict (.pth, .pt), read as data only; its sha256 goes to the log and must match ``SHA256SUMS``
    beside it, if any.

    Raises CheckpointError.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    sums = path.parent / "SHA256SUMS"
    if sums.is_file():
        lines = (line.split() for line in sums.read_text(encoding="utf-8").splitlines())
        known = {line[1].lstrip("*"): line[0] for line in lines if len(line) == 2}
        if known.get(path.name, digest) != digest:
            raise CheckpointError(f"{path}: expected sha256 {known[path.name]}, got {digest}; fetch the file again")
    log.info("%s: sha256 %s", path, digest)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names no narrower class for a damaged or refused pickle
        raise CheckpointError(f"{path}: not a readable state dict ({error}); fetch the file again") from error
    if isinstance(tensors, Mapping) and isinstance(tensors.get("state_dict"), Mapping):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, Mapping):
        raise CheckpointError(f"{path}: expected a state dict, got {type(tensors).__name__}")
    return {str(name).removeprefix("module."): t for name, t in tensors.items() if isinstance(t, Tensor)}


def _load(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        network.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: not the weights of {type(network).__name__} ({error})") from error


def _facexlib(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"facexlib.{module}")
    except ImportError as error:
        raise MissingPackageError("this loss term needs facexlib; install it with: pip install facexlib") from error


def _there(network: Any) -> Any:
    if network is None:
        raise InputError("losses: a term is on whose network was not opened; open the critics with the same weights")
    return network
