"""Preparing a folder of photos, previewing degradations, and judging a checkpoint."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from train_tiny import faces_at, settings

from lafr_core.errors import InputError
from lafr_core.geometry import FFHQ_TEMPLATE
from lafr_core.types import Face
from train.data.drawn import draw_face
from train.data.faces import find_pictures
from train.data.preview import preview
from train.engine import run
from train.judges import metrics
from train.judges.niqe import Niqe, aggd
from train.tasks import codebook
from train.tasks.adapter import AdapterTask
from train.tools import evaluate, export, prepare_data

NIQE = Path(__file__).parents[3] / "shared" / "weights" / "niqe_pris_params.npz"


class Template:
    """Finds one face, at the FFHQ template scaled to the photo, unless the photo is black."""

    name = "template"

    def __call__(self, image: Tensor, threshold: float) -> list[Face]:
        if float(image.max()) < 0.01:
            return []
        k = image.shape[-1] / 512
        points = tuple((x * k, y * k) for x, y in FFHQ_TEMPLATE)
        return [Face(box=(150 * k, 150 * k, 360 * k, 430 * k), landmarks=points, score=0.9)]  # type: ignore[arg-type]


def test_prepare_data_keeps_good_faces_and_says_why_it_drops_others(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    faces_at(source, 1, size=512)
    sharp = (draw_face(3, 512) * 255).astype(np.uint8)
    Image.fromarray(sharp).resize((32, 32)).resize((512, 512)).save(source / "blurred.png")
    Image.fromarray(sharp).resize((128, 128)).save(source / "small.png")
    Image.fromarray(np.zeros((512, 512, 3), np.uint8)).save(source / "empty.png")
    (source / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    count = prepare_data.prepare(source, target, Template(), prepare_data.Limits())
    assert count == {"kept": 1, "too blurred": 1, "too small": 1, "without a face": 1, "corrupt": 1}
    with (target / "manifest.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["source"] == "000.png" and row["sha256"] == prepare_data.digest(target / row["file"])
    with Image.open(target / row["file"]) as image:
        assert image.size == (512, 512)
    with (target / "dropped.csv").open() as file:
        reasons = {r["source"]: r["reason"] for r in csv.DictReader(file)}
    assert reasons["empty.png"] == "no face found" and reasons["broken.jpg"].startswith("cannot be decoded")
    assert reasons["small.png face 0"].startswith("face of 70 px")
    assert [p.name for p in find_pictures(str(target))] == [row["file"]]  # training reads the manifest


def test_sharpness_falls_with_blur() -> None:
    face = torch.from_numpy(draw_face(1, 512)).permute(2, 0, 1)
    soft = torch.nn.functional.avg_pool2d(face, 9, 1, 4)
    assert prepare_data.sharpness(face) > 20 * prepare_data.sharpness(soft)


def test_prepare_data_refuses_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pictures in it or below"):
        prepare_data.photos(tmp_path)


def test_preview_shows_the_samples_training_draws(tmp_path: Path) -> None:
    table = preview("drawn:4", tmp_path / "p.png", count=5, side=32)
    with Image.open(tmp_path / "p.png") as image:
        assert image.size == (8 * 32, 32)
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 and all(30 <= float(row["quality"]) <= 100 for row in rows)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("evaluate")
    few = {"codebook.steps": 1, "adapter.steps": 1, "data.validation": "drawn:3", "log.save_every": 1}
    conf = settings(folder, "run", **few)
    run.run(codebook.CodebookTask, conf)
    run.run(AdapterTask, conf)
    return conf


def test_evaluate_writes_table_values_and_sheet(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Path(trained.log.out)
    file = out / "adapter" / "step_00000001" / "config.yaml"
    where = ["--config", file, "--checkpoint", out, "--out", tmp_path]
    chosen = ["--stage", "adapter", "--identity", "none", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["evaluate", *map(str, where), *chosen])
    evaluate.main()
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert len(result["values"]["restored"]["PSNR"]) == 3
    assert result["means"]["degraded"]["PSNR"] != result["means"]["restored"]["PSNR"]
    text = (tmp_path / "evaluation.md").read_text()
    for name, better in (("LPIPS", "lower"), ("FID", "lower"), ("MUSIQ", "higher"), ("AdaFace, input and result", "higher")):
        assert f"| {name} | {better} | not available | needs " in text
    with Image.open(tmp_path / "evaluation.png") as image:
        assert image.size == (3 * 64, 3 * 64)


def test_celeba_layout_pairs_by_name(trained: Any, tmp_path: Path) -> None:
    faces_at(tmp_path / "lq", 1)
    faces_at(tmp_path / "hq", 1)
    conf = replace(trained, data=replace(trained.data, validation=str(tmp_path)))
    (pair,) = evaluate.pairs(conf, "celeba", 0)
    assert pair.name == "000" and torch.equal(pair.lq, pair.hq)
    (tmp_path / "lq" / "000.png").unlink()
    with pytest.raises(InputError, match="expected lq/ and hq/ with equal file names, found 0 and 1 files"):
        list(evaluate.pairs(conf, "celeba", 0))


def test_faces_without_an_original_are_measured_by_what_needs_none(trained: Any, tmp_path: Path) -> None:
    faces_at(tmp_path / "lq", 2)
    (tmp_path / "lq" / "note.txt").touch()
    conf = replace(trained, data=replace(trained.data, validation=str(tmp_path / "lq")))
    found = list(evaluate.pairs(conf, "real", 0))
    assert [pair.name for pair in found] == ["000.png", "inner/001.png"] and found[0].hq is None
    mean = lambda a, b: float(a.mean())
    columns = [
        metrics.Metric("PSNR", "higher", mean),
        metrics.Metric("own", "lower", mean, against="nothing"),
        metrics.Metric("moved", "lower", lambda a, b: float((a - b).abs().mean()), against="input"),
        metrics.Metric("folder", "lower", whole=lambda where: float(len(list(where.glob("*.png")))), against="nothing"),
        metrics.Metric("absent", "lower", missing="needs a file"),
    ]
    restore = lambda pictures: pictures * 0.5
    values, rows = evaluate.evaluate(restore, iter(found), columns, tmp_path / "out")
    assert set(values["restored"]) == {"own", "moved", "folder"} and values["restored"]["folder"] == [2.0]
    assert values["restored"]["own"] == pytest.approx([float(pair.lq.mean()) / 2 for pair in found])
    assert values["degraded"]["moved"] == [0, 0] and values["restored"]["moved"] == values["restored"]["own"]
    assert torch.equal(rows[0, 0], rows[0, 2]) and torch.equal(rows[0, 1], rows[0, 0] / 2)
    text = evaluate.table(values, columns)
    assert "| PSNR | higher | not available | needs the originals |" in text and "| folder | lower | 2.00 | 2.00 |" in text
    assert "| absent | lower | not available | needs a file |" in text


def test_summary_by_hand() -> None:
    mean, half, count = evaluate.summary([1.0, 3.0, math.nan])
    assert (mean, count) == (2.0, 2) and half == pytest.approx(1.96 * math.sqrt(2) / math.sqrt(2))
    assert evaluate.summary([math.nan])[2] == 0


def test_identity_by_dlib_is_available_where_its_packages_are() -> None:
    pytest.importorskip("dlib")
    if importlib.util.find_spec("face_recognition_models") is None:
        pytest.skip("face_recognition_models is not installed")
    photo = torch.from_numpy(pytest.importorskip("skimage.data").astronaut()).permute(2, 0, 1)[None].float() / 255
    metric = metrics.identity_metric("dlib")
    assert metric.measure is not None, metric.missing
    assert metric.measure(photo, photo) == 1.0
    assert metric.measure(photo, photo.flip(2)) < 0.9


@pytest.mark.skipif(not NIQE.is_file(), reason="NIQE's pristine model is not here")
def test_niqe_likes_photographs_better_than_noise_or_blur() -> None:
    data = pytest.importorskip("skimage.data")
    photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1).float()[:, :288, :288] / 255
    niqe = Niqe(NIQE)
    soft = torch.nn.functional.avg_pool2d(photo, 9, 1, 4)
    noisy = (photo + 0.2 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    clean = niqe(photo)
    assert 0 < clean < niqe(soft) and clean < niqe(noisy)


def test_aggd_recovers_a_gaussian() -> None:
    shape, left, right = aggd(np.random.default_rng(0).normal(0, 2.0, 200_000))
    assert shape == pytest.approx(2.0, abs=0.05)
    assert left == pytest.approx(2.0 * math.sqrt(2), rel=0.02)  # beta = sigma sqrt(2)
    assert right == pytest.approx(left, rel=0.02)


# --- nothing is replaced that the run did not make ---


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_prepare_keeps_what_is_there_and_gives_every_face_its_own_name(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    faces_at(source, 1, size=512)
    sharp = Image.fromarray((draw_face(3, 512) * 255).astype(np.uint8))
    sharp.save(source / "000.tif")
    target.mkdir()
    (target / "000.png_0.png").write_bytes(b"a face of somebody else")
    with pytest.raises(InputError, match=r"000\.png_0\.png: a file is there already that this run did not make"):
        prepare_data.prepare(source, target, Template(), prepare_data.Limits())
    assert contents(target) == {"000.png_0.png": b"a face of somebody else"}
    count = prepare_data.prepare(source, target, Template(), prepare_data.Limits(), overwrite=True)
    assert count == {"kept": 2} and set(contents(target)) == {
        "000.png_0.png", "000.tif_0.png", "manifest.csv", "dropped.csv"
    }  # fmt: skip
    before = contents(target)
    with pytest.raises(InputError, match=r"manifest\.csv: a file is there already"):
        prepare_data.prepare(source, target, Template(), prepare_data.Limits())
    assert contents(target) == before


def test_face_names_are_told_apart_on_every_disk() -> None:
    files = [Path(name) for name in ("a.jpg", "A.png", "b/c.jpg", "b__c.png", "d.jpg")]
    names = prepare_data.face_names(files)
    assert names == ["a.jpg", "A.png", "b__c.jpg", "b__c.png", "d"]
    assert prepare_data.face_names([Path("b/c.png"), Path("b__c.png")]) == ["b__c.png", "b__c.png__2"]


def test_preview_keeps_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("my table")
    with pytest.raises(InputError, match=r"p\.csv: a file is there already"):
        preview("drawn:4", tmp_path / "p.png", count=1, side=32)
    assert contents(tmp_path) == {"p.csv": b"my table"}
    preview("drawn:4", tmp_path / "p.png", count=1, side=32, overwrite=True)
    assert set(contents(tmp_path)) == {"p.csv", "p.png"} and (tmp_path / "p.csv").read_text() != "my table"


@pytest.mark.parametrize("name", ["evaluation.md", "evaluation.json", "evaluation.png"])
def test_evaluate_keeps_what_is_there(name: str, trained: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / name).write_text("an earlier one")
    out = Path(trained.log.out)
    where = ["--config", out / "adapter" / "step_00000001" / "config.yaml", "--checkpoint", out, "--out", tmp_path]
    given = [*map(str, where), "--stage", "adapter", "--identity", "none", "--device", "cpu", "--limit", "1"]
    with pytest.raises(SystemExit):
        evaluate.main(given)
    assert f"{name}: a file is there already" in capsys.readouterr().err
    assert contents(tmp_path) == {name: b"an earlier one"}
    evaluate.main([*given, "--overwrite"])
    assert contents(tmp_path)[name] != b"an earlier one"


def test_evaluate_saves_no_picture_over_another(tmp_path: Path) -> None:
    results = tmp_path / "restored"
    results.mkdir()
    (results / "00001_b.png").write_bytes(b"mine")
    picture = torch.rand(3, 16, 16)
    faces = [evaluate.Pair("a.jpg", picture, picture), evaluate.Pair("b.jpg", picture, picture)]
    with pytest.raises(InputError, match=r"00001_b\.png: a file is there already"):
        evaluate.evaluate(lambda low: low, iter(faces), [], tmp_path)
    assert contents(results)["00001_b.png"] == b"mine" and "00000_a.png" in contents(results)


def test_export_keeps_what_is_there(trained: Any, tmp_path: Path) -> None:
    out = Path(trained.log.out)
    (tmp_path / "adapter.safetensors").write_bytes(b"my adapter")
    with pytest.raises(InputError, match=r"adapter\.safetensors: a file is there already"):
        export.export(out, "adapter", tmp_path)
    assert contents(tmp_path) == {"adapter.safetensors": b"my adapter"}
    assert export.export(out, "adapter", tmp_path, overwrite=True) == [tmp_path / "adapter.safetensors"]
    assert list(contents(tmp_path)) == ["adapter.safetensors"] and contents(tmp_path)["adapter.safetensors"] != b"my adapter"
