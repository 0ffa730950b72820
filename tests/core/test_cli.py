"""The four commands as a user types them, with stand-ins for the networks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import face_at, parts
from PIL import Image

from lafr_core.app import arguments, batch, cli
from lafr_core.app.commands import detect as detect_command
from lafr_core.app.commands import restore as restore_command
from lafr_core.errors import CheckpointError
from lafr_core.images import photos
from lafr_core.settings import RestoreSettings, options

ROOT = Path(__file__).parents[2]
FACE = face_at(20, 30, 60)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces the real models by stand-ins that find FACE; the list fills with what was asked for."""
    asked: list[dict[str, Any]] = []

    def open_models(settings: RestoreSettings, **kwargs: Any) -> Any:
        asked.append({"settings": settings, **kwargs})
        return parts([FACE])

    monkeypatch.setattr(arguments, "open_models", open_models)
    monkeypatch.setattr(detect_command, "open_detector", lambda name, **_: parts([FACE]).detector)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return asked


def photo(path: Path, height: int = 120, width: int = 100, mode: str = "RGB", **extra: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(len(path.name)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(array).convert(mode).save(path, **extra)
    return path


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def entries(path: Path) -> dict[str, dict[str, Any]]:
    return {Path(entry["input"]).name: entry for entry in json.loads(path.read_text())["inputs"]}


# --- restore ---


def test_restore_writes_png_reports_and_leaves_the_rest_alone(tmp_path: Path, models: list[Any], capfd: Any) -> None:
    photo(tmp_path / "in" / "a.png")
    photo(tmp_path / "in" / "tiny.png", 20, 10)  # no room for the face: a photo without one
    (tmp_path / "in" / "broken.jpg").write_bytes(b"not a jpeg")
    before = {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    code = run("restore", tmp_path / "in", "-o", tmp_path / "out", "--report", tmp_path / "r.json", "--color", "0")
    assert code == 1  # one of them failed
    assert {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["a.png", "tiny.png"]

    source, result = pixels(tmp_path / "in" / "a.png"), pixels(tmp_path / "out" / "a.png")
    changed = (source != result).any(-1)
    assert changed[60, 50] and not changed[0].any() and not changed[:, 99].any() and 0.1 < changed.mean() < 0.9
    assert np.array_equal(pixels(tmp_path / "in" / "tiny.png"), pixels(tmp_path / "out" / "tiny.png"))

    report = json.loads((tmp_path / "r.json").read_text())
    assert report["finished"] and report["command"] == "restore" and report["device"].startswith("cpu (")
    assert report["settings"]["color"] == 0.0
    found = entries(tmp_path / "r.json")
    assert found["a.png"]["status"] == "restored" and found["tiny.png"]["status"] == "no_face"
    (face,) = found["a.png"]["faces"]
    assert face["box"] == [20, 30, 80, 90] and len(face["landmarks"]) == 5 and -1 <= face["change"] <= 1
    assert found["a.png"]["seconds"] > 0
    assert found["broken.jpg"]["status"] == "failed" and "not an image" in found["broken.jpg"]["reason"]

    out, err = capfd.readouterr()
    assert out == ""  # nothing on stdout, no bar in a pipe
    lines = err.splitlines()
    assert lines[0].startswith("lafr: failed: ") and "broken.jpg: not an image" in lines[0]
    assert lines[-1].startswith("lafr: 1 restored, 1 without a face, 1 failed; cpu (")
    assert "it/s" not in err and "\r" not in err


def test_no_face_is_success(tmp_path: Path, models: list[Any]) -> None:
    assert run("restore", photo(tmp_path / "tiny.png", 9, 9), "-o", tmp_path / "out") == 0


def test_alpha_depth_orientation_and_profile_pass_through(tmp_path: Path, models: list[Any]) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (120, 100, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "alpha.png", icc_profile=b"profile")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(tmp_path / "turned.jpg", 100, 120, exif=exif)
    deep = photos.Photo(torch.rand(3, 120, 100), bits=16)
    photos.write(tmp_path / "deep.png", deep)
    assert run("restore", tmp_path / "alpha.png", tmp_path / "turned.jpg", tmp_path / "deep.png", "-o", tmp_path / "out") == 0
    assert np.array_equal(pixels(tmp_path / "out" / "alpha.png")[..., 3], rgba[..., 3])
    assert photos.read(tmp_path / "out" / "alpha.png").icc == b"profile"
    assert size(tmp_path / "out" / "turned.png") == (100, 120)
    again = photos.read(tmp_path / "out" / "deep.png")
    assert again.bits == 16 and torch.equal(again.pixels[:, 0], photos.read(tmp_path / "deep.png").pixels[:, 0])


def test_strength_0_writes_the_photo_bit_for_bit(tmp_path: Path, models: list[Any]) -> None:
    source = photo(tmp_path / "a.png")
    assert run("restore", source, "-o", tmp_path / "out", "--strength", "0") == 0
    assert np.array_equal(pixels(source), pixels(tmp_path / "out" / "a.png"))


def test_every_setting_is_an_option_and_arrives(tmp_path: Path, models: list[Any]) -> None:
    other = {
        "detector": "starter", "threshold": 0.31, "min_face": 7, "max_face": 900, "sort": "x", "top_k": 3, "faces": "0,1",
        "rotate": False, "detect_side": 640, "small_faces": False, "fidelity": 0.85, "strength": 0.7, "mask": "square",
        "feather": 0.2, "color": 0.4, "grain": 0.3, "identity_warning": -0.5, "batch_size": 2, "detail": 0.3,
    }  # fmt: skip
    assert set(other) == set(options())
    assert all(other[name] != default for name, (_, default) in options().items())
    flags = [
        f"--{'' if value is not False else 'no-'}{name.replace('_', '-')}" + ("" if isinstance(value, bool) else f"={value}")
        for name, value in other.items()
    ]
    run("restore", photo(tmp_path / "a.png"), "-o", tmp_path / "out", *flags)
    assert asdict(models[0]["settings"]) == other
    run("restore", tmp_path / "a.png", "-o", tmp_path / "out2")
    assert models[1]["settings"] == RestoreSettings()


def test_model_paths_arrive(tmp_path: Path, models: list[Any]) -> None:
    names = ("vae", "adapter", "prior", "detector_weights", "embedder")
    flags = [text for name in names for text in (f"--{name.replace('_', '-')}", f"{name}.safetensors")]
    run("restore", photo(tmp_path / "a.png"), "-o", tmp_path / "out", "--device", "cpu", *flags)
    assert {name: str(models[0][name]) for name in names} == {name: f"{name}.safetensors" for name in names}
    assert models[0]["device"] == torch.device("cpu")


def test_hand_given_boxes_replace_detection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    middle = face_at(90, 90, 140)  # in the region around a box, 320 pixels wide
    monkeypatch.setattr(arguments, "open_models", lambda *_, **__: parts([middle]))
    source = photo(tmp_path / "a.png", 200, 200)
    assert run("restore", source, "-o", tmp_path / "out", "--box", "70,70,110,110", "--report", tmp_path / "r.json") == 0
    (face,) = entries(tmp_path / "r.json")["a.png"]["faces"]
    assert face["box"] == [70, 70, 110, 110] and face["score"] == 1.0


def test_a_box_without_a_face_is_reported(tmp_path: Path, models: list[Any]) -> None:
    source = photo(tmp_path / "a.png", 200, 200)
    assert run("restore", source, "-o", tmp_path / "out", "--box", "100,100,160,160", "--report", tmp_path / "r.json") == 0
    entry = entries(tmp_path / "r.json")["a.png"]
    assert (entry["status"], entry["faces"]) == ("no_face", [])
    assert "box 100, 100, 160, 160: no face in it, left alone" in entry["warnings"]
    assert np.array_equal(pixels(tmp_path / "out" / "a.png"), pixels(source))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--faces", "9"], "1 found, 0 selected (Which faces)"),
        (["--min-face", "1000"], "1 found, 0 selected (Smallest face)"),
        (["--min-face", "1000", "--faces", "1"], "1 found, 0 selected (Smallest face / Which faces)"),
        ([], None),
    ],
)
def test_a_face_left_out_by_the_settings_is_not_called_none(
    flags: list[str], words: str | None, tmp_path: Path, models: list[Any], capfd: Any
) -> None:
    """TRIALS W1."""
    for command in ("restore", "detect"):
        out, report = tmp_path / command, tmp_path / f"{command}.json"
        assert run(command, photo(tmp_path / "a.png"), "-o", out, "--report", report, *flags) == 0
        assert entries(report)["a.png"]["warnings"] == ([words] if words else [])
        assert (words or "found") in capfd.readouterr().err or words is None


def test_a_face_that_deserves_little_trust_is_warned_about(
    tmp_path: Path, models: list[Any], capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "restore_stored", lambda image, *_, **__: _restoration(image[None], 0.12))
    source = photo(tmp_path / "a.png")
    assert run("restore", source, "-o", tmp_path / "out", "--report", tmp_path / "r.json") == 0
    message = "face 0: trust 0.12, a guess; give a reference photo of the person, raise fidelity, or leave this face out"
    assert entries(tmp_path / "r.json")["a.png"]["warnings"] == [message]
    assert f"a.png: {message}" in capfd.readouterr().err
    assert (
        run("restore", source, "-o", tmp_path / "out", "--report", tmp_path / "r.json", "--identity-warning=-1", "--overwrite")
        == 0
    )
    assert entries(tmp_path / "r.json")["a.png"]["warnings"] == []


def _restoration(images: torch.Tensor, trust: float) -> Any:
    from lafr_core.pipeline import RestoredBatch

    return RestoredBatch(images, (replace(FACE, change=0.99, trust=trust),), torch.zeros_like(images[:, :1]))


@pytest.mark.parametrize("side", [512, 256, 700])
def test_aligned_restores_the_whole_crop(side: int, tmp_path: Path, models: list[Any]) -> None:
    ramp = np.linspace(0, 200, side).astype(np.uint8)
    Image.fromarray(np.stack([np.tile(ramp, (side, 1))] * 3, -1)).save(tmp_path / "face.png")
    arguments = [
        "restore",
        tmp_path / "face.png",
        "-o",
        tmp_path / "out",
        "--aligned",
        "--report",
        tmp_path / "r.json",
        "--color=0",
        "--fidelity=0.5",
    ]
    assert run(*arguments) == 0
    source, result = pixels(tmp_path / "face.png").astype(int), pixels(tmp_path / "out" / "face.png").astype(int)
    assert source.shape == result.shape
    assert (result - source).mean() == pytest.approx(
        0.2 * 0.5 / 2 * 255, abs=2
    )  # Brighter adds 0.2 * 0.5 in [-1, 1]: to the edges
    assert (result[:, -1] - source[:, -1]).mean() > 5
    entry = entries(tmp_path / "r.json")["face.png"]
    assert entry["faces"][0]["box"] == [0, 0, side, side]
    assert entry["warnings"] == ([] if side == 512 else [f"crop of {side} pixels, scaled to 512 and back"])
    assert run(*arguments, "--strength=0", "--resume") == 0  # other settings: done again
    assert np.array_equal(pixels(tmp_path / "out" / "face.png"), source)


def test_aligned_refuses_what_is_no_crop(tmp_path: Path, models: list[Any], capfd: Any) -> None:
    assert run("restore", photo(tmp_path / "a.png"), "-o", tmp_path / "out", "--aligned") == 1
    assert "expected a square face crop with --aligned, got 100x120" in capfd.readouterr().err
    assert run("restore", tmp_path / "a.png", "-o", tmp_path / "out", "--aligned", "--box", "1,1,9,9") == 2


# --- resume and stopping ---


def test_resume_skips_what_is_done_and_retries_what_failed(tmp_path: Path, models: list[Any], capfd: Any) -> None:
    photo(tmp_path / "in" / "a.png")
    photo(tmp_path / "in" / "c.png")
    broken = tmp_path / "in" / "b.png"
    broken.write_bytes(b"")
    command = ["restore", tmp_path / "in", "-o", tmp_path / "out", "--report", tmp_path / "r.json", "--resume"]
    assert run(*command) == 1
    (tmp_path / "out" / "c.png").unlink()
    stamp = (tmp_path / "out" / "a.png").stat().st_mtime_ns
    photo(broken)
    capfd.readouterr()
    assert run(*command) == 0
    assert (tmp_path / "out" / "a.png").stat().st_mtime_ns == stamp  # not done again
    assert (tmp_path / "out" / "c.png").is_file()  # its result had gone
    assert {name: entry["status"] for name, entry in entries(tmp_path / "r.json").items()} == dict.fromkeys(
        ("a.png", "b.png", "c.png"), "restored"
    )
    assert "3 restored (1 were done already)" in capfd.readouterr().err
    opened = len(models)
    assert run(*command) == 0
    assert len(models) == opened  # nothing left: no model is even opened


def test_ctrl_c_leaves_whole_files_and_a_valid_report(
    tmp_path: Path, models: list[Any], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    for name in "abc":
        photo(tmp_path / "in" / f"{name}.png")
    restore_photo = batch.restore_photo

    def stopped_at_b(job: Any, *rest: Any, **more: Any) -> Any:
        if job.source.name == "b.png":
            raise KeyboardInterrupt
        return restore_photo(job, *rest, **more)

    monkeypatch.setattr(restore_command, "restore_photo", stopped_at_b)
    command = ["restore", tmp_path / "in", "-o", tmp_path / "out", "--report", tmp_path / "r.json"]
    assert run(*command) == 130
    assert json.loads((tmp_path / "r.json").read_text())["finished"] is False
    assert list(entries(tmp_path / "r.json")) == ["a.png"]
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == ["a.png"]
    assert "stopped after 1 inputs; the same command with --resume goes on" in capfd.readouterr().err
    monkeypatch.setattr(restore_command, "restore_photo", restore_photo)
    assert run(*command, "--resume") == 0
    assert list(entries(tmp_path / "r.json")) == ["a.png", "b.png", "c.png"]


# A shell that starts the tests in the background leaves SIGINT ignored, which children inherit; a terminal does not.
SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
from fakes import face_at, parts
from lafr_core.app import arguments, cli
from lafr_core.images import photos
def slow_write(*args, write=photos.write, **kwargs):
    write(*args, **kwargs)
    print("wrote", flush=True)
    time.sleep(60)
photos.write = slow_write
arguments.open_models = lambda *_, **__: parts([face_at(20, 30, 60)])
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_real_signal_stops_a_real_process(stop: signal.Signals, tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    photo(tmp_path / "in" / "b.png")
    arguments = ["restore", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--report", str(tmp_path / "r.json")]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW.format(root=str(ROOT)), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "wrote\n"
    time.sleep(0.2)
    process.send_signal(stop)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err and "stopped" in err
    assert json.loads((tmp_path / "r.json").read_text())["finished"] is False
    assert not list((tmp_path / "out").glob("*"))


# --- wrong usage ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fidelity", "1.5"], "fidelity: expected 0.0 to 1.0, got 1.5"),
        (["--faces", "first"], "faces: expected numbers from 0"),
        (["--max-face", "10", "--min-face", "20"], "max_face: expected 0 or at least min_face"),
    ],
)
def test_settings_out_of_range_are_wrong_usage(
    arguments: list[str], message: str, tmp_path: Path, models: list[Any], capfd: Any
) -> None:
    assert run("restore", photo(tmp_path / "a.png"), "-o", tmp_path / "out", *arguments) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["restore"],
        ["restore", "a.png"],
        ["restore", "a.png", "-o", "out", "--fidelity", "much"],
        ["restore", "a.png", "-o", "out", "--detector", "eyes"],
        ["restore", "a.png", "-o", "out", "--device", "abacus"],
        ["restore", "a.png", "-o", "out", "--box", "1,2,3"],
        ["restore", "a.png", "-o", "out", "--box", "5,2,3,9"],
        ["restore", "a.png", "-o", "out", "--box", "1,9,3,2"],
        ["restore", "a.png", "-o", "out", "--quality", "0"],
        ["restore", "a.png", "-o", "out", "--box", "5,5,1,1"],
        ["enhance", "a.png"],
    ],
)
def test_unparsable_arguments_exit_with_2(arguments: list[str], capfd: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert "usage: lafr" in capfd.readouterr().err


def test_a_model_that_cannot_be_opened_is_one_sentence(
    tmp_path: Path, models: list[Any], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise CheckpointError("prior.safetensors: expected a LAFR prior file, found no file there; check the path")

    monkeypatch.setattr(arguments, "open_models", missing)
    assert run("restore", photo(tmp_path / "a.png"), "-o", tmp_path / "out", "--prior", "prior.safetensors") == 2
    assert (
        capfd.readouterr().err == "lafr: prior.safetensors: expected a LAFR prior file, found no file there; check the path\n"
    )


def test_a_missing_device_is_named(tmp_path: Path, models: list[Any], capfd: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert run("restore", photo(tmp_path / "a.png"), "-o", tmp_path / "out", "--device", "cuda") == 2
    assert "device: 'cuda' is not available here; choose auto or one of: " in capfd.readouterr().err


def test_a_library_fault_in_one_photo_does_not_end_the_run(
    tmp_path: Path, models: list[Any], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    photo(tmp_path / "in" / "a.png")
    photo(tmp_path / "in" / "b.png")
    restore_photo = batch.restore_photo

    def faulty(job: Any, *rest: Any, **more: Any) -> Any:
        if job.source.name == "a.png":
            raise RuntimeError("something inside")
        return restore_photo(job, *rest, **more)

    monkeypatch.setattr(restore_command, "restore_photo", faulty)
    assert run("restore", tmp_path / "in", "-o", tmp_path / "out") == 1
    assert "a.png: RuntimeError: something inside" in capfd.readouterr().err
    assert (tmp_path / "out" / "b.png").is_file()


def test_an_output_folder_that_cannot_be_made_is_refused(tmp_path: Path, models: list[Any], capfd: Any) -> None:
    (tmp_path / "out").write_text("a file")
    assert run("restore", photo(tmp_path / "a.png"), "-o", tmp_path / "out") == 2
    assert "a.png: cannot be written" in capfd.readouterr().err and not models


# --- detect, compare, demo ---


def test_detect_draws_and_writes_json(tmp_path: Path, models: list[Any]) -> None:
    black = np.zeros((240, 200, 3), dtype=np.uint8)
    Image.fromarray(black).save(tmp_path / "a.png")
    Image.fromarray(black[:10, :10]).save(tmp_path / "none.png")
    assert run("detect", tmp_path / "a.png", tmp_path / "none.png", "-o", tmp_path / "out", "--sort", "x") == 0
    drawn = pixels(tmp_path / "out" / "a.png")
    assert drawn.shape == (240, 200, 3)
    assert drawn[30:91, 20].any(-1).all() and drawn[90, 20:81].any(-1).all()  # left and lower edge of the box
    for x, y in FACE.landmarks:
        assert drawn[round(y), round(x)].any()
    assert not drawn[100:, :].any() and not drawn[:, 120:].any()
    found = entries(tmp_path / "out" / "faces.json")
    assert found["a.png"]["status"] == "detected" and found["a.png"]["faces"][0]["box"] == [20, 30, 80, 90]
    assert found["none.png"]["status"] == "no_face"


def test_compare_writes_a_sheet_and_prints_quality(tmp_path: Path, capfd: Any) -> None:
    original = photo(tmp_path / "gt.png", 64, 48)
    gray = np.full((64, 48, 3), 128, dtype=np.uint8)
    Image.fromarray(gray).save(tmp_path / "before.png")
    Image.fromarray(gray // 2 + pixels(original) // 2).save(tmp_path / "after.png")
    arguments = ["compare", tmp_path / "before.png", tmp_path / "after.png"]
    assert run(*arguments, original, "-o", tmp_path / "s" / "sheet.png") == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("before.png: before PSNR ") and "after PSNR" in lines[1]
    assert float(lines[1].split()[3]) > float(lines[0].split()[3]) + 3
    three = size(tmp_path / "s" / "sheet.png")
    assert run(*arguments, "-o", tmp_path / "s" / "sheet.png", "--overwrite") == 0
    two = size(tmp_path / "s" / "sheet.png")
    assert two[1] == three[1] and two[0] < three[0]


def test_compare_pairs_folders_by_name(tmp_path: Path, capfd: Any) -> None:
    for name in ("x/1.jpg", "x/2.jpg", "y/2.png", "y/3.png"):
        photo(tmp_path / name, 20, 20)
    assert run("compare", tmp_path / "x", tmp_path / "y", "-o", tmp_path / "sheet.png") == 0
    one_row = size(tmp_path / "sheet.png")[1]
    photo(tmp_path / "y" / "1.png", 20, 20)
    assert run("compare", tmp_path / "x", tmp_path / "y", "-o", tmp_path / "sheet.png", "--overwrite") == 0
    assert size(tmp_path / "sheet.png")[1] > 1.8 * one_row
    assert run("compare", tmp_path / "x", tmp_path / "y" / "2.png", "-o", tmp_path / "sheet.png") == 2
    assert "expected files only or folders only" in capfd.readouterr().err
    assert run("compare", tmp_path / "x", "-o", tmp_path / "sheet.png") == 2
    assert run("compare", tmp_path / "x" / "1.jpg", tmp_path / "gone.png", "-o", tmp_path / "sheet.png") == 2


def test_demo_restores_measures_and_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    from lafr_core.app.demo import PORTRAIT

    monkeypatch.setattr(arguments, "open_models", lambda *_, **__: parts([PORTRAIT]))
    assert run("demo", "-o", tmp_path / "demo") == 0
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == [
        "after.png",
        "before.png",
        "original.png",
        "sheet.png",
    ]
    out = capfd.readouterr().out
    assert "1 face(s) found by fixed on cpu (" in out
    header, before, after = (line.split() for line in out.splitlines()[1:4])
    assert header == ["face", "crop", "PSNR", "dB", "SSIM", "identity"]
    assert before[0] == "before" and after[0] == "after" and before[1:] != after[1:]
    first = (tmp_path / "demo" / "before.png").read_bytes()
    assert run("demo", "-o", tmp_path / "again") == 0
    assert (tmp_path / "again" / "before.png").read_bytes() == first  # a fixed seed
    assert run("demo", "-o", tmp_path / "again", "--severity", "severe", "--overwrite") == 0
    assert (tmp_path / "again" / "before.png").read_bytes() != first


# --- several processes ---

LAUNCHED = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import torch
torch.set_num_threads(1)
from fakes import face_at, parts
from lafr_core.app import arguments, cli
arguments.open_models = lambda *_, **__: parts([face_at(20, 30, 60)])
if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
"""


def test_accelerate_launch_splits_the_inputs_and_merges_the_reports(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    for number in range(5):
        photo(tmp_path / "in" / f"{number}.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"")
    script = tmp_path / "launched.py"
    script.write_text(textwrap.dedent(LAUNCHED.format(root=str(ROOT))))
    arguments = [
        "restore",
        str(tmp_path / "in"),
        "-o",
        str(tmp_path / "out"),
        "--report",
        str(tmp_path / "r.json"),
        "--device",
        "cpu",
    ]
    # --multi_gpu is the launcher's word for several processes on one machine; --device cpu keeps them off any GPU.
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    env = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    result = subprocess.run(
        [*launcher, str(script), *arguments], capture_output=True, text=True, timeout=300, env=env, stdin=subprocess.DEVNULL
    )
    assert result.returncode == 1, result.stderr  # broken.png failed
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["processes"] == 2 and report["finished"] is True
    found = entries(tmp_path / "r.json")
    assert [entry["status"] for entry in found.values()] == ["restored"] * 5 + ["failed"]
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == [f"{number}.png" for number in range(5)]
    assert not list(tmp_path.glob("r.json.process*"))
    assert result.stderr.count("lafr: 5 restored, 1 failed") == 1
