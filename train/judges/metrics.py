"""The columns of an evaluation: what each measures, against what, and what it needs that is not there.

Nothing is downloaded. A metric whose network is missing says the file and its address. The score of NTIRE's real-world face
restoration challenges (Chen et al. 2025, arXiv 2504.14600) is put together from the columns, with the challenge's identity
gate: AdaFace between input and result.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lafr_core.errors import LafrError
from lafr_core.images.metrics import psnr, ssim
from train.judges import adaface
from train.judges.niqe import Niqe

Measure = Callable[[Tensor, Tensor], float]
THRESHOLDS = {"wider": 0.30, "webphoto": 0.30, "celeba": 0.50, "lfw": 0.60, "celebchild": 0.60}
"""NTIRE's test sets -> the least cosine of AdaFace between input and result."""
MOST_LOST = 10 / 450
"""The share of faces that may fall below it: ten of the challenge's 450."""


@dataclass(frozen=True)
class Metric:
    """One column. ``measure`` takes a picture and what it is held against (1, 3, S, S), ``whole`` a folder of pictures; with
    neither it is not available, and ``missing`` says what it needs.
    """

    name: str
    better: str
    measure: Measure | None = None
    missing: str = ""
    against: str = "original"
    """original, input (the degraded picture), or nothing: the picture alone."""
    whole: Callable[[Path], float] | None = None

    @property
    def available(self) -> bool:
        return self.measure is not None or self.whole is not None


class File(NamedTuple):
    """A weight file of pyiqa's, where it looks for it under torch's hub folder, and where it comes from."""

    place: str
    address: str


def _own(name: str) -> File:
    return File(f"pyiqa/{name}", f"https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/{name}")


def _torchvision(name: str) -> File:
    return File(f"checkpoints/{name}", f"https://download.pytorch.org/models/{name}")


class Judge(NamedTuple):
    """A metric of pyiqa's: its name there, which way is better, what it is held against, and its files."""

    key: str
    better: str
    against: str
    files: tuple[File, ...]


RN50 = "https://openaipublic.azureedge.net/clip/models/afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt"
PYIQA = {
    "LPIPS": Judge(
        "lpips", "lower", "original", (_own("LPIPS_v0.1_alex-df73285e.pth"), _torchvision("alexnet-owt-7be5be79.pth"))
    ),
    "DISTS": Judge("dists", "lower", "original", (_own("DISTS_weights-f5e65c96.pth"), _torchvision("vgg16-397923af.pth"))),
    "MUSIQ": Judge("musiq", "higher", "nothing", (_own("musiq_koniq_ckpt-e95806b9.pth"),)),
    "MANIQA": Judge("maniqa", "higher", "nothing", (_own("ckpt_koniq10k.pt"),)),
    "CLIP-IQA": Judge("clipiqa", "higher", "nothing", (File("clip/RN50.pt", RN50),)),
    "Q-Align": Judge("qalign", "higher", "nothing", ()),
    "FID": Judge(
        "fid", "lower", "folder", (_own("pt_inception-2015-12-05-6726825d.pth"), _own("ffhq_clean_trainval70k_512.npz"))
    ),
}
"""What pyiqa 0.1.15 loads. MANIQA's backbone and Q-Align lie in Hugging Face's cache, in a layout of its own."""
IN_CACHE = {
    "MANIQA": "https://huggingface.co/timm/vit_base_patch8_224.augreg2_in21k_ft_in1k",
    "Q-Align": "https://huggingface.co/q-future/one-align",
}


def open_metrics(weights: Path | None, identity: str) -> list[Metric]:
    """Every metric of the table; those whose network or weights are missing say what they need.

    ``weights`` is a folder of them.
    """
    folder = weights or Path(".")
    metrics = [
        Metric("PSNR", "higher", lambda a, b: float(psnr(a, b))),
        Metric("SSIM", "higher", lambda a, b: float(ssim(a, b))),
    ]
    niqe_file = folder / "niqe_pris_params.npz"
    if niqe_file.is_file():
        niqe = Niqe(niqe_file)
        metrics.append(Metric("NIQE", "lower", lambda a, b: niqe(a[0]), against="nothing"))
    else:
        address = "https://github.com/XPixelGroup/BasicSR (basicsr/metrics)"
        missing = f"needs niqe_pris_params.npz in --weights, from {address}"
        metrics.append(Metric("NIQE", "lower", missing=missing, against="nothing"))
    metrics.append(identity_metric(identity))
    metrics.append(gate(folder))
    metrics.append(landmarks(folder))
    return [*metrics, *(by_pyiqa(title) for title in PYIQA)]


def identity_metric(name: str) -> Metric:
    """1 minus the Euclidean distance of dlib's face descriptors; same person: above 0.4.

    No training loss here uses that network.
    """
    if name != "dlib":
        return Metric("identity", "higher", missing=f"expected the embedder dlib, got {name!r}")
    try:
        network = dlib_network()
    except ImportError:
        return Metric("identity (dlib)", "higher", missing="needs dlib-bin and face_recognition_models from PyPI")

    def describe(picture: Tensor) -> np.ndarray[Any, Any]:
        # The middle of an FFHQ crop is about dlib's own chip.
        image = Image.fromarray(to_bytes(picture[0])).resize((256, 256), Image.Resampling.BICUBIC).crop((42, 52, 214, 224))
        return np.asarray(network.compute_face_descriptor(np.asarray(image.resize((150, 150), Image.Resampling.BICUBIC))))

    def measure(a: Tensor, b: Tensor) -> float:
        return float(1 - np.linalg.norm(describe(a) - describe(b)))

    return Metric("identity (1 - dlib distance)", "higher", measure)


def dlib_network() -> Any:
    """dlib's face recognition network with the CC0 weights of the package face_recognition_models. Raises ImportError."""
    import dlib

    # Found by its folder: the package's own __init__ imports pkg_resources, which new setuptools no longer has.
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("face_recognition_models is not installed")
    file = Path(next(iter(spec.submodule_search_locations))) / "models" / "dlib_face_recognition_resnet_model_v1.dat"
    return dlib.face_recognition_model_v1(str(file))


GATE = "AdaFace, input and result"


def gate(folder: Path) -> Metric:
    """Cosine of AdaFace between the degraded picture and the result: NTIRE's check that a face is still the same one."""
    file = folder / adaface.FILE
    if not file.is_file():
        return Metric(GATE, "higher", missing=f"needs {adaface.FILE} in --weights, from {adaface.ADDRESS}", against="input")
    try:
        network = adaface.open_adaface(file)
    except LafrError as error:
        return Metric(GATE, "higher", missing=str(error), against="input")

    @torch.no_grad()
    def measure(a: Tensor, b: Tensor) -> float:
        return float((network(a) * network(b)).sum())

    return Metric(GATE, "higher", measure, against="input")


def landmarks(folder: Path) -> Metric:
    """Mean distance of the five landmarks a detector finds in both pictures, as a share of the original's eye distance."""
    name = "landmark distance"
    try:
        from lafr_core.faces.detectors import open_detector

        file = folder / "retinaface_mobile0.25.pth"
        kind = "retinaface-mobile0.25" if file.is_file() else "auto"
        detector = open_detector(kind, weights=file if file.is_file() else None, device=torch.device("cpu"))
    except (LafrError, OSError) as error:
        return Metric(name, "lower", missing=str(error))

    def measure(a: Tensor, b: Tensor) -> float:
        found = [detector(picture[0], 0.5) for picture in (a, b)]
        if not all(found):
            return math.nan
        p, q = (np.asarray(faces[0].landmarks) for faces in found)
        return float(np.linalg.norm(p - q, axis=1).mean() / np.linalg.norm(q[0] - q[1]))

    return Metric(name, "lower", measure)


# --- pyiqa -----------------------------------------------------------------------------------------------------------


def by_pyiqa(title: str) -> Metric:
    """A metric of the package pyiqa (IQA-PyTorch). Its weights must lie where it keeps them: it would fetch them otherwise."""
    judge = PYIQA[title]
    folder = judge.against == "folder"
    place = "nothing" if folder else judge.against
    unavailable = lambda missing: Metric(title, judge.better, missing=missing, against=place)
    hub = Path(torch.hub.get_dir())
    wanted = [f"{file.address} as {hub / file.place}" for file in judge.files if not (hub / file.place).is_file()]
    if importlib.util.find_spec("pyiqa") is None:
        wanted.insert(0, "the package pyiqa")
    if wanted:
        return unavailable("needs " + ", ".join([*wanted, *([IN_CACHE[title]] if title in IN_CACHE else [])]))
    try:
        import pyiqa

        with offline():
            network = pyiqa.create_metric(judge.key, device="cpu")
    except Exception as error:  # whatever a metric's own loader raises where a file is missing or damaged
        also = f" ({IN_CACHE[title]} in Hugging Face's cache)" if title in IN_CACHE else ""
        return unavailable(f"pyiqa cannot open it{also}: {error}")
    if folder:
        # As the challenge does: against FFHQ's own statistics.
        asked = {"dataset_name": "FFHQ", "dataset_res": 512, "dataset_split": "trainval70k"}
        whole = lambda where: float(network(str(where), device=torch.device("cpu"), verbose=False, num_workers=0, **asked))
        return Metric(title, judge.better, against=place, whole=whole)
    if judge.against == "nothing":
        return Metric(title, judge.better, lambda a, b: float(network(a)), against=place)
    return Metric(title, judge.better, lambda a, b: float(network(a, b)), against=place)


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Nothing is fetched inside the ``with``: downloads raise OSError with the address, Hugging Face's library is told so."""

    def refuse(url: str, *_: Any, **__: Any) -> None:
        raise OSError(f"it wants {url}, and an evaluation downloads nothing")

    names = {"torch.hub": "download_url_to_file", "pyiqa.utils.download_util": "download_url_to_file"}
    changed: list[tuple[Any, str, Any]] = []
    for module, name in names.items():
        changed.append((sys.modules.get(module), name, refuse))
    changed.append((sys.modules.get("huggingface_hub.constants"), "HF_HUB_OFFLINE", True))
    with contextlib.ExitStack() as stack:
        for place, name, value in changed:
            if place is not None and hasattr(place, name):
                stack.callback(setattr, place, name, getattr(place, name))
                setattr(place, name, value)
        yield


# --- NTIRE -----------------------------------------------------------------------------------------------------------

TERMS: dict[str, Callable[[float], float]] = {
    "CLIP-IQA": lambda v: v,
    "MANIQA": lambda v: v,
    "MUSIQ": lambda v: v / 100,
    "NIQE": lambda v: max(0.0, (10 - v) / 10),
    "Q-Align": lambda v: v / 5,
    "FID": lambda v: max(0.0, (100 - v) / 100),
}
"""The score's terms by column; six at most 1 each."""


@dataclass(frozen=True)
class Score:
    """NTIRE's score of one set of results. ``value`` is None where a column is missing, ``valid`` None without AdaFace."""

    value: float | None
    terms: Mapping[str, float]
    missing: tuple[str, ...]
    below: int
    count: int
    threshold: float
    valid: bool | None

    def sentence(self) -> str:
        """What a reader is told of it."""
        known = ", ".join(f"{name} {value:.3f}" for name, value in self.terms.items())
        total = f"{self.value:.4f} ({known})" if self.value is not None else f"not available without {', '.join(self.missing)}"
        if self.valid is None:
            return f"NTIRE score: {total}; identity gate: not available without AdaFace."
        verdict = "valid" if self.valid else "not valid"
        return f"NTIRE score: {total}; identity gate: {self.below} of {self.count} faces below {self.threshold:g}, {verdict}."


def ntire(columns: Mapping[str, Sequence[float]], kind: str) -> Score:
    """The challenge's score of the results' columns (NIQE, MUSIQ, …: one value a face; FID: one in all) on set ``kind``."""
    means = {name: float(np.mean(columns[name])) for name in TERMS if columns.get(name)}
    terms = {name: TERMS[name](value) for name, value in means.items() if math.isfinite(value)}
    missing = tuple(name for name in TERMS if name not in terms)
    alike, least = columns.get(GATE, ()), THRESHOLDS[kind]
    below = sum(not value >= least for value in alike)  # a NaN is no likeness
    valid = below <= MOST_LOST * len(alike) if alike else None
    return Score(None if missing else sum(terms.values()), terms, missing, below, len(alike), least, valid)


def to_bytes(picture: Tensor) -> np.ndarray[Any, Any]:
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8."""
    return (picture.permute(1, 2, 0).numpy() * 255 + 0.5).clip(0, 255).astype(np.uint8)
