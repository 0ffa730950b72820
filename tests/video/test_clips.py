"""Clip files in and out: pictures, times, sound and labels arrive; what is no clip is refused by name."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_files import SIZE, MakeClip, moving, shown_at

from lafr_core.errors import ClipError, MissingPackageError
from lafr_core.video import clips
from lafr_core.video.clips import FileClip
from lafr_core.video.encode import Plan, SegmentWriter, join, settle
from lafr_core.video.settings import ClipSettings


def pictures(clip: FileClip, start: int = 0, times: Any = ()) -> list[torch.Tensor]:
    return [frame.pixels() for frame in clip.frames(start, times)]


def copied(source: Path, out: Path, settings: ClipSettings, segment: int = 7) -> tuple[Path, Plan]:
    """The clip through both ends, in segments, nothing changed."""
    clip = FileClip(source)
    plan = settle(clip, settings)
    paths: list[Path] = []
    writer = None
    for frame in clip.frames():
        if frame.index % segment == 0:
            if writer is not None:
                writer.close()
            paths.append(out / f"{len(paths)}{plan.suffix}")
            writer = SegmentWriter(paths[-1], clip, plan, settings)
        assert writer is not None
        writer.write(frame)
    assert writer is not None
    writer.close()
    target = out / f"copy{plan.suffix}"
    join(clip, plan, paths, target)
    return target, plan


def streams(path: Path) -> list[tuple[str, str, str | None]]:
    import av

    with av.open(str(path)) as container:
        return [(s.type, s.codec_context.name, s.metadata.get("language")) for s in container.streams]


def sound(path: Path) -> np.ndarray:
    import av

    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)


def test_frames_come_in_order_with_their_own_times(make_clip: MakeClip) -> None:
    clip = FileClip(make_clip("a.mkv", 12, codec="ffv1", pixels="yuv444p"))
    frames = list(clip.frames())
    assert [frame.index for frame in frames] == list(range(12))
    assert [frame.time * clip.info.time_base * 1000 for frame in frames] == [shown_at(k) for k in range(12)]
    assert clip.info.size == SIZE and clip.info.rotation == 0 and clip.info.notes == ()
    for frame in (frames[0], frames[7]):
        truth = torch.tensor(moving(frame.index)).permute(2, 0, 1) / 255
        assert float((frame.pixels() - truth).abs().max()) < 0.02


@pytest.mark.parametrize("name, codec", [("a.mp4", "libx264"), ("a.ts", "mpeg2video"), ("a.avi", "mjpeg")])
def test_a_clip_can_be_entered_anywhere(make_clip: MakeClip, name: str, codec: str) -> None:
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    clip = FileClip(make_clip(name, 30, codec=codec, pixels=pixels, sound=None, steady_rate=codec != "libx264"))
    frames = list(clip.frames())
    times = [frame.time for frame in frames]
    for start in (1, 17, 29):
        later = list(clip.frames(start, times))
        assert [frame.index for frame in later] == list(range(start, 30))
        assert [frame.time for frame in later] == times[start:]
        assert torch.equal(later[0].pixels(), frames[start].pixels())


def test_a_turned_clip_is_seen_upright_and_written_turned(make_clip: MakeClip, tmp_path: Path) -> None:
    source = make_clip("a.mp4", 8, rotation=90, options={"crf": "4"})
    clip = FileClip(source)
    assert clip.info.rotation == 90 and clip.info.size == SIZE
    seen = pictures(clip)[0]
    assert tuple(seen.shape) == (3, SIZE[1], SIZE[0])
    truth = torch.rot90(torch.tensor(moving(0)).permute(2, 0, 1) / 255, 1, (-2, -1))  # counter-clockwise
    assert float((seen - truth).abs().mean()) < 0.03
    frame = next(clip.frames())
    brighter = seen.clone()
    brighter[:, :10, :4] += 0.2
    changed = frame.restored(seen, brighter).pixels() - seen
    assert float(changed[:, :8, :3].mean()) > 0.1 and float(changed[:, 20:].abs().max()) == 0
    again = FileClip(copied(source, tmp_path, ClipSettings())[0])
    assert again.info.rotation == 90


def test_lossless_is_bit_for_bit_with_times_and_sound(make_clip: MakeClip, tmp_path: Path) -> None:
    source = make_clip("a.mp4", 24)
    copy, plan = copied(source, tmp_path, ClipSettings(codec="ffv1"))
    assert copy.suffix == ".mkv" and plan.notes == () and streams(copy) == [("video", "ffv1", None), ("audio", "aac", "deu")]
    before, after = FileClip(source), FileClip(copy)
    for a, b in zip(before.frames(), after.frames(), strict=True):
        assert torch.equal(a.pixels(), b.pixels())
    old, new = sound(source), sound(copy)  # MP4 says where AAC's lead-in ends, MKV's lead-in shifts the pictures as well
    assert np.array_equal(old[:, 2048:], new[:, new.shape[1] - old.shape[1] + 2048 :])


@pytest.mark.parametrize("codec", ["h264", "h265", "vp9"])
def test_segments_join_to_one_clip_of_the_same_times(make_clip: MakeClip, tmp_path: Path, codec: str) -> None:
    source = make_clip("a.mp4", 24, options={"crf": "8"})
    copy, _ = copied(source, tmp_path, ClipSettings(codec=codec, crf=8))
    assert copy.suffix == ".mp4"
    before, after = FileClip(source), FileClip(copy)
    times = [[frame.time * clip.info.time_base for frame in clip.frames()] for clip in (before, after)]
    assert times[0] == times[1] and after.faults == []
    differences = [float((a - b).abs().mean()) for a, b in zip(pictures(before), pictures(after), strict=True)]
    assert max(differences) < 0.03
    assert np.array_equal(sound(source), sound(copy))


def test_what_describes_the_pictures_is_kept(make_clip: MakeClip, tmp_path: Path) -> None:
    def label(film: Any) -> None:
        film.codec_context.colorspace = film.codec_context.color_trc = film.codec_context.color_primaries = 1
        film.codec_context.color_range = 1
        film.codec_context.sample_aspect_ratio = Fraction(16, 15)

    source = make_clip("a.mkv", 8, options={"flags": "+ildct+ilme"}, change=label)
    clip = FileClip(source)
    assert clip.coding.color == (1, 1, 1, 1) and clip.coding.fields and "--deinterlace" in clip.info.notes[0]
    again = FileClip(copied(source, tmp_path, ClipSettings())[0])
    assert again.coding == clip.coding and again.coding.aspect == Fraction(16, 15)


def test_deinterlacing_keeps_the_number_and_times_of_frames(make_clip: MakeClip) -> None:
    source = make_clip("a.mkv", 12, options={"flags": "+ildct+ilme"})
    plain, whole = FileClip(source), FileClip(source, deinterlace=True)
    assert whole.coding.fields == "" and whole.info.notes == ("deinterlaced",)
    assert [frame.time for frame in whole.frames()] == [frame.time for frame in plain.frames()]


@pytest.mark.parametrize(
    "pixels, size, settings, stored",
    [
        ("yuv422p10le", SIZE, ClipSettings(), "yuv422p10le"),
        ("yuv420p", (63, 81), ClipSettings(), "yuv444p"),
        ("yuva420p", SIZE, ClipSettings(), "yuva420p"),
        ("bgr0", SIZE, ClipSettings(), "yuv444p"),
        ("gray", SIZE, ClipSettings(codec="ffv1"), "gray"),
        ("gray", SIZE, ClipSettings(), "yuv420p"),
    ],
)
def test_depth_odd_sides_and_transparency_survive(
    make_clip: MakeClip, tmp_path: Path, pixels: str, size: tuple[int, int], settings: ClipSettings, stored: str
) -> None:
    source = make_clip("a.mkv", 4, codec="ffv1", pixels=pixels, size=size, sound=None)
    copy, plan = copied(source, tmp_path, settings)
    assert plan.pixel_format == stored and FileClip(copy).coding.pixel_format == stored
    assert FileClip(copy).info.size == size
    if pixels == "yuva420p":
        assert plan.codec == "ffv1" and "transparency kept" in plan.notes[0]
    elif stored != pixels:
        assert stored in plan.notes[0]


# --- bad input ---


def test_no_clip_is_opened_that_is_none(make_clip: MakeClip, tmp_path: Path) -> None:
    only_sound = make_clip("a.mkv", 4, codec="ffv1", pixels="yuv444p")
    import av

    with av.open(str(only_sound)) as old, av.open(str(tmp_path / "sound.mkv"), "w") as new:
        target = new.add_stream_from_template(old.streams.audio[0])
        for packet in old.demux(old.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = target
                new.mux(packet)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no film " * 99)
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {only_sound.name}\n")
    (tmp_path / "live.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{only_sound.name}\n")
    expected = {
        "sound.mkv": "expected a video stream, found audio",
        "empty.mp4": r"is empty \(0 bytes\)",
        "text.mp4": "not a clip that can be opened",
        "list.mp4": "not a clip that can be opened",
        "live.mp4": "not a clip that can be opened",
        "none.mp4": "found none there",
        ".": "got a folder",
    }
    for name, words in expected.items():
        with pytest.raises(ClipError, match=words):
            FileClip(tmp_path / name)


def test_a_cut_off_mp4_is_refused_and_a_cut_off_mkv_gives_what_it_has(make_clip: MakeClip, tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mkv"):
        whole = make_clip(name, 24).read_bytes()
        (tmp_path / f"cut-{name}").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(ClipError, match=r"cut-a\.mp4"):
        FileClip(tmp_path / "cut-a.mp4")
    assert 4 < len(list(FileClip(tmp_path / "cut-a.mkv").frames())) < 24


def test_a_broken_frame_is_named_and_the_rest_goes_on(make_clip: MakeClip, tmp_path: Path) -> None:
    source = make_clip("a.avi", 12, codec="mjpeg", pixels="yuvj420p", sound=None, steady_rate=True)
    import av

    with av.open(str(source)) as container:
        place, length = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size][5]
    raw = bytearray(source.read_bytes())
    raw[place + 8 : place + length] = bytes(length - 8)
    (tmp_path / "b.avi").write_bytes(raw)
    clip = FileClip(tmp_path / "b.avi")
    times = [frame.time for frame in clip.frames()]
    assert times == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert len(clip.faults) == 1 and "a frame at 0.20 s cannot be decoded" in clip.faults[0]


def test_a_huge_frame_is_refused(make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_clip("a.mkv", 2, codec="ffv1", pixels="yuv444p", sound=None)
    monkeypatch.setattr(clips, "MAX_PIXELS", SIZE[0] * SIZE[1] - 1)
    with pytest.raises(ClipError, match="frames of 80x64; the limit is"):
        FileClip(source)


def test_without_pyav_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(MissingPackageError, match="pip install av"):
        FileClip(tmp_path / "a.mp4")
