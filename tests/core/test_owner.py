"""What two walks of an hour as the owner of an awkward album have shown: names, closed streams, edited journals, disks that
refuse, disks that number files anew, and what training must not touch."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lafr_core.app import cli, clips, gallery, report, terminal
from lafr_core.app.commands import restore
from lafr_core.app.journal import NAME, Journal
from lafr_core.app.report import is_entry
from lafr_core.errors import CheckpointError, ImageFileError, InputError
from lafr_core.images import encode, photos
from lafr_core.images.enlarge import enlarged
from lafr_core.images.photos import Photo
from lafr_core.images.upscaler import open_upscaler
from lafr_core.store.atomic import atomic
from lafr_core.store.outputs import Files, Outputs, can_be_named

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
        ("utf-8", "two\nlines \x1b[31m red \x9b \u2028\u2029", "two\\nlines \\x1b[31m red \\x9b \\u2028\\u2029\n"),
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


def test_what_is_wrong_with_photos_and_reports_is_said_before_clips_are_begun(
    tmp_path: Path, opened: list[Any], capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []
    monkeypatch.setattr(restore, "restore_clips", lambda *given, **_: begun.append(given))
    clip = animation(tmp_path / "in" / "c.gif", "GIF")
    photo(tmp_path / "in" / "a.jpg")
    mine = photo(tmp_path / "out" / "a.png", 1)
    before = mine.read_bytes()
    assert run("restore", tmp_path / "in", "-o", tmp_path / "out") == 2
    assert "a.png: a file is there already" in capfd.readouterr().err
    for flag in ("--report", "--gallery"):
        assert run("restore", clip, "-o", tmp_path / "other", flag, mine) == 2
        assert "a.png: a file is there already" in capfd.readouterr().err
    assert begun == [] and mine.read_bytes() == before


def test_clips_keep_their_suffix_where_two_differ_in_nothing_else(tmp_path: Path) -> None:
    for name, kind in (("in/a.gif", "GIF"), ("in/A.png", "PNG"), ("in/b.gif", "GIF"), ("in/sub/a.gif", "GIF")):
        animation(tmp_path / name, kind)
    no_result = lambda path: False
    jobs, rest = clips.find([str(tmp_path / "in")], tmp_path / "out", recursive=True, sequence=False, is_result=no_result)
    assert [job.stem.as_posix() for job in jobs] == ["A.png", "a.gif", "b", "sub/a"] and rest == [str(tmp_path / "in")]
    made = lambda path: path.name == "b.gif"
    jobs, _ = clips.find([str(tmp_path / "in")], tmp_path / "out", recursive=False, sequence=False, is_result=made)
    assert [job.stem.as_posix() for job in jobs] == ["A.png", "a.gif"]


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


# --- disks that are not like others ---


def other_spelling(path: Path, spelled: Path) -> Path:
    """What a disk shows that takes both for one name and numbers files by their spelling (exFAT through FUSE)."""
    spelled.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, spelled)
    return spelled


def test_a_file_is_known_under_another_spelling_though_its_number_differs(tmp_path: Path) -> None:
    source = photo(tmp_path / "Summer" / "e\u0301te.png")
    twin = other_spelling(source, tmp_path / "SUMMER" / "\u00c9TE.PNG")
    assert os.stat(source).st_ino != os.stat(twin).st_ino
    files = Files([source])
    assert source in files and twin in files and tmp_path / "none.png" not in files
    with pytest.raises(InputError, match="the result would overwrite this input"):
        Outputs([source], overwrite=True).check(twin)
    os.utime(twin, ns=(1, 1))  # another file, on a disk that keeps the two apart
    assert twin not in files
    Outputs([source], overwrite=True).check(twin)


def test_no_clip_is_replaced_under_another_spelling(tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    clip = animation(tmp_path / "usb" / "a.gif", "GIF")
    twin = other_spelling(clip, tmp_path / "USB" / "a.gif")
    before = twin.read_bytes()
    assert run("restore", clip, "-o", tmp_path / "USB", "--overwrite") == 1
    assert "the result would overwrite an input" in capfd.readouterr().err
    assert twin.read_bytes() == before


def test_a_name_that_the_disk_takes_from_nobody_stops_no_other(tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    long = "x" * 251
    for name in ("a.jpg", f"{long}.jpg", f"{long}.bmp"):  # the results' names keep the suffix, and are too long with it
        photo(folder / name)
    out.mkdir()
    assert not can_be_named(out / f"{long}.jpg.png") and can_be_named(out / "a.png")
    assert run("restore", folder, "-o", out) == 1
    assert "cannot be written (File name too long)" in capfd.readouterr().err
    assert sorted(kept(out)) == [NAME, "a.png"]
    assert run("restore", folder, "-o", out, "--resume") == 1  # and it is no reason to refuse the rest


def test_a_pipe_is_no_file_to_overwrite(tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs pipes")
    os.mkfifo(tmp_path / "pipe")
    for option in ("--report", "--gallery"):
        assert run("restore", photo(tmp_path / "a.jpg"), "-o", tmp_path / "out", option, tmp_path / "pipe", "--overwrite") == 2
        assert "a pipe, socket or device of this name is there; choose another name" in capfd.readouterr().err
    assert not opened


def test_what_appears_while_a_file_is_written_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(FileExistsError), atomic(path, replace=False) as temporary:
        temporary.write_text("ours")
        path.write_text("theirs")
    assert kept(tmp_path) == {"a.png": b"theirs"}
    with atomic(path) as temporary:
        temporary.write_text("ours")
    assert kept(tmp_path) == {"a.png": b"ours"}
    with atomic(tmp_path / "b.png", replace=False) as temporary:
        temporary.write_text("new")
    assert kept(tmp_path) == {"a.png": b"ours", "b.png": b"new"}


def test_a_disk_without_hard_links_keeps_what_appears_and_leaves_no_empty_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    path = tmp_path / "a.png"
    with pytest.raises(FileExistsError), atomic(path, replace=False) as temporary:
        temporary.write_text("ours")
        path.write_text("theirs")
    assert kept(tmp_path) == {"a.png": b"theirs"}
    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(PermissionError), atomic(tmp_path / "b.png", replace=False) as temporary:
        temporary.write_text("ours")
    assert kept(tmp_path) == {"a.png": b"theirs"}


def test_the_library_writes_over_no_file_unasked(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png")
    before, new = path.read_bytes(), Photo(torch.zeros(3, 4, 5))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"a\.png: a file is there already; choose another name or pass overwrite=True"):
        photos.write(path, new)
    (tmp_path / "link.png").symlink_to("nowhere.png")
    with pytest.raises(InputError, match="a file is there already"):
        photos.write(tmp_path / "link.png", new)
    assert path.read_bytes() == before and not (tmp_path / "nowhere.png").exists()
    photos.write(path, new, overwrite=True)
    assert photos.read(path).pixels.shape == (3, 4, 5)


# --- what lies beside a run's files ---


def test_a_backup_made_of_hard_links_keeps_its_journal(tmp_path: Path, opened: list[Any]) -> None:
    out, backup = tmp_path / "out", tmp_path / "backup"
    assert run("restore", photo(tmp_path / "a.jpg"), "-o", out) == 0
    shutil.copytree(out, backup, copy_function=os.link)
    before = kept(backup)
    assert run("restore", tmp_path / "a.jpg", photo(tmp_path / "b.jpg", 1), "-o", out, "--resume") == 0
    assert kept(backup) == before and len(Journal.open(out).entries) == 2


def test_only_shares_of_the_report_go_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    theirs = {"r.json.process-notes.txt": b"mine", "r.json.process0001": b"a photo", "r.json.process00001": b"x"}
    for name, data in theirs.items():
        (tmp_path / name).write_bytes(data)
    report.write(report.part(path, 0), {}, [], finished=True, outputs=Outputs())
    report.write(tmp_path / "r.json.process0000.kept", {}, [], finished=True, outputs=Outputs())  # a copy of somebody's
    assert report.parts(path) == [report.part(path, 0)]
    report.write(report.part(path, 2), {}, [], finished=True, outputs=Outputs())
    with contextlib.suppress(InputError):  # the share of process 1 is none
        report.merge(path, {}, 1, Outputs())
    assert {name: data for name, data in kept(tmp_path).items() if name in theirs} == theirs


def test_a_clips_report_replaces_nothing_that_came_meanwhile(
    tmp_path: Path, opened: list[Any], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    clip, table = animation(tmp_path / "a.gif", "GIF"), tmp_path / "r.json"
    from lafr_core.video import run as video

    made = video._restore_segments

    def slowly(*arguments: Any) -> None:
        made(*arguments)
        table.write_text('{"inputs": [], "mine": 1}')

    monkeypatch.setattr(video, "_restore_segments", slowly)
    assert run("restore", clip, "-o", tmp_path / "out", "--report", table) == 2
    assert "r.json: a file is there already" in capfd.readouterr().err
    assert json.loads(table.read_text()) == {"inputs": [], "mine": 1}
    monkeypatch.undo()


def test_a_report_of_photos_and_clips_holds_both(tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    animation(tmp_path / "in" / "a.gif", "GIF")
    photo(tmp_path / "in" / "b.jpg")
    command = ["restore", tmp_path / "in", "-o", tmp_path / "out", "--report", tmp_path / "r.json"]
    for extra in ([], ["--resume"]):
        assert run(*command, *extra) == 0, capfd.readouterr().err
        data = json.loads((tmp_path / "r.json").read_text())
        assert [len(data[key]) for key in ("inputs", "clips")] == [1, 1]


def test_a_gallery_that_cannot_be_written_is_told_by_the_exit_code(
    tmp_path: Path, opened: list[Any], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def refused(*_: object) -> None:
        raise InputError("g.html: the gallery cannot be written (File too large)")

    monkeypatch.setattr(gallery, "write", refused)
    assert run("restore", photo(tmp_path / "a.jpg"), "-o", tmp_path / "out", "--gallery", tmp_path / "g.html") == 1
    assert "the gallery cannot be written (File too large)" in capfd.readouterr().err
    assert (tmp_path / "out" / "a.png").is_file()


def test_a_disk_that_refuses_a_clip_stops_no_photo(
    tmp_path: Path, opened: list[Any], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    from lafr_core.app import clips

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.ENOENT, "No such file or directory", "out/.a.gif.lafr/000000.gif")

    monkeypatch.setattr(clips, "restore_clip", refused)
    animation(tmp_path / "in" / "a.gif", "GIF")
    photo(tmp_path / "in" / "b.jpg")
    assert run("restore", tmp_path / "in", "-o", tmp_path / "out") == 1
    told = capfd.readouterr().err
    assert "a.gif: out/.a.gif.lafr/000000.gif: No such file or directory; check the disk, the same command" in told
    assert (tmp_path / "out" / "b.png").is_file()
