"""Batch from Directory as the frames of one clip, in the loop that both webuis have."""

from __future__ import annotations

import os

import pytest
import torch
from PIL import Image
from webui_fakes import info, photo, sharp_and_poor

from lafr_core.images import photos
from lafr_core.pipeline import References
from lafr_core.settings import RestoreSettings
from lafr_core.video.batch import restore_batch
from lafr_webui import clip, engine, host

FRAMES, MISSED = 8, 3
"""Frames of the clip, and the one in which the detector sees nothing."""


def frame(index):
    """A marked face that moves by a pixel a frame; the mark is missing in one frame. Half transparent."""
    image = photo(faces=0)
    if index != MISSED:
        image.putpixel((8 + index, 20), (255, 0, 0))
    image.putalpha(100 + index)
    return image


@pytest.fixture
def folder(webui, tmp_path, monkeypatch):
    """A folder of frames in a webui that reads and lists files as both do."""
    for index in range(FRAMES):
        frame(index).save(tmp_path / f"f{index + 1}.png")
    monkeypatch.setattr(webui.shared, "listfiles", listfiles, raising=False)
    webui._put("images", read=lambda path: Image.open(path))
    clip._sessions.clear()
    yield tmp_path
    clip._sessions.clear()


def listfiles(folder):
    """The webuis' own: plain files in natural order, hidden ones left out."""
    names = sorted((name for name in os.listdir(folder) if not name.startswith(".")), key=lambda name: (len(name), name))
    return [path for path in (os.path.join(folder, name) for name in names) if os.path.isfile(path)]


def run(webui, folder, change=lambda image: image, runner=None, **values):
    """``run_postprocessing`` in mode 2: file name -> PostprocessedImage. ``change``: what another script does before LAFR."""
    runner, state, done = runner or webui.runner(), webui.shared.state, {}
    args = runner.create_args_for_run({"LAFR": {"enable": True, **values}})
    for name in webui.shared.listfiles(str(folder)):
        state.textinfo, state.skipped = name, False
        if state.interrupted:
            break
        try:
            image = Image.open(name)
            image.load()
        except OSError:
            continue
        pp = webui.PostprocessedImage(change(image))
        runner.run(pp, args)
        done[os.path.basename(name)] = pp
        assert state.textinfo == name
    return done


def pixels(image):
    return photos.from_pil(image).pixels


def test_off_is_every_picture_on_its_own(webui, parts, folder, monkeypatch):
    monkeypatch.setattr(clip, "restore", lambda *a: pytest.fail("a clip"))
    done = run(webui, folder)
    assert [info(pp).status for pp in done.values()] == ["no face" if k == MISSED else "ok" for k in range(FRAMES)]
    for index, pp in enumerate(done.values()):
        alone = webui.run(frame(index), {"enable": True})
        assert pp.image.tobytes() == alone.image.tobytes() and "steadiness" not in pp.info["LAFR"]


def test_frames_are_restored_as_the_librarys_clips_are(webui, parts, folder):
    """The face that the detector misses in one frame is restored there as well, and nothing else differs from the library."""
    looked = []
    plain = type(parts.parts.detector).__call__
    parts.parts.detector.__class__.__call__ = lambda self, *a: looked.append(1) or plain(self, *a)
    try:
        done = run(webui, folder, steadiness=0.7)
    finally:
        parts.parts.detector.__class__.__call__ = plain
    assert list(done) == [f"f{k + 1}.png" for k in range(FRAMES)]
    given = torch.stack([pixels(frame(k)) for k in range(FRAMES)])
    expected = restore_batch(given, parts.parts, RestoreSettings(), 0.7).images
    for index, pp in enumerate(done.values()):
        assert (pixels(pp.image) - expected[index]).abs().max() <= 1.01 / 510, index
        assert pp.image.mode == "RGBA" and pp.image.getchannel("A").getextrema() == (100 + index,) * 2
        report = info(pp)
        assert (report.status, report.found, report.request.engine.steadiness) == ("ok", 1, 0.7), report.note
        assert report.note == ""
    assert len(looked) <= FRAMES + 3, "the folder was looked through more than once"  # a frame without a face is turned thrice
    assert clip._sessions == []


def test_steadiness_is_a_knob(webui, parts, folder):
    low, high = (run(webui, folder, steadiness=s) for s in (0.3, 1.0))
    assert any(low[name].image.tobytes() != high[name].image.tobytes() for name in low)


def test_a_reference_photo_helps_the_whole_clip(webui, parts, folder):
    person, poor = sharp_and_poor()
    for index in range(FRAMES):
        poor.save(folder / f"f{index + 1}.png")
    plain = run(webui, folder, steadiness=0.7)
    lent = run(webui, folder, steadiness=0.7, reference=person, identity=1.0)
    with host.neutral(torch.device("cpu")):
        known = engine.reference_person(person, parts.parts, RestoreSettings())
    given = torch.stack([pixels(poor)] * FRAMES)
    expected = restore_batch(given, parts.parts, RestoreSettings(), 0.7, references=References((known,), 1.0)).images
    for index, (name, pp) in enumerate(lent.items()):
        assert (pixels(pp.image) - expected[index]).abs().max() <= 1.01 / 510, index
        assert pp.image.tobytes() != plain[name].image.tobytes() and len(info(pp).likeness) == 1


def test_files_that_are_no_frames_are_passed_by(webui, parts, folder):
    (folder / "f0.txt").write_text("notes")
    (folder / "f5.png").write_bytes(b"not a picture")
    frame(2).resize((80, 60)).save(folder / "f9.png")
    done = run(webui, folder, steadiness=0.7)
    assert "f5.png" not in done and info(done["f4.png"]).status == "ok"
    width, height = frame(0).size
    assert f"restored alone, not as a frame of a clip (f9.png: 80x60 pixels where the first frame has {width}x{height})" in (
        info(done["f9.png"]).note
    )
    assert info(done["f8.png"]).status == "ok" and "alone" not in info(done["f8.png"]).note


def test_results_beside_the_frames_are_no_frames(webui, parts, folder):
    clean = {name: pp.image.tobytes() for name, pp in run(webui, folder, steadiness=0.7).items()}
    runner, state = webui.runner(), webui.shared.state
    args = runner.create_args_for_run({"LAFR": {"enable": True, "steadiness": 0.7}})
    for name in webui.shared.listfiles(str(folder)):
        state.textinfo = name
        pp = webui.PostprocessedImage(Image.open(name))
        runner.run(pp, args)
        assert pp.image.tobytes() == clean[os.path.basename(name)]
        pp.image.save(folder / f"f0{os.path.basename(name)}")


def test_a_picture_that_was_changed_before_is_restored_alone(webui, parts, folder):
    done = run(webui, folder, change=lambda image: image.resize((320, 240), 0), steadiness=0.7)
    for pp in done.values():
        assert pp.image.size == (320, 240)
        assert "restored alone, not as a frame of a clip (the picture is not what its file holds" in info(pp).note


@pytest.mark.parametrize("text", [None, "Waiting...", "/nowhere/f1.png"])
def test_one_picture_is_no_clip(webui, parts, text):
    webui.load()
    webui.shared.state.textinfo = text
    pp = webui.run(photo(), {"enable": True, "steadiness": 0.7})
    assert info(pp).status == "ok" and "Batch from Directory only" in info(pp).note
    assert pp.image.tobytes() == webui.run(photo(), {"enable": True}).image.tobytes()


def test_interrupt_ends_the_clip_and_lets_go_of_it(webui, parts, folder, monkeypatch):
    vae = parts.parts.vae
    plain = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: setattr(webui.shared.state, "interrupted", True) or plain(z))
    done = run(webui, folder, steadiness=0.7)
    assert len(done) == 1 and info(done["f1.png"]).status == "stopped" and clip._sessions == []
    monkeypatch.setattr(vae, "decode", plain)
    webui.shared.state.interrupted = False
    assert [info(pp).status for pp in run(webui, folder, steadiness=0.7).values()] == ["ok"] * FRAMES


def test_an_error_fails_the_frame_and_not_the_batch(webui, parts, folder, monkeypatch):
    monkeypatch.setattr(clip, "survey", lambda *a, **k: 1 / 0)
    done = run(webui, folder, steadiness=0.7)
    assert len(done) == FRAMES and {info(pp).status for pp in done.values()} == {"failed"} and clip._sessions == []


def test_a_clip_without_faces_says_so(webui, parts, folder):
    for index in range(FRAMES):
        photo(faces=0).save(folder / f"f{index + 1}.png")
    done = run(webui, folder, steadiness=0.7)
    assert {info(pp).status for pp in done.values()} == {"no face"}
    for index in range(FRAMES):
        frame(index).save(folder / f"f{index + 1}.png")
    done = run(webui, folder, steadiness=0.7, min_face=500)
    assert {info(pp).status for pp in done.values()} == {"none selected"}


def test_the_route_takes_one_picture(webui):
    pytest.importorskip("fastapi", reason="fastapi (requirements-dev.txt) is not installed")
    from fastapi import HTTPException

    from lafr_webui import api

    with pytest.raises(HTTPException) as refused:
        api.restore({"image": "x", "settings": {"steadiness": 0.7}})
    assert refused.value.status_code == 422 and "Batch from Directory" in refused.value.detail
