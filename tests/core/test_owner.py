"""What an hour as the owner of an awkward album has shown: names, closed streams, edited journals, disks that refuse."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lafr_core.app import cli, terminal
from lafr_core.app.journal import NAME, Journal
from lafr_core.app.report import is_entry
from lafr_core.errors import CheckpointError, ImageFileError, InputError
from lafr_core.images import encode, photos
from lafr_core.images.enlarge import enlarged
from lafr_core.images.photos import Photo
from lafr_core.images.upscaler import open_upscaler
from lafr_core.store.outputs import Outputs

BYTES = b"gr\xfc\xdfe".decode("utf-8", "surrogateescape")
"""A name from an old disk, which is no UTF-8."""


def photo(path: Path, seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (120, 100, 3), dtype=np.uint8)).save(path, **options)
    return path


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


# --- names ---


@pytest.mark.parametrize(
    ("encoding", "text", "shown"),
    [
        ("utf-8", f"Änne 👵 {BYTES}.jpg", "Änne 👵 gr\\udcfc\\udcdfe.jpg\n"),
        ("ascii", "Änne.jpg", "\\xc4nne.jpg\n"),
        ("utf-8", "two\nlines \x1b[31m red \x9b \u2028", "two\\nlines \\x1b[31m red \\x9b \\u2028\n"),
    ],
)
def test_any_name_is_one_line_that_the_stream_takes(
    encoding: str, text: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream, tell in (("stdout", terminal.show), ("stderr", terminal.say)):
        written = io.BytesIO()
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(written, encoding=encoding, newline="\n"))
        tell(text)
        getattr(sys, stream).flush()
        assert written.getvalue() == shown.encode(encoding)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names of any bytes")
def test_names_that_are_no_text_are_rehearsed_and_restored(tmp_path: Path, opened: list[Any], monkeypatch: Any) -> None:
    photo(tmp_path / "in" / f"{BYTES}.jpg")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8", newline="\n"))
    assert run("restore", tmp_path / "in", "-o", tmp_path / "out", "--dry-run") == 0
    sys.stdout.flush()
    assert b"gr\\udcfc\\udcdfe.jpg -> " in written.getvalue()
    assert run("restore", tmp_path / "in", "-o", tmp_path / "out") == 0
    assert os.path.isfile(os.fsencode(tmp_path / "out") + b"/gr\xfc\xdfe.png")


# --- streams ---


@pytest.mark.parametrize("command", [["--dry-run"], []])
def test_closed_streams_stop_no_run(command: list[str], tmp_path: Path, opened: list[Any], monkeypatch: Any) -> None:
    photo(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"")
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert run("restore", tmp_path / "a.png", tmp_path / "b.jpg", "-o", tmp_path / "out", *command) == (not command)
    assert (tmp_path / "out" / "a.png").is_file() == (not command)


def test_bars_are_for_terminals(tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    frames = [Image.fromarray(np.full((40, 50, 3), value, np.uint8)) for value in (30, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=80)
    run("restore", tmp_path / "a.gif", "-o", tmp_path / "out")
    assert "frame/s" not in capfd.readouterr().err


# --- names of reports ---


def test_a_report_a_gallery_and_the_journal_are_three_files(tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    command = ["restore", photo(tmp_path / "a.png"), "-o", tmp_path / "out"]
    assert run(*command, "--report", tmp_path / "x", "--gallery", tmp_path / "x") == 2
    assert "x: named for two results of one run" in capfd.readouterr().err
    for flag in ("--report", "--gallery"):
        assert run(*command, flag, tmp_path / "out" / NAME) == 2
        assert "expected a name for a report, got that of LAFR's journal" in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png"] and not opened


# --- journals and reports that somebody has edited ---


def nested(levels: int) -> list[Any]:
    return [] if levels == 1 else [nested(levels - 1)]


def entry(**changed: Any) -> dict[str, Any]:
    face = {"box": [1, 2.5, 3, None], "trust": 0.5, "change": None, "likeness": None, "person": None}
    whole = {"input": "a", "status": "restored", "output": None, "reason": None, "faces": [face], "warnings": ["w"]}
    return whole | changed


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": 1}, {"output": 3}, {"reason": []}, {"warnings": "text"}, {"warnings": [1]}, {"faces": 7}, {"faces": [1]},
        {"faces": [{}]}, {"faces": [{"box": [1, 2, 3]}]}, {"faces": [{"box": [1, 2, 3, "4"]}]}, {"input": None},
        {"faces": [{"box": [1, 2, 3, 4], "trust": "high"}]}, {"faces": [{"box": [1, 2, 3, 4], "person": 5}]},
        {"faces": [{"box": [1, 2, 3, 10**400]}]}, {"tracks": [{"box": [1, 2, 3, 4]}]},
        {"tracks": [{"box": [1, 2, 3, 4], "start": -1, "first": 0.0}]}, {"more": nested(20)},
    ],
)  # fmt: skip
def test_an_entry_of_another_shape_is_none(wrong: dict[str, Any]) -> None:
    assert (
        is_entry(entry())
        and is_entry(entry(more=nested(19)))
        and is_entry(entry(tracks=[{"box": [1, 2, 3, 4], "start": 0, "first": 0.0}]))
    )
    assert not is_entry(entry(**wrong)) and not is_entry([entry()])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("at", 10**400), ("run", 3), ("command", ["restore"]), ("source", 5), ("output", None), ("output", "a\0b"),
        ("source_stamp", []), ("source_stamp", {"size": 1}), ("output_stamp", {"ctime_ns": "x"}), ("record", 1),
        ("record", {"status": None}),
    ],
)  # fmt: skip
def test_an_edited_line_of_the_journal_is_passed_over(
    name: str, value: Any, tmp_path: Path, opened: list[Any], capfd: Any
) -> None:
    command = ["restore", photo(tmp_path / "in" / "a.jpg"), "-o", tmp_path / "out"]
    more = ["--gallery", tmp_path / "g.html", "--report", tmp_path / "r.json"]
    assert run(*command) == 0
    head, made_with, line = (tmp_path / "out" / NAME).read_text().splitlines()
    edited = json.loads(line)
    added = isinstance(value, dict) and name != "source_stamp"
    edited[name] = {**edited[name], **value} if added else value
    (tmp_path / "out" / NAME).write_text("\n".join([head, made_with, json.dumps(edited)]) + "\n")
    assert Journal.open(tmp_path / "out").entries == {}
    result = tmp_path / "out" / "a.png"
    before = result.read_bytes()
    assert run(*command, "--resume", *more) == 2  # whose result it is nobody knows any more: it stays
    assert "a.png: a file is there already that this run did not make" in capfd.readouterr().err
    assert result.read_bytes() == before
    result.unlink()
    assert run(*command, "--resume", *more) == 0
    assert len(Journal.open(tmp_path / "out").entries) == 1


# --- disks that refuse ---


def test_a_place_where_nothing_may_be_written_is_refused_before_any_work(
    tmp_path: Path, opened: list[Any], capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shut = tmp_path / "shut"
    shut.mkdir()
    may = os.W_OK | os.X_OK
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != shut or mode != may)  # as if not root, who may write
    command = ["restore", photo(tmp_path / "a.png"), "-o"]
    assert run(*command, shut / "new" / "out") == 2
    assert f"a.png: cannot be written (nothing may be written in {shut})" in capfd.readouterr().err
    assert run(*command, tmp_path / "out", "--report", shut / "r.json") == 2
    (tmp_path / "file").write_text("mine")
    assert run(*command, tmp_path / "file" / "out") == 2
    assert "file is no folder" in capfd.readouterr().err
    assert not opened and not (tmp_path / "out").exists()
    assert run(*command, tmp_path / "out") == 0


def test_a_full_disk_is_told_with_the_names_that_people_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", os.fspath(path))

    monkeypatch.setattr(encode, "save", full)
    final = tmp_path / "a.png"
    with pytest.raises(ImageFileError) as told, Outputs().writing(final) as temporary:
        photos.write(temporary, Photo(torch.zeros(3, 4, 5)), "png", called=final)  # type: ignore[arg-type]
    assert str(told.value) == f"{final}: cannot be written (No space left on device); make room, or choose another place"
    with pytest.raises(OSError) as raised, Outputs().writing(final) as temporary:
        full(temporary)
    assert raised.value.filename == str(final)
    assert list(tmp_path.iterdir()) == []
    # a message that speaks of the temporary name on purpose is left as it is
    with pytest.raises(InputError) as said, Outputs().writing(final) as temporary:
        raise InputError(f"the photo shows the words {temporary}")
    assert str(temporary) in str(said.value)


def test_a_refusal_is_one_sentence(tmp_path: Path) -> None:
    source = photo(tmp_path / "a.png")
    with pytest.raises(InputError) as told:
        Outputs([source]).check(source)
    assert str(told.value) == f"{source}: the result would overwrite this input; choose another output folder with -o"
    with pytest.raises(InputError) as told:
        Outputs().check(tmp_path)
    assert str(told.value) == f"{tmp_path}: a folder of this name is there; choose another name"


def test_a_stop_while_the_gallery_is_drawn_says_how_to_go_on(
    tmp_path: Path, opened: list[Any], capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lafr_core.app.gallery.write", stop)
    report = tmp_path / "r.json"
    command = ["restore", photo(tmp_path / "a.png"), "-o", tmp_path / "out", "--report", report]
    assert run(*command, "--gallery", tmp_path / "g.html") == 130
    assert "stopped after 1 inputs; the same command with --resume goes on" in capfd.readouterr().err
    assert json.loads(report.read_text())["finished"] is True


# --- what a run reads besides photos ---


def animation(path: Path, kind: str, seed: int = 0) -> Path:
    frames = [Image.fromarray(np.random.default_rng(seed + k).integers(0, 256, (120, 100, 3), np.uint8)) for k in range(2)]
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(path, format=kind, save_all=True, append_images=frames[1:], duration=80)
    return path


def kept(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("extra", [[], ["--overwrite"], ["--resume"]])
def test_a_clip_is_never_replaced_by_its_result(extra: list[str], tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    clip = animation(tmp_path / "in" / "a.gif", "GIF")
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    before = clip.read_bytes()
    for named, out in ((clip, tmp_path / "in"), (tmp_path / "linked" / "a.gif", tmp_path / "in"), (clip, tmp_path / "linked")):
        assert run("restore", named, "-o", out, *extra) == 1
        assert "a.gif: " in capfd.readouterr().err
        assert clip.read_bytes() == before
    os.link(clip, tmp_path / "a.gif")
    assert run("restore", clip, "-o", tmp_path, "--overwrite") == 1
    assert "the result would overwrite an input" in capfd.readouterr().err
    assert clip.read_bytes() == before
    # a folder of frames
    frames = photo(tmp_path / "reel" / "1.png").parent
    photo(frames / "2.png", 1)
    whole = kept(frames)
    assert run("restore", frames, "-o", tmp_path, "--sequence", *extra) == 1
    assert kept(frames) == whole


def test_a_clip_that_appears_while_another_is_made_stays(tmp_path: Path, opened: list[Any], monkeypatch: Any) -> None:
    clip = animation(tmp_path / "in" / "a.gif", "GIF")
    from lafr_core.video import run as video

    made = video._restore_segments

    def slowly(*arguments: Any) -> None:
        made(*arguments)
        (tmp_path / "out" / "a.gif").write_text("mine")

    monkeypatch.setattr(video, "_restore_segments", slowly)
    assert run("restore", clip, "-o", tmp_path / "out") == 1
    assert (tmp_path / "out" / "a.gif").read_text() == "mine"


def test_clips_references_masks_and_models_are_never_written(tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    folder, jpg, out = tmp_path / "in", tmp_path / "jpg", tmp_path / "out"
    clip = animation(folder / "a.gif", "GIF")
    mask = folder / "c.png"
    Image.new("L", (100, 120)).save(mask)
    one, whole = photo(jpg / "c.jpg"), kept(folder)
    for command in (
        [one, "-o", folder, "--keep-mask", mask],
        [one, "-o", folder, "--keep-mask", folder],
        [one, "-o", folder, "--reference", mask],
        [one, "-o", folder, "--embedder", mask],
        [one, "-o", out, "--keep-mask", mask, "--report", mask],
        [one, clip, "-o", out, "--gallery", clip],
        [clip, "-o", out, "--reference", mask, "--report", mask],
    ):
        assert run("restore", *command, "--overwrite") == 2, command
        assert "the result would overwrite this input" in capfd.readouterr().err
        assert kept(folder) == whole
    assert not opened


def test_a_clip_and_a_photo_of_one_name_both_have_results(tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    animation(tmp_path / "in" / "a.png", "PNG")
    photo(tmp_path / "in" / "a.jpg")
    assert run("restore", tmp_path / "in", "-o", tmp_path / "out") == 0, capfd.readouterr().err
    assert len([name for name in kept(tmp_path / "out") if name != NAME]) == 2
    assert run("restore", tmp_path / "in", "-o", tmp_path / "out", "--resume") == 0


# --- sentences ---


def test_damaged_exif_is_named_and_not_a_warning_of_a_library(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = photo(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0" + b"\xff" * 60)
    read = photos.read(path)
    assert read.notes == ("EXIF damaged: what cannot be read of it is lost",)
    photos.recorded(read, "LAFR", {})
    assert len(recwarn) == 0
    whole = Image.Exif()
    whole[0x010E] = "Oma"
    assert photos.read(photo(tmp_path / "b.jpg", exif=whole)).notes == ()


def test_a_small_limit_is_told_in_pixels(tmp_path: Path) -> None:
    seen = Photo(torch.zeros(3, 40, 50))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"100x80 pixels, the limit is 7000 pixels;"):
        enlarged(seen, 2, max_pixels=7000)
    with pytest.raises(InputError, match=r"the limit is 1 megapixels;"):
        enlarged(Photo(torch.zeros(3, 900, 900)), 2, max_pixels=1_999_999)  # type: ignore[arg-type]


def test_an_upscaler_that_is_none_is_refused_in_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("spandrel")
    device = torch.device("cpu")
    with pytest.raises(CheckpointError, match=r"no\.pth: expected an upscaler, found no file there; check the path$"):
        open_upscaler(tmp_path / "no.pth", device)
    (tmp_path / "a.pth").write_bytes(pickle.dumps(print))
    with pytest.raises(CheckpointError, match=r"a\.pth: expected an upscaler's tensors, got other things; choose another"):
        open_upscaler(tmp_path / "a.pth", device)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.pth")  # opening it would wait for ever
        with pytest.raises(CheckpointError, match="got a pipe"):
            open_upscaler(tmp_path / "pipe.pth", device)


def test_masks_folders_that_hold_none_are_refused(
    tmp_path: Path, opened: list[Any], capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    command = ["restore", photo(tmp_path / "a.png"), "-o", tmp_path / "out", "--keep-mask", masks]
    assert run(*command) == 2
    assert "expected masks with the photos' names in this folder, found no file" in capfd.readouterr().err
    listed = Path.iterdir

    def shut(folder: Path) -> Any:
        if folder == masks:
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", shut)
    assert run(*command) == 2
    assert f"--keep-mask: {masks}: cannot be read (Permission denied); change its permissions" in capfd.readouterr().err
    assert not opened


def test_a_box_beyond_all_measure_is_told_briefly(tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    run("restore", photo(tmp_path / "a.png"), "-o", tmp_path / "out", "--box", "0,0,1e99,1.5e99")
    assert "box 0, 0, 1e+99, 1.5e+99: no face in it" in capfd.readouterr().err


def test_a_sheet_is_a_png_and_is_called_so(tmp_path: Path, capfd: Any) -> None:
    one = photo(tmp_path / "a.png")
    assert run("compare", one, one, "-o", tmp_path / "sheet.jpg") == 2
    assert "sheet.jpg: expected a name that ends with .png" in capfd.readouterr().err
    assert not (tmp_path / "sheet.jpg").exists()
    assert run("compare", one, one, "-o", tmp_path / "sheet.PNG") == 0
