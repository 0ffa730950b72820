"""A checkpoint file through the whole loaded-checkpoint path of a running webui, against lafr_core on the same file.

Needs a webui that starts, and some seconds a case on a CPU:

    FORGE_ROOT=... FORGE_PYTHON=.../bin/python A1111_ROOT=... A1111_PYTHON=... pytest tests/webui/test_webui_loaded.py

NEO_, REFORGE_ and CLASSIC_ name the forks' in the same way. ``WEBUI_CHECKPOINTS`` names a folder that keeps the random
checkpoint between runs.
"""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoint
import torch
from PIL import Image
from webui_fakes import ROOT

from lafr_core.images import photos
from lafr_core.latent import vae
from lafr_core.latent.sd_prior import FewStepPrior, SdPrior, open_sd_finisher, open_sd_prior
from lafr_core.latent.spec import FAMILIES
from lafr_core.models import open_models
from lafr_core.pipeline import restore_stored
from lafr_core.settings import RestoreSettings
from lafr_core.store import assets
from lafr_webui.infotext import parse

HOSTS = {
    "forge": "--always-cpu --no-download-sd-model",
    "a1111": "--use-cpu all --no-half --precision full --no-download-sd-model",
    "neo": "--cpu",
    "reforge": "--always-cpu --no-download-sd-model",
    "classic": "--always-cpu --no-download-sd-model",
}
FLAGS = (
    "--skip-prepare-environment --skip-python-version-check --skip-version-check --skip-torch-cuda-test --skip-install "
    "--api --nowebui"
)
CASES: dict[str, dict[str, Any]] = {
    "one step": {},
    "one step, LoRA": {"lora": tiny_checkpoint.LORA},
    "two steps": {"steps": 2, "denoise": 0.3, "seed": 5},
    "two steps, LoRA": {"steps": 2, "denoise": 0.3, "seed": 5, "lora": tiny_checkpoint.LORA},
}
MOST, MEAN = 2, 0.02
"""Levels of 255 by which a pixel, and on average the pixels of the face, may differ from lafr_core's."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not any(os.environ.get(f"{name.upper()}_PYTHON") for name in HOSTS):
        pytest.skip("no webui to compare with: FORGE_PYTHON, A1111_PYTHON and the like are not set")
    pytest.importorskip("diffusers", reason="diffusers (lafr_core's own way to a checkpoint) is not installed")
    kept = os.environ.get("WEBUI_CHECKPOINTS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("checkpoint")
    if not (folder / f"{tiny_checkpoint.NAME}.safetensors").is_file():
        spec = FAMILIES["sd"]
        python = os.environ.get("A1111_PYTHON", "")
        vocabulary = next(Path(python).parents[1].rglob("bpe_simple_vocab_16e6.txt.gz"), None) if python else None
        tiny_checkpoint.write(folder, tuple(spec.to_raw(torch.tensor(spec.gray)).tolist()), vocabulary)
    return folder


@pytest.fixture(scope="module", params=HOSTS)
def url(request: pytest.FixtureRequest, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A webui with this repository as its extension and the checkpoint as its only one, on a port of its own."""
    name = request.param.upper()
    root, python = os.environ.get(f"{name}_ROOT", ""), os.environ.get(f"{name}_PYTHON", "")
    if not (root and python):
        pytest.skip(f"{name}_ROOT and {name}_PYTHON (a webui that starts, and its python) are not set")
    data = tmp_path_factory.mktemp(request.param)
    (data / "extensions").mkdir()
    (data / "extensions" / "lafr").symlink_to(ROOT)
    if request.param in tiny_checkpoint.NARROW:
        (data / "extensions" / "narrow" / "scripts").mkdir(parents=True)
        (data / "extensions" / "narrow" / "scripts" / "narrow.py").write_text(tiny_checkpoint.NARROW[request.param])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "launch.py", *FLAGS.split(), *HOSTS[request.param].split(), "--port", str(port)]
    command += ["--data-dir", str(data), "--lora-dir", str(files)]
    if request.param == "neo":  # it would take the LoRA for the first of its checkpoints
        (data / "models" / "Stable-diffusion").mkdir(parents=True)
        (data / "models" / "Stable-diffusion" / f"{tiny_checkpoint.NAME}.safetensors").symlink_to(
            files / f"{tiny_checkpoint.NAME}.safetensors"
        )
    else:
        command += ["--ckpt-dir", str(files)]
    path = f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False", "COMMANDLINE_ARGS": ""}
    with (data / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command, cwd=root, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **quiet, "PATH": path}
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, (data / "log.txt").read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{address}/sdapi/v1/face-restorers", timeout=30).read()
                break
            except OSError:
                time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def picture() -> Image.Image:
    """The sample portrait at a width of 200 pixels: one face."""
    image = Image.open(assets.sample("portrait")).convert("RGB")
    return image.resize((200, round(200 * image.height / image.width)), Image.Resampling.LANCZOS)


def asked(url: str, settings: dict[str, Any]) -> tuple[Image.Image, dict[str, Any]]:
    stream = io.BytesIO()
    picture().save(stream, "PNG")
    settings = {"engine": "checkpoint", "detector": "starter", **settings}
    body = json.dumps({"image": base64.b64encode(stream.getvalue()).decode(), "settings": settings}).encode()
    request = urllib.request.Request(f"{url}/lafr/restore", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=1800) as answer:
        told = json.load(answer)
    return Image.open(io.BytesIO(base64.b64decode(told.pop("image")))), told


def finisher(files: Path, values: dict[str, Any]) -> SdPrior | FewStepPrior:
    path = files / f"{tiny_checkpoint.NAME}.safetensors"
    lora = files / f"{values['lora']}.safetensors" if "lora" in values else None
    if "steps" not in values:
        return open_sd_prior(path, lora=lora)
    return open_sd_finisher(
        path, lora=lora, mode="few-step", steps=values["steps"], denoise=values["denoise"], seed=values["seed"]
    )


@pytest.fixture(scope="module")
def library(files: Path) -> dict[str, Image.Image]:
    """What lafr_core makes of the picture with the same file, case by case."""
    narrow = {**vae._SD_VAE, "block_out_channels": tiny_checkpoint.VAE_WIDTHS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vae, "_SD_VAE", narrow)
        models = open_models(
            RestoreSettings(detector="starter"), device="cpu", vae=files / f"{tiny_checkpoint.NAME}.safetensors"
        )
    photo, made = photos.from_pil(picture()), {}
    for name, values in CASES.items():
        done = restore_stored(photo.stored, replace(models, prior=finisher(files, values)), RestoreSettings(detector="starter"))
        made[name] = photos.to_pil(photo.with_pixels(done.images[0]))
    return made


def test_the_webui_gives_what_the_library_gives(url: str, library: dict[str, Image.Image]) -> None:
    """All cases, one after the other, and the first once more: no LoRA may stay on."""
    for name in [*CASES, "one step"]:
        got, told = asked(url, CASES[name])
        report = parse(told["info"])
        assert (report.status, report.found, report.request.engine.engine) == ("ok", 1, "checkpoint"), told["message"]
        assert "starter engine used" not in report.note, report.note
        change = (photos.from_pil(got).pixels - photos.from_pil(library[name]).pixels).abs() * 255
        face = (photos.from_pil(got).pixels != photos.from_pil(picture()).pixels).any(0)
        print(
            f"{name}: at most {change.max():.2f} levels, {change[:, face].mean():.4f} on average over {int(face.sum())} pixels"
        )
        assert change.max() <= MOST and change[:, face].mean() <= MEAN, name


def test_the_cases_differ(library: dict[str, Image.Image]) -> None:
    assert len({image.tobytes() for image in library.values()}) == len(CASES)
