"""Animated pictures and folders of frames as clips: read, restored, written again as what they were."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_files import moving
from fakes import face_at, parts
from PIL import Image

from lafr_core.app import cli
from lafr_core.errors import ClipError
from lafr_core.images import photos
from lafr_core.settings import RestoreSettings
from lafr_core.video import run
from lafr_core.video.folder import FolderClip, PictureFiles
from lafr_core.video.pictures import AnimationClip, is_animation
from lafr_core.video.restore import survey
from lafr_core.video.run import restore_clip
from lafr_core.video.settings import ClipSettings

MODELS = parts([face_at(20, 14, 40)])
SHOWN = [40, 120, 40, 80, 40, 200, 40, 60]


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SEGMENT", 5)


def drawn(index: int) -> Image.Image:
    """A frame of few colours, so that GIF holds it exactly."""
    return Image.fromarray((moving(index) // 64) * 64 + np.uint8(index))


def animate(path: Path, frames: int = 8, loop: int = 3) -> Path:
    first, *rest = (drawn(k) for k in range(frames))
    more = {"lossless": True} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=rest, duration=SHOWN[:frames], loop=loop, **more)
    return path


def frames_of(path: Path) -> list[torch.Tensor]:
    return [frame.pixels() for frame in AnimationClip(path).frames()]


def shifted(path: Path, right: int) -> Path:
    """The second picture of a GIF of the size of :func:`drawn`, told to begin so many pixels from the left."""
    data = bytearray(path.read_bytes())
    place = b"," + struct.pack("<HHHH", 0, 0, 80, 64)
    at = data.index(place, data.index(place) + 1)
    data[at : at + len(place)] = b"," + struct.pack("<HHHH", right, 0, 80, 64)
    path.write_bytes(data)
    return path


def test_what_reaches_beyond_a_gif_s_canvas_is_cut_off(tmp_path: Path) -> None:
    """Found by tests/fuzz: Pillow lets the canvas grow, and the frames of a clip had different sizes."""
    first, second = frames_of(animate(tmp_path / "a.gif", 2))
    seen = frames_of(shifted(tmp_path / "a.gif", 5))
    assert torch.equal(seen[0], first) and seen[1].shape == first.shape
    assert torch.equal(seen[1][..., 5:], second[..., :-5]) and torch.equal(seen[1][..., :5], first[..., :5])


def test_a_gif_cannot_make_a_canvas_larger_than_an_animation_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = AnimationClip(shifted(animate(tmp_path / "a.gif", 2), 400))
    monkeypatch.setattr("lafr_core.video.pictures.MOST_PIXELS", 2 * 480 * 64)
    assert len(list(clip.frames())) == 2 and clip.faults == []
    monkeypatch.setattr("lafr_core.video.pictures.MOST_PIXELS", 2 * 480 * 64 - 4)
    assert len(list(clip.frames())) == 1
    assert clip.faults == ["the file ends early, at picture 1 (it reaches far beyond the first one)"]
    assert Image.MAX_IMAGE_PIXELS == 89478485


def test_pictures_shown_for_no_time_come_one_after_the_other(tmp_path: Path) -> None:
    first, *rest = (drawn(k) for k in range(4))
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=[0, 0, 20, 0])
    clip = AnimationClip(tmp_path / "a.gif")
    assert [(frame.time, frame.duration) for frame in clip.frames()] == [(0, 0), (1, 0), (2, 20), (22, 0)]


KINDS = [".gif", ".png", ".webp"]


@pytest.mark.parametrize("suffix", KINDS)
def test_an_animation_is_read_frame_by_frame_with_its_times(tmp_path: Path, suffix: str) -> None:
    path = animate(tmp_path / f"a{suffix}")
    assert is_animation(path)
    clip = AnimationClip(path)
    assert clip.info.size == (64, 80) and clip.info.frames == 8 and clip.loop == {"loop": 3}
    frames = list(clip.frames())
    assert [frame.duration for frame in frames] == SHOWN
    assert [frame.time for frame in frames] == [sum(SHOWN[:k]) for k in range(8)]
    for k in (0, 5):
        assert torch.equal(frames[k].pixels(), photos.from_pil(drawn(k)).pixels)
    assert [frame.index for frame in clip.frames(5)] == [5, 6, 7] and next(clip.frames(5)).time == sum(SHOWN[:5])


@pytest.mark.parametrize("suffix", KINDS)
def test_an_animation_is_restored_into_one_of_its_kind(tmp_path: Path, suffix: str) -> None:
    path = animate(tmp_path / f"a{suffix}")
    result = restore_clip(path, tmp_path / "out", MODELS, None, ClipSettings(codec="ffv1", steadiness=0.3))
    assert result.output == tmp_path / f"out{suffix}" and result.frames == 8 and len(result.tracks) == 1
    again = AnimationClip(result.output)
    assert again.loop == {"loop": 3} and [frame.duration for frame in again.frames()] == SHOWN
    for before, after in zip(frames_of(path), frames_of(result.output), strict=True):
        changed = float((before - after)[:, 20:50, 24:56].abs().mean())
        assert changed > 0.001
        if suffix != ".gif":  # 256 colours for the whole picture
            assert torch.equal(before[..., :4], after[..., :4])
    assert ("256 colours" in " ".join(result.notes)) == (suffix == ".gif")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([f"a{suffix}", f"out{suffix}"])


def test_transparency_of_an_animation_is_kept(tmp_path: Path) -> None:
    clear = [drawn(k).convert("RGBA") for k in range(6)]
    for picture in clear:
        picture.putalpha(Image.fromarray(np.where(np.arange(80) < 70, 255, 0).astype(np.uint8)[None].repeat(64, 0)))
    clear[0].save(tmp_path / "a.png", save_all=True, append_images=clear[1:], duration=50)
    out = restore_clip(tmp_path / "a.png", tmp_path / "out", MODELS, None, ClipSettings(steadiness=0.3)).output
    with Image.open(out) as image:
        image.seek(4)
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
    assert (alpha[:, :70] == 255).all() and (alpha[:, 70:] == 0).all()


def test_a_stop_leaves_an_animation_that_plays_and_resuming_goes_on(tmp_path: Path) -> None:
    path, how = animate(tmp_path / "a.png"), ClipSettings(steadiness=0.3)
    whole = restore_clip(path, tmp_path / "whole", MODELS, None, how).output

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "restore" and done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_clip(path, tmp_path / "out", MODELS, None, how, progress=stop)
    assert len(frames_of(tmp_path / "out.partial.png")) == 7
    seen: list[int] = []
    restore_clip(path, tmp_path / "out", MODELS, None, how, resume=True, progress=lambda s, d, t: seen.append(d))
    assert seen == [6, 7, 8]
    assert all(torch.equal(a, b) for a, b in zip(frames_of(whole), frames_of(tmp_path / "out.png"), strict=True))
    assert not (tmp_path / "out.partial.png").exists()


def fill(folder: Path, frames: int = 7) -> Path:
    folder.mkdir()
    for k in range(frames):
        drawn(k).save(folder / f"take{k + 5}.png")  # take10 comes after take9
    return folder


def test_a_folder_of_frames_is_restored_into_a_folder_of_the_same_names(tmp_path: Path) -> None:
    source = fill(tmp_path / "shot")
    (source / "take7.png").write_bytes(b"no picture")
    drawn(0).resize((40, 40)).save(source / "take8.png")
    (source / "notes.txt").write_text("not a frame")
    assert FolderClip(source).names == [f"take{k}.png" for k in range(5, 12)]
    result = restore_clip(source, tmp_path / "out", MODELS, None, ClipSettings(steadiness=0.3))
    assert result.output == tmp_path / "out" and result.frames == 7
    assert sorted(p.name for p in result.output.iterdir()) == sorted(f"take{k}.png" for k in range(5, 12))
    assert (result.output / "take7.png").read_bytes() == b"no picture"
    assert (result.output / "take8.png").read_bytes() == (source / "take8.png").read_bytes()
    notes = " ".join(result.notes)
    assert "take7.png: not an image" in notes and "take8.png: 40x40 pixels where the first frame has 80x64" in notes
    before, after = (photos.read(folder / "take10.png").pixels for folder in (source, result.output))
    assert torch.equal(before[..., :4], after[..., :4]) and not torch.equal(before, after)


def test_a_hole_in_a_folder_of_frames_is_no_cut(tmp_path: Path) -> None:
    """The last sound picture stands in where a file cannot be read, gray where none was yet."""
    source = fill(tmp_path / "shot")
    for name in ("take5.png", "take8.png"):
        (source / name).write_bytes(b"no picture")
    clip = FolderClip(source)
    frames = list(clip.frames())
    assert [bool(frame.fault) for frame in frames] == [k in (0, 3) for k in range(7)]
    assert torch.equal(frames[3].pixels(), frames[2].pixels()) and not torch.equal(frames[4].pixels(), frames[3].pixels())
    assert (frames[0].pixels() == 0.5).all()
    known = survey(clip, MODELS, RestoreSettings(), 0.7)
    assert [index for index, _ in known.faults] == [0, 3] and not {3, 4} & set(known.cuts)


def test_picture_files_are_frames_in_the_order_given_by_any_reader(tmp_path: Path) -> None:
    source, asked = fill(tmp_path / "shot", 3), []

    def read(path: Path) -> photos.Photo:
        asked.append(path.name)
        return photos.read(path)

    files = [source / name for name in ("take7.png", "take5.png", "take6.png")]
    frames = list(PictureFiles(files, (64, 80), read).frames(1))
    assert asked == ["take5.png", "take6.png"] and [(frame.index, frame.time) for frame in frames] == [(1, 1), (2, 2)]
    assert torch.equal(frames[0].pixels(), photos.read(files[1]).pixels) and frames[0].source == files[1]


def test_frames_that_differ_in_the_suffix_only_keep_it(tmp_path: Path) -> None:
    source = fill(tmp_path / "shot", 3)
    drawn(9).save(source / "take6.bmp")
    clip = FolderClip(source)
    assert [clip.result_name(k) for k in range(4)] == ["take5.png", "take6.bmp.png", "take6.png.png", "take7.png"]


@pytest.mark.parametrize("what", ["nothing", "broken"])
def test_a_folder_without_frames_is_a_sentence(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "shot"
    folder.mkdir()
    if what == "broken":
        (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(ClipError, match=r"shot: expected a folder of frames, found no picture"):
        FolderClip(folder)


def test_a_cut_animation_ends_early_with_a_note_and_a_huge_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = animate(tmp_path / "a.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(data[: len(data) * 2 // 3])
    clip = AnimationClip(tmp_path / "cut.gif")
    assert 2 < len(list(clip.frames())) < 8
    monkeypatch.setattr("lafr_core.video.pictures.MOST_PIXELS", 10_000)
    with pytest.raises(ClipError, match="8 pictures of 80x64; an animation may have"):
        AnimationClip(tmp_path / "a.gif")


def test_still_pictures_are_no_animations(tmp_path: Path) -> None:
    drawn(0).save(tmp_path / "a.gif")
    (tmp_path / "b.png").write_bytes(b"no picture")
    assert not is_animation(tmp_path / "a.gif") and not is_animation(tmp_path / "b.png")
    assert not is_animation(tmp_path / "none.gif") and not is_animation(tmp_path)


def command(tmp_path: Path, weights: dict[str, Path], *more: str) -> list[str]:
    flags = {"vae": "--vae", "adapter": "--adapter", "prior": "--prior", "embedder": "--embedder"}
    models = [text for kind, flag in flags.items() for text in (flag, str(weights[kind]))]
    models += ["--detector", "starter", "--detector-weights", str(weights["detector"]), "--device", "cpu"]
    return ["restore", *more, "-o", str(tmp_path / "out"), "--report", str(tmp_path / "r.json"), *models]


def test_clips_inside_a_folder_are_restored_beside_its_photos(
    tmp_path: Path, random_weights: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    album = tmp_path / "album"
    (album / "deep").mkdir(parents=True)
    drawn(0).save(album / "photo.png")
    animate(album / "wave.gif", 6)
    animate(album / "deep" / "wave.webp", 6)
    (album / "broken.mp4").write_bytes(b"no film")
    assert cli.main(command(tmp_path, random_weights, str(album), "-r")) == 1
    out = tmp_path / "out"
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*.*") if not p.name.startswith("."))
    assert names == ["deep/wave.webp", "photo.png", "wave.gif"]
    report = json.loads((tmp_path / "r.json").read_text())
    assert [entry["status"] for entry in report["inputs"]] == ["no_face"]
    assert [(Path(e["input"]).name, e["status"]) for e in report["clips"]] == [
        ("broken.mp4", "failed"), ("wave.gif", "no_face"), ("wave.webp", "no_face"),
    ]  # fmt: skip
    capsys.readouterr()
    (album / "broken.mp4").unlink()
    assert cli.main(command(tmp_path, random_weights, str(album), "-r", "--resume")) == 0
    assert capsys.readouterr().err.count("done already,") == 2


def test_a_folder_is_one_clip_where_that_is_asked_for(
    tmp_path: Path, random_weights: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = fill(tmp_path / "shot", 4)
    assert cli.main(command(tmp_path, random_weights, str(source), "--sequence")) == 0
    assert sorted(p.name for p in (tmp_path / "out" / "shot").iterdir()) == sorted(f"take{k}.png" for k in range(5, 9))
    assert json.loads((tmp_path / "r.json").read_text())["clips"][0]["frames"] == 4
    capsys.readouterr()
    assert cli.main(command(tmp_path, random_weights, str(source), "--sequence", "--resume")) == 0
    assert "done already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["restore", str(source), "--sequence"])
