"""``lafr doctor``: what this machine has of what LAFR can use, and whether it works."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import time
from collections.abc import Iterator

import torch
from PIL import Image

from ... import __version__
from ...errors import LafrError
from ...faces.detectors import best_at_hand, find_weights
from ...images import formats, photos
from ...models import DEVICES, choose_device, device_name, open_models
from ...pipeline import restore_faces
from ...settings import DETECTORS, RestoreSettings
from ...store import assets
from ..arguments import Commands
from ..terminal import show

PACKAGES = {
    "torch": "", "numpy": "", "pillow": "", "safetensors": "", "tqdm": "the progress bar", "diffusers": "other VAEs and priors",
    "accelerate": "several GPUs, training", "facexlib": "RetinaFace, mask parse", "insightface": "SCRFD",
    "onnxruntime": "SCRFD", "pillow-heif": "HEIC photos", "pillow-jxl-plugin": "JPEG XL photos",
}  # fmt: skip
"""Package -> what it is for; "" = LAFR does not work without it."""


def add(commands: Commands) -> None:
    parser = commands.add_parser("doctor", help="say what this machine has, and try a restoration", description=run.__doc__)
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to try (auto: CUDA, else MPS, else CPU)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints versions, devices, packages, image formats, weights and where they are searched, and restores a sample photo of
    the repository. Exit code 1 when something that LAFR needs is missing or the sample cannot be restored."""
    show(f"LAFR {__version__}, Python {platform.python_version()}, {platform.platform()}")
    show(*_devices())
    missing = [name for name, purpose in PACKAGES.items() if not purpose and _version(name) is None]
    show("packages:")
    for name, purpose in PACKAGES.items():
        version = _version(name)
        show(f"  {name} {version or 'not installed'}{f' ({purpose})' if purpose and version is None else ''}")
    show(f"image formats: {', '.join(_formats())}")
    show(*_weights())
    tried, fine = _try(args.device)
    show(tried)
    if missing:
        show(f"missing: {', '.join(missing)}; run pip install {' '.join(missing)}")
    return 0 if fine and not missing else 1


def _devices() -> Iterator[str]:
    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else []), *(["mps"] if torch.backends.mps.is_available() else [])]
    yield f"devices: {', '.join(there)}; auto means {device_name(choose_device())}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _formats() -> list[str]:
    Image.init()
    there = [name for name in formats.FORMATS if name in Image.OPEN]
    for name, (module, package) in formats.PLUG_INS.items():
        if name not in there:
            there.append(name if importlib.util.find_spec(module) else f"no {name} (pip install {package})")
    return there


def _weights() -> Iterator[str]:
    yield "starter weights:"
    folder = assets.bundled("vae").parent
    for path in sorted(folder.glob("*.safetensors")):
        yield f"  {path.name} ({path.stat().st_size / 1e6:.1f} MB)"
    yield f"detectors (auto means {best_at_hand()}):"
    for name in DETECTORS:
        if name != "auto":
            yield f"  {name}: {find_weights(name) or 'no weights at hand'}"
    yield "other weights are looked for in:"
    for place in assets.search_folders():
        yield f"  {place}{'' if place.is_dir() else ' (not there)'}"
    yield f"  LAFR_MODELS is {os.environ.get('LAFR_MODELS') or 'not set'}; downloads go to {assets.download_folder()}"


def _try(device: str) -> tuple[str, bool]:
    """A sample photo restored: the sentence, and whether it went well."""
    start = time.perf_counter()
    try:
        settings = RestoreSettings(detect_side=640, small_faces=False)
        models = open_models(settings, device=device)
        opened = time.perf_counter()
        result = restore_faces(photos.read(assets.sample("portrait")).pixels[None], models, settings)
    except LafrError as error:
        return f"self-test: failed: {error}", False
    except Exception as error:  # a driver or library that does not work here: that is what a doctor is asked for
        return f"self-test: failed: {type(error).__name__}: {error}", False
    seconds = time.perf_counter() - opened
    fine = len(result.faces) == 1
    words = f"{len(result.faces)} face restored in {seconds:.1f} s (opening the models took {opened - start:.1f} s)"
    return f"self-test: {words} on {device_name(models.device)}" + ("" if fine else "; expected 1 face"), fine
