"""Training in an owner's album: what lies in the folders that it is given stays, and what is no photo is not opened as one."""

from __future__ import annotations

import ast
import csv
import errno
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from train_tiny import settings

from lafr_core.errors import CheckpointError, ImageFileError, InputError, SettingsError
from lafr_core.store import checkpoint
from train import __main__ as commands
from train.config import Data, read_yaml
from train.data import faces, pairs, preview
from train.data.faces import Picture
from train.engine import checkpoints, run
from train.engine.journal import read_rows
from train.tasks import codebook, trust
from train.tools import evaluate, prepare_data

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n{} loop\n"


def photo(path: Path, side: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(path.name)).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- the folder of a stage ---


@pytest.mark.parametrize(
    "name", ["files.txt", "log.csv", "curves.png", "samples/00000001.png", ".step_mother/a.png", "step_00000001/a.png", "b.png"]
)
def test_a_folder_that_no_run_made_is_left_as_it_is(name: str, tmp_path: Path) -> None:
    conf = settings(tmp_path, "album", **{"codebook.steps": 1, "log.save_every": 1})
    (tmp_path / "album" / "codebook" / name).parent.mkdir(parents=True)
    photo(tmp_path / "album" / "codebook" / "x.png").rename(tmp_path / "album" / "codebook" / name)
    before = contents(tmp_path / "album")
    with pytest.raises(InputError, match=r"expected a folder of a run or none, found .* in it; choose another log\.out"):
        run.run(codebook.CodebookTask, conf)
    assert contents(tmp_path / "album") == before


def test_a_stage_goes_on_in_its_own_folder_and_takes_away_its_own_leftovers_only(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "codebook"
    folder.mkdir(parents=True)
    checkpoints.claim(folder)  # empty, as a person may have made it
    photo(folder / "notes.png")
    photo(folder / ".step_mother" / "a.png")
    photo(folder / ".step_00000004.123" / "state.pt.png")
    checkpoints.claim(folder)
    assert sorted(contents(folder)) == [".lafr-run", ".step_mother/a.png", "notes.png"]
    old = tmp_path / "old"  # of a version that left no mark: a whole checkpoint tells it
    for name in (checkpoints.STATE, checkpoints.RUN):
        (old / "step_00000001").mkdir(parents=True, exist_ok=True)
        (old / "step_00000001" / name).write_text("{}")
    checkpoints.claim(old)
    assert (old / checkpoints.MARK).is_file()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"cannot be written \(Not a directory\); choose another log\.out"):
        checkpoints.claim(tmp_path / "file" / "codebook")


def test_a_table_that_is_none_is_told_and_a_folder_without_checkpoints_is_not_looked_into(tmp_path: Path) -> None:
    photo(tmp_path / "prior" / "x.png").rename(tmp_path / "prior" / "validation.csv")
    with pytest.raises(CheckpointError, match=r"expected a prior checkpoint .* there, found none; train that stage first"):
        checkpoints.open_checkpoint(tmp_path, "prior")
    for text, told in (("\xff", "table of numbers"), ("step,who\n1,me\n", "of numbers"), ("a\n1\n", "a column step")):
        (tmp_path / "log.csv").write_text(text, encoding="latin-1")
        with pytest.raises(CheckpointError, match=rf"log\.csv: expected a .*{told}.*; move it away"):
            read_rows(tmp_path / "log.csv")
    assert read_rows(tmp_path / "none.csv") == []


# --- stored pairs ---


@pytest.mark.parametrize("text", ['["my plans"]', "to the sea", '"x"', "\xff"])
def test_another_plan_or_shard_is_not_taken_for_ours(text: str, tmp_path: Path) -> None:
    (tmp_path / pairs.PLAN).write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"plan\.json: expected the plan of stored pairs, got another file"):
        pairs.keep_plan(tmp_path, {"size": 64})
    assert (tmp_path / pairs.PLAN).read_text(encoding="latin-1") == text
    (tmp_path / pairs.PLAN).unlink()
    (tmp_path / "0_00_000000.safetensors").write_text("mine")
    with pytest.raises(InputError, match=r"0_00_000000\.safetensors: no plan beside it says"):
        pairs.keep_plan(tmp_path, {"size": 64})
    assert contents(tmp_path) == {"0_00_000000.safetensors": b"mine"}


# --- what is read ---


def test_no_program_in_a_photos_name_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", started)
    (tmp_path / "holiday.jpg").write_bytes(POSTSCRIPT)
    photo(tmp_path / "whole.png")
    good, bad = faces.open_pictures(Data(source=str(tmp_path), size=64))
    assert [picture.name for picture in good] == ["whole.png"] and bad == ["holiday.jpg"]
    with pytest.raises(InputError, match=r"holiday\.jpg: cannot be decoded \(a page description, not a photo"):
        faces.load_picture(Picture("holiday.jpg", tmp_path / "holiday.jpg"), 64)


def test_pipes_and_bombs_are_told_and_not_opened(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with (
        pytest.raises(ImageFileError, match=r"too large \(50000x50000 pixels\)"),
        Picture("bomb.png", tmp_path / "bomb.png").open(),
    ):
        pass
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(ImageFileError, match="got a pipe"), Picture("pipe.png", tmp_path / "pipe.png").open():
            pass
        os.mkfifo(tmp_path / "pipe.yaml")
        with pytest.raises(SettingsError, match="a folder, pipe or device"):
            read_yaml(tmp_path / "pipe.yaml")
    photo(tmp_path / "photo.png")
    with pytest.raises(SettingsError, match=r"photo\.png: expected a readable YAML file"):
        read_yaml(tmp_path / "photo.png")


def test_every_reader_opens_the_formats_on_the_list_only() -> None:
    """Pillow's own open tries all formats, PostScript among them, unless it is told which; files in memory are ours."""
    root = Path(commands.__file__).parents[1]
    strange = []
    for path in [*(root / "lafr_core").rglob("*.py"), *(root / "train").rglob("*.py"), *(root / "nodes").rglob("*.py")]:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or ast.unparse(call.func) != "Image.open":
                continue
            if ast.unparse(call.args[0]) != "buffer" and not any(word.arg == "formats" for word in call.keywords):
                strange.append(f"{path.relative_to(root)}:{call.lineno}")
    assert strange == []


# --- names ---


def test_names_that_are_no_text_or_very_long_are_prepared_and_read_again(tmp_path: Path, monkeypatch: Any) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    odd = b"gr\xfc\xdfe.png".decode("utf-8", "surrogateescape")
    deep = Path(*["a folder of some length"] * 12) / "deep.png"
    for name in (odd, deep, f"{'x' * 250}.png"):
        photo(source / name, 512)

    def faces_of(path: Path, *_: object) -> Any:
        yield prepare_data.Face((0.0, 0.0, 300.0, 300.0), ((1.0, 2.0),) * 5, 1.0), torch.rand(3, 512, 512), 1.0, ""

    monkeypatch.setattr(prepare_data, "faces_of", faces_of)
    count = prepare_data.prepare(source, target, None, prepare_data.Limits())  # type: ignore[arg-type]
    assert count == {"kept": 3} and (target / f"{odd.removesuffix('.png')}_0.png").is_file()
    pictures = faces.find_pictures(str(target))
    assert len(pictures) == 3 and all(picture.path is not None and picture.path.is_file() for picture in pictures)
    faces.write_list(tmp_path / "files.txt", pictures)
    assert faces.manifest_hash(pictures)
    table = preview.preview(str(target), tmp_path / "p.png", count=3, side=32)
    with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert sum(odd[:4] in row["picture"] for row in csv.DictReader(file)) == 1
    with pytest.raises(InputError, match="--count: expected 1 or more, got 0"):
        preview.preview(str(target), tmp_path / "q.png", count=0)
    picture = torch.rand(3, 16, 16)
    evaluate.evaluate(lambda low: low, iter([evaluate.Pair(f"{'y' * 250}.png", picture, picture)]), [], tmp_path / "save")
    assert len(list((tmp_path / "save" / "restored").iterdir())) == 1


def test_what_phones_write_is_prepared_too(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    for name in ("b.heic", "c.avif", "d.mpo", "e.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in prepare_data.photos(tmp_path)] == ["a.jpg", "b.heic", "c.avif", "d.mpo"]


# --- what evaluate reads, and sentences ---


def test_evaluate_never_writes_a_picture_that_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf = settings(tmp_path, "run", **{"codebook.steps": 1, "log.save_every": 1})
    run.run(codebook.CodebookTask, conf)
    config = tmp_path / "run" / "codebook" / "step_00000001" / "config.yaml"
    theirs = photo(tmp_path / "faces" / "evaluation.png")
    before = contents(tmp_path / "faces")
    for layout, folder in (("folder", theirs.parent), ("real", theirs.parent)):
        given = ["--config", config, "--checkpoint", tmp_path / "run", "--validation", folder, "--out", folder, "--overwrite"]
        with pytest.raises(SystemExit):
            evaluate.main([*map(str, given), "--layout", layout, "--device", "cpu"])
        assert "evaluation.png: the result would overwrite this input" in capsys.readouterr().err
        assert contents(tmp_path / "faces") == before
    celeba = replace(conf, data=replace(conf.data, validation=str(tmp_path / "c")))
    both = [photo(tmp_path / "c" / kind / "a.png") for kind in ("lq", "hq")]
    assert evaluate.files_read(celeba, "celeba") == both


def test_measurements_that_are_none_are_refused_in_a_sentence(tmp_path: Path) -> None:
    for path in (photo(tmp_path / "a.png"), tmp_path / "none.npz"):
        with pytest.raises(InputError, match="expected what trust measure wrote"):
            trust.main(["fit", str(path), "--out", str(tmp_path / "t.safetensors")])


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "x/log.csv"),
            1,
            "train: x/log.csv: cannot be read or written (No space",
        ),
        (OSError("gone"), 1, "train: cannot be read or written (gone); make room"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, ""),
        (KeyboardInterrupt(), 130, "train: stopped; the same command goes on where a checkpoint"),
    ],
)
def test_what_the_disk_refuses_and_a_stop_are_sentences(
    raised: BaseException, code: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: object) -> None:
        raise raised

    monkeypatch.setattr(prepare_data, "main", main)
    monkeypatch.setattr("sys.stdout", sys.stdout)
    with pytest.raises(SystemExit) as ended:
        commands.main(["prepare"])
    said = capsys.readouterr().err
    assert ended.value.code == code and said.startswith(told) and bool(said) == bool(told)


def test_a_full_disk_under_weights_is_an_os_error_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="No such file") as error:
        checkpoint.write_tensors({"a": torch.zeros(2)}, tmp_path / "none" / "a.safetensors")
    assert error.value.filename == str(tmp_path / "none" / "a.safetensors")

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        checkpoint.save(tmp_path / "v.safetensors", "vae", torch.nn.Linear(2, 2), {})
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(tmp_path / "v.safetensors")
    assert list(tmp_path.iterdir()) == []
