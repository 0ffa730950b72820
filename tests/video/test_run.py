"""Clip files restored whole, in parts, after a stop, by several processes: always the same clip."""

from __future__ import annotations

import errno
import json
import os
import threading
from array import array
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_files import MakeClip
from fakes import face_at, parts
from PIL import Image

from lafr_core.errors import ClipError, InputError, SettingsError
from lafr_core.settings import RestoreSettings
from lafr_core.video import run
from lafr_core.video.clips import FileClip, opened
from lafr_core.video.lock import LOCK
from lafr_core.video.restore import Survey
from lafr_core.video.run import ClipResult, Team, partial_of, restore_clip
from lafr_core.video.settings import ClipSettings

LOSSLESS = ClipSettings(codec="ffv1", steadiness=0.3)
MODELS = parts([face_at(20, 14, 40)])


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SEGMENT", 5)


def frames(path: Path) -> list[tuple[int, torch.Tensor]]:
    return [(frame.time, frame.pixels()) for frame in FileClip(path).frames()]


def same(a: Path, b: Path) -> bool:
    return all(s == t and torch.equal(x, y) for (s, x), (t, y) in zip(frames(a), frames(b), strict=True))


def test_a_clip_is_restored_and_what_has_no_face_keeps_its_bits(make_clip: MakeClip, tmp_path: Path) -> None:
    source = make_clip("a.mkv", 12)
    result = restore_clip(source, tmp_path / "out", MODELS, RestoreSettings(color=0.0), LOSSLESS)
    assert result.output == tmp_path / "out.mkv" and result.frames == 12 and result.found == 1
    (track,) = result.tracks
    assert (track.first, track.last, track.frames, track.missed) == (0.0, 0.48, 12, 0) and track.change is not None
    before, after = frames(source), frames(result.output)
    assert [t for t, _ in before] == [t for t, _ in after]
    for (_, a), (_, b) in zip(before, after, strict=True):
        assert torch.equal(a[..., :4], b[..., :4]) and not torch.equal(a[:, 20:50, 24:56], b[:, 20:50, 24:56])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mkv", "out.mkv"]


def test_a_stop_leaves_a_clip_that_plays_and_resuming_gives_the_same_as_no_stop(make_clip: MakeClip, tmp_path: Path) -> None:
    source = make_clip("a.mkv", 18)
    whole = restore_clip(source, tmp_path / "whole", MODELS, None, LOSSLESS).output

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "restore" and done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_clip(source, tmp_path / "out", MODELS, None, LOSSLESS, progress=stop)
    partial = tmp_path / "out.partial.mkv"
    assert len(frames(partial)) == 12 and not (tmp_path / "out.mkv").exists()
    assert partial_of(tmp_path / "out") == partial and partial_of(tmp_path / "ou") is None
    seen: list[tuple[str, int]] = []
    again = restore_clip(
        source, tmp_path / "out", MODELS, None, LOSSLESS, resume=True, progress=lambda s, d, t: seen.append((s, d))
    )
    assert seen == [("restore", k) for k in range(11, 19)]
    assert same(again.output, whole) and again.tracks[0].change == pytest.approx(0.9, abs=0.2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mkv", "out.mkv", "whole.mkv"]


def test_a_persons_file_under_the_partial_results_name_stays(make_clip: MakeClip, tmp_path: Path) -> None:
    source, theirs = make_clip("a.mkv", 18), tmp_path / "out.partial.mkv"
    theirs.write_bytes(b"mine")

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "restore" and done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_clip(source, tmp_path / "out", MODELS, None, LOSSLESS, progress=stop)
    assert theirs.read_bytes() == b"mine" and partial_of(tmp_path / "out") is None
    restore_clip(source, tmp_path / "out", MODELS, None, LOSSLESS, resume=True)
    assert theirs.read_bytes() == b"mine" and (tmp_path / "out.mkv").is_file()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_person_puts_in_the_place_of_the_partial_result_stays(kind: str, make_clip: MakeClip, tmp_path: Path) -> None:
    """Somebody cuts what a stop left and saves it under the same name, or keeps a photo among the frames."""
    if kind == "file":
        source, result = make_clip("a.mkv", 18), tmp_path / "out.mkv"
        theirs = tmp_path / "out.partial.mkv"
    else:
        source, result = tmp_path / "frames", tmp_path / "out"
        source.mkdir()
        for k in range(18):
            Image.fromarray(np.full((64, 80, 3), 9 * k, np.uint8)).save(source / f"{k:02d}.png")
        theirs = tmp_path / "out.partial" / "mother.jpg"

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "restore" and done == 13:
            raise KeyboardInterrupt

    for _ in range(2):  # the second stop replaces what the first left, as nobody has touched it
        with pytest.raises(KeyboardInterrupt):
            restore_clip(source, tmp_path / "out", MODELS, None, LOSSLESS, progress=stop)
        assert partial_of(tmp_path / "out") is not None
    theirs.write_bytes(b"mine")
    assert partial_of(tmp_path / "out") is None
    with pytest.raises(KeyboardInterrupt):
        restore_clip(source, tmp_path / "out", MODELS, None, LOSSLESS, progress=stop)
    assert theirs.read_bytes() == b"mine"
    restore_clip(source, tmp_path / "out", MODELS, None, LOSSLESS, resume=True)
    assert theirs.read_bytes() == b"mine" and result.exists()


@pytest.mark.parametrize("kind", ["film", "animation", "folder"])
def test_what_appears_while_the_result_is_joined_stays(kind: str, make_clip: MakeClip, tmp_path: Path) -> None:
    picture = Image.fromarray(np.full((64, 80, 3), 9, np.uint8))
    if kind == "film":
        source = make_clip("a.mkv", 4)
        theirs = tmp_path / "out.mkv"
    elif kind == "animation":
        source, theirs = tmp_path / "a.gif", tmp_path / "out.gif"
        picture.save(source, save_all=True, append_images=[picture.rotate(90)], duration=50)
    else:
        source, theirs = tmp_path / "frames", tmp_path / "out" / "0.png"
        source.mkdir()
        picture.save(source / "0.png")

    def comes(*_: object) -> None:
        theirs.parent.mkdir(exist_ok=True)
        theirs.write_bytes(b"mine")

    with pytest.raises(ClipError, match="cannot be written"):
        restore_clip(source, tmp_path / "out", MODELS, None, ClipSettings(codec="ffv1"), seal=comes)
    assert theirs.read_bytes() == b"mine"
    restore_clip(source, tmp_path / "out", MODELS, None, ClipSettings(codec="ffv1"), overwrite=True)
    assert theirs.read_bytes() != b"mine"


def test_one_run_at_a_time_works_on_a_clip(make_clip: MakeClip, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    source = make_clip("a.mkv", 8)
    told: list[str] = []

    def meanwhile(stage: str, done: int, total: int) -> None:
        if stage == "restore" and done == 7:
            with pytest.raises(
                InputError, match="another run is at work on it; wait for that, or choose another output"
            ) as error:
                restore_clip(source, tmp_path / "out", MODELS, None, LOSSLESS, overwrite=True)
            told.append(str(error.value))

    whole = restore_clip(source, tmp_path / "whole", MODELS, None, LOSSLESS).output
    out = restore_clip(source, tmp_path / "out", MODELS, None, LOSSLESS, progress=meanwhile).output
    assert told and same(out, whole)
    restore_clip(source, tmp_path / "out", MODELS, None, LOSSLESS, overwrite=True)  # the lock has gone with the run
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mkv", "out.mkv", "whole.mkv"]


def test_resume_begins_anew_where_settings_or_source_have_changed(make_clip: MakeClip, tmp_path: Path) -> None:
    source = make_clip("a.mkv", 8)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "restore" and done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_clip(source, tmp_path / "out", MODELS, None, LOSSLESS, progress=stop)
    seen: list[str] = []
    calm = ClipSettings(codec="ffv1", steadiness=0.8)
    restore_clip(source, tmp_path / "out", MODELS, None, calm, resume=True, progress=lambda s, d, t: seen.append(s))
    assert seen.count("look") == 8 and seen.count("restore") == 8


def test_processes_that_share_a_clip_make_the_same_clip(make_clip: MakeClip, tmp_path: Path) -> None:
    source = make_clip("a.mkv", 18)
    whole = restore_clip(source, tmp_path / "whole", MODELS, None, LOSSLESS).output
    barrier = threading.Barrier(2)
    results: list[ClipResult] = []

    def work(index: int) -> None:
        team = Team(index, 2, lambda: barrier.wait(60) and None)
        results.append(restore_clip(source, tmp_path / "out", MODELS, None, LOSSLESS, team=team))

    workers = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert len(results) == 2 and same(tmp_path / "out.mkv", whole)


def test_no_file_is_replaced(make_clip: MakeClip, tmp_path: Path) -> None:
    source = make_clip("a.mkv", 4)
    (tmp_path / "out.mkv").write_text("mine")
    with pytest.raises(InputError, match="a file is there already"):
        restore_clip(source, tmp_path / "out", MODELS, None, LOSSLESS)
    assert (tmp_path / "out.mkv").read_text() == "mine"
    (tmp_path / ".b.mkv.lafr").mkdir()
    (tmp_path / ".b.mkv.lafr" / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="found other files in it"):
        restore_clip(source, tmp_path / "b", MODELS, None, LOSSLESS)
    assert (tmp_path / ".b.mkv.lafr" / "letter.txt").read_text() == "mine"


def test_a_full_disk_is_one_sentence(make_clip: MakeClip, tmp_path: Path) -> None:
    source = make_clip("a.mkv", 4)
    (tmp_path / "file").write_text("")
    with pytest.raises(ClipError, match="cannot be written"):
        restore_clip(source, tmp_path / "file" / "out", MODELS, None, LOSSLESS)


def test_a_disk_that_fills_while_the_result_is_written_is_no_fault_of_the_source(make_clip: MakeClip, tmp_path: Path) -> None:
    import av

    source = make_clip("a.mkv", 4)
    with pytest.raises(OSError, match="No space left on device"), opened(source):
        raise av.error.FFmpegError(errno.ENOSPC, "No space left on device", "out.mkv")
    with pytest.raises(ClipError, match=r"a\.mkv: cannot be read \(Input/output error\); copy the file again"), opened(source):
        raise av.error.FFmpegError(errno.EIO, "Input/output error", "a.mkv")


@pytest.mark.parametrize("bad", [{"crf": 60}, {"codec": "divx"}, {"steadiness": 2.0}, {"crff": 3}])
def test_clip_settings_are_checked(bad: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        ClipSettings(**bad)  # type: ignore[arg-type]


def test_the_command_line_restores_clips_beside_photos(
    make_clip: MakeClip, tmp_path: Path, random_weights: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from lafr_core.app.cli import main

    source = make_clip("a.mp4", 6)
    (tmp_path / "text.mp4").write_text("no film")
    flags = {
        "vae": "--vae",
        "adapter": "--adapter",
        "prior": "--prior",
        "detector": "--detector-weights",
        "embedder": "--embedder",
    }
    models = [text for kind, flag in flags.items() for text in (flag, str(random_weights[kind]))]
    arguments = [
        "restore", str(source), str(tmp_path / "text.mp4"), "-o", str(tmp_path / "out"), "--device", "cpu", "--crf", "8",
        "--detector", "starter", "--report", str(tmp_path / "r.json"), *models,
    ]  # fmt: skip
    assert main(arguments) == 1
    report = json.loads((tmp_path / "r.json").read_text())
    good, bad = report["clips"]
    assert good["output"] == str(tmp_path / "out" / "a.mp4") and good["frames"] == 6 and report["clip_settings"]["crf"] == 8
    assert bad["status"] == "failed" and "not a clip that can be opened" in bad["reason"]
    assert np.isclose(len(frames(tmp_path / "out" / "a.mp4")), 6)
    capsys.readouterr()
    assert main([*arguments[:2], *arguments[3:], "--resume"]) == 0
    assert "done already" in capsys.readouterr().err
    assert main([*arguments[:2], *arguments[3:]]) == 2  # refused before any work
    assert "r.json: a file is there already" in capsys.readouterr().err
    at = arguments.index("--report")
    assert main([*arguments[:2], *arguments[3:at], *arguments[at + 2 :]]) == 1
    assert "a.mp4: a file is there already; --overwrite replaces it, or choose another -o" in capsys.readouterr().err


def test_photos_that_would_be_refused_are_refused_before_clips_are_restored(
    make_clip: MakeClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lafr_core.app.cli import main

    source, photo, out = make_clip("a.mp4", 6), tmp_path / "b.jpg", tmp_path / "out"
    Image.new("RGB", (64, 48)).save(photo)
    out.mkdir()
    (out / "b.png").write_bytes(b"mine")
    assert main(["restore", str(source), str(photo), "-o", str(out), "--device", "cpu"]) == 2
    assert "b.png: a file is there already" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["b.png"] and (out / "b.png").read_bytes() == b"mine"


@pytest.mark.parametrize("damage", ["cut short", "another file", "another shape", "nested"])
def test_a_damaged_survey_of_a_stopped_clip_is_one_sentence(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "survey.npz"
    known = Survey((), array("q", [0, 40]), 0, (1,), ((1, "damaged"),), 0.0)
    run._save_survey(file, known)
    assert run._load_survey(file) == known
    if damage == "cut short":
        file.write_bytes(file.read_bytes()[:-40])
    elif damage == "another file":
        file.write_bytes(b"PK\3\4 and then something else")
    elif damage == "another shape":
        np.savez(file, times=np.zeros((2, 2)))
    else:
        text = np.frombuffer(b"[" * 100_000, dtype=np.uint8)
        np.savez(file, **{**dict(np.load(file)), "faults": text})
    with pytest.raises(ClipError, match=r"survey\.npz: cannot be read .*; restore the clip again without --resume"):
        run._load_survey(file)


def test_a_state_that_is_none_is_no_state(tmp_path: Path) -> None:
    for text in ("[" * 100_000, "{", "\xff"):
        (tmp_path / "state.json").write_text(text, encoding="latin-1")
        assert run._read_json(tmp_path / "state.json") is None


def test_the_hidden_folder_goes_on_disks_that_keep_open_files(
    make_clip: MakeClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FUSE and NFS give an open file that is removed a hidden name in its folder, which then cannot be removed."""
    unlink = Path.unlink

    def kept_while_open(path: Path, missing_ok: bool = False) -> None:
        if path.name == LOCK:
            assert not [fd for fd in Path("/proc/self/fd").iterdir() if os.path.realpath(fd) == str(path)], "still open"
        unlink(path, missing_ok)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    monkeypatch.setattr(Path, "unlink", kept_while_open)
    restore_clip(make_clip("a.mkv", 4), tmp_path / "out", MODELS, None, LOSSLESS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mkv", "out.mkv"]
