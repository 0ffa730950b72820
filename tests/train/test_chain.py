"""From one Stable Diffusion file to a restored photo: train codebook, adapter and LoRA, export, finish on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from kill_test import settings
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))

from lafr_core.app import cli
from train.data.drawn import draw_face
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
    Image.fromarray((draw_face(5, 512) * 255).astype(np.uint8)).save(photo)
    given = ["restore", str(photo), "-o", str(folder / "out"), "--checkpoint", str(file), "--box", "60,40,450,470", *more]
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
