"""From one Stable Diffusion file to a restored photo: train codebook, adapter and LoRA, export, finish on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from kill_test import settings
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))

from lafr_core.app import cli
from lafr_core.latent.sd_prior import load_context, open_sd_prior
from lafr_core.store import assets
from train.engine import run
from train.tasks import adapter, codebook, prior
from train.tools.export import export

STEPS = {"codebook.steps": 2, "codebook.kmeans_at": [0], "adapter.steps": 2, "prior.steps": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the checkpoint file, the folder of exported files), all tiny."""
    pytest.importorskip("peft")
    from test_single_file import single, text_model, text_tensors, tiny_unet

    folder = tmp_path_factory.mktemp("chain")
    file = single(folder / "sd.safetensors", tiny_unet(), text_tensors(text_model()), half=True)
    conf = settings(folder, "run", **{**STEPS, "models.unet": file})
    for task in (codebook.CodebookTask, adapter.AdapterTask, prior.PriorTask):
        run.run(task, conf)
    for stage in ("adapter", "prior"):
        export(folder / "run", stage, folder / "out")
    return file, folder / "out"


def restore(folder: Path, file: Path, *more: str) -> tuple[int, Path]:
    photo = folder / "photo.png"
    Image.open(assets.sample("portrait")).convert("RGB").save(photo)
    given = ["restore", str(photo), "-o", str(folder / "out"), "--checkpoint", str(file), *more]
    return cli.main(given), folder / "out"


def test_a_trained_lora_finishes_a_photo_in_one_step_and_the_checkpoint_alone_in_a_few(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = trained
    ours = ["--vae", str(file.parent / "vae.safetensors"), "--adapter", str(out / "adapter.safetensors"), "--device", "cpu"]
    lora = ["--lora", str(out / "lafr_lora.safetensors")]
    results = {}
    for name, more in {"one": lora, "few": ["--steps", "2"], "fewer": ["--steps", "1"]}.items():
        (tmp_path / name).mkdir()
        report = tmp_path / name / "report.json"
        code, folder = restore(tmp_path / name, file, *ours, *more, "--report", str(report))
        assert code == 0 and json.loads(report.read_text())
        (picture,) = folder.glob("*.png")
        results[name] = np.asarray(Image.open(picture))
    assert not np.array_equal(results["one"], results["few"]) and not np.array_equal(results["few"], results["fewer"])
    (tmp_path / "refused").mkdir()
    code, _ = restore(tmp_path / "refused", file, *ours, "--mode", "one-step")
    assert code != 0 and "one step needs the LAFR LoRA" in capsys.readouterr().err


def test_a_checkpoint_opens_without_a_word_from_diffusers(trained: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    file, out = trained
    logging = pytest.importorskip("diffusers").utils.logging
    logging.enable_propagation()
    try:
        open_sd_prior(file, lora=out / "lafr_lora.safetensors", dtype=torch.float32)
    finally:
        logging.disable_propagation()
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["lafr_lora.safetensors", "lafr_lora_diffusers.safetensors"])
def test_diffusers_finishes_with_the_same_two_files(trained: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    """Its own reader of single files and its own LoRA loader give our prior's output (test_lora_hosts has ComfyUI's)."""
    diffusers = pytest.importorskip("diffusers")
    from test_single_file import tiny_unet

    file, out = trained
    tiny_unet().save_config(str(tmp_path))
    reader = diffusers.UNet2DConditionModel.from_single_file
    unet = reader(str(file), config=str(tmp_path), local_files_only=True, torch_dtype=torch.float32)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=unet, safety_checker=None, feature_extractor=None,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1), requires_safety_checker=False,
    )  # fmt: skip
    ours = open_sd_prior(file, lora=out / "lafr_lora.safetensors")
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    context = load_context(out / "empty_prompt.safetensors")
    with torch.no_grad():
        plain = pipeline.unet(z, ours.timestep, context).sample
        pipeline.load_lora_weights(str(out), weight_name=name)
        theirs, wanted = pipeline.unet(z, ours.timestep, context).sample, ours.network(z)
    effect = float((wanted - plain).abs().mean())
    assert effect > 0 and float((theirs - wanted).abs().mean()) < max(0.05 * effect, 1e-4)
